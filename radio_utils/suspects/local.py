"""Suspects on this machine, and what every closed suspect can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from radio_utils import decoding
from radio_utils.decoding.passes import device_of
from radio_utils.suspects.feeding import Feeding

Ids = NDArray[np.int64]


@runtime_checkable
class Suspect(Protocol):
    """A model that answers. This is all that the closed-model test needs."""

    def answer(self, prompts: Sequence[ArrayLike]) -> list[Ids]:
        """The answer to each prompt, both as token ids; an answer may be empty."""
        ...


@dataclass(frozen=True)
class LocalSuspect:
    """A causal transformers model on this machine, with the decoding that its owner would use.

    ``feeding`` says how prompts are given to it; None: as they are.
    """

    model: Any
    stop_tokens: tuple[int, ...]
    sampling: decoding.Sampling = field(default_factory=lambda: decoding.Sampling(temperature=0.8, top_p=0.95))
    max_new_tokens: int = 128
    batch_size: int = 256
    seed: int = 0
    progress: str | None = None
    feeding: Feeding | None = None

    def answer(self, prompts: Sequence[ArrayLike]) -> list[Ids]:
        """Sample one answer to each prompt."""
        device = device_of(self.model)
        return decoding.generate(
            self.model,
            self._fed(prompts),
            max_new_tokens=self.max_new_tokens,
            sampling=self.sampling,
            generator=torch.Generator(device).manual_seed(self.seed),
            stop_tokens=self.stop_tokens,
            batch_size=self.batch_size,
            progress=self.progress,
        )

    def _fed(self, prompts: Sequence[ArrayLike]) -> Sequence[ArrayLike]:
        """What stands before the answers."""
        return prompts if self.feeding is None else [self.feeding.prompt(np.asarray(prompt)) for prompt in prompts]
