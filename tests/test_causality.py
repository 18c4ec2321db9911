"""Models that see what they should predict are refused before anything is read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import radio_utils as ru
from radio_utils import membership, reading
from radio_utils.decoding.passes import alike
from radio_utils.suspects.causality import check_causal

SIZE = 60
SMALL: dict[str, Any] = {
    "vocab_size": SIZE, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
TEXTS = [np.random.default_rng(0).integers(SIZE, size=20) for _ in range(6)]


def made(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")
    model = getattr(transformers, {"Bert": "BertLMHeadModel", "GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM"))
    return model(config(**(SMALL | changes))).eval()


@pytest.mark.parametrize("name", ["Bert", "RoFormer", "Electra", "Roberta", "MegatronBert"])
def test_encoders_are_refused_and_their_decoders_read(name: str) -> None:
    wm = ru.GreenList("alice", SIZE, 1)
    extra = {"embedding_size": 32} if name in ("RoFormer", "Electra") else {}
    encoder = made(name, is_decoder=False, **extra)
    with pytest.raises(ValueError, match="sees the tokens that it should predict"):
        ru.read_open_model(encoder, TEXTS, wm)
    with pytest.raises(ValueError, match="sees the tokens that it should predict"):
        ru.read_open_model(made("Llama"), TEXTS, wm, reference=encoder)
    assert ru.read_open_model(made(name, is_decoder=True, **extra), TEXTS, wm).scored > 0


@pytest.mark.parametrize("name", ["Llama", "GPT2", "GPTNeoX", "Mamba", "Qwen2", "Gemma", "Mixtral"])
def test_causal_models_pass(name: str) -> None:
    extra: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 16} if name in ("Gemma", "Mixtral", "Qwen2") else {}
    if name == "GPT2":
        extra = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    if name == "Mixtral":
        extra |= {"num_local_experts": 2, "num_experts_per_tok": 1}
    check_causal(made(name, **extra), TEXTS)


class Shifted(torch.nn.Module):
    """Prompt tuning: eight places of its own before the text."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        ahead = torch.zeros(input_ids.shape[0], 8, dtype=torch.long)
        return SimpleNamespace(logits=torch.nn.functional.one_hot(torch.cat([ahead, input_ids], 1), SIZE).float())


def test_places_that_are_not_the_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="gives logits at 24 places for 16 tokens"):
        reading.read_predictions(Shifted(), TEXTS, SIZE)


def test_membership_asks_too() -> None:
    def tokenizer(texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) % SIZE for letter in text] for text in texts]}

    texts = ["the quick brown fox", "jumps over the lazy dog"]
    with pytest.raises(ValueError, match="sees the tokens that it should predict"):
        membership.losses(made("Bert", is_decoder=False), tokenizer, texts)
    with pytest.raises(ValueError, match="gives logits at 24 places"):
        membership.token_scores(Shifted(), tokenizer, texts)
    assert membership.losses(made("Bert", is_decoder=True), tokenizer, texts).shape == (2,)


@pytest.mark.parametrize("low", [-1e4, -1e9, torch.finfo(torch.float32).min, -torch.inf])
def test_tokens_that_are_ruled_out_hide_no_leak(low: float) -> None:
    """As models write logits of padding, or of tokens of images: one such number would dwarf every other difference."""

    def ruling_out(model: Any) -> Any:
        model.get_output_embeddings().register_forward_hook(
            lambda *of: of[2].clone().index_fill_(-1, torch.tensor([7, 9]), low)
        )
        return model

    with pytest.raises(ValueError, match="sees the tokens that it should predict"):
        check_causal(ruling_out(made("Bert", is_decoder=False)), TEXTS)
    check_causal(ruling_out(made("Llama")), TEXTS)


def test_a_place_without_numbers_hides_no_leak_at_others() -> None:
    def first_unknown(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.clone().index_fill_(1, torch.tensor([0]), torch.nan)

    model = made("Bert", is_decoder=False)
    model.get_output_embeddings().register_forward_hook(first_unknown)
    with pytest.raises(ValueError, match="sees the tokens that it should predict"):
        check_causal(model, TEXTS)


def test_a_token_ruled_out_in_one_alone_is_a_difference() -> None:
    logits = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    other = logits.clone()
    other[1, 4] = -torch.inf
    assert alike(logits, logits.clone()) and alike(other, other.clone())
    assert not alike(logits, other) and not alike(other, logits)


def test_too_little_to_tell_is_left_to_the_reading() -> None:
    check_causal(made("Bert", is_decoder=False), [np.array([3, 3, 3])])
    check_causal(made("Bert", is_decoder=False), [np.array([3])])
