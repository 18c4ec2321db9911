"""Suspects: what Alice can ask of Bob's model.

An *open* suspect gives its next-token distribution (:class:`LocalSuspect`, any causal transformers model); a *closed*
suspect only answers prompts. Both speak token ids of Alice's tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from radio_utils import decoding

Ids = NDArray[np.int64]


@runtime_checkable
class Suspect(Protocol):
    """A model that answers. This is all that the closed-model test needs."""

    def answer(self, prompts: Sequence[ArrayLike]) -> list[Ids]:
        """The answer to each prompt, both as token ids; an answer may be empty."""
        ...


@dataclass(frozen=True)
class LocalSuspect:
    """A causal transformers model on this machine, with the decoding that its owner would use."""

    model: Any
    stop_tokens: tuple[int, ...]
    sampling: decoding.Sampling = field(default_factory=lambda: decoding.Sampling(temperature=0.8, top_p=0.95))
    max_new_tokens: int = 128
    batch_size: int = 256
    seed: int = 0
    progress: str | None = None

    def answer(self, prompts: Sequence[ArrayLike]) -> list[Ids]:
        """Sample one answer to each prompt."""
        device = next(self.model.parameters()).device
        return decoding.generate(
            self.model,
            prompts,
            max_new_tokens=self.max_new_tokens,
            sampling=self.sampling,
            generator=torch.Generator(device).manual_seed(self.seed),
            stop_tokens=self.stop_tokens,
            batch_size=self.batch_size,
            progress=self.progress,
        )


class ModelFolderError(ValueError):
    """A folder or hub name does not hold a usable causal language model with its tokenizer."""


def load_tokenizer(name: str | Path) -> Any:
    """The fast tokenizer of a folder or hub name. Raises :class:`ModelFolderError` where there is none."""
    from transformers import AutoTokenizer

    _check_folder(name)
    folder = Path(name)
    if folder.is_dir() and not any((folder / f).exists() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelFolderError(f"model folder {folder} holds no tokenizer; save one there with tokenizer.save_pretrained")
    try:
        return AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelFolderError(f"no tokenizer could be read from {str(name)!r}: {_first_line(error)}") from error


def load_model(name: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Any:
    """A causal model by folder or hub name, from safetensors only, in evaluation mode on ``device``."""
    from transformers import AutoModelForCausalLM

    _check_folder(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(name), use_safetensors=True, trust_remote_code=False, dtype=dtype or torch.float32
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelFolderError(f"no causal model could be read from {str(name)!r}: {_first_line(error)}") from error
    return model.to(device).eval()


def check_vocabulary(tokenizer: Any, vocab_size: int) -> None:
    """Raise ``ValueError`` unless the tokenizer has exactly the watermark's vocabulary."""
    if len(tokenizer) != vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the watermark's vocab_size is {vocab_size}; "
            "a watermark can be found only with the tokenizer that it was made with"
        )


def _check_folder(name: str | Path) -> None:
    text = str(name)
    looks_local = isinstance(name, Path) or text.startswith((".", "/", "~"))
    if looks_local and not Path(text).expanduser().is_dir():
        raise ModelFolderError(f"model folder {text} does not exist; give a folder made by save_pretrained, or a hub name")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
