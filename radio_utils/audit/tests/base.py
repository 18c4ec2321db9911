"""What a test of a suspect is: all that the audit knows of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from radio_utils import contrast, detection
from radio_utils.audit.case import Case
from radio_utils.audit.verdict import TestResult
from radio_utils.contrast import Contrast, ContrastiveReading
from radio_utils.evidence import Evidence
from radio_utils.soft import SoftReading

_BOUND = (
    "Here p is an upper bound: each list of the mark has a fixed number of greens, and the exact law of a weighted sum "
    "over such lists is out of reach."
)

Judge = Callable[[int], TestResult]  # of evidence that is fixed: the seed of the decoy keys → the result


@dataclass(frozen=True)
class Applies:
    """Whether a test is run, and why or why not.

    ``keyed`` says that it would be run under another key. α is shared with it all the same, or a key that is lucky with the
    texts would have a test more without paying for it.
    """

    yes: bool
    why: str
    keyed: bool = False


@dataclass(frozen=True)
class Cost:
    """Tokens that models at hand ``read``, those of them that are not kept from before, and that they write at most."""

    read: int = 0
    unread: int = 0
    written: int = 0


@dataclass(frozen=True)
class Words:
    """What the report says of a test.

    ``method`` is half a sentence on what is looked at, ``holds`` the sentences that say under which condition the p-value
    is one, ``number`` what a reader must know of its p-value, and ``undone`` says what would undo a conviction by it.
    """

    method: str
    holds: str = ""
    number: str = ""
    undone: tuple[str, ...] = ()


class SuspectTest(ABC):
    """One test of a suspect. It has no state: all that it knows is the case.

    ``plannable`` says that its pairs count alike and that their number is fixed beforehand, so that its power is planned.
    ``reads_marked`` says that it follows marked texts, which may tell the key: a leak in the re-marking control makes it
    unsound.
    """

    name: ClassVar[str]
    words: ClassVar[Words]
    plannable: ClassVar[bool] = True
    reads_marked: ClassVar[bool] = False

    @abstractmethod
    def applies(self, case: Case) -> Applies:
        """Whether it is run. By the inputs alone; what the key has a say in is ``keyed``."""

    @abstractmethod
    def pairs(self, case: Case) -> int:
        """About how many distinct pairs it will score, where it applies."""

    def cost(self, case: Case) -> Cost:
        """What it costs where models are at hand."""
        return Cost()

    @abstractmethod
    def run(self, case: Case, level: float) -> Judge:
        """Gather the evidence, which knows no decoy, for a test at the log10 ``level``; the judge is called when all is."""

    def describe(self) -> Words:
        """What the report says of it."""
        return self.words

    def judged(
        self, case: Case, found: Evidence, seed: int, note: str = "", *, base: Evidence | None = None, respelt: float = 0.0
    ) -> TestResult:
        """The verdict on distinct pairs, its decoy audit, and what the pairs have that those of the ``base`` have not."""
        decoys, verdict = None, detection.judge(found, case.wm, respelt=respelt)
        if len(found):
            decoys = detection.audit_evidence(found, case.wm, keys=case.request.decoys, seed=seed)
        else:
            note = f"{note} No place could be scored, so p = 1.".strip()
        added = None if base is None else detection.compare(found, base, case.wm)
        return replace(TestResult.of(self.name, verdict, case.wm, decoys, note), added=added)

    def weighed(self, case: Case, found: Contrast, verdict: ContrastiveReading | SoftReading, seed: int) -> TestResult:
        """The verdict on weighted pairs, with the audit of their weights under decoys."""
        decoys = None
        if len(found.pairs):
            decoys = contrast.audit_contrast(found, case.wm, keys=case.request.decoys, seed=seed)
        return TestResult.of(self.name, verdict, case.wm, decoys, _BOUND if case.wm.law.without_return else "")
