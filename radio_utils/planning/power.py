"""Power planning: how much text does Alice need before a radioactivity test is likely to succeed?

A test succeeds when log10 p of the total score S over n distinct pairs is at or below a target. Under the alternative a
pair scores more than under the null by an *effect*:

* green lists: a pair is green with probability γ + effect, so that S ~ Binomial(n, γ + effect);
* Gumbel-max: scores are modelled as exponentials with mean 1 + effect, so that S ~ Gamma(n, scale 1 + effect). Its law
  under the null is exact, this one is an approximation: a watermarked token's score follows from the whole distribution
  that it was drawn from, and is an exponential for none but special ones;
* any other scheme: tilts of its law (:mod:`radio_utils.stats.laws`), and saddlepoint approximations of both tails.

The effect of a measured verdict is ``detection.score`` − γ, or − 1: less the mean of the law. The power, P(log10 p ≤
target), is computed from the exact tails of both laws; a normal approximation serves as a first guess only. What that
takes for granted:

* pairs are independent. They need not all have the same chance of green: if γ + effect is the mean of their chances, the
  power is at least the one given here wherever the critical number of greens is at most the expected one (W. Hoeffding,
  *On the distribution of the number of successes in independent trials*, 1956);
* the effect is known, and the same for the text that is yet to be scored. Text that is read later has rarer windows,
  which B met less often; measure the effect on as much text as can be had, and plan with its lower end.

Contrastive reading weighs pairs by probabilities and is not planned here.

From pairs to tokens: pairs are de-duplicated, so a corpus yields fewer new ones the longer it is read.
:class:`PairYield` carries a measured growth curve on by Heaps' law.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils.stats.power import SumTest
from radio_utils.watermarks import Watermark

Floats = NDArray[np.float64]
_LN10 = float(np.log(10.0))
_MOST = 10**12  # pairs: whole numbers of this size and the tails of their sums still have digits to spare
_EASIEST = -0.301  # a coin reaches it
_FAR = 10.0  # times what was measured: a growth curve says little beyond


class TooManyPairsError(ValueError):
    """More pairs are needed than ``largest`` allows."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a test of a given power needs.

    ``scored`` distinct pairs reach ``target_log10_p`` with probability ``achieved``, at least the ``power`` that was asked
    for, if the mean score of a pair exceeds that of the null by ``effect``. ``log10_p_expected`` is log10 p at the
    expected total, rounded down to a whole number of greens: about half of all runs do better.
    """

    scheme: str
    effect: float
    target_log10_p: float
    power: float
    scored: int
    log10_p_expected: float
    achieved: float


def pairs_needed(wm: Watermark, effect: float, *, log10_p: float = -3.0, power: float = 0.9, largest: int = 10**10) -> Plan:
    """How many distinct pairs to score for log10 p to reach ``log10_p`` with probability at least ``power``.

    The number of greens is whole, so the power of a green-list test is a saw-tooth: it grows with n as long as the
    critical number of greens stays the same and drops where that goes up by one. ``scored`` is the smallest n from which
    on the power never falls below ``power`` again, however many more pairs are scored; a smaller n may have it by luck.
    (That no later tooth is missed is proved, not sampled: see :meth:`radio_utils.stats.power.Greens.bounds`.) For
    Gumbel-max the power has no teeth and ``scored`` is the first n that has it.

    Parameters
    ----------
    wm : Watermark
        The watermark whose key is asked about.
    effect : float
        Excess of the mean score over the null's (γ for green lists, 1 for Gumbel-max).
    log10_p : float
        The log10 p to be reached.
    power : float in (0, 1)
        Probability of reaching it.
    largest : int
        Give up above so many pairs.

    Returns
    -------
    Plan
        ``scored`` pairs, and the power ``achieved`` with them.

    Raises
    ------
    ValueError
        For an effect that is not positive or leaves γ + effect at 1 or above, for ``log10_p`` above −0.301 (p above ½),
        for a power outside (10^log10_p, 1); the subclass :class:`TooManyPairsError` where more than ``largest`` pairs
        would be needed.

    Notes
    -----
    Exact for the watermark's law; no normal approximation.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> plan = ru.planning.pairs_needed(wm, effect=0.01, log10_p=-5, power=0.9)
    >>> plan.scored
    58487
    """
    test = _test_of(wm, log10_p)
    effect = test.checked_effect(effect)
    _check_power(power, log10_p)
    most = _one("largest", largest)
    guess = test.guess(effect, power)

    def upper(n: Floats) -> NDArray[np.bool_]:
        return np.asarray(test.bounds(n, effect)[1] >= power)

    def lower(n: Floats) -> NDArray[np.bool_]:
        return np.asarray(test.bounds(n, effect)[0] >= power)

    found = most + 1
    if upper(np.array([float(most)]))[0]:
        first = _first(upper, 0, most, guess)  # no smaller n has the power
        safe, step = first, math.ceil(2.0 / effect)  # the two curves are about 2/effect pairs apart
        while not lower(np.array([float(safe)]))[0]:
            below, safe, step = safe, first + step, 2 * step
        if safe > first:
            safe = _first(lower, below, safe, None)  # every n from here on has the power
        found = test.last_short(first, safe, effect, power) + 1
    if found > most:
        about = f"about {guess:.2g}" if math.isfinite(guess) and guess > most else "more"
        raise TooManyPairsError(
            f"effect={effect:g} with power={power:g} at log10_p={log10_p:g} needs {about} pairs, above largest={most}; "
            "score more text and raise largest, or make the effect larger: a larger share ρ of Bob's data, or supervised "
            "access (d > 0) with the filter φ"
        )
    n = np.array([float(found)])
    return Plan(
        scheme=wm.scheme,
        effect=effect,
        target_log10_p=float(log10_p),
        power=float(power),
        scored=found,
        log10_p_expected=float(wm.log10_p(test.expected(n, effect)[0], found)),
        achieved=float(test.power(n, effect)[0]),
    )


def power_at(wm: Watermark, effect: float, scored: ArrayLike, *, log10_p: float = -3.0) -> Any:
    """Probability that the test reaches ``log10_p`` with ``scored`` distinct pairs: a number, or an array like ``scored``.

    For green lists this is the saw-tooth itself.

    Parameters
    ----------
    wm, effect
        As in :func:`pairs_needed`.
    scored : array_like of int
        Numbers of distinct pairs.
    log10_p : float
        The log10 p to be reached.

    Returns
    -------
    float or float array like ``scored``
        Probability of log10 p ≤ ``log10_p``.

    Raises
    ------
    ValueError
        As :func:`pairs_needed` does, and for numbers of pairs that are negative or not whole.

    Notes
    -----
    Exact for the watermark's law.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> round(float(ru.planning.power_at(wm, 0.01, 30_000, log10_p=-3)), 2)
    0.81
    """
    test = _test_of(wm, log10_p)
    effect = test.checked_effect(effect)
    n = _whole("scored", scored, least=0)
    found = test.power(n.ravel(), effect).reshape(n.shape)
    return float(found) if n.ndim == 0 else found


def effect_seen(wm: Watermark, scored: ArrayLike, *, log10_p: float = -3.0, power: float = 0.9) -> Any:
    """The smallest effect that ``scored`` distinct pairs find at ``log10_p`` with probability ``power``.

    A number, or an array like ``scored``: the minimal detectable effect, the inverse of :func:`power_at` in the effect.
    A verdict without significance says that the effect is probably smaller than this, not that it is 0. Raises
    ``ValueError`` where no effect would be found, since even all greens among so few pairs do not reach ``log10_p``.

    Parameters
    ----------
    wm : Watermark
        The watermark whose key is asked about.
    scored : array_like of int
        Numbers of distinct pairs.
    log10_p, power
        As in :func:`pairs_needed`.

    Returns
    -------
    float or float array like ``scored``
        Excess of the mean score.

    Notes
    -----
    The inverse of :func:`power_at`.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> round(float(ru.planning.effect_seen(wm, 30_000, log10_p=-3)), 3)
    0.011
    """
    test = _test_of(wm, log10_p)
    _check_power(power, log10_p)
    n = _whole("scored", scored, least=1)
    found = test.effect_seen(n.ravel(), power).reshape(n.shape)
    return float(found) if n.ndim == 0 else found


def simulate_power(
    wm: Watermark,
    effect: float,
    scored: int,
    *,
    log10_p: float = -3.0,
    repeats: int = 10_000,
    generator: np.random.Generator,
) -> float:
    """:func:`power_at` by drawing ``repeats`` totals under the alternative: the share whose log10 p reaches ``log10_p``.

    Its standard error is √(power (1 − power) / repeats).

    Parameters
    ----------
    wm, effect
        As in :func:`pairs_needed`.
    scored : int
        Number of distinct pairs.
    log10_p : float
        The log10 p to be reached.
    repeats : int
        How many totals are drawn.
    generator : numpy.random.Generator
        Where the draws come from.

    Returns
    -------
    float
        Share of the totals whose log10 p reaches ``log10_p``.

    Raises
    ------
    ValueError
        As :func:`pairs_needed` does.

    Notes
    -----
    An independent check of :func:`power_at`, with which it shares the model of the scores and the p-value alone.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> rng = np.random.default_rng(0)
    >>> 0.5 < ru.planning.simulate_power(wm, 0.01, 30_000, repeats=500, generator=rng) < 1
    True
    """
    test = _test_of(wm, log10_p)
    effect = test.checked_effect(effect)
    n, draws = _one("scored", scored), _one("repeats", repeats)
    if not isinstance(generator, np.random.Generator):
        raise ValueError(f"generator must be a numpy Generator, got {generator!r}; use numpy.random.default_rng(seed)")
    totals = wm.law.tilted_to(wm.law.mean + effect).draw(n, draws, generator)
    return float(np.mean(np.asarray(wm.log10_p(totals, np.full(draws, n))) <= log10_p))


# ----------------------------------------------------------------------------------------------------------------------
# Tokens


@dataclass(frozen=True, slots=True)
class TokensNeeded:
    """``tokens`` to read for ``pairs`` distinct ones, which is ``beyond`` times what the growth curve was measured on."""

    tokens: int
    pairs: int
    beyond: float

    @property
    def extrapolated(self) -> bool:
        """Whether this is more than 10 times what was measured: then ``tokens`` is a guess, and most likely too small."""
        return self.beyond > _FAR


@dataclass(frozen=True, slots=True)
class PairYield:
    """Distinct pairs n among t tokens read, by Heaps' law n = K·t^β: ``scale`` is K, ``exponent`` is β, in (0, 1].

    The law was found for the distinct words of a growing text (H. S. Heaps, *Information Retrieval: Computational and
    Theoretical Aspects*, 1978). It is an empirical one, and pairs follow it over a limited range only: the curve bends
    down on log-log axes, the sooner the shorter the window and the more repetitive the text, so that **a law that is
    carried far promises more pairs than come**. Hence the fit looks at the end of the measured curve; ``bend`` is the
    exponent there less that of the whole curve. A clearly negative bend says that the curve has not settled: then
    :meth:`tokens_for` is a lower bound. ``misfit`` is the root mean square of ln(measured / fitted).

    Where a ``curve`` of (tokens, pairs) was measured it is read off, between its points along straight lines, which asks
    for a few tokens too many; the law begins at its end.

    A curve that is measured with prompts excluded or under the filter φ holds for text that is read in the same way.
    """

    scale: float
    exponent: float
    measured_tokens: int = 0
    measured_pairs: int = 0
    misfit: float = 0.0
    bend: float = 0.0
    curve: tuple[tuple[int, int], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be positive and finite (K of n = K·t^β), got {self.scale}")
        if not 0 < self.exponent <= 1:
            raise ValueError(f"exponent must lie in (0, 1] (β of n = K·t^β), got {self.exponent}")

    @classmethod
    def fit(cls, counts: ArrayLike, scored: ArrayLike, *, span: float = 4.0) -> PairYield:
        """The law of a measured growth curve: ``counts`` tokens read [m] gave ``scored`` distinct pairs [m].

        Least squares of ln n on ln t over the points within the last factor ``span`` of tokens, three at least;
        ``span=math.inf`` takes the whole curve. An exponent above 1, which de-duplicated pairs cannot keep up, becomes 1.

        Raises ``ValueError`` for fewer than 3 points, for counts that do not grow, for pairs that shrink in number or
        outnumber the tokens, and for a curve that is flat at its end.
        """
        t, n = _whole("counts", counts, least=1), _whole("scored", scored, least=1)
        if t.ndim != 1 or t.shape != n.shape or t.size < 3:
            raise ValueError(
                f"counts and scored must be two rows of equal length, 3 points at least, got shapes {list(t.shape)} and "
                f"{list(n.shape)}; collect evidence after each part of the text"
            )
        if np.any(np.diff(t) <= 0) or np.any(np.diff(n) < 0):
            raise ValueError("counts must increase, and scored must not decrease, along a growth curve; sort the points")
        if np.any(n > t):
            worst = int(np.argmax(n - t))
            raise ValueError(
                f"scored[{worst}]={n[worst]:g} exceeds counts[{worst}]={t[worst]:g}; a token makes one pair at most"
            )
        if not span > 1:
            raise ValueError(f"span must exceed 1 (a factor of tokens; math.inf takes the whole curve), got {span}")
        x, y = np.log(t), np.log(n)
        last = min(int(np.searchsorted(t, t[-1] / span)), t.size - 3)
        slope = _slope(x[last:], y[last:])
        if slope <= 1e-6:
            raise ValueError(
                f"scored stays at {n[-1]:g} pairs over the last {t.size - last} points; this kind of text holds no more, "
                "read text of another kind"
            )
        exponent = min(slope, 1.0)
        level = float(np.mean(y[last:] - exponent * x[last:]))
        return cls(
            scale=math.exp(level),
            exponent=exponent,
            measured_tokens=int(t[-1]),
            measured_pairs=int(n[-1]),
            misfit=float(np.sqrt(np.mean((y[last:] - level - exponent * x[last:]) ** 2))),
            bend=slope - _slope(x, y),
            curve=tuple(zip(t.astype(int).tolist(), n.astype(int).tolist(), strict=True)),
        )

    def tokens_for(self, pairs: int) -> TokensNeeded:
        """Tokens to read for so many distinct pairs. Raises ``ValueError`` where it would take more than 10¹⁸."""
        wanted = int(_one("pairs", pairs))
        log_tokens = (math.log(wanted) - math.log(self.scale)) / self.exponent
        if log_tokens > 18 * _LN10:
            raise ValueError(
                f"pairs={wanted} would take 10^{log_tokens / _LN10:.0f} tokens at exponent={self.exponent:.3g}; this kind "
                "of text runs out of new pairs, read text of another kind"
            )
        # a whole number is not pushed up by its last bits
        tokens = max(wanted, math.ceil(math.exp(log_tokens) * (1.0 - 1e-12)))
        if self.curve and wanted > self.measured_pairs:
            tokens = max(tokens, self.measured_tokens)
        elif self.curve:
            (t0, n0), (t1, n1) = next(
                (below, above) for below, above in itertools.pairwise(((0, 0), *self.curve)) if above[1] >= wanted
            )
            tokens = max(wanted, t0 + -(-(wanted - n0) * (t1 - t0) // (n1 - n0)))
        return TokensNeeded(tokens, wanted, tokens / self.measured_tokens if self.measured_tokens else math.inf)


def tokens_needed(plan: Plan, yield_: PairYield | float) -> TokensNeeded:
    """Tokens to read for the pairs of a plan.

    Parameters
    ----------
    plan : Plan
        What :func:`pairs_needed` returned.
    yield_ : PairYield or float in (0, 1]
        Distinct pairs that so many tokens give, or pairs a token: a constant, whose answer counts as extrapolated.

    Returns
    -------
    TokensNeeded
        The number of tokens, and whether it lies beyond what was measured.

    Raises
    ------
    ValueError
        For a yield that is neither.

    Notes
    -----
    The growth of distinct pairs with text is measured, not assumed.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> plan = ru.planning.pairs_needed(wm, effect=0.01)
    >>> ru.planning.tokens_needed(plan, 0.5).tokens == 2 * plan.scored
    True
    """
    if isinstance(yield_, PairYield):
        return yield_.tokens_for(plan.scored)
    if not 0 < yield_ <= 1:
        raise ValueError(f"yield_ must be a PairYield or lie in (0, 1] (distinct pairs per token), got {yield_}")
    return PairYield(scale=float(yield_), exponent=1.0).tokens_for(plan.scored)


def _slope(x: Floats, y: Floats) -> float:
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))


# ----------------------------------------------------------------------------------------------------------------------
# Numbers


def _test_of(wm: Watermark, log10_p: float) -> SumTest:
    if not (math.isfinite(log10_p) and log10_p <= _EASIEST):
        raise ValueError(f"log10_p must be finite and at most {_EASIEST} (p ≤ 0.5; -3 means p ≤ 0.001), got {log10_p}")
    return wm.law.test_at(float(log10_p))


def _first(holds: Callable[[Floats], NDArray[np.bool_]], low: int, high: int, guess: float | None) -> int:
    """The smallest n in (low, high] from which on ``holds`` is true: it is false up to low, and true at high.

    A bisection into thirty-three parts at a time, since thirty-two tails in one call cost little more than one.
    """
    while high - low > 1:
        points = np.linspace(low, high, 34)
        if guess is not None and math.isfinite(guess):
            points, guess = guess * np.geomspace(0.5, 2.0, 32), None
        points = np.unique(np.clip(np.round(points), low + 1, high - 1))
        true = holds(points)
        if true.any():
            high = int(points[np.argmax(true)])
        if (before := points[points < high]).size:  # none where an approximation is true early and false again
            low = int(before[-1])
    return high


def _check_power(power: float, log10_p: float) -> None:
    if not (0 < power < 1 and math.log10(power) > log10_p):
        raise ValueError(
            f"power must lie strictly between the target p (10^{log10_p:g}, had without any effect) and 1, got {power}"
        )


def _whole(name: str, values: ArrayLike, *, least: int) -> Floats:
    """The values as float64, whole numbers from ``least`` to 10¹², or an error that names them."""
    array = np.asarray(values, np.float64)
    bad = ~((array >= least) & (array <= _MOST) & (array == np.floor(array)))  # a NaN is bad
    if array.size == 0 or np.any(bad):
        worst = f"{array[bad].flat[0]:g}" if array.size else "none"
        raise ValueError(f"{name} must be whole numbers from {least} to 10^12, got {worst}")
    return array


def _one(name: str, value: int) -> int:
    """A single whole number from 1 to 10¹²."""
    array = _whole(name, value, least=1)
    if array.ndim:
        raise ValueError(f"{name} must be a single number, got shape {list(array.shape)}")
    return int(array)
