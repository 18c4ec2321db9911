"""How far a training has come, kept on disk: one that is killed goes on there, and ends with the same bits.

A savepoint is a file of tensors and a small file of facts that names it with its hash. The facts are replaced by one rename
when the tensors are on the disk, so a kill at any moment leaves the old savepoint or the new one.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from radio_utils.files import read_json, sha256_of, write_json

logger = logging.getLogger(__name__)
FACTS = "training.json"
_SHARE = 0.02  # of the time of a training: the most that its savepoints may take


class Savepoint:
    """The savepoint of one training, in ``folder``, which is created by the first one that is saved."""

    def __init__(self, folder: Path, *, every: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        """``every`` is the least time (s) between two savepoints; those that take long come less often."""
        self.folder, self._every, self._clock = folder, every, clock
        self._next = clock() + every

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return self._clock() >= self._next

    def save(self, plan: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Replace the savepoint. ``plan`` names the training; ``facts`` are what JSON holds.

        A disk that is full costs the savepoint, not the training: it is warned of.
        """
        start = self._clock()
        file = self.folder / f"{secrets.token_hex(6)}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
            write_json(self.folder / FACTS, {"plan": plan, "file": file.name, "sha256": sha256_of(file), "facts": facts})
        except Exception as error:  # compiled code raises types of its own
            logger.warning("the training goes on without a new savepoint in %s: %s", self.folder, error)
        self._only_what_is_named()
        end = self._clock()
        self._next = end + max(self._every, (end - start) / _SHARE)

    def load(self, plan: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors (on the processor) and facts of this ``plan``; None without any. One that is of no use is warned of."""
        if not (self.folder / FACTS).exists():
            return None
        try:
            said = read_json(self.folder / FACTS)
            file = self.folder / Path(said["file"]).name
            if said["plan"] != plan:
                raise ValueError("it is of a training on other data or of another recipe")
            if sha256_of(file) != said["sha256"]:
                raise ValueError(f"the content of {file.name} has changed")
            return load_file(file), dict(said["facts"])
        except Exception as error:  # whatever is wrong with it, the training can be done without
            logger.warning("the savepoint in %s is not used (%s); the training starts anew", self.folder, error)
            return None

    def remove(self) -> None:
        """Forget it, and what else is in its folder: what it leads to is known and of no use."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _only_what_is_named(self) -> None:
        named = None
        with suppress(OSError, ValueError, KeyError, TypeError):
            named = read_json(self.folder / FACTS)["file"]
        for file in self.folder.glob("*.safetensors"):
            if file.name != named:
                file.unlink(missing_ok=True)
