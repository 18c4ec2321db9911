"""Batched sampling over a model's memory of what it has read, with a watermark for all rows or one for each."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from radio_utils.decoding.caches import Kind, NoCache, left_padded, proven
from radio_utils.decoding.passes import (
    check_finite,
    device_of,
    evaluating,
    free_memory,
    input_rows_of,
    is_out_of_memory,
    positions_of,
    virtual_places,
)
from radio_utils.decoding.warping import Logits, Sampling, draw, warp
from radio_utils.watermarks.base import Watermark
from radio_utils.watermarks.keyed import Keyed

logger = logging.getLogger(__name__)


def processor_for(wm: Watermark | None, sampling: Sampling) -> Callable[[torch.Tensor, Logits], Logits] | None:
    """The scheme's processor, told the sampling where it needs it."""
    if wm is None:
        return None
    processor = wm.logits_processor()
    if getattr(processor, "draws", False):
        processor.sampling = sampling
    return processor  # type: ignore[no-any-return]


def begin(processor: Any, width: int) -> None:
    """Tell a processor that a generation begins with prompts of ``width`` ids, if it wants to know."""
    if hasattr(processor, "start"):
        processor.start(width)


class RowsProcessor:
    """A batch whose rows are written under watermarks of their own, all of which draw, or none.

    Rows under one scheme and many keys are done at once; schemes that cannot be are done key by key.
    """

    def __init__(self, wms: Sequence[Watermark], sampling: Sampling) -> None:
        self._wms, self._sampling = list(wms), sampling
        self._alone: dict[Watermark, Any] = {}  # processors of single keys, which may keep what they have worked out
        self._width: int | None = None
        self._share_out()
        drawing = {getattr(processor, "draws", False) for processor, _ in self._parts}
        if len(drawing) > 1:
            raise ValueError("wm mixes schemes that draw the token (Gumbel-max) with others; generate each kind alone")
        self.draws = True in drawing

    def start(self, width: int) -> None:
        """A generation begins whose prompts have ``width`` ids."""
        self._width = width
        for processor, _ in self._parts:
            begin(processor, width)

    def select(self, rows: torch.Tensor) -> None:
        """Only some rows of the batch go on."""
        self._wms = [self._wms[i] for i in rows.tolist()]
        self._share_out()

    def __call__(self, input_ids: torch.Tensor, scores: Logits) -> Logits:
        """input_ids [n, t], scores [n, ≥V] → scores, each row as the processor of its own watermark changes it."""
        if len(self._parts) == 1:
            return self._parts[0][0](input_ids, scores)  # type: ignore[no-any-return]
        changed = torch.empty_like(scores)
        for processor, rows in self._parts:
            at = torch.tensor(rows, device=scores.device)
            changed[at] = processor(input_ids[at], scores[at])
        return changed

    def _share_out(self) -> None:
        groups: dict[Any, list[int]] = {}
        for row, wm in enumerate(self._wms):
            alike: Any = wm.embedding if isinstance(wm, Keyed) else wm
            groups.setdefault(alike, []).append(row)
        self._parts = [(self._processor(alike, [self._wms[i] for i in rows]), rows) for alike, rows in groups.items()]

    def _processor(self, alike: Any, wms: list[Any]) -> Any:
        if not isinstance(alike, Watermark):
            return processor_for(wms[0].in_rows(wms), self._sampling)
        if alike not in self._alone:
            self._alone[alike] = processor_for(alike, self._sampling)
            if self._width is not None:
                begin(self._alone[alike], self._width)
        return self._alone[alike]


def shortest_prompt(wm: Watermark) -> int:
    """How many tokens a prompt must have: a whole window, unless contexts begin with the answer."""
    return 1 if getattr(wm, "pads_start", False) and not getattr(wm, "reaches_prompt", False) else wm.window


def _checked_prompts(prompts: Sequence[ArrayLike], vocab_size: int, shortest: int) -> list[NDArray[np.int64]]:
    """Prompts as int64 arrays. A short one is refused here: padded in a batch, it would be given a window of padding."""
    arrays = [np.asarray(prompt) for prompt in prompts]
    for i, array in enumerate(arrays):
        if array.ndim != 1 or array.size < shortest:
            raise ValueError(
                f"prompts[{i}] has shape {list(array.shape)}; it must be a flat sequence of at least {shortest} token ids "
                "(one to start from, and with a watermark a whole window)"
            )
        if array.dtype.kind not in "iu":
            raise ValueError(f"prompts[{i}] must hold integer token ids, got dtype {array.dtype}; tokenise the text first")
        if array.min() < 0 or array.max() >= vocab_size:
            raise ValueError(
                f"prompts[{i}] holds ids from {array.min()} to {array.max()}, outside the model's vocabulary "
                f"[0, {vocab_size}); use the model's own tokenizer"
            )
    return [array.astype(np.int64) for array in arrays]


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[ArrayLike],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    wm: Watermark | Sequence[Watermark] | None = None,
    generator: torch.Generator | None = None,
    stop_tokens: Sequence[int] = (),
    batch_size: int = 128,
    progress: str | None = None,
) -> list[NDArray[np.int64]]:
    """Continue each prompt (a token-id sequence) until a stop token, ``max_new_tokens`` or the end of a model's positions.

    ``wm`` is the watermark of all, or a sequence of one for each prompt; texts of different keys share their batches.
    Returns the new tokens of each prompt, in the prompts' order, the stop token left out. The randomness of a prompt
    depends on ``generator`` and on the whole list, not on the batch alone: call it with the same list to repeat it.

    Raises ``ValueError`` for an argument that makes no sense, a prompt that is short, long or of another vocabulary, and a
    model that gives NaN or infinity.
    """
    sampling = sampling or Sampling()
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens and batch_size must be at least 1, got {max_new_tokens} and {batch_size}")
    wms = [] if wm is None else [wm] if isinstance(wm, Watermark) else list(wm)
    if wm is not None and not isinstance(wm, Watermark) and len(wms) != len(prompts):
        raise ValueError(f"wm must be one watermark, or one for each of the {len(prompts)} prompts, got {len(wms)}")
    shortest = max((shortest_prompt(one) for one in wms), default=1)
    arrays = _checked_prompts(prompts, input_rows_of(model), shortest)
    shared = None if len(wms) > 1 else processor_for(wms[0] if wms else None, sampling)
    _room(model, arrays)
    order = sorted(range(len(arrays)), key=lambda i: arrays[i].size)  # equal lengths together: little padding
    results: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(arrays)
    with (
        evaluating(model),
        tqdm(total=len(arrays), desc=progress, disable=progress is None, unit="text", mininterval=5.0) as bar,
    ):
        kind = proven(model, arrays, max_new_tokens) if arrays else NoCache
        waiting = _batches(arrays, order, batch_size, kind.mixed)
        while waiting:
            rows = waiting.popleft()
            processor = RowsProcessor([wms[i] for i in rows], sampling) if len(wms) > 1 else shared
            before = None if generator is None else generator.get_state()
            try:
                some = [arrays[i] for i in rows]
                batch = _Batch(kind, model, some, min(max_new_tokens, _room(model, some) or max_new_tokens))
                written = batch.run(sampling, processor, generator, stop_tokens)
            except (RuntimeError, MemoryError) as error:
                if len(rows) == 1 or not is_out_of_memory(error):
                    raise
                written = None
            if written is None:  # too many at once: all that is left goes in smaller batches, from the same draws on
                free_memory()
                if generator is not None and before is not None:
                    generator.set_state(before)
                left = [*rows, *(i for batch_rows in waiting for i in batch_rows)]
                waiting = _batches(arrays, left, len(rows) // 2, kind.mixed)
                continue
            for row, tokens in zip(rows, written, strict=True):
                results[row] = tokens
            bar.update(len(rows))
    return results


class _Batch:
    """One batch under generation: the tokens so far, the model's memory of them, and the rows still alive."""

    _COMPACT_BELOW = 0.75  # finished rows are computed in vain until this share is alive: copying the cache costs more

    def __init__(self, kind: Kind, model: Any, prompts: list[NDArray[np.int64]], max_new_tokens: int) -> None:
        self.memory, self.max_new = kind(model, prompts, max_new_tokens), max_new_tokens
        self.device = device_of(model)
        self.ids = torch.from_numpy(left_padded(prompts)[0]).to(self.device)

    def run(
        self,
        sampling: Sampling,
        processor: Callable[[torch.Tensor, Logits], Logits] | None,
        generator: torch.Generator | None,
        stop_tokens: Sequence[int],
    ) -> list[NDArray[np.int64]]:
        """The new tokens of each row, up to its stop token."""
        count = self.ids.shape[0]
        stops = torch.tensor(list(stop_tokens), device=self.device, dtype=torch.long)
        owner = torch.arange(count, device=self.device)  # which prompt each row of the batch belongs to
        going = torch.ones(count, dtype=torch.bool, device=self.device)
        out = torch.full((count, self.max_new), -1, dtype=torch.long, device=self.device)
        begin(processor, self.ids.shape[1])
        logits = self.memory.start()
        for step in range(self.max_new):
            check_finite(logits, going)  # before a processor, which may rule out what it likes
            if processor is not None:
                logits = processor(self.ids, logits)
            if not getattr(processor, "draws", False):
                logits = warp(logits, sampling)
            token = logits.argmax(-1) if sampling.temperature == 0 else draw(logits, generator)
            going &= ~torch.isin(token, stops)
            out[owner[going], step] = token[going]
            remaining = int(going.sum())
            if step + 1 == self.max_new or remaining == 0:
                break
            self.ids = torch.cat([self.ids, token[:, None]], dim=1)
            if remaining < self._COMPACT_BELOW * going.numel():
                rows = going.nonzero().squeeze(1)
                if self.memory.select(rows):
                    owner, going, token, self.ids = owner[rows], going[rows], token[rows], self.ids[rows]
                    if isinstance(processor, RowsProcessor):
                        processor.select(rows)
            logits = self.memory.step(token)
        return [row[row >= 0] for row in out.cpu().numpy()]


def _batches(arrays: list[NDArray[np.int64]], order: list[int], batch_size: int, mixed: bool) -> deque[list[int]]:
    """Which prompts are continued together: any that follow one another in ``order``, or only such of one length."""
    found: deque[list[int]] = deque()
    for i in order:
        if found and len(found[-1]) < batch_size and (mixed or arrays[found[-1][0]].size == arrays[i].size):
            found[-1].append(i)
        else:
            found.append([i])
    return found


def _room(model: Any, arrays: list[NDArray[np.int64]]) -> int | None:
    """How many tokens fit behind each of the prompts, the last of which is not read; None where nothing limits them.

    Raises ``ValueError`` for a prompt that fills a model's positions.
    """
    most = positions_of(model)
    if most is None:
        return None
    most -= virtual_places(model)
    for i, array in enumerate(arrays):
        if array.size > most:
            raise ValueError(
                f"prompts[{i}] has {array.size:,} tokens, and the model can read {most:,} at once; shorten the prompt"
            )
    return most - max((array.size for array in arrays), default=0) + 1
