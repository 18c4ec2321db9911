"""The open-model test: reading mode.

B generates nothing. A text is fed through B once, and at every place B's most likely next token is scored against the
window taken from the *text* (Sander et al. 2024, section 4; chapter "Open model"). Where the text is marked, B may merely
copy what it shows him, so not every place may be scored: :mod:`radio_utils.predictions` says which. With a reference and
plain text the reading is contrastive (:mod:`radio_utils.contrast`), and nothing can whisper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from radio_utils import contrast, detection
from radio_utils import evidence as ev
from radio_utils.predictions import Places, Predictions, looked_at
from radio_utils.soft import FEW, SoftReading, judge_soft, weights_of
from radio_utils.suspects.feeding import Feeding
from radio_utils.suspects.forward import chosen, read
from radio_utils.watermarks import Watermark

Ids = NDArray[np.int64]


def read_open_model(
    model: Any,
    sequences: Sequence[ArrayLike] | NDArray[Any],
    wm: Watermark,
    *,
    reference: Any = None,
    soft: bool = False,
    prompts: Sequence[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    dedup: ev.Dedup = "window+token",
    skip_seen: bool = True,
    full_context: bool = False,
    respelt: float = 0.0,
    feeding: Feeding | Sequence[Feeding] | None = None,
    batch_size: int = 64,
    top: int = 128,
    progress: str | None = None,
) -> detection.Detection | contrast.ContrastiveReading | SoftReading:
    """Test H₀ "B never learned from text watermarked with this key" on B's predictions along the sequences.

    What makes p true where the texts are marked (page "When is a p-value valid?"): each list is scored before the texts
    have drawn from it (``skip_seen=False`` scores every place, which is unsound: it is there to show why). ``full_context``
    says that the prompts hold all that Alice's model had before it wrote; else a template may stand between, and what it
    hides is allowed for. With prompts a text is taken for a whole answer, and where an engine's contexts begin with the
    answer (``wm.marks_start``: vLLM's marks and SynthID) it is read from its first token on, with windows that −1 fills up;
    for texts whose generation began in the prompt, give no prompts. Tokens that were made from strings differ from those
    that were drawn in a share ``respelt``, for which p then allows (:meth:`radio_utils.stats.laws.Law.log10_allowing`). And
    no text may have been chosen by its mark, which nothing here can see: :func:`radio_utils.remark_control` can.

    ``feeding`` says how B is fed (:meth:`radio_utils.suspects.feeding.Feeding.of`): behind his beginning-of-text token,
    prompts in his chat template. Without it he is fed the tokens as they are. With references it is that of all models, or
    a list of one for each, B's first.

    With ``reference`` the reading is *contrastive* (:mod:`radio_utils.contrast`): the sequences must then be free of the
    watermark, and what counts is how B's whole distribution differs from the reference's. ``reference`` is B₀ or Alice's
    own unmarked model A, or a list that starts with either and goes on with innocent twins of B: that model, fine-tuned by
    Alice on un-watermarked text. All models must have B's tokenizer; their architectures may differ. Of each position the
    ``top`` likeliest tokens are kept; pairs are always distinct, whatever ``dedup``. Text whose own log10 p is below −3 is
    refused, so one in a thousand innocent texts is too; the verdict shows that p as ``text_log10_p``. So is a twin that
    carries the mark (:func:`radio_utils.contrast.judge_contrast`).

    With ``soft`` and no reference the ``top`` likeliest tokens of each place count, weighted by their probabilities
    (:mod:`radio_utils.soft`): at equal text it convicts more clearly than the likeliest token alone. It reads marked text
    by the rules above; ``skip_seen=False`` then scores every place and is for plain text, so that text whose own log10 p is
    below −3 is refused.

    Parameters
    ----------
    model : transformers model
        The suspect B, a causal language model.
    sequences : sequence of array_like of int [length]
        Token ids that B reads, one row a text: the tokens *as Alice's model drew them*.
    wm : Watermark
        The watermark whose key is asked about.
    reference : transformers model or sequence of them, optional
        Models that never met the key, such as the one that B was made from.
    soft : bool
        Whether B's probabilities are scored instead of his likeliest tokens; for readings without a reference.
    prompts : iterable of array_like of int [length], optional
        The prompt of each text, as token ids, fed before it and not scored, as B saw it in training. −1 stands where
        something may be missing, as a template between turns, and is not fed.
    keep : array_like of int [m, k], optional
        The filter φ: the only windows that are scored. It must be chosen without the key.
    dedup : {'window+token', 'window', None}
        What counts once: a pair, a window, or nothing, and then p is no p-value.
    skip_seen : bool
        Whether predictions after windows that the prompt holds are left out.
    full_context : bool
        Whether the prompts hold all that stood before the texts.
    respelt : float in [0, 1)
        Share of the tokens that may not be the ones drawn.
    feeding : Feeding or sequence of them, optional
        How B, or each of the models, is fed; the tokens as they are without it.
    batch_size : int
        Sequences a forward pass.
    top : int
        How many of the likeliest tokens are kept at each place.
    progress : str, optional
        Title of a progress bar; none without it.

    Returns
    -------
    Detection, ContrastiveReading or SoftReading
        The verdict; with ``reference`` that of contrastive reading, with ``soft`` that of soft reading.

    Raises
    ------
    ValueError
        For ids outside the vocabulary, too short texts, unequal numbers of prompts and sequences, a model with fewer
        logits than the watermark has tokens, NaN or infinity among its logits, or, with a reference, text or a twin
        that carries the watermark. For ``soft`` with a reference, with a share ``respelt``, or with another ``dedup``.
    TypeError
        For a reference that is no model.

    Notes
    -----
    T. Sander et al., *Watermarking Makes Language Models Radioactive*, NeurIPS 2024: reading mode.

    Examples
    --------
    >>> ru.read_open_model(bob, texts, wm).log10_p  # doctest: +SKIP
    """
    from_start = wm.marks_start and prompts is not None
    if soft:
        _check_soft(reference, dedup, respelt)
        text_log10_p = None if skip_seen else _log10_p_of_plain(sequences, prompts, wm, "every place can be scored only in")
        weighted = read_soft(
            model, sequences, wm.window, wm.vocab_size, prompts=prompts, keep=keep, skip_seen=skip_seen,
            full_context=full_context, from_start=from_start, shared=ev.shared_by(wm), feeding=feeding,
            batch_size=batch_size, top=top, progress=progress,
        )  # fmt: skip
        return judge_soft(weighted, wm, text_log10_p=text_log10_p)
    if reference is None:
        found = read_evidence(
            model, sequences, wm.window, wm.vocab_size, prompts=prompts, keep=keep, dedup=dedup, skip_seen=skip_seen,
            full_context=full_context, from_start=from_start, shared=ev.shared_by(wm), feeding=feeding,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        return detection.judge(found, wm, respelt=respelt)
    # what can be refused is refused before any model runs
    ev.check_dedup(dedup)
    _models(model, reference)
    text_log10_p = _log10_p_of_plain(sequences, prompts, wm, "contrastive reading needs")
    weighted = read_contrast(
        model, reference, sequences, wm.window, wm.vocab_size, prompts=prompts, keep=keep, skip_seen=skip_seen,
        from_start=from_start, feeding=feeding, batch_size=batch_size, top=top, progress=progress,
    )  # fmt: skip
    return contrast.judge_contrast(weighted, wm, text_log10_p=text_log10_p)


def _log10_p_of_plain(sequences: Any, prompts: Any, wm: Watermark, wanted: str) -> float:
    """log10 p of what B is fed, or an error if it carries the mark."""
    shortest = 0 if wm.marks_start and prompts is not None else wm.window
    fed = ev.long_pieces(_Contexts.of(sequences, prompts, shortest, wm.vocab_size).ids, wm.window)
    log10_p = detection.detect(fed, wm).log10_p if fed else 0.0
    check_plain(log10_p, wanted)
    return log10_p


def check_plain(log10_p: float, wanted: str = "contrastive reading needs") -> None:
    """Raise ``ValueError`` where ``log10_p`` says that what B is fed carries the mark."""
    if log10_p < detection.MARKED:
        raise ValueError(
            f"sequences or prompts carry the watermark (log10 p = {log10_p:.1f}), so B could copy it from what it "
            f"reads; {wanted} text that was written without the key"
        )


def _check_soft(reference: Any, dedup: ev.Dedup, respelt: float) -> None:
    if reference is not None:
        raise ValueError("soft=True reads without a reference; leave one of both out: contrastive reading is soft already")
    if dedup != "window+token":
        raise ValueError(f"soft=True scores each pair once, so dedup must be 'window+token', got {dedup!r}")
    if respelt:
        raise ValueError(f"soft=True needs the tokens as they were drawn, got respelt={respelt}; keep ids, or read hard")


def _models(model: Any, reference: Any) -> list[Any]:
    """B and his references, or an error that says what is no model."""
    references = list(reference) if isinstance(reference, list | tuple) else [reference]
    if not references:
        raise ValueError("reference is empty; give B's base model or Alice's own, or leave it out for plain reading")
    check_model("model", model)
    for i, one in enumerate(references):
        check_model(f"reference[{i}]" if isinstance(reference, list | tuple) else "reference", one)
    return [model, *references]


def check_model(name: str, model: Any) -> None:
    """Raise ``TypeError`` for what is no model, as the name of a folder is none."""
    if not callable(model) or not hasattr(model, "parameters"):
        raise TypeError(
            f"{name} must be a causal model, got {type(model).__name__}; load it first, as with "
            "radio_utils.suspects.load_model(folder)"
        )


def read_evidence(
    model: Any,
    sequences: Sequence[ArrayLike] | NDArray[Any],
    window: int,
    vocab_size: int,
    *,
    prompts: Sequence[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    dedup: ev.Dedup = "window+token",
    skip_seen: bool = True,
    full_context: bool = False,
    from_start: bool = False,
    shared: Watermark | None = None,
    feeding: Feeding | Sequence[Feeding] | None = None,
    batch_size: int = 64,
    progress: str | None = None,
) -> ev.Evidence:
    """The (window, B's prediction) pairs of reading mode: :func:`read_predictions`, and of them what may be scored.

    Parameters
    ----------
    model, sequences
        As in :func:`read_open_model`.
    window, vocab_size
        As in :func:`radio_utils.evidence.collect`.
    prompts, keep, dedup, skip_seen, full_context
        As in :func:`read_open_model`.
    from_start : bool
        Whether texts are answers that are scored from their first token on (:attr:`Watermark.marks_start`).
    shared : Watermark, optional
        The watermark, where windows share lists.
    feeding, batch_size, progress
        As in :func:`read_open_model`.

    Returns
    -------
    Evidence
        The distinct pairs of window and predicted token.

    Notes
    -----
    It depends on no key.
    """
    ev.check_dedup(dedup)
    # too short a text is refused before any model runs
    _Contexts.of(sequences, prompts, 0 if from_start else window, vocab_size)
    if keep is not None:
        ev.checked_filter(keep, window, vocab_size)
    found = read_predictions(
        model, sequences, vocab_size, prompts=prompts, feeding=feeding, batch_size=batch_size, progress=progress
    )
    return found.evidence(
        window, vocab_size, shared=shared, keep=keep, dedup=dedup, skip_seen=skip_seen, full_context=full_context,
        from_start=from_start,
    )  # fmt: skip


def read_predictions(
    model: Any,
    sequences: Sequence[ArrayLike] | NDArray[Any],
    vocab_size: int,
    *,
    prompts: Sequence[ArrayLike] | None = None,
    feeding: Feeding | Sequence[Feeding] | None = None,
    batch_size: int = 64,
    progress: str | None = None,
) -> Predictions:
    """B's most likely next token at every place of the sequences, the one after the last token too. No key plays a part.

    Only the first ``vocab_size`` logits are looked at. Raises as :func:`read_open_model` does.
    """
    contexts = _Contexts.of(sequences, prompts, 0, vocab_size)
    tokens = [np.full(context.size + 1, -1, np.int64) for context in contexts.ids]
    for rows, (logits,) in read(
        [model], contexts.ids, vocab_size, fed=contexts.fed(feeding, 1), batch_size=batch_size, progress=progress
    ):
        for i, of_text in zip(rows, logits, strict=True):
            first = max(contexts.prompt_sizes[i], 1 + int(np.argmax(contexts.ids[i] >= 0)))  # the first behind a token
            tokens[i][first:] = of_text[first - 1 :].argmax(dim=-1).cpu().numpy()
    return Predictions(tuple(contexts.ids), np.array(contexts.prompt_sizes, np.int64), tuple(tokens))


def read_contrast(*args: Any, **options: Any) -> contrast.Contrast:
    """The weighted pairs of contrastive reading. They do not depend on any key: audits score them again.

    A window already met earlier in the same context is not used: B could copy what followed it there, and with it a mark
    of the text too faint to be refused. ``skip_seen=False`` uses it too; it is there to show why. ``seen`` of the pairs
    counts all positions, also those that ``keep`` or ``skip_seen`` leave out.

    ``from_start`` is that of :func:`read_evidence`. ``reference`` is that of :func:`read_open_model`; for each twin the
    contrast holds what tests it for the mark.

    The models are run side by side, one batch at a time; what is kept are sums for each distinct window and each of its
    likeliest tokens, never a matrix of vocabulary by vocabulary.
    """
    return collect_contrast(*args, **options).contrast()


def collect_contrast(
    model: Any,
    reference: Any,
    sequences: Sequence[ArrayLike] | NDArray[Any],
    window: int,
    vocab_size: int,
    *,
    prompts: Sequence[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    skip_seen: bool = True,
    from_start: bool = False,
    feeding: Feeding | Sequence[Feeding] | None = None,
    batch_size: int = 64,
    top: int = 128,
    progress: str | None = None,
) -> contrast.ContrastCollector:
    """What :func:`read_contrast` weighs, added up: the sums of several corpora can be added in turn."""
    models, from_start = _models(model, reference), from_start and prompts is not None
    contexts = _Contexts.of(sequences, prompts, 0 if from_start else window, vocab_size)
    collector = contrast.ContrastCollector(window, vocab_size, len(models), top=top, keep=keep)
    slice_size = max(1, _LARGEST // vocab_size)
    for rows, all_logits in read(
        models, contexts.ids, vocab_size, fed=contexts.fed(feeding, len(models)), batch_size=batch_size, progress=progress
    ):
        found = [contexts.scored(i, window, skip_seen, from_start) for i in rows]
        windows = np.concatenate([w for w, _, _ in found])
        row_of = np.repeat(np.arange(len(rows)), [ends.size for _, ends, _ in found])
        ends = np.concatenate([e for _, e, _ in found])
        collector.skip(sum(seen for _, _, seen in found) - ends.size)
        kept = collector.passing(windows)
        windows, row_of, ends = windows[kept], row_of[kept], ends[kept]
        for start in range(0, ends.size, slice_size):
            part = slice(start, start + slice_size)
            here = [chosen(logits, row_of[part], ends[part]).float() for logits in all_logits]
            collector.add(windows[part], [one.softmax(dim=-1).to(here[0].device) for one in here])
    return collector


def read_soft(
    model: Any,
    sequences: Sequence[ArrayLike] | NDArray[Any],
    window: int,
    vocab_size: int,
    *,
    prompts: Sequence[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    skip_seen: bool = True,
    full_context: bool = False,
    from_start: bool = False,
    shared: Watermark | None = None,
    feeding: Feeding | Sequence[Feeding] | None = None,
    batch_size: int = 64,
    top: int = 128,
    progress: str | None = None,
) -> contrast.Contrast:
    """The weighted pairs of soft reading (:mod:`radio_utils.soft`), for :func:`radio_utils.soft.judge_soft`.

    Which places are scored is settled by the texts before B reads them. What hidden draws of a text said is no evidence
    there, as in hard reading.

    Parameters
    ----------
    model, sequences
        As in :func:`read_open_model`.
    window, vocab_size
        As in :func:`radio_utils.evidence.collect`.
    prompts, keep
        As in :func:`read_open_model`.
    skip_seen : bool
        Whether lists are sealed, as marked text needs; without it every place is scored, as plain text allows.
    full_context
        As in :func:`read_open_model`.
    from_start, shared
        As in :func:`read_evidence`.
    feeding, batch_size, top, progress
        As in :func:`read_open_model`.

    Returns
    -------
    Contrast
        The distinct pairs and their weights. They depend on no key, so audits score them again.

    Raises
    ------
    ValueError
        As :func:`read_open_model` does.

    Notes
    -----
    Where the list depends on the token too, each token's draw is looked for in what was drawn earlier in the context.
    """
    contexts = _Contexts.of(sequences, prompts, 0 if from_start else window, vocab_size)
    places = Places.of_texts(contexts.ids, np.array(contexts.prompt_sizes, np.int64), window, full_context, from_start)
    by_token = skip_seen and shared is not None and not shared.one_list_a_window
    chosen_places = places.known.copy()
    if skip_seen and not by_token:
        chosen_places &= places.sealed(shared)
    collector = contrast.ContrastCollector(window, vocab_size, 1, top=min(top, FEW) if by_token else top, keep=keep)
    collector.skip(int(np.count_nonzero(places.asked & ~chosen_places)))
    chosen_places[chosen_places] = collector.passing(places.windows(chosen_places))
    hidden = places.hidden_of_texts() if skip_seen else {}
    for rows, (logits,) in read(
        [model], contexts.ids, vocab_size, fed=contexts.fed(feeding, 1), batch_size=batch_size, progress=progress
    ):
        for i, of_text in zip(rows, logits, strict=True):
            begin, end = int(places.begins[i]), int(places.begins[i] + places.sizes[i])
            at = begin + np.flatnonzero(chosen_places[begin:end])
            if at.size == 0:
                continue
            windows, expected = places.windows_at(at), of_text[torch.from_numpy(at - begin - 1)].float().softmax(dim=-1)
            for ending, token in hidden.get(i, ()):  # any window may have the hidden one's list where windows share lists
                told = np.all(windows[:, window - ending.size :] == ending, axis=1) | (shared is not None)
                expected[torch.from_numpy(told).to(expected.device), token] = 0.0
            for row in np.flatnonzero(windows[:, 0] < 0).tolist():  # and any run of the prompt an earlier answer's start
                begun, before = windows[row][windows[row] >= 0], contexts.ids[i][: contexts.prompt_sizes[i]]
                for j in range(begun.size, before.size):
                    if before[j] >= 0 and np.array_equal(before[j - begun.size : j], begun):
                        expected[row, before[j]] = 0.0
            if by_token and shared is not None:
                tokens = expected.topk(collector.top, dim=-1).indices
                before = begin + np.flatnonzero(places.drawn[begin:end])
                each = np.repeat(at, collector.top), tokens.cpu().numpy().ravel()
                told = looked_at(places, shared, *each, before)
                kept = torch.from_numpy(~told).reshape(tokens.shape).to(expected.device)
                expected = torch.zeros_like(expected).scatter(1, tokens, expected.gather(1, tokens) * kept)
            collector.add(windows, [expected])
    words, sums, counts = collector.sums()
    return weights_of(collector.packing, words, sums[:, 0] / np.maximum(counts, 1.0), collector.seen)


_LARGEST = 1 << 25  # probabilities of one model that are held at once


@dataclass(frozen=True)
class _Contexts:
    """What is fed to a model, save gaps: each text behind its prompt."""

    ids: list[Ids]
    prompt_sizes: list[int]

    @classmethod
    def of(cls, sequences: Any, prompts: Any, window: int, vocab_size: int) -> _Contexts:
        texts = ev.checked_texts("sequences", sequences, vocab_size, shortest=1)
        if not texts:
            raise ValueError("sequences is empty; there is nothing to read")
        given = [np.zeros(0, np.int64)] * len(texts)
        if prompts is not None:
            given = ev.checked_prompts(prompts, vocab_size, shortest=0)
            if len(given) != len(texts):
                raise ValueError(f"prompts and sequences must be equal in number, got {len(given)} and {len(texts)}")
        ids = [np.concatenate(pair) for pair in zip(given, texts, strict=True)]
        for i, context in enumerate(ids):
            if (size := ev.without_gaps(context).size) <= window:
                raise ValueError(f"sequences[{i}] has {size} tokens with its prompt; more than window={window} are needed")
        return cls(ids, [prompt.size for prompt in given])

    def fed(self, feeding: Feeding | Sequence[Feeding] | None, models: int) -> list[list[Ids]] | None:
        """What each of the models is fed in place of each context; None where that is the context itself."""
        if feeding is None:
            bare = [ev.without_gaps(ids) for ids in self.ids]
            return None if all(a.size == b.size for a, b in zip(bare, self.ids, strict=True)) else [bare] * models
        each = [feeding] * models if isinstance(feeding, Feeding) else list(feeding)
        if len(each) != models:
            raise ValueError(f"feeding must be one for each of the {models} models, or one for all, got {len(each)}")
        if all(one.bare for one in each):
            return self.fed(None, models)
        split = [(ids[:size], ids[size:]) for ids, size in zip(self.ids, self.prompt_sizes, strict=True)]
        return [[np.concatenate([one.prompt(prompt), text]) for prompt, text in split] for one in each]

    def scored(self, i: int, window: int, skip_seen: bool, from_start: bool) -> tuple[Ids, Ids, int]:
        """Windows of context i whose next token lies in the sequence, where each ends, and how many could be scored."""
        context, start = self.ids[i], self.prompt_sizes[i]
        if not from_start:
            windows, places, seen = ev.following(context, start, window, skip_seen=skip_seen)
            whole = (windows >= 0).all(axis=1)  # else a gap lies in it
            return windows[whole], places[whole] - 1, seen
        answer = np.concatenate([np.full(window, -1), context[start:]])
        first = window + bool((context[:start] < 0).all())  # before it nothing is fed
        windows, places, seen = ev.following(answer, first, window, skip_seen=skip_seen)
        return windows, places - window + start - 1, seen
