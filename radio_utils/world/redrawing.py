"""What Bob may do to Alice's text before he trains on it: draw some of its words anew with his own model.

This stands in for a paraphrase. A word that is drawn anew has lost its mark, and the window that follows it is no longer
the one under which the next word was marked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from radio_utils import decoding, evidence
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
    device = next(model.parameters()).device
    chance = torch.Generator(device).manual_seed(int(generator.integers(1 << 62)))
    order = np.argsort([prompt.size + answer.size for prompt, answer in zip(prompts, answers, strict=True)], kind="stable")
    result = list(pairs)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size].tolist()
        ids, mask = evidence.padded([np.concatenate([prompts[i], answers[i]]) for i in rows])
        fed = {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)}
        logits = model(**fed, use_cache=False).logits[..., : len(tokenizer)].float()
        logits[..., tokenizer.eos_token_id] = -torch.inf  # a text keeps its length
        drawn = decoding.draw(decoding.warp(logits.flatten(0, 1), sampling), chance).view(logits.shape[:2]).cpu().numpy()
        for row, i in enumerate(rows):
            before, size = prompts[i].size, answers[i].size
            anew = generator.random(size) < share
            tokens = np.where(anew, drawn[row, before - 1 : before + size - 1], answers[i])
            result[i] = Pair(pairs[i].instruction, tokenizer.decode(tokens).strip() or pairs[i].answer)
    return result
