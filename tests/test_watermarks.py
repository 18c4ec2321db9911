"""Both schemes: one definition seen from four sides, exact null distributions, processors inside transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from radio_utils import GreenList, GumbelMax, detect
from radio_utils.decoding import GreenListProcessor, GumbelMaxProcessor, Sampling, processor_for
from radio_utils.watermarks import Watermark
from radio_utils.watermarks.prf import PRF

GOLDEN = Path(__file__).parent / "golden" / "watermarks.json"
GAMMAS = {0.25: 8, 0.5: 8, 0.015625: 8, 1 / 512: 16, 0.3 + 2**-20: 32, 0.1: 32, 1 / 3: 32, 0.9: 32}


def random_windows(n: int, k: int, vocab_size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, (n, k))


@cache
def tiny_llama(vocab_size: int = 256) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_golden_vectors() -> None:
    for case in json.loads(GOLDEN.read_text()):
        if case["scheme"] == "green list":
            green = GreenList(case["key"], case["vocab_size"], case["window"], case["gamma"])
            rows = green.green_rows(case["windows"])
            assert [np.packbits(row).tobytes().hex() for row in rows] == case["green"]
            assert green.fingerprint == case["fingerprint"]
        else:
            gumbel = GumbelMax(case["key"], case["vocab_size"], case["window"])
            assert [float(r).hex() for r in gumbel.uniforms(case["windows"], case["tokens"])] == case["uniforms"]
            assert gumbel.fingerprint == case["fingerprint"]


@pytest.mark.parametrize(("gamma", "bits"), GAMMAS.items())
@pytest.mark.parametrize("vocab_size", [600, 1000, 1023])
def test_scores_rows_and_torch_rows_agree(gamma: float, bits: int, vocab_size: int) -> None:
    wm = GreenList("alice", vocab_size, window=2, gamma=gamma)
    assert wm.lane_bits == bits
    assert wm.gamma == pytest.approx(gamma, abs=2**-32)
    windows = random_windows(8, 2, vocab_size)
    rows = wm.green_rows(windows)
    assert rows.shape == (8, vocab_size)
    tokens = np.tile(np.arange(vocab_size), 8)
    scores = wm.scores(np.repeat(windows, vocab_size, axis=0), tokens).reshape(8, vocab_size)
    assert np.array_equal(scores, rows)
    assert np.array_equal(wm.green_rows_torch(torch.from_numpy(windows)).numpy(), rows)
    wider = wm.green_rows_torch(torch.from_numpy(windows), 1100)
    assert wider.shape == (8, 1100)
    assert np.array_equal(wider[:, :vocab_size].numpy(), rows)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_rate_of_green_is_gamma(gamma: float) -> None:
    windows = random_windows(300, 2, 4000)
    greens, n = 0, 0
    for key in range(3):
        rows = GreenList(key, 4000, gamma=gamma).green_rows(windows)
        greens, n = greens + int(rows.sum()), n + rows.size
    assert stats.binomtest(greens, n, gamma).pvalue > 1e-5


def test_greens_of_a_list_are_independent_of_each_other() -> None:
    """The size of a green list is binomial, not fixed: that is what makes the test's null distribution exact."""
    sizes = GreenList("alice", 1000).green_rows(random_windows(5000, 2, 1000)).sum(axis=1)
    expected = 1000 * 0.25 * 0.75
    assert abs(sizes.var() / expected - 1) < 6 * math.sqrt(2 / 5000)
    rows = GreenList("alice", 1000).green_rows(random_windows(5000, 2, 1000, seed=1))[:, :64].astype(float)
    z = (rows - 0.25).T @ (rows - 0.25) / (0.1875 * math.sqrt(5000))
    assert np.abs(z[~np.eye(64, dtype=bool)]).max() < 5.5


@pytest.mark.parametrize("gamma", [0.25, 1 / 512, 0.1])
def test_colours_do_not_depend_on_padding_of_the_vocabulary(gamma: float) -> None:
    windows = random_windows(50, 2, 1000)
    assert np.array_equal(
        GreenList("alice", 1000, gamma=gamma).green_rows(windows),
        GreenList("alice", 1024, gamma=gamma).green_rows(windows)[:, :1000],
    )
    tokens = windows[:, 0]
    assert np.array_equal(GumbelMax("a", 1000).uniforms(windows, tokens), GumbelMax("a", 1024).uniforms(windows, tokens))


def test_equal_gamma_means_equal_colours() -> None:
    """γ within rounding of ¼ is ¼: the same attribute, the same fingerprint, so the same lists."""
    first, second = GreenList("alice", 1000, gamma=0.25), GreenList("alice", 1000, gamma=0.25 + 1e-11)
    assert first.gamma == second.gamma
    windows = random_windows(5, 2, 1000)
    assert np.array_equal(first.green_rows(windows), second.green_rows(windows))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_keys_and_schemes_are_unrelated(k: int) -> None:
    windows = random_windows(4000, k, 1000)
    tokens = windows[:, 0]
    a, b = (GreenList(key, 1000, k, gamma=0.5).scores(windows, tokens) - 0.5 for key in ("alice", "bob"))
    assert abs(4 * (a * b).sum()) < 5 * math.sqrt(4000)
    gumbel = GumbelMax("alice", 1000, k).uniforms(windows, tokens)
    assert abs(stats.pearsonr(a, gumbel).statistic) < 5 / math.sqrt(4000)


def test_gumbel_scores_are_unit_exponentials() -> None:
    for key in range(3):
        scores = GumbelMax(key, 4000).scores(random_windows(50_000, 2, 4000), np.arange(50_000) % 4000)
        assert np.all(scores > 0)
        assert stats.kstest(scores, "expon").pvalue > 1e-5
        assert abs(scores.mean() - 1) < 5 / math.sqrt(50_000)


def test_uniform_rows_equal_uniforms() -> None:
    wm = GumbelMax("alice", 700, 3)
    windows = random_windows(6, 3, 700)
    rows = wm.uniform_rows_torch(torch.from_numpy(windows)).numpy()
    assert rows.shape == (6, 700)
    assert rows.dtype == np.float64
    flat = wm.uniforms(np.repeat(windows, 700, axis=0), np.tile(np.arange(700), 6))
    assert np.array_equal(rows.ravel(), flat)
    assert np.array_equal(wm.uniform_rows_torch(torch.from_numpy(windows), 710).numpy()[:, :700], rows)
    assert np.array_equal(-np.log1p(-flat), wm.scores(np.repeat(windows, 700, axis=0), np.tile(np.arange(700), 6)))


@pytest.mark.parametrize("extreme", [0, (1 << 64) - 1])
def test_uniforms_stay_strictly_inside(monkeypatch: pytest.MonkeyPatch, extreme: int) -> None:
    wm = GumbelMax("alice", 10, 1)
    monkeypatch.setattr(PRF, "words", lambda self, states, indices: np.full(len(states), extreme, np.uint64))
    r = wm.uniforms([[1]], [2])
    assert 0.0 < float(r[0]) < 1.0
    assert np.all(np.isfinite(wm.scores([[1]], [2])))
    assert np.isfinite(np.log(-np.log(r))).all()


def test_p_values_of_totals() -> None:
    green, gumbel = GreenList("a", 100, gamma=0.25), GumbelMax("a", 100)
    for total in range(11):
        assert 10 ** green.log10_p(total, 10) == pytest.approx(stats.binom.sf(total - 1, 10, 0.25), rel=1e-10)
        assert 10 ** green.law.log10_above(total, 10) == pytest.approx(stats.binom.sf(total, 10, 0.25), rel=1e-10)
    assert green.law.log10_above(10, 10) == -math.inf
    assert gumbel.log10_p(13.5, 10) == pytest.approx(math.log10(stats.gamma.sf(13.5, 10)), rel=1e-10)
    assert gumbel.law.log10_above(13.5, 10) == gumbel.log10_p(13.5, 10)
    assert green.log10_p(np.array([1, 2]), np.array([3, 4])).shape == (2,)
    assert np.isfinite(green.log10_p(10**6, 10**6))
    with pytest.raises(ValueError, match="exceed trials"):
        green.law.log10_above(7, 5)


@pytest.mark.parametrize("make", [GreenList, GumbelMax])
def test_names_and_decoys(make: Any) -> None:
    wm = make("my secret", 1000, 2)
    assert "my secret" not in wm.fingerprint + repr(wm)
    prints = {make(key, v, k).fingerprint for key in ("a", b"a", 1) for v in (1000, 1024) for k in (1, 2)}
    assert len(prints) == 12
    decoys = [wm.with_decoy(seed, index) for seed in (0, 1) for index in range(5)]
    assert len({d.fingerprint for d in decoys} | {wm.fingerprint}) == 11
    assert all(type(d) is make and d.window == 2 and d.vocab_size == 1000 for d in decoys)
    assert wm.with_decoy(0, 3).fingerprint == make("another", 1000, 2).with_decoy(0, 3).fingerprint
    if make is GreenList:
        odd = GreenList("a", 1000, 2, gamma=0.1, delta=1.5).with_decoy(0, 0)
        assert (odd.gamma, odd.delta, odd.lane_bits) == (round(0.1 * 2**32) / 2**32, 1.5, 32)


def pairs(wm: Watermark) -> tuple[np.ndarray, np.ndarray]:
    return random_windows(4, wm.window, wm.vocab_size), np.arange(4)


GREEN, GUMBEL = GreenList("a", 100, 2), GumbelMax("a", 100, 2)
NAN = math.nan


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GreenList("", 100), "key is empty"),
        (lambda: GumbelMax(b"", 100), "key is empty"),
        (lambda: GreenList("a", 1), "vocab_size must be an integer of at least 2, got 1"),
        (lambda: GreenList("a", 100.0), "vocab_size must be an integer"),  # type: ignore[arg-type]
        (lambda: GumbelMax("a", True), "vocab_size must be an integer"),
        (lambda: GreenList("a", 100, 0), "window must be an integer of at least 1"),
        (lambda: GumbelMax("a", 100, 1.5), "window must be an integer of at least 1"),  # type: ignore[arg-type]
        (lambda: GumbelMax("a", 100, True), "window must be an integer of at least 1"),
        (lambda: GreenList("a", 100, gamma=0.0), "gamma must lie strictly between 0 and 1"),
        (lambda: GreenList("a", 100, gamma=1.0), "gamma must lie strictly between 0 and 1"),
        (lambda: GreenList("a", 100, gamma=NAN), "gamma must lie strictly between 0 and 1"),
        (lambda: GreenList("a", 100, gamma=0.001), "no green or no red token in a vocabulary of 100"),
        (lambda: GreenList("a", 2**40, gamma=1e-11), "rounds to 0 or 1"),
        (lambda: GreenList("a", 2**40, gamma=1 - 1e-11), "rounds to 0 or 1"),
        (lambda: GreenList("a", 100, delta=NAN), "delta must be finite and not negative"),
        (lambda: GreenList("a", 100, delta=math.inf), "delta must be finite and not negative"),
        (lambda: GreenList("a", 100, delta=-1.0), "delta must be finite and not negative"),
        (
            lambda: GREEN.scores([[1, 100]], [1]),
            r"windows holds token id 100, outside the watermark's vocabulary \[0, 100\)",
        ),
        (lambda: GREEN.scores([[1, -3]], [1]), "windows holds token id -3"),
        (lambda: GUMBEL.scores([[1, 2]], [2**40]), "tokens holds token id 1099511627776"),
        (lambda: GREEN.scores([[1, 2, 3]], [1]), r"windows must have shape \[n, 2\].*got \[1, 3\]"),
        (lambda: GREEN.scores([1, 2], [1]), r"windows must have shape \[n, 2\]"),
        (lambda: GREEN.scores([[1, 2]], [1, 2]), r"tokens must have shape \[1\]"),
        (lambda: GREEN.scores([[1, 2], [3]], [1, 2]), "windows is ragged"),
        (lambda: GREEN.scores([[1.0, 2.0]], [1]), "windows must hold integer token ids, got dtype float64"),
        (lambda: GREEN.scores([[1, 2]], [NAN]), "tokens holds NaN"),
        (lambda: GREEN.scores([["a", "b"]], [1]), "windows must hold integer token ids"),
        (lambda: GREEN.scores([[True, False]], [1]), "windows must hold integer token ids"),
        (lambda: GREEN.green_rows([[1, 2, 3]]), r"windows must have shape \[n, 2\]"),
        (lambda: GREEN.green_rows_torch(torch.tensor([[1]])), r"windows must have shape \[n, 2\]"),
        (lambda: GUMBEL.uniform_rows_torch(torch.tensor([[1, 2, 3]])), r"windows must have shape \[n, 2\]"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_no_pairs_have_no_scores() -> None:
    for wm in (GREEN, GUMBEL):
        assert wm.scores(np.zeros((0, 2), int), np.zeros(0, int)).shape == (0,)
        assert wm.log10_p(0.0, 0) == 0.0


def test_green_list_processor_adds_delta_to_green_logits_only() -> None:
    wm = GreenList("alice", 1000, 2, delta=2.5)
    ids = torch.from_numpy(random_windows(5, 7, 1000))
    logits = torch.randn(5, 1024)
    before = logits.clone()
    out = wm.logits_processor()(ids, logits)
    assert torch.equal(logits, before)  # the caller's logits are not touched
    green = torch.from_numpy(wm.green_rows(ids[:, -2:].numpy()))
    assert torch.equal(out[:, :1000], before[:, :1000] + 2.5 * green)
    assert torch.equal(out[:, 1000:], before[:, 1000:])
    half = wm.logits_processor()(ids, logits.bfloat16())
    assert half.dtype == torch.bfloat16
    logits[:, 1:1000] = -torch.inf
    masked = wm.logits_processor()(ids, logits)
    assert torch.isneginf(masked[:, 1:1000]).all()
    assert not torch.isnan(masked).any()


@pytest.mark.parametrize(
    "sampling",
    [None, Sampling(0.5), Sampling(1.0, top_k=5), Sampling(0.8, top_p=0.7), Sampling(0.0), Sampling(1.3, 20, 0.9)],
)
def test_gumbel_max_processor_is_argmax_of_r_to_the_one_over_p(sampling: Sampling | None) -> None:
    wm = GumbelMax("alice", 300, 2)
    processor = GumbelMaxProcessor(wm, sampling, wm.lane_buffer())
    torch.manual_seed(3)
    ids, logits = torch.from_numpy(random_windows(40, 4, 300)), 3 * torch.randn(40, 320)
    out = processor(ids, logits)
    assert not torch.isnan(out).any()
    assert torch.equal((out == 0).sum(1), torch.ones(40, dtype=torch.long))
    assert torch.equal(torch.isneginf(out).sum(1), torch.full((40,), 319))
    for row in range(40):
        from radio_utils.decoding import warp

        p = warp(logits[row : row + 1, :300].double(), sampling or Sampling(1.0)).softmax(-1)[0].numpy()
        r = wm.uniforms(np.repeat(ids[row : row + 1, -2:].numpy(), 300, axis=0), np.arange(300))
        with np.errstate(divide="ignore"):
            expected = int(np.argmax(np.where(p > 0, np.log(r) / p, -np.inf)))
        assert int(out[row].argmax()) == expected


@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0, 40.0])
def test_gumbel_max_processor_looks_at_few_tokens_and_misses_none(spread: float) -> None:
    """The draw by lanes is the draw over the whole row, from flat logits to peaked ones."""
    wm = GumbelMax("alice", 5000, 2)
    ids = torch.from_numpy(random_windows(60, 2, 5000))
    logits = spread * torch.randn(60, 5000, generator=torch.Generator().manual_seed(1))
    raced = logits.double() - (-wm.uniform_rows_torch(ids).log()).log()
    assert torch.equal(wm.logits_processor()(ids, logits).argmax(-1), raced.argmax(-1))


def test_gumbel_max_never_gives_nan() -> None:
    wm = GumbelMax("alice", 50, 1)
    processor = wm.logits_processor()
    ids = torch.arange(50)[:, None]
    one_hot = torch.full((50, 50), -torch.inf).fill_diagonal_(0.0)
    out = processor(ids, one_hot)
    assert not torch.isnan(out).any()
    assert torch.equal(out.argmax(1), torch.arange(50))
    huge = torch.zeros(50, 50)
    huge[:, 7] = 1e30
    assert torch.equal(processor(ids, huge).argmax(1), torch.full((50,), 7))
    part = torch.zeros(50, 50)
    part[:, 10:] = -torch.inf
    assert int(processor(ids, part).argmax(1).max()) < 10
    assert processor(ids, part.half()).dtype == torch.float16
    for bad in (torch.full((50, 50), -torch.inf), torch.zeros(50, 50).index_fill(1, torch.tensor([3]), torch.inf)):
        with pytest.raises(ValueError, match="no token can be drawn"):
            processor(ids, bad)


@pytest.mark.parametrize("make", [GreenList, GumbelMax])
def test_processors_refuse_what_they_cannot_mark(make: Any) -> None:
    processor = make("a", 100, 3).logits_processor()
    with pytest.raises(ValueError, match="the model has 90 logits, fewer than the watermark's vocab_size=100"):
        processor(torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 90))
    with pytest.raises(ValueError, match="logits hold NaN"):
        processor(torch.zeros(1, 5, dtype=torch.long), torch.full((1, 100), torch.nan))
    for bad in (torch.full((1, 100), -torch.inf), torch.full((1, 100), torch.inf)):
        with pytest.raises(ValueError, match="no token can be drawn"):
            processor(torch.zeros(1, 5, dtype=torch.long), bad)
    with pytest.raises(ValueError, match="the context has 2 tokens, fewer than the watermark's window=3"):
        processor(torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 100))


def test_processor_for_tells_gumbel_max_the_sampling() -> None:
    assert processor_for(None, Sampling()) is None
    assert isinstance(processor_for(GREEN, Sampling()), GreenListProcessor)
    processor = processor_for(GUMBEL, Sampling(0.3))
    assert isinstance(processor, GumbelMaxProcessor)
    assert processor.sampling == Sampling(0.3)


def test_gumbel_max_does_not_distort() -> None:
    """Over many keys, the token after one window is distributed as softmax says."""
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -torch.inf, 0.0, -2.0]])
    ids = torch.tensor([[3, 4]])
    n = 4000
    drawn = [int(GumbelMax(key, 8, 2).logits_processor()(ids, logits).argmax()) for key in range(n)]
    counts, p = np.bincount(drawn, minlength=8), logits.softmax(-1)[0].double().numpy()
    assert counts[5] == 0
    allowed = p > 0
    assert stats.chisquare(counts[allowed], n * p[allowed] / p[allowed].sum()).pvalue > 1e-5


@pytest.mark.parametrize("wm", [GreenList("alice", 256, 2, delta=4.0), GumbelMax("alice", 256, 2)])
def test_processors_work_in_transformers_generate(wm: Watermark) -> None:
    model = tiny_llama()
    torch.manual_seed(1)
    prompts = torch.randint(2, 256, (16, 10))
    mask = torch.ones_like(prompts)
    for row in range(0, 16, 2):  # half of the rows are left-padded
        prompts[row, : row // 2], mask[row, : row // 2] = 0, 0
    options = {"attention_mask": mask, "do_sample": True, "max_new_tokens": 40, "top_k": 0, "pad_token_id": 0}
    marked = model.generate(prompts, logits_processor=[wm.logits_processor()], **options)[:, 10:].numpy()
    plain = model.generate(prompts, **options)[:, 10:].numpy()
    assert detect(marked, wm).log10_p < -20
    assert detect(marked, wm.with_decoy(0, 0)).log10_p > -4
    assert detect(plain, wm).log10_p > -4


@pytest.mark.parametrize("wm", [GreenList("alice", 256, 2, delta=60.0), GumbelMax("alice", 256, 2)])
def test_padding_does_not_change_what_transformers_generates(wm: Watermark) -> None:
    """With an overwhelming watermark the text is a function of prompt and key: the same with and without padding."""
    model = tiny_llama()
    prompt = torch.tensor([[5, 6, 7, 8]])
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), prompt], dim=1)
    mask = (torch.arange(7) >= 3).long()[None]
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "logits_processor": [wm.logits_processor()]}
    alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0, 4:]
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[0, 7:], alone)


def test_schemes_in_rows_are_each_key_alone_on_every_path() -> None:
    rng = np.random.default_rng(0)
    keys, windows = [3, 4, 3, 5, 4], np.array([[1, 2], [1, 2], [7, 8], [7, 8], [7, 8]])
    greens, gumbels = [GreenList(key, 60, 2) for key in keys], [GumbelMax(key, 60, 2) for key in keys]
    at_once = greens[0].in_rows(greens)
    expected = np.concatenate([wm.green_rows(row[None]) for wm, row in zip(greens, windows, strict=True)])
    assert np.array_equal(at_once.is_green(at_once.lane_buffer().rows(windows)), expected)
    assert np.array_equal(at_once.green_rows_torch(torch.from_numpy(windows)).numpy(), expected)

    drawn = gumbels[0].in_rows(gumbels)
    rows, tokens = rng.integers(0, 5, 80), rng.integers(0, 60, 80)
    each = [gumbels[row].uniforms(windows[row][None], [token])[0] for row, token in zip(rows, tokens, strict=True)]
    assert np.array_equal(drawn.uniforms_in(windows, rows, tokens), each)
    assert np.array_equal(gumbels[0].uniforms_in(windows, rows, tokens), gumbels[0].uniforms(windows[rows], tokens))
    assert np.array_equal(drawn.uniform_rows_torch(torch.from_numpy(windows)).numpy()[rows, tokens], each)
