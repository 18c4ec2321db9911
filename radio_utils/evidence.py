"""Evidence: the distinct (window, token) pairs of token sequences.

Under the null hypothesis the scores of *distinct* pairs are independent, if the pairs were chosen without the key; the
scores of repeated pairs are equal. So a pair counts once in a test, over all texts (``dedup="window+token"``, the second
variant of Sander et al. 2024); the stricter variant counts a window once.

A pair is packed into one 64-bit word where it fits (k = 2 at any vocabulary up to two million tokens), else into two or
more. Evidence is a sorted set of such words. It merges like a set: shards of a corpus collected apart give the verdict of
the whole, bit for bit, whatever their number and order.
"""

from __future__ import annotations

import array
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils.parallel import side_by_side
from radio_utils.prf import PRF
from radio_utils.watermarks import as_ids, check_ids

Ids = NDArray[np.int64]
Words = NDArray[np.uint64]  # [n, words of a pair]
Dedup = Literal["window+token", "window"] | None
DEDUPS: tuple[Dedup, ...] = ("window+token", "window", None)


@runtime_checkable
class SharesColours(Protocol):
    """A scheme in which different pairs can have one and the same score, so that distinct pairs are no separate trials."""

    one_list_a_window: bool  # False: which list a token is looked up in depends on the token itself

    def colour_ids(self, windows: Ids, tokens: Ids) -> Words:
        """Which draw decides each pair's score: [n, k] and [n] → unsigned [n]. Equal numbers mean equal scores."""
        ...


@runtime_checkable
class SharesLists(SharesColours, Protocol):
    """A scheme whose lists have a fixed number of greens: what one list says of several tokens is not independent."""

    def list_ids(self, windows: Ids, tokens: Ids) -> Words:
        """Which list each pair is looked up in: [n, k] and [n] → unsigned [n]."""
        ...


def shared_by(wm: object) -> SharesColours | None:
    """The watermark where its windows share draws, which then must be left out together; None for all others."""
    return wm if isinstance(wm, SharesColours) else None


_BLOCK = 1 << 20  # tokens that are packed and sorted at once
_LEAF = 1 << 21  # pairs in a leaf of the sorted set, about twice what a leaf holds on average
_SORTED_AT_ONCE = 1 << 16
_SLACK = 4  # runs wait until they are 1/4 of the set, so that each pair is moved a bounded number of times


@dataclass(frozen=True)
class Packing:
    """How a window of ``window`` ids and a token become words: fields of equal width, the window's oldest id first.

    The order of the words is the order of (window, token), so that equal windows are neighbours.
    """

    window: int
    vocab_size: int

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}; use the watermark's own window")
        if self.vocab_size >= 1 << 63:
            raise ValueError(
                f"vocab_size must be below 2**63 for its ids to be signed 64-bit integers, got {self.vocab_size}; "
                "use the tokenizer's number of tokens"
            )

    @cached_property
    def bits(self) -> int:
        """Bits of one id."""
        return max(1, int(self.vocab_size - 1).bit_length())

    @cached_property
    def words(self) -> int:
        """64-bit words of one pair."""
        return len(self._fields)

    @cached_property
    def _fields(self) -> list[list[int]]:
        """Positions (0 is the oldest id of the window, ``window`` the token) in each word."""
        room, positions = 64 // self.bits, list(range(self.window + 1))
        first = len(positions) % room or room  # so that the last word, which holds the token, is full
        cuts = [0, *range(first, len(positions) + 1, room)]
        return [positions[a:b] for a, b in pairwise(cuts)]

    def pack(self, columns: Sequence[NDArray[Any]]) -> Words:
        """``window + 1`` arrays of ids, oldest first and the token last → words [n, words]."""
        words = []
        for positions in self._fields:
            word = columns[positions[0]].astype(np.uint64)
            for position in positions[1:]:
                word <<= np.uint64(self.bits)
                word |= columns[position].astype(np.uint64, copy=False)
            words.append(word)
        return words[0][:, None] if len(words) == 1 else np.stack(words, axis=1)

    def unpack(self, words: Words) -> tuple[Ids, Ids]:
        """Windows [n, window] and tokens [n] of packed pairs."""
        ids = np.empty((self.window + 1, words.shape[0]), np.int64)  # a column lies together: what follows runs along it
        mask = np.uint64((1 << self.bits) - 1)
        for number, positions in enumerate(self._fields):
            for place, position in enumerate(reversed(positions)):
                field = ids[position].view(np.uint64)
                np.right_shift(words[:, number], np.uint64(place * self.bits), out=field)
                field &= mask
        return ids[:-1].T, ids[-1]

    def windows_of(self, words: Words) -> Words:
        """The words with the token's field set to zero: equal for equal windows."""
        cleared = words.copy()
        cleared[:, -1] &= ~np.uint64((1 << self.bits) - 1)
        return cleared

    def pack_windows(self, windows: Ids) -> Words:
        """Windows [m, window] as :meth:`windows_of` gives them."""
        return self.pack([*windows.T, np.zeros(windows.shape[0], np.uint64)])


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
        return self.packing.unpack(_joined(self.parts, self.packing))

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
                yield self.packing.unpack(_joined((*waiting, part[start:end]), self.packing))
                start, waiting, held = end, [], 0
            if start < part.shape[0]:
                waiting.append(part[start:])
                held += part.shape[0] - start
        if held:
            yield self.packing.unpack(_joined(waiting, self.packing))

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
        mine, theirs = (_joined(one.parts, self.packing) for one in (self, known))
        if self.dedup == "window":
            told, known_windows = self.packing.windows_of(mine), self.packing.windows_of(theirs)
            return Evidence(self.packing, (mine[~_is_member(told, known_windows)],), self.seen, self.dedup)
        return Evidence(self.packing, (mine[~_is_member(mine, theirs)],), self.seen, self.dedup)

    def holds(self, words: Words) -> NDArray[np.bool_]:
        """Whether each packed pair [n, words] is in the evidence, which must have been de-duplicated."""
        return _is_member(words, _joined(self.parts, self.packing))

    def holds_window(self, words: Words) -> NDArray[np.bool_]:
        """Whether the window of each packed pair [n, words] is in the evidence, which must have been de-duplicated."""
        return _is_member(self.packing.windows_of(words), self.packing.windows_of(_joined(self.parts, self.packing)))

    def save(self, path: str | Path) -> None:
        """Write the evidence to an ``.npz`` file, all or nothing: another machine's shard, to be merged later."""
        target = Path(path)
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with unfinished.open("wb") as file:
                np.savez(
                    file, words=_joined(self.parts, self.packing), seen=self.seen, dedup=self.dedup or "none",
                    window=self.packing.window, vocab_size=self.packing.vocab_size,
                )  # fmt: skip
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)

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
        shared: SharesColours | None = None,
        hidden: bool = False,
    ) -> None:
        """``keep`` is the filter φ [m, k]. ``sample`` < 1 keeps that share of the *windows*, chosen by a public hash.

        ``shared`` and ``hidden`` are those of :func:`collect`.
        """
        check_dedup(dedup)
        if not 0.0 < sample <= 1.0:
            raise ValueError(f"sample must lie in (0, 1], the share of windows that is scored, got {sample}")
        self.packing, self.dedup, self.sample, self.seen = packing, dedup, sample, 0
        self._shared, self._hidden = shared, hidden
        self._keep: Words | None = None
        if keep is not None:
            self._keep = _unique(packing.pack_windows(checked_filter(keep, packing.window, packing.vocab_size)))
        self._leaves: list[Words] = []
        self._runs: list[Words] = []

    def add(self, texts: Iterable[ArrayLike], prompts: Iterable[ArrayLike] | None = None, *, first: int = 0) -> None:
        """Collect the pairs of some texts, each with its prompt if there are any. ``first`` numbers them in errors."""
        shortest = self.packing.window + 1
        if prompts is None and (joined := _joined_lists(texts, shortest, self.packing.vocab_size)) is not None:
            self._add_flat(*joined, None)
            return
        sequences = checked_texts("texts", texts, self.packing.vocab_size, shortest=shortest, first=first)
        given = None
        if prompts is not None:
            given = checked_texts("prompts", prompts, self.packing.vocab_size, shortest=0, first=first)
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
        if self._keep is not None:
            words = words[_is_member(self.packing.windows_of(words), self._keep)]
        if self.sample < 1.0:
            words = words[_sampled(self.packing.windows_of(words), self.sample)]
        if words.shape[0] == 0:
            return
        self._runs.append(words if self.dedup is None else _unique(words))
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
                self._leaves[number] = _NOTHING  # free it as soon as it is merged
            leaves += _split(_merged(pieces))
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


_NOTHING: Words = np.zeros((0, 1), np.uint64)


def collect(
    texts: Iterable[ArrayLike],
    window: int,
    vocab_size: int,
    *,
    prompts: Iterable[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    dedup: Dedup = "window+token",
    sample: float = 1.0,
    shared: SharesColours | None = None,
    hidden: bool = False,
) -> Evidence:
    """Every token of the texts with the ``window`` tokens before it, less what may not be scored.

    A window that occurs anywhere in the text's own prompt is not scored: the prompt may be marked, and B may have copied
    what follows. With ``shared``, the watermark, a window is left out as well if its list, or the pair's colour, is one
    that the prompt has drawn from. With ``hidden`` the prompt's first ``window`` tokens may have been drawn after windows
    that it does not show, so the same token is not scored after any window that may have been one of those. With ``keep``,
    an array [m, k], only those windows are scored (the filter φ). Windows lie wholly inside the text.

    ``texts`` is read once, a block of about a million tokens at a time, and is never held whole. Memory is 8 bytes for
    each distinct pair (16 where (k + 1) ids need more than 64 bits), a half more while they are merged, and about 100 MB.
    For what does not fit, ``sample`` = 1/16, say, scores only the windows whose public hash falls in that share: that
    hash knows nothing of the key, so p is as valid as without it, and the evidence is that of a sixteenth of the windows.
    A corpus can also be collected in shards (:meth:`Evidence.save`) whose windows are told apart by ``keep``.

    Raises ``ValueError`` for an empty or too short text, ids outside the vocabulary, or unequal numbers of prompts.
    """
    collector = Collector(Packing(window, vocab_size), keep=keep, dedup=dedup, sample=sample, shared=shared, hidden=hidden)
    if isinstance(texts, np.ndarray) and texts.ndim == 2 and texts.shape[0] and prompts is None:
        rows = check_ids("texts", texts, vocab_size)
        if rows.shape[1] <= window:
            raise ValueError(too_short("texts[0]", rows.shape[1], window + 1))
        collector.add_rows(rows)
        return collector.evidence()
    for name, given in (("texts", texts), ("prompts", prompts)):
        _refuse_strings(name, given)
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
    """Evidence from pairs that something else picked out: reading mode scores B's predictions, not a text's tokens."""
    rows, ids = as_ids("windows", windows, vocab_size), as_ids("tokens", tokens, vocab_size)
    if rows.ndim != 2 or ids.shape != rows.shape[:1]:
        raise ValueError(f"windows must have shape [n, k] and tokens [n], got {list(rows.shape)} and {list(ids.shape)}")
    collector = Collector(Packing(rows.shape[1], vocab_size), keep=keep, dedup=dedup)
    collector.add_words(collector.packing.pack([*rows.T, ids]), ids.size if seen is None else seen)
    return collector.evidence()


def padded(sequences: Sequence[Ids]) -> tuple[Ids, Ids]:
    """Sequences as one array, zeros on the right, and its attention mask: both int64 [n, longest]."""
    ids = np.zeros((len(sequences), max(sequence.size for sequence in sequences)), np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : sequence.size], mask[row, : sequence.size] = sequence, 1
    return ids, mask


def following(context: Ids, start: int, window: int, *, skip_seen: bool) -> tuple[Ids, Ids, int]:
    """What reading mode scores of a context: windows [m, k] whose next token lies at ``start`` or later, its place [m].

    With ``skip_seen`` a window that was met earlier in the context is left out: a model may copy what it saw after it. The
    third value counts the windows before that.
    """
    windows = np.lib.stride_tricks.sliding_window_view(context, window)[:-1]
    places = np.arange(window, context.size)
    allowed = places >= start
    seen = int(np.count_nonzero(allowed))
    if skip_seen:
        first = np.zeros(windows.shape[0], bool)
        first[first_rows(windows)] = True
        allowed &= first
    return windows[allowed], places[allowed], seen


def first_rows(rows: Ids) -> NDArray[np.intp]:
    """Indices, ascending, of the first appearance of each distinct row."""
    if rows.shape[0] == 0:
        return np.zeros(0, np.intp)
    order, starts = _grouped(rows)
    return np.sort(order[starts])


def first_appearances(values: Words) -> NDArray[np.bool_]:
    """Which of the values [n] were not met earlier in the row: bool [n]."""
    found = np.zeros(values.size, bool)
    found[np.unique(values, return_index=True)[1]] = True
    return found


def frequent_windows(texts: Iterable[ArrayLike], window: int, vocab_size: int, *, at_least: int = 1) -> Ids:
    """The filter φ: windows that occur in at least ``at_least`` of the texts, as a sorted array [m, k].

    Supervised, the texts are D̃ᴬ and one is enough; unsupervised they are fresh texts of A, where the number of texts stands
    for "likely seen in training". It is *texts* that are counted. Where they are marked, how often a window comes again
    within one depends on its own list, which may lead back to it; whether a text comes to it at all does not, for until
    then its list had no say. Where they are plain, nothing depends on a list.
    """
    if at_least < 1:
        raise ValueError(f"at_least must be 1 or more, got {at_least}")
    windows, owner = all_windows(checked_texts("texts", texts, vocab_size, shortest=0), window)
    if windows.shape[0] == 0:
        return windows
    once = first_rows(np.column_stack([windows, owner]))
    windows = windows[once]
    order, starts = _grouped(windows)
    counts = np.diff(starts, append=order.size)
    return windows[order[starts[counts >= at_least]]]


def _grouped(rows: Ids) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """A stable order that puts equal rows together, and where each group starts in it."""
    order = np.lexsort(rows.T[::-1])
    ordered = rows[order]
    new = np.ones(order.size, bool)
    new[1:] = np.any(ordered[1:] != ordered[:-1], axis=1)
    return order, np.flatnonzero(new)


def all_windows(sequences: Sequence[Ids], window: int) -> tuple[Ids, Ids]:
    """Every run of ``window`` tokens in the sequences, [m, k], and the number [m] of the sequence that holds it."""
    found = [np.lib.stride_tricks.sliding_window_view(s, window) for s in sequences if s.size >= window]
    owner = [np.full(s.size - window + 1, i, np.int64) for i, s in enumerate(sequences) if s.size >= window]
    if not found:
        return np.zeros((0, window), np.int64), np.zeros(0, np.int64)
    return np.concatenate(found), np.concatenate(owner)


def checked_texts(name: str, texts: Any, vocab_size: int, *, shortest: int, first: int = 0) -> list[Ids]:
    """Token sequences as int arrays, or a ``ValueError`` that names the text at fault."""
    _refuse_strings(name, texts)
    sequences = [
        checked_sequence(f"{name}[{i}]", text, vocab_size, shortest=shortest) for i, text in enumerate(texts, first)
    ]
    if not sequences and name == "texts":
        raise ValueError("texts is empty; there is nothing to score")
    return sequences


def checked_sequence(name: str, text: Any, vocab_size: int, *, shortest: int) -> Ids:
    """One token sequence as an int array [n], or a ``ValueError`` that begins with ``name``."""
    sequence = _as_sequence(name, text, vocab_size)
    if sequence.ndim != 1:
        raise ValueError(f"{name} must be a flat sequence of token ids, got shape {list(sequence.shape)}")
    if sequence.size < shortest:
        if shortest == 1:
            raise ValueError(f"{name} is empty; give it at least one token, or drop it")
        raise ValueError(too_short(name, sequence.size, shortest))
    return sequence


def _joined_lists(texts: Any, shortest: int, vocab_size: int) -> tuple[Ids, NDArray[np.int64]] | None:
    """Lists of plain ints as one array, and their lengths; None where anything is not so, which the slow way will name."""
    if type(texts) is not list or not all(type(text) is list and len(text) >= shortest for text in texts):
        return None
    if not texts or any(type(text[0]) is not int for text in texts):
        return None
    together = array.array("q")
    try:
        for text in texts:
            together.fromlist(text)
        return as_ids("texts", np.frombuffer(together, np.int64), vocab_size), np.array(list(map(len, texts)))
    except (TypeError, OverflowError, ValueError):
        return None


def _refuse_strings(name: str, texts: Any) -> None:
    if isinstance(texts, str | bytes):
        raise ValueError(f"{name} must be sequences of token ids, got a string; tokenise it first")


def _as_sequence(name: str, text: Any, vocab_size: int) -> Ids:
    """One text as ids. A list of plain ints takes a short cut, twice as fast as numpy's own conversion."""
    if type(text) is list and text and type(text[0]) is int:
        try:
            return as_ids(name, np.frombuffer(array.array("q", text), np.int64), vocab_size)
        except (TypeError, OverflowError):
            pass  # something else is in the list: let the general way say what
    return as_ids(name, text, vocab_size)


def too_short(name: str, size: int, shortest: int) -> str:
    """What to say of a text that holds no pair."""
    needed = f"at least {shortest} are needed to fill a window and score one token"
    return f"{name} has {size} tokens; {needed}: drop such texts first"


def checked_filter(keep: ArrayLike, window: int, vocab_size: int) -> Ids:
    """The filter φ as int64 [m, k], or an error that says what is wrong with it."""
    rows = as_ids("keep", keep, vocab_size)
    if rows.ndim != 2 or rows.shape[1] != window:
        raise ValueError(f"keep must be windows of shape [m, {window}], got {list(rows.shape)}")
    return rows


def check_dedup(dedup: Dedup) -> None:
    """Raise ``ValueError`` unless ``dedup`` is one of :data:`DEDUPS`."""
    if dedup not in DEDUPS:
        raise ValueError(f"dedup must be one of {DEDUPS}, got {dedup!r}")


# --- sorted sets of packed words --------------------------------------------------------------------------------------


def _joined(parts: Sequence[Words], packing: Packing) -> Words:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros((0, packing.words), np.uint64)


def _unique(words: Words) -> Words:
    """Sorted and each once."""
    if words.shape[1] == 1:
        if words.shape[0] < _SORTED_AT_ONCE:
            return _distinct(np.sort(words[:, 0])[:, None])
        halves = np.array_split(words[:, 0], 2)  # two cores sort a half each; merging sorted halves is quick
        return _merged([half[:, None] for half in side_by_side(np.sort, halves)])
    return _distinct(words[np.lexsort(words.T[::-1])])


def _merged(pieces: Sequence[Words]) -> Words:
    """The union of sorted sets. A stable sort of sorted runs merges them in linear time."""
    pieces = [piece for piece in pieces if piece.shape[0]]
    if len(pieces) == 1:
        return pieces[0].copy()  # a view would keep the whole run alive
    if not pieces:
        return _NOTHING
    words = np.concatenate(pieces)
    if words.shape[1] > 1:
        return _unique(words)
    words[:, 0].sort(kind="stable")
    return _distinct(words)


def _distinct(ordered: Words) -> Words:
    if ordered.shape[0] < 2:
        return ordered
    new = np.ones(ordered.shape[0], bool)
    if ordered.shape[1] == 1:
        np.not_equal(ordered[1:, 0], ordered[:-1, 0], out=new[1:])
    else:
        new[1:] = np.any(ordered[1:] != ordered[:-1], axis=1)
    return ordered if new.all() else ordered[new]


def _split(words: Words) -> list[Words]:
    """Leaves of bounded size; a leaf starts where the first word changes, so that bounds on it tell leaves apart."""
    leaves = []
    while words.shape[0] > _LEAF:
        middle = words[_LEAF // 2, 0]
        cut = int(np.searchsorted(words[:, 0], middle))
        if cut == 0:
            cut = int(np.searchsorted(words[:, 0], middle, side="right"))
        if cut == words.shape[0]:
            break
        leaves.append(words[:cut].copy())
        words = words[cut:]
    return [*leaves, words.copy() if leaves else words]


def _is_member(words: Words, among: Words) -> NDArray[np.bool_]:
    """Whether each row is one of the rows of the sorted set ``among``."""
    if words.shape[0] == 0 or among.shape[0] == 0:
        return np.zeros(words.shape[0], bool)
    if words.shape[1] == 1:
        at = np.searchsorted(among[:, 0], words[:, 0])
        found: NDArray[np.bool_] = among[np.minimum(at, among.shape[0] - 1), 0] == words[:, 0]
        return found
    both = np.concatenate([among, words]).astype(np.int64)  # the same bits: only equality matters
    order, starts = _grouped(both)
    known = np.zeros(both.shape[0], bool)
    in_among = np.add.reduceat(order < among.shape[0], starts) > 0
    known[order] = np.repeat(in_among, np.diff(starts, append=order.size))
    return known[among.shape[0] :]


def _shown_by_prompt(
    packing: Packing, words: Words, owner: Ids, prompts: list[Ids], shared: SharesColours | None, hidden: bool
) -> NDArray[np.bool_]:
    """Whether what decides a pair's score may have spoken in its own text's prompt; elsewhere it may be scored."""
    windows, whose = all_windows(prompts, packing.window)

    def owned(packed: Words, owners: Ids) -> Words:
        return np.column_stack([owners.astype(np.uint64), packed])

    known = _unique(owned(packing.pack_windows(windows), whose))
    found = _is_member(owned(packing.windows_of(words), owner), known)
    if hidden:
        begun = [(i, p[:t], int(p[t])) for i, p in enumerate(prompts) for t in range(min(packing.window, p.size))]
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


def _shares_with_prompt(
    wm: SharesColours, windows: Ids, tokens: Ids, owner: Ids, shown: Ids, whose: Ids
) -> NDArray[np.bool_]:
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


def rows_among(rows: Ids, among: Ids) -> NDArray[np.bool_]:
    """Whether each row [n, c] is one of the rows ``among`` [m, c]."""
    both = np.unique(np.concatenate([among, rows]), axis=0, return_inverse=True)[1].ravel()
    return np.isin(both[len(among) :], both[: len(among)])


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
        new = np.ones(part.shape[0], bool)
        new[1:] = np.any(windows[1:] != windows[:-1], axis=1)
        if last is not None and np.array_equal(windows[0], last):
            new[0] = False
        last = windows[-1]
        chosen.append(part[new])
    return tuple(one for one in chosen if one.shape[0])
