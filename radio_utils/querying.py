"""The closed-model test: prompt B, score its answers.

Only B's text is seen. What an answer's own prompt may have shown of a list is not scored, for prompts may be marked
(:func:`radio_utils.evidence.collect`), and the filter φ keeps the windows that were likely in B's training data (Sander et
al. 2024, section 4; chapter "Closed model"). With plain prompts no answer of an innocent knows anything of the key.
:func:`query_closed_model` asks a number of prompts that is fixed in advance, :func:`query_until` as many as the evidence
needs. With a reference model the answers are *counted* instead (:func:`count_answers`), and many answers to one prompt
become worth their price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils import contrast, counts, decoding, detection, reading, shown
from radio_utils import evidence as ev
from radio_utils.eprocess import EProcess
from radio_utils.suspects.local import Ids, LocalSuspect, Suspect
from radio_utils.watermarks import Watermark

Floats = NDArray[np.float64]


class QueryError(ValueError):
    """Answers that cannot be scored. ``answers`` are all that were given so far: what was paid for is not lost."""

    def __init__(self, message: str, answers: Sequence[Any]) -> None:
        super().__init__(message)
        self.answers = list(answers)


def query_closed_model(
    suspect: Suspect | Any,
    prompts: Sequence[ArrayLike],
    wm: Watermark,
    *,
    reference: Any = None,
    prompts_marked: bool = True,
    drawn: Sequence[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    budget: int | None = None,
    dedup: ev.Dedup = "window+token",
    sampling: decoding.Sampling | None = None,
    batch_size: int = 64,
    top: int = 128,
    progress: str | None = None,
) -> detection.Detection | contrast.ContrastiveReading:
    """Test H₀ "B never learned from text watermarked with this key" on B's answers to the prompts.

    Answers too short to hold a window and a token are dropped. With ``reference`` B's answers are counted against what the
    reference expects (:func:`count_answers`, which explains the options; they have no effect without it). Prompts may then
    be given many times. ``prompts_marked=False`` says that the prompts were written without the key; prompts whose own
    log10 p is below −3 are refused then, and the verdict shows it as ``text_log10_p``.

    Parameters
    ----------
    suspect : Suspect or transformers model
        Answers prompts (:class:`radio_utils.suspects.Suspect`); a bare model is taken as a local one.
    prompts : sequence of array_like of int [length]
        What is asked, as token ids; −1 stands where something may be missing, as a template between turns.
    wm : Watermark
        The watermark whose key is asked about.
    reference : transformers model or sequence of them, optional
        Models that never met the key, such as the one that B was made from.
    prompts_marked : bool
        Whether the prompts may have been written under the key.
    drawn : sequence of array_like of int, optional
        The whole contexts in which the prompts were written, as ids.
    keep : array_like of int [m, k], optional
        The filter φ: the only windows that are scored. It must be chosen without the key.
    budget : int, optional
        The most prompts to send.
    dedup : {'window+token', 'window', None}
        What counts once: a pair, a window, or nothing, and then p is no p-value.
    sampling : Sampling, optional
        How B draws its tokens, if that is known.
    batch_size : int
        Sequences a forward pass.
    top : int
        How many of the likeliest tokens are kept at each place.
    progress : str, optional
        Title of a progress bar; none without it.

    Returns
    -------
    Detection or ContrastiveReading
        The verdict; with ``reference`` that of counted answers.

    Raises
    ------
    ValueError
        Before anything is asked, for no prompts, a budget below 1, ids outside the vocabulary, a wrong ``keep`` or
        ``dedup``, and with a reference for plain prompts that carry the mark.
    TypeError
        For a reference that is no model.
    QueryError
        Which holds the answers, for answers that cannot be scored.

    Notes
    -----
    T. Sander et al., *Watermarking Makes Language Models Radioactive*, NeurIPS 2024: the closed model.

    Examples
    --------
    >>> ru.query_closed_model(bob, prompts, wm, budget=500).log10_p  # doctest: +SKIP
    """
    asked, client = _checked_prompts(prompts, wm, budget), as_suspect(suspect)
    _check_options(wm, keep, dedup)
    own = None if reference is None else _checked_for_counts(asked, wm, reference, prompts_marked, drawn)
    answers = client.answer([ev.without_gaps(prompt) for prompt in asked])
    try:
        if reference is None:
            return score_answers(asked, answers, wm, keep=keep, dedup=dedup)
        found = count_answers(
            asked, answers, reference, wm.window, wm.vocab_size, keep=keep, prompts_marked=prompts_marked, drawn=drawn,
            sampling=sampling, batch_size=batch_size, top=top, progress=progress,
        )  # fmt: skip
        return contrast.judge_contrast(found, wm, text_log10_p=own)
    except ValueError as error:
        raise QueryError(str(error), answers) from error


def _checked_for_counts(
    asked: Sequence[Ids], wm: Watermark, reference: Any, marked: bool, drawn: Sequence[ArrayLike] | None
) -> float | None:
    """log10 p of prompts that are said to be plain, None where that is not said or they are too short for it."""
    reading.check_model("reference", reference)
    shown.shown_by(asked, drawn, marked, wm.window, wm.vocab_size)
    long = ev.long_pieces(asked, wm.window)
    if marked or not long:
        return None
    own = detection.detect(long, wm).log10_p
    if own < detection.MARKED:
        raise ValueError(
            f"prompts carry the watermark (log10 p = {own:.1f}), so B could repeat it from them; ask prompts that were "
            "written without the key, or say prompts_marked=True"
        )
    return own


def count_answers(
    prompts: Sequence[ArrayLike],
    answers: Sequence[Ids],
    reference: Any,
    window: int,
    vocab_size: int,
    *,
    keep: ArrayLike | None = None,
    prompts_marked: bool = True,
    drawn: Sequence[ArrayLike] | None = None,
    sampling: decoding.Sampling | None = None,
    tau: float = counts.TAU,
    batch_size: int = 64,
    top: int = 128,
    progress: str | None = None,
) -> contrast.Contrast:
    """The weighted pairs of the answers' counts: what B said more, or less, often than ``reference`` expects.

    They depend on no key: :func:`radio_utils.contrast.judge_contrast` gives the verdict and ``audit_contrast`` its audit.
    ``reference`` reads each prompt with its answer once.

    ``prompts_marked`` is true of prompts that were written under the key. The test stays valid, by leaving out what the
    prompts show of the key (:mod:`radio_utils.shown`): after windows that the prompts hold, pairs count only in B's
    disfavour and only if no prompt holds them. Where what stood *before* a prompt is not known, that is so of every
    window. Better is to give, as ``drawn``, the whole contexts in which the prompts were written, as ids and from the
    first token that Alice's model read; every draw under the key that the prompts depend on must be in them. Plain
    prompts are best.

    Parameters
    ----------
    prompts, answers
        As in :func:`score_answers`.
    reference : transformers model
        A model that never met the key: Alice's own without her mark, or B₀.
    window, vocab_size
        As in :func:`radio_utils.evidence.collect`.
    keep, prompts_marked, drawn, sampling
        As in :func:`query_closed_model`.
    tau : float
        How much models differ anyway (:func:`radio_utils.counts.weights`), chosen before the answers are seen.
    batch_size, top, progress
        As in :func:`radio_utils.reading.read_open_model`.

    Returns
    -------
    Contrast
        Weighted pairs, which depend on no key.

    Raises
    ------
    ValueError
        For unequal numbers of prompts and answers, ids outside the vocabulary, answers that are all too short, a
        reference with too few logits, NaN or infinity among them, or a negative ``tau``.

    Notes
    -----
    See :func:`radio_utils.contrast.judge_contrast`.
    """
    if not (np.isfinite(tau) and tau >= 0):
        raise ValueError(f"tau must be finite and not negative, got {tau}")
    reading.check_model("reference", reference)
    told = shown.shown_by(prompts, drawn, prompts_marked, window, vocab_size)
    usable = _usable(prompts, answers, window, vocab_size)
    if not usable:
        raise ValueError(f"no answer is longer than the watermark's window={window}; let the suspect write more")
    asked = [ev.without_gaps(one) for one in ev.checked_prompts([prompt for prompt, _ in usable], vocab_size, shortest=0)]
    both = list(zip(asked, (answer for _, answer in usable), strict=True))
    summed = counts.collect(
        both, reference, window, vocab_size, keep=keep, sampling=sampling, batch_size=batch_size, top=top,
        progress=progress,
    )  # fmt: skip
    return counts.weigh(summed, told, tau)


def _check_options(wm: Watermark, keep: ArrayLike | None, dedup: ev.Dedup) -> None:
    ev.check_dedup(dedup)
    if keep is not None:
        ev.checked_filter(keep, wm.window, wm.vocab_size)


def _checked_prompts(prompts: Sequence[ArrayLike], wm: Watermark, budget: int | None) -> list[Ids]:
    if budget is not None and budget < 1:
        raise ValueError(f"budget must be at least 1 prompt, or None for all, got {budget}")
    asked = ev.checked_prompts(list(prompts)[:budget], wm.vocab_size, shortest=1)
    if not asked:
        raise ValueError("prompts is empty; there is nothing to ask the suspect")
    return asked


def score_answers(
    prompts: Sequence[ArrayLike],
    answers: Sequence[Ids],
    wm: Watermark,
    *,
    keep: ArrayLike | None = None,
    dedup: ev.Dedup = "window+token",
) -> detection.Detection:
    """The verdict on answers that were already gathered.

    Parameters
    ----------
    prompts : sequence of array_like of int [length]
        What was asked, as token ids.
    answers : sequence of int arrays [length]
        What B said to each.
    wm, keep, dedup
        As in :func:`radio_utils.detection.detect`.

    Returns
    -------
    Detection
        The verdict.

    Raises
    ------
    ValueError
        For answers that are all too short for a window and a token, or ids outside the vocabulary.

    Notes
    -----
    See :func:`query_closed_model`.
    """
    usable = _usable(prompts, answers, _unscored(wm), wm.vocab_size)
    if not usable:
        raise ValueError(f"no answer is longer than the watermark's window={wm.window}; let the suspect write more")
    return detection.judge(_collected(usable, wm, keep, dedup), wm)


def _collected(usable: list[tuple[ArrayLike, Ids]], wm: Watermark, keep: ArrayLike | None, dedup: ev.Dedup) -> ev.Evidence:
    """The pairs of answers on which their own prompts, which may be marked, had no say."""
    return ev.collect(
        [answer for _, answer in usable], wm.window, wm.vocab_size,
        prompts=[prompt for prompt, _ in usable], keep=keep, dedup=dedup, shared=ev.shared_by(wm), hidden=True,
        from_start=wm.marks_start,
    )  # fmt: skip


def _unscored(wm: Watermark) -> int:
    """How many tokens at an answer's start are not scored."""
    return 0 if wm.marks_start else wm.window


def _usable(
    prompts: Sequence[ArrayLike], answers: Sequence[Ids], window: int, vocab_size: int, first: int = 0
) -> list[tuple[ArrayLike, Ids]]:
    """Prompts and answers that are long enough to be scored. ``first`` numbers the answers in errors."""
    _check_as_many(prompts, answers)
    checked = ev.checked_texts("answers", answers, vocab_size, shortest=0, first=first)
    return [(prompt, answer) for prompt, answer in zip(prompts, checked, strict=True) if answer.size > window]


def _check_as_many(prompts: Sequence[ArrayLike], answers: Sequence[Ids]) -> None:
    if len(prompts) != len(answers):
        raise ValueError(f"prompts and answers must be equal in number, got {len(prompts)} and {len(answers)}")


@dataclass(frozen=True, slots=True)
class SequentialVerdict:
    """The verdict of a test that was watched as the answers came.

    ``convicted`` says whether the wealth reached 1/α. ``asked`` prompts were sent, ``scored`` fresh trials scored,
    their scores sum to ``total``. ``log10_p`` = −log10 of the largest wealth is a p-value that holds whenever one stops.
    ``counts`` [batches] and ``log10_e`` [batches] are the scored pairs and the wealth after each batch of answers.
    """

    convicted: bool
    alpha: float
    asked: int
    seen: int
    scored: int
    total: float
    log10_p: float
    counts: NDArray[np.int64] = field(repr=False)
    log10_e: Floats = field(repr=False)
    fingerprint: str


def query_until(
    suspect: Suspect | Any,
    prompts: Sequence[ArrayLike],
    wm: Watermark,
    *,
    alpha: float = 1e-3,
    keep: ArrayLike | None = None,
    budget: int | None = None,
    batch: int = 16,
    dedup: ev.Dedup = "window+token",
) -> SequentialVerdict:
    """Ask ``batch`` prompts at a time until the evidence suffices at level α or the budget is spent.

    The false-alarm rate is at most α however often one looks (:mod:`radio_utils.eprocess`). A pair is scored the first
    time it is met, with ``dedup="window"`` a window; lists with a fixed number of greens (those of
    :mod:`radio_utils.compat`) need the latter.

    Parameters
    ----------
    suspect, prompts, wm
        As in :func:`query_closed_model`.
    alpha : float in (0, 1)
        The level; false alarms are no more frequent, however often one looks.
    keep, budget
        As in :func:`query_closed_model`.
    batch : int
        Prompts between two looks.
    dedup
        As in :func:`query_closed_model`.

    Returns
    -------
    SequentialVerdict
        Whether it convicts, and after how many prompts.

    Raises
    ------
    ValueError
        As :func:`query_closed_model` does, and for α outside (0, 1) or a scheme that cannot be watched.
    QueryError
        Holds the answers of all batches.

    Notes
    -----
    J. Ville, *Étude critique de la notion de collectif*, 1939.

    Examples
    --------
    >>> ru.query_until(bob, prompts, wm, alpha=1e-3).convicted  # doctest: +SKIP
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must lie strictly between 0 and 1, got {alpha}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1 prompt, got {batch}")
    asked, client = _checked_prompts(prompts, wm, budget), as_suspect(suspect)
    watch = Watch(wm, keep=keep, dedup=dedup)
    sent, given = 0, list[Any]()
    while sent < len(asked) and watch.highest < -np.log10(alpha):
        some = asked[sent : sent + batch]
        # a local model draws anew for each batch, or prompts that are asked again would be answered as before
        now = replace(client, seed=client.seed + sent) if isinstance(client, LocalSuspect) else client
        answers = now.answer([ev.without_gaps(prompt) for prompt in some])
        given += list(answers)
        try:
            watch.add(some, answers, first=sent)
        except ValueError as error:
            raise QueryError(str(error), given) from error
        sent += len(some)
    return watch.verdict(alpha, sent)


class Watch:
    """Keeps the wealth of a sequential test as answers come in."""

    def __init__(self, wm: Watermark, *, keep: ArrayLike | None = None, dedup: ev.Dedup = "window+token") -> None:
        """``keep`` is the filter φ, chosen before the first answer. Raises ``ValueError`` as :class:`EProcess` does."""
        _check_options(wm, keep, dedup)
        self.wm, self._bet, self._fresh = wm, EProcess(wm, dedup=dedup), _Fresh(wm, keep, dedup)
        self._scored, self._total = 0, 0.0
        self._met: ev.Words = np.zeros(0, np.uint64)  # colours or lists that were asked already, where pairs share them
        self._counts: list[int] = []
        self._wealth: list[float] = []

    @property
    def highest(self) -> float:
        """log10 of the largest wealth so far."""
        return max(self._wealth, default=0.0)

    def add(self, prompts: Sequence[ArrayLike], answers: Sequence[Ids], *, first: int = 0) -> None:
        """Score the pairs of these answers that were not met before; ``first`` numbers the answers in errors."""
        fresh = self._fresh.of(prompts, answers, first)
        if not self.wm.shares_colours:
            found = detection.judge(fresh, self.wm)
            self._scored += found.scored
            self._total += found.total
        else:
            ids = self.wm.list_ids(fresh.windows, fresh.tokens)
            new = ev.first_appearances(ids) & ~np.isin(ids, self._met) & ~self.wm.keyless(fresh.windows, fresh.tokens)
            self._met = np.union1d(self._met, ids[new])
            self._scored += int(np.count_nonzero(new))
            self._total += float(self.wm.scores(fresh.windows[new], fresh.tokens[new]).sum())
        self._counts.append(self._scored)
        self._wealth.append(float(self._bet.log10_e(self._total, self._scored)))

    def verdict(self, alpha: float, asked: int) -> SequentialVerdict:
        """Where the test stands."""
        return SequentialVerdict(
            convicted=bool(self.highest >= -np.log10(alpha)),
            alpha=alpha,
            asked=asked,
            seen=self._fresh.seen,
            scored=self._scored,
            total=self._total,
            log10_p=min(0.0, -self.highest),
            counts=np.array(self._counts, np.int64),
            log10_e=np.array(self._wealth),
            fingerprint=self.wm.fingerprint,
        )


class _Fresh:
    """Tells the pairs of new answers that were not met in earlier ones."""

    def __init__(self, wm: Watermark, keep: ArrayLike | None, dedup: ev.Dedup) -> None:
        self._wm, self._keep = wm, keep
        self._known = ev.Evidence(ev.Packing(wm.window, wm.vocab_size), (), 0, dedup)

    @property
    def seen(self) -> int:
        return self._known.seen

    def of(self, prompts: Sequence[ArrayLike], answers: Sequence[Ids], first: int) -> ev.Evidence:
        usable = _usable(prompts, answers, _unscored(self._wm), self._wm.vocab_size, first)
        if not usable:
            return ev.Evidence(self._known.packing, (), 0, self._known.dedup)
        found = _collected(usable, self._wm, self._keep, self._known.dedup)
        fresh = found.without(self._known)
        self._known = self._known.merge(found)
        return fresh


def audit_watch(
    prompts: Sequence[ArrayLike],
    answers: Sequence[Ids],
    wm: Watermark,
    *,
    keep: ArrayLike | None = None,
    batch: int = 16,
    keys: int = 1000,
    seed: int = 0,
    dedup: ev.Dedup = "window+token",
) -> Floats:
    """log10 of the largest wealth that each of ``keys`` decoy keys ever has while these answers come in: [keys].

    Ville's inequality says that at most a share α of them exceeds −log10 α. Raises ``ValueError`` for unequal numbers of
    prompts and answers, and as :class:`Watch` does.
    """
    if keys < 1 or batch < 1:
        raise ValueError(f"keys and batch must be at least 1, got {keys} and {batch}")
    _check_as_many(prompts, answers)
    _check_options(wm, keep, dedup)
    bet, fresh = EProcess(wm, dedup=dedup), _Fresh(wm, keep, dedup)
    starts = range(0, len(answers), batch)
    batches = [fresh.of(prompts[start : start + batch], answers[start : start + batch], start) for start in starts]
    batch_of = np.repeat(np.arange(len(batches)), [len(found) for found in batches])
    highest = np.zeros(keys)
    if not batch_of.size:
        return highest
    windows, tokens = (np.concatenate([getattr(one, name) for one in batches]) for name in ("windows", "tokens"))
    for index in range(keys):
        decoy = wm.with_decoy(seed, index)
        new = np.ones(tokens.size, bool)
        if decoy.shares_colours:  # what is asked once differs from key to key
            new = ev.first_appearances(decoy.list_ids(windows, tokens))
        if decoy.some_keyless:
            new &= ~decoy.keyless(windows, tokens)
        totals = np.bincount(batch_of[new], decoy.scores(windows[new], tokens[new]), len(batches)).cumsum()
        counts = np.bincount(batch_of[new], minlength=len(batches)).cumsum()
        highest[index] = max(0.0, float(bet.log10_e(totals, counts).max()))
    return highest


def as_suspect(suspect: Suspect | Any) -> Suspect:
    """The suspect itself, or a local suspect around a transformers model with its own stop tokens."""
    if isinstance(suspect, Suspect):
        return suspect
    if not hasattr(suspect, "config") or not hasattr(suspect, "forward"):
        raise TypeError(f"suspect must have answer(prompts) or be a transformers model, got {type(suspect).__name__}")
    eos = getattr(getattr(suspect, "generation_config", None), "eos_token_id", None)
    stops = () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)
    return LocalSuspect(suspect, stops)
