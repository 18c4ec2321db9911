"""The filter φ: which windows may be scored. It is chosen without the key."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils.evidence.checks import Ids
from radio_utils.evidence.packing import Packing, Words, is_member, unique_words
from radio_utils.watermarks import as_ids


class Filter:
    """The windows that may be scored: ``windows`` [m, words], packed and sorted, None for all."""

    def __init__(self, keep: ArrayLike | None, packing: Packing) -> None:
        """``keep`` are the windows [m, k], None for all. Raises ``ValueError`` as :func:`checked_filter`."""
        self._packing = packing
        self.windows: Words | None = None
        if keep is not None:
            self.windows = unique_words(packing.pack_windows(checked_filter(keep, packing.window, packing.vocab_size)))

    def passing(self, words: Words) -> NDArray[np.bool_]:
        """Which packed pairs, or windows, [n, words] may be scored: bool [n]."""
        if self.windows is None:
            return np.ones(words.shape[0], bool)
        return is_member(self._packing.windows_of(words), self.windows)


def checked_filter(keep: ArrayLike, window: int, vocab_size: int) -> Ids:
    """The filter φ as int64 [m, k], or an error that says what is wrong with it; rows may begin with −1."""
    try:
        given = np.asarray(keep)
        started = given.dtype.kind == "i" and given.size > 0 and bool(np.any(given == -1))
    except ValueError:
        started = False
    rows = as_ids("keep", np.where(given == -1, 0, given) if started else keep, vocab_size)
    if rows.ndim != 2 or rows.shape[1] != window:
        raise ValueError(f"keep must be windows of shape [m, {window}], got {list(rows.shape)}")
    if not started:
        return rows
    missing = given == -1
    if np.any(missing[:, 1:] & ~missing[:, :-1]):
        raise ValueError("keep holds -1 after a token id; -1 stands for positions before an answer's start only")
    return np.where(missing, -1, rows)
