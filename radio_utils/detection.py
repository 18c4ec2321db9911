"""Detection: evidence × watermark → a verdict, and the null audit that stands beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils import evidence as ev
from radio_utils import pvalues
from radio_utils.watermarks import Watermark

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Detection:
    """The verdict of one test.

    ``seen`` positions were looked at, ``scored`` distinct pairs were scored, their scores sum to ``total``.
    ``log10_p`` is exact under the null hypothesis; ``fingerprint`` names the watermark without its key.
    """

    seen: int
    scored: int
    total: float
    log10_p: float
    scheme: str
    window: int
    dedup: ev.Dedup
    fingerprint: str
    evidence: ev.Evidence = field(repr=False, compare=False)

    @property
    def score(self) -> float:
        """Mean score of a scored pair (γ expected under the null for green lists, 1 for Gumbel-max); NaN if none."""
        return self.total / self.scored if self.scored else float("nan")

    @property
    def p_value(self) -> float:
        """The p-value as a float; 0 where it underflows. Quote ``log10_p``."""
        return float(10.0**self.log10_p)


@dataclass(frozen=True, slots=True)
class NullAudit:
    """The same statistic under decoy keys that nobody used: if the test is honest, the p-values are uniform.

    ``log10_p`` [keys] are the p-values as a verdict would quote them. A discrete statistic has p-values that are only
    super-uniform, so ``ks`` tests their randomised version.
    """

    log10_p: Floats
    ks: pvalues.KSResult
    uniform_p: Floats = field(repr=False)

    @property
    def keys(self) -> int:
        """How many decoy keys were tried."""
        return int(self.log10_p.size)

    @property
    def ks_p(self) -> float:
        """p-value of the Kolmogorov–Smirnov test against the uniform distribution."""
        return self.ks.p_value

    @property
    def min_log10_p(self) -> float:
        """The most extreme decoy; about −log10(keys) is expected."""
        return float(self.log10_p.min())


def detect(
    texts: Iterable[ArrayLike],
    wm: Watermark,
    *,
    prompts: Iterable[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    dedup: ev.Dedup = "window+token",
) -> Detection:
    """Test H₀ "these texts were written without this key" on token-id sequences.

    ``texts`` and ``prompts`` are sequences of token-id sequences (lists, arrays, or one 2-D int array), one prompt for
    each text: windows that occur in the prompt are not scored. ``keep`` is the filter φ, an int array [m, k] of the only
    windows to score. ``dedup`` is "window+token", "window", or None, with which p is *not* a p-value.

    Raises ``ValueError`` for ids outside the vocabulary, empty or too short texts, or unequal numbers of prompts.
    """
    return judge(ev.collect(texts, wm.window, wm.vocab_size, prompts=prompts, keep=keep, dedup=dedup), wm)


def judge(found: ev.Evidence, wm: Watermark) -> Detection:
    """The verdict on evidence that is already collected."""
    total = float(wm.scores(found.windows, found.tokens).sum())
    return Detection(
        seen=found.seen,
        scored=len(found),
        total=total,
        log10_p=float(wm.log10_p(total, len(found))),
        scheme=wm.scheme,
        window=wm.window,
        dedup=found.dedup,
        fingerprint=wm.fingerprint,
        evidence=found,
    )


def curve(found: ev.Evidence, wm: Watermark, *, points: int = 60) -> tuple[NDArray[np.int64], Floats]:
    """log10 p after the first n scored pairs, at ``points`` values of n from about 1 to all: (n, log10 p)."""
    if len(found) == 0:
        raise ValueError("evidence is empty; there is no curve to draw")
    if points < 2:
        raise ValueError(f"points must be at least 2, the first and the last pair, got {points}")
    counts = np.unique(np.geomspace(1, len(found), points).round().astype(np.int64))
    totals = np.cumsum(wm.scores(found.windows, found.tokens))[counts - 1]
    return counts, np.asarray(wm.log10_p(totals, counts), np.float64)


def null_audit(texts: Iterable[ArrayLike], wm: Watermark, *, keys: int = 1000, seed: int = 0, **options: Any) -> NullAudit:
    """Run :func:`detect` on the same texts, with the same options, under ``keys`` decoy keys."""
    return audit_evidence(ev.collect(texts, wm.window, wm.vocab_size, **options), wm, keys=keys, seed=seed)


def audit_evidence(found: ev.Evidence, wm: Watermark, *, keys: int = 1000, seed: int = 0) -> NullAudit:
    """The null audit of evidence that is already collected."""
    if keys < 5:
        raise ValueError(f"keys must be at least 5 for a distribution to show, got {keys}")
    if len(found) == 0:
        raise ValueError("evidence is empty; there is nothing to audit")
    decoys = [wm.with_decoy(seed, index) for index in range(keys)]
    totals = np.array([decoy.scores(found.windows, found.tokens).sum() for decoy in decoys])
    log10_p = np.asarray(wm.log10_p(totals, len(found)), np.float64)
    above = np.asarray(wm.log10_p_above(totals, len(found)), np.float64)
    uniform = pvalues.randomised(log10_p, above, np.random.default_rng([seed, keys]))
    return NullAudit(log10_p=log10_p, ks=pvalues.ks_uniform(uniform), uniform_p=uniform)
