"""Models are run in one place: as plain passes say, whatever the batch, and refused where they cannot be."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from test_architectures import plain, tokenizer

import radio_utils as ru
from radio_utils import decoding, membership, reading
from radio_utils.decoding import caches
from radio_utils.suspects import forward
from radio_utils.suspects.memory import DeviceMemoryError

V = 64
TEXTS = [np.random.default_rng(size).integers(3, V, size) for size in (20, 14, 31, 9, 14, 22)]
STRINGS = [" ".join(map(str, text)) for text in TEXTS]


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=V, max_position_embeddings=64, initializer_range=0.3, **sizes | changes)
    return transformers.LlamaForCausalLM(config).eval()


def expected(model: Any, first: int = 1) -> list[list[int]]:
    return [plain(model, text).argmax(-1)[first - 1 :].tolist() for text in TEXTS]


def found(model: Any, **options: Any) -> list[list[int]]:
    return [tokens[1:].tolist() for tokens in reading.read_predictions(model, TEXTS, V, **options).tokens]


def test_batches_hold_so_many_texts_and_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    for most in (1, 40 * V, 1 << 27):
        monkeypatch.setattr(forward, "_LOGITS", most)
        batches = [rows for rows, _ in forward.read([model], TEXTS, batch_size=4)]
        assert sorted(i for rows in batches for i in rows) == list(range(len(TEXTS)))
        padded = [len(rows) * max(TEXTS[i].size for i in rows) * V for rows in batches]
        assert all(len(rows) <= 4 for rows in batches)
        assert all(size <= most or len(rows) == 1 for size, rows in zip(padded, batches, strict=True))
        assert found(model) == expected(model)
    assert [len(rows) for rows in batches] == [4, 2]


class Narrow(torch.nn.Module):
    """A model on a device that has room for so many tokens at once."""

    def __init__(self, inner: Any, room: int) -> None:
        super().__init__()
        self.inner, self.room, self.config, self.largest = inner, room, inner.config, 0
        self.get_input_embeddings = inner.get_input_embeddings

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        if input_ids.numel() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.inner(input_ids=input_ids, **options)


def test_what_is_too_much_at_once_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in ("check_causal", "honours_padding"):
        monkeypatch.setattr(forward, probe, lambda *_: True)
    model = llama()
    assert found(Narrow(model, 62)) == expected(model)
    losses = membership.losses(Narrow(model, 62), tokenizer, STRINGS)
    np.testing.assert_allclose(losses, membership.losses(model, tokenizer, STRINGS), rtol=1e-5)
    with pytest.raises(DeviceMemoryError, match="one text of 31 tokens; split the longer texts"):
        found(Narrow(model, 30))


def test_answers_that_are_too_many_at_once_are_the_same_in_halves() -> None:
    model, options = llama(), {"max_new_tokens": 5, "sampling": decoding.Sampling(0.0)}
    narrow = decoding.generate(Narrow(model, 62), TEXTS, **options)
    assert [one.tolist() for one in narrow] == [one.tolist() for one in decoding.generate(model, TEXTS, **options)]


def test_models_come_back_in_the_mode_in_which_they_were() -> None:
    model = llama(attention_dropout=0.5).train()
    model.model.layers[1].eval()
    before = [part.training for part in model.modules()]
    assert found(model) == expected(copy.deepcopy(model).eval())
    membership.losses(model, tokenizer, STRINGS)
    decoding.generate(model, TEXTS, max_new_tokens=2)
    with pytest.raises(ValueError, match="logits, fewer than"):
        reading.read_predictions(model, TEXTS, V + 1)
    assert [part.training for part in model.modules()] == before


def test_texts_longer_than_the_positions_are_refused() -> None:
    long = [np.random.default_rng(0).integers(3, V, 65)]
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    )
    roberta = transformers.RobertaForCausalLM(
        transformers.RobertaConfig(
            vocab_size=V, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=66, is_decoder=True,
        )
    )  # fmt: skip
    words = r"texts\[0\] has 65 tokens with its prompt, and the model can read 64 at once"
    wm = ru.GreenList("alice", V, 1)
    for model in (llama(), gpt2, roberta):
        with pytest.raises(ValueError, match=words):
            ru.read_open_model(model, long, wm)
        with pytest.raises(ValueError, match=words):
            membership.losses(model, tokenizer, [" ".join(map(str, long[0]))])
        with pytest.raises(ValueError, match=r"prompts\[1\] has 65 tokens, and the model can read 64 at once"):
            decoding.generate(model, [long[0][:60], long[0]], max_new_tokens=9)
        (answer,) = decoding.generate(model, [long[0][:60]], max_new_tokens=9)
        assert answer.size == 5, "four that are read, and the one after them"
        ru.read_open_model(model, [long[0][:64]], wm)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig", "LoraConfig"])
def test_virtual_tokens_move_nothing(kind: str) -> None:
    peft = pytest.importorskip("peft")
    options: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    options |= {"target_modules": ["q_proj"]} if kind == "LoraConfig" else {"num_virtual_tokens": 8}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = peft.get_peft_model(llama(), getattr(peft, kind)(**options)).eval()
    ahead = 8 if kind in ("PromptTuningConfig", "PromptEncoderConfig") else 0
    logits = [plain(model, text)[ahead:] for text in TEXTS]
    assert all(len(one) == text.size for one, text in zip(logits, TEXTS, strict=True))
    assert found(model) == [one.argmax(-1).tolist() for one in logits]
    totals = [
        float(torch.nn.functional.cross_entropy(one[:-1], torch.from_numpy(text[1:]), reduction="sum"))
        for one, text in zip(logits, TEXTS, strict=True)
    ]
    np.testing.assert_allclose(membership.losses(model, tokenizer, STRINGS), totals, rtol=1e-4)
    answers = decoding.generate(model, TEXTS[:3], max_new_tokens=4, sampling=decoding.Sampling(0.0))
    for text, answer in zip(TEXTS, answers, strict=False):
        for place in range(4):
            assert answer[place] == int(plain(model, [*text, *answer[:place]])[-1].argmax())


def test_encoder_decoders_are_refused_by_name() -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": V}
    bart = transformers.BartForConditionalGeneration(transformers.BartConfig(decoder_attention_heads=2, **sizes))
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(d_model=16, num_layers=1, vocab_size=V))
    for model in (bart, t5):
        for reader in (lambda: found(model), lambda: membership.losses(model, tokenizer, STRINGS)):  # noqa: B023
            with pytest.raises(ValueError, match="is an encoder-decoder"):
                reader()
    with pytest.raises(ValueError, match="gives no logits"):
        found(transformers.LlamaModel(llama().config))


class Prefix(torch.nn.Module):
    """Reads in both directions up to a mark in the text, and forwards behind it."""

    def __init__(self, mark: int | None, length: int) -> None:
        super().__init__()
        self.mark, self.length, self.weight = mark, length, torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        logits = torch.nn.functional.one_hot(input_ids, V).float().cumsum(1)
        for row, ids in enumerate(input_ids.tolist()):
            end = ids.index(self.mark) if self.mark in ids else self.length
            logits[row, :end] = logits[row, : max(end, 1)].max(0).values
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(("mark", "length"), [(None, 2), (None, 5), (None, 30), (7, 0)])
def test_models_that_see_their_prompt_whole_are_refused(mark: int | None, length: int) -> None:
    texts = TEXTS if mark is None else [np.append(np.delete(text, np.flatnonzero(text == 7)), [7, 5]) for text in TEXTS]
    with pytest.raises(ValueError, match="sees the tokens that it should predict"):
        reading.read_predictions(Prefix(mark, length), texts, V)


class Unmasked(torch.nn.Module):
    """Causal, and takes the length of what it is fed for the text's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        logits = torch.nn.functional.one_hot(input_ids, V).float().cumsum(1)
        return SimpleNamespace(logits=logits.roll(input_ids.shape[1], dims=-1))


def test_who_does_not_honour_padding_is_fed_texts_of_one_length() -> None:
    assert found(Unmasked()) == expected(Unmasked())
    batches = [sorted(rows) for rows, _ in forward.read([Unmasked()], TEXTS)]
    assert batches == [[3], [1, 4], [0], [5], [2]]


def test_no_cache_is_trusted_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that forgets its first token is found out, and the texts are right all the same."""
    model, options = llama(), {"max_new_tokens": 6, "sampling": decoding.Sampling(0.0)}
    right = [one.tolist() for one in decoding.generate(model, TEXTS, **options)]
    assert caches.proven(model, TEXTS, 6) is caches.OurCache
    update = caches.FilledLayer.update

    def forgetful(self: Any, *given: Any, **rest: Any) -> Any:
        keys, values = update(self, *given, **rest)
        return (keys.clone().index_fill_(2, torch.tensor([keys.shape[2] - 2]), 0.0) if keys.shape[2] > 6 else keys), values

    monkeypatch.setattr(caches.FilledLayer, "update", forgetful)
    assert caches.proven(model, TEXTS, 6) is caches.ItsCache
    assert [one.tolist() for one in decoding.generate(model, TEXTS, **options)] == right


def test_offloaded_models_are_read() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = llama()
    right, losses = expected(model), membership.losses(model, tokenizer, STRINGS)
    away = accelerate.cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert next(away.parameters()).device.type == "meta"
    assert found(away) == right
    np.testing.assert_allclose(membership.losses(away, tokenizer, STRINGS), losses, rtol=1e-6)
    assert len(ru.query_closed_model(away, TEXTS, ru.GreenList("alice", V, 1)).evidence) > 0


def test_texts_come_from_tables_and_arrays() -> None:
    model = llama()
    right = membership.losses(model, tokenizer, STRINGS)
    table = pd.Series(STRINGS, index=range(50, 50 + len(STRINGS)))
    for given in (table, table.astype("string"), np.array(STRINGS), tuple(STRINGS)):
        assert np.array_equal(membership.losses(model, tokenizer, given), right)
        assert membership.zlib_calibrated_losses(model, tokenizer, given).shape == right.shape
        assert len(membership.token_scores(model, tokenizer, given, prompts=given)) == len(STRINGS)
    with pytest.raises(ValueError, match=r"texts\[1\] is no string but float"):
        membership.losses(model, tokenizer, pd.Series(["3 4 5", float("nan")], dtype=object))
