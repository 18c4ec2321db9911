"""Reading: what the suspect expects along marked texts."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from radio_utils import detection
from radio_utils import evidence as ev
from radio_utils.audit.case import Case
from radio_utils.audit.parts import parts_of, predictions
from radio_utils.audit.tests.base import Applies, Cost, Judge, SuspectTest, Words
from radio_utils.audit.texts import Texts

HOLDS = (
    "An innocent that reads marked text could learn a list from the text itself, so a test of marked text leaves out every "
    "place that could have been told so; what was done to the texts before they were given, it cannot see, and the "
    "re-marking control can. Where tokens were made from strings, p is a bound that allows for those that may not be the "
    "ones drawn."
)


def not_read(case: Case) -> str:
    """Why weights are not read, empty where they are."""
    if case.request.kind != "model":
        return "needs the suspect's weights"
    return "" if "open" in case.request.modes else "only closed tests were asked for"


class MarkedReading(SuspectTest):
    """What the suspect holds most likely along marked texts, and where there is a reference, that of both."""

    reads_marked = True
    at_hand: ClassVar[str]  # why it applies

    @abstractmethod
    def marked(self, case: Case) -> tuple[Texts, detection.Detection]:
        """The texts that are followed, and the mark in them."""

    def applies(self, case: Case) -> Applies:
        """Where weights are read, and tokens are left as they were drawn."""
        if why := not_read(case):
            return Applies(False, why)
        if case.spelling is None or not self.marked(case)[0].from_strings:
            return Applies(True, self.at_hand)
        if case.spelling.tokens:
            return Applies(True, f"{self.at_hand}; {case.spelling.words(case.wm)}")
        return Applies(
            False,
            "the texts are strings, and how they were spelt can be told neither by Alice's model nor by a suspect with her "
            "tokenizer; give rows with ids, or alice",
        )

    def pairs(self, case: Case) -> int:
        """As many as the texts have."""
        return self.marked(case)[1].scored

    def cost(self, case: Case) -> Cost:
        """Each text is read once by the suspect, and once by its reference."""
        texts, models = self.marked(case)[0], case.models
        parts = [part for of in (models.suspect, models.reference) if of for part in parts_of(case, of, texts)]
        return Cost(sum(part.tokens for part in parts), sum(part.tokens for part in parts if not part.kept))

    def run(self, case: Case, level: float) -> Judge:
        """Read, kept part by part."""
        wm, models, texts = case.wm, case.models, self.marked(case)[0]
        predicted = predictions(case, models.suspect, texts, self.name)
        note = ""
        if not models.vocabulary.same:
            places = sum(t.size - max(s, 1) for t, s in zip(predicted.tokens, predicted.starts.tolist(), strict=True))
            decided = sum(int(np.count_nonzero(tokens >= 0)) for tokens in predicted.tokens)
            note = f"Of {places:,} places the suspect's tokenizer decides {decided:,}; the others are not scored."
        options: dict[str, Any] = {"shared": ev.shared_by(wm), "full_context": case.request.full_context}
        options["from_start"] = case.from_start(texts)
        with case.timed("statistics"):
            found = predicted.evidence(wm.window, wm.vocab_size, **options)
        base = None
        if models.reference is not None:
            of_base = predictions(case, models.reference, texts, f"{self.name}, reference")
            with case.timed("statistics"):
                base = of_base.evidence(wm.window, wm.vocab_size, places_of=predicted, **options)
        return lambda seed: self.judged(case, found, seed, note, base=base, respelt=case.allowance(texts))


class SupervisedReading(MarkedReading):
    """Along texts that the suspect may have used."""

    name = "reading, supervised"
    words = Words("What the model expects along texts that it may have been trained on", HOLDS)
    at_hand = "weights and texts that it may have used are at hand"

    def marked(self, case: Case) -> tuple[Texts, detection.Detection]:
        """The watermarked texts."""
        return case.texts, case.of_texts


class UnsupervisedReading(MarkedReading):
    """Along fresh texts, if they are marked. The key has a say in whether they are."""

    name = "reading, unsupervised"
    words = Words("What the model expects along marked texts that it cannot have seen", HOLDS)
    at_hand = "weights and fresh marked texts are at hand"

    def marked(self, case: Case) -> tuple[Texts, detection.Detection]:
        """The fresh texts."""
        assert case.fresh is not None and case.of_fresh is not None
        return case.fresh, case.of_fresh

    def applies(self, case: Case) -> Applies:
        """Where fresh texts are given, and carry the mark."""
        if case.fresh is None:
            return Applies(False, not_read(case) or "no fresh texts were given")
        found = super().applies(case)
        if found.yes and self.marked(case)[1].log10_p >= detection.MARKED:
            why = "the fresh texts do not carry the watermark, so their windows say nothing of its lists"
            return Applies(False, why, keyed=True)
        return found
