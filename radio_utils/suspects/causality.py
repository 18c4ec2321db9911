"""Does a model predict, or has it been shown? A probe before any reading.

A model that sees the tokens after a place "expects" what stands there without having learned anything: an encoder with a
language-model head, one that reads its prompt in both directions, an encoder-decoder that is given the text as its input.
On marked text it looks guilty, and no decoy key can show it. So each model is asked first whether later tokens change what
it said of earlier places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radio_utils.decoding.passes import LOOSE, alike, device_of, logits_of

Ids = NDArray[np.int64]

_LENGTH = 16  # tokens of the probe made up for it, or as many as the longest text has
_REAL, _REAL_LENGTH = 2, 256  # of the texts themselves so many are probed too, up to so many tokens
_TRIES = 2  # a router that rounding sent elsewhere is no leak, and does not do it twice


@torch.inference_mode()
def check_causal(model: Any, texts: Sequence[Ids], name: str = "the model") -> None:
    """Raise ``ValueError`` if tokens that follow a place change the model's logits there, or if places are not tokens.

    Texts that begin alike and go on differently are read: one made of the tokens of ``texts``, changed from every place on,
    and some of ``texts`` themselves, changed in the middle and near the end, for a model may read in both directions only
    up to a mark in the text. A model whose logits are not finite is left to the reading itself, which says so; texts of one
    token, or of one place, can be read by any model.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder-decoder, which is shown the whole text before it predicts a token of it; give a causal "
            "language model"
        )
    tokens, longest = np.unique(np.concatenate([text[:256] for text in texts[:64]])), max(text.size for text in texts)
    if tokens.size < 2 or longest < 2:
        return
    length = min(_LENGTH, longest)
    made_up = tokens[np.random.default_rng(0).integers(tokens.size, size=length)]
    order = sorted(range(len(texts)), key=lambda i: texts[i].size)
    chosen = [texts[order[-1]], texts[order[len(order) // 2]]][:_REAL]
    real = [text[:_REAL_LENGTH] for text in chosen if text.size > 2]
    for text, cuts in [(made_up, range(1, length)), *((one, (one.size // 2, one.size - 1)) for one in real)]:
        if not any(_blind(model, text, cuts, tokens, seed) for seed in range(_TRIES)):
            raise ValueError(
                f"{name} sees the tokens that it should predict: what follows a place changes its logits there, as in an "
                "encoder; load it as a decoder (is_decoder=True), or give a causal language model"
            )


def _blind(model: Any, text: Ids, cuts: Sequence[int], tokens: Ids, seed: int) -> bool:
    """Whether what is said before each cut stays when all tokens from there on are others."""
    shift = np.random.default_rng(seed).integers(1, tokens.size, size=text.size)
    others = tokens[(np.searchsorted(tokens, text) % tokens.size + shift) % tokens.size]
    rows = np.array([text, *(np.concatenate([text[:cut], others[cut:]]) for cut in cuts)])
    logits = logits_of(model, torch.from_numpy(rows).to(device_of(model)))
    return all(alike(logits[0, :cut], logits[row, :cut]) for row, cut in enumerate(cuts, start=1))


@torch.inference_mode()
def honours_padding(model: Any, texts: Sequence[Ids]) -> bool:
    """Whether a model says the same of a text that is padded on the right, beside a longer one, as of the text alone.

    Where it does not, texts are fed with others of their own length only.
    """
    tokens = np.unique(np.concatenate([text[:256] for text in texts[:64]]))
    length = min(_LENGTH, max(text.size for text in texts))
    if length < 2:
        return True
    device = device_of(model)
    made_up = torch.from_numpy(tokens[np.random.default_rng(1).integers(tokens.size, size=length)]).to(device)
    short = length // 2
    ids, mask = made_up.repeat(2, 1), torch.ones(2, length, dtype=torch.long, device=device)
    ids[1, short:], mask[1, short:] = 0, 0
    together, alone = logits_of(model, ids, mask)[1, :short], logits_of(model, made_up[None, :short])[0]
    return alike(alone, together, LOOSE)
