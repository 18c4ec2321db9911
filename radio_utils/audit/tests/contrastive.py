"""Contrastive reading: how the suspect's expectations differ from another model's along plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from radio_utils import contrast, reading
from radio_utils.audit import alice, preflight
from radio_utils.audit.case import Case
from radio_utils.audit.tests.base import Applies, Cost, Judge, SuspectTest, Words
from radio_utils.audit.tests.reading import not_read
from radio_utils.provenance import code_version


class ContrastiveReading(SuspectTest):
    """Pairs are weighted by the difference of two models that read plain text. The weights depend on no key."""

    name = "contrastive reading"
    words = Words(
        "How its expectations differ from those of a model that never met the key, along unmarked texts, which is a "
        "comparison by itself",
        "Contrastive reading meets it where neither the plain text nor the model that the suspect is compared with ever "
        "met the key.",
    )
    plannable = False  # its pairs have weights

    def applies(self, case: Case) -> Applies:
        """Where there is a model to compare with, and text without the mark."""
        request = case.request
        if why := not_read(case):
            return Applies(False, why)
        if not (request.reference or request.alice):
            return Applies(False, "no model to compare with was given, neither reference nor alice")
        if not case.models.vocabulary.same:
            return Applies(False, "the suspect's tokenizer is not Alice's")
        other = "the model it was made from" if request.reference else "Alice's own unmarked model"
        if case.plain is not None:
            return Applies(True, f"weights, {other}, and texts without the mark ({case.plain.name})")
        if request.alice:
            return Applies(True, f"weights, {other}, and texts without the mark, which Alice's own model writes")
        if case.fresh is None:
            return Applies(False, "no texts without the watermark: give plain_texts, or alice to write them")
        why = "the fresh texts carry the watermark, or their prompts do: give plain_texts, or alice to write them"
        return Applies(False, why, keyed=True)

    def pairs(self, case: Case) -> int:
        """One for each token of the plain texts, which may still have to be written."""
        return case.of_texts.scored if case.plain is None else case.plain.tokens

    def cost(self, case: Case) -> Cost:
        """Two models read each text."""
        read = 2 * sum(context.size for context in (case.plain or case.texts).contexts)
        return Cost(read, read)

    def run(self, case: Case, level: float) -> Judge:
        """Read, kept."""
        wm, models = case.wm, case.models
        suspect, reference = models.suspect, models.reference or models.alice
        assert reference is not None
        texts = alice.plain_texts(case)
        own = preflight.log10_p_of(texts, wm)

        def build(folder: Path) -> None:
            reading.read_contrast(
                suspect.model, reference.model, texts.ids, wm.window, wm.vocab_size, prompts=texts.prompts,
                feeding=[suspect.feeding, reference.feeding], batch_size=case.request.batch_size,
                progress=case.bar(self.name),
            ).save(folder)  # fmt: skip

        config: dict[str, Any] = {
            "texts": texts.digest, "window": wm.window, "vocab_size": wm.vocab_size, "model": suspect.digest,
            "reference": reference.digest, "dtype": case.request.dtype,
            "fed": [suspect.feeding.digest, reference.feeding.digest],
        }  # fmt: skip
        made = case.kept("contrast", config, build, f"suspect or {reference.name}", code_version(build))
        found = contrast.Contrast.load(made.path)

        return lambda seed: self.weighed(case, found, contrast.judge_contrast(found, wm, text_log10_p=own), seed)
