"""Soft reading of plain text: all that the suspect expects, where there is no model to compare it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from radio_utils import contrast, reading
from radio_utils import soft as soft_reading
from radio_utils.audit import preflight
from radio_utils.audit.case import Case
from radio_utils.audit.tests.base import Applies, Cost, Judge, SuspectTest, Words
from radio_utils.audit.tests.reading import not_read
from radio_utils.provenance import code_version


class SoftReading(SuspectTest):
    """Pairs are weighted by one model that reads plain text. The weights depend on no key."""

    name = "soft reading"
    words = Words(
        "All that it expects along unmarked texts, each token weighted by its probability",
        "Soft reading meets it where the plain text never met the key.",
    )
    plannable = False  # its pairs have weights

    def applies(self, case: Case) -> Applies:
        """Where plain texts are given by name, and no model to compare with: contrastive reading needs no second test."""
        request = case.request
        if why := not_read(case):
            return Applies(False, why)
        if request.reference or request.alice:
            return Applies(False, "there is a model to compare with, which tells more")
        if not request.plain_texts:
            return Applies(False, "no plain_texts were given")
        if not case.models.vocabulary.same:
            return Applies(False, "the suspect's tokenizer is not Alice's")
        assert case.plain is not None
        return Applies(True, f"weights and texts without the mark ({case.plain.name})")

    def pairs(self, case: Case) -> int:
        """One for each token of the plain texts."""
        assert case.plain is not None
        return case.plain.tokens

    def cost(self, case: Case) -> Cost:
        """The suspect reads each text."""
        assert case.plain is not None
        read = sum(context.size for context in case.plain.contexts)
        return Cost(read, read)

    def run(self, case: Case, level: float) -> Judge:
        """Read, kept."""
        wm, suspect, texts = case.wm, case.models.suspect, case.plain
        assert texts is not None
        own, start = preflight.log10_p_of(texts, wm), case.from_start(texts)

        def build(folder: Path) -> None:
            reading.read_soft(
                suspect.model, texts.ids, wm.window, wm.vocab_size, prompts=texts.prompts, skip_seen=False,
                from_start=start, feeding=suspect.feeding, batch_size=case.request.batch_size, progress=case.bar(self.name),
            ).save(folder)  # fmt: skip

        config: dict[str, Any] = {
            "texts": texts.digest, "window": wm.window, "vocab_size": wm.vocab_size, "model": suspect.digest,
            "dtype": case.request.dtype, "fed": suspect.feeding.digest, "from_start": start,
        }  # fmt: skip
        made = case.kept("soft", config, build, "suspect", code_version(build))
        found = contrast.Contrast.load(made.path)

        return lambda seed: self.weighed(case, found, soft_reading.judge_soft(found, wm, text_log10_p=own), seed)
