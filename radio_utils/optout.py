"""How many of Alice's texts carry no mark: users may opt out of it, and a log does not always say who did.

Each text has a total score s of n distinct pairs. Without the mark the total has the law of H₀; with it, scores follow the
law tilted by some θ > 0 (:meth:`radio_utils.stats.laws.Law.tilted`), with the likelihood ratio exp(θs − nK(θ)). How strong
the mark is differs from text to text, so the θ of the marked ones has a distribution of its own, found by maximum
likelihood over a grid (J. Kiefer and J. Wolfowitz, *Consistency of the maximum likelihood estimator in the presence of
infinitely many incidental parameters*, 1956). The grid begins at a third of the common θ that fits best: what is marked
more faintly than that counts as unmarked, for no data tell the two apart. The interval is that of the profile likelihood.

It is an estimate for planning and decides no verdict: texts that look unmarked must stay in a test (page "When is a p-value
valid?": no text is chosen by its mark).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from radio_utils import detection
from radio_utils.stats.laws import Law
from radio_utils.watermarks import Watermark

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SHARES = np.linspace(0.0, 1.0, 101)  # at which the profile likelihood is worked out
_STRENGTHS = 13  # tilts of marked texts
_SPAN = 3.0  # from a third of the common tilt to three times it
_ROUNDS = 40  # of expectation and maximisation at each share
CONFIDENCE = 0.95  # of the interval
MOST = 1000  # texts that are looked at: an estimate to a hundredth needs no more


@dataclass(frozen=True, slots=True)
class UnmarkedShare:
    """The share of texts without the mark: ``share``, in [``low``, ``high``] with :data:`CONFIDENCE`, from ``texts`` texts.

    Texts that are marked too faintly to tell count as unmarked.
    """

    share: float
    low: float
    high: float
    texts: int
    confidence: float = CONFIDENCE


def unmarked_share(
    texts: Sequence[ArrayLike],
    wm: Watermark,
    *,
    prompts: Sequence[ArrayLike] | None = None,
) -> UnmarkedShare:
    """Estimate what share of the texts was written without the mark.

    ``texts`` are token ids, each with its prompt if ``prompts`` are given; those too short for a pair are left out, and of
    more than :data:`MOST` so many are looked at, evenly spaced. The interval takes them for independent of one another.

    Raises ``ValueError`` for ids outside the vocabulary, unequal numbers of prompts, or no text that holds a pair.

    >>> import numpy as np
    >>> import radio_utils as ru
    >>> from radio_utils import optout
    >>> wm = ru.GreenList(key="alice", vocab_size=1000, window=1)
    >>> texts = np.random.default_rng(0).integers(0, 1000, (100, 60))
    >>> optout.unmarked_share(texts, wm).high
    1.0
    """
    if prompts is not None and len(prompts) != len(texts):
        raise ValueError(f"prompts and texts must be equal in number, got {len(prompts)} and {len(texts)}")
    shortest = 1 if wm.marks_start and prompts is not None else wm.window + 1
    long = [i for i in range(len(texts)) if len(texts[i]) >= shortest]  # type: ignore[arg-type]
    if not long:
        raise ValueError(f"no text is longer than the watermark's window={wm.window}; there is no mark to look for")
    chosen = [long[i] for i in np.unique(np.linspace(0, len(long) - 1, min(MOST, len(long))).astype(int))]
    found = [detection.detect([texts[i]], wm, prompts=None if prompts is None else [prompts[i]]) for i in chosen]
    kept = [one for one in found if one.scored]
    return share_of([one.total for one in kept], [one.scored for one in kept], wm.law)


def share_of(totals: ArrayLike, counts: ArrayLike, law: Law) -> UnmarkedShare:
    """The share of texts without the mark, from each one's total score [n] and number of distinct pairs [n].

    ``law`` is that of a score under the null hypothesis. Raises ``ValueError`` for unequal, empty rows.
    """
    s, n = np.asarray(totals, np.float64), np.asarray(counts, np.float64)
    if s.ndim != 1 or s.shape != n.shape or not s.size:
        raise ValueError(f"totals and counts must be two equal rows of at least one text, got {s.shape} and {n.shape}")
    common = _common_tilt(s, n, law)
    tilts = common * np.geomspace(1.0 / _SPAN, _SPAN, _STRENGTHS)
    logs = _log_ratios(s, n, law, tilts[np.isfinite(law.cgf(tilts))])
    profile = _profile(logs)
    best = int(np.argmax(profile))
    inside = np.flatnonzero(2.0 * (profile[best] - profile) <= stats.chi2.ppf(CONFIDENCE, 1))
    return UnmarkedShare(
        share=float(_SHARES[best]),
        low=float(_SHARES[inside[0]]),
        high=float(_SHARES[inside[-1]]),
        texts=int(s.size),
    )


def _log_ratios(s: Floats, n: Floats, law: Law, tilts: Floats) -> Floats:
    """Log likelihood of each text under each tilt against H₀: [n, tilts]."""
    found: Floats = np.outer(s, tilts) - np.outer(n, law.cgf(tilts))
    return found


def _common_tilt(s: Floats, n: Floats, law: Law) -> float:
    """Of the tilts that an e-process bets on, that which with a share of unmarked texts fits best."""
    bets = law.bets
    logs = _log_ratios(s, n, law, bets)
    shares = _SHARES[1:-1:10]
    fits = [np.logaddexp(np.log(shares)[:, None], np.log1p(-shares)[:, None] + one).sum(axis=1).max() for one in logs.T]
    return float(bets[int(np.argmax(fits))])


def _profile(logs: Floats) -> Floats:
    """The largest log likelihood at each share of unmarked texts, over all distributions of the tilts: [shares]."""
    scale = np.maximum(logs.max(axis=1), 0.0)
    marked, unmarked = np.exp(logs - scale[:, None]), np.exp(-scale)
    found = np.zeros(_SHARES.size)
    weights = np.full(logs.shape[1], 1.0 / logs.shape[1])
    for i, share in enumerate(_SHARES):
        for _ in range(_ROUNDS):
            mixed = np.maximum(share * unmarked + (1.0 - share) * (marked @ weights), 1e-300)
            weights = np.maximum(weights * (((1.0 - share) / mixed) @ marked), 1e-12)
            weights /= weights.sum()
        with np.errstate(divide="ignore"):
            found[i] = float((np.log(share * unmarked + (1.0 - share) * (marked @ weights)) + scale).sum())
    return found
