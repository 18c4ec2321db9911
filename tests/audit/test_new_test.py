"""A new test of a suspect is a class and an entry: it is planned, paid for, run, reported and counted like the others."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
from trials import World, audited

from radio_utils import querying
from radio_utils.audit import auditing, plan, preflight, report, tests, verdict
from radio_utils.audit.tests.base import Applies, Cost, Judge, SuspectTest, Words

NEW = "first answers"


class FirstAnswers(SuspectTest):
    """What a model at hand goes on with after the first tokens of plain texts."""

    name = NEW

    def applies(self, case: Any) -> Applies:
        if case.plain is None:
            return Applies(False, "nobody gave plain texts", keyed=case.fresh is not None)
        return Applies(True, "plain texts begin its answers")

    def pairs(self, case: Any) -> int:
        return len(case.plain.ids) * 16

    def cost(self, case: Any) -> Cost:
        return Cost(written=self.pairs(case))

    def run(self, case: Any, level: float) -> Judge:
        asked = [text[:2] for text in case.plain.ids]
        suspect = querying.LocalSuspect(case.models.suspect.model, stop_tokens=(), max_new_tokens=16)
        found = querying.score_answers(asked, suspect.answer(asked), case.wm, keep=case.windows).evidence
        return lambda seed: self.judged(case, found, seed)

    def describe(self) -> Words:
        return Words("How it <goes on> from plain words", "No key began them.", "It is a toy's.", ("Proof of a parrot.",))


@pytest.fixture(params=[0, len(tests.TESTS)], ids=["first", "last"])
def added(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests, "TESTS", (*tests.TESTS[: request.param], FirstAnswers(), *tests.TESTS[request.param :]))


def files(found: verdict.Verdict) -> tuple[Any, Any, str]:
    folder = found.report.parent
    record, planned = (json.loads((folder / name).read_text()) for name in ("verdict.json", "plan.json"))
    return record, planned, found.report.read_text()


@pytest.mark.usefixtures("added")
def test_it_is_planned_run_reported_and_counts(world: World, tmp_path: Path) -> None:
    for suspect, outcome in ((world.guilty, "convicted"), (world.innocent, "not convicted")):
        # texts too few for reading: it alone convicts
        found = audited(world, tmp_path / outcome, suspect, plain_texts=world.plain, alpha=1e-3)
        record, planned, page = files(found)
        (row,) = (one for one in record["tests"] if one["name"] == NEW)
        assert [one["test"] for one in planned["tests"]] == [one.name for one in tests.TESTS]
        assert planned["level_of_each_test"] == 1e-3 / 3 and record["counted"] == 3  # two readings, and this one
        assert planned["estimate"]["tokens_written_at_most"] == 200 * 16
        assert row["applied"] and row["why"] == "plain texts begin its answers" and row["scored"] > 100 and row["sound"]
        assert row["log10_corrected"] == pytest.approx(min(0.0, row["log10_p"] + math.log10(3))) and row["decoys"] == 99
        assert row["smallest_effect"] is not None
        assert "How it &lt;goes on&gt; from plain words" in page and "No key began them." in page
        assert found.outcome == outcome and (row["log10_p"] < -3.4) == (outcome == "convicted")


@pytest.mark.usefixtures("added")
def test_it_convicts_by_itself_and_speaks_for_itself(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Applies(False, "left out")
    for other in tests.TESTS:
        if other.name != NEW:
            monkeypatch.setattr(type(other), "applies", lambda self, case: refused)
    found = audited(world, tmp_path / "alone", world.guilty, plain_texts=world.plain)
    page = files(found)[2]
    assert found.convicted and found.decisive is not None and found.decisive.name == NEW and found.counted == 1
    assert "It is a toy&#39;s." in page and "Proof of a parrot." in page and "stops as soon as" not in page
    monkeypatch.setattr(verdict, "UNSOUND", 2.0)  # as if its decoys had exposed its arithmetic
    assert audited(world, tmp_path / "alone", world.guilty, plain_texts=world.plain).outcome == "void"


@pytest.mark.usefixtures("added")
def test_it_is_paid_for_where_only_the_key_keeps_it_out(world: World, tmp_path: Path) -> None:
    found = audited(world, tmp_path / "fresh", world.guilty, fresh_texts=world.fresh)
    (new,) = (one for one in found.tests if one.name == NEW)
    assert not new.applied and new.why == "nobody gave plain texts" and found.counted == 3
    assert "<strong>first answers</strong>: nobody gave plain texts." in found.report.read_text()
    assert audited(world, tmp_path / "none", world.guilty).counted == 1


def test_nobody_else_knows_a_test_by_name() -> None:
    assert len({test.name for test in tests.TESTS}) == len(tests.TESTS)
    page = Path(inspect.getfile(report)).with_name("report.html").read_text()
    for source in (page, *map(inspect.getsource, (auditing, plan, preflight, report, verdict))):
        for test in tests.TESTS:
            assert test.name not in source.lower() and f"{type(test).__name__}(" not in source
