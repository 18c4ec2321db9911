"""Windows of token sequences: all of them, those that are frequent, and first appearances."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils.evidence.checks import Ids, checked_texts


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
    order, starts = grouped(rows)
    return np.sort(order[starts])


def first_appearances(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the values [n] were not met earlier in the row: bool [n]."""
    order = lexicographic(values[:, None])
    ordered, new = values[order], np.ones(values.size, bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    found = np.zeros(values.size, bool)
    found[order[new]] = True
    return found


def frequent_windows(
    texts: Iterable[ArrayLike], window: int, vocab_size: int, *, at_least: int = 1, from_start: bool = False
) -> Ids:
    """The filter φ: windows that occur in at least ``at_least`` of the texts, as a sorted array [m, k].

    Supervised, the texts are D̃ᴬ and one is enough; unsupervised they are fresh texts of A, where the number of texts stands
    for "likely seen in training". It is *texts* that are counted. Where they are marked, how often a window comes again
    within one depends on its own list, which may lead back to it; whether a text comes to it at all does not, for until
    then its list had no say. Where they are plain, nothing depends on a list.

    Parameters
    ----------
    texts : iterable of array_like of int [length]
        Token ids, one row a text.
    window, vocab_size
        As in :func:`radio_utils.evidence.collect`.
    at_least : int
        In how many texts a window must occur.
    from_start : bool
        Whether texts are whole answers, whose first windows −1 fills up (:attr:`Watermark.marks_start`).

    Returns
    -------
    int64 array [m, k]
        The windows, sorted.

    Raises
    ------
    ValueError
        For ids outside the vocabulary or ``at_least`` below 1.

    Notes
    -----
    T. Sander et al., *Watermarking Makes Language Models Radioactive*, NeurIPS 2024, section on the filter φ.

    Examples
    --------
    >>> from radio_utils import evidence
    >>> evidence.frequent_windows([[1, 2, 3], [2, 3, 4]], window=1, vocab_size=10, at_least=2)
    array([[2],
           [3]])
    """
    if at_least < 1:
        raise ValueError(f"at_least must be 1 or more, got {at_least}")
    rows = checked_texts("texts", texts, vocab_size, shortest=0)
    if from_start:
        rows = [np.concatenate([np.full(window, -1), row]) for row in rows]
    windows, owner = all_windows(rows, window)
    if windows.shape[0] == 0:
        return windows
    once = first_rows(np.column_stack([windows, owner]))
    windows = windows[once]
    order, starts = grouped(windows)
    counts = np.diff(starts, append=order.size)
    return windows[order[starts[counts >= at_least]]]


def lexicographic(words: NDArray[np.uint64], *, runs: bool = False) -> NDArray[np.intp]:
    """The order that ``np.lexsort(words.T[::-1])`` gives rows [n, c]: equal rows stay as they were.

    What is sorted are single words, a row's first bits with its number below them, without an indirection. Rows that agree
    in these bits are sorted again by their next ones, with the number of their group above them.
    """
    order = np.arange(words.shape[0])
    widths = [int(column.max(initial=0)).bit_length() for column in words.T]
    # places in the order whose rows agree with others in their first ``done`` bits, and the number of each one's group
    tied, group, done = order.copy(), np.zeros(order.size, np.uint64), 0
    while tied.size and done < sum(widths):
        rows, place = order[tied], int(tied.size - 1).bit_length()
        room = min(64 - place - int(group[-1]).bit_length(), sum(widths) - done)
        keys, begin, end = group, 0, done + room
        for column, width in zip(words.T, widths, strict=True):
            first, last = max(done, begin), min(end, begin + width)  # bits of the row, of which this column gives
            begin += width
            if first < last:
                bits = column[rows] >> np.uint64(begin - last)
                bits &= np.uint64((1 << (last - first)) - 1)
                keys = keys << np.uint64(last - first) | bits
        keys = keys << np.uint64(place) | np.arange(tied.size, dtype=np.uint64)
        keys.sort(kind="stable" if runs and not done else None)
        order[tied] = rows[(keys & np.uint64((1 << place) - 1)).view(np.int64)]
        keys >>= np.uint64(place)
        new = np.ones(tied.size + 1, bool)  # whether a group begins here
        np.not_equal(keys[1:], keys[:-1], out=new[1:-1])
        several = ~(new[1:] & new[:-1])
        tied, group, done = tied[several], np.cumsum(new[:-1][several], dtype=np.uint64), end
    return order


def grouped(rows: Ids) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """A stable order that puts equal rows together, and where each group starts in it."""
    order = lexicographic(rows.astype(np.uint64))
    return order, np.flatnonzero(run_begins(np.take(rows, order, axis=0)))


def run_begins(ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a run of equal rows begins: [n, m] → bool [n]."""
    new = np.ones(ordered.shape[0], bool)
    if ordered.shape[1] == 1:  # much quicker than any() of one
        np.not_equal(ordered[1:, 0], ordered[:-1, 0], out=new[1:])
    else:
        new[1:] = np.any(ordered[1:] != ordered[:-1], axis=1)
    return new


def all_windows(sequences: Sequence[Ids], window: int) -> tuple[Ids, Ids]:
    """Every run of ``window`` tokens in the sequences, [m, k], and the number [m] of the sequence that holds it."""
    found = [np.lib.stride_tricks.sliding_window_view(s, window) for s in sequences if s.size >= window]
    owner = [np.full(s.size - window + 1, i, np.int64) for i, s in enumerate(sequences) if s.size >= window]
    if not found:
        return np.zeros((0, window), np.int64), np.zeros(0, np.int64)
    return np.concatenate(found), np.concatenate(owner)


def rows_among(rows: Ids, among: Ids) -> NDArray[np.bool_]:
    """Whether each row [n, c] is one of the rows ``among`` [m, c]."""
    both = np.unique(np.concatenate([among, rows]), axis=0, return_inverse=True)[1].ravel()
    return np.isin(both[len(among) :], both[: len(among)])
