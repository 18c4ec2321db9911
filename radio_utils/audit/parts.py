"""Evidence that is kept part by part, so that an audit that was cut goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from radio_utils.audit.case import Case, Weights
from radio_utils.audit.texts import Texts
from radio_utils.predictions import Predictions
from radio_utils.provenance import code_version

PART = 1 << 14  # tokens that are read or written between two savings


@dataclass(frozen=True)
class Part:
    """Some of the texts, whose predictions are one piece of kept evidence; ``tokens`` with their prompts."""

    case: Case
    of: Weights
    texts: Texts
    tokens: int

    @property
    def _recipe(self) -> dict[str, Any]:
        config = {
            "texts": self.texts.digest, "vocab_size": self.case.wm.vocab_size, "model": self.of.digest,
            "dtype": self.case.request.dtype, "fed": self.of.feeding.digest,
            "tokenizers": self.case.models.tokenizers(self.case),
        }  # fmt: skip
        return {"kind": "predictions", "config": config, "version": code_version(self._build, self.case.models.read)}

    @property
    def kept(self) -> bool:
        """Whether it was read before."""
        return self.case.store.has(**self._recipe)

    def read(self) -> Predictions:
        """What the model expects along these texts, read now or before."""
        return Predictions.load(self.case.kept(of=self.of.name, build=self._build, **self._recipe) / "predictions.npz")

    def _build(self, folder: Path) -> None:
        found = self.case.models.read(self.of, self.case, self.texts.ids, self.texts.prompts)
        found.save(folder / "predictions.npz")


def parts_of(case: Case, of: Weights, texts: Texts) -> Iterator[Part]:
    """All texts, in parts of about so many tokens that a loss of one is no loss."""
    sizes = np.array([context.size for context in texts.contexts])
    places = np.cumsum(sizes) // PART
    for place in np.unique(places):
        chosen = np.flatnonzero(places == place)
        yield Part(case, of, texts.some(chosen.tolist()), int(sizes[chosen].sum()))


def predictions(case: Case, of: Weights, texts: Texts, bar: str) -> Predictions:
    """What a model expects along the texts. It depends on no key."""
    parts, read = list(parts_of(case, of, texts)), []
    total = sum(part.tokens for part in parts)
    with tqdm(total=total, desc=bar, disable=not case.progress, unit="token") as shown:
        for part in parts:
            read.append(part.read())
            shown.update(part.tokens)
    return read[0].merge(*read[1:])
