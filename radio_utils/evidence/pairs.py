"""Sets of distinct (window, token) pairs, collected a block at a time and merged like sets."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils.evidence.checks import (
    DEDUPS,
    Dedup,
    Ids,
    between_gaps,
    check_dedup,
    checked_prompts,
    checked_texts,
    joined_lists,
    refuse_strings,
    too_short,
)
from radio_utils.evidence.filters import Filter
from radio_utils.evidence.packing import NOTHING, Packing, Words, is_member, joined, merged, split_words, unique_words
from radio_utils.evidence.windows import all_windows, rows_among, run_begins
from radio_utils.files import written
from radio_utils.watermarks import Watermark, as_ids, check_ids
from radio_utils.watermarks.prf import PRF


def shared_by(wm: Watermark) -> Watermark | None:
    """The watermark where its windows share draws, which then must be left out together; None for all others."""
    return wm if wm.shares_colours else None


_BLOCK = 1 << 20  # tokens that are packed and sorted at once
_SLACK = 4  # runs wait until they are 1/4 of the set, so that each pair is moved a bounded number of times


@dataclass(frozen=True, eq=False)
class Evidence:
    """Pairs to be scored, as a sorted set of packed words in ``parts`` that follow one another.

    ``seen`` counts the positions looked at, before exclusion, filter, sampling and de-duplication. Without
    de-duplication (``dedup=None``) it is a list of pairs, with its repeats, in no particular order.
    """

    packing: Packing
    parts: tuple[Words, ...]
    seen: int
    dedup: Dedup = "window+token"

    def __len__(self) -> int:
        return sum(part.shape[0] for part in self.parts)

    def __repr__(self) -> str:
        size = f"{len(self):,} pairs of {self.seen:,} positions"
        return f"Evidence({size}, window={self.packing.window}, dedup={self.dedup!r})"

    @cached_property
    def _unpacked(self) -> tuple[Ids, Ids]:
        return self.packing.unpack(joined(self.parts, self.packing))

    @property
    def windows(self) -> Ids:
        """The windows [n, k]; 8·k bytes a pair, so iterate over :meth:`blocks` where there are very many."""
        return self._unpacked[0]

    @property
    def tokens(self) -> Ids:
        """The tokens [n]."""
        return self._unpacked[1]

    def blocks(self, size: int = 1 << 17) -> Iterator[tuple[Ids, Ids]]:
        """Windows and tokens, ``size`` pairs at a time. The cuts depend on the set alone, not on how it was collected."""
        waiting: list[Words] = []
        held = 0
        for part in self.parts:
            start = 0
            while part.shape[0] - start >= size - held:
                end = start + size - held
                yield self.packing.unpack(joined((*waiting, part[start:end]), self.packing))
                start, waiting, held = end, [], 0
            if start < part.shape[0]:
                waiting.append(part[start:])
                held += part.shape[0] - start
        if held:
            yield self.packing.unpack(joined(waiting, self.packing))

    def merge(self, *others: Evidence) -> Evidence:
        """The evidence of all shards together, de-duplicated anew."""
        if any(part.dedup != self.dedup or part.packing != self.packing for part in others):
            raise ValueError(
                "evidence with different windows, vocabularies or de-duplication cannot be merged; collect it the same way"
            )
        collector = Collector(self.packing, dedup=self.dedup)
        for one in (self, *others):
            collector.take(one)
        return collector.evidence()

    def without(self, known: Evidence) -> Evidence:
        """The pairs that ``known`` does not hold: what is fresh in a new batch of answers.

        With ``dedup="window"`` a pair is fresh only if its window is. Raises ``ValueError`` for evidence without
        de-duplication, or if the two were not collected the same way.
        """
        if known.dedup != self.dedup or known.packing != self.packing:
            raise ValueError(
                "evidence with different windows, vocabularies or de-duplication cannot be compared; collect it the same "
                "way"
            )
        if self.dedup is None:
            raise ValueError("dedup=None keeps repeats, of which none is fresh; collect with 'window+token' or 'window'")
        mine, theirs = (joined(one.parts, self.packing) for one in (self, known))
        if self.dedup == "window":
            told, known_windows = self.packing.windows_of(mine), self.packing.windows_of(theirs)
            return Evidence(self.packing, (mine[~is_member(told, known_windows)],), self.seen, self.dedup)
        return Evidence(self.packing, (mine[~is_member(mine, theirs)],), self.seen, self.dedup)

    def holds(self, words: Words) -> NDArray[np.bool_]:
        """Whether each packed pair [n, words] is in the evidence, which must have been de-duplicated."""
        return is_member(words, joined(self.parts, self.packing))

    def holds_window(self, words: Words) -> NDArray[np.bool_]:
        """Whether the window of each packed pair [n, words] is in the evidence, which must have been de-duplicated."""
        return is_member(self.packing.windows_of(words), self.packing.windows_of(joined(self.parts, self.packing)))

    def save(self, path: str | Path) -> None:
        """Write the evidence to an ``.npz`` file, all or nothing: another machine's shard, to be merged later."""
        with written(path) as file:
            np.savez(
                file, words=joined(self.parts, self.packing), seen=self.seen, dedup=self.dedup or "none",
                window=self.packing.window, vocab_size=self.packing.vocab_size,
            )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> Evidence:
        """Read what :meth:`save` wrote. Raises ``ValueError`` for any other file."""
        try:
            with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                packing = Packing(int(file["window"]), int(file["vocab_size"]))
                words, seen, name = file["words"], int(file["seen"]), str(file["dedup"])
        except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no evidence that can be read: {error}") from error
        known: dict[str, Dedup] = {one or "none": one for one in DEDUPS}
        if name not in known or words.dtype != np.uint64 or words.ndim != 2 or words.shape[1] != packing.words:
            raise ValueError(f"{path} holds no evidence of this version: dedup={name!r}, words {words.shape}")
        return cls(packing, (words,), seen, known[name])


class Collector:
    """Builds evidence from any number of texts, in memory that grows with the number of distinct pairs only.

    The set is a list of sorted leaves. New pairs wait in sorted runs until they are a quarter of the set; then they are
    merged into the leaves one leaf at a time. So a pair costs 8 bytes a word, a quarter more for the runs, and a bounded
    number of moves: time is linear in the tokens.
    """

    def __init__(
        self,
        packing: Packing,
        *,
        keep: ArrayLike | None = None,
        dedup: Dedup = "window+token",
        sample: float = 1.0,
        shared: Watermark | None = None,
        hidden: bool = False,
        from_start: bool = False,
    ) -> None:
        """``keep`` is the filter φ [m, k]. ``sample`` < 1 keeps that share of the *windows*, chosen by a public hash.

        ``shared``, ``hidden`` and ``from_start`` are those of :func:`collect`.
        """
        check_dedup(dedup)
        if not 0.0 < sample <= 1.0:
            raise ValueError(f"sample must lie in (0, 1], the share of windows that is scored, got {sample}")
        self.packing, self.dedup, self.sample, self.seen = packing, dedup, sample, 0
        self._shared, self._hidden, self._from_start = shared, hidden, from_start
        self._filter = Filter(keep, packing)
        self._leaves: list[Words] = []
        self._runs: list[Words] = []

    def add(self, texts: Iterable[ArrayLike], prompts: Iterable[ArrayLike] | None = None, *, first: int = 0) -> None:
        """Collect the pairs of some texts, each with its prompt if there are any. ``first`` numbers them in errors."""
        shortest = self.packing.window + 1
        if prompts is None and (joined := joined_lists(texts, shortest, self.packing.vocab_size)) is not None:
            self._add_flat(*joined, None)
            return
        if prompts is not None and self._from_start:
            shortest = 1
        sequences = checked_texts("texts", texts, self.packing.vocab_size, shortest=shortest, first=first)
        given = None
        if prompts is not None:
            given = checked_prompts(prompts, self.packing.vocab_size, shortest=0, first=first)
            if len(given) != len(sequences):
                raise ValueError(
                    f"prompts and texts must be equal in number, got {len(given)} prompts for {len(sequences)} texts"
                )
        start = 0
        while start < len(sequences):  # blocks of about a million tokens
            end, size = start, 0
            while end < len(sequences) and (end == start or size + sequences[end].size <= _BLOCK):
                size += sequences[end].size
                end += 1
            self._add_block(sequences[start:end], None if given is None else given[start:end])
            start = end

    def add_rows(self, rows: NDArray[Any]) -> None:
        """Collect the pairs of texts of equal length, a checked int array [texts, length]."""
        step = max(1, _BLOCK // rows.shape[1])
        length = rows.shape[1] - self.packing.window
        for start in range(0, rows.shape[0], step):
            block = rows[start : start + step]
            columns = [block[:, i : i + length].reshape(-1) for i in range(self.packing.window + 1)]
            self.add_words(self.packing.pack(columns))

    def _add_block(self, sequences: list[Ids], prompts: list[Ids] | None) -> None:
        if prompts is not None and self._from_start:
            before = np.full(self.packing.window, self.packing.vocab_size, np.int64)
            sequences = [np.concatenate([before, sequence]) for sequence in sequences]
        flat = sequences[0] if len(sequences) == 1 else np.concatenate(sequences)
        self._add_flat(flat, np.array([s.size for s in sequences]), prompts)

    def _add_flat(self, flat: Ids, lengths: NDArray[np.int64], prompts: list[Ids] | None) -> None:
        k = self.packing.window
        unsigned = flat.astype(np.int64, copy=False).view(np.uint64)
        words = self.packing.pack([unsigned[i : flat.size - k + i] for i in range(k + 1)])
        if lengths.size > 1:  # windows that straddle two texts
            ends = np.cumsum(lengths)[:-1]
            inside = np.ones(words.shape[0], bool)
            inside[(ends[:, None] - 1 - np.arange(k)).ravel()] = False
            words = words[inside]
        seen = words.shape[0]
        if prompts is not None:
            owner = np.repeat(np.arange(lengths.size), lengths - k)
            words = words[~_shown_by_prompt(self.packing, words, owner, prompts, self._shared, self._hidden)]
        self.add_words(words, seen)

    def add_words(self, words: Words, seen: int | None = None) -> None:
        """Collect packed pairs; ``seen`` positions were looked at to find them (by default as many)."""
        self.seen += words.shape[0] if seen is None else seen
        if self._filter.windows is not None:
            words = words[self._filter.passing(words)]
        if self.sample < 1.0:
            words = words[_sampled(self.packing.windows_of(words), self.sample)]
        if words.shape[0] == 0:
            return
        self._runs.append(words if self.dedup is None else unique_words(words))
        if self.dedup is not None:
            waiting = sum(run.shape[0] for run in self._runs)
            if waiting > max(4 * _BLOCK, sum(leaf.shape[0] for leaf in self._leaves) // _SLACK):
                self._settle()

    def take(self, found: Evidence) -> None:
        """Collect all of another evidence."""
        self.seen += found.seen
        self._runs.extend(part for part in found.parts if part.shape[0])
        if self.dedup is not None:
            self._settle()

    def _settle(self) -> None:
        """Merge the waiting runs into the leaves, one leaf at a time."""
        runs, self._runs = self._runs, []
        bounds = np.array([leaf[0, 0] for leaf in self._leaves[1:]], np.uint64)
        cuts = [[0, *np.searchsorted(run[:, 0], bounds).tolist(), run.shape[0]] for run in runs]
        leaves: list[Words] = []
        for number in range(max(1, len(self._leaves))):
            pieces = [run[cut[number] : cut[number + 1]] for run, cut in zip(runs, cuts, strict=True)]
            if self._leaves:
                pieces.insert(0, self._leaves[number])
                self._leaves[number] = NOTHING  # free it as soon as it is merged
            leaves += split_words(merged(pieces))
        self._leaves = leaves

    def evidence(self) -> Evidence:
        """What was collected so far."""
        if self.dedup is None:
            return Evidence(self.packing, tuple(self._runs), self.seen, self.dedup)
        if self._runs:
            self._settle()
        parts = tuple(leaf for leaf in self._leaves if leaf.shape[0])
        if self.dedup == "window":
            parts = _first_of_each_window(self.packing, parts)
        return Evidence(self.packing, parts, self.seen, self.dedup)


def collect(
    texts: Iterable[ArrayLike],
    window: int,
    vocab_size: int,
    *,
    prompts: Iterable[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    dedup: Dedup = "window+token",
    sample: float = 1.0,
    shared: Watermark | None = None,
    hidden: bool = False,
    from_start: bool = False,
) -> Evidence:
    """Every token of the texts with the ``window`` tokens before it, less what may not be scored.

    A window that occurs anywhere in the text's own prompt is not scored: the prompt may be marked, and B may have copied
    what follows. With ``shared``, the watermark, a window is left out as well if its list, or the pair's colour, is one
    that the prompt has drawn from. With ``hidden`` the prompt's first ``window`` tokens may have been drawn after windows
    that it does not show, so the same token is not scored after any window that may have been one of those. The same goes
    for the first ``window`` tokens after −1 in a prompt: there something may have stood that is not known, as a chat's
    template between two turns, and no window reaches across it. Windows lie wholly inside the text. With ``from_start``
    and prompts each text is an answer of an engine whose contexts begin with the answer: its first ``window`` tokens are
    scored too, after windows that −1 fills up, save where the prompt holds the same run of tokens.

    ``texts`` is never held whole; what memory is needed, and what ``sample`` does, is said at :func:`radio_utils.detect`. A
    corpus can also be collected in shards (:meth:`Evidence.save`) whose windows are told apart by ``keep``.

    Parameters
    ----------
    texts : iterable of array_like of int [length]
        Token ids, one row a text; read once.
    window : int
        k, the number of tokens before the scored one.
    vocab_size : int
        V, the number of token ids.
    prompts, keep, dedup, sample
        As in :func:`radio_utils.detection.detect`.
    shared : Watermark, optional
        The watermark, where windows share lists.
    hidden : bool
        Whether something may have stood before the prompts.
    from_start : bool
        Whether texts that have prompts are scored from their first token on (:attr:`Watermark.marks_start`).

    Returns
    -------
    Evidence
        The distinct pairs and how many positions were seen.

    Raises
    ------
    ValueError
        For an empty or too short text, ids outside the vocabulary, or unequal numbers of prompts.

    Notes
    -----
    P. Fernandez et al., *Three Bricks to Consolidate Watermarks for Large Language Models*, 2023.

    Examples
    --------
    >>> from radio_utils import evidence
    >>> found = evidence.collect([[1, 2, 1, 2, 3]], window=1, vocab_size=10)
    >>> len(found), found.seen
    (3, 4)
    """
    collector = Collector(
        Packing(window, vocab_size), keep=keep, dedup=dedup, sample=sample, shared=shared, hidden=hidden,
        from_start=from_start,
    )  # fmt: skip
    if isinstance(texts, np.ndarray) and texts.ndim == 2 and texts.shape[0] and prompts is None:
        rows = check_ids("texts", texts, vocab_size)
        if rows.shape[1] <= window:
            raise ValueError(too_short("texts[0]", rows.shape[1], window + 1))
        collector.add_rows(rows)
        return collector.evidence()
    for name, given in (("texts", texts), ("prompts", prompts)):
        refuse_strings(name, given)
    count = 0
    for block, asked in _blocks_of(texts, prompts):
        collector.add(block, asked, first=count)
        count += len(block)
    if count == 0:
        raise ValueError("texts is empty; there is nothing to score")
    return collector.evidence()


def _blocks_of(
    texts: Iterable[ArrayLike], prompts: Iterable[ArrayLike] | None
) -> Iterator[tuple[list[Any], list[Any] | None]]:
    """Texts and prompts together, about a million tokens at a time."""
    source, asked = iter(texts), None if prompts is None else iter(prompts)
    done = 0
    while True:
        block: list[Any] = []
        size = 0
        for text in source:
            block.append(text)
            size += len(text) if isinstance(text, Sequence) or np.ndim(text) else 1  # type: ignore[arg-type]
            if size >= _BLOCK:
                break
        given = None
        if asked is not None:
            given = [prompt for _, prompt in zip(block, asked, strict=False)]
            surplus = sum(1 for _ in asked) if not block or size < _BLOCK else 0
            if len(given) + surplus != len(block):
                raise ValueError(
                    f"prompts and texts must be equal in number, got {done + len(given) + surplus} prompts for "
                    f"{done + len(block)} texts"
                )
        if not block:
            return
        done += len(block)
        yield block, given
        if size < _BLOCK:
            return


def from_pairs(
    windows: ArrayLike,
    tokens: ArrayLike,
    vocab_size: int,
    *,
    seen: int | None = None,
    keep: ArrayLike | None = None,
    dedup: Dedup = "window+token",
) -> Evidence:
    """Evidence from pairs that something else picked out: reading mode scores B's predictions, not a text's tokens.

    Parameters
    ----------
    windows : array_like of int [n, k]
        The windows, oldest token first.
    tokens : array_like of int [n]
        The token after each.
    vocab_size : int
        V, the number of token ids.
    seen : int, optional
        Positions that were looked at; n without it.
    keep, dedup
        As in :func:`radio_utils.detection.detect`.

    Returns
    -------
    Evidence
        The distinct pairs.

    Raises
    ------
    ValueError
        For shapes that do not fit, or ids outside the vocabulary.

    Notes
    -----
    What picks the pairs must not know the key.

    Examples
    --------
    >>> from radio_utils import evidence
    >>> len(evidence.from_pairs([[1], [1], [2]], [5, 5, 6], vocab_size=10))
    2
    """
    rows, ids = as_ids("windows", windows, vocab_size), as_ids("tokens", tokens, vocab_size)
    if rows.ndim != 2 or ids.shape != rows.shape[:1]:
        raise ValueError(f"windows must have shape [n, k] and tokens [n], got {list(rows.shape)} and {list(ids.shape)}")
    collector = Collector(Packing(rows.shape[1], vocab_size), keep=keep, dedup=dedup)
    collector.add_words(collector.packing.pack([*rows.T, ids]), ids.size if seen is None else seen)
    return collector.evidence()


def _shown_by_prompt(
    packing: Packing, words: Words, owner: Ids, prompts: list[Ids], shared: Watermark | None, hidden: bool
) -> NDArray[np.bool_]:
    """Whether what decides a pair's score may have spoken in its own text's prompt; elsewhere it may be scored."""
    pieces = [(i, number, piece) for i, prompt in enumerate(prompts) for number, piece in enumerate(between_gaps(prompt))]
    windows, of_piece = all_windows([piece for _, _, piece in pieces], packing.window)
    whose = np.array([i for i, _, _ in pieces], np.int64)[of_piece]

    def owned(packed: Words, owners: Ids) -> Words:
        return np.column_stack([owners.astype(np.uint64), packed])

    known = unique_words(owned(packing.pack_windows(windows), whose))
    found = is_member(owned(packing.windows_of(words), owner), known)
    started = np.flatnonzero(packing.from_start(words))
    found[started] |= after_start(*packing.unpack(words[started]), owner[started], prompts)
    begun = [
        (i, piece[:t], int(piece[t]))
        for i, number, piece in pieces
        if hidden or number
        for t in range(min(packing.window, piece.size))
    ]
    if begun:
        found |= after_hidden(*packing.unpack(words), owner, begun, any_window=shared is not None)
    if shared is not None and windows.size:
        left = np.flatnonzero(~found)
        found[left] = _shares_with_prompt(shared, *packing.unpack(words[left]), owner[left], windows, whose)
    return found


def after_hidden(
    windows: Ids, tokens: Ids, owner: Ids, hidden: Sequence[tuple[int, Ids, int]], *, any_window: bool
) -> NDArray[np.bool_]:
    """Which pairs [n] have a token that a hidden draw of their own text gave, after a window that may have been theirs.

    ``hidden`` draws are the text, the tokens in which its window is known to end, and the token. With ``any_window`` other
    windows may have the hidden one's list, so that its end says nothing.
    """
    found = np.zeros(tokens.size, bool)
    for known in sorted({ending.size for _, ending, _ in hidden}):
        told = [(i, token, *([] if any_window else ending)) for i, ending, token in hidden if ending.size == known]
        own = () if any_window else windows.T[windows.shape[1] - known :]
        found |= rows_among(np.column_stack([owner, tokens, *own]), np.array(told, np.int64))
    return found


def after_start(windows: Ids, tokens: Ids, owner: Ids, prompts: Sequence[Ids]) -> NDArray[np.bool_]:
    """Which pairs [n] with windows that begin with −1 are a run of tokens in their own prompt.

    The prompt may hold an earlier answer, whose first tokens were drawn after the same windows.
    """
    found, known = np.zeros(tokens.size, bool), np.count_nonzero(windows >= 0, axis=1)
    for size in np.unique(known[windows[:, 0] < 0]).tolist():
        at = np.flatnonzero(known == size)
        runs, whose = all_windows(prompts, size + 1)
        own = np.column_stack([owner[at], windows[at, windows.shape[1] - size :], tokens[at]])
        found[at] = rows_among(own, np.column_stack([whose, runs]))
    return found


def _shares_with_prompt(wm: Watermark, windows: Ids, tokens: Ids, owner: Ids, shown: Ids, whose: Ids) -> NDArray[np.bool_]:
    """Which pairs have a list, or a colour, that a window of their own prompt has drawn from."""
    if wm.one_list_a_window:
        own, other = (wm.colour_ids(w, np.zeros(len(w), np.int64)).astype(np.int64) for w in (windows, shown))
        return rows_among(np.column_stack([owner, own]), np.column_stack([whose, other]))
    found, begins = np.zeros(tokens.size, bool), np.searchsorted(whose, np.arange(int(owner.max(initial=-1)) + 2))
    for i in np.unique(owner).tolist():  # every window of the prompt with every token of the text
        at, there = np.flatnonzero(owner == i), shown[begins[i] : begins[i + 1]]
        each = np.tile(there, (at.size, 1)), np.repeat(tokens[at], len(there))
        same = wm.colour_ids(*each).reshape(at.size, -1) == wm.colour_ids(windows[at], tokens[at])[:, None]
        found[at] = same.any(axis=1)
    return found


_SAMPLING = PRF("which windows a sample holds")  # public on purpose: the choice must not depend on anybody's key


def _sampled(windows: Words, share: float) -> NDArray[np.bool_]:
    """A pseudo-random share of the windows, the same in every shard of a corpus."""
    chosen: NDArray[np.bool_] = _SAMPLING.hash_windows(windows) < np.uint64(int(share * (2**64 - 1)))
    return chosen


def _first_of_each_window(packing: Packing, parts: tuple[Words, ...]) -> tuple[Words, ...]:
    """Each window once, with the smallest of its tokens.

    The smallest rather than the first met, so that the order of the texts is of no matter; the choice knows nothing of
    the key, so the null distribution holds.
    """
    chosen, last = [], None
    for part in parts:
        windows = packing.windows_of(part)
        new = run_begins(windows)
        if last is not None and np.array_equal(windows[0], last):
            new[0] = False
        last = windows[-1]
        chosen.append(part[new])
    return tuple(one for one in chosen if one.shape[0])
