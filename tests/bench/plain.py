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


def _halves(factor: int, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The upper and the lower 32 bits of a product, in signed integers of 64."""
    low, high = factor * (words & 0xFFFF), factor * (words >> 16)
    middle = (low >> 16) + (high & 0xFFFF)
    return (high >> 16) + (middle >> 16), (middle & 0xFFFF) << 16 | low & 0xFFFF


def _philox(words: list[torch.Tensor], keys: list[torch.Tensor | int]) -> list[torch.Tensor]:
    for _ in range(10):
        (one, two), (three, four) = _halves(0xD2511F53, words[0]), _halves(0xCD9E8D57, words[2])
        words = [three ^ words[1] ^ keys[0], four, one ^ words[3] ^ keys[1], two]
        keys = [keys[0] + 0x9E3779B9 & 0xFFFFFFFF, keys[1] + 0xBB67AE85 & 0xFFFFFFFF]
    return words


def vllm_gumbel(texts: Sequence[Sequence[int]], window: int, key: int) -> Scored:
    """vLLM's Gumbel mark as its detector goes about it: contexts in a set, then torch, four ids of context at most."""
    windows, tokens = [], []
    for text in texts:
        seen, before = set(), [-1] * window
        for token in text:
            context = tuple(before[-window:])
            if context not in seen:
                seen.add(context)
                windows.append(context)
                tokens.append(token)
            before.append(token)
    contexts, drawn = torch.tensor(windows) & 0xFFFFFFFF, torch.tensor(tokens)
    blank = torch.zeros_like(drawn)
    start = [blank + 0x574D4358, blank + window, blank, blank]
    slots = [contexts[:, i] if i < window else blank + 0xFFFFFFFF - i for i in range(4)]
    low, high = key & 0xFFFFFFFF, key >> 32
    state = _philox([word ^ slot for word, slot in zip(start, slots, strict=True)], [low, high])
    out = _philox([drawn >> 2, *state[:3]], [state[3] ^ low, high ^ 0x574D544B])
    word = torch.stack(out).gather(0, (drawn & 3)[None])[0]
    uniforms = (((word >> 8) + 1).double() / (2**24 + 1)).float().double()
    return Scored(np.array(windows), np.array(tokens), (-torch.log1p(-uniforms)).numpy())
