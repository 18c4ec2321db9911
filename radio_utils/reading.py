"""The open-model test: reading mode.

B generates nothing. A watermarked text is fed through B once, and at every position B's most likely next token is scored
against the window taken from the *text* (Sander et al. 2024, section 4; chapter "Open model"). A window that was already
met earlier in the same context is not scored: B may merely copy the watermarked continuation that it saw there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from radio_utils import detection
from radio_utils import evidence as ev
from radio_utils.watermarks import Watermark

Ids = NDArray[np.int64]


def read_open_model(
    model: Any,
    sequences: Sequence[ArrayLike] | NDArray[Any],
    wm: Watermark,
    *,
    prompts: Sequence[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    dedup: ev.Dedup = "window+token",
    skip_seen: bool = True,
    batch_size: int = 64,
    progress: str | None = None,
) -> detection.Detection:
    """Test H₀ "B never learned from text watermarked with this key" on B's predictions along the sequences.

    ``sequences`` is an int array [n, length] or a list of token-id sequences; ``prompts``, one for each, are fed before
    them and not scored, as B saw them in training. ``keep`` is the filter φ. ``skip_seen=False`` scores windows already
    met in the context too, which is unsound where the text is watermarked: it is there to show why.

    Raises ``ValueError`` for ids outside the vocabulary, too short texts, unequal numbers of prompts and sequences, a
    model with fewer logits than the watermark has tokens, or NaN among its logits.
    """
    found = read_evidence(
        model, sequences, wm.window, wm.vocab_size,
        prompts=prompts, keep=keep, dedup=dedup, skip_seen=skip_seen, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    return detection.judge(found, wm)


@torch.inference_mode()
def read_evidence(
    model: Any,
    sequences: Sequence[ArrayLike] | NDArray[Any],
    window: int,
    vocab_size: int,
    *,
    prompts: Sequence[ArrayLike] | None = None,
    keep: ArrayLike | None = None,
    dedup: ev.Dedup = "window+token",
    skip_seen: bool = True,
    batch_size: int = 64,
    progress: str | None = None,
) -> ev.Evidence:
    """The (window, B's prediction) pairs of reading mode. They do not depend on any key: audits rescore them."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    texts = ev.checked_texts("sequences", sequences, vocab_size, shortest=1)
    if not texts:
        raise ValueError("sequences is empty; there is nothing to read")
    given = [np.zeros(0, np.int64)] * len(texts)
    if prompts is not None:
        given = ev.checked_texts("prompts", prompts, vocab_size, shortest=0)
        if len(given) != len(texts):
            raise ValueError(f"prompts and sequences must be equal in number, got {len(given)} and {len(texts)}")
    contexts = [np.concatenate(pair) for pair in zip(given, texts, strict=True)]
    for i, context in enumerate(contexts):
        if context.size <= window:
            raise ValueError(
                f"sequences[{i}] has {context.size} tokens with its prompt; more than window={window} are needed"
            )
    filter_windows = None if keep is None else ev.checked_filter(keep, window, vocab_size)

    found: list[tuple[Ids, Ids]] = []
    seen = 0
    order = np.argsort([context.size for context in contexts], kind="stable")
    device = next(model.parameters()).device
    model.eval()
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc=progress, disable=progress is None, unit="batch", mininterval=5.0):
        rows = order[start : start + batch_size]
        predicted = _predictions(model, [contexts[i] for i in rows], vocab_size, device)
        for i, prediction in zip(rows, predicted, strict=True):
            windows, tokens = _pairs(contexts[i], prediction, window, given[i].size, skip_seen)
            # every position that could be scored counts as seen, also the ones skipped
            seen += contexts[i].size - max(window, given[i].size)
            found.append((windows, tokens))
    back = np.argsort(order)  # in the order of the texts, so that curves follow it
    windows = np.concatenate([found[i][0] for i in back])
    tokens = np.concatenate([found[i][1] for i in back])
    return ev.from_pairs(windows, tokens, seen=seen, keep=filter_windows, dedup=dedup)


def _predictions(model: Any, contexts: list[Ids], vocab_size: int, device: torch.device) -> list[Ids]:
    """B's most likely next token after each position of each context, among the watermark's tokens."""
    longest = max(context.size for context in contexts)
    ids = np.zeros((len(contexts), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, context in enumerate(contexts):
        ids[row, : context.size], mask[row, : context.size] = context, 1
    output = model(
        input_ids=torch.from_numpy(ids).to(device), attention_mask=torch.from_numpy(mask).to(device), use_cache=False
    )
    if output.logits.shape[-1] < vocab_size:
        raise ValueError(
            f"the model has {output.logits.shape[-1]} logits, fewer than the watermark's vocab_size={vocab_size}; "
            "the suspect does not use Alice's tokenizer"
        )
    best = output.logits[..., :vocab_size].max(dim=-1)
    if bool((best.values.isnan().cpu() & torch.from_numpy(mask).bool()).any()):
        raise ValueError("the model's logits hold NaN; it diverged in training, or its precision overflowed")
    predicted = best.indices.cpu().numpy()
    return [predicted[row, : context.size] for row, context in enumerate(contexts)]


def _pairs(context: Ids, prediction: Ids, window: int, prompt_size: int, skip_seen: bool) -> tuple[Ids, Ids]:
    """The windows of one context with B's prediction after each, where the next token lies in the sequence."""
    windows = np.lib.stride_tricks.sliding_window_view(context, window)[:-1]
    after = np.arange(windows.shape[0]) + window  # position of the token that is predicted
    allowed = after >= prompt_size
    if skip_seen:
        first = np.zeros(windows.shape[0], bool)
        first[ev.first_rows(windows)] = True
        allowed &= first
    return windows[allowed], prediction[after[allowed] - 1]
