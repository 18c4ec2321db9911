"""Weighted sums of independent colours: exact tails for contrastive reading, and for counts.

Each (window, token) pair i has an integer weight qᵢ, chosen without the key, and a mark Xᵢ that the key decides: under
H₀ the marks are independent with one known distribution on a few integers (green or red for a green list). The statistic
is S = Σᵢ qᵢ Xᵢ. Its cumulant generating function K(θ) = Σᵢ log E exp(θ qᵢ X) groups by the value of the weight, so it
costs as many terms as there are different weights, however many pairs there are. From it come

* the Chernoff bound P(S ≥ s) ≤ exp(K(θ) − θ s), valid at any size;
* Lugannani and Rice's saddlepoint approximation, sharp where many pairs share the weight (R. Lugannani and S. Rice,
  *Saddle point approximation for the distribution of the sum of independent random variables*, 1980);
* the exact tail: S lives on the integers, so its distribution, tilted by θ to put s in the middle, is a discrete Fourier
  transform of exp(K). Tilting keeps full relative accuracy however small the tail is. The transform is given up where
  it would be too long or too much work (few pairs with large, all different weights); the Chernoff bound stands in then.

Explained in the section "Three p-values for one sum" of the chapter "Hearing more".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, optimize, special

Floats = NDArray[np.float64]
_LN10 = float(np.log(10.0))
_SPREAD = 40.0  # standard deviations on either side that the transform holds: the rest is below 1e-340
_LONGEST = 1 << 24  # points of the longest transform
_MOST_WORK = 1 << 31  # multiplications, about five seconds: beyond it the Chernoff bound is quoted
_OVERHEAD = 30  # what a frequency costs besides its values' multiplications: an exponential and a logarithm
_DENSE = 64  # values above which all frequencies are worked out at once: about what a fast transform costs a frequency
_NEGLIGIBLE = 60.0  # −log of the modulus below which a frequency is dropped: 1e-26, all together far below a rounding
_DIGITS = 1e-12  # 1 − P keeps digits while −log10 P is larger
_CHUNK = 1 << 13  # frequencies that are worked on together: they stay in the cache


@dataclass(frozen=True)
class WeightedSum:
    """The null distribution of S = Σ qᵢ Xᵢ.

    ``weights`` [m] are the different values of q (whole numbers, not 0), ``counts`` [m] how many pairs have each,
    ``values`` [l] and ``chances`` [l] the distribution of one mark X on whole numbers.
    """

    weights: NDArray[np.int64]
    counts: NDArray[np.int64]
    values: NDArray[np.int64]
    chances: Floats

    def __post_init__(self) -> None:
        if self.weights.shape != self.counts.shape or self.weights.ndim != 1:
            raise ValueError(f"weights and counts must be two equal rows, got {self.weights.shape}, {self.counts.shape}")
        if np.any(self.counts < 0):
            raise ValueError(f"counts must not be negative, got {int(self.counts.min())}")
        if self.values.dtype.kind not in "iu" or self.weights.dtype.kind not in "iu":
            raise ValueError(
                f"weights and values must be whole numbers, got dtypes {self.weights.dtype} and {self.values.dtype}"
            )
        if self.values.shape != self.chances.shape or not np.isclose(self.chances.sum(), 1.0) or np.any(self.chances <= 0):
            raise ValueError("values and chances must be the distribution of one mark: positive, summing to 1")

    @classmethod
    def of(cls, weights: ArrayLike, values: ArrayLike, chances: ArrayLike) -> WeightedSum:
        """The null distribution for one integer weight a pair [n]; pairs of weight 0 count for nothing."""
        q = np.asarray(weights)
        if q.ndim != 1 or q.dtype.kind not in "iu":
            raise ValueError(f"weights must be a row of whole numbers, got dtype {q.dtype} and shape {list(q.shape)}")
        found, counts = np.unique(q[q != 0].astype(np.int64), return_counts=True)
        return cls(found, counts.astype(np.int64), np.asarray(values, np.int64), np.asarray(chances, np.float64))

    @property
    def mean(self) -> float:
        """Expected S."""
        return float(self.values @ self.chances) * float(self.weights @ self.counts)

    @property
    def variance(self) -> float:
        """Variance of S."""
        spread = float(self.values**2 @ self.chances - (self.values @ self.chances) ** 2)
        return spread * float(self.weights.astype(np.float64) ** 2 @ self.counts)

    @property
    def largest(self) -> int:
        """The largest value that S can take."""
        extremes = np.maximum(self.weights * self.values.max(), self.weights * self.values.min())
        return int(extremes @ self.counts)

    @property
    def smallest(self) -> int:
        """The smallest value that S can take."""
        extremes = np.minimum(self.weights * self.values.max(), self.weights * self.values.min())
        return int(extremes @ self.counts)

    @cached_property
    def _lattice(self) -> tuple[int, WeightedSum]:
        """The spacing of what S can take, and the sum in units of it: between multiples of the spacing nothing lies."""
        common = (int(np.gcd.reduce(self.weights)) if self.weights.size else 1) or 1
        step = int(np.gcd.reduce(self.values)) or 1
        if common * step == 1:
            return 1, self
        return common * step, WeightedSum(self.weights // common, self.counts, self.values // step, self.chances)

    def _in_units(self, total: int) -> tuple[WeightedSum, int]:
        """A sum on all whole numbers, and the total rounded up to one of them: the same event, S ≥ total."""
        spacing, reduced = self._lattice
        return reduced, -(-int(total) // spacing)

    def cumulants(self, theta: float) -> tuple[float, float, float]:
        """K(θ), its first and its second derivative: log-mass, mean and variance of the tilted sum."""
        exponents = theta * np.multiply.outer(self.weights.astype(np.float64), self.values)
        each = exponents + np.log(self.chances)
        log_mass = special.logsumexp(each, axis=1)
        tilted = np.exp(each - log_mass[:, None])
        first = tilted @ self.values
        second = tilted @ self.values.astype(np.float64) ** 2 - first**2
        q = self.weights.astype(np.float64)
        return float(self.counts @ log_mass), float(self.counts @ (q * first)), float(self.counts @ (q**2 * second))

    def log_mgf(self, theta: float) -> float:
        """K(θ) = log E exp(θS)."""
        return self.cumulants(theta)[0]

    def saddlepoint(self, total: int) -> float:
        """θ with K′(θ) = total, for a total strictly inside what S can take."""
        low, high = -1.0, 1.0
        while self.cumulants(high)[1] < total:
            high *= 2
        while self.cumulants(low)[1] > total:
            low *= 2
        return float(optimize.brentq(lambda t: self.cumulants(t)[1] - total, low, high, xtol=1e-13, rtol=1e-13))

    def log10_chernoff(self, total: int) -> float:
        """log10 of the Chernoff bound on P(S ≥ total): never below the exact value, and 0 up to the mean."""
        units, rounded = self._in_units(total)
        return units._chernoff(rounded)

    def _chernoff(self, total: int) -> float:
        if total <= self.mean:
            return 0.0
        if (known := self._at_the_ends(total)) is not None:
            return known
        theta = self.saddlepoint(total)
        return min(0.0, (self.cumulants(theta)[0] - theta * total) / _LN10)

    def log10_saddlepoint(self, total: int) -> float:
        """log10 of Lugannani and Rice's approximation of P(S ≥ total), with the continuity correction of a lattice."""
        units, rounded = self._in_units(total)
        return units._saddlepoint_tail(rounded)

    def _saddlepoint_tail(self, total: int) -> float:
        if (known := self._at_the_ends(total)) is not None:
            return known
        theta = self.saddlepoint(total)
        k, _, variance = self.cumulants(theta)
        exponent = k - theta * total
        if abs(theta) * np.sqrt(variance) < 0.02:  # at the mean both terms of the formula grow without bound and cancel
            return float(special.log_ndtr((self.mean - total + 0.5) / np.sqrt(self.variance)) / _LN10)
        w = np.sign(theta) * np.sqrt(-2.0 * exponent)
        u = -np.expm1(-theta) * np.sqrt(variance)
        # log[Φ(−w) + φ(w)(1/u − 1/w)], with φ(w) = exp(exponent)/√(2π) taken out where the tail is small
        if w > 0:
            mills = special.erfcx(w / np.sqrt(2.0)) / 2.0
            bracket = mills + (1.0 / u - 1.0 / w) / np.sqrt(2.0 * np.pi)
            return min(0.0, float((exponent + np.log(max(bracket, 1e-300))) / _LN10))
        below = special.ndtr(w) - np.exp(exponent) / np.sqrt(2.0 * np.pi) * (1.0 / u - 1.0 / w)
        return float(np.log1p(-min(max(below, 0.0), 1.0 - 1e-16)) / _LN10)

    def log10_exact(self, total: int) -> float:
        """log10 P(S ≥ total), exact; a larger, still valid value where the transform is given up.

        That value is the Chernoff bound above the mean and 0 (p = 1) up to the mean, where the bound says nothing.
        """
        units, rounded = self._in_units(total)
        if (known := units._at_the_ends(rounded)) is not None:
            return known
        if rounded > units.mean:
            upper = units._transformed(rounded)
            return units._chernoff(rounded) if upper is None else upper
        # the lower tail is the small one: 1 − P(S ≤ total − 1), which needs the exact lower tail, never a bound on it
        mirror = units.mirrored()
        lower = mirror._log10_all() if rounded - 1 == units.smallest else mirror._transformed(1 - rounded)
        if lower is None or lower > -_DIGITS:  # a difference of which nothing is left is no p-value either
            return 0.0
        return float(np.log1p(-(10.0**lower)) / _LN10)

    def _transformed(self, total: int) -> float | None:
        """log10 P(S ≥ total) for a total above the mean and below the largest, or None where it is too much work."""
        theta = self.saddlepoint(total)
        k, _, variance = self.cumulants(theta)
        points = self._points(variance)
        mass = self._tilted_masses(theta, total, points)
        if mass is None:
            return None
        # mass[j] is the tilted chance of total + j; undo the tilt over the upper half of the circle
        upper = np.arange(points // 2)
        tail = float(np.sum(mass[: points // 2] * np.exp(-theta * upper)))
        return min(0.0, float((k - theta * total + np.log(tail)) / _LN10))

    def masses(self, total: int, theta: float) -> tuple[Floats, float]:
        """Chances of total, total + 1, … as [j] of the sum tilted by θ, and what makes them the sum's own.

        log P(S = total + j) = log masses[j] − θ·j + the second. Raises ``ValueError`` where the transform is too much work.
        """
        k, _, variance = self.cumulants(theta)
        points = self._points(max(variance, self.variance * 1e-12))
        found = self._tilted_masses(theta, total, points)
        if found is None:
            raise ValueError(f"the law of {int(self.counts.sum())} pairs takes too long to work out; score fewer pairs")
        return found[: points // 2], k - theta * total

    def mirrored(self) -> WeightedSum:
        """The distribution of −S."""
        return WeightedSum(-self.weights[::-1], self.counts[::-1], self.values, self.chances)

    def _points(self, variance: float) -> int:
        """Length of the transform: all of the sum's range on either side of its middle, or as much of it as matters."""
        largest_step = float(np.abs(self.weights).max()) * float(np.ptp(self.values))
        reach = max(2.0 * _SPREAD * float(np.sqrt(variance)), 4.0 * largest_step)
        return 1 << int(np.ceil(np.log2(min(reach, 2.0 * (self.largest - self.smallest)) + 2)))

    def _tilted_masses(self, theta: float, total: int, points: int) -> Floats | None:
        """Chances of total, total + 1, … of the sum tilted by θ, modulo ``points``; None where it is too much work.

        No factor of the spectrum is above 1 in modulus, so a frequency that has become negligible stays so and is
        dropped. The weights that most pairs have come first: they leave few frequencies to the others.
        """
        if points > _LONGEST:
            return None
        alive = np.arange(points // 2 + 1)
        log_modulus, angle = np.zeros(alive.size), np.zeros(alive.size)
        order, work = np.argsort(self.values), 0
        values, log_chances = self.values[order], np.log(self.chances[order])
        for at in np.argsort(-self.counts, kind="stable").tolist():
            dense = values.size > _DENSE
            work += alive.size * (_OVERHEAD + (_DENSE if dense else values.size))
            if work > _MOST_WORK:
                return None
            q, count = int(self.weights[at]), int(self.counts[at])
            each = theta * q * values + log_chances
            tilted = np.exp(each - special.logsumexp(each))
            whole = fft.rfft(np.bincount(q * values % points, tilted, points)) if dense else None
            for start in range(0, alive.size, _CHUNK):
                some = alive[start : start + _CHUNK]
                factor = _spectrum(some, q, values, tilted, points) if whole is None else whole[some]
                with np.errstate(divide="ignore"):
                    log_modulus[some] += count * np.log(np.abs(factor))
                angle[some] += count * np.angle(factor)
            alive = alive[log_modulus[alive] > -_NEGLIGIBLE]
        turn = (alive * (total % points)) % points
        spectrum = np.zeros(points // 2 + 1, np.complex128)
        spectrum[alive] = np.exp(log_modulus[alive] + 1j * (angle[alive] + 2 * np.pi / points * turn))
        mass: Floats = fft.irfft(spectrum, points)
        return np.maximum(mass, 0.0)

    def _at_the_ends(self, total: int) -> float | None:
        """log10 P(S ≥ total) where it needs no calculation: outside what S can take, or at its largest value."""
        if total <= self.smallest:
            return 0.0
        if total > self.largest:
            return -np.inf
        return self._log10_all() if total == self.largest else None

    def _log10_all(self) -> float:
        """log10 of the chance that every pair takes its best mark."""
        best, worst = np.log(self.chances[self.values.argmax()]), np.log(self.chances[self.values.argmin()])
        return float(self.counts @ np.where(self.weights > 0, best, worst)) / _LN10

    def log10_many(self, totals: ArrayLike) -> Floats:
        """log10 P(S ≥ total) of many totals, an audit's: one transform for those near the mean, else one each.

        Where the transform is given up, all are Chernoff bounds: the p-values of an audit are then larger than uniform.
        """
        spacing, units = self._lattice
        wanted = -(-np.asarray(totals, np.int64) // spacing)
        points = units._points(units.variance) if units.weights.size else _LONGEST + 1
        start = round(units.mean) - points // 2
        mass = units._tilted_masses(0.0, start, points)
        if mass is None:
            return np.array([units._chernoff(int(total)) for total in wanted])
        tail = np.cumsum(mass[::-1])[::-1]  # P(S ≥ start + i), good to about 1e-15
        place = np.clip(wanted - start, 0, points - 1)
        found: Floats = np.log10(np.clip(tail[place], 1e-300, 1.0))
        for i in np.flatnonzero((found < -9) | (wanted != place + start)):
            found[i] = units.log10_exact(int(wanted[i]))
        return found


def _spectrum(
    frequencies: NDArray[np.int64], q: int, values: NDArray[np.int64], chances: Floats, points: int
) -> NDArray[np.complex128]:
    """E exp(−2πi f q X / points) for each frequency f, by Horner's rule along the ascending values."""

    def turned(steps: int) -> NDArray[np.complex128]:
        # exact angles: the product q·steps·f is reduced modulo the length before it is divided
        turn = (frequencies * (q * steps % points)) % points
        turns: NDArray[np.complex128] = np.exp(-2j * np.pi / points * turn)
        return turns

    gaps = np.diff(values).tolist()
    turns = {gap: turned(gap) for gap in set(gaps)}
    found = np.full(frequencies.size, chances[-1], np.complex128)
    for chance, gap in zip(chances[-2::-1].tolist(), gaps[::-1], strict=True):
        found *= turns[gap]
        found += chance
    return found * turned(int(values[0])) if values[0] else found
