"""Long lists of texts in pieces that are kept as they come: what was killed goes on behind the last of them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from radio_utils.files import read_json, write_json

logger = logging.getLogger(__name__)
Texts = list[list[int]]


class Chunks:
    """Pieces in ``folder``, which is created by the first one; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, plan: Any, make: Callable[[], Texts]) -> Texts:
        """The texts (token ids) of one piece: read, or made and kept. ``plan`` holds all that decides them, as JSON has it.

        A disk that is full costs the piece, not the work: it is warned of.
        """
        if self._folder is None:
            return make()
        name = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
        file = self._folder / f"{name[:32]}.json"
        with suppress(OSError, ValueError):
            return [[int(token) for token in text] for text in read_json(file)]
        made = make()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(file, made)
        except OSError as error:
            logger.warning("the work goes on without keeping a piece in %s: %s", self._folder, error)
        return made
