"""From logits to a token: temperature, top-k, nucleus, and the draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch

Logits = torch.Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn from the logits. ``temperature=0`` is greedy; ``top_k=0`` and ``top_p=1`` truncate nothing."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be finite and not negative (0 is greedy), got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative (0 keeps every token), got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")

    def warp(self, logits: Logits) -> Logits:
        """:func:`warp` with this sampling."""
        return warp(logits, self)


def apply_temperature(logits: Logits, temperature: float) -> Logits:
    """ℓ / T; T = 0 keeps only the largest logit."""
    if temperature == 0.0:
        return keep_top_k(logits, 1)
    return logits if temperature == 1.0 else logits / temperature


def keep_top_k(logits: Logits, k: int) -> Logits:
    """−∞ outside the k largest logits of each row (ties with the k-th are kept, as in transformers)."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_nucleus(logits: Logits, top_p: float) -> Logits:
    """−∞ outside the nucleus: the fewest most likely tokens whose probability reaches ``top_p``."""
    if top_p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=False)
    outside = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - top_p
    outside[..., -1] = False  # never drop the most likely token
    return logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)


def warp(logits: Logits, sampling: Sampling) -> Logits:
    """Temperature, then top-k, then nucleus: logits [n, V] → logits [n, V]."""
    return keep_nucleus(keep_top_k(apply_temperature(logits, sampling.temperature), sampling.top_k), sampling.top_p)


def draw(logits: Logits, generator: torch.Generator | None) -> torch.Tensor:
    """One token a row from softmax(logits), by the Gumbel-max trick: no normalisation and no 0/0. [n, V] → [n]."""
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).argmax(dim=-1)
