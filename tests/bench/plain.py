"""The way most programs detect, written out plainly: one draw over the whole vocabulary for every token.

It is the yardstick of the benchmarks, and what :mod:`radio_utils.compat` must agree with bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

_MODULUS = 2**64 - 1
_FACTOR = 35317


@dataclass(frozen=True)
class Scored:
    """The distinct pairs in the order of their first appearance, and what each is worth."""

    windows: NDArray[np.int64]
    tokens: NDArray[np.int64]
    values: NDArray[np.float64]


def seed_of(window: Sequence[int], key: int) -> int:
    """The generator's seed after a window: a polynomial in its ids that starts from the key."""
    state = key
    for token in window:
        state = (state * _FACTOR + token) % _MODULUS
    return state


def _each(texts: Iterable[Sequence[int]], window: int, key: int, ask: Callable[[torch.Generator, int], float]) -> Scored:
    """Ask a freshly seeded generator about every distinct pair."""
    generator = torch.Generator()
    found: dict[tuple[int, ...], float] = {}
    for text in texts:
        for i in range(window, len(text)):
            pair = tuple(text[i - window : i + 1])
            if pair not in found:
                generator.manual_seed(seed_of(pair[:-1], key))
                found[pair] = ask(generator, pair[-1])
    pairs = np.array(list(found), np.int64)
    return Scored(pairs[:, :-1], pairs[:, -1], np.array(list(found.values())))


def green_list(texts: Iterable[Sequence[int]], vocab_size: int, window: int, gamma: float, key: int) -> Scored:
    """1 where the token is among the first ⌊γV⌋ of a permutation of the vocabulary, else 0."""
    greens = int(gamma * vocab_size)

    def ask(generator: torch.Generator, token: int) -> float:
        order = torch.randperm(vocab_size, generator=generator)
        return float((order[:greens] == token).any())

    return _each(texts, window, key, ask)


def gumbel_max(texts: Iterable[Sequence[int]], vocab_size: int, window: int, key: int) -> Scored:
    """The token's number r out of V fresh ones; its score is −ln(1 − r)."""

    def ask(generator: torch.Generator, token: int) -> float:
        return float(torch.rand(vocab_size, generator=generator)[token])

    return _each(texts, window, key, ask)
