"""Decoding: from logits to tokens, with or without a watermark.

The three truncations (temperature, top-k, nucleus) follow the definitions of transformers' own warpers, with which the
tests compare them. :func:`generate` is a plain batched sampler over a key–value cache, faster for many short answers
than ``model.generate`` because finished rows leave the batch; the processors work with either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm
from transformers.cache_utils import Cache, DynamicLayer

from radio_utils.watermarks import GreenList, GumbelMax, LaneBuffer, Watermark

logger = logging.getLogger(__name__)
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


class _WindowedProcessor:
    """Shared by both schemes: the last k tokens of each row are its window."""

    def __init__(self, wm: Watermark) -> None:
        self.window, self.vocab_size = wm.window, wm.vocab_size

    def windows(self, input_ids: torch.Tensor, scores: Logits) -> torch.Tensor:
        if scores.shape[-1] < self.vocab_size:
            raise ValueError(
                f"the model has {scores.shape[-1]} logits, fewer than the watermark's vocab_size={self.vocab_size}; "
                "make the watermark with the model's tokenizer"
            )
        highest = scores[:, : self.vocab_size].amax(dim=-1)  # NaN where any logit of the row is NaN
        if not torch.isfinite(highest).all():
            if torch.isnan(highest).any():
                raise ValueError("logits hold NaN; the model diverged or its precision overflowed")
            raise ValueError("logits of a row are all -inf, or hold +inf: no token can be drawn; check what truncates them")
        if input_ids.shape[1] < self.window:
            raise ValueError(
                f"the context has {input_ids.shape[1]} tokens, fewer than the watermark's window={self.window}; "
                "give a longer prompt"
            )
        return input_ids[:, input_ids.shape[1] - self.window :]


class GreenListProcessor(_WindowedProcessor):
    """Adds δ to the logits of the green tokens of each row's window."""

    def __init__(self, wm: GreenList) -> None:
        super().__init__(wm)
        self.wm = wm
        self._lanes: LaneBuffer | None = wm.lane_buffer() if type(wm) is GreenList else None

    def __call__(self, input_ids: torch.Tensor, scores: Logits) -> Logits:
        """input_ids [n, t], scores [n, ≥V] → scores with the bias; padding logits beyond V are left alone."""
        windows = self.windows(input_ids, scores)
        if scores.device.type in ("cpu", "mps") and self._lanes is not None:  # the same colours, in memory used again
            green = torch.from_numpy(self.wm.is_green(self._lanes.rows(windows.cpu().numpy()))).to(scores.device)
        else:
            green = self.wm.green_rows_torch(windows, self.vocab_size)
        if scores.shape[-1] == self.vocab_size:
            return torch.add(scores, green, alpha=self.wm.delta)
        biased = scores.clone()
        biased[:, : self.vocab_size].add_(green, alpha=self.wm.delta)
        return biased


class GumbelMaxProcessor(_WindowedProcessor):
    """Makes the draw: −∞ everywhere but at argmax r_v^(1/p_v), computed as argmax of log p_v − log(−log r_v).

    The probabilities are those after ``sampling``, so nothing after this processor changes the token. log p_v may be
    replaced by the logit: a constant of the row does not move the argmax, and nothing is divided.
    """

    draws = True  # what comes out needs no truncation any more

    def __init__(self, wm: GumbelMax, sampling: Sampling | None = None) -> None:
        super().__init__(wm)
        self.wm, self.sampling = wm, sampling or Sampling(temperature=1.0)
        self._lanes: LaneBuffer | None = wm.lane_buffer() if type(wm) is GumbelMax else None

    def __call__(self, input_ids: torch.Tensor, scores: Logits) -> Logits:
        """input_ids [n, t], scores [n, ≥V] → scores that are 0 at the chosen token and −∞ elsewhere."""
        windows = self.windows(input_ids, scores)
        device = "cpu" if scores.device.type == "mps" else scores.device  # MPS has no float64
        logits = scores[:, : self.vocab_size].to(device)
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()  # so that _LANE_BOUND covers the rounding of sums
        logits = warp(logits, self.sampling)
        if logits.device.type == "cpu" and self._lanes is not None:
            chosen = torch.from_numpy(self._winners(self._lanes, windows.cpu().numpy(), logits.numpy()))
        else:  # a device that is quick with whole rows, or a published scheme, which has no lanes
            r = self.wm.uniform_rows_torch(windows.to(device), self.vocab_size)
            chosen = (logits.to(torch.float64) - (-r.log()).log()).argmax(dim=-1)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen.to(scores.device)[:, None], 0.0)

    def _winners(self, buffer: LaneBuffer, windows: NDArray[np.int64], logits: NDArray[Any]) -> NDArray[np.int64]:
        """argmax_v ℓ_v − log(−log r_v) of each row, exactly, from few of the r_v: logits [n, V] → [n].

        Where the first 8 bits of r are not all ones, r < 255/256 and −log(−log r) < 5.6. So a token with other bits
        can win only if its logit is within 5.6 of the best sum found so far.
        """
        likeliest = logits.argmax(axis=-1) + np.arange(logits.shape[0]) * logits.shape[1]
        lucky = np.flatnonzero(buffer.rows(windows) == 255)
        best, winner = self._race(windows, logits, np.concatenate([likeliest, lucky]))
        near = np.flatnonzero(logits >= (best - _LANE_BOUND).astype(logits.dtype)[:, None])
        best_near, winner_near = self._race(windows, logits, near)
        return np.where(best_near > best, winner_near, winner)

    def _race(
        self, windows: NDArray[np.int64], logits: NDArray[Any], places: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The largest ℓ_v − log(−log r_v) of each row among some places of the flat logits, and its token: [n], [n]."""
        rows, tokens = np.divmod(places, logits.shape[1])
        raced = logits[rows, tokens].astype(np.float64) - np.log(-np.log(self.wm.uniforms_in(windows, rows, tokens)))
        best = np.full(logits.shape[0], -np.inf)
        np.maximum.at(best, rows, raced)
        winner = np.zeros(logits.shape[0], np.int64)
        is_best = raced == best[rows]
        winner[rows[is_best]] = tokens[is_best]
        return best, winner


_LANE_BOUND = 5.6  # above −log(−log(255/256)) = 5.543, by more than the rounding of a logit


def processor_for(wm: Watermark | None, sampling: Sampling) -> Callable[[torch.Tensor, Logits], Logits] | None:
    """The scheme's processor, told the sampling where it needs it."""
    if wm is None:
        return None
    processor = wm.logits_processor()
    if isinstance(processor, GumbelMaxProcessor):
        processor.sampling = sampling
    return processor  # type: ignore[no-any-return]


class _RowsProcessor:
    """A batch whose rows are written under watermarks of their own, all of which draw, or none.

    Rows under one scheme and many keys are done at once; schemes that cannot be are done key by key.
    """

    def __init__(self, wms: Sequence[Watermark], sampling: Sampling) -> None:
        self._wms, self._sampling = list(wms), sampling
        self._alone: dict[Watermark, Any] = {}  # processors of single keys, which may keep what they have worked out
        self._share_out()
        drawing = {isinstance(processor, GumbelMaxProcessor) for processor, _ in self._parts}
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
            alike: Any = wm
            if type(wm) is GreenList or type(wm) is GumbelMax:
                alike = wm.embedding
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
            processor = _RowsProcessor([wms[i] for i in rows], sampling) if len(wms) > 1 else shared
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
                if isinstance(processor, _RowsProcessor):
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
