"""Pairs packed into 64-bit words, and sorted sets of such words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radio_utils.evidence.checks import Ids
from radio_utils.evidence.windows import grouped, lexicographic, run_begins
from radio_utils.parallel import side_by_side

Words = NDArray[np.uint64]  # [n, words of a pair]
LEAF = 1 << 21  # pairs in a leaf of the sorted set, about twice what a leaf holds on average
_SORTED_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Packing:
    """How a window of ``window`` ids and a token become words: fields of equal width, the window's oldest id first.

    A position before an answer's start, −1 in a window, is packed as the id ``vocab_size``. The order of the
    words is the order of (window, token), so that equal windows are neighbours.
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
        """Bits of one id, or of ``vocab_size``."""
        return int(self.vocab_size).bit_length()

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
        if ids[0].size and ids[0].max() == self.vocab_size:
            ids[:-1][ids[:-1] == self.vocab_size] = -1
        return ids[:-1].T, ids[-1]

    def windows_of(self, words: Words) -> Words:
        """The words with the token's field set to zero: equal for equal windows."""
        cleared = words.copy()
        cleared[:, -1] &= ~np.uint64((1 << self.bits) - 1)
        return cleared

    def from_start(self, words: Words) -> NDArray[np.bool_]:
        """Whether each window begins with −1: [n, words] → bool [n]."""
        above = np.uint64((len(self._fields[0]) - 1) * self.bits)
        begins: NDArray[np.bool_] = words[:, 0] >> above == self.vocab_size
        return begins

    def pack_pairs(self, windows: Ids, tokens: NDArray[Any]) -> Words:
        """Windows [m, window], which may begin with −1, and tokens [m] as words."""
        return self.pack([*np.where(windows < 0, self.vocab_size, windows).T, tokens])

    def pack_windows(self, windows: Ids) -> Words:
        """Windows [m, window] as :meth:`windows_of` gives them."""
        return self.pack_pairs(windows, np.zeros(windows.shape[0], np.uint64))


NOTHING: Words = np.zeros((0, 1), np.uint64)


# --- sorted sets of packed words --------------------------------------------------------------------------------------


def joined(parts: Sequence[Words], packing: Packing) -> Words:
    """Blocks of packed pairs as one."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros((0, packing.words), np.uint64)


def unique_words(words: Words) -> Words:
    """Sorted and each once."""
    if words.shape[0] < _SORTED_AT_ONCE:
        return distinct_words(_in_order(words))
    # two cores sort a half each; merging sorted halves is quick
    return merged(list(side_by_side(lambda half: distinct_words(_in_order(half)), np.array_split(words, 2))))


def merged(pieces: Sequence[Words]) -> Words:
    """The union of sorted sets."""
    pieces = [piece for piece in pieces if piece.shape[0]]
    if len(pieces) == 1:
        return pieces[0].copy()  # a view would keep the whole run alive
    return distinct_words(_in_order(np.concatenate(pieces), runs=True)) if pieces else NOTHING


def _in_order(words: Words, *, runs: bool = False) -> Words:
    """The rows in order. ``runs``: sorted sets follow one another, which a stable sort merges in linear time."""
    if words.shape[1] == 1:
        return np.sort(words[:, 0], kind="stable" if runs else None)[:, None]
    return np.take(words, lexicographic(words, runs=runs), axis=0)  # six times as quick as words[order]


def distinct_words(ordered: Words) -> Words:
    """Words in order, each once."""
    if ordered.shape[0] < 2:
        return ordered
    new = run_begins(ordered)
    return ordered if new.all() else ordered[new]


def split_words(words: Words) -> list[Words]:
    """Leaves of bounded size; a leaf starts where the first word changes, so that bounds on it tell leaves apart."""
    leaves = []
    while words.shape[0] > LEAF:
        middle = words[LEAF // 2, 0]
        cut = int(np.searchsorted(words[:, 0], middle))
        if cut == 0:
            cut = int(np.searchsorted(words[:, 0], middle, side="right"))
        if cut == words.shape[0]:
            break
        leaves.append(words[:cut].copy())
        words = words[cut:]
    return [*leaves, words.copy() if leaves else words]


def is_member(words: Words, among: Words) -> NDArray[np.bool_]:
    """Whether each row is one of the rows of the sorted set ``among``."""
    if words.shape[0] == 0 or among.shape[0] == 0:
        return np.zeros(words.shape[0], bool)
    if words.shape[1] == 1:
        at = np.searchsorted(among[:, 0], words[:, 0])
        found: NDArray[np.bool_] = among[np.minimum(at, among.shape[0] - 1), 0] == words[:, 0]
        return found
    both = np.concatenate([among, words]).astype(np.int64)  # the same bits: only equality matters
    order, starts = grouped(both)
    known = np.zeros(both.shape[0], bool)
    in_among = np.add.reduceat(order < among.shape[0], starts) > 0
    known[order] = np.repeat(in_among, np.diff(starts, append=order.size))
    return known[among.shape[0] :]
