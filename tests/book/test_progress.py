"""What is done and how much is left, by hand-made records and clocks."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import chapter, tiny_project
from waiting import PATIENCE, wait_until

from radio_utils.book import Project
from radio_utils.book.execute import execute
from radio_utils.book.progress import Progress
from radio_utils.files import write_json

NAMES = ["01_first", "02_second", "03_third"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock that progress goes by; it stands still."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("radio_utils.book.progress.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def book(tmp_path: Path) -> Project:
    project = tiny_project(tmp_path / "book", *((name, chapter(name)) for name in NAMES))
    for name, seconds in zip(NAMES, (100, 300, 60), strict=True):
        write_json(project.root / "results" / "seed-0" / "laptop" / f"{name}.json", {"seconds": seconds})
    return project


def test_what_is_left_follows_the_measured_rate(book: Project) -> None:
    progress = Progress(book, "laptop", NAMES)
    assert progress.left("01_first", 0) == pytest.approx(460)
    assert progress.left("01_first", 40) == pytest.approx(420)
    assert progress.left("01_first", 250) == pytest.approx(2.5 * 360), "the machine is at least 2.5 times slower"
    progress.took("01_first", 200)
    assert progress.left("02_second", 0) == pytest.approx(2 * 360)
    assert progress.left("02_second", 500) == pytest.approx(2 * 360 - 500)
    assert progress.left("02_second", 1200) == pytest.approx(3.5 * 60), "of both"
    progress.took("02_second", 600)
    assert progress.left("03_third", 30) == pytest.approx(90)


def test_chapters_side_by_side_tell_the_same(book: Project, clock: SimpleNamespace) -> None:
    """A short chapter that makes what a long one's record says that it made tells of the two together, not of all."""
    progress = Progress(book, "laptop", NAMES, at_once=2, every=PATIENCE)
    with progress.of("01_first", lambda: ""), progress.of("02_second", lambda: ""):
        clock.now += 600
        told = [progress.left(name, 600.0) for name in NAMES[:2]]
    assert told == pytest.approx([300.0, 300.0]), "1,200 s for 400: three times 300, of which 600 are over"


@pytest.mark.parametrize("text", [None, "{", "[]", '{"seconds": null}', '{"seconds": NaN}', "{}"])
def test_without_a_record_nothing_is_promised(text: str | None, book: Project) -> None:
    path = book.root / "results" / "seed-0" / "laptop" / "02_second.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    progress = Progress(book, "laptop", NAMES)
    assert progress.left("01_first", 0) is None
    progress.took("01_first", 200)
    progress.took("02_second", 500)
    assert progress.left("03_third", 0) == pytest.approx(120)


@pytest.mark.usefixtures("clock")
def test_lines_while_a_chapter_runs(book: Project, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    said: list[str] = []

    def doing() -> str:
        said.append("pre-training base: 40%")
        return said[-1]

    progress = Progress(book, "laptop", NAMES, every=0.01)
    progress.took("01_first", 100)
    with progress.of("02_second", doing):
        wait_until(lambda: len(said) > 5)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "02_second                chapter 2 of 3; about 6 min left"
    assert "chapter 2 of 3, 0 s so far, pre-training base: 40%; about 6 min left" in lines[1]
    count = len(caplog.records)
    progress = Progress(book, "laptop", NAMES, every=PATIENCE)
    progress.took("01_first", 100)
    progress.took("02_second", 300)
    with progress.of("03_third", lambda: ""):
        pass
    assert [record.getMessage() for record in caplog.records[count:]] == [
        "03_third                 chapter 3 of 3; about 60 s left"
    ]


def test_a_run_numbers_its_chapters(book: Project, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    execute(book, "smoke", ["01_first", "03_third"])
    assert "chapter 1 of 2" in caplog.text and "chapter 2 of 2" in caplog.text and "left" not in caplog.text
