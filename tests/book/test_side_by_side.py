"""Chapters side by side: they run at the same time, one that names another waits for it, and what ends one ends all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import chapter, tiny_project
from waiting import PATIENCE

from radio_utils.book.execute import ChapterFailed, execute
from radio_utils.book.kernels import Together
from radio_utils.book.progress import Progress
from radio_utils.files import write_json

MEET = """\
import time
pathlib.Path("{own}").write_text(str(os.getpid()))
while not pathlib.Path("{other}").exists():
    time.sleep(0.01)"""


@pytest.fixture(autouse=True)
def _own_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIO_UTILS_RESULTS", raising=False)


def test_each_meets_the_other_and_finds_its_surroundings(tmp_path: Path) -> None:
    where = "print(os.environ['RADIO_UTILS_RESULTS'], os.environ['PYTHONHASHSEED'], os.getcwd())"
    names = ["01_first", "02_second", "03_third"]
    cells = [
        (MEET.format(own="first", other="second"), where),
        (MEET.format(own="second", other="first"), where),
        ("earlier = '01_first'; print(pathlib.Path(f'results/smoke/{earlier}.json').exists())", where),
    ]
    book = tiny_project(tmp_path / "book", *((name, chapter(name, *some)) for name, some in zip(names, cells, strict=True)))
    here, before = Path.cwd(), dict(os.environ)
    assert list(execute(book, "smoke", timeout=PATIENCE, at_once=2)) == names
    assert (Path.cwd(), dict(os.environ)) == (here, before)
    for name in names:
        said = json.dumps(json.loads((book.executed("smoke") / f"{name}.ipynb").read_text()))
        assert f"results 0 {book.root.resolve()}" in said
    assert "True" in said, "the third names the first, which had ended"
    assert execute(book, "smoke", at_once=2) == {}, "as if they had run one after another"


def test_one_that_names_another_waits_for_it(tmp_path: Path) -> None:
    slow = chapter("01_first", "import time; time.sleep(1.0)")
    after = chapter("02_second", "json.loads(pathlib.Path('results/smoke/01_first.json').read_text())")
    book = tiny_project(tmp_path / "book", ("01_first", slow), ("02_second", after))
    assert list(execute(book, "smoke", at_once=2)) == ["01_first", "02_second"]


def test_one_that_fails_ends_the_others(tmp_path: Path) -> None:
    stuck = chapter("01_first", MEET.format(own="pid", other="never"))
    fails = chapter("02_second", MEET.format(own="me", other="pid"), "raise ValueError('this one')")
    never = chapter("03_third", "pathlib.Path('third').touch()")
    book = tiny_project(tmp_path / "book", ("01_first", stuck), ("02_second", fails), ("03_third", never))
    with pytest.raises(ChapterFailed, match=r"chapter 02_second: cell \d of \d failed(.|\n)*this one"):
        execute(book, "smoke", timeout=PATIENCE, at_once=2)
    pid = int((book.root / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    left = sorted(path.name for path in book.executed("smoke").iterdir())
    assert left == ["02_second.failed.ipynb"] and not (book.root / "third").exists()


class _Client:
    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.killed = seconds, False

    def spent(self) -> float | None:
        return self.seconds

    def kill(self) -> None:
        self.killed = True


def test_none_is_silent_while_another_works() -> None:
    together, one, other = Together(), _Client(3.0), _Client(4.0)
    joined: Any = together.joined
    with joined(one):
        assert together.spent() == 3.0
        with joined(other):
            assert together.spent() == 7.0
            other.seconds = None
            assert together.spent() is None, "nothing is known of the whole"
            together.end()
        assert one.killed and other.killed and together.over
    assert together.spent() == 0.0


def test_what_is_left_is_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radio_utils.book.progress.time", SimpleNamespace(monotonic=lambda: 0.0))
    names = ["01_first", "02_second", "03_third", "04_fourth"]
    book = tiny_project(tmp_path / "book", *((name, chapter(name)) for name in names))
    for name, seconds in zip(names, (100, 300, 60, 40), strict=True):
        write_json(book.root / "results" / "seed-0" / "laptop" / f"{name}.json", {"seconds": seconds})
    progress = Progress(book, "laptop", names, at_once=2)
    with progress.of("01_first", lambda: ""), progress.of("02_second", lambda: ""):
        for name in names[:2]:
            assert progress.left(name, 0) == pytest.approx(300), "500 s of work for two, of which one has 300"
        progress.took("01_first", 200)
        assert progress.left("02_second", 0) == pytest.approx(600)


@pytest.mark.parametrize(
    ("seconds", "at_once", "expected"),
    [
        ((100, 300, 60, 900), 2, "1 2 4 3"),
        ((100, 300, 60, 900), 3, "1 2 3 4"),
        ((100, 300, 60, 900), 1, "1 2 3 4"),  # one after another, as they are read
        ((900, 300, 60, 40), 2, "1 2 3 4"),
        ((100, 300, None, 40), 2, "1 2 4 3"),
        ((None, None, None, None), 2, "1 2 3 4"),
    ],
)
def test_the_longest_is_begun_before_others(
    tmp_path: Path, seconds: tuple[int | None, ...], at_once: int, expected: str
) -> None:
    names = [f"0{i}_chapter" for i in range(1, 5)]
    book = tiny_project(tmp_path / "book", *((name, chapter(name)) for name in names))
    for name, took in zip(names, seconds, strict=True):
        if took is not None:
            write_json(book.root / "results" / "seed-0" / "laptop" / f"{name}.json", {"seconds": took})
    order = Progress(book, "laptop", names, at_once=at_once).order()
    assert order == [f"0{i}_chapter" for i in expected.split()]
