"""The sizes of a vocabulary, which are four: they agree in most models, and a watermark is made over one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from radio_utils.decoding.passes import rows_of


@dataclass(frozen=True)
class VocabularySizes:
    """``length`` is ``len(tokenizer)``, ``ids`` how many different ids its tokens have, ``highest`` the largest of them.

    They differ where ids are skipped. ``rows`` are the logits of the model, None where they are not known: more where they
    are padded to a round number, fewer where tokens were added without resizing the model.
    """

    length: int
    ids: int
    highest: int
    rows: int | None = None

    @classmethod
    def of(cls, tokenizer: Any, model: Any = None) -> VocabularySizes:
        """The sizes of a tokenizer, and of the model that goes with it."""
        ids = set(tokenizer.get_vocab().values()) if hasattr(tokenizer, "get_vocab") else set(range(len(tokenizer)))
        length = len(tokenizer) if hasattr(tokenizer, "__len__") else len(ids)
        return cls(length, len(ids), max(ids, default=-1), None if model is None else rows_of(model))

    @property
    def size(self) -> int:
        """The least vocabulary that holds every id."""
        return self.highest + 1


def size_of(tokenizer: Any) -> int:
    """One more than the highest id of a tokenizer, which ``len`` falls short of where ids are skipped."""
    return VocabularySizes.of(tokenizer).size
