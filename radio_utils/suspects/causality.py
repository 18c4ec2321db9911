"""Does a model predict, or has it been shown? A probe before any reading.

A model that sees the tokens after a place "expects" what stands there without having learned anything: an encoder with a
language-model head, or one that reads its prompt in both directions. On marked text it looks guilty, and no decoy key can
show it. So each model is asked first whether later tokens change what it said of earlier places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_LENGTH = 16  # tokens of the probe, or as many as the longest text has
_TOLERANCE = 1e-4  # of the spread of the logits, in single precision: two texts of one shape are rounded alike


@torch.inference_mode()
def check_causal(model: Any, texts: Sequence[NDArray[np.int64]], name: str = "the model") -> None:
    """Raise ``ValueError`` if tokens that follow a place change the model's logits there, or if places are not tokens.

    Two texts made of the tokens of ``texts`` are read, that begin alike and go on differently. A model whose logits are not
    finite is left to the reading itself, which says so; texts of one token, or of one place, can be read by any model.
    """
    tokens, length = np.unique(np.concatenate([text[:256] for text in texts[:64]])), max(text.size for text in texts)
    length = min(_LENGTH, length)
    if tokens.size < 2 or length < 2:
        return
    first = np.random.default_rng(0).integers(tokens.size, size=length)
    second = np.concatenate([first[: length // 2], (first[length // 2 :] + 1) % tokens.size])
    device = next(model.parameters()).device
    read = []
    for row in (first, second):
        fed = torch.from_numpy(tokens[row][None]).to(device)
        read.append(model(input_ids=fed, attention_mask=torch.ones_like(fed), use_cache=False).logits)
    check_places(read[0], length, name)
    before, after = (one[0, : length // 2].float() for one in read)
    if bool((before.isfinite() & after.isfinite()).all()):
        allowed = max(_TOLERANCE, 2 * torch.finfo(read[0].dtype).eps) * (float(before.std(correction=0)) or 1.0)
        if float((before - after).abs().max()) > allowed:
            raise ValueError(
                f"{name} sees the tokens that it should predict: what follows a place changes its logits there, as in an "
                "encoder; load it as a decoder (is_decoder=True), or give a causal language model"
            )


def check_places(logits: torch.Tensor, length: int, name: str = "the model") -> None:
    """Raise ``ValueError`` unless there is one row of logits for each of ``length`` tokens."""
    if logits.shape[1] != length:
        raise ValueError(
            f"{name} gives logits at {logits.shape[1]} places for {length} tokens, so which place a prediction belongs to "
            "is not known (prompt tuning adds places of its own); give a model with one prediction a token"
        )
