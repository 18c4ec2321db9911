"""The laws of scores, against convolutions, simulations and other people's formulas."""

from __future__ import annotations

import math
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats

from radio_utils.eprocess import EProcess
from radio_utils.stats.laws import Bernoulli, Exponential, FixedLists, Histogram, Law, TwoExponentials, fair_bits

COINS = Histogram((0, 1), (0.75, 0.25))
ODD = Histogram((0, 1, 4), (0.5, 0.3, 0.2), 0.5)
LAWS: list[Any] = [Bernoulli(0.25), Exponential(), fair_bits(8), ODD, TwoExponentials(0.1), FixedLists.of(16, 64)]


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(0, 160))
def test_a_histogram_is_its_convolution(count: int, steps: int) -> None:
    mass = np.ones(1)
    for _ in range(count):
        mass = np.convolve(mass, [0.5, 0.3, 0, 0, 0.2])
    steps = min(steps, 4 * count)
    assert 10 ** ODD.log10_tail(0.5 * steps, count) == pytest.approx(mass[steps:].sum(), rel=1e-9)
    assert 10 ** ODD.log10_above(0.5 * steps, count) == pytest.approx(mass[steps + 1 :].sum(), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(("count", "ones"), [(1, 8), (40, 200), (1000, 4600), (1000, 3500), (30, 240)])
def test_fair_bits_are_a_binomial(count: int, ones: int) -> None:
    assert fair_bits(8).log10_tail(ones, count) == pytest.approx(stats.binom.logsf(ones - 1, 8 * count, 0.5) / math.log(10))


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize(("count", "total"), [(1, 3.0), (5, 12.0), (50, 40.0), (20, 30.0)])
def test_two_exponentials_are_the_time_to_pass_all_phases(alpha: float, count: int, total: float) -> None:
    """The sum is the time that a Markov chain takes through n phases of one rate and then n of the other."""
    rates = np.repeat([1 / (1 - alpha), 1 / alpha], count)
    generator = np.diag(-rates) + np.diag(rates[:-1], 1)
    expected = linalg.expm(generator * total)[0].sum()
    assert 10 ** TwoExponentials(alpha).log10_tail(total, count) == pytest.approx(expected, rel=1e-6)


def _two_erlangs(alpha: float, count: int, total: float) -> float:
    """log10 P(S ≥ total) by partial fractions, whose terms of alternating sign cancel: many digits are needed."""
    mpmath.mp.dps = 60 + 9 * count
    small, large = mpmath.mpf(alpha), 1 - mpmath.mpf(alpha)
    tail = mpmath.mpf(0)
    for a, b in ((small, large), (large, small)):
        x, between = mpmath.mpf(total) / a, (a - b) / a
        erlang, term = mpmath.mpf(0), mpmath.exp(-x)
        for j in range(1, count + 1):
            erlang, term = erlang + term, term * x / j
            weight = (-b / (a - b)) ** (count - j) * mpmath.binomial(2 * count - j - 1, count - j)
            tail += weight * erlang / between**count
    return float(mpmath.log10(tail))


@pytest.mark.parametrize("alpha", [0.001, 0.1, 0.499, 0.8])
@pytest.mark.parametrize("count", [1, 2, 7, 60])
def test_two_exponentials_to_ten_digits(alpha: float, count: int) -> None:
    """From p of nearly 1 to p far below 1e-300, all totals in one call, scalars as arrays."""
    totals = count * np.array([0.3, 0.95, 1.0, 1.05, 1.5, 6.0, 17.0, 900.0 / count])
    found = TwoExponentials(alpha).log10_tail(totals, count)
    for total, one in zip(totals.tolist(), found.tolist(), strict=True):
        expected = _two_erlangs(alpha, count, total)
        assert one == pytest.approx(expected, rel=1e-10, abs=1e-13)
        assert TwoExponentials(alpha).log10_tail(total, count) == pytest.approx(one, rel=1e-12, abs=1e-14)


def test_two_exponentials_of_extreme_totals() -> None:
    law = TwoExponentials(0.1)
    assert np.allclose(law.log10_tail([0.0, 0.0, 1e-300], [4, 0, 1]), 0.0, rtol=0.0, atol=1e-100)
    assert law.log10_tail(1e20, 2) == pytest.approx(-1e20 / 0.9 / math.log(10))
    count = 10**9  # where both tails are normal but for a skewness of 6e-5
    z = np.array([-3.0, 0.0, 3.0])
    found = 10 ** law.log10_tail(count + z * math.sqrt(law.variance * count), count)
    assert found == pytest.approx(stats.norm.sf(z), rel=4e-4)
    assert law.log10_tail(np.zeros((2, 0)), 5).shape == (2, 0)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_draws_have_uniform_p_values(law: Law) -> None:
    rng, count = np.random.default_rng(1), 40
    totals = law.draw(count, 3000, rng)
    upper, above = law.log10_tail(totals, count), law.log10_above(totals, count)
    p = 10**above + rng.random(3000) * (10**upper - 10**above) if law.lattice else 10 ** np.asarray(upper)
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert totals.mean() / count == pytest.approx(law.mean, abs=4 * math.sqrt(law.variance / count / 3000))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_tilts_are_the_derivatives_of_the_cgf(law: Law) -> None:
    for theta in (-0.4, 0.1, 0.6):
        tilted, step = law.tilted(theta), 1e-4
        left, middle, right = (float(law.cgf(theta + s)) for s in (-step, 0.0, step))
        assert tilted.mean == pytest.approx((right - left) / (2 * step), rel=1e-5)
        assert tilted.variance == pytest.approx((right - 2 * middle + left) / step**2, rel=1e-3)
        assert law.tilt_of(tilted.mean) == pytest.approx(theta, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_bets_are_fair(law: Law) -> None:
    """E exp(θS − K(θ)) = 1, so that an e-value of 20 is met once in twenty times at most."""
    bets = EProcess.of(law)
    totals = law.draw(30, 4000, np.random.default_rng(2))
    assert np.mean(bets.log10_e(totals, 30) >= math.log10(20)) <= 1 / 20
    assert np.isfinite(law.cgf(law.bets)).all() and np.all(law.bets > 0)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_marks_have_the_distribution_that_is_said(law: Law) -> None:
    marks = law.marks(law.draw(1, 20_000, np.random.default_rng(3)))
    values, chances = law.mark_distribution
    assert chances.sum() == pytest.approx(1.0)
    counts = np.array([np.count_nonzero(marks == value) for value in values])
    assert counts.sum() == marks.size
    often = chances * marks.size > 5
    assert stats.chisquare(counts[often], chances[often] / chances[often].sum() * counts[often].sum()).pvalue > 1e-4


@pytest.mark.parametrize("args", [(30, 60, 20, 70), (10, 60, 30, 70), (300, 400, 90, 400), (60, 60, 3, 70)])
def test_the_comparison_of_histograms_is_fishers_for_coins(args: tuple[int, int, int, int]) -> None:
    assert COINS.log10_between(*args) == pytest.approx(Bernoulli(0.25).log10_between(*args), abs=1e-9)


def test_the_general_comparison_is_the_f_test_for_exponentials() -> None:
    for args in ((50.0, 40, 30.0, 40), (20.0, 40, 30.0, 40), (400.0, 200, 150.0, 150)):
        general = Law.log10_between(Exponential(), *args)
        assert general == pytest.approx(Exponential().log10_between(*args), rel=0.01, abs=3e-3)


@pytest.mark.parametrize("law", [fair_bits(8), ODD, TwoExponentials(0.1)], ids=str)
@pytest.mark.parametrize("theta", [0.0, 0.4])
def test_comparisons_of_equals_have_uniform_p_values(law: Law, theta: float) -> None:
    rng, tilted = np.random.default_rng(4), law.tilted(theta)
    pairs = zip(tilted.draw(60, 150, rng), tilted.draw(90, 150, rng), strict=True)
    p = np.array([10 ** law.log10_between(float(a), 60, float(b), 90) for a, b in pairs])
    assert stats.kstest(p, "uniform", alternative="greater").pvalue > 1e-3, "small p-values are too frequent"
    assert p.min() < 0.1 and 0.4 < p.mean() < 0.62


@settings(max_examples=25)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=6), st.integers(1, 7))
def test_the_bound_of_fixed_lists_holds(weights: list[int], greens: int) -> None:
    """One list of eight tokens, all of its colourings tried."""
    from itertools import combinations

    q = np.array([*weights, *[0] * (8 - len(weights))])
    sums = np.array([q[list(chosen)].sum() for chosen in combinations(range(8), greens)])
    law = FixedLists.of(greens, 8).weighted(np.array(weights), np.zeros(len(weights), np.int64))
    assert law.mean == pytest.approx(sums.mean()) and law.variance == pytest.approx(sums.var())
    for total in range(int(q.min()) * 6, int(np.maximum(q, 0).sum()) + 2):
        assert np.log10(max(np.mean(sums >= total), 1e-300)) <= law.log10_exact(total) + 1e-6 or total > q[q > 0].sum()


def test_bad_laws_are_named() -> None:
    for make, words in (
        (lambda: Bernoulli(1.0), "rate must lie strictly between 0 and 1"),
        (lambda: TwoExponentials(0.0), "alpha must lie strictly between 0 and 1"),
        (lambda: Histogram((1, 0), (0.5, 0.5)), "values must be at least two whole numbers in order"),
        (lambda: Histogram((0, 1), (0.5, 0.4)), "chances must be positive and sum to 1"),
        (lambda: fair_bits(4).log10_tail(41, 10), "exceeds the largest sum"),
        (lambda: fair_bits(4).tilt_of(4.5), "none that scores of this law can have"),
        (lambda: FixedLists.of(2, 8).weighted([1]), "need to know which lists"),
        (lambda: Bernoulli(0.5).log10_allowing(1, 2, 1.0), r"share must lie in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
