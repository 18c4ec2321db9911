"""What an audit found: its tests and its outcome, as plain values that a file can hold."""

from __future__ import annotations

import dataclasses
import math
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from radio_utils import planning
from radio_utils.detection import Comparison, NullAudit
from radio_utils.remarking import RemarkControl
from radio_utils.watermarks import Watermark

Outcome = Literal["convicted", "not convicted", "void"]

UNSOUND = 1e-4  # p of the null audit below which a test is not believed


@dataclass(frozen=True)
class TestResult:
    """One test: applied with its numbers, or not and why.

    ``seen`` places were looked at, ``scored`` distinct pairs scored, with mean ``score`` where ``expected`` is expected of
    a model that never met the key. ``log10_p`` is this test's own. ``added`` compares the suspect with its reference at the
    same places or prompts; the larger of the two p-values counts, as both must reject. ``log10_corrected`` is that one, and
    allows for all tests of the audit.
    ``ks_p`` compares the p-values of ``decoys`` keys that nobody used with a uniform distribution, ``lowest_decoy`` is the
    smallest of their log10 p; a test that looks again and again has ``alarms``, the share of decoys that ever looked
    convincing at 5 %. One whose decoys misbehave, or in which the re-marking control finds a leak, is not ``sound`` and
    convicts nobody.
    ``smallest_effect`` is what so many pairs would find nine times in ten, ``needed_pairs`` how many pairs the effect that
    was seen would need for that, None for a test of which it is not known. Of ``answers`` some were ``empty``, and some
    prompts ``refused``. Results are equal where they found the same in the same evidence, whichever decoys were
    drawn.
    """

    __test__ = False  # pytest: no test class

    name: str
    applied: bool
    why: str = ""
    seen: int | None = None
    scored: int | None = None
    score: float | None = None
    expected: float | None = None
    log10_p: float | None = None
    added: Comparison | None = None
    log10_corrected: float | None = None
    decoys: int | None = None
    ks_p: float | None = field(default=None, compare=False)
    lowest_decoy: float | None = field(default=None, compare=False)
    alarms: float | None = field(default=None, compare=False)
    sound: bool = True
    smallest_effect: float | None = None
    needed_pairs: int | None = None
    asked: int | None = None
    answers: int | None = None
    empty: int | None = None
    refused: int | None = None
    note: str = ""
    null: NullAudit | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, name: str, found: Any, wm: Watermark, audit: NullAudit | None, note: str = "") -> TestResult:
        """A test of a fixed amount of evidence, and its null audit.

        ``found`` is any verdict with ``seen``, ``scored``, ``score`` and ``log10_p``, such as a Detection.
        """
        result = cls(
            name, applied=True, seen=found.seen, scored=found.scored, expected=wm.law.mean, log10_p=found.log10_p,
            score=found.score if math.isfinite(found.score) else None, note=note, null=audit,
        )  # fmt: skip
        if audit is None:
            return result
        sound = audit.ks_p >= UNSOUND
        return replace(result, decoys=audit.keys, ks_p=audit.ks_p, lowest_decoy=audit.min_log10_p, sound=sound)

    def corrected(self, tests: int) -> TestResult:
        """With the p-value that allows for so many tests (Bonferroni)."""
        assert self.log10_p is not None
        counts = self.log10_p if self.added is None else max(self.log10_p, self.added.log10_p)
        return replace(self, log10_corrected=min(0.0, counts + math.log10(tests)))

    def planned(self, wm: Watermark, why: str, log10_level: float, smallest_effect: float | None) -> TestResult:
        """With the reason why it applied, and what power planning says of it where its power is planned."""
        needed = None
        if smallest_effect is not None and self.effect is not None:
            with suppress(ValueError):  # no number of pairs shows an effect that is not there, or hardly
                needed = planning.pairs_needed(wm, self.effect, log10_p=log10_level).scored
        return replace(self, why=why, smallest_effect=smallest_effect, needed_pairs=needed)

    @property
    def misbehaved(self) -> bool:
        """Whether it is unsound because decoy keys do not behave as they must."""
        return not self.sound and (self.alarms is not None or (self.ks_p is not None and self.ks_p < UNSOUND))

    @property
    def effect(self) -> float | None:
        """Mean score less what is expected of an innocent."""
        return None if self.score is None or self.expected is None else self.score - self.expected

    def row(self) -> dict[str, Any]:
        """All fields that a JSON file can hold."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "null"}
        if self.added is not None:
            pairs = dataclasses.asdict(self.added).items()  # no pairs have no mean
            found["added"] = {name: value if math.isfinite(value) else None for name, value in pairs}
        return found


@dataclass(frozen=True)
class Control:
    """The re-marking control of the reading of marked texts; ``why`` it was not run, else empty.

    ``log10_p`` is what the test says of the first ``texts`` texts, ``rank_p`` the p-value of its rank among ``worlds``
    others, ``ks_p`` tests whether the worlds' own p-values are too small, and ``leaks`` says that they are. ``strength_p``
    compares how strongly the texts are marked: a small one says that it was not this pipeline that wrote them.
    """

    why: str = ""
    texts: int = 0
    worlds: int = 0
    log10_p: float | None = None
    rank_p: float | None = None
    ks_p: float | None = None
    strength_p: float | None = None
    leaks: bool = False

    @classmethod
    def of(cls, found: RemarkControl, texts: int) -> Control:
        """The figures of a control."""
        return cls(
            "", texts, found.worlds.size, found.log10_p, found.p_value, found.ks_p, found.strength_p, bool(found.leaks)
        )


@dataclass(frozen=True)
class Verdict:
    """The verdict of an audit.

    ``outcome`` is "convicted" (a sound test's corrected p is at most α), "not convicted" (no evidence, which is no proof of
    innocence; with a reference: that the suspect added any), or "void" (only tests that cannot be believed would convict:
    decoy keys misbehave, or texts under keys that nobody used convict too). ``control`` is the re-marking control.
    ``counted`` tests share α: those that applied, and those that would have with another key. Decoy keys came from
    ``decoy_entropy``. ``commitment`` is the file, hash and date of the commitment that the key opened; None: when the key
    was fixed is not proved. ``earlier`` lists the audits of the same suspect in folders beside this one's, and
    ``short_key`` says whether the key could be found by trying.
    """

    outcome: Outcome
    alpha: float
    tests: tuple[TestResult, ...]
    control: Control
    counted: int
    texts_log10_p: float
    vocabulary: str | None
    estimate: dict[str, Any]
    inputs: dict[str, Any]
    settings: dict[str, Any]
    fingerprint: str
    seconds: dict[str, float]
    folder: str
    decoy_entropy: str = ""
    commitment: dict[str, str] | None = None
    earlier: tuple[dict[str, Any], ...] = ()
    short_key: str = ""

    @property
    def rehearsal(self) -> bool:
        """Whether a key was allowed that others know, so that the verdict accuses nobody."""
        return bool(self.settings.get("rehearsal"))

    @property
    def convicted(self) -> bool:
        """Whether the suspect is convicted at level α."""
        return self.outcome == "convicted"

    @property
    def log10_p(self) -> float:
        """What may be quoted: the smallest p of a sound test, corrected for the number of tests; 0 if the audit is void."""
        found = None if self.outcome == "void" else self.decisive
        return 0.0 if found is None else found.log10_corrected or 0.0

    @property
    def decisive(self) -> TestResult | None:
        """The test that :attr:`log10_p` is of."""
        found = [test for test in self.tests if test.log10_corrected is not None and test.sound]
        return min(found, key=lambda test: test.log10_corrected or 0.0, default=None)

    @property
    def of_answers(self) -> bool:
        """Whether the suspect is a file of answers, of which nobody can see who wrote them."""
        return "texts" in self.inputs.get("suspect", {})

    @property
    def about(self) -> str:
        """Whom a conviction is about."""
        if self.of_answers:
            return "whoever wrote these answers"
        return "the suspect" if self.settings.get("reference") else "the suspect or a model that it was made from"

    @property
    def report(self) -> Path:
        """The page for people."""
        return Path(self.folder) / "report.html"

    def record(self) -> dict[str, Any]:
        """The verdict as plain JSON values."""
        values = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("tests", "control", "folder")
        }
        return values | {
            "about": self.about,
            "log10_p": self.log10_p,
            "tests": [test.row() for test in self.tests],
            "control": dataclasses.asdict(self.control),
        }
