"""Verdicts by hand, honest p-values under random keys, the false alarms of repetition, the null audit, the curve."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from radio_utils import GreenList, GumbelMax, compat, detect, null_audit
from radio_utils import evidence as ev
from radio_utils.detection import audit_evidence, curve, judge
from radio_utils.stats import ks
from radio_utils.watermarks import Watermark

V = 500
BOTH: list[Watermark] = [GreenList("alice", V), GumbelMax("alice", V)]


def random_texts(seed: int, n: int = 20, length: int = 60, vocab_size: int = V) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, (n, length))


def repetitive_texts(seed: int, phrases: int = 12, length: int = 12, times: int = 40) -> list[np.ndarray]:
    """A dozen phrases, each said forty times: few distinct pairs, many positions."""
    return [np.tile(phrase, times) for phrase in random_texts(seed, phrases, length)]


def marked_texts(wm: Watermark, n: int, length: int, seed: int = 0) -> np.ndarray:
    """Text in which each token is the best scored of eight random ones, as a strong watermark would choose."""
    rng = np.random.default_rng(seed)
    texts = rng.integers(0, wm.vocab_size, (n, length))
    for t in range(wm.window, length):
        candidates = rng.integers(0, wm.vocab_size, (n, 8))
        windows = np.repeat(texts[:, t - wm.window : t], 8, axis=0)
        best = wm.scores(windows, candidates.ravel()).reshape(n, 8).argmax(axis=1)
        texts[:, t] = candidates[np.arange(n), best]
    return texts


def test_green_total_by_hand() -> None:
    wm = GreenList("alice", 10, window=1, gamma=0.5)
    texts = [[1, 2, 3, 1, 2], [3, 1, 4]]
    pairs = [(1, 2), (2, 3), (3, 1), (1, 4)]  # (1, 2) and (3, 1) occur twice
    rows = wm.green_rows(np.arange(10)[:, None])
    greens = sum(int(rows[w, t]) for w, t in pairs)
    found = detect(texts, wm)
    assert (found.seen, found.scored, found.total) == (6, 4, float(greens))
    assert found.score == greens / 4
    assert found.p_value == pytest.approx(sum(math.comb(4, i) for i in range(greens, 5)) / 16)
    assert (found.scheme, found.window, found.dedup, found.fingerprint) == ("green list", 1, "window+token", wm.fingerprint)
    everything = detect(texts, wm, dedup=None)
    assert everything.scored == 6
    assert everything.total == sum(int(rows[w, t]) for w, t in [*pairs, (1, 2), (3, 1)])
    once = detect(texts, wm, dedup="window")
    assert once.scored == 3
    assert once.total == sum(int(rows[w, t]) for w, t in [(1, 2), (2, 3), (3, 1)])
    excluded = detect(texts, wm, prompts=[[2], [4, 3]])
    assert excluded.scored == 3  # (2, 3) is gone; (3, 1) stands in the first text too
    assert excluded.total == sum(int(rows[w, t]) for w, t in [(1, 2), (3, 1), (1, 4)])
    kept = detect(texts, wm, keep=[[1]])
    assert kept.total == sum(int(rows[w, t]) for w, t in [(1, 2), (1, 4)])
    assert kept.seen == 6


def test_gumbel_total_by_hand() -> None:
    wm = GumbelMax("alice", 10, window=1)
    found = detect([[1, 2, 3, 1, 2]], wm)
    r = wm.uniforms([[1], [2], [3]], [2, 3, 1])
    total = -sum(math.log(1 - x) for x in r)
    assert found.scored == 3
    assert found.total == pytest.approx(total, rel=1e-12)
    # P(Gamma(3, 1) ≥ x) = e⁻ˣ (1 + x + x²/2)
    assert found.p_value == pytest.approx(math.exp(-total) * (1 + total + total**2 / 2), rel=1e-12)


@pytest.mark.parametrize("wm", BOTH)
def test_marked_text_is_found_only_with_its_key(wm: Watermark) -> None:
    texts = marked_texts(wm, 20, 60)
    found = detect(texts, wm)
    assert found.log10_p < -100
    assert found.log10_p == pytest.approx(float(wm.log10_p(found.total, found.scored)))
    assert detect(texts, wm.with_decoy(0, 1)).log10_p > -5
    long = detect(marked_texts(wm, 200, 60), wm)
    assert long.log10_p < -320
    assert math.isfinite(long.log10_p)
    assert long.p_value == 0.0


@pytest.mark.parametrize("dedup", ["window+token", "window"])
@pytest.mark.parametrize("wm", BOTH)
def test_p_values_of_random_text_under_random_keys_are_uniform(wm: Watermark, dedup: ev.Dedup) -> None:
    p, above = [], []
    for trial in range(500):
        key = wm.with_decoy(17, trial)
        found = detect(random_texts(trial, 4, 40, 60), key, dedup=dedup)  # few ids: many repeated windows
        p.append(found.log10_p)
        above.append(float(key.law.log10_above(found.total, found.scored)))
    uniform = ks.randomised(p, above, np.random.default_rng(0))
    assert stats.kstest(uniform, "uniform").pvalue > 1e-4
    assert min(p) > -5.5


@pytest.mark.parametrize("wm", BOTH)
def test_repetition_raises_false_alarms_without_deduplication_and_none_with_it(wm: Watermark) -> None:
    texts = repetitive_texts(5)
    decoys = [wm.with_decoy(23, i) for i in range(300)]
    without = np.array([detect(texts, key, dedup=None).log10_p for key in decoys])
    assert np.mean(without < -2) > 0.15  # a true p-value is below 1 % once in a hundred
    assert without.min() < -15
    for dedup in ("window+token", "window"):
        honest = np.array([detect(texts, key, dedup=dedup).log10_p for key in decoys])
        assert np.mean(honest < -2) < 0.04
        assert honest.min() > -5


@pytest.mark.parametrize("wm", BOTH)
def test_null_audit_is_uniform_even_on_marked_and_repetitive_text(wm: Watermark) -> None:
    texts = [*marked_texts(wm, 5, 60), *repetitive_texts(1)]
    audit = null_audit(texts, wm, keys=400, seed=1)
    assert audit.keys == 400
    assert audit.log10_p.shape == audit.uniform_p.shape == (400,)
    assert audit.ks_p > 1e-4
    assert audit.ks == ks.ks_small(audit.uniform_p)  # one-sided: nobody is hurt by a test that is cautious
    assert audit.ks_p == audit.ks.p_value
    assert -6 < audit.min_log10_p < -1
    assert audit.min_log10_p == audit.log10_p.min()
    assert detect(texts, wm).log10_p < audit.min_log10_p - 10
    assert null_audit(texts, wm, keys=400, seed=1, dedup=None).ks.log10_p < -10  # the audit sees what is dishonest


def few_lists(seed: int, vocab_size: int = 40) -> ev.Evidence:
    """Half of all tokens after each window: with lists of a fixed size their greens vary less than coins."""
    rng = np.random.default_rng(seed)
    tokens = np.concatenate([rng.choice(vocab_size, 20, replace=False) for _ in range(vocab_size)])
    return ev.from_pairs(np.repeat(np.arange(vocab_size), 20)[:, None], tokens, vocab_size)


@pytest.mark.parametrize(
    "wm",
    [
        compat.ReleasedGreenList(3, 40, 1),
        compat.TransformersGreenList({"hashing_key": 5}, 40),
        compat.TransformersGreenList({"seeding_scheme": "selfhash", "context_width": 2}, 40),
    ],
    ids=["released", "lefthash", "selfhash"],
)
def test_lists_of_a_fixed_size_are_cautious_and_that_is_sound(wm: Watermark) -> None:
    """Their decoys crowd around p = ½: against a uniform law that is a difference, but no innocent's harm."""
    audit = audit_evidence(few_lists(1), wm, keys=800, seed=2)
    if wm.scheme == "released green list" or wm.seeding_scheme == "lefthash":  # type: ignore[attr-defined]
        assert stats.kstest(audit.uniform_p, "uniform").pvalue < 1e-3  # two-sided this voided the guilty
        assert np.std(audit.uniform_p) < 0.95 * math.sqrt(1 / 12)
    assert audit.ks_p > 1e-2
    # scored again and again, their small p-values are too frequent all the same
    repeated = few_lists(1)
    listed = ev.from_pairs(np.tile(repeated.windows, (12, 1)), np.tile(repeated.tokens, 12), 40, dedup=None)
    assert audit_evidence(listed, wm, keys=200, seed=2).ks.log10_p < -4


def test_decoys_see_no_leakage() -> None:
    """Pairs that the real key's colours chose look as uniform as any: what the audit is no check of."""
    wm = GreenList("alice", V)
    pairs = ev.collect(random_texts(1), 2, V)
    green = wm.scores(pairs.windows, pairs.tokens) == 1
    leaked = ev.from_pairs(pairs.windows[green], pairs.tokens[green], V)
    assert judge(leaked, wm).log10_p < -100
    assert audit_evidence(leaked, wm, keys=400).ks_p > 1e-2


def test_null_audit_is_uniform_on_a_handful_of_pairs() -> None:
    """Ten pairs have eleven possible p-values: only the randomised ones can be uniform."""
    audit = null_audit(random_texts(8, 1, 12), BOTH[0], keys=400)
    assert len(np.unique(audit.log10_p)) < 11
    assert audit.ks_p > 1e-4
    assert stats.kstest(10**audit.log10_p, "uniform").pvalue < 1e-10
    assert ks.ks_small(10**audit.log10_p).log10_p > -0.5  # as a verdict quotes them they are cautious


def test_null_audit_scores_what_detect_scores() -> None:
    wm = BOTH[0]
    texts, prompts = random_texts(3, 6), random_texts(4, 6, 30, 40)
    options: dict[str, Any] = {"prompts": prompts, "keep": texts[0, 5:45].reshape(-1, 2), "dedup": "window"}
    audit = null_audit(texts, wm, keys=20, seed=9, **options)
    direct = [detect(texts, wm.with_decoy(9, i), **options).log10_p for i in range(20)]
    assert audit.log10_p.tolist() == pytest.approx(direct)
    again = null_audit(texts, wm, keys=20, seed=9, **options)
    assert np.array_equal(again.log10_p, audit.log10_p)
    assert np.array_equal(again.uniform_p, audit.uniform_p)
    assert not np.array_equal(null_audit(texts, wm, keys=20, seed=10, **options).log10_p, audit.log10_p)


def test_audit_does_not_depend_on_the_real_key() -> None:
    texts = random_texts(0)
    a, b = (null_audit(texts, GreenList(key, V), keys=10) for key in ("alice", "bob"))
    assert np.array_equal(a.log10_p, b.log10_p)


@pytest.mark.parametrize("wm", BOTH)
def test_shards_give_the_verdict_of_the_whole(wm: Watermark) -> None:
    texts = marked_texts(wm, 30, 30)
    whole = detect(texts, wm)
    shards = [ev.collect(texts[i::4], 2, V) for i in (2, 0, 3, 1)]
    merged = judge(shards[0].merge(*shards[1:]), wm)
    assert (merged.seen, merged.scored) == (whole.seen, whole.scored)
    assert merged.total == pytest.approx(whole.total, rel=1e-12)
    assert merged.log10_p == pytest.approx(whole.log10_p, rel=1e-9)


@pytest.mark.parametrize("wm", BOTH)
@pytest.mark.parametrize("points", [2, 7, 60, 10_000])
def test_curve_ends_at_the_verdict(wm: Watermark, points: int) -> None:
    found = detect(marked_texts(wm, 10, 60), wm)
    counts, values = curve(found.evidence, wm, points=points)
    assert counts[0] == 1
    assert counts[-1] == found.scored
    assert np.all(np.diff(counts) > 0)
    assert len(counts) == len(values) <= points
    assert values[-1] == pytest.approx(found.log10_p, rel=1e-9)
    middle = len(counts) // 2
    order = np.random.default_rng(0).permutation(found.scored)[: counts[middle]]
    part = ev.from_pairs(found.evidence.windows[order], found.evidence.tokens[order], V)
    assert values[middle] == pytest.approx(judge(part, wm).log10_p, rel=1e-9)


def test_nothing_left_to_score_is_no_evidence() -> None:
    found = detect([[1, 2, 3]], BOTH[0], prompts=[[1, 2, 3]])
    assert (found.seen, found.scored, found.total, found.log10_p, found.p_value) == (1, 0, 0.0, 0.0, 1.0)
    assert math.isnan(found.score)
    with pytest.raises(ValueError, match="evidence is empty"):
        curve(found.evidence, BOTH[0])
    with pytest.raises(ValueError, match="evidence is empty"):
        audit_evidence(found.evidence, BOTH[0])


def test_bad_input_is_named() -> None:
    wm = BOTH[0]
    with pytest.raises(ValueError, match=r"texts\[0\] holds token id 500"):
        detect([[1, 2, 500]], wm)
    with pytest.raises(ValueError, match=r"texts\[1\] has 2 tokens; at least 3"):
        detect([[1, 2, 3], [1, 2]], wm)
    with pytest.raises(ValueError, match="texts is empty"):
        detect([], wm)
    with pytest.raises(ValueError, match="got 2 prompts for 1 texts"):
        detect([[1, 2, 3]], wm, prompts=[[1], [2]])
    with pytest.raises(ValueError, match="keys must be at least 5"):
        null_audit([[1, 2, 3]], wm, keys=4)
    with pytest.raises(ValueError, match="points must be at least 2"):
        curve(detect([[1, 2, 3]], wm).evidence, wm, points=1)
    with pytest.raises(TypeError, match="unexpected keyword"):
        null_audit([[1, 2, 3]], wm, keep_windows=[[1, 2]])


def test_a_verdict_says_no_secret_and_no_pile_of_arrays() -> None:
    text = repr(detect(random_texts(0), GreenList("my secret key", V)))
    assert "secret" not in text
    assert "array" not in text
