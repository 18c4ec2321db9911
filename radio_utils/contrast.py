"""Contrastive reading: what B expects and his references do not.

Text *without* the watermark is read, so that the context knows nothing of the key; and of each text a window counts only
where it is met for the first time, so that B cannot copy what followed it earlier, should a faint mark be in the text after
all. For each distinct window W and token v the probabilities of v after W are averaged over these ν positions of W, once
under B (P̄_B) and once under each reference. The first reference is B₀, his base model, or A, Alice's own unmarked model:
any model with B's tokenizer, of whatever architecture. After it may come *twins*: the first reference fine-tuned by Alice
on her own un-watermarked text. On the scale on which counts have equal noise, h = √(P̄ + ε), what the twins explain is taken
out by bounded least squares,

    y(W, v) = (h_B − h_0) − Σ β_i (h_i − h_0),    0 ≤ β_i ≤ 1,

and the statistic is S = Σ λ(W, v) · 1[v is green for W], with whole-number weights λ ∝ ξ(ν) · ν^a · y(W, v), where ξ is
:func:`discount`. The weights are argued for in the chapter "Hearing more".

The tail of S is that of a sum of independent marks with known weights (:meth:`radio_utils.stats.laws.Law.weighted`), and a
bound on it where lists hold a fixed number of greens. It is the law of S under H₀ on one condition:
*the text that is read, its prompts, B, and every reference are independent of the key*. It fails where the text or a
reference has met text that was marked under the key, where texts or models were chosen after a look at their colours, or
where the key was chosen after them; a reference that *avoids* green leaves an innocent B greener than itself.

The text is tested for the mark before it is read, and so is every twin (:func:`judge_contrast`). Nothing here tests the
first reference: that it never met the key is Alice's to show. Where it carries a mark, B's is measured above that one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils import detection
from radio_utils import evidence as ev
from radio_utils.stats.laws import NullSum
from radio_utils.watermarks import Watermark

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

FLOOR = 3e-3  # ε: probabilities far below it carry more noise than mark
EXPONENT = 0.6  # a: ν¹ would do if a window's positions were independent measurements, ν⁰ if they were one
MANY = 50  # windows of one count from which its number is taken as it is
_STEP = 0.3  # a unit of λ in root mean squares of the weights: rounding costs less than 1 % of the power
_WAITING = 4_000_000  # entries that wait before they are added up


@dataclass(frozen=True)
class Contrast:
    """The weighted pairs of contrastive or soft reading; they depend on no key, so audits score them again.

    ``pairs`` are the (window, token) pairs with a weight other than 0 and ``weights`` [n] their whole-number weights, in
    the order of the pairs. ``explained`` are the coefficients β of the references after the first, all in [0, 1], and
    ``twins`` their own contrasts against the first reference on the same places: what shows whether they carry the mark.
    Raises ``ValueError`` for weights that are not one whole number a pair, pairs that were not de-duplicated, a coefficient
    outside [0, 1], or one without its twin.
    """

    pairs: ev.Evidence
    weights: NDArray[np.int64]
    explained: tuple[float, ...] = ()
    twins: tuple[Contrast, ...] = ()

    def __post_init__(self) -> None:
        if self.weights.ndim != 1 or self.weights.dtype.kind not in "iu":
            raise ValueError(
                f"weights must be a row of whole numbers, got dtype {self.weights.dtype} and shape "
                f"{list(self.weights.shape)}; round them to a unit first"
            )
        if self.weights.size != len(self.pairs):
            raise ValueError(f"weights must be one for each of the {len(self.pairs)} pairs, got {self.weights.size}")
        if self.pairs.dedup is None:
            raise ValueError("pairs repeat with dedup=None and are not independent; collect them with 'window+token'")
        if len(self.twins) != len(self.explained):
            raise ValueError(
                f"twins must be one contrast for each of the {len(self.explained)} references in explained, got "
                f"{len(self.twins)}; a reference that can't be tested for the mark can't be used"
            )
        if not all(0.0 <= beta <= 1.0 for beta in self.explained):
            raise ValueError(f"explained must hold coefficients in [0, 1], got {self.explained}")

    def save(self, folder: Path) -> None:
        """Write the pairs, their weights, and in folders of their own the twins' to a folder."""
        self.pairs.save(folder / "pairs.npz")
        np.savez(folder / "weights.npz", weights=self.weights, explained=np.array(self.explained))
        for inner, twin in zip(_twins_of(folder, len(self.twins)), self.twins, strict=True):
            inner.mkdir(exist_ok=True)
            twin.save(inner)

    @classmethod
    def load(cls, folder: Path) -> Contrast:
        """Read what :meth:`save` wrote."""
        with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
            weights, explained = arrays["weights"], tuple(arrays["explained"].tolist())
        twins = tuple(cls.load(inner) for inner in _twins_of(folder, len(explained)))
        return cls(ev.Evidence.load(folder / "pairs.npz"), weights, explained, twins)


def _twins_of(folder: Path, count: int) -> list[Path]:
    return [folder / f"twin-{i + 1}" for i in range(count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedVerdict:
    """The verdict on a weighted sum of marks.

    ``seen`` positions were read, ``scored`` pairs have a weight, ``total`` is S − E S in units of weight, and ``score`` is
    the mean mark weighted by |λ|, as much above that of the null as the total says. ``log10_saddlepoint`` approximates
    ``log10_p`` by another route and should agree. ``text_log10_p`` is the plain detector's log10 p of all that was read,
    None where it is not known: text that carries the mark is no ground for a test of plain text.
    """

    seen: int
    scored: int
    total: float
    score: float
    z: float
    log10_p: float
    log10_saddlepoint: float
    scheme: str
    window: int
    fingerprint: str
    contrast: Contrast = field(repr=False, compare=False)
    text_log10_p: float | None = None

    @property
    def p_value(self) -> float:
        """The p-value as a float; 0 where it underflows. Quote ``log10_p``."""
        return float(10.0**self.log10_p)

    @property
    def evidence(self) -> ev.Evidence:
        """The pairs that were scored."""
        return self.contrast.pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveReading(WeightedVerdict):
    """The verdict of contrastive reading.

    ``log10_p`` is exact under the null hypothesis that text, suspect and references are independent of the key (see the
    module), and falls back to a bound where the exact tail would take too much work
    (:meth:`radio_utils.stats.weighted.WeightedSum.log10_exact`). ``log10_chernoff`` bounds it from above by an argument of
    three lines and lies one or two decades higher by nature.
    """

    log10_chernoff: float


class Sums:
    """Sums of values for packed keys, added up as they come: memory is that of the distinct keys."""

    def __init__(self, columns: int) -> None:
        self._keys: list[ev.Words] = []
        self._values: list[NDArray[np.float64]] = []
        self.columns, self._waiting, self._least = columns, 0, _WAITING

    def add(self, keys: ev.Words, values: NDArray[Any]) -> None:
        """Add ``values`` [n, columns] to the sums of ``keys`` [n, words]."""
        keys, values = _added_up(keys, values)
        self._keys.append(keys)
        self._values.append(values)
        self._waiting += keys.shape[0]
        if self._waiting > self._least:
            self.total()

    def total(self) -> tuple[ev.Words, NDArray[np.float64]]:
        """The distinct keys, sorted, and their sums."""
        if not self._keys:
            return np.zeros((0, 1), np.uint64), np.zeros((0, self.columns))
        keys, values = _added_up(np.concatenate(self._keys), np.concatenate(self._values))
        self._keys, self._values, self._waiting = [keys], [values], keys.shape[0]
        self._least = 2 * keys.shape[0] + _WAITING
        return keys, values


def _added_up(keys: ev.Words, values: NDArray[Any]) -> tuple[ev.Words, NDArray[np.float64]]:
    order = np.argsort(keys[:, 0], kind="stable") if keys.shape[1] == 1 else np.lexsort(keys.T[::-1])
    ordered = keys[order]
    starts = np.flatnonzero(ev.run_begins(ordered))
    return ordered[starts], np.add.reduceat(values[order].astype(np.float64), starts, axis=0)


class ContrastCollector:
    """Adds up what B and his references expect after each window, a batch of positions at a time."""

    def __init__(self, window: int, vocab_size: int, models: int, *, top: int = 128, keep: ArrayLike | None = None) -> None:
        """``models`` counts B and his references. Of each position only the ``top`` likeliest tokens are kept.

        ``keep`` is the filter φ [m, k], of which :meth:`passing` tells. Raises ``ValueError`` for a wrong one.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1 token a position, got {top}")
        self.packing = ev.Packing(window, vocab_size)
        self.top = min(top, vocab_size)
        self._sums, self._counts, self.seen = Sums(models), Sums(1), 0
        self._filter = ev.Filter(keep, self.packing)

    def passing(self, windows: Ids) -> NDArray[np.bool_]:
        """Which windows [n, k] the filter lets pass, to be added; the others are skipped."""
        kept = self._filter.passing(self.packing.pack_windows(windows))
        self.skip(int(np.count_nonzero(~kept)))
        return kept

    def add(self, windows: Ids, probabilities: Sequence[torch.Tensor]) -> None:
        """``windows`` [n, k]; for B and then each reference the probabilities [n, V] after each.

        Raises ``ValueError`` for probabilities that are not finite.
        """
        together = probabilities[0] + sum(probabilities[1:])
        tokens = together.topk(self.top, dim=-1).indices
        # float64 on the processor: the order of additions then hardly matters
        values = np.stack([p.gather(1, tokens).double().cpu().numpy().ravel() for p in probabilities], axis=1)
        if not np.isfinite(values).all():
            raise ValueError(
                "probabilities hold NaN or infinity: a model's logits overflowed or are all −∞; load it in bfloat16 or "
                "float32"
            )
        pairs = np.repeat(windows, self.top, axis=0), tokens.cpu().numpy().ravel()
        self._sums.add(self.packing.pack_pairs(*pairs), values)
        self._counts.add(self.packing.pack_windows(windows), np.ones((windows.shape[0], 1)))
        self.seen += windows.shape[0]

    def skip(self, positions: int) -> None:
        """Count ``positions`` as seen that were looked at and may not be used."""
        self.seen += positions

    def save(self, path: Path) -> None:
        """Write all that was added to an ``.npz`` file, for :meth:`take`."""
        (keys, sums), (windows, counts) = self._sums.total(), self._counts.total()
        np.savez(path, keys=keys, sums=sums, windows=windows, counts=counts, seen=self.seen)

    def take(self, path: Path) -> None:
        """Add what another collector of the same window, vocabulary and models has saved."""
        with np.load(path, allow_pickle=False) as arrays:
            if arrays["keys"].size:
                self._sums.add(arrays["keys"], arrays["sums"])
                self._counts.add(arrays["windows"], arrays["counts"])
            self.seen += int(arrays["seen"])

    def sums(self) -> tuple[ev.Words, Floats, Floats]:
        """All that was added: distinct pairs, sorted, [n, words]; the models' sums [n, models]; places of the window [n].

        Raises ``ValueError`` where nothing was added or skipped.
        """
        keys, sums = self._sums.total()
        window_keys, counts = self._counts.total()
        if keys.shape[0] == 0:
            if not self.seen:
                raise ValueError("no position was read; give longer sequences")
            return np.zeros((0, self.packing.words), np.uint64), sums, np.zeros(0)
        starts = np.flatnonzero(ev.run_begins(self.packing.windows_of(keys)))
        assert starts.size == window_keys.shape[0]  # both are sorted, and every window has a token
        return keys, sums, np.repeat(counts[:, 0], np.diff(starts, append=keys.shape[0]))

    def contrast(self) -> Contrast:
        """The weights, from all that was added; no pairs where all positions were skipped."""
        keys, sums, count = self.sums()
        if keys.shape[0] == 0:
            nothing, twins = self.weighted(keys, np.zeros(0)), max(0, self._sums.columns - 2)
            return replace(nothing, explained=(0.0,) * twins, twins=(nothing,) * twins)
        scale = np.sqrt(sums / count[:, None] + FLOOR)
        # one row a pair: how far B, and each twin, has moved from the first reference
        trust = discount(self._counts.total()[1][:, 0])[count.astype(np.int64) - 1] * count**EXPONENT
        moves = (scale[:, [0, *range(2, scale.shape[1])]] - scale[:, 1:2]) * trust[:, None]
        if not np.isfinite(moves).all():
            raise ValueError("a weight is not finite; the models' probabilities or the exponent are out of range")
        explained = _explained(moves)
        moved, others = moves[:, 0], moves[:, 1:]
        found = self.weighted(keys, moved - others @ np.array(explained))
        return replace(found, explained=explained, twins=tuple(self.weighted(keys, other) for other in others.T))

    def weighted(self, keys: ev.Words, weights: Floats) -> Contrast:
        """The contrast of pairs with these weights, rounded to whole numbers; pairs whose weight rounds to 0 fall out."""
        if not np.isfinite(weights).all():
            raise ValueError("a weight is not finite; the models' probabilities or the exponent are out of range")
        unit = _STEP * math.sqrt(float(np.mean(weights**2))) if weights.size else 0.0
        q = np.rint(weights / unit).astype(np.int64) if unit > 0 else np.zeros(weights.size, np.int64)
        chosen = q != 0
        return Contrast(ev.Evidence(self.packing, (keys[chosen],), self.seen), q[chosen])


def discount(counts: Floats) -> Floats:
    """Good and Turing's ξ(ν) for ν = 1 … the largest of ``counts``, how often each of several windows was met.

    N_ν windows were met ν times, and ξ(ν) = (ν + 1) N_{ν+1} / (ν N_ν). Where fewer than ``MANY`` were, N ∝ ν^A is fitted to
    all, each N spread over the gap to its neighbours. One where nothing can be fitted or rare windows are not numerous.
    """
    number = np.bincount(counts.astype(np.int64), minlength=2)[1:].astype(float)
    n = np.arange(1.0, number.size + 1)
    met = n[number > 0]
    if met.size < 2:
        return np.ones_like(number)
    gaps = np.concatenate([met[1:], [2 * met[-1] - met[-2]]]) - np.concatenate([[0.0], met[:-1]])
    slope = np.polyfit(np.log(met), np.log(2 * number[number > 0] / gaps), 1)[0]
    share = (1 + 1 / n) ** (slope + 1)
    some = max(0, int(np.argmin(np.append(number >= MANY, False))) - 1)  # the next number is one of many, too
    share[:some] = n[1 : some + 1] * number[1 : some + 1] / (n[:some] * number[:some])
    return np.asarray(np.minimum(share, 1.0))


def _explained(weighted: Floats) -> tuple[float, ...]:
    """The share β of each twin's move (columns after the first) that explains B's best by least squares, 0 ≤ β ≤ 1.

    A negative β would read a twin's mark as B's own. A β above 1 would take from B more than the twin has moved, and give
    him more green than a twin lacks.
    """
    twins = weighted.shape[1] - 1
    if twins == 0:
        return ()
    from scipy import optimize

    # the triangle of a QR decomposition: the same problem in as many rows as there are columns
    small = np.linalg.qr(np.roll(weighted, -1, axis=1)).R
    beta = optimize.lsq_linear(small[:, :twins], small[:, twins], bounds=(0.0, 1.0), method="bvls").x
    return tuple(float(b) for b in np.clip(beta, 0.0, 1.0))


def judge_contrast(found: Contrast, wm: Watermark, *, text_log10_p: float | None = None) -> ContrastiveReading:
    """The verdict on weighted pairs that are already collected.

    Each twin is tested first: its own contrast against the first reference, on the same places, two-sided, since a twin
    that avoids green makes an innocent B look green beside it. One with a log10 p below −3 is refused, and so
    is one innocent twin in a thousand; leave it out, or train another. Of what passes, a slight mark only makes B's
    evidence weaker, as β ≥ 0 takes it away from him; slightly avoiding green may add to it, and the level bounds how much.

    ``text_log10_p`` is the plain detector's log10 p of the text that was read, to be shown beside the verdict.

    Parameters
    ----------
    found : Contrast
        The weighted pairs.
    wm : Watermark
        The watermark whose key is asked about.
    text_log10_p : float, optional
        log10 p of the texts themselves.

    Returns
    -------
    ContrastiveReading
        The weighted sum and its log10 p.

    Raises
    ------
    ValueError
        For a twin that carries the mark, and for pairs of another window or vocabulary than ``wm``'s.

    Notes
    -----
    The weights depend on no key; the sum's law is exact or bounded by it.
    """
    detection.check_evidence(found.pairs, wm)
    for i, twin in enumerate(found.twins):
        if (own := _log10_p_two_sided(twin, wm)) < detection.MARKED:
            raise ValueError(
                f"reference[{i + 1}] carries the mark (two-sided log10 p = {own:.1f}, read against reference[0] on the "
                "same places), so it is no innocent twin; leave it out, or train it on text written without the key"
            )
    null, raw = null_of(found, wm)
    return ContrastiveReading(
        **verdict_on(found, wm, null, raw), log10_chernoff=null.log10_chernoff(raw), text_log10_p=text_log10_p
    )


def verdict_on(found: Contrast, wm: Watermark, null: NullSum, raw: int) -> dict[str, Any]:
    """What every verdict on weighted pairs holds, from the law of their sum under H₀ and the sum."""
    values, chances = wm.law.mark_distribution
    weights = _weights(found, wm)
    size = float(np.abs(weights).sum())
    total = raw - null.mean
    return {
        "seen": found.pairs.seen,
        "scored": int(np.count_nonzero(weights)),
        "total": total,
        "score": float(values @ chances) + total / size if size else math.nan,
        "z": total / math.sqrt(null.variance) if size else 0.0,
        "log10_p": null.log10_exact(raw),
        "log10_saddlepoint": null.log10_saddlepoint(raw),
        "scheme": wm.scheme,
        "window": wm.window,
        "fingerprint": wm.fingerprint,
        "contrast": found,
    }


def audit_contrast(found: Contrast, wm: Watermark, *, keys: int = 1000, seed: int = 0) -> detection.NullAudit:
    """The same weights under decoy keys that nobody used: small p-values must not be too frequent.

    A check of the arithmetic (:class:`radio_utils.detection.NullAudit`): weights that had seen the real key would not show.

    Parameters
    ----------
    found : Contrast
        The weighted pairs.
    wm
        As in :func:`judge_contrast`.
    keys, seed
        As in :func:`radio_utils.detection.null_audit`.

    Returns
    -------
    NullAudit
        p-values [keys] under the decoys.

    Raises
    ------
    ValueError
        For weights of another window or vocabulary than the watermark's.

    Notes
    -----
    See :func:`radio_utils.null_audit`.
    """
    if keys < 5:
        raise ValueError(f"keys must be at least 5 for a distribution to show, got {keys}")
    if len(found.pairs) == 0:
        raise ValueError("the contrast is empty; there is nothing to audit")
    detection.check_evidence(found.pairs, wm)
    decoys = [wm.with_decoy(seed, index) for index in range(keys)]
    if _merges(wm):  # which pairs are one draw depends on the key, and so does the law
        each = [null_of(found, decoy) for decoy in decoys]
        log10_p = np.array([null.log10_saddlepoint(raw) for null, raw in each])
        return detection.audit_of(log10_p, np.array([null.log10_saddlepoint(raw + 1) for null, raw in each]), seed=seed)
    totals = np.rint(_totals(found, wm, decoys)).astype(np.int64)
    null, _ = null_of(found, wm)
    return detection.audit_of(null.log10_many(totals), null.log10_many(totals + 1), seed=seed)


def _merges(wm: Watermark) -> bool:
    """Whether pairs of different windows are often one draw, which only the key tells."""
    return wm.shares_colours and not wm.one_list_a_window


def _weights(found: Contrast, wm: Watermark) -> NDArray[np.int64]:
    """The weights, but for pairs that no key decides."""
    if not wm.some_keyless or not len(found.pairs):
        return found.weights
    return np.where(wm.keyless(found.pairs.windows, found.pairs.tokens), 0, found.weights)


def null_of(found: Contrast, wm: Watermark) -> tuple[NullSum, int]:
    """The law of S under H₀, and S: 0 where nothing has a weight, of which every p is 1.

    Pairs that are one draw under this key have one mark, and their weights add up.
    """
    if not wm.shares_colours:
        return wm.law.weighted(_weights(found, wm)), round(float(_totals(found, wm, [wm])[0]))
    windows, tokens = found.pairs.windows, found.pairs.tokens
    _, first, owner = np.unique(wm.colour_ids(windows, tokens), return_index=True, return_inverse=True)
    weights = np.zeros(first.size, np.int64)
    np.add.at(weights, owner.ravel(), _weights(found, wm))
    windows, tokens = windows[first], tokens[first]
    lists = wm.list_ids(windows, tokens) if wm.law.without_return else None
    return wm.law.weighted(weights, lists), int(weights @ wm.law.marks(wm.scores(windows, tokens)))


def _log10_p_two_sided(found: Contrast, wm: Watermark) -> float:
    """log10 of twice the smaller tail of S, at most 0."""
    null, raw = null_of(found, wm)
    tail = null.log10_exact(raw) if raw >= null.mean else null.mirrored().log10_exact(-raw)
    return min(0.0, tail + math.log10(2.0))


def _totals(found: Contrast, wm: Watermark, keys: Sequence[Watermark]) -> Floats:
    totals, start, weights = np.zeros(len(keys)), 0, _weights(found, wm)
    for windows, tokens in found.pairs.blocks():
        totals += wm.totals(windows, tokens, keys, weights[start : start + tokens.size])
        start += tokens.size
    return totals
