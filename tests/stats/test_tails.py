"""Tails against mpmath, Kolmogorov–Smirnov against scipy and exact counting, randomised p-values against the uniform."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from radio_utils.stats import ks, tails

mpmath.mp.dps = 50
RELATIVE = 1e-9


def sum_terms(first: mpmath.mpf, ratio: Callable[[int], mpmath.mpf]) -> mpmath.mpf:
    """``first`` · (1 + ratio(0) + ratio(0) ratio(1) + …), to forty digits."""
    total, term, i = mpmath.mpf(0), mpmath.mpf(1), 0
    while term > total * mpmath.mpf(10) ** -40:
        total += term
        term *= ratio(i)
        i += 1
    return first * total


def binomial_mass(n: int, s: int, rate: mpmath.mpf) -> mpmath.mpf:
    return mpmath.exp(
        mpmath.loggamma(n + 1) - mpmath.loggamma(s + 1) - mpmath.loggamma(n - s + 1)
        + s * mpmath.log(rate) + (n - s) * mpmath.log1p(-rate)
    )  # fmt: skip


def reference_binomial(s: int, n: int, gamma: float) -> mpmath.mpf:
    """log10 P(Bin(n, γ) ≥ s) by summing the smaller tail in fifty digits."""
    rate = mpmath.mpf(gamma)
    odds = rate / (1 - rate)
    if s == 0:
        return mpmath.mpf(0)
    if s > n * rate:
        return mpmath.log10(sum_terms(binomial_mass(n, s, rate), lambda i: odds * (n - s - i) / (s + i + 1)))
    below = sum_terms(binomial_mass(n, s - 1, rate), lambda i: (s - 1 - i) / (odds * (n - s + 2 + i)))
    return mpmath.log1p(-below) / mpmath.log(10)


def reference_gamma(x: float, n: int) -> mpmath.mpf:
    """log10 P(Gamma(n, 1) ≥ x) through the Poisson distribution, in fifty digits."""
    mean = mpmath.mpf(x)
    if x > n:  # P(Poisson(x) ≤ n − 1), from its largest term down
        first = mpmath.exp(-mean + (n - 1) * mpmath.log(mean) - mpmath.loggamma(n))
        return mpmath.log10(sum_terms(first, lambda i: (n - 1 - i) / mean))
    first = mpmath.exp(-mean + n * mpmath.log(mean) - mpmath.loggamma(n + 1))
    return mpmath.log1p(-sum_terms(first, lambda i: mean / (n + 1 + i))) / mpmath.log(10)


def assert_close(found: float, reference: mpmath.mpf) -> None:
    assert math.isfinite(found)
    assert found <= 0.0
    if abs(reference) < mpmath.mpf(10) ** -280:  # p differs from 1 by less than a double can say
        assert abs(found) < 1e-279
    else:
        assert abs(found - reference) <= RELATIVE * abs(reference), (found, mpmath.nstr(reference, 20))


DEVIATIONS = (-36, -20, -8, -5, -1, 0, 1, 3, 10, 30, 35.5, 36.5, 40, 100, 500)


@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.1, 1 / 3, 1 / 64, 0.99])
@pytest.mark.parametrize("n", [1, 2, 5, 30, 100, 1000, 10**4, 10**6])
def test_binomial_tail_equals_mpmath(n: int, gamma: float) -> None:
    spread = math.sqrt(n * gamma * (1 - gamma))
    counts = {min(n, max(0, round(n * gamma + z * spread))) for z in DEVIATIONS}
    counts |= {0, 1, n - 1, n} if n <= 1000 else set()
    for s in counts:
        assert_close(float(tails.log10_binomial_tail(s, n, gamma)), reference_binomial(s, n, gamma))


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 100, 1000, 10**5, 10**6])
def test_gamma_tail_equals_mpmath(n: int) -> None:
    for z in DEVIATIONS:
        x = n + z * math.sqrt(n)
        if x > 0:
            assert_close(float(tails.log10_gamma_tail(x, n)), reference_gamma(x, n))


def test_tails_of_a_hundred_million_trials() -> None:
    n = 10**8
    for z in (-30, -6, 38):
        s = round(n * 0.25 + z * math.sqrt(n * 0.25 * 0.75))
        assert_close(float(tails.log10_binomial_tail(s, n, 0.25)), reference_binomial(s, n, 0.25))
        x = n + z * math.sqrt(n)
        assert_close(float(tails.log10_gamma_tail(x, n)), reference_gamma(x, n))


def test_tails_down_to_one_in_ten_to_the_hundred_thousand() -> None:
    n = 10**6
    low = float(tails.log10_binomial_tail(650_000, n, 0.25))
    assert low < -1e5
    assert_close(low, reference_binomial(650_000, n, 0.25))
    low = float(tails.log10_gamma_tail(2_000_000.0, n))
    assert low < -1e5
    assert_close(low, reference_gamma(2_000_000.0, n))
    assert float(tails.log10_binomial_tail(n, n, 0.25)) == pytest.approx(n * math.log10(0.25), rel=1e-12)


@settings(max_examples=60)
@given(st.integers(1, 3000), st.data())
def test_tails_at_random_points(n: int, data: st.DataObject) -> None:
    s = data.draw(st.integers(0, n))
    gamma = data.draw(st.floats(1e-4, 0.999))
    assert_close(float(tails.log10_binomial_tail(s, n, gamma)), reference_binomial(s, n, gamma))
    x = data.draw(st.floats(0.01, 20.0)) * n
    assert_close(float(tails.log10_gamma_tail(x, n)), reference_gamma(x, n))


def test_arrays_broadcast_and_agree_with_scalars() -> None:
    s, n = np.array([0, 3, 50, 200, 1000]), np.array([[1000], [2000]])
    table = tails.log10_binomial_tail(s, n, 0.25)
    assert table.shape == (2, 5)
    for i in range(2):
        for j in range(5):
            assert table[i, j] == tails.log10_binomial_tail(int(s[j]), int(n[i, 0]), 0.25)
    x = np.array([1.0, 1000.0, 5000.0])
    row = tails.log10_gamma_tail(x, 1000)
    assert [float(v) for v in row] == [float(tails.log10_gamma_tail(float(v), 1000)) for v in x]
    assert np.ndim(tails.log10_gamma_tail(3.0, 2)) == 0
    assert np.ndim(tails.log10_binomial_tail(3, 4, 0.5)) == 0
    assert tails.log10_binomial_tail([], [], 0.5).shape == (0,)


def test_tails_fall_as_the_total_grows_across_the_seam_of_the_two_methods() -> None:
    s = np.arange(2500, 10001)
    assert np.all(np.diff(tails.log10_binomial_tail(s, 10_000, 0.25)) < 0)
    x = np.linspace(8_000, 30_000, 5000)
    values = tails.log10_gamma_tail(x, 10_000)
    assert np.all(np.diff(values) <= 0)
    assert values[-1] < -2000


def test_edges() -> None:
    assert tails.log10_binomial_tail(0, 10, 0.25) == 0.0
    assert tails.log10_binomial_tail(0, 0, 0.25) == 0.0
    assert tails.log10_gamma_tail(0.0, 5) == 0.0
    assert tails.log10_gamma_tail(0.0, 0) == 0.0
    assert tails.log10_binomial_tail(2.5, 4, 0.25) == tails.log10_binomial_tail(3, 4, 0.25)  # whole numbers only
    assert float(10 ** tails.log10_binomial_tail(1, 1, 0.25)) == pytest.approx(0.25, rel=1e-14)
    assert float(tails.log10_gamma_tail(7.0, 1)) == pytest.approx(-7 / math.log(10), rel=1e-14)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tails.log10_binomial_tail(5, 4, 0.25), "successes=5 exceed trials=4"),
        (lambda: tails.log10_binomial_tail([1, 9], [4, 8], 0.25), "successes=9 exceed trials=8"),
        (lambda: tails.log10_binomial_tail(math.nan, 4, 0.25), "successes or trials is NaN"),
        (lambda: tails.log10_binomial_tail(1, math.nan, 0.25), "successes or trials is NaN"),
        (lambda: tails.log10_binomial_tail(0, -1, 0.25), "trials must not be negative, got -1"),
        (lambda: tails.log10_binomial_tail(3, math.inf, 0.25), "trials is infinite"),
        (lambda: tails.log10_binomial_tail(1, 4, 0.0), "rate must lie strictly between 0 and 1, got 0"),
        (lambda: tails.log10_binomial_tail(1, 4, 1.0), "rate must lie strictly between 0 and 1, got 1"),
        (lambda: tails.log10_binomial_tail(1, 4, math.nan), "rate must lie strictly between 0 and 1, got nan"),
        (lambda: tails.log10_gamma_tail(math.nan, 4), "total or count is NaN"),
        (lambda: tails.log10_gamma_tail(math.inf, 4), "total is infinite"),
        (lambda: tails.log10_gamma_tail(3.0, math.inf), "count is infinite"),
        (lambda: tails.log10_gamma_tail(3.0, -2), "count must not be negative, got -2"),
        (lambda: ks.ks_lower([1.0], [1.0, 2.0]), "first must be one-dimensional with at least 2 values"),
        (lambda: ks.ks_lower([1.0, 2.0], [1.0, math.nan]), "second holds NaN or infinite"),
        (lambda: ks.ks_small([0.1, 0.2]), "at least 5 numbers"),
        (lambda: ks.ks_small([0.1, 0.2, 0.3, 0.4, math.nan]), r"numbers in \[0, 1\]"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def leads(x: Sequence[float], y: Sequence[float]) -> Fraction:
    """D⁺ by its definition."""
    at = [Fraction(sum(v <= t for v in x), len(x)) - Fraction(sum(v <= t for v in y), len(y)) for t in (*x, *y)]
    return max(Fraction(0), *at)


def permutation_p(x: Sequence[float], y: Sequence[float]) -> Fraction:
    """Share of all ways to choose the first sample among the values that lead by as much."""
    pooled, n = (*x, *y), len(x)
    observed, as_far, ways = leads(x, y), 0, 0
    for chosen in itertools.combinations(range(len(pooled)), n):
        rest = [v for i, v in enumerate(pooled) if i not in chosen]
        as_far += leads([pooled[i] for i in chosen], rest) >= observed
        ways += 1
    return Fraction(as_far, ways)


@settings(max_examples=60)
@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_ks_lower_is_the_permutation_test(n: int, m: int, seed: int) -> None:
    values = np.random.default_rng(seed).permutation(n + m).astype(float)
    x, y = values[:n].tolist(), values[n:].tolist()
    found = ks.ks_lower(x, y)
    assert found.statistic == pytest.approx(float(leads(x, y)), abs=1e-12)
    assert found.p_value == pytest.approx(float(permutation_p(x, y)), rel=1e-10)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=5), st.lists(st.integers(0, 3), min_size=2, max_size=5))
def test_ks_lower_with_ties_is_cautious(x: list[int], y: list[int]) -> None:
    found = ks.ks_lower(x, y)
    assert found.statistic == pytest.approx(float(leads(x, y)), abs=1e-12)
    assert found.p_value >= float(permutation_p(x, y)) * (1 - 1e-10)


@pytest.mark.parametrize(
    ("n", "m", "shift"), [(50, 60, 0.0), (500, 500, 0.3), (300, 120, 1.0), (120, 300, -0.5), (2, 900, 0)]
)
def test_ks_lower_equals_scipy(n: int, m: int, shift: float) -> None:
    rng = np.random.default_rng(n + m)
    x, y = rng.normal(size=n), rng.normal(shift, size=m)
    expected = stats.ks_2samp(x, y, alternative="greater", method="exact")
    found = ks.ks_lower(x, y)
    assert found.statistic == pytest.approx(expected.statistic, abs=1e-15)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)


@pytest.mark.parametrize(("n", "m", "gap"), [(60, 90, 55), (200, 130, 40), (250, 300, 280), (70, 70, 60), (7, 400, 200)])
def test_ks_lower_counts_paths_exactly_in_the_far_tail(n: int, m: int, gap: int) -> None:
    x, y = np.arange(n, dtype=float), np.arange(m) + gap - 0.5
    lead = leads(x.tolist(), y.tolist()) * n * m
    ahead = [[0] * (m + 2) for _ in range(n + 2)]  # paths from (i, j) to the end that are ahead somewhere on their way
    for i in range(n, -1, -1):
        for j in range(m, -1, -1):
            if i * m - j * n >= lead:
                ahead[i][j] = math.comb(n - i + m - j, n - i)
            else:
                ahead[i][j] = ahead[i + 1][j] + ahead[i][j + 1]
    expected = float(mpmath.log10(mpmath.mpf(ahead[0][0]) / mpmath.mpf(math.comb(n + m, n))))
    assert ks.ks_lower(x, y).log10_p == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(500, 500), (500, 700), (5000, 5000), (997, 1009), (4000, 6000)])
def test_ks_lower_is_finite_and_monotone(n: int, m: int) -> None:
    gaps = np.linspace(-0.5, 1.0, 4 if n == 4000 else 16)
    values = [ks.ks_lower(np.arange(n) / n, np.arange(m) / m + gap).log10_p for gap in gaps]
    assert np.all(np.isfinite(values)) and np.all(np.diff(values) <= 1e-9)
    assert values[0] == 0.0 and values[-1] < -250


def test_smirnovs_limit_of_very_large_samples_is_cautious(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    for shift in (0.05, 0.3, 1.0):
        x, y = rng.normal(-shift, 1, 800), rng.normal(size=1000)
        exact = ks.ks_lower(x, y)
        with monkeypatch.context() as patch:
            patch.setattr(ks, "_MOST_CELLS", 1000)
            limit = ks.ks_lower(x, y)
        assert limit.statistic == exact.statistic
        assert exact.log10_p < limit.log10_p < 0.85 * exact.log10_p + 0.3


def test_ks_small_looks_at_small_p_values_only() -> None:
    rng = np.random.default_rng(3)
    p = rng.random(400)
    half = np.sort(p)[np.sort(p) <= 0.5]
    found = ks.ks_small(p)
    assert found.statistic == pytest.approx(max(np.max(np.arange(1, half.size + 1) / 400 - half), 0))
    assert found.p_value == pytest.approx(stats.ksone.sf(found.statistic, 400), rel=1e-9)
    assert ks.ks_small(p**1.5).log10_p < -5  # too many small ones
    assert ks.ks_small(np.sqrt(p)).log10_p > -0.1  # too few
    cautious = stats.beta(3, 3).ppf(p)  # they crowd around a half: uneven, and of small ones there are too few
    assert stats.kstest(cautious, "uniform").pvalue < 1e-6 and ks.ks_small(cautious).log10_p > -1
    assert ks.ks_small(np.full(50, 0.9)).log10_p == 0.0
    far = ks.ks_small(np.zeros(5000))
    assert math.isfinite(far.log10_p) and far.log10_p < -4000


def test_ks_small_alarms_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    found = np.array([ks.ks_small(rng.random(60)).p_value for _ in range(4000)])
    for alpha in (0.05, 0.01, 0.001):
        low, high = stats.binom.interval(0.99, 4000, alpha)
        assert low / 2.5 - 1 <= np.sum(found <= alpha) <= high  # half of what it may: it looks at one half only


def test_randomised_p_values_of_a_discrete_statistic_are_uniform() -> None:
    rng = np.random.default_rng(11)
    n, gamma = 12, 0.25  # so few trials that plain p-values are far from uniform
    s = rng.binomial(n, gamma, size=4000)
    log10_p = tails.log10_binomial_tail(s, n, gamma)
    above = np.where(s == n, -np.inf, tails.log10_binomial_tail(np.minimum(s + 1, n), n, gamma))
    assert stats.kstest(ks.randomised(log10_p, above, rng), "uniform").pvalue > 1e-4
    assert stats.kstest(10**log10_p, "uniform").pvalue < 1e-20
