"""Many p-values at once: Kolmogorov–Smirnov tests, randomised p-values of discrete statistics, and Holm's adjustment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from radio_utils.stats.tails import LN10, SMALLEST, Floats


@dataclass(frozen=True, slots=True)
class KSResult:
    """A Kolmogorov–Smirnov test: the largest gap between two distribution functions and its p-value."""

    statistic: float
    log10_p: float

    @property
    def p_value(self) -> float:
        """The p-value as a float; 0 where it underflows."""
        return float(10.0**self.log10_p)


def ks_lower(first: ArrayLike, second: ArrayLike) -> KSResult:
    """One-sided two-sample Kolmogorov–Smirnov test of H₀ "the first sample's values are no lower than the second's".

    The statistic is D⁺ = sup_t [F_first(t) − F_second(t)], 0 where the first sample is nowhere ahead. Its p-value is that
    of n + m exchangeable values without ties, all orders of which are equally likely: exact, in log10 and with full
    relative accuracy however small, by counting lattice paths (J. L. Hodges, *The significance probability of the Smirnov
    two-sample test*, 1958). With ties D⁺ is at most what it would be in any order of the tied values, so that p is on the
    cautious side. Where n ≠ m and n·m exceeds 2·10⁷, Smirnov's limit exp(−2 D⁺² nm / (n + m)) is given.

    Raises ``ValueError`` for a sample of fewer than 2 values, or NaN or infinity in it.
    """
    x, y = _two_samples(first, second)
    n, m = x.size, y.size
    pooled = np.concatenate([x, y])
    order = np.argsort(pooled, kind="stable")
    # n·m·(F_first − F_second) after each value, in whole numbers; only where a run of equal values ends does it count
    ahead = np.cumsum(np.where(order < n, m, -n))
    ends = np.append(np.diff(pooled[order]) > 0, True)
    lead = max(0, int(ahead[ends].max()))
    statistic = lead / (n * m)
    if lead == 0:
        return KSResult(0.0, 0.0)
    if n == m:  # by reflection C(2n, n − s) of the C(2n, n) paths get s steps ahead
        steps = lead // n
        log_p = _log_choose(2 * n, n - steps) - _log_choose(2 * n, n)
    elif n * m <= _MOST_CELLS:
        log_p = _log_paths_ahead(n, m, lead) - _log_choose(n + m, n)
    else:
        log_p = -2.0 * statistic**2 * n * m / (n + m)
    return KSResult(statistic, min(0.0, float(log_p) / LN10))


_MOST_CELLS = 2 * 10**7  # of the table of paths: two seconds


def _two_samples(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    samples = np.asarray(first, np.float64), np.asarray(second, np.float64)
    for name, sample in zip(("first", "second"), samples, strict=True):
        if sample.ndim != 1 or sample.size < 2:
            raise ValueError(f"{name} must be one-dimensional with at least 2 values, got shape {sample.shape}")
        if not np.all(np.isfinite(sample)):
            raise ValueError(f"{name} holds NaN or infinite values; drop them before testing")
    return samples


def _log_choose(n: ArrayLike, k: ArrayLike) -> Any:
    """The logarithm of C(n, k)."""
    a, b = np.asarray(n, np.float64), np.asarray(k, np.float64)
    return special.gammaln(a + 1.0) - special.gammaln(b + 1.0) - special.gammaln(a - b + 1.0)


def _log_paths_ahead(n: int, m: int, lead: int) -> float:
    """How many of the C(n + m, n) orders of n firsts and m seconds have i·m − j·n ≥ lead after some i + j of them, in logs.

    Counted from the end: a path that is ahead may go on as it likes, another has two next steps. All terms are positive,
    so nothing cancels.
    """
    later = np.full(m + 1, -np.inf)  # log of the paths from (i + 1, j) on that will be ahead, for each j; none from i = n
    for i in range(n, -1, -1):
        there = max(0, (i * m - lead) // n + 1)  # below this j the path is ahead already
        row = np.empty(m + 1)
        row[:there] = _log_choose(n - i + m - np.arange(there), n - i)
        row[there:] = np.logaddexp.accumulate(later[there:][::-1])[::-1]
        later = row
    return float(later[0])


def ks_small(p_values: ArrayLike) -> KSResult:
    """One-sided Kolmogorov–Smirnov test of H₀ "small p-values are no more frequent than under the uniform distribution".

    The statistic is sup [F(t) − t] over t ≤ ½, with F the share of p-values up to t. Above ½ nobody is accused: the
    p-values of a test that is merely cautious crowd around ½ and are ahead there, which is no fault. The p-value is that of
    the supremum over all t (the law of Birnbaum and Tingey 1951, for independent p-values), so it is valid and about twice
    what it could be; far in the tail it is Massart's bound exp(−2nD²), finite in log10.
    """
    p = np.sort(_checked_p_values(p_values))
    share = np.arange(1, p.size + 1) / p.size
    statistic = max(0.0, float(np.max((share - p)[p <= 0.5], initial=0.0)))
    exact = float(special.smirnov(p.size, statistic))
    bound = -2.0 * p.size * statistic**2 / LN10
    return KSResult(statistic, float(np.log10(exact)) if exact > SMALLEST else bound)


def _checked_p_values(p_values: ArrayLike) -> Floats:
    p = np.asarray(p_values, np.float64)
    if p.size < 5 or not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p_values must be at least 5 numbers in [0, 1], got {p.size}")
    return p


def randomised(log10_p: ArrayLike, log10_p_above: ArrayLike, generator: np.random.Generator) -> Floats:
    """Uniform p-values of a discrete statistic: exactly so if it follows the null law that its tails were taken from.

    ``log10_p`` is log10 P(S ≥ s), ``log10_p_above`` is log10 P(S > s); the result is drawn between the two. Used where
    p-values are tested for uniformity, never as a verdict.
    """
    upper, lower = 10.0 ** np.asarray(log10_p, np.float64), 10.0 ** np.asarray(log10_p_above, np.float64)
    return lower + generator.random(upper.shape) * (upper - lower)


def family_wise(log10_p: ArrayLike) -> Floats:
    """Holm's correction for many tests at once: log10 of the adjusted p-values, in the order given.

    Rejecting where the adjusted p is at most α makes one or more false rejections with probability at most α, however the
    tests depend on each other (S. Holm, *A simple sequentially rejective multiple test procedure*, 1979).

    Parameters
    ----------
    log10_p : array_like of float [n]
        log10 p-values, at most 0.

    Returns
    -------
    float array [n]
        Adjusted log10 p-values.

    Raises
    ------
    ValueError
        For no values, NaN, or a positive one.

    Notes
    -----
    S. Holm, *A simple sequentially rejective multiple test procedure*, 1979.

    Examples
    --------
    >>> from radio_utils.stats import ks
    >>> ks.family_wise([-4.0, -1.0]).round(3)
    array([-3.699, -1.   ])
    """
    values = np.atleast_1d(np.asarray(log10_p, np.float64))
    if values.ndim != 1 or values.size == 0 or np.any(np.isnan(values)) or np.any(values > 0):
        raise ValueError(f"log10_p must be one or more log10 p-values, at most 0, got shape {list(values.shape)}")
    order = np.argsort(values, kind="stable")
    scaled = values[order] + np.log10(values.size - np.arange(values.size))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 0.0)
    return adjusted
