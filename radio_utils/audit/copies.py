"""Texts that stand in others word for word, whatever was cut, lost or spelt otherwise here and there.

Whole texts are a poor thing to compare, as one token makes another text. What is compared is long runs of tokens: two texts
that were written apart share hardly any.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
RUN = 20  # tokens: a phrase that many use is seldom as long, nor the opening of a text that served as a prompt
_AT_ONCE = 1 << 17  # tokens of the other texts that are looked at together
_MIX, _STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1342543DE82EF95)


def standing_in(texts: Sequence[Ids], others: Sequence[Ids]) -> NDArray[np.bool_]:
    """Which of the texts [n] are copies: more than half of a text's tokens lie in runs of ``RUN`` that ``others`` hold too.

    Runs are known by a hash of 64 bits. Among 10⁷ runs and 10⁷ others two are mistaken for each other with a probability
    of 10⁻⁵ at most, and one such mistake makes no copy of a text of more than 2 · ``RUN`` tokens.
    """
    sizes = np.array([text.size for text in texts], np.int64)
    tokens, owner = _joined(texts, end=-1), np.repeat(np.arange(sizes.size), sizes + 1)
    wanted, which = np.unique(_hashes(tokens), return_inverse=True)
    found = np.zeros(wanted.size, bool)
    for some in _batches(others) if wanted.size else ():
        hashes = np.sort(_hashes(_joined(some, end=-2)))  # in order, as they are found ten times sooner so
        places = np.minimum(np.searchsorted(wanted, hashes), wanted.size - 1)
        found[places[wanted[places] == hashes]] = True
    starts = np.flatnonzero(found[which])
    edges = np.zeros(tokens.size + 1, np.int64)
    edges[starts] += 1
    edges[starts + RUN] -= 1
    copied = np.bincount(owner[np.cumsum(edges)[:-1] > 0], minlength=sizes.size)
    return 2 * copied > sizes


def _joined(texts: Iterable[Ids], end: int) -> Ids:
    """One after the other, each with an ``end`` that is no token, so that a run in two of them stands nowhere."""
    return np.concatenate([np.zeros(0, np.int64), *(part for text in texts for part in (text, [end]))], dtype=np.int64)


def _batches(texts: Sequence[Ids]) -> Iterable[Sequence[Ids]]:
    ends = np.cumsum([text.size for text in texts])
    cuts = [*np.flatnonzero(np.diff(ends // _AT_ONCE, prepend=0)), len(texts)]
    return (texts[start:end] for start, end in zip([0, *cuts], cuts, strict=False))


def _hashes(tokens: Ids) -> NDArray[np.uint64]:
    """A hash of each run of ``RUN`` tokens; none where there are fewer tokens."""
    count = max(0, tokens.size - RUN + 1)
    mixed, found = tokens.astype(np.uint64) * _MIX, np.zeros(count, np.uint64)
    mixed ^= mixed >> np.uint64(29)
    for place in range(RUN if count else 0):
        found = found * _STEP + mixed[place : place + count]
    return found
