"""Tests of a sum of scores at one target: where they reject, how often, and which effect they see.

A law has its test (:meth:`radio_utils.stats.laws.Law.test_at`). The alternative is a mean score that exceeds the null's by
an effect: another rate of green, an exponential of another mean, and for any other law the tilt with that mean.
"""

from __future__ import annotations

import abc
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from radio_utils.stats import tails

if TYPE_CHECKING:
    from radio_utils.stats.laws import Bernoulli, Exponential, Law

Floats = NDArray[np.float64]
_LN10 = float(np.log(10.0))
_BLOCK = 1 << 12  # numbers of pairs looked at together


class SumTest(abc.ABC):
    """The test of one law at one target. Numbers of pairs are float arrays [m] of whole numbers."""

    def __init__(self, law: Law, target: float) -> None:
        self.law, self.target = law, target

    def checked_effect(self, effect: float) -> float:
        """The effect, or an error that names it."""
        mean = self.law.mean
        if not (effect > 0 and math.isfinite(effect)):
            raise ValueError(
                f"effect must be positive and finite (mean score less {mean:g}), got {effect}; no pairs show it"
            )
        if not mean + effect > mean:
            raise ValueError(f"effect={effect} is lost beside {mean:g} in double precision; give a larger one")
        return float(effect)

    @abc.abstractmethod
    def power(self, n: Floats, effect: float) -> Floats:
        """P(log10 p ≤ target) with n pairs."""

    def bounds(self, n: Floats, effect: float) -> tuple[Floats, Floats]:
        """Two curves that never fall with n, with the power between them.

        Here the power itself: the test is the most powerful of its level, and a test of n + 1 pairs may ignore one.
        """
        exact = self.power(n, effect)
        return exact, exact

    def last_short(self, first: int, safe: int, effect: float, power: float) -> int:
        """The last n in [first, safe) whose power is below ``power``; first − 1 if there is none, as without teeth."""
        return first - 1

    @abc.abstractmethod
    def effect_seen(self, n: Floats, power: float) -> Floats:
        """The effect at which n pairs have the power."""

    @property
    def largest_effect(self) -> float:
        """An effect near the largest that there is, beyond which nothing is left to chance."""
        return 0.9 * (self.law.largest - self.law.mean)

    def expected(self, n: Floats, effect: float) -> Floats:
        """The expected total of n pairs."""
        return n * (self.law.mean + effect)

    @abc.abstractmethod
    def _divergence(self, effect: float) -> tuple[float, float]:
        """Mean and standard deviation of a pair's log-likelihood ratio, alternative to null, under the alternative."""

    def guess(self, effect: float, power: float) -> float:
        """About how many pairs: √(2 × log-likelihood ratio) is roughly normal under both hypotheses."""
        mean, deviation = self._divergence(effect)
        z = -float(special.ndtri_exp(self.target * _LN10)) + float(special.ndtri(power)) * deviation / math.sqrt(2 * mean)
        return max(z, 0.0) ** 2 / (2 * mean) + 1.0


class Greens(SumTest):
    """Binomial(n, γ) under the null, Binomial(n, γ + effect) under the alternative."""

    def __init__(self, law: Bernoulli, target: float) -> None:
        super().__init__(law, target)
        self.gamma = law.rate

    def checked_effect(self, effect: float) -> float:
        """The effect, which leaves some chance of red."""
        if math.isfinite(effect) and not self.gamma + effect < 1:
            raise ValueError(f"effect={effect} leaves γ + effect = {self.gamma + effect:g}, which must stay below 1")
        return super().checked_effect(effect)

    def critical(self, n: Floats, start: Floats | None = None) -> tuple[Floats, Floats]:
        """The smallest number of greens c whose log10 p is at or below the target, n + 1 where there is none; and a share.

        A test that also rejects this share of the time at c − 1 greens would have level 10^target exactly.

        log10 p is concave in the number of greens, so that Newton's method closes in on c from ``start``, within a bracket.
        """
        low, high = np.zeros(n.size), n + 1.0  # log10 p is above the target at low, at or below it at high
        at_low, at_high = np.zeros(n.size), np.full(n.size, -np.inf)
        guess = self._normal_critical(n) if start is None else start.copy()
        todo = np.flatnonzero(high - low > 1)
        step = 0
        while todo.size:
            step += 1
            x, count = np.clip(guess[todo], low[todo] + 1, high[todo] - 1), n[todo]
            here = np.asarray(self.law.log10_tail(x, count), np.float64)
            before = np.asarray(self.law.log10_tail(x - 1, count), np.float64)
            good, better = here <= self.target, before <= self.target
            for mask, edge, value, at_edge, at_value in (
                (good, high, x, at_high, here),
                (better, high, x - 1, at_high, before),
                (~better, low, x - 1, at_low, before),
                (~good, low, x, at_low, here),
            ):
                edge[todo[mask]], at_edge[todo[mask]] = value[mask], at_value[mask]
            middle = np.ceil((low[todo] + high[todo]) / 2)
            with np.errstate(divide="ignore", invalid="ignore"):
                newton = np.ceil(x + (here - self.target) / (before - here))
            guess[todo] = np.where(np.isfinite(newton) & (step % 8 != 0), newton, middle)
            todo = todo[high[todo] - low[todo] > 1]
        with np.errstate(over="ignore"):
            inside, outside = 10.0 ** (at_high - self.target), 10.0 ** (at_low - self.target)
        return high, (1.0 - inside) / (outside - inside)

    def _normal_critical(self, n: Floats) -> Floats:
        z = -float(special.ndtri_exp(self.target * _LN10))
        return np.ceil(n * self.gamma + z * np.sqrt(n * self.gamma * (1 - self.gamma)) + (1 - 2 * self.gamma) * z * z / 6)

    def _at_least(self, greens: Floats, n: Floats, effect: float) -> Floats:
        result = np.where(greens <= 0, 1.0, 0.0)
        inner = (greens > 0) & (greens <= n)
        s, count = greens[inner], n[inner]
        result[inner] = special.betainc(s, count - s + 1.0, self.gamma + effect)
        return result

    def power(self, n: Floats, effect: float) -> Floats:
        """That of the critical number of greens."""
        return self._at_least(self.critical(n)[0], n, effect)

    def bounds(self, n: Floats, effect: float) -> tuple[Floats, Floats]:
        """Two curves that never fall with n, with the power between them.

        Join the points (s, P(S ≥ s)) by straight lines, under the null to G(x), under the alternative to H(x). Let G be
        the target p at x; then the critical number is c = ⌈x⌉ < x + 1, and H(x + 1) ≤ power = H(c) ≤ H(x).

        H(x) is the power of the randomised test of level 10^target, which is the most powerful one by the lemma of Neyman
        and Pearson; a test of n + 1 pairs may ignore one, so that H(x) never falls. H(x + 1) is the power of the
        randomised test of level a(n) = G(x + 1), and never falls if a(n) does not. Write a(n) = g_n(10^target), with
        g_n(G(x)) = G(x + 1) for any x: the slopes of g_n are ratios of neighbouring chances of a binomial, and since these
        are log-concave, g_n is convex. A pair more makes (1 − γ) G(x) + γ G(x − 1) of G(x); so g_{n+1} of that is
        (1 − γ) g_n(G(x)) + γ g_n(G(x − 1)), by convexity at least g_n of the same: a(n + 1) ≥ a(n).
        """
        c, share = self.critical(n)
        less, exact, more = (self._at_least(c + shift, n, effect) for shift in (-1.0, 0.0, 1.0))
        return share * exact + (1 - share) * more, exact + share * (less - exact)

    def last_short(self, first: int, safe: int, effect: float, power: float) -> int:
        """Looks at the feet of the teeth, where the power is lowest."""
        for end in range(safe, first, -_BLOCK):
            n = np.arange(max(first, end - _BLOCK), end, dtype=np.float64)
            ends, share = self.critical(n[[0, -1]])
            c, _ = self.critical(n, np.ceil(np.interp(n, n[[0, -1]], ends - share)))  # nearly straight in n
            feet = np.flatnonzero(np.diff(c, prepend=-1.0))  # where a tooth begins, the power is lowest
            short = feet[self._at_least(c[feet], n[feet], effect) < power]
            if short.size:
                tooth = n[short[-1] :][c[short[-1] :] == c[short[-1]]]
                missing = self._at_least(np.full(tooth.size, c[short[-1]]), tooth, effect) < power
                return int(tooth[missing][-1])
        return first - 1

    def effect_seen(self, n: Floats, power: float) -> Floats:
        """By the inverse of the incomplete beta function. Raises ``ValueError`` where all greens would not do."""
        c, _ = self.critical(n)
        if np.any(c > n):
            most = int(n[c > n].max())
            raise ValueError(
                f"scored={most} pairs are too few for log10_p={self.target:g}: all of them green gives "
                f"{float(self.law.log10_tail(most, most)):.3g}; score more pairs or ask for less"
            )
        return np.asarray(special.betaincinv(c, n - c + 1.0, power), np.float64) - self.gamma

    @property
    def largest_effect(self) -> float:
        """Hardly any red."""
        return 0.999 * (self.law.largest - self.law.mean)

    def expected(self, n: Floats, effect: float) -> Floats:
        """The same in whole greens, rounded down."""
        return np.minimum(np.floor(n * (self.gamma + effect) + 1e-6), n)

    def _divergence(self, effect: float) -> tuple[float, float]:
        rate = self.gamma + effect
        green, red = math.log1p(effect / self.gamma), math.log1p(-effect / (1 - self.gamma))
        # Pinsker's bound holds where the difference of small numbers has no digits left
        return max(rate * green + (1 - rate) * red, 2 * effect * effect), math.sqrt(rate * (1 - rate)) * (green - red)


class Exponentials(SumTest):
    """Gamma(n) under the null, Gamma(n, scale 1 + effect) under the alternative, both in units of the law's scale."""

    def __init__(self, law: Exponential, target: float) -> None:
        super().__init__(law, target)
        self.scale = law.scale

    def critical(self, n: Floats) -> Floats:
        """The total in scales whose log10 p is the target, by Newton's method from Wilson and Hilferty's guess.

        log10 p is concave in the total, so that from the second step on the totals decrease to the root.
        """
        z = -float(special.ndtri_exp(self.target * _LN10))
        total = np.asarray(n * np.maximum(1 - 1 / (9 * n) + z / (3 * np.sqrt(n)), 0.5) ** 3, np.float64)
        for _ in range(100):
            here = np.asarray(self.law.log10_tail(total * self.scale, n), np.float64)
            # density over tail; its last digits may be wrong for large n, they only make the steps less perfect
            hazard = np.exp((n - 1) * np.log(total) - total - special.gammaln(n) - here * _LN10)
            with np.errstate(divide="ignore", over="ignore"):
                step = (here - self.target) * _LN10 / hazard
            step = np.where(np.isfinite(step), np.maximum(step, -0.9 * total), total)
            total = total + step
            if np.all(np.abs(step) <= np.maximum(1e-11 * np.sqrt(n), 1e-15 * total)):
                break
        return total

    def power(self, n: Floats, effect: float) -> Floats:
        """That of the critical total."""
        result = np.zeros(n.size)
        some = n > 0
        total = self.critical(n[some]) / (1 + effect / self.scale)
        result[some] = 10.0 ** np.asarray(tails.log10_gamma_tail(total, n[some]), np.float64)
        return result

    def effect_seen(self, n: Floats, power: float) -> Floats:
        """By the inverse of the incomplete gamma function."""
        return np.asarray((self.critical(n) / special.gammainccinv(n, power) - 1.0) * self.scale, np.float64)

    def _divergence(self, effect: float) -> tuple[float, float]:
        part = effect / self.scale
        return max(part - math.log1p(part), part * part / (2 + 2 * part)), part


class Tilts(SumTest):
    """Any other law, and its tilts as alternatives: both tails by Lugannani and Rice's saddlepoint approximation."""

    def checked_effect(self, effect: float) -> float:
        """The effect, at which the law has a tilt."""
        checked = super().checked_effect(effect)
        try:
            self.law.tilt_of(self.law.mean + effect)
        except ValueError as error:
            raise ValueError(f"effect={effect}: {error}") from error
        return checked

    def _tail(self, theta: float, under: float, n: float) -> float:
        """log10 of the chance of a total n·K′(θ) or more under the tilt ``under``."""
        mean, variance = self.law.tilted(theta).mean, self.law.tilted(theta).variance
        exponent = n * ((theta - under) * mean - float(self.law.cgf(theta)) + float(self.law.cgf(under)))
        u = (theta - under) * math.sqrt(n * variance)
        if abs(u) < 1e-2:
            return float(special.log_ndtr(-u)) / _LN10
        w = math.copysign(math.sqrt(2 * max(exponent, 0.0)), u)
        if w > 0:
            bracket = special.erfcx(w / math.sqrt(2)) / 2 + (1 / u - 1 / w) / math.sqrt(2 * math.pi)
            return min(0.0, (-exponent + math.log(max(bracket, 1e-300))) / _LN10)
        below = special.ndtr(w) - math.exp(-exponent) / math.sqrt(2 * math.pi) * (1 / u - 1 / w)
        return math.log1p(-min(max(below, 0.0), 1 - 1e-16)) / _LN10

    def _critical(self, n: float) -> float | None:
        """The tilt θ at whose mean the tail is the target; None where no total of n scores reaches it."""
        low, high = 0.0, 0.1 / math.sqrt(self.law.variance * n)
        while True:
            finite = math.isfinite(float(self.law.cgf(high))) and high * math.sqrt(self.law.variance) < 1e3
            if not finite:
                high = (low + high) / 2
                if high - low < 1e-12 * high:
                    return None
            elif self._tail(high, 0.0, n) <= self.target:
                return float(optimize.brentq(lambda t: self._tail(t, 0.0, n) - self.target, low, high, rtol=1e-10))
            else:
                low, high = high, 2 * high

    def power(self, n: Floats, effect: float) -> Floats:
        """Approximated as the tail is."""
        under = self.law.tilt_of(self.law.mean + effect)
        tilts = [self._critical(float(count)) if count > 0 else None for count in n]
        return np.array([0.0 if t is None else 10 ** self._tail(t, under, float(c)) for t, c in zip(tilts, n, strict=True)])

    def effect_seen(self, n: Floats, power: float) -> Floats:
        """By bisection. Raises ``ValueError`` where none would do."""
        return np.array([self._seen(float(count), power) for count in n.ravel()]).reshape(n.shape)

    def _seen(self, n: float, power: float) -> float:
        critical = self._critical(n)

        def missing(theta: float) -> float:
            return self._tail(critical or 0.0, theta, n) - math.log10(power)

        high = 2.0 * (critical or 0.0)
        while (
            critical is not None and math.isfinite(float(self.law.cgf(high))) and high * math.sqrt(self.law.variance) < 1e3
        ):
            if missing(high) >= 0:
                return self.law.tilted(float(optimize.brentq(missing, 0.0, high))).mean - self.law.mean
            high *= 1.5
        raise ValueError(f"scored={int(n)} pairs are too few for log10_p={self.target:g}; score more pairs or ask for less")

    def _divergence(self, effect: float) -> tuple[float, float]:
        theta = self.law.tilt_of(self.law.mean + effect)
        tilted = self.law.tilted(theta)
        return theta * tilted.mean - float(self.law.cgf(theta)), theta * math.sqrt(tilted.variance)
