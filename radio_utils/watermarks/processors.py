"""Logits processors: what a scheme does to the logits while text is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from radio_utils.watermarks.base import Watermark
from radio_utils.watermarks.keyed import LaneBuffer

if TYPE_CHECKING:  # a scheme makes its processor, not the other way round
    from radio_utils.watermarks.schemes import GreenList, GumbelMax

Logits = torch.Tensor


class Warps(Protocol):
    """What :class:`radio_utils.decoding.Sampling` is to a processor."""

    def warp(self, logits: Logits) -> Logits:
        """Logits [n, V] → the logits of what is drawn from."""
        ...


def check_logits(scores: Logits, vocab_size: int) -> None:
    """Raise ``ValueError`` with the reason where nothing can be drawn from logits [n, ≥V]."""
    if scores.shape[-1] < vocab_size:
        raise ValueError(
            f"the model has {scores.shape[-1]} logits, fewer than the watermark's vocab_size={vocab_size}; "
            "make the watermark with the model's tokenizer"
        )
    highest = scores[:, :vocab_size].amax(dim=-1)  # NaN where any logit of the row is NaN
    if not torch.isfinite(highest).all():
        if torch.isnan(highest).any():
            raise ValueError("logits hold NaN; the model diverged or its precision overflowed")
        raise ValueError("logits of a row are all -inf, or hold +inf: no token can be drawn; check what truncates them")


class WindowedProcessor:
    """Shared by both schemes: the last k tokens of each row are its window."""

    def __init__(self, wm: Watermark) -> None:
        self.window, self.vocab_size = wm.window, wm.vocab_size

    def windows(self, input_ids: torch.Tensor, scores: Logits) -> torch.Tensor:
        """The last k ids of each row, or an error that says why nothing can be drawn: [n, t] → [n, k]."""
        check_logits(scores, self.vocab_size)
        if input_ids.shape[1] < self.window:
            raise ValueError(
                f"the context has {input_ids.shape[1]} tokens, fewer than the watermark's window={self.window}; "
                "give a longer prompt"
            )
        return input_ids[:, input_ids.shape[1] - self.window :]


class GreenListProcessor(WindowedProcessor):
    """Adds δ to the logits of the green tokens of each row's window."""

    def __init__(self, wm: GreenList, lanes: LaneBuffer | None = None) -> None:
        """``lanes`` is the scheme's own memory for whole rows of colours, where it has one: the same, sooner."""
        super().__init__(wm)
        self.wm, self._lanes = wm, lanes

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


class GumbelMaxProcessor(WindowedProcessor):
    """Makes the draw: −∞ everywhere but at argmax r_v^(1/p_v), computed as argmax of log p_v − log(−log r_v).

    The probabilities are those after ``sampling``, so nothing after this processor changes the token. log p_v may be
    replaced by the logit: a constant of the row does not move the argmax, and nothing is divided.
    """

    draws = True  # what comes out needs no truncation any more

    def __init__(self, wm: GumbelMax, sampling: Warps | None = None, lanes: LaneBuffer | None = None) -> None:
        """``sampling`` makes the logits that are drawn from of those that the model gives; by default, the same.

        ``lanes`` is the scheme's own memory for whole rows of numbers, where it has one: the same draw, sooner.
        """
        super().__init__(wm)
        self.wm, self.sampling, self._lanes = wm, sampling, lanes

    def __call__(self, input_ids: torch.Tensor, scores: Logits) -> Logits:
        """input_ids [n, t], scores [n, ≥V] → scores that are 0 at the chosen token and −∞ elsewhere."""
        windows = self.windows(input_ids, scores)
        device = "cpu" if scores.device.type == "mps" else scores.device  # MPS has no float64
        logits = scores[:, : self.vocab_size].to(device)
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()  # so that _LANE_BOUND covers the rounding of sums
        logits = self.sampling.warp(logits) if self.sampling else logits
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
