"""Informed scores: mean 1 by integration, weights by a slow loop, honest evidence under many keys, and their power."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from test_counts import FEW, Table, V, logits_of, marked_prompts, recombine

import radio_utils as ru
from radio_utils import decoding, informed
from radio_utils.watermarks import GumbelMax


@pytest.mark.parametrize("p", [1e-6, 1e-3, 0.02, 0.3, 0.5, 0.9, 0.999])
def test_the_exponential_of_a_score_has_mean_one(p: float) -> None:
    # in x = −log(r)/p, which spreads what happens near r = 1
    mean, _ = integrate.quad(lambda x: p * np.exp(informed.log_ratio(np.exp(-p * x), p) - p * x), 0, 60, epsabs=1e-12)
    assert mean == pytest.approx(1.0, abs=1e-9)
    assert informed.log_ratio(0.3, 1.0) == 0.0  # a certain token tells nothing


def density(r: float, p: float) -> float:
    return float(np.exp(informed.log_ratio(r, p)))


def test_the_ratio_is_the_density_of_an_emitted_tokens_r() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4) * 2)
    r = rng.random((200_000, 4))
    emitted = (np.log(r) / p).argmax(1)
    for v in range(4):
        assert np.mean(emitted == v) == pytest.approx(p[v], abs=0.01)
        edges = np.linspace(0.1, 0.99, 6)
        masses = [integrate.quad(density, 0, edge, args=(p[v],))[0] for edge in edges]
        assert [np.mean(r[emitted == v, v] <= edge) for edge in edges] == pytest.approx(masses, abs=0.01)


@pytest.mark.parametrize("filtered", [False, True])
def test_evidence_equals_the_definition(filtered: bool) -> None:
    rng = np.random.default_rng(1)
    table, wm = logits_of(2, 1.0, 7), GumbelMax("alice", 7, 2)
    prompts = [rng.integers(0, 7, n) for n in (3, 0, 9)]
    texts = [rng.integers(0, 7, n) for n in (25, 2, 30)]
    keep = rng.integers(0, 7, (30, 2)) if filtered else None
    shares = (0.05, 0.4)
    got = informed.detect_informed(
        texts, wm, Table(table), prompts=prompts, keep=keep, sampling=decoding.Sampling(temperature=0.5), shares=shares,
        batch_size=2,
    )  # fmt: skip
    chances = np.exp(table / 0.5)
    chances /= chances.sum(1, keepdims=True)
    shown = {tuple(p[i : i + 3].tolist()) for p in prompts for i in range(p.size - 2)}
    first, second = {int(p[0]) for p in prompts if p.size}, {tuple(p[:2].tolist()) for p in prompts if p.size > 1}
    met: dict[tuple[int, ...], list[float]] = {}
    for text in texts:
        for t in range(2, text.size):
            w, v = tuple(text[t - 2 : t].tolist()), int(text[t])
            told = (*w, v) in shown or v in first or (w[1], v) in second
            if (keep is None or list(w) in keep.tolist()) and not told:
                met.setdefault((*w, v), []).append(chances[w[1], v])
    assert any(len(row) > 1 for row in met.values())
    expected = []
    for share in shares:
        log_e = 0.0
        for (*w, v), places in met.items():
            r = float(wm.uniforms([w], [v])[0])
            log_e += np.log10(np.mean([1 + share * (r ** (1 / p - 1) / p - 1) for p in places]))
        expected.append(log_e)
    assert got.by_share == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert got.log10_e == pytest.approx(np.log10(np.mean(10.0 ** np.array(expected))), rel=1e-3, abs=1e-4)
    assert (got.scored, got.seen) == (len(met), sum(max(0, t.size - 2) for t in texts))
    assert got.log10_p == min(0.0, -got.log10_e)


def test_evidence_of_innocent_text_is_honest_under_many_keys() -> None:
    rng = np.random.default_rng(0)
    texts = rng.integers(0, V, (3, 30))
    found = informed.collect_informed(texts, Table(logits_of(1)), 1, V)
    wm = GumbelMax("alice", V, 1)
    e = 10.0 ** np.array([informed.judge_informed(found, wm.with_key(f"k{i}")).log10_e for i in range(2000)])
    for alpha in (0.05, 0.01, 0.001):
        assert np.count_nonzero(e >= 1 / alpha) <= stats.binom.ppf(0.995, e.size, alpha)
    one = informed.collect_informed([[1, 2]], Table(logits_of(1)), 1, V)  # few pairs: the mean itself can be seen
    keys = [wm.with_key(f"k{i}") for i in range(2000)]
    small = 10.0 ** np.array([informed.judge_informed(one, key, shares=(0.1,)).log10_e for key in keys])
    assert abs(small.mean() - 1.0) < 4 * small.std() / np.sqrt(small.size)


def test_marked_prompts_convict_no_innocent_who_recombines_them() -> None:
    table, hidden = logits_of(1, 1.0, FEW), 3
    model, rng = Table(table), np.random.default_rng(5)
    careful, known, careless = [], [], []
    for i in range(1000):
        wm = GumbelMax(f"key {i}", FEW, 1)
        prompts = marked_prompts(wm, table, hidden, (8, 4), rng)
        answers = recombine(prompts, hidden, 12, rng)
        drawn = np.column_stack([np.full(8, hidden), prompts])
        if i % 2:
            careful.append(informed.detect_informed(answers, wm, model, prompts=prompts).log10_p)
        else:
            known.append(informed.detect_informed(answers, wm, model, prompts=prompts, drawn=drawn).log10_p)
        if i < 30:
            careless.append(informed.detect_informed(answers, wm, model, prompts=prompts, prompts_marked=False).log10_p)
    for alpha in (0.05, 0.01, 0.001):
        for some in (careful, known):
            assert np.count_nonzero(np.array(some) <= np.log10(alpha)) <= stats.binom.ppf(0.995, len(some), alpha)
    assert np.mean(np.array(careless) < np.log10(0.01)) > 0.15


@pytest.mark.parametrize("share", [0.9, 0.1])
def test_a_text_is_convicted_by_fewer_pairs(share: float) -> None:
    """Texts of which a share of the tokens follow the key: informed evidence is more than the usual test's."""
    wm, rng = GumbelMax("alice", 200, 2), np.random.default_rng(0)
    table = logits_of(1, 3.0, 200)
    chances = np.exp(table)
    chances /= chances.sum(1, keepdims=True)
    columns = list(rng.integers(0, 200, (2, 20 if share > 0.5 else 300)))
    for _ in range(20):
        windows = np.column_stack(columns[-2:])
        here, race = chances[windows[:, 1]], np.log(wm.uniform_rows_torch(torch.from_numpy(windows)).numpy())
        plain = np.minimum((rng.random((len(here), 1)) > here.cumsum(1)).sum(1), 199)
        columns.append(np.where(rng.random(len(here)) < share, (race / here).argmax(1), plain))
    texts = np.column_stack(columns)
    got, usual = informed.detect_informed(texts, wm, Table(table)), ru.detect(texts, wm)
    assert got.log10_p < 1.5 * usual.log10_p < -3
    assert got.scored == usual.scored
    assert informed.detect_informed(texts, wm.with_key("bob"), Table(table)).log10_p > -3


def test_no_pair_is_no_evidence() -> None:
    found = informed.detect_informed([[1, 2, 3]], GumbelMax("a", V, 1), Table(logits_of(1)), keep=np.zeros((0, 1), int))
    assert (found.scored, found.seen, found.log10_e, found.log10_p) == (0, 2, 0.0, 0.0)


def test_a_probability_of_nearly_nothing_stays_finite() -> None:
    logits = np.full((V, V), -200.0)
    logits[:, 0] = 200.0
    got = informed.detect_informed([np.arange(V)], GumbelMax("a", V, 1), Table(logits))
    assert np.isfinite(got.log10_e)


def test_bad_input_is_named() -> None:
    model, wm = Table(logits_of(1)), GumbelMax("a", V, 1)
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        ([[1, 2]], ru.GreenList("a", V, 1), {}, "informed scores are for GumbelMax.*got GreenList"),
        ([[1, 2]], ru.compat.ReleasedGumbelMax(3, V, 1), {}, "got ReleasedGumbelMax"),
        ([[1, 2]], wm, {"shares": ()}, "shares must be numbers strictly between 0 and 1"),
        ([[1, 2]], wm, {"shares": (0.1, 1.0)}, "shares must be numbers strictly between 0 and 1"),
        ([[1]], wm, {}, "no text is longer than the watermark's window=1"),
        ([[1, V]], wm, {}, r"texts\[0\] holds token id 40"),
        ([[1, 2]], wm, {"prompts": [[1], [2]]}, "equal in number, got 2 and 1"),
        ([[1, 2]], wm, {"batch_size": 0}, "batch_size must be at least 1"),
        ([[1, 2]], wm, {"prompts": [[1]], "prompts_marked": False, "drawn": [[1]]}, "drawn is given"),
    ]
    for texts, scheme, options, words in cases:
        with pytest.raises(ValueError, match=words):
            informed.detect_informed(texts, scheme, model, **options)
