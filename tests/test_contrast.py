"""Contrastive reading: the sums by a slow loop, weights that know no key, honest p-values, and power where it must be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import radio_utils as ru
from radio_utils import contrast, reading

V = 60


def llama(seed: int, vocab_size: int = V) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Marked(torch.nn.Module):
    """A model whose expectations lean towards green by ``lean`` in the logit, besides noise of its own."""

    def __init__(self, wm: ru.GreenList, lean: float, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(wm.vocab_size, wm.vocab_size, generator=generator)
        noise = 0.3 * torch.randn(wm.vocab_size, wm.vocab_size, generator=torch.Generator().manual_seed(seed + 99))
        green = torch.from_numpy(wm.green_rows(np.arange(wm.vocab_size)[:, None]))
        self.table = torch.nn.Parameter(table + (noise + lean * green if lean is not None else 0))

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, use_cache: bool = False) -> Any:
        return type("Output", (), {"logits": self.table[input_ids]})()


def texts(n: int = 40, length: int = 40, seed: int = 3, vocab_size: int = V) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, (n, length))


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("twin", [False, True])
def test_weights_equal_the_definition(window: int, twin: bool) -> None:
    """The whole route, a position and a token at a time, in plain Python."""
    models = [llama(1), llama(2), *([llama(3)] if twin else [])]
    sequences, prompts = [t.tolist() for t in texts(6, 12)], [t.tolist() for t in texts(6, 3, seed=8)]
    got = reading.read_contrast(models[0], models[1:], sequences, window, V, prompts=prompts, batch_size=4, top=V)
    sums: dict[tuple[int, ...], list[np.ndarray]] = {}
    for prompt, text in zip(prompts, sequences, strict=True):
        context = prompt + text
        with torch.inference_mode():
            p = [m(input_ids=torch.tensor([context])).logits[0].softmax(-1).double().numpy() for m in models]
        for t in range(max(len(prompt), window), len(context)):
            sums.setdefault(tuple(context[t - window : t]), []).append(np.stack([one[t - 1] for one in p]))
    rows = {w: np.sqrt(np.mean(all_p, axis=0) + contrast.FLOOR) for w, all_p in sums.items()}
    counts = {w: len(all_p) for w, all_p in sums.items()}
    y = {w: h[0] - h[1] for w, h in rows.items()}
    if twin:
        a = np.concatenate([(h[2] - h[1]) * counts[w] ** contrast.EXPONENT for w, h in rows.items()])
        b = np.concatenate([y[w] * counts[w] ** contrast.EXPONENT for w in rows])
        beta = float(a @ b / (a @ a))
        assert got.explained == pytest.approx((beta,), rel=1e-4)
        y = {w: y[w] - beta * (h[2] - h[1]) for w, h in rows.items()}
    weights = {(w, v): float(y[w][v]) * counts[w] ** contrast.EXPONENT for w in rows for v in range(V)}
    unit = 0.3 * math.sqrt(np.mean(np.square(list(weights.values()))))
    rows_of = zip(got.pairs.windows.tolist(), got.pairs.tokens.tolist(), got.weights, strict=True)
    found = {(tuple(w), t): q for w, t, q in rows_of}
    for pair, weight in weights.items():
        assert abs(found.get(pair, 0) - weight / unit) <= 0.501
    assert got.pairs.seen == sum(len(t) for t in sequences)


def test_the_mark_is_found_and_only_with_its_key() -> None:
    wm = ru.GreenList("alice", V, 1)
    guilty, innocent, base = Marked(wm, 0.4), Marked(wm, 0.0), Marked(wm, None)  # type: ignore[arg-type]
    found = ru.read_open_model(guilty, texts(), wm, reference=base)
    assert isinstance(found, ru.ContrastiveReading)
    assert found.log10_p < -10
    assert found.z > 6
    assert found.score > 0.25
    assert found.log10_p <= found.log10_chernoff < -8
    assert found.log10_saddlepoint == pytest.approx(found.log10_p, rel=0.01)
    assert ru.read_open_model(guilty, texts(), wm.with_key("bob"), reference=base).log10_p > -4
    assert ru.read_open_model(innocent, texts(), wm, reference=base).log10_p > -4
    hard = ru.read_open_model(guilty, texts(), wm)
    assert found.log10_p < hard.log10_p


@pytest.mark.parametrize("make", [ru.GreenList, ru.GumbelMax])
def test_p_values_under_decoys_are_uniform_for_guilty_and_innocent(make: Any) -> None:
    wm = make("alice", V, 1)
    base = llama(5)
    for suspect in (llama(6), Marked(ru.GreenList("alice", V, 1), 1.0)):
        found = reading.read_contrast(suspect, base, texts(), 1, V)
        audit = contrast.audit_contrast(found, wm, keys=600, seed=2)
        assert audit.ks_p > 1e-3
        assert -6 < audit.min_log10_p < -1
        direct = [contrast.judge_contrast(found, wm.with_decoy(2, i)).log10_p for i in range(5)]
        assert audit.log10_p[:5] == pytest.approx(direct, rel=1e-6)


def test_few_tokens_a_position_lose_little() -> None:
    wm = ru.GreenList("alice", V, 1)
    guilty, base = Marked(wm, 0.5), Marked(wm, None)  # type: ignore[arg-type]
    z = [ru.read_open_model(guilty, texts(), wm, reference=base, top=top).z for top in (V, 20)]  # type: ignore[union-attr]
    assert z[1] > 0.6 * z[0]


def test_a_model_equal_to_its_reference_has_no_evidence() -> None:
    wm = ru.GreenList("alice", V, 1)
    found = ru.read_open_model(llama(1), texts(), wm, reference=llama(1))
    assert (found.scored, found.log10_p, found.log10_chernoff) == (0, 0.0, 0.0)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="the contrast is empty"):
        contrast.audit_contrast(found.contrast, wm)  # type: ignore[union-attr]


def test_watermarked_text_is_refused() -> None:
    """An innocent who copies from his context more than his base does would be convicted by it."""
    wm = ru.GreenList("alice", V, 1)
    marked, rng = texts(), np.random.default_rng(0)
    for t in range(1, marked.shape[1]):
        options = rng.integers(0, V, (marked.shape[0], 6))
        scores = wm.scores(np.repeat(marked[:, t - 1 : t], 6, axis=0), options.ravel()).reshape(-1, 6)
        marked[:, t] = options[np.arange(len(options)), scores.argmax(1)]
    with pytest.raises(ValueError, match="sequences or prompts carry the watermark"):
        ru.read_open_model(llama(1), marked, wm, reference=llama(2))
    with pytest.raises(ValueError, match="sequences or prompts carry the watermark"):  # what is fed counts, scored or not
        ru.read_open_model(llama(1), texts(40, 5), wm, prompts=marked, reference=llama(2))


def test_sums_do_not_depend_on_how_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    keys, values = rng.integers(0, 300, (5000, 1)).astype(np.uint64), rng.random((5000, 2))
    monkeypatch.setattr(contrast, "_WAITING", 700)
    sums = contrast.Sums(2)
    for part in np.array_split(np.arange(5000), 17):
        sums.add(keys[part], values[part])
    found, totals = sums.total()
    assert found[:, 0].tolist() == sorted(set(keys[:, 0].tolist()))
    expected = np.stack([np.bincount(keys[:, 0].astype(int), values[:, i]) for i in range(2)], axis=1)
    assert totals == pytest.approx(expected[found[:, 0].astype(int)])


def test_a_contrast_survives_the_disk(tmp_path: Any) -> None:
    found = reading.read_contrast(llama(1), [llama(2), llama(3)], texts(4, 10), 1, V)
    found.save(tmp_path)
    again = contrast.Contrast.load(tmp_path)
    assert again.explained == found.explained
    assert np.array_equal(again.weights, found.weights)
    assert np.array_equal(again.pairs.windows, found.pairs.windows)


def test_bad_input_is_named() -> None:
    wm = ru.GreenList("alice", V, 1)
    with pytest.raises(ValueError, match="reference is empty"):
        ru.read_open_model(llama(1), texts(2), wm, reference=[])
    with pytest.raises(ValueError, match="fewer than the watermark's vocab_size=60"):
        ru.read_open_model(llama(1), texts(2) % 50, wm, reference=llama(1, 50))
    with pytest.raises(ValueError, match="top must be at least 1"):
        ru.read_open_model(llama(1), texts(2), wm, reference=llama(2), top=0)
    with pytest.raises(ValueError, match="has no marks that are independent"):
        ru.read_open_model(llama(1), texts(2), ru.compat.ReleasedGreenList(3, V, 1), reference=llama(2))
