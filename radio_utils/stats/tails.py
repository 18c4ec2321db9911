"""Tail probabilities of known laws in log10, with full relative accuracy from 1 down to far below the smallest float.

A p-value of 1e−3000 is a legal answer here and 0 is not. Where the probability fits a double, the regularised
incomplete beta and gamma functions of scipy are used; further out their continued fractions, with the leading factor
taken in log space by Loader's saddle-point form, which does not cancel (C. Loader, *Fast and accurate computation of
binomial probabilities*, 2000).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]
LN10 = float(np.log(10.0))
SMALLEST = 1e-280  # below this the plain functions lose digits to underflow
_TINY = 1e-300
_LARGE_SHAPE = 1e5  # beyond this scipy's lower gamma tail stops its series too early


def log10_binomial_tail(successes: ArrayLike, trials: ArrayLike, rate: float) -> Any:
    """log10 P(X ≥ successes) for X ~ Binomial(trials, rate), as log10 I_rate(s, n − s + 1).

    Scalars or arrays, broadcast; a fractional number of successes is rounded up. Raises ``ValueError`` for a rate
    outside (0, 1), for NaN, for a negative or infinite number of trials or for more successes than trials.
    """
    if not 0.0 < rate < 1.0:
        raise ValueError(f"rate must lie strictly between 0 and 1, got {rate}")
    s, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(trials, np.float64))
    _check_counts(s, n, "successes", "trials")
    s = np.ceil(s - 1e-9)
    if np.any(s > n):
        worst = np.argmax(s - n)
        raise ValueError(f"successes={s.flat[worst]:g} exceed trials={n.flat[worst]:g}; count each trial once")
    result = np.zeros(s.shape)
    inner = (s > 0) & (n > 0)
    a, b = s[inner], n[inner] - s[inner] + 1.0
    result[inner] = _log10_from(
        special.betainc(a, b, rate), special.betaincc(a, b, rate), lambda i: _log10_beta_fraction(a[i], b[i], rate)
    )
    return result[()] if result.ndim == 0 else result


def log10_fisher(successes: float, trials: int, other_successes: float, other_trials: int) -> float:
    """log10 P of so many successes or more among the first trials, given those in all (Fisher's exact test)."""
    if trials == 0 or other_trials == 0:
        return 0.0
    from scipy import stats  # slow to import, and rarely needed

    every = trials + other_trials, round(successes + other_successes), trials
    return min(0.0, float(stats.hypergeom.logsf(round(successes) - 1, *every)) / LN10)


def log10_exponential_ratio(total: float, count: int, other_total: float, other_count: int) -> float:
    """log10 P that the first of two sums of exponentials of one mean has so large a share of both, or a larger one.

    The share is Beta(count, other_count), whose tail is that of a binomial.
    """
    if count == 0 or other_count == 0 or total + other_total == 0:
        return 0.0
    left = other_total / (total + other_total)
    return float(log10_binomial_tail(other_count, count + other_count - 1, left)) if 0 < left < 1 else 0.0


def log10_binomial_above(successes: ArrayLike, trials: ArrayLike, rate: float) -> Any:
    """log10 P(X > successes) for X ~ Binomial(trials, rate): −∞ where every trial succeeded. Errors as for the tail."""
    s, n = np.asarray(successes, np.float64), np.asarray(trials, np.float64)
    more = np.asarray(log10_binomial_tail(np.where(s == n, s, s + 1.0), n, rate))  # more successes than trials: its error
    return np.where(s == n, -np.inf, more)[()]


def log10_gamma_tail(total: ArrayLike, count: ArrayLike) -> Any:
    """log10 P(X ≥ total) for X ~ Gamma(count, 1), the sum of ``count`` unit exponentials, as log10 Q(count, total)."""
    x, n = np.broadcast_arrays(np.asarray(total, np.float64), np.asarray(count, np.float64))
    _check_counts(x, n, "total", "count")
    if np.any(np.isinf(x)):
        raise ValueError("total is infinite; every score must be finite")
    result = np.zeros(x.shape)
    inner = (x > 0) & (n > 0)
    a, t = n[inner], x[inner]
    result[inner] = _log10_from(special.gammaincc(a, t), _lower_gamma(a, t), lambda i: _log10_gamma_fraction(a[i], t[i]))
    return result[()] if result.ndim == 0 else result


def _check_counts(total: Floats, count: Floats, total_name: str, count_name: str) -> None:
    if np.any(np.isnan(total)) or np.any(np.isnan(count)):
        raise ValueError(f"{total_name} or {count_name} is NaN; every score must be a number")
    if np.any(count < 0):
        raise ValueError(f"{count_name} must not be negative, got {count.min():g}")
    if np.any(np.isinf(count)):
        raise ValueError(f"{count_name} is infinite; count what was scored")


def _log10_from(tail: Floats, complement: Floats, far: Callable[[NDArray[np.bool_]], Floats]) -> Floats:
    """log10 of a probability given with its complement; ``far`` computes it where the tail is too small to hold."""
    with np.errstate(divide="ignore"):
        result: Floats = np.where(tail > 0.5, np.log1p(-np.minimum(complement, 0.5)), np.log(tail)) / LN10
    tiny = tail < SMALLEST
    if np.any(tiny):
        result[tiny] = far(tiny)
    return np.minimum(result, 0.0)


def _deviance(x: Floats, mean: Floats) -> Floats:
    """Loader's bd0, x log(x / mean) − x + mean for positive arguments, without cancellation where they are close."""
    with np.errstate(over="ignore"):
        ratio = (x - mean) / (x + mean)
    near = np.abs(ratio) < 0.1
    v = np.where(near, ratio, 0.0)
    series, power = np.zeros_like(v), v.copy()
    for j in range(9):  # 0.1¹⁸ is below the last bit
        power = power * v * v
        series += power / (2 * j + 3)
    result: Floats = np.where(near, (x - mean) * v + 2 * x * series, special.kl_div(x, mean))
    return result


def _lower_gamma(a: Floats, x: Floats) -> Floats:
    """P(Gamma(a, 1) < x). For large a, four to forty deviations below the mean, Temme's uniform expansion of it."""
    result: Floats = special.gammainc(a, x)
    deviations = (x - a) / np.sqrt(a)
    use = (a > _LARGE_SHAPE) & (deviations < -4.0) & (deviations > -40.0)
    if np.any(use):
        shape, point = a[use], x[use]
        depth = _deviance(shape, point)  # a η² / 2
        eta = -np.sqrt(2 * depth / shape)
        first = shape / (point - shape) - 1 / eta
        correction = (first - 1 / (540 * shape)) / np.sqrt(2 * np.pi * shape)
        result[use] = np.exp(-depth) * (0.5 * special.erfcx(np.sqrt(depth)) - correction)
    return result


def _stirling_error(n: Floats) -> Floats:
    """Loader's stirlerr, log n! − [½ log(2πn) + n log n − n], by its series for large n."""
    direct = special.gammaln(n + 1.0) - (0.5 * np.log(2 * np.pi * np.maximum(n, _TINY)) + special.xlogy(n, n) - n)
    big = np.maximum(n, 16.0)
    series: Floats = (1 / 12 - (1 / 360 - (1 / 1260 - 1 / 1680 / big**2) / big**2) / big**2) / big
    result: Floats = np.where(n < 16, direct, series)
    return result


def _log10_beta_fraction(a: Floats, b: Floats, x: float) -> Floats:
    """log10 I_x(a, b) far in the upper binomial tail, x < a / (a + b)."""
    n, s = a + b - 1.0, a
    rest = n - s
    # log [x^s (1 − x)^(n − s) · n! / (s! (n − s)!)], the probability of exactly s successes
    inner = np.maximum(rest, 1.0)
    mass = (
        _stirling_error(n) - _stirling_error(s) - _stirling_error(inner)
        - _deviance(s, n * x) - _deviance(inner, n * (1.0 - x)) + 0.5 * np.log(n / (2 * np.pi * s * inner))
    )  # fmt: skip
    mass = np.where(rest == 0, n * np.log(x), mass)  # nothing but successes: xⁿ
    # I_x(a, b) = x^a (1 − x)^b / (a B(a, b)) · fraction, and x^a (1 − x)^b / (a B(a, b)) = mass · (1 − x)

    def coefficient(m: int) -> Floats:
        half = m // 2
        if m % 2 == 0:
            return half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        return -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))

    value = _lentz(coefficient, lambda m: np.ones_like(a), np.ones_like(a))
    result: Floats = (mass + np.log1p(-x) - np.log(value)) / LN10
    return result


def _log10_gamma_fraction(a: Floats, x: Floats) -> Floats:
    """log10 Q(a, x) far in the upper tail, x > a."""
    # log [e^(−x) x^a / Γ(a)] = log a + log Poisson mass at a with mean x
    mass = 0.5 * np.log(a / (2 * np.pi)) - _stirling_error(a) - _deviance(a, x)
    value = _lentz(lambda m: -m * (m - a), lambda m: x + 2 * m + 1.0 - a, x + 1.0 - a)
    return (mass - np.log(value)) / LN10


def _lentz(numerator: Callable[[int], Floats], denominator: Callable[[int], Floats], first: Floats) -> Floats:
    """b₀ + a₁/(b₁ + a₂/(b₂ + …)) by the modified Lentz algorithm, elementwise."""
    value = np.where(first == 0, _TINY, first)
    c, d = value.copy(), np.zeros_like(value)
    for m in range(1, 200_000):
        an, bn = numerator(m), denominator(m)
        d = bn + an * d
        d = 1.0 / np.where(d == 0, _TINY, d)
        c = bn + an / c
        c = np.where(c == 0, _TINY, c)
        step = c * d
        value = value * step
        if np.all(np.abs(step - 1.0) < 1e-15):
            break
    return value
