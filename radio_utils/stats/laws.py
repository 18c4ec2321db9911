"""The law of one score under the null hypothesis, and all that a test must know of it.

A test of a watermark adds up scores of distinct pairs. Which watermark it was, it need not know: the law says how the sum
is distributed (:meth:`Law.log10_tail`), how a weighted sum is (:meth:`Law.weighted`), at what odds to bet on high scores
(:meth:`Law.cgf`), and what high scores would look like (:meth:`Law.tilted`, the exponential family through the law: for a
green list other rates of green, for Gumbel-max exponentials of another mean). A new scheme has one of these laws, or one
more class here.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from radio_utils.stats import power, tails
from radio_utils.stats.weighted import WeightedSum

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_LN10 = float(np.log(10.0))
GRID = 64  # alternatives that the e-process bets on
_POINTS = 2001  # of a density
_TILTS = 101  # at which it is worked out
_END = 0.02  # of the way to the mean: a sum of several scores is never so close to its ends


class NullSum(Protocol):
    """The law of a weighted sum of whole-number marks, or an upper bound on its upper tail."""

    @property
    def mean(self) -> float:
        """Expected sum."""

    @property
    def variance(self) -> float:
        """Variance of the sum, or more."""

    def log_mgf(self, theta: float) -> float:
        """Log E exp(θS), or an upper bound on it; θ ≥ 0."""

    def log10_exact(self, total: int) -> float:
        """log10 P(S ≥ total), or an upper bound on it."""

    def log10_chernoff(self, total: int) -> float:
        """log10 of the Chernoff bound."""

    def log10_saddlepoint(self, total: int) -> float:
        """log10 of an approximation."""

    def log10_many(self, totals: ArrayLike) -> Floats:
        """log10 P(S ≥ total) of many totals."""

    def mirrored(self) -> NullSum:
        """The law of −S."""


class Tilted(Protocol):
    """What scores look like where they follow the key: their moments, and draws of their sums."""

    @property
    def mean(self) -> float:
        """Expected score."""

    @property
    def variance(self) -> float:
        """Variance of a score."""

    def draw(self, count: int, repeats: int, generator: np.random.Generator) -> Floats:
        """``repeats`` sums of ``count`` scores each."""


class Law(abc.ABC):
    """The distribution of one score under H₀; the scores of different pairs are independent, or the law says otherwise.

    ``mean`` and ``variance`` are those of one score, ``smallest`` and ``largest`` are the smallest
    and the largest score that there is (∞ if there is none).
    """

    mean: float
    variance: float
    smallest: float = 0.0
    largest: float = math.inf
    lift: float = 1.0  # how much likelier a mark can make a token, over all keys: 1 where it distorts no distribution
    lattice = False  # whether scores are whole multiples of ``unit``
    unit: float = 1.0
    without_return = False  # whether tokens of one list are drawn without return, so that a list may be asked once only

    @abc.abstractmethod
    def log10_tail(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(S ≥ total) of the sum S of ``count`` scores; scalars or arrays, broadcast."""

    def log10_above(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(S > total), which differs from :meth:`log10_tail` for discrete scores only."""
        return self.log10_tail(total, count)

    def log10_allowing(self, total: ArrayLike, count: ArrayLike, share: float) -> Any:
        """A bound on the tail where in each trial something of chance at most ``share`` in [0, 1) may have been left out.

        Whatever was left out, what remains has at most 1 / (1 − share) times its density under the null, and so has each
        of ``count`` trials: p grows by that power at most. Raises ``ValueError`` for a share outside [0, 1).
        """
        check_share(share)
        found = np.asarray(self.log10_tail(total, count), np.float64)
        return np.minimum(0.0, found - np.asarray(count) * np.log10(1.0 - share))[()] if share else found[()]

    def log10_between(self, total: float, count: int, other_total: float, other_count: int) -> float:
        """log10 p of "these scores are no larger than those": totals over two disjoint sets of independent scores.

        For all scores of one common law of the exponential family through this one, whatever its mean. Given the sum of
        both totals, the first has a law without parameters; here its densities are Daniels' saddlepoint approximations (H.
        E. Daniels, *Saddlepoint approximations in statistics*, 1954), normalised, where a law has no exact test of its own.
        """
        if not count or not other_count:
            return 0.0
        together, every = total + other_total, count + other_count
        common = self.tilted_to(together / every)
        spread = math.sqrt(common.variance * count * other_count / every)
        middle = together * count / every
        x = np.linspace(min(middle - 12 * spread, total), max(middle + 12 * spread, total + 6 * spread), _POINTS)
        logs = self._log_densities(x, count) + self._log_densities(together - x, other_count)
        logs -= special.logsumexp(logs)
        return min(0.0, float(special.logsumexp(logs[x >= total])) / _LN10)

    def _log_densities(self, totals: Floats, count: int) -> Floats:
        """The log of the density of a sum of ``count`` scores at each of a row of totals [n]; −∞ where no sum can be."""
        from scipy.interpolate import CubicSpline  # slow to import, and rarely needed

        ends = self.smallest + _END * (self.mean - self.smallest), self.largest - _END * min(self.largest - self.mean, 1.0)
        low, high = max(float(totals.min()), ends[0] * count), min(float(totals.max()), ends[1] * count)
        tilts = np.array([self.tilt_of(mean) for mean in np.linspace(low, high, _TILTS) / count])
        each = [self.tilted(theta) for theta in tilts]
        means, variances = np.array([one.mean for one in each]), np.array([one.variance for one in each])
        logs = count * (self.cgf(tilts) - tilts * means) - 0.5 * np.log(2 * np.pi * count * variances)
        inside = (totals >= low) & (totals <= high)
        found = np.full(totals.size, -np.inf)
        found[inside] = CubicSpline(count * means, logs)(totals[inside])
        return found

    @property
    def median(self) -> float:
        """A score above which about half of the pairs lie, or the best half of what there is: between two whole values."""
        values, chances = self.mark_distribution
        middle = int(np.searchsorted(np.cumsum(chances), 0.5))
        return float(values[middle]) + 0.5

    # --- weighted sums: contrastive reading, counts -----------------------------------------------------------------

    @property
    @abc.abstractmethod
    def mark_distribution(self) -> tuple[Ints, Floats]:
        """Values [l], whole numbers in order, and chances [l] of one pair's mark."""

    @abc.abstractmethod
    def marks(self, scores: Floats) -> Ints:
        """Whole-number marks of scores, which never fall as the score grows."""

    def weighted(self, weights: ArrayLike, lists: ArrayLike | None = None) -> NullSum:
        """The law of Σ qᵢ·markᵢ for whole-number weights q [n].

        ``lists`` [n] says which pairs are looked up in one list; it matters only where tokens of one list are dependent.
        """
        return WeightedSum.of(weights, *self.mark_distribution)

    # --- alternatives: planning, betting ----------------------------------------------------------------------------

    def test_at(self, target: float) -> power.SumTest:
        """The test of a sum that rejects where log10 p is at most ``target``: what planning asks."""
        return power.Tilts(self, target)

    @abc.abstractmethod
    def cgf(self, theta: ArrayLike) -> Any:
        """K(θ) = log E exp(θ·score) under the null; +∞ where it is infinite."""

    @property
    def bets(self) -> Floats:
        """The tilts θ > 0 that an e-process bets on, from hardly above the null to far above it."""
        return np.geomspace(1e-2, 6.0, GRID) / max(1.0, math.sqrt(self.variance))

    @abc.abstractmethod
    def tilted(self, theta: float) -> Tilted:
        """The law with density exp(θ·score − K(θ)) against this one: what scores look like where they follow the key."""

    def tilt_of(self, mean: float) -> float:
        """The tilt θ whose law has this mean. Raises ``ValueError`` for a mean that no score allows."""
        if mean == self.mean:
            return 0.0
        step = (1e-3 if mean > self.mean else -1e-3) / max(1.0, math.sqrt(self.variance))
        near, far = 0.0, step
        while (self.tilted(far).mean - mean) * step < 0:
            near, far = far, 2.0 * far
            if abs(far) > 1e4 / math.sqrt(self.variance) or not math.isfinite(self.cgf(far)):
                far = self._edge(near, far, mean, step)
                break
        found: float = optimize.brentq(lambda t: self.tilted(t).mean - mean, near, far, xtol=1e-14)
        return found

    def _edge(self, near: float, far: float, mean: float, step: float) -> float:
        """A tilt beyond the one wanted, where K(θ) is finite for some θ only. Raises ``ValueError`` if there is none."""
        low, high = near, far
        for _ in range(200):
            middle = (low + high) / 2
            if not math.isfinite(self.cgf(middle)):
                high = middle
            elif (self.tilted(middle).mean - mean) * step >= 0:
                return middle
            else:
                low = middle
        raise ValueError(f"mean={mean:g} is none that scores of this law can have, whose own mean is {self.mean:g}")

    def tilted_to(self, mean: float) -> Tilted:
        """The tilted law with this mean. Raises ``ValueError`` for a mean that no score allows."""
        return self.tilted(self.tilt_of(mean))

    @abc.abstractmethod
    def draw(self, count: int, repeats: int, generator: np.random.Generator) -> Floats:
        """``repeats`` sums of ``count`` scores each."""


def check_share(share: float) -> None:
    """Raise ``ValueError`` unless a share of trials lies in [0, 1)."""
    if not 0.0 <= share < 1.0:
        raise ValueError(f"share must lie in [0, 1), the part of the trials that may have been left out, got {share}")


@dataclass(frozen=True)
class Bernoulli(Law):
    """A score of 1 with chance ``rate``, else 0: green or not."""

    rate: float

    def __post_init__(self) -> None:
        if not 0.0 < self.rate < 1.0:
            raise ValueError(f"rate must lie strictly between 0 and 1, got {self.rate}")

    largest = 1.0
    lattice = True

    @property
    def mean(self) -> float:  # type: ignore[override]
        """The rate."""
        return self.rate

    @property
    def lift(self) -> float:  # type: ignore[override]
        """1 / rate: a list of all the probability there is."""
        return 1.0 / self.rate

    @property
    def variance(self) -> float:  # type: ignore[override]
        """rate·(1 − rate)."""
        return self.rate * (1.0 - self.rate)

    median = 0.5

    def log10_tail(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(Binomial(count, rate) ≥ total)."""
        return tails.log10_binomial_tail(total, count, self.rate)

    def log10_above(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(Binomial(count, rate) > total), −∞ where every trial succeeded."""
        return tails.log10_binomial_above(total, count, self.rate)

    def log10_allowing(self, total: ArrayLike, count: ArrayLike, share: float) -> Any:
        """log10 P(Binomial(count, rate + share) ≥ total), which is a bound: rate / (1 − share) ≤ rate + share."""
        check_share(share)
        rate = self.rate + share
        return tails.log10_binomial_tail(total, count, rate) if rate < 1 else np.zeros(np.broadcast(total, count).shape)[()]

    def test_at(self, target: float) -> power.SumTest:
        """A test of two binomials."""
        return power.Greens(self, target)

    def log10_between(self, total: float, count: int, other_total: float, other_count: int) -> float:
        """Fisher's exact test of two shares."""
        return tails.log10_fisher(total, count, other_total, other_count)

    @property
    def mark_distribution(self) -> tuple[Ints, Floats]:
        """1 with the chance of the rate, else 0."""
        return np.array([0, 1]), np.array([1.0 - self.rate, self.rate])

    def marks(self, scores: Floats) -> Ints:
        """The scores themselves."""
        return scores.astype(np.int64)

    def cgf(self, theta: ArrayLike) -> Any:
        """log(1 − rate + rate·exp θ)."""
        return np.log1p(self.rate * np.expm1(np.asarray(theta, np.float64)))[()]

    @property
    def bets(self) -> Floats:
        """Log odds ratios from 0.01 to 6."""
        return np.geomspace(1e-2, 6.0, GRID)

    def tilted(self, theta: float) -> Bernoulli:
        """Another rate."""
        return Bernoulli(float(special.expit(special.logit(self.rate) + theta)))

    def tilted_to(self, mean: float) -> Bernoulli:
        """The rate itself is the mean."""
        return Bernoulli(mean)

    def draw(self, count: int, repeats: int, generator: np.random.Generator) -> Floats:
        """Binomial draws."""
        return generator.binomial(count, self.rate, repeats).astype(np.float64)


@dataclass(frozen=True)
class FixedLists(Bernoulli):
    """Green or not, in lists of V tokens of which exactly ``greens`` are green, drawn without return.

    The number of greens among t tokens of one list is hypergeometric: no more spread than a binomial's (W. Hoeffding,
    *Probability inequalities for sums of bounded random variables*, 1963, theorem 4), so that the binomial Chernoff bound
    holds, and the binomial tail is exact where every list is asked once. Of weighted sums the tail is bounded.
    """

    rate: float
    greens: int
    size: int
    without_return = True

    @classmethod
    def of(cls, greens: int, size: int) -> FixedLists:
        """``greens`` of ``size`` tokens."""
        return cls(greens / size, greens, size)

    def weighted(self, weights: ArrayLike, lists: ArrayLike | None = None) -> NullSum:
        """A sum whose upper tail is bounded. Raises ``ValueError`` where ``lists`` are not given."""
        if lists is None:
            raise ValueError(
                "weights of tokens in lists with a fixed number of greens need to know which lists; give lists"
            )
        return ListSum.of(np.asarray(weights), np.asarray(lists), self)


@dataclass(frozen=True)
class ListSum:
    """Σ qᵢ·greenᵢ where the greens of each list are ``law.greens`` of its ``law.size`` tokens, drawn without return.

    Lists are independent. In one list the sum is that of a sample of m = greens from the population of the V tokens'
    weights (0 for tokens that have none). By Hoeffding's theorem 4 the expectation of a convex function is at most that of
    a sample with return, so E exp(θS) ≤ Π over lists (1 + Σᵢ (exp(θqᵢ) − 1)/V)^m, and Chernoff's bound follows. ``weights``
    [n] are sorted by list, ``starts`` [lists] are where each begins.
    """

    weights: Ints
    starts: NDArray[np.intp]
    law: FixedLists

    @classmethod
    def of(cls, weights: NDArray[Any], lists: NDArray[Any], law: FixedLists) -> ListSum:
        """The sum for one integer weight and one list number a pair."""
        if weights.dtype.kind not in "iu" or weights.ndim != 1 or weights.shape != lists.shape[:1]:
            raise ValueError(f"weights must be a row of whole numbers, one list each, got shape {list(weights.shape)}")
        order = np.argsort(lists, kind="stable") if lists.ndim == 1 else np.lexsort(lists.T[::-1])
        ordered, new = lists[order], np.ones(order.size, bool)
        new[1:] = ordered[1:] != ordered[:-1] if lists.ndim == 1 else np.any(ordered[1:] != ordered[:-1], axis=1)
        return cls(weights[order].astype(np.int64), np.flatnonzero(new), law)

    @property
    def mean(self) -> float:
        """Expected S."""
        return self.law.rate * float(self.weights.sum())

    @cached_property
    def variance(self) -> float:
        """Variance of S."""
        if not self.weights.size:
            return 0.0
        q = self.weights.astype(np.float64)
        v, rate = self.law.size, self.law.rate
        sums, squares = np.add.reduceat(q, self.starts), np.add.reduceat(q * q, self.starts)
        # that of a sample of γV without return: γ(1 − γ)·V/(V − 1)·(Σq² − (Σq)²/V)
        return float(rate * (1 - rate) * v / (v - 1) * (squares - sums * sums / v).sum())

    def log_mgf(self, theta: float) -> float:
        """The bound on log E exp(θS)."""
        q = self.weights.astype(np.float64)
        with np.errstate(over="ignore"):
            each = np.add.reduceat(np.expm1(theta * q), self.starts)
            return float(self.law.greens * np.log1p(each / self.law.size).sum())

    def log10_chernoff(self, total: int) -> float:
        """log10 of the bound on P(S ≥ total); 0 up to the mean."""
        if total <= self.mean or not self.weights.size:
            return 0.0 if total <= self.mean else -math.inf
        if total > int(np.maximum(self.weights, 0).sum()):
            return -math.inf
        unit = 1.0 / max(1.0, float(np.abs(self.weights).max()))
        found = optimize.minimize_scalar(
            lambda t: self.log_mgf(t * unit) - t * unit * total,
            bounds=(0.0, 60.0),
            method="bounded",
            options={"xatol": 1e-6},
        )
        return min(0.0, float(found.fun) / _LN10)

    def log10_exact(self, total: int) -> float:
        """The Chernoff bound: the exact law of tokens drawn without return with many weights is out of reach."""
        return self.log10_chernoff(total)

    def log10_saddlepoint(self, total: int) -> float:
        """A normal tail with the exact mean and variance: an approximation, to be shown beside the bound."""
        if not self.variance:
            return 0.0
        return float(special.log_ndtr((self.mean - total) / math.sqrt(self.variance)) / _LN10)

    def log10_many(self, totals: ArrayLike) -> Floats:
        """The approximation for many totals: an audit of bounds would say nothing."""
        return np.array([self.log10_saddlepoint(int(total)) for total in np.asarray(totals).ravel()])

    def mirrored(self) -> ListSum:
        """The law of −S."""
        return ListSum(-self.weights, self.starts, self.law)


_TOP_MARK = 48  # a score of 12 or more is met once in 160,000 pairs


@dataclass(frozen=True)
class Exponential(Law):
    """An exponential score of mean 1 under the null (``scale`` otherwise): Gumbel-max."""

    scale: float = 1.0

    @property
    def mean(self) -> float:  # type: ignore[override]
        """The scale."""
        return self.scale

    @property
    def variance(self) -> float:  # type: ignore[override]
        """The scale, squared."""
        return self.scale**2

    @property
    def median(self) -> float:
        """The scale times ln 2."""
        return self.scale * math.log(2.0)

    def log10_tail(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(Gamma(count, scale) ≥ total)."""
        return tails.log10_gamma_tail(np.asarray(total, np.float64) / self.scale, count)

    def test_at(self, target: float) -> power.SumTest:
        """A test of two gamma laws."""
        return power.Exponentials(self, target)

    def log10_between(self, total: float, count: int, other_total: float, other_count: int) -> float:
        """The F test of two means of exponentials."""
        return tails.log10_exponential_ratio(total, count, other_total, other_count)

    @property
    def mark_distribution(self) -> tuple[Ints, Floats]:
        """A score in whole quarters of the scale, at most 48 of them: geometric."""
        values = np.arange(_TOP_MARK + 1)
        chances = np.exp(-values / 4) * -np.expm1(-0.25)
        chances[-1] = np.exp(-_TOP_MARK / 4)
        return values, chances

    def marks(self, scores: Floats) -> Ints:
        """Scores in whole quarters, rounded down."""
        return np.minimum(4.0 * scores / self.scale, _TOP_MARK).astype(np.int64)

    def cgf(self, theta: ArrayLike) -> Any:
        """−log(1 − θ·scale)."""
        t = np.asarray(theta, np.float64) * self.scale
        return np.where(t < 1, -np.log1p(-np.minimum(t, 1 - 1e-16)), np.inf)[()]

    @property
    def bets(self) -> Floats:
        """Exponentials with a mean above the null's by a thousandth to twenty times."""
        return (1.0 - 1.0 / (1.0 + np.geomspace(1e-3, 20.0, GRID))) / self.scale

    def tilted(self, theta: float) -> Exponential:
        """Another scale."""
        return Exponential(self.scale / (1.0 - theta * self.scale)) if theta * self.scale < 1 else Exponential(math.inf)

    def tilted_to(self, mean: float) -> Exponential:
        """The scale itself is the mean."""
        return Exponential(mean)

    def draw(self, count: int, repeats: int, generator: np.random.Generator) -> Floats:
        """Gamma draws."""
        return generator.gamma(count, self.scale, repeats)


@dataclass(frozen=True)
class Histogram(Law):
    """A score of values[i]·``unit`` with chances[i], whole-number values in order: any score that is a sum of few bits.

    The tail of a sum is exact: a discrete Fourier transform of the tilted law (:mod:`radio_utils.stats.weighted`).
    """

    values: tuple[int, ...]
    chances: tuple[float, ...]
    unit: float = 1.0
    lattice = True

    def __post_init__(self) -> None:
        if len(self.values) != len(self.chances) or len(self.values) < 2 or any(np.diff(self.values) <= 0):
            raise ValueError("values must be at least two whole numbers in order, with a chance each")
        if not math.isclose(sum(self.chances), 1.0, rel_tol=1e-9) or min(self.chances) <= 0:
            raise ValueError("chances must be positive and sum to 1")

    @classmethod
    def of(cls, scores: ArrayLike, unit: float = 1.0) -> Histogram:
        """The law of a score that takes each of these whole-number values [n] (in units) with equal chance."""
        values, counts = np.unique(np.asarray(scores, np.int64), return_counts=True)
        return cls(tuple(values.tolist()), tuple((counts / counts.sum()).tolist()), unit)

    @cached_property
    def _arrays(self) -> tuple[Ints, Floats]:
        return np.array(self.values, np.int64), np.array(self.chances)

    @cached_property
    def mean(self) -> float:  # type: ignore[override]
        """Expected score."""
        values, chances = self._arrays
        return float(values @ chances) * self.unit

    @cached_property
    def variance(self) -> float:  # type: ignore[override]
        """Variance of a score."""
        values, chances = self._arrays
        return float(((values - float(values @ chances)) ** 2) @ chances) * self.unit**2

    @property
    def largest(self) -> float:  # type: ignore[override]
        """The largest value."""
        return self.values[-1] * self.unit

    def _whole(self, total: float) -> int:
        """The total in units, rounded up: the same event, but for the rounding of a sum of floats."""
        return math.ceil(total / self.unit - 1e-6)

    def _sum(self, count: int) -> WeightedSum:
        return WeightedSum(np.array([1]), np.array([count]), *self._arrays)

    def log10_tail(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(S ≥ total), exact."""
        return self._tails(total, count, 0)

    def log10_above(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(S > total), exact."""
        return self._tails(total, count, 1)

    def _tails(self, total: ArrayLike, count: ArrayLike, more: int) -> Any:
        s, n = np.broadcast_arrays(np.asarray(total, np.float64), np.asarray(count, np.float64))
        if np.any(~np.isfinite(s)) or np.any(~np.isfinite(n)) or np.any(n < 0):
            raise ValueError("total and count must be finite, and count not negative; count each pair once")
        if np.any(s > n * self.largest + 1e-6 * self.unit):
            raise ValueError(f"total={s.max():g} exceeds the largest sum of its pairs; count each pair once")
        result = np.zeros(s.shape)
        for number in np.unique(n):
            here = np.flatnonzero(n.ravel() == number)
            wanted = [self._whole(float(s.flat[i])) + more for i in here]
            if number:
                found = self._sum(int(number))
                result.flat[here] = found.log10_many(wanted) if len(wanted) > 4 else [found.log10_exact(w) for w in wanted]
            else:
                result.flat[here] = [0.0 if w <= 0 else -np.inf for w in wanted]
        return result[()]

    def log10_between(self, total: float, count: int, other_total: float, other_count: int) -> float:
        """The exact test given the sum of both totals, as Fisher's: Σ over x ≥ total of f(x)·f(sum − x)."""
        if not count or not other_count:
            return 0.0
        s, t, every = self._whole(total), self._whole(other_total), self._sum(count + other_count)
        apart = s * other_count > t * count
        here, there = (s / count, t / other_count) if apart else ((s + t) / (count + other_count),) * 2
        one, other = self._tilt_in_units(here), self._tilt_in_units(there)
        logs, k = self._sum(count).masses(s, one)
        others, j = self._sum(other_count).mirrored().masses(-t, -other)
        joint, i = every.masses(s + t, self._tilt_in_units((s + t) / (count + other_count)))
        size = min(logs.size, others.size)
        with np.errstate(divide="ignore"):
            both = special.logsumexp(np.log(logs[:size] * others[:size]) - (one - other) * np.arange(size)) + k + j
            return min(0.0, float(both - math.log(joint[0]) - i) / _LN10)

    def _tilt_in_units(self, mean: float) -> float:
        """The tilt of whole-number values with this mean, far out where the mean is at an end."""
        low, high = self.values[0], self.values[-1]
        slack = 1e-9 * (high - low)
        return self.tilt_of(min(max(mean, low + slack), high - slack) * self.unit) * self.unit

    @property
    def mark_distribution(self) -> tuple[Ints, Floats]:
        """The score in units."""
        return self._arrays

    def marks(self, scores: Floats) -> Ints:
        """Scores in units."""
        return np.rint(scores / self.unit).astype(np.int64)

    def cgf(self, theta: ArrayLike) -> Any:
        """The log of Σ chance·exp(θ·value)."""
        values, chances = self._arrays
        return special.logsumexp(np.multiply.outer(np.asarray(theta, np.float64), values * self.unit), b=chances, axis=-1)[
            ()
        ]

    def tilted(self, theta: float) -> Histogram:
        """The same values, other chances."""
        values, chances = self._arrays
        logs = np.log(chances) + theta * self.unit * values
        new = np.maximum(np.exp(logs - special.logsumexp(logs)), 1e-300)
        return Histogram(self.values, tuple((new / new.sum()).tolist()), self.unit)

    def draw(self, count: int, repeats: int, generator: np.random.Generator) -> Floats:
        """Multinomial draws."""
        values, chances = self._arrays
        return np.asarray((generator.multinomial(count, chances, repeats) @ values) * self.unit, np.float64)


def fair_bits(bits: int) -> Histogram:
    """The law of the number of ones among ``bits`` fair bits: tournament sampling with independent bits."""
    counts = special.comb(bits, np.arange(bits + 1))
    return Histogram(tuple(range(bits + 1)), tuple((counts / counts.sum()).tolist()))


_BEND = math.tan(math.pi / 8)  # of the path: the integrand decays in a strip of half-width π/8 around it
_STEP, _NODES = 0.06, 100
_HALVINGS = 60
_LEAST = 1e-100  # of the mean: what is less is exceeded with certainty
_TOTALS = 1 << 12  # worked out at once


def _path() -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Nodes of the half of the path above the real axis, in widths from the saddle point, and their factors."""
    v = _STEP * np.arange(_NODES)
    factors = (np.cosh(v) - 1j * _BEND * np.sinh(v)) * _STEP / np.pi
    factors[0] /= 2
    return 1j * np.sinh(v) + _BEND * (np.cosh(v) - 1.0), factors


_PATH = _path()


@dataclass(frozen=True)
class TwoExponentials(Law):
    """A score (1 − α)·E + α·E′ with independent unit exponentials: Gumbel-max with two keys.

    The tail of a sum of n is an integral of its transform ((1 − (1 − α)s)(1 − αs))⁻ⁿ·exp(−st)/s along a path through the
    saddle point, so that nothing cancels however small the tail is. The path is a hyperbola, on which the trapezoidal rule
    converges geometrically (J. A. C. Weideman and L. N. Trefethen, *Parabolic and hyperbolic contours for computing the
    Bromwich integral*, 2007).
    """

    alpha: float

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha must lie strictly between 0 and 1 (the second key's share), got {self.alpha}")

    mean = 1.0

    @property
    def variance(self) -> float:  # type: ignore[override]
        """(1 − α)² + α²."""
        return (1.0 - self.alpha) ** 2 + self.alpha**2

    def log10_tail(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 P(S ≥ total), exact."""
        s, n = np.broadcast_arrays(np.asarray(total, np.float64), np.asarray(count, np.float64))
        tails.log10_gamma_tail(s, n)  # its errors
        flat = [np.ravel(part) for part in (s, n)]
        blocks = (slice(at, at + _TOTALS) for at in range(0, s.size, _TOTALS))
        found = [self._tails(flat[0][block], flat[1][block]) for block in blocks]
        return np.concatenate(found).reshape(s.shape)[()] if found else np.zeros(s.shape)

    def _tails(self, totals: Floats, counts: Floats) -> Floats:
        """log10 P(S ≥ total): of totals above the mean the tail itself, of others 1 less the lower tail."""
        result = np.zeros(totals.size)
        some = (counts > 0) & (totals > 0)
        n = counts[some]
        t = np.maximum(totals[some], _LEAST * n)
        upper = t > n
        # the saddle point of log of transform and factor 1/s, whose slope grows from −∞ to ∞ on either side of 0
        limit = (1.0 - 1e-15) / max(self.alpha, 1.0 - self.alpha)
        low, high = np.where(upper, 0.0, -(2 * n + 1) / t), np.where(upper, limit, 0.0)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            above = sum(n * a / (1.0 - a * middle) for a in (self.alpha, 1.0 - self.alpha)) - t - 1.0 / middle > 0
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        c = np.where(upper, low, high)  # never at an end: the pole, or where the transform ends
        scales = [a / (1.0 - a * c) for a in (self.alpha, 1.0 - self.alpha)]
        width = 1.0 / np.sqrt(sum(n * a * a for a in scales) + 1.0 / (c * c))
        steps, turns = _PATH
        z = width * steps[:, None]
        logs = -n * sum(special.log1p(-a * z) for a in scales) - z * t - special.log1p(z / c)
        value = width * np.real(turns @ np.exp(logs))
        start = -n * sum(np.log1p(-a * c) for a in (self.alpha, 1.0 - self.alpha)) - c * t - np.log(np.abs(c))
        tail = np.minimum(0.0, (start + np.log(value)) / _LN10)
        result[some] = np.where(upper, tail, np.log1p(-(10.0 ** np.where(upper, -np.inf, tail))) / _LN10)
        return result

    @cached_property
    def mark_distribution(self) -> tuple[Ints, Floats]:
        """A score in whole quarters, at most 48 of them."""
        edges = np.arange(_TOP_MARK + 1) / 4
        small, large = sorted((self.alpha, 1.0 - self.alpha))
        if small == large:
            above = np.exp(-edges / small) * (1 + edges / small)
        else:
            above = (large * np.exp(-edges / large) - small * np.exp(-edges / small)) / (large - small)
        chances = above - np.append(above[1:], 0.0)
        return np.arange(_TOP_MARK + 1), chances

    def marks(self, scores: Floats) -> Ints:
        """Scores in whole quarters, rounded down."""
        return np.minimum(4.0 * scores, _TOP_MARK).astype(np.int64)

    def cgf(self, theta: ArrayLike) -> Any:
        """−log(1 − (1 − α)θ) − log(1 − αθ)."""
        t = np.asarray(theta, np.float64)
        fine = t * max(self.alpha, 1.0 - self.alpha) < 1
        safe = np.where(fine, t, 0.0)
        return np.where(fine, -np.log1p(-(1.0 - self.alpha) * safe) - np.log1p(-self.alpha * safe), np.inf)[()]

    @property
    def bets(self) -> Floats:
        """Tilts up to a mean of about twenty."""
        return (1.0 - 1.0 / (1.0 + np.geomspace(1e-3, 20.0, GRID))) / max(self.alpha, 1.0 - self.alpha)

    def tilted(self, theta: float) -> TiltedExponentials:
        """Two exponentials of other scales."""
        return TiltedExponentials(*(a / (1.0 - theta * a) for a in (1.0 - self.alpha, self.alpha)))

    def draw(self, count: int, repeats: int, generator: np.random.Generator) -> Floats:
        """Sums of two gamma draws."""
        return TiltedExponentials(1.0 - self.alpha, self.alpha).draw(count, repeats, generator)


@dataclass(frozen=True)
class TiltedExponentials:
    """aE + bE′: what two-key scores look like where they follow the keys. Only its moments and draws are wanted."""

    first: float
    second: float

    @property
    def mean(self) -> float:
        """The sum of both scales."""
        return self.first + self.second

    @property
    def variance(self) -> float:
        """The sum of their squares."""
        return self.first**2 + self.second**2

    def draw(self, count: int, repeats: int, generator: np.random.Generator) -> Floats:
        """Sums of two gamma draws."""
        return generator.gamma(count, self.first, repeats) + generator.gamma(count, self.second, repeats)
