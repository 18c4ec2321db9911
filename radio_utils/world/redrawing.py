"""What Bob may do to Alice's text before he trains on it: draw some of its words anew with his own model.

This stands in for a paraphrase. A word that is drawn anew has lost its mark, and the window that follows it is no longer
the one under which the next word was marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from radio_utils import decoding
from radio_utils.decoding.passes import device_of
from radio_utils.suspects.forward import read
from radio_utils.suspects.vocabulary import size_of
from radio_utils.world import instructions
from radio_utils.world.instructions import Pair


@torch.inference_mode()
def redraw(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    share: float,
    *,
    sampling: decoding.Sampling,
    generator: np.random.Generator,
    batch_size: int = 64,
) -> list[Pair]:
    """The pairs, with about ``share`` of the tokens of each answer drawn anew from the model, given what stands before.

    Raises ``ValueError`` for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    prompts, answers = instructions.prompt_ids(tokenizer, pairs), instructions.answer_ids(tokenizer, pairs)
    chance = torch.Generator(device_of(model)).manual_seed(int(generator.integers(1 << 62)))
    contexts = [np.concatenate(both) for both in zip(prompts, answers, strict=True)]
    result = list(pairs)
    for rows, (logits,) in read([model], contexts, size_of(tokenizer), batch_size=batch_size, fewer=_FEWER):
        padded = torch.nn.utils.rnn.pad_sequence(logits, batch_first=True).float()
        padded[..., tokenizer.eos_token_id] = -torch.inf  # a text keeps its length
        drawn = decoding.draw(decoding.warp(padded.flatten(0, 1), sampling), chance).view(padded.shape[:2]).cpu().numpy()
        for row, i in enumerate(rows):
            before, size = prompts[i].size, answers[i].size
            anew = generator.random(size) < share
            tokens = np.where(anew, drawn[row, before - 1 : before + size - 1], answers[i])
            result[i] = Pair(pairs[i].instruction, tokenizer.decode(tokens).strip() or pairs[i].answer)
    return result


_FEWER = "the {} tokens of the tokenizer; give the one that the model was trained with"
