"""Evidence: the distinct (window, token) pairs of token sequences.

Under the null hypothesis the scores of *distinct* pairs are independent; the scores of repeated pairs are equal. So a
pair counts once in a test, over all texts (``dedup="window+token"``, the second variant of Sander et al. 2024); the
stricter variant counts a window once. Evidence merges like a set: shards of a corpus collected apart give the verdict
of the whole, whatever the order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils.watermarks import as_ids

Ids = NDArray[np.int64]
Dedup = Literal["window+token", "window"] | None
DEDUPS: tuple[Dedup, ...] = ("window+token", "window", None)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Pairs to be scored: ``windows`` [n, k] and ``tokens`` [n], in order of first appearance.

    ``seen`` counts the positions looked at, before exclusion, filter and de-duplication.
    """

    windows: Ids
    tokens: Ids
    seen: int
    dedup: Dedup = "window+token"

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def merge(self, *others: Evidence) -> Evidence:
        """The evidence of all shards together, de-duplicated anew."""
        parts = (self, *others)
        if any(part.dedup != self.dedup or part.windows.shape[1] != self.windows.shape[1] for part in parts):
            raise ValueError("evidence with different windows or de-duplication cannot be merged; collect it the same way")
        windows = np.concatenate([part.windows for part in parts])
        tokens = np.concatenate([part.tokens for part in parts])
        windows, tokens = deduplicate(windows, tokens, self.dedup)
        return Evidence(windows, tokens, sum(part.seen for part in parts), self.dedup)


def collect(
    texts: Iterable[ArrayLike],
    window: int,
    vocab_size: int,
    *,
    prompts: Iterable[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    dedup: Dedup = "window+token",
) -> Evidence:
    """Every token of the texts with the ``window`` tokens before it, less what may not be scored.

    A window that occurs anywhere in the text's own prompt is not scored: B may have copied what follows. With ``keep``,
    an array [m, k], only those windows are scored (the filter φ). Windows lie wholly inside the text.

    Raises ``ValueError`` for an empty or too short text, ids outside the vocabulary, or unequal numbers of prompts.
    """
    _check_dedup(dedup)
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}; use the watermark's own window")
    sequences = checked_texts("texts", texts, vocab_size, shortest=window + 1)
    given = None if prompts is None else checked_texts("prompts", prompts, vocab_size, shortest=0)
    if given is not None and len(given) != len(sequences):
        raise ValueError(f"prompts and texts must be equal in number, got {len(given)} prompts for {len(sequences)} texts")

    lengths = np.array([s.size for s in sequences])
    windows, tokens, owner = _slide(sequences, lengths, window)
    seen = int(tokens.size)
    allowed = np.ones(seen, bool)
    if given is not None:
        prompt_windows, prompt_owner = all_windows(given, window)
        # a window is excluded only in the text whose prompt holds it: tell them apart by their owner
        own = np.column_stack([owner, windows])
        allowed &= ~_is_member(own, np.column_stack([prompt_owner, prompt_windows]))
    if keep is not None:
        allowed &= _is_member(windows, checked_filter(keep, window, vocab_size))
    windows, tokens = deduplicate(windows[allowed], tokens[allowed], dedup)
    return Evidence(windows, tokens, seen, dedup)


def from_pairs(
    windows: Ids, tokens: Ids, *, seen: int, keep: ArrayLike | None = None, dedup: Dedup = "window+token"
) -> Evidence:
    """Evidence from pairs that something else picked out: reading mode scores B's predictions, not a text's tokens."""
    if keep is not None:
        allowed = _is_member(windows, checked_filter(keep, windows.shape[1], np.iinfo(np.int64).max))
        windows, tokens = windows[allowed], tokens[allowed]
    windows, tokens = deduplicate(windows, tokens, dedup)
    return Evidence(windows, tokens, seen, dedup)


def deduplicate(windows: Ids, tokens: Ids, dedup: Dedup) -> tuple[Ids, Ids]:
    """Each pair once, in order of first appearance; or each window once, with the smallest of its tokens.

    The smallest rather than the first, so that the result does not depend on the order of the texts; the choice knows
    nothing of the key, so the null distribution holds.
    """
    _check_dedup(dedup)
    if dedup is None or tokens.size == 0:
        return windows, tokens
    first = first_rows(np.column_stack([windows, tokens]))
    windows, tokens = windows[first], tokens[first]
    if dedup == "window":
        by_token = np.argsort(tokens, kind="stable")
        chosen = by_token[first_rows(windows[by_token])]
        chosen.sort()
        windows, tokens = windows[chosen], tokens[chosen]
    return windows, tokens


def first_rows(rows: Ids) -> NDArray[np.intp]:
    """Indices, ascending, of the first appearance of each distinct row."""
    if rows.shape[0] == 0:
        return np.zeros(0, np.intp)
    return np.sort(np.unique(_row_keys(rows), return_index=True)[1])


def frequent_windows(texts: Iterable[ArrayLike], window: int, vocab_size: int, *, at_least: int = 1) -> Ids:
    """The filter φ: windows that occur at least ``at_least`` times in the texts, as an array [m, k].

    Supervised, the texts are D̃ᴬ and once is enough; unsupervised, fresh watermarked text of A, where frequency stands
    for "likely seen in training".
    """
    if at_least < 1:
        raise ValueError(f"at_least must be 1 or more, got {at_least}")
    windows, _ = all_windows(checked_texts("texts", texts, vocab_size, shortest=0), window)
    if windows.shape[0] == 0:
        return windows
    _, index, counts = np.unique(_row_keys(windows), return_index=True, return_counts=True)
    return windows[np.sort(index[counts >= at_least])]


def all_windows(sequences: Sequence[Ids], window: int) -> tuple[Ids, Ids]:
    """Every run of ``window`` tokens in the sequences, [m, k], and the number [m] of the sequence that holds it."""
    found = [np.lib.stride_tricks.sliding_window_view(s, window) for s in sequences if s.size >= window]
    owner = [np.full(s.size - window + 1, i, np.int64) for i, s in enumerate(sequences) if s.size >= window]
    if not found:
        return np.zeros((0, window), np.int64), np.zeros(0, np.int64)
    return np.concatenate(found), np.concatenate(owner)


def checked_texts(name: str, texts: Any, vocab_size: int, *, shortest: int) -> list[Ids]:
    """Token sequences as int64 arrays, or a ``ValueError`` that names the text at fault."""
    if isinstance(texts, str | bytes):
        raise ValueError(f"{name} must be sequences of token ids, got a string; tokenise it first")
    sequences = [as_ids(f"{name}[{i}]", text, vocab_size) for i, text in enumerate(texts)]
    if not sequences and name == "texts":
        raise ValueError("texts is empty; there is nothing to score")
    for i, sequence in enumerate(sequences):
        if sequence.ndim != 1:
            raise ValueError(f"{name}[{i}] must be a flat sequence of token ids, got shape {list(sequence.shape)}")
        if sequence.size < shortest:
            raise ValueError(
                f"{name}[{i}] has {sequence.size} tokens; at least {shortest} are needed to fill a window and score one "
                "token: drop such texts first"
            )
    return sequences


def checked_filter(keep: ArrayLike, window: int, vocab_size: int) -> Ids:
    """The filter φ as int64 [m, k], or an error that says what is wrong with it."""
    array = as_ids("keep", keep, vocab_size)
    if array.ndim != 2 or array.shape[1] != window:
        raise ValueError(f"keep must be windows of shape [m, {window}], got {list(array.shape)}")
    return array


def _check_dedup(dedup: Dedup) -> None:
    if dedup not in DEDUPS:
        raise ValueError(f"dedup must be one of {DEDUPS}, got {dedup!r}")


def _slide(sequences: Sequence[Ids], lengths: NDArray[np.int64], window: int) -> tuple[Ids, Ids, Ids]:
    """All (window, next token) of the concatenation that do not straddle two texts, and their text's number."""
    flat = np.concatenate(sequences)
    ends = np.cumsum(lengths)
    owner = np.repeat(np.arange(lengths.size), lengths)
    position = np.arange(flat.size) - np.repeat(ends - lengths, lengths)
    at = np.flatnonzero(position >= window)
    windows = np.stack([flat[at - window + i] for i in range(window)], axis=1)
    return windows, flat[at], owner[at]


def _row_keys(rows: Ids) -> NDArray[Any]:
    """One comparable key for each row of non-negative ids: packed into 64 bits where they fit, else as raw bytes."""
    widths = [max(1, int(column.max()).bit_length()) for column in rows.T]
    if sum(widths) <= 64:
        packed = np.zeros(rows.shape[0], np.uint64)
        for column, width in zip(rows.T, widths, strict=True):
            packed = (packed << np.uint64(width)) | column.astype(np.uint64)
        return packed
    return np.ascontiguousarray(rows).view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()


def _is_member(rows: Ids, among: Ids) -> NDArray[np.bool_]:
    """Whether each row is one of the rows of ``among``."""
    if rows.shape[0] == 0 or among.shape[0] == 0:
        return np.zeros(rows.shape[0], bool)
    keys = _row_keys(np.concatenate([rows, among]))  # packed together, so that the widths agree
    return np.isin(keys[: rows.shape[0]], keys[rows.shape[0] :])
