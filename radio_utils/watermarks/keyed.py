"""Schemes over the keyed pseudo-random function: pairs are scored in blocks, under one key or many."""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils.parallel import side_by_side
from radio_utils.watermarks.base import Floats, Watermark
from radio_utils.watermarks.prf import PRF, Key, RowPRF, Words, id_steps, word_steps

BLOCK = 1 << 15  # pairs scored at once: the arrays of a block stay in a core's cache


@dataclass(frozen=True, slots=True)
class Block:
    """Pairs made ready to be scored under any number of keys: all that does not depend on the key is done once."""

    steps: list[Words]  # of the distinct windows, one array for each column
    distinct: int
    where: NDArray[np.intp] | None  # the distinct window of each pair; None where (nearly) all differ
    tokens: NDArray[np.int64]
    parts: tuple[Words, ...]  # what the scheme wants to know of the tokens


class Keyed(Watermark):
    """What both schemes share: pairs are scored in blocks, under one key or many."""

    _prf: PRF

    @abc.abstractmethod
    def with_key(self, key: Key) -> Keyed:
        """The same scheme and parameters under another key."""

    @abc.abstractmethod
    def _token_parts(self, tokens: NDArray[np.int64]) -> tuple[Words, ...]:
        """What does not depend on the key, for each token."""

    @abc.abstractmethod
    def _scores(self, states: Words, block: Block) -> Floats:
        """Scores of a block whose windows have these states under this key."""

    def _states(self, block: Block) -> Words:
        states = self._prf.absorb(block.steps, block.distinct)
        return states if block.where is None else states[block.where]

    def _blocks(self, windows: NDArray[np.int64], tokens: NDArray[np.int64]) -> Iterator[Block]:
        for start in range(0, tokens.size, BLOCK):
            t, (own, where) = tokens[start : start + BLOCK], distinct_rows(windows[start : start + BLOCK])
            yield Block([id_steps(column) for column in own.T], len(own), where, t, self._token_parts(t))

    def scores(self, windows: ArrayLike, tokens: ArrayLike) -> Floats:
        """Score of each token after its window: int arrays [n, k] and [n] → float array [n]."""
        w, t = self.checked(windows, tokens)
        found = [self._scores(self._states(block), block) for block in self._blocks(w, t)]
        return np.concatenate(found) if found else np.zeros(0)

    def totals(
        self, windows: ArrayLike, tokens: ArrayLike, others: Sequence[Watermark], weights: NDArray[np.int64] | None = None
    ) -> Floats:
        """Total score, or with ``weights`` weighted sum of marks, under each of ``others`` in one pass: [keys]."""
        w, t = self.checked(windows, tokens)
        same = [other for other in others if isinstance(other, Keyed) and other.parameters == self.parameters]
        if len(same) != len(others):
            raise ValueError("others must be the same scheme with the same parameters, under other keys; use with_key")

        def sums(numbered: tuple[int, Block]) -> list[float]:
            number, block = numbered
            scores = (other._scores(other._states(block), block) for other in same)
            if weights is None:
                return [float(s.sum()) for s in scores]
            q = weights[number * BLOCK : (number + 1) * BLOCK]
            return [float(q @ self.law.marks(s)) for s in scores]

        found = list(side_by_side(sums, enumerate(self._blocks(w, t))))
        return np.array(found).sum(axis=0) if found else np.zeros(len(others))

    @property
    def embedding(self) -> tuple[object, ...]:
        """All that generation depends on but the key."""
        return tuple(self.parameters.values())

    def in_rows(self, others: Sequence[Keyed]) -> Self:
        """The same scheme for the processor of a batch whose row i is written under the key of ``others[i]``.

        ``others`` have the same :attr:`embedding`. It knows whole rows only, and no fingerprint.
        """
        return self._with_prf(RowPRF([other._prf for other in others]))

    def _with_prf(self, prf: PRF) -> Self:
        changed = copy.copy(self)
        changed._prf = prf
        return changed


def distinct_rows(windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.intp] | None]:
    """Windows without neighbours that are equal, and which of them each row is; all of them and None where most differ."""
    new = np.zeros(len(windows), bool)
    new[:1] = True
    for column in windows.T:  # evidence is sorted: equal windows are neighbours
        new[1:] |= column[1:] != column[:-1]
    if 4 * int(np.count_nonzero(new)) >= 3 * len(windows):
        return windows, None
    return windows[new], np.cumsum(new) - 1


class LaneBuffer:
    """Lanes of whole vocabulary rows, in memory that is used again at the next step: fresh memory would cost more.

    For the processor only. One buffer serves one thread.
    """

    def __init__(self, prf: PRF, vocab_size: int, lane_bits: int) -> None:
        self._prf, self._vocab_size = prf, vocab_size
        self._kind = {8: np.uint8, 16: np.uint16, 32: np.uint32}[lane_bits]
        self._steps = word_steps(np.arange(-(-vocab_size * lane_bits // 64)))
        self._room: tuple[Words, Words] = (np.empty((0, 0), np.uint64), np.empty((0, 0), np.uint64))

    def rows(self, windows: NDArray[np.int64]) -> NDArray[Any]:
        """The lane of every token for each window: ints [n, k] → unsigned [n, V], valid until the next call."""
        shape = (windows.shape[0], self._steps.size)
        if self._room[0].shape != shape:
            self._room = (np.empty(shape, np.uint64), np.empty(shape, np.uint64))
        words = self._prf.words_at(self._prf.hash_windows(windows)[:, None], self._steps, into=self._room)
        return words.view(self._kind)[:, : self._vocab_size]
