"""Evidence that is kept part by part, so that an audit that was cut goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radio_utils.artifacts import Artifact, Store
from radio_utils.audit.case import Case, Ids, OpenModel, Weights
from radio_utils.audit.texts import Texts, digest_of, tokenizer_digest
from radio_utils.predictions import Predictions
from radio_utils.provenance import code_version

PART = 1 << 14  # tokens that are read or written between two savings


@dataclass(frozen=True)
class Part:
    """Some of the texts, ``tokens`` with their prompts, whose predictions are one piece of kept evidence."""

    audit: Case
    opened: OpenModel
    of: Weights
    texts: list[Ids]
    prompts: list[Ids] | None
    tokens: int

    @property
    def _of(self) -> tuple[str, dict[str, Any]]:
        hers, his = self.audit.tokenizer, self.opened.tokenizer
        config = {
            "texts": digest_of(self.texts, self.prompts),
            "vocab_size": self.audit.wm.vocab_size,
            "model": self.of.digest,
            "dtype": self.audit.request.dtype,
            "fed": self.of.feeding.digest,
            "tokenizers": None if self.opened.vocabulary.same else list(map(tokenizer_digest, (hers, his))),
        }
        return "predictions", config

    @property
    def kept(self) -> bool:
        """Whether it was read before."""
        return store(self.audit).has(*self._of, version=_version())

    def read(self) -> Predictions:
        """What the model expects along these texts, read now or before."""

        def build(folder: Path) -> None:
            self.opened.read(self.of, self.audit, self.texts, self.prompts).save(folder / "predictions.npz")

        made: Artifact = store(self.audit).get(*self._of, build, version=_version())
        return Predictions.load(made / "predictions.npz")


def parts_of(audit: Case, opened: OpenModel, of: Weights, texts: Texts) -> Iterator[Part]:
    """All texts, in parts of about so many tokens that a loss of one is no loss."""

    def part(last: int) -> Part:
        chosen = slice(first, last)
        prompts = None if texts.prompts is None else texts.prompts[chosen]
        return Part(audit, opened, of, texts.ids[chosen], prompts, tokens)

    first = tokens = 0
    for last, context in enumerate(texts.contexts):
        if tokens and tokens + context.size > PART:
            yield part(last)
            first, tokens = last, 0
        tokens += context.size
    yield part(len(texts.ids))


def store(audit: Case) -> Store:
    """Where evidence is kept."""
    return Store(audit.request.folder / "evidence")


def _version() -> str:
    return code_version("reading", "retokenising")


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions along all texts."""
    return parts[0].merge(*parts[1:]) if len(parts) > 1 else parts[0]
