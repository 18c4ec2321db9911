"""Batched sampling over a key–value cache, with a watermark for all rows or one for each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm
from transformers.cache_utils import Cache, DynamicLayer

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


class RowsProcessor:
    """A batch whose rows are written under watermarks of their own, all of which draw, or none.

    Rows under one scheme and many keys are done at once; schemes that cannot be are done key by key.
    """

    def __init__(self, wms: Sequence[Watermark], sampling: Sampling) -> None:
        self._wms, self._sampling = list(wms), sampling
        self._alone: dict[Watermark, Any] = {}  # processors of single keys, which may keep what they have worked out
        self._share_out()
        drawing = {getattr(processor, "draws", False) for processor, _ in self._parts}
        if len(drawing) > 1:
            raise ValueError("wm mixes schemes that draw the token (Gumbel-max) with others; generate each kind alone")
        self.draws = True in drawing

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
        return self._alone[alike]


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
    """Continue each prompt (a token-id sequence) until a stop token or ``max_new_tokens``.

    ``wm`` is the watermark of all, or a sequence of one for each prompt; texts of different keys share their batches.
    Returns the new tokens of each prompt, in the prompts' order, the stop token left out. The randomness of a prompt
    depends on ``generator`` and on the whole list, not on the batch alone: call it with the same list to repeat it.
    """
    sampling = sampling or Sampling()
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens and batch_size must be at least 1, got {max_new_tokens} and {batch_size}")
    wms = [] if wm is None else [wm] if isinstance(wm, Watermark) else list(wm)
    if wm is not None and not isinstance(wm, Watermark) and len(wms) != len(prompts):
        raise ValueError(f"wm must be one watermark, or one for each of the {len(prompts)} prompts, got {len(wms)}")
    shortest = max((one.window for one in wms), default=1)
    arrays = _checked_prompts(prompts, model.get_input_embeddings().weight.shape[0], shortest)
    shared = None if len(wms) > 1 else processor_for(wms[0] if wms else None, sampling)
    device = next(model.parameters()).device
    order = sorted(range(len(arrays)), key=lambda i: arrays[i].size)  # equal lengths together: little padding
    results: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(arrays)
    model.eval()
    with tqdm(total=len(arrays), desc=progress, disable=progress is None, unit="text", mininterval=5.0) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = _Batch(model, [arrays[i] for i in rows], max_new_tokens, device)
            processor = RowsProcessor([wms[i] for i in rows], sampling) if len(wms) > 1 else shared
            for row, tokens in zip(rows, batch.run(sampling, processor, generator, stop_tokens), strict=True):
                results[row] = tokens
            bar.update(len(rows))
    return results


class _FilledLayer(DynamicLayer):
    """Keys and values of one layer in a buffer of known capacity: no copy a step; attention sees the filled part only."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity, self.filled = capacity, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the buffers once the first keys show their shape."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty((*key_states.shape[:2], self.capacity, key_states.shape[3]))
        self.values = value_states.new_empty((*value_states.shape[:2], self.capacity, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append in place; return views of everything appended so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.filled + key_states.shape[2]
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Tokens appended so far."""
        return self.filled

    def select(self, rows: torch.Tensor) -> None:
        """Keep only some rows of the batch."""
        self.keys, self.values = self.keys[rows], self.values[rows]


class _Batch:
    """One batch under generation: left-padded prompts, a key–value cache, and the rows still alive."""

    _COMPACT_BELOW = 0.75  # finished rows are computed in vain until this share is alive: copying the cache costs more

    def __init__(self, model: Any, prompts: list[NDArray[np.int64]], max_new_tokens: int, device: torch.device) -> None:
        self.model, self.max_new, self.device = model, max_new_tokens, device
        self.width = max(prompt.size for prompt in prompts)
        ids = np.zeros((len(prompts), self.width), np.int64)
        mask = np.ones((len(prompts), self.width + max_new_tokens), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, self.width - prompt.size :] = prompt
            mask[row, : self.width - prompt.size] = 0
        self.ids, self.mask = torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
        self.positions = torch.tensor([prompt.size for prompt in prompts], device=device)
        layers = model.config.get_text_config().num_hidden_layers
        self.layers = [_FilledLayer(self.width + max_new_tokens) for _ in range(layers)]
        self.cache = Cache(layers=list(self.layers))

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
        first_positions = (self.mask[:, : self.width].cumsum(1) - 1).clamp(min=0)
        logits = self._forward(self.ids, first_positions, self.width)
        for step in range(self.max_new):
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
                owner, going, token = owner[rows], going[rows], token[rows]
                self._select(rows)
                if isinstance(processor, RowsProcessor):
                    processor.select(rows)
            logits = self._forward(token[:, None], self.positions[:, None], self.width + step + 1)
            self.positions = self.positions + 1
        return [row[row >= 0] for row in out.cpu().numpy()]

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, filled: int) -> Logits:
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask[:, :filled],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def _select(self, rows: torch.Tensor) -> None:
        self.ids, self.mask, self.positions = self.ids[rows], self.mask[rows], self.positions[rows]
        for layer in self.layers:
            layer.select(rows)
