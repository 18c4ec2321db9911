"""Bob's data: mixtures with an exact share ρ from Alice's watermarked model, and what Alice kept.

Mixtures of one seed are nested: what is watermarked at a small ρ is watermarked at every larger one, so that a comparison
across ρ changes nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from radio_utils.world.instructions import Pair


class ShareError(ValueError):
    """A share outside [0, 1], or more data asked for than there is."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """D: ``watermarked`` is Dᴬ, the part that A wrote under her key; ``plain`` fills the rest."""

    rho: float
    watermarked: tuple[Pair, ...]
    plain: tuple[Pair, ...]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All of D, watermarked part first; training shuffles it."""
        return self.watermarked + self.plain

    def __len__(self) -> int:
        return len(self.watermarked) + len(self.plain)


def mix(
    watermarked: Sequence[Pair], plain: Sequence[Pair], rho: float, size: int, *, generator: np.random.Generator
) -> Mixture:
    """A mixture of ``size`` pairs of which exactly round(ρ·size) are watermarked."""
    chosen, rest = _draw(("watermarked", watermarked), ("plain", plain), "rho", rho, size, "lower size", generator)
    return Mixture(rho, chosen, rest)


@dataclass(frozen=True, slots=True)
class Kept:
    """D̃ᴬ, what Alice kept: ``used`` by Bob and ``unused``. d is the share of used ones."""

    used: tuple[Pair, ...]
    unused: tuple[Pair, ...]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All of D̃ᴬ."""
        return self.used + self.unused


def keep_with_degree(
    used: Sequence[Pair], unused: Sequence[Pair], d: float, size: int, *, generator: np.random.Generator
) -> Kept:
    """A set of ``size`` pairs of which exactly round(d·size) come from ``used``: degree of supervision d."""
    return Kept(*_draw(("used", used), ("unused", unused), "d", d, size, "lower size or d", generator))


def _draw(
    first: tuple[str, Sequence[Pair]],
    second: tuple[str, Sequence[Pair]],
    symbol: str,
    share: float,
    size: int,
    remedy: str,
    generator: np.random.Generator,
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """round(share·size) pairs of the first named pool and the rest of ``size`` from the second, at random."""
    check_share(symbol, share)
    if size < 1:
        raise ShareError(f"size must be at least 1 pair, got {size}")
    counts = round(share * size), size - round(share * size)
    for (name, pool), number in zip((first, second), counts, strict=True):
        if number > len(pool):
            raise ShareError(
                f"{symbol}={share} of {size} pairs needs {number} {name} pairs, but only {len(pool)} exist; {remedy}"
            )
    orders = generator.permutation(len(first[1])), generator.permutation(len(second[1]))
    chosen, rest = (
        tuple(pool[i] for i in order[:number])
        for (_, pool), order, number in zip((first, second), orders, counts, strict=True)
    )
    return chosen, rest


def check_share(name: str, value: float) -> None:
    """Raise :class:`ShareError` unless the share lies in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ShareError(f"{name} must be a share in [0, 1], got {value}; 5 % is 0.05")
