"""Exact tails of weighted sums against enumeration, the binomial, simulation; bounds; edges."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from radio_utils import GumbelMax
from radio_utils.stats import ks, tails, weighted
from radio_utils.stats.weighted import WeightedSum

COIN = ([0, 1], [0.75, 0.25])


def enumerated(weights: list[int]) -> dict[int, Fraction]:
    """The distribution of the sum, in exact arithmetic."""
    masses = {0: Fraction(1)}
    for q in weights:
        longer: Counter[int] = Counter()
        for total, mass in masses.items():
            longer[total] += mass * Fraction(3, 4)  # type: ignore[assignment]
            longer[total + q] += mass * Fraction(1, 4)  # type: ignore[assignment]
        masses = dict(longer)  # type: ignore[arg-type]
    return masses


@settings(max_examples=60)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=12))
def test_exact_tail_equals_enumeration(weights: list[int]) -> None:
    null, masses = WeightedSum.of(weights, *COIN), enumerated(weights)
    assert null.mean == pytest.approx(float(sum(total * mass for total, mass in masses.items())))
    assert (null.smallest, null.largest) == (min(masses), max(masses))
    for total in range(null.smallest - 1, null.largest + 2):
        exact = sum(mass for value, mass in masses.items() if value >= total)
        got = null.log10_exact(total)
        if exact == 0:
            assert got == -math.inf
        else:
            assert got == pytest.approx(math.log10(exact), rel=1e-9, abs=1e-12)
            assert null.log10_chernoff(total) >= got - 1e-12  # the bound bounds
    assert null.log10_many(np.arange(null.smallest, null.largest + 1)) == pytest.approx(
        [null.log10_exact(t) for t in range(null.smallest, null.largest + 1)], rel=1e-6, abs=1e-10
    )


@pytest.mark.parametrize(("n", "s"), [(10, 9), (1000, 250), (1000, 200), (1000, 700), (10**5, 30_000), (10**5, 99_000)])
def test_equal_weights_are_a_binomial(n: int, s: int) -> None:
    null = WeightedSum.of(np.full(n, 3), *COIN)
    exact = float(tails.log10_binomial_tail(s, n, 0.25))
    assert null.log10_exact(3 * s) == pytest.approx(exact, rel=1e-9)
    assert null.log10_exact(3 * s - 1) == pytest.approx(exact, rel=1e-9)  # nothing lies between multiples of the weight


def test_three_routes_agree_on_many_pairs() -> None:
    weights = np.random.default_rng(0).integers(-30, 31, 50_000)
    null = WeightedSum.of(weights, *COIN)
    deviation = math.sqrt(null.variance)
    for z in (-4.0, -1.0, 0.0, 1.0, 4.0, 12.0, 60.0):
        total = round(null.mean + z * deviation)
        exact = null.log10_exact(total)
        assert null.log10_saddlepoint(total) == pytest.approx(exact, rel=1e-4, abs=1e-5)
        assert exact <= null.log10_chernoff(total) <= exact / 1.2 + 2.0
    assert null.log10_exact(round(null.mean + 60 * deviation)) < -500


def test_simulated_sums_have_uniform_p_values() -> None:
    rng = np.random.default_rng(1)
    weights = rng.integers(-12, 13, 400)
    null = WeightedSum.of(weights, *COIN)
    totals = (rng.random((4000, 400)) < 0.25) @ weights
    p = ks.randomised(null.log10_many(totals), null.log10_many(totals + 1), rng)
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_marks_of_gumbel_max_have_the_distribution_they_say() -> None:
    wm = GumbelMax("alice", 1000, 1)
    values, chances = wm.law.mark_distribution
    assert chances.sum() == pytest.approx(1.0, abs=1e-12)
    windows, tokens = np.repeat(np.arange(200), 500)[:, None], np.tile(np.arange(500), 200)
    marks = wm.law.marks(wm.scores(windows, tokens))
    counts = np.bincount(marks, minlength=values.size)
    common = chances * marks.size > 10
    from scipy import stats

    expected = chances[common] / chances[common].sum() * counts[common].sum()
    assert stats.chisquare(counts[common], expected).pvalue > 1e-4
    null = WeightedSum.of([3, -2, 1], values, chances)
    rng = np.random.default_rng(2)
    drawn = rng.choice(values, p=chances, size=(200_000, 3)) @ [3, -2, 1]
    for total in (-20, 0, 8, 30):
        expected_p = float(np.mean(drawn >= total))
        assert 10 ** null.log10_exact(total) == pytest.approx(expected_p, abs=4 * math.sqrt(expected_p / 200_000))


def test_a_tail_that_is_given_up_is_never_below_the_truth() -> None:
    """1 − a bound on the lower tail is no bound on the upper one: it was −∞ at the mean."""
    rng = np.random.default_rng(0)
    null = WeightedSum.of(rng.integers(10**5, 10**6, 2000), *COIN)
    assert null._points(null.variance) > weighted._LONGEST
    near = [round(null.mean) + step for step in (-(10**7), -(10**5), -1000, -10, -1, 0)]
    assert [null.log10_exact(total) for total in near] == [0.0] * 6
    assert null.log10_many(near).tolist() == [0.0] * 6
    above = round(null.mean + 5 * math.sqrt(null.variance))
    assert null.log10_exact(above) == null.log10_chernoff(above) == null.log10_many([above])[0]
    assert -7 < null.log10_exact(above) < -5


def test_too_much_work_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    null = WeightedSum.of(np.arange(1, 200), *COIN)
    total = round(null.mean + 3 * math.sqrt(null.variance))
    exact = null.log10_exact(total)
    monkeypatch.setattr(weighted, "_MOST_WORK", 1000)
    assert null.log10_exact(total) == null.log10_chernoff(total) > exact
    assert null.log10_exact(round(null.mean) - 5) == 0.0
    assert null.log10_many([total])[0] == null.log10_chernoff(total)


@pytest.mark.parametrize("values", [COIN, ([0, 2, 6], [0.5, 0.3, 0.2])])
def test_common_factors_change_nothing(values: tuple[list[int], list[float]]) -> None:
    """Between multiples of the common factor nothing lies: no digits are lost and no long transform is needed."""
    weights = np.array([2, 3, -1, 5, 5, 1, -4])
    null, scaled = WeightedSum.of(weights, *values), WeightedSum.of(weights * 10**7, *values)
    for total in range(null.smallest, null.largest + 1):
        for above in (0, -1, -(10**7) + 1):
            for name in ("log10_exact", "log10_chernoff", "log10_saddlepoint"):
                assert getattr(scaled, name)(total * 10**7 + above) == getattr(null, name)(total)
    wanted = np.arange(null.smallest, null.largest + 1)
    assert np.array_equal(scaled.log10_many(wanted * 10**7 - 3), null.log10_many(wanted))
    alike = WeightedSum.of([10**7] * 5, *COIN)
    assert alike.log10_exact(10**7) == pytest.approx(math.log10(1 - 0.75**5))
    assert WeightedSum.of([300] * 1000, *COIN).log10_saddlepoint(75_001) == pytest.approx(
        WeightedSum.of([300] * 1000, *COIN).log10_exact(75_001), abs=1e-3
    )


def test_a_hundred_thousand_pairs_of_gumbel_max_take_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """About a hundredth of what all frequencies would take, which are dropped as soon as nothing is left of them."""
    monkeypatch.setattr(weighted, "_MOST_WORK", 1 << 25)
    rng = np.random.default_rng(0)
    null = WeightedSum.of(
        np.rint(rng.standard_t(3, 100_000) * 1.8).astype(int), *GumbelMax("a", 100, 1).law.mark_distribution
    )
    total = round(null.mean + 5 * math.sqrt(null.variance))
    exact = null.log10_exact(total)  # were it given up, a bound that lies far above
    assert null.log10_saddlepoint(total) == pytest.approx(exact, rel=1e-3)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="weights and values must be whole numbers, got dtypes float64 and int64"):
        WeightedSum(np.array([1.5]), np.array([1]), np.array([0, 1]), np.array([0.5, 0.5]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights must be a row of whole numbers, got dtype float64"):
        WeightedSum.of([0.5, 1.0], *COIN)
    with pytest.raises(ValueError, match="the distribution of one mark"):
        WeightedSum.of([1], [0, 1], [0.5, 0.6])
    with pytest.raises(ValueError, match="counts must not be negative"):
        WeightedSum(np.array([1]), np.array([-1]), np.array([0, 1]), np.array([0.5, 0.5]))
