"""Soft reading: what B expects after each window, all of it, and no reference.

Hard reading scores B's likeliest token of a place. The others are not silent: where the list of W was learned, all green
tokens gained a little. So B's probabilities p(v) after the window W are averaged over the places of W that may be scored,
and the statistic is S = Σ_W Σ_v q(W, v) · mark(W, v), with weights q that B's probabilities alone decide.

The weights
-----------
What a mark adds to a probability grows with it, Δp ∝ p. What hides it is noise of two kinds: of learning, with variance
∝ p, and the ignorance of what B would expect without the mark, with variance ∝ p², since there is no reference. A weight
that is optimal for a small effect is signal times evidence over noise, Δp · p / (c·p + p²), hence p/(p + c): it grows with
the probability while that is far below c and saturates above. Every window then gets the same Σ_v q². Measured in the
laptop world (:data:`HALF`; both seeds, marked text and plain): weights p, √p and p(1 − p) do worse, and so does a further
factor for the entropy of B's prediction; equal windows do as well as unequal ones. What is too certain has one token and
cannot outweigh the rest; what is too flat stays below c, and spreads over many tokens that say little each.

When the p-value is valid
-------------------------
On plain text p is exact (:meth:`radio_utils.stats.laws.Law.weighted`). On marked text the places are those of sealed lists
(:mod:`radio_utils.predictions`), chosen by the texts alone, and S − E S is a martingale; *which* weights come may depend on
lists that were opened before (page "When is a p-value valid?"). All windows have one variance, so that nothing that B does
can stop the sum at a good moment. ``log10_p`` is the tail for the weights as they came. ``log10_bound`` needs no such
clause: E exp(θS − Σ K_W(θ)) = 1 for each θ however weights depend on the past, so that the mean over a fixed grid of θ is
an e-value (V. de la Peña, T. Lai and Q.-M. Shao, *Self-normalized processes*, 2009, chapter 11), whose inverse bounds p. It
lies a few decades higher by nature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radio_utils import contrast
from radio_utils import evidence as ev
from radio_utils.stats.laws import NullSum
from radio_utils.watermarks import Watermark

HALF = 0.05  # c: the probability whose weight is half of the largest
UNIT = 32  # √Σq² of each window: rounding to whole numbers costs less than 1 % of the power
_TILTS = np.geomspace(1e-3, 4.0, 24) / UNIT  # θ, in standard deviations of a window's sum
FEW = 16  # tokens of a place that are looked at where each has to be checked by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftReading(contrast.WeightedVerdict):
    """The verdict of soft reading.

    ``log10_p`` is exact for weights that do not depend on the key, as on plain text, and ``log10_bound`` an upper bound for
    weights that may depend on lists opened before (see the module). ``text_log10_p`` is None where the text may be marked.
    """

    log10_bound: float


def weights_of(packing: ev.Packing, words: ev.Words, probabilities: NDArray[np.float64], seen: int) -> contrast.Contrast:
    """Whole-number weights of pairs, from B's mean probabilities [n] after their windows; ``words`` [n] are in order."""
    raw = probabilities / (probabilities + HALF)
    starts = np.flatnonzero(ev.run_begins(packing.windows_of(words)))
    norms = np.sqrt(np.add.reduceat(raw**2, starts)) if starts.size else np.zeros(0)
    norms = np.repeat(np.maximum(norms, 1e-12), np.diff(starts, append=raw.size))
    q = np.rint(UNIT * raw / norms).astype(np.int64)
    return contrast.Contrast(ev.Evidence(packing, (words[q > 0],), seen), q[q > 0])


def judge_soft(found: contrast.Contrast, wm: Watermark, *, text_log10_p: float | None = None) -> SoftReading:
    """The verdict on soft weights that are already collected.

    The null audit of a soft reading is that of its weights, :func:`radio_utils.contrast.audit_contrast`.

    Parameters
    ----------
    found : Contrast
        The weighted pairs, as :func:`radio_utils.reading.read_soft` gives them.
    wm : Watermark
        The watermark whose key is asked about.
    text_log10_p : float, optional
        log10 p of the texts themselves, where they are said to be plain.

    Returns
    -------
    SoftReading
        The weighted sum and its log10 p.

    Raises
    ------
    ValueError
        For pairs of another window or vocabulary than ``wm``'s.

    Notes
    -----
    The weights have seen no key. Where pairs of different windows are one draw under this key, their weights add up.
    """
    null, raw = contrast.null_of(found, wm)
    return SoftReading(
        **contrast.verdict_on(found, wm, null, raw),
        log10_bound=_log10_bound(null, raw, wm) if found.weights.size else 0.0,
        text_log10_p=text_log10_p,
    )


def _log10_bound(null: NullSum, total: int, wm: Watermark) -> float:
    """log10 of the inverse of the mean e-value over the grid of tilts, at most 0."""
    values, chances = wm.law.mark_distribution
    tilts = _TILTS / math.sqrt(float(chances @ (values - values @ chances) ** 2))
    logs = [theta * total - null.log_mgf(float(theta)) for theta in tilts]
    return min(0.0, -float(np.logaddexp.reduce(logs) - math.log(len(logs))) / math.log(10.0))
