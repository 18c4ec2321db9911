"""Anytime-valid testing: evidence that may be watched as it comes, and stopped at any moment.

A p-value holds for an amount of text that was fixed in advance. An *e-process* is a bet against H₀: Alice starts with one
unit of wealth, and before each fresh pair is scored she stakes part of it on a high score, at odds that are fair under
H₀. Her wealth E is then a non-negative martingale, and by Ville's inequality

    P(E ever reaches 1/α) ≤ α  under H₀,

whatever she looks at, and whenever she stops (J. Ville, *Étude critique de la notion de collectif*, 1939; V. Vovk and
R. Wang, *E-values: calibration, combination and applications*, 2021). It costs some evidence against a test whose length
was fixed in advance, and saves all the queries after the point where it suffices. Chapter "Closed model".

The stake: E is an average of likelihood ratios over a grid of alternatives, any of which would be fair alone. The average
depends on the number of pairs and their total score only.

The odds are fair only if each score is independent of those before it. Lists of :mod:`radio_utils.compat` hold a fixed
number of greens, so what one list has said of some tokens shifts the odds of the others: each list may be asked once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from radio_utils import evidence as ev
from radio_utils.stats.laws import Law
from radio_utils.watermarks import Watermark

Floats = NDArray[np.float64]
_LN10 = float(np.log(10.0))


class EProcess:
    """E-values of (total score, count) pairs for one scheme.

    The alternatives are tilts of the scheme's law (:meth:`radio_utils.stats.laws.Law.tilted`): for a green list rates of
    green γ′ > γ, for Gumbel-max exponentials with a mean above 1. Each E grows with the total score, so scores that are
    rounded down (:class:`radio_utils.compat.ReleasedGumbelMax`) are allowed: E is then a supermartingale.

    Parameters
    ----------
    wm : Watermark
        The watermark whose key is asked about.
    dedup : {'window+token', 'window', None}
        What counts once: a pair, a window, or nothing, and then p is no p-value.

    Raises
    ------
    ValueError
        For ``dedup=None``, and for lists of a fixed number of greens unless a window is scored once.

    Notes
    -----
    A. Wald, *Sequential Analysis*, 1947; J. Ville, *Étude critique de la notion de collectif*, 1939.

    Examples
    --------
    >>> import numpy as np
    >>> import radio_utils as ru
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> bets = ru.EProcess(wm)
    >>> round(float(bets.log10_e(total=400, count=1000)), 1)
    22.1
    """

    def __init__(self, wm: Watermark, *, dedup: ev.Dedup = "window+token") -> None:
        ev.check_dedup(dedup)
        if dedup is None:
            raise ValueError("dedup=None scores repeats, at which no odds are fair; use 'window+token' or 'window'")
        if wm.law.without_return and dedup != "window":
            raise ValueError(
                f"dedup={dedup!r} asks one list of the scheme {wm.scheme!r} several times, and its lists hold a fixed "
                "number of greens: the odds are then not fair; use dedup='window'"
            )
        self._bet(wm.law)

    @classmethod
    def of(cls, law: Law) -> EProcess:
        """Bets on independent scores of a law."""
        made = cls.__new__(cls)
        made._bet(law)
        return made

    def _bet(self, law: Law) -> None:
        # the tilted law of a score s has density exp(θs − K(θ)) against the null's: that is the likelihood ratio
        self._per_score = law.bets
        self._per_count = -np.asarray(law.cgf(self._per_score), np.float64)

    def log10_e(self, total: ArrayLike, count: ArrayLike) -> Any:
        """log10 E after ``count`` fresh pairs with this total score; scalars or arrays, finite.

        Raises ``ValueError`` for totals or counts that are negative, NaN or infinite.
        """
        s, n = np.broadcast_arrays(np.asarray(total, np.float64), np.asarray(count, np.float64))
        if not np.all(np.isfinite(s)) or not np.all(np.isfinite(n)) or np.any(n < 0) or np.any(s < 0):
            raise ValueError("total and count must be numbers that are finite and not negative")
        ratios = n[..., None] * self._per_count + s[..., None] * self._per_score
        return (special.logsumexp(ratios, axis=-1) - np.log(self._per_score.size))[()] / _LN10

    def path(self, scores: ArrayLike) -> Floats:
        """log10 E after each of a row of scores [n]: float array [n], in linear time."""
        each = np.asarray(scores, np.float64)
        return np.asarray(self.log10_e(np.cumsum(each), np.arange(1, each.size + 1)), np.float64)
