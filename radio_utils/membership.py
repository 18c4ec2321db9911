"""Membership inference without a watermark: is this text in B's training data?

The score of a text is B's loss on it divided by its zlib entropy, so that intrinsically simple text does not look like a
member (Carlini et al. 2021). The scores of candidates are compared with those of fresh text that B cannot have seen, by
a two-sample Kolmogorov–Smirnov test. Explained in the chapter "Membership inference".
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio_utils import pvalues

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]


def zlib_entropy(text: str) -> int:
    """Length in bytes of the zlib compression of the text."""
    return len(zlib.compress(text.encode(), 9))


def pieces(tokenizer: Any, texts: Sequence[str], *, length: int = 256, shortest: int = 8) -> list[str]:
    """Cut texts into pieces of at most ``length`` tokens; pieces under ``shortest`` tokens are dropped."""
    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    found: list[str] = []
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        cuts = [ids[i : i + length] for i in range(0, len(ids), length)]
        found.extend(tokenizer.decode(cut) for cut in cuts if len(cut) >= shortest)
    return found


def losses(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    batch_size: int = 64,
    max_length: int = 512,
) -> Floats:
    """B's total loss (nats) on each text, given its prompt if there is one: float array [n].

    Raises ``ValueError`` for no texts, an empty text, one longer than ``max_length`` tokens with its prompt (cut, its loss
    would be that of another text), or unequal numbers of prompts.
    """
    import torch

    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if isinstance(texts, str):
        raise ValueError("texts must be a sequence of strings, got one string; put it in a list")
    if not texts:
        raise ValueError("texts is empty; there is no loss to compute")
    if prompts is not None and len(prompts) != len(texts):
        raise ValueError(f"prompts and texts must be equal in number, got {len(prompts)} prompts for {len(texts)} texts")
    bodies = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    heads = [[] for _ in texts] if prompts is None else tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    rows = []
    for i, (head, body) in enumerate(zip(heads, bodies, strict=True)):
        if len(head) + len(body) < 2 or not body:
            raise ValueError(f"texts[{i}] is too short to have a loss: {texts[i]!r}; drop such texts first")
        if len(head) + len(body) > max_length:
            raise ValueError(
                f"texts[{i}] has {len(head) + len(body)} tokens with its prompt, more than max_length={max_length}; "
                "cut texts with membership.pieces first, or raise max_length"
            )
        rows.append((np.array(head + body), max(1, len(head))))
    order = np.argsort([ids.size for ids, _ in rows], kind="stable")
    result = np.zeros(len(rows))
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            result[batch] = _batch_losses(model, [rows[i] for i in batch], device)
    return result


def _batch_losses(model: Any, rows: list[tuple[NDArray[np.int64], int]], device: torch.device) -> Floats:
    import torch
    from torch.nn import functional

    longest = max(ids.size for ids, _ in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask, wanted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (tokens, start) in enumerate(rows):
        ids[row, : tokens.size] = torch.from_numpy(tokens)
        mask[row, : tokens.size] = 1
        wanted[row, start : tokens.size] = True
    ids, mask, wanted = ids.to(device), mask.to(device), wanted.to(device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    each = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (each.double() * wanted[:, 1:]).sum(dim=1).cpu().numpy()


def zlib_calibrated_losses(
    model: Any, tokenizer: Any, texts: Sequence[str], *, prompts: Sequence[str] | None = None, batch_size: int = 64
) -> Floats:
    """B's loss on each text (nats) over the text's zlib entropy (bytes): float array [n]; small looks like a member."""
    entropies = np.array([zlib_entropy(text) for text in texts], np.float64)
    return losses(model, tokenizer, texts, prompts=prompts, batch_size=batch_size) / entropies


@dataclass(frozen=True, slots=True)
class MembershipTest:
    """The two-sample test of candidates against fresh text. ``statistic`` is the KS distance."""

    statistic: float
    log10_p: float
    candidates: int
    fresh: int

    @property
    def p_value(self) -> float:
        """The p-value as a float; 0 where it underflows."""
        return float(10.0**self.log10_p)


def membership_test(candidate_scores: ArrayLike, fresh_scores: ArrayLike) -> MembershipTest:
    """Test H₀ "candidates and fresh text have the same scores" by a two-sided Kolmogorov–Smirnov test.

    Raises ``ValueError`` naming the sample that has fewer than 2 values, NaN or infinite values.
    """
    samples = {"candidate_scores": np.asarray(candidate_scores, float), "fresh_scores": np.asarray(fresh_scores, float)}
    for name, sample in samples.items():
        if sample.ndim != 1 or sample.size < 2:
            raise ValueError(f"{name} must be one-dimensional with at least 2 values, got shape {sample.shape}")
        if not np.all(np.isfinite(sample)):
            raise ValueError(f"{name} holds NaN or infinite values; drop them before testing")
    result = pvalues.ks_two_sample(*samples.values())
    sizes = [sample.size for sample in samples.values()]
    return MembershipTest(result.statistic, result.log10_p, sizes[0], sizes[1])


def candidates_needed(distance: float, d: float, log10_p: float) -> int:
    """Candidates (and as many fresh texts) for which a share ``d`` of members is expected to reach ``log10_p``.

    ``distance`` is the KS distance of members alone (d = 1). With a share d the distance is d·distance, and Smirnov's
    limit gives p ≈ 2 exp(−n·(d·distance)²) for n candidates and n fresh texts.
    """
    if not (0 < distance <= 1 and 0 < d <= 1 and log10_p < 0):
        raise ValueError(f"distance and d must lie in (0, 1] and log10_p below 0, got {distance}, {d}, {log10_p}")
    return math.ceil((math.log(2) - log10_p * math.log(10)) / (d * distance) ** 2)
