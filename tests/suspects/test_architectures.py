"""Every causal architecture of the installed transformers that can be built small: read, asked and measured as it is.

What is found must be what plain passes over one text at a time give, with nothing kept between them; or the model is
refused, and then it does see tokens that it should predict. A new release of transformers is tried by the same table.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from radio_utils import decoding, membership, reading

V = 64
SIZES: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 32, "d_model": 32,
    "n_heads": 2, "n_layers": 2, "num_layers": 2, "num_heads": 2, "ffn_dim": 32, "max_position_embeddings": 64,
    "n_positions": 64, "n_ctx": 64, "max_seq_len": 64, "decoder_layers": 2, "encoder_layers": 2, "d_ff": 32, "d_kv": 16,
    "decoder_attention_heads": 2, "encoder_attention_heads": 2, "decoder_ffn_dim": 32, "encoder_ffn_dim": 32,
    "embedding_size": 32, "word_embed_proj_dim": 32, "moe_intermediate_size": 32, "num_local_experts": 2, "num_experts": 2,
    "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "state_size": 8, "attention_hidden_size": 32,
    "rotary_dim": 8, "ssm_state_size": 8, "mamba_d_state": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "mamba_d_ssm": 64,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_chunk_size": 8, "chunk_size": 8, "n_mamba_heads": 2, "n_groups": 1,
    "mamba_n_groups": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "is_decoder": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# what else is tried where these sizes do not fit together; None leaves a size as it is
TRIED: list[dict[str, Any]] = [
    {},
    {"head_dim": None},
    {"head_dim": 8},
    {"num_hidden_layers": 4},
    {"num_hidden_layers": 8, "head_dim": None},
    {"num_hidden_layers": None, "head_dim": None, "num_layers": None},
    {"v_head_dim": None, "head_dim": None},
    {"num_heads": 4, "head_dim": 16},
]
LARGEST = 4_000_000  # weights; what cannot be made smaller is left out
SLOW = {"KimiLinear"}  # one pass over a few tokens takes it seconds, however small it is
TEXTS = [np.random.default_rng(size).integers(3, V, size) for size in (20, 14, 14, 9)]
NEW = 4
CONFIGS = {config.__name__.removesuffix("Config"): config for config in MODEL_FOR_CAUSAL_LM_MAPPING}


def small(name: str) -> Any:
    """A tiny model of random weights, or the reason why there is none."""
    problem = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for changes in TRIED:
            try:
                usual = CONFIGS[name]()
                wanted = {
                    key: value for key, value in (SIZES | changes).items() if value is not None and hasattr(usual, key)
                }
                config = CONFIGS[name](**wanted)
                build = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIGS[name]]
                build = build[0] if isinstance(build, tuple) else build
                with torch.device("meta"):
                    size = sum(one.numel() for one in build(config).parameters())
                if size > LARGEST:  # parts with sizes of their own, as of a model that sees pictures
                    return f"{size:,} weights"
                torch.manual_seed(0)
                model: Any = build(config).eval()
                for weight in model.parameters():
                    if weight.ndim > 1:
                        weight.data.normal_(0, 0.2)
                plain(model, TEXTS[0])
                return model
            except Exception as error:
                problem = problem or f"{type(error).__name__}: {error}"
    return problem.partition("\n")[0]


@torch.inference_mode()
def plain(model: Any, ids: Any) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.as_tensor(ids)[None], use_cache=False).logits[0]
    return logits


def sees_ahead(model: Any) -> bool:
    before = plain(model, TEXTS[0])
    for cut in (1, 5, 10, 15, 19):
        other = TEXTS[0].copy()
        other[cut:] = (other[cut:] + 1) % (V - 3) + 3
        if float((before[:cut] - plain(model, other)[:cut]).abs().max()) > 1e-3:
            return True
    return False


def tokenizer(texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
    return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_an_architecture_is_as_plain_passes_are(name: str, one_thread: None) -> None:
    if name in SLOW:
        pytest.skip("too slow")
    model = small(name)
    if isinstance(model, str):
        pytest.skip(f"not built: {model}")
    logits = [plain(model, text) for text in TEXTS]
    vocab_size = min(V, logits[0].shape[-1])
    asked = decoding.generate(model, TEXTS, max_new_tokens=NEW, sampling=decoding.Sampling(0.0))
    for text, answer in zip(TEXTS, asked, strict=True):
        so_far = list(text)
        for token in answer.tolist():
            assert token == int(plain(model, so_far)[-1].argmax()), f"{name} is not asked as it answers"
            so_far.append(token)
    try:
        found = reading.read_predictions(model, TEXTS, vocab_size)
        losses = membership.losses(model, tokenizer, [" ".join(map(str, text)) for text in TEXTS])
    except ValueError as error:
        assert "sees the tokens that it should predict" in str(error) and sees_ahead(model), error
        return
    assert not sees_ahead(model), f"{name} sees ahead and is read"
    for text, expected, tokens, loss in zip(TEXTS, logits, found.tokens, losses, strict=True):
        assert tokens[1:].tolist() == expected[:, :vocab_size].argmax(-1).tolist(), f"{name} is read otherwise"
        total = torch.nn.functional.cross_entropy(expected[:-1], torch.from_numpy(text[1:]), reduction="sum")
        assert loss == pytest.approx(float(total), rel=1e-3), f"{name} has another loss"


def test_most_architectures_can_be_tried() -> None:
    assert len(CONFIGS) > 100
