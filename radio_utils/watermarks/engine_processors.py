"""Logits processors that write the marks of engines: contexts from the answer's start, repeated contexts unmarked.

They keep no state but the prompts' length: contexts, and which of them came earlier, are read from the ids of each row. So
rows may leave a batch. transformers' ``generate`` calls a processor first with the prompts, which is how their length is
known; a new generation must have shorter ids than the last call or say so with :meth:`Writer.start`, and prompts of a
batch are padded on the left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from radio_utils.watermarks.processors import Logits, check_logits

if TYPE_CHECKING:  # a mark makes its writer, not the other way round
    from radio_utils.watermarks.engines import EngineMark, GreenMark, GumbelMark, TournamentMark

Ints = NDArray[np.int64]


class Writer:
    """Shared by all marks of engines. What comes out are logits to draw from: nothing is truncated after it."""

    draws = True

    def __init__(self, wm: EngineMark, sampling: Any | None = None) -> None:
        """``sampling`` makes the logits that are drawn from of those that the model gives; by default, the same."""
        self.wm, self.sampling = wm, sampling
        self._start: int | None = None
        self._last = -1

    def start(self, width: int) -> None:
        """A generation begins whose prompts, padded on the left, have ``width`` ids."""
        self._start, self._last = width, width - 1

    def __call__(self, input_ids: torch.Tensor, scores: Logits) -> Logits:
        """input_ids [n, t], scores [n, ≥V] → logits [n, ≥V] of the draw; −∞ beyond V."""
        if self._start is None or input_ids.shape[1] != self._last + 1:
            self.start(input_ids.shape[1])
        self._last = input_ids.shape[1]
        check_logits(scores, self.wm.vocab_size)
        contexts, unmarked = self.contexts(input_ids.cpu().numpy())
        logits = scores[:, : self.wm.vocab_size].to("cpu", torch.float64)
        drawn = self.sampling.warp(logits) if self.sampling else logits
        if self.wm.max_probability < 1.0:
            unmarked |= (drawn.softmax(dim=-1).amax(dim=-1) > self.wm.max_probability).numpy()
        marked = np.flatnonzero(~unmarked)
        if marked.size:
            at = torch.from_numpy(marked)
            drawn = drawn.clone()
            drawn[at] = self._marked(logits[at], drawn[at], contexts[marked])
        result = torch.full_like(scores, -torch.inf)
        result[:, : self.wm.vocab_size] = drawn.to(scores.device, scores.dtype)
        return result

    def contexts(self, ids: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """The context [n, k] of the next position of each row, and which rows [n] are to be left unmarked: ids [n, t]."""
        wm, start = self.wm, self._start or 0
        first = 0 if wm.reaches_prompt else start
        known = np.concatenate([np.full((len(ids), wm.window), wm.missing, np.int64), ids[:, first:]], axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(known, wm.window, axis=1)  # of each position, the next one last
        current, earlier = windows[:, -1], windows[:, start - first : -1]  # earlier ones: of the answer's positions
        if wm.repeats == "none":
            return current, np.zeros(len(ids), bool)
        if wm.repeats == "all":
            whole = ids if ids.shape[1] > wm.window else known[:, :0]
            earlier = np.lib.stride_tricks.sliding_window_view(whole, wm.window, axis=1)[:, :-1] if whole.size else earlier
        if wm.history is not None:
            earlier = earlier[:, max(0, earlier.shape[1] - wm.history) :]
        unmarked: NDArray[np.bool_] = np.any(np.all(earlier == current[:, None], axis=2), axis=1)
        if wm.starts_full and ids.shape[1] - first < wm.window:
            unmarked[:] = True
        if wm.most_contexts is not None and earlier.shape[1] >= wm.most_contexts:
            unmarked |= [len(np.unique(row, axis=0)) >= wm.most_contexts for row in earlier]
        return current, unmarked

    def _marked(self, logits: Logits, drawn: Logits, contexts: Ints) -> Logits:
        """What to draw from: the model's logits and the truncated ones [n, V], contexts [n, k] → [n, V], float64."""
        raise NotImplementedError


class GumbelWriter(Writer):
    """argmax of logit − log(−log U), with the chance of each key that may make the draw."""

    wm: GumbelMark

    def _marked(self, logits: Logits, drawn: Logits, contexts: Ints) -> Logits:
        chances = torch.zeros_like(drawn)
        for share, uniforms in self.wm.uniform_rows(contexts):
            raced = drawn - (-torch.from_numpy(uniforms).log()).log()
            chances.scatter_add_(1, raced.argmax(dim=-1, keepdim=True), torch.full_like(chances[:, :1], share))
        return chances.log()


class TournamentWriter(Writer):
    """p ← p·(1 + g − Σpg), layer after layer."""

    wm: TournamentMark

    def _marked(self, logits: Logits, drawn: Logits, contexts: Ints) -> Logits:
        chances = drawn.softmax(dim=-1)
        for bits in self.wm.bit_rows(contexts):
            g = torch.from_numpy(bits).to(chances.dtype)
            chances = chances * (1.0 + g - (g * chances).sum(dim=-1, keepdim=True))
        return chances.clamp(min=0.0).log()  # Σpg may exceed 1 by rounding


class GreenWriter(Writer):
    """δ more for green tokens, before truncation or after it, as the engine does."""

    wm: GreenMark

    def _marked(self, logits: Logits, drawn: Logits, contexts: Ints) -> Logits:
        bias = self.wm.delta * torch.from_numpy(self.wm.green_rows(contexts)).to(drawn.dtype)
        if not self.wm.before_truncation:
            return drawn + bias
        temperature = getattr(self.sampling, "temperature", 1.0) or 1.0
        biased = logits + bias * temperature  # the engine adds δ once logits are divided by the temperature
        return self.sampling.warp(biased) if self.sampling else biased
