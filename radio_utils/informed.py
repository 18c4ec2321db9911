"""Informed scores for Gumbel-max: what Alice's own probability of a token says of its r.

Gumbel-max emits the token v with the largest r^(1/p). If p was the probability of v, the r of an emitted v has density
r^(1/p − 1)/p on (0, 1) with the key, and 1 without it. So of a share ε of tokens that follow the key, each is worth

    s(r) = log(1 + ε·(r^(1/p − 1)/p − 1)),

the best score there is for that ε (Neyman and Pearson): a token that was certain anyway (p = 1) tells nothing and scores 0,
where the usual score −ln(1 − r) adds noise. It needs p. Of her own text, or of a suspect's answers, Alice has it from her
own model, which reads what was written; a wrong p costs power and nothing else, since for *every* p

    E exp s = 1 − ε + ε ∫ r^(1/p − 1)/p dr = 1  under H₀.

Hence exp s is an e-value, and so is its product over distinct pairs, whose r are independent under H₀; the mean over a few
ε is one too. By Markov's inequality min(1, 1/E) is a p-value (V. Vovk and R. Wang, *E-values: calibration, combination and
applications*, 2021), valid at any size; it is some decades short of the exact tail of the sum, which is not calculated. A
pair that occurs at several places has several p: its e-value is their mean.

H₀ needs what every test here needs: text, prompts and model know nothing of the key. Of prompts that were written under
it, pairs that they show are left out (:mod:`radio_utils.shown`); for the others r is at most as large as the prior says,
and E can only fall. Chapter "Closed model".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from radio_utils import decoding
from radio_utils import evidence as ev
from radio_utils.shown import shown_by
from radio_utils.suspects.forward import read
from radio_utils.watermarks import GumbelMax

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

SHARES = (0.01, 0.03, 0.1, 0.3, 0.9)  # ε: from a suspect that learned a little to a text that follows the key
_LEAST = 1e-9  # smaller p are taken for this one
_LN10 = float(np.log(10.0))


def log_ratio(r: ArrayLike, p: ArrayLike) -> Floats:
    """Log of the density of an emitted token's r: (1/p − 1)·log r − log p, for r in (0, 1) and p in (0, 1]."""
    chance = np.clip(np.asarray(p, np.float64), _LEAST, 1.0)
    result: Floats = (1.0 / chance - 1.0) * np.log(np.asarray(r, np.float64)) - np.log(chance)
    return result


@dataclass(frozen=True)
class Informed:
    """Distinct pairs and the model's probability of each at each of its places; they depend on no key.

    ``pairs`` are the distinct pairs; ``owner`` [m] is the pair of each place and ``chances`` [m] the probability there.
    """

    pairs: ev.Evidence
    owner: NDArray[np.int64]
    chances: Floats


@dataclass(frozen=True, slots=True)
class InformedVerdict:
    """The verdict of informed scores.

    ``seen`` places were looked at, ``scored`` distinct pairs scored. ``log10_e`` is log10 of the evidence E, the mean over
    the shares ε, and ``log10_p`` = min(0, −log10 E). ``by_share`` are log10 E of each ε; the best of them is no e-value.
    """

    seen: int
    scored: int
    log10_e: float
    log10_p: float
    by_share: tuple[float, ...]
    scheme: str
    window: int
    fingerprint: str
    informed: Informed = field(repr=False, compare=False)


def detect_informed(
    texts: Sequence[ArrayLike],
    wm: GumbelMax,
    model: Any,
    *,
    prompts: Sequence[ArrayLike] | None = None,
    prompts_marked: bool = True,
    drawn: Sequence[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    sampling: decoding.Sampling | None = None,
    shares: Sequence[float] = SHARES,
    batch_size: int = 64,
    progress: str | None = None,
) -> InformedVerdict:
    """Test H₀ "these texts were written by somebody who never met the key" with what ``model`` expects at each token.

    ``texts`` are token-id sequences: texts whose mark is looked for, or a suspect's answers to ``prompts``, one for each.
    ``model`` is Alice's own, without her mark; ``sampling`` is how she draws. ``prompts_marked`` and ``drawn`` are those of
    :func:`radio_utils.querying.count_answers`. ``keep`` is the filter φ; ``shares`` are the ε, chosen in advance.

    Raises ``ValueError`` for another scheme than :class:`radio_utils.watermarks.GumbelMax`, shares outside (0, 1), texts
    without a pair, ids outside the vocabulary, or unequal numbers of prompts and texts.
    """
    _check(wm, shares)
    found = collect_informed(
        texts, model, wm.window, wm.vocab_size, prompts=prompts, prompts_marked=prompts_marked, drawn=drawn, keep=keep,
        sampling=sampling, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    return judge_informed(found, wm, shares=shares)


def collect_informed(
    texts: Sequence[ArrayLike],
    model: Any,
    window: int,
    vocab_size: int,
    *,
    prompts: Sequence[ArrayLike] | None = None,
    prompts_marked: bool = True,
    drawn: Sequence[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    sampling: decoding.Sampling | None = None,
    batch_size: int = 64,
    progress: str | None = None,
) -> Informed:
    """The pairs whose window lies wholly inside a text, and the model's probabilities. No key is needed."""
    rows = ev.checked_texts("texts", texts, vocab_size, shortest=0)
    before = [np.zeros(0, np.int64)] * len(rows)
    if prompts is not None:
        before = ev.checked_texts("prompts", prompts, vocab_size, shortest=0)
        if len(before) != len(rows):
            raise ValueError(f"prompts and texts must be equal in number, got {len(before)} and {len(rows)}")
    told = None if prompts is None else shown_by(before, drawn, prompts_marked, window, vocab_size)
    packing = ev.Packing(window, vocab_size)
    allowed = None if keep is None else packing.pack_windows(ev.checked_filter(keep, window, vocab_size))
    long = [i for i in range(len(rows)) if rows[i].size > window]
    if not long:
        raise ValueError(f"no text is longer than the watermark's window={window}; there is nothing to score")
    contexts = [np.concatenate([before[i], rows[i]]) for i in long]
    words: list[ev.Words] = []
    chances: list[Floats] = []
    for batch, (logits,) in read([model], contexts, vocab_size, batch_size=batch_size, fewer=_FEWER, progress=progress):
        for i, of_text in zip(batch, logits, strict=True):
            context, start = contexts[i], before[long[i]].size
            windows, places, _ = ev.following(context, start + window, window, skip_seen=False)
            here = of_text[places - 1].float()
            p = (here if sampling is None else decoding.warp(here, sampling)).softmax(dim=-1).double().cpu().numpy()
            words.append(packing.pack([*windows.T, context[places]]))
            chances.append(p[np.arange(places.size), context[places]])
    every, chance = np.concatenate(words), np.concatenate(chances)
    scored = np.ones(every.shape[0], bool)
    if allowed is not None:
        scored &= ev.Evidence(packing, (np.unique(allowed, axis=0),), 0).holds_window(every)
    if told is not None:
        scored &= ~told.told(every)
    distinct, owner = np.unique(every[scored], axis=0, return_inverse=True)
    return Informed(ev.Evidence(packing, (distinct,), every.shape[0]), owner.ravel().astype(np.int64), chance[scored])


_FEWER = "vocab_size={}; the model does not use the watermark's tokenizer"


def judge_informed(found: Informed, wm: GumbelMax, *, shares: Sequence[float] = SHARES) -> InformedVerdict:
    """The verdict on what was collected."""
    _check(wm, shares)
    log10_e = evidence_of(found, wm, shares)
    together = float(special.logsumexp(log10_e * _LN10) - np.log(len(shares))) / _LN10 if len(found.pairs) else 0.0
    return InformedVerdict(
        seen=found.pairs.seen,
        scored=len(found.pairs),
        log10_e=together,
        log10_p=min(0.0, -together),
        by_share=tuple(log10_e.tolist()),
        scheme=wm.scheme,
        window=wm.window,
        fingerprint=wm.fingerprint,
        informed=found,
    )


def evidence_of(found: Informed, wm: GumbelMax, shares: Sequence[float] = SHARES) -> Floats:
    """log10 of the evidence for each share ε alone: [shares]."""
    if len(found.pairs) == 0:
        return np.zeros(len(shares))
    r = wm.uniforms(found.pairs.windows, found.pairs.tokens)
    with np.errstate(over="ignore"):
        ratio = np.exp(np.minimum(log_ratio(r[found.owner], found.chances), 700.0))
    counts = np.bincount(found.owner, minlength=len(found.pairs))
    mean = np.bincount(found.owner, ratio, len(found.pairs)) / counts
    return np.array([float(np.log1p(share * (mean - 1.0)).sum()) for share in shares]) / _LN10


def _check(wm: Any, shares: Sequence[float]) -> None:
    if not isinstance(wm, GumbelMax):
        raise ValueError(f"informed scores are for GumbelMax, whose r are known and independent; got {type(wm).__name__}")
    if not shares or not all(0.0 < share < 1.0 for share in shares):
        raise ValueError(f"shares must be numbers strictly between 0 and 1, at least one, got {tuple(shares)}")
