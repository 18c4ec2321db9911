"""The book's tooling, tried on tiny books: parameters, failures, limits, caching, conventions, pages, the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from tiny import ADDRESS, REPOSITORY, chapter, tiny_project, write
from waiting import PATIENCE, wait_until

from radio_utils.book import BookError, Project
from radio_utils.book.__main__ import main
from radio_utils.book.check import check, parameter_problems, set_address
from radio_utils.book.execute import ChapterFailed, defaults, execute, fresh, literal, run
from radio_utils.book.project import checked_address, digest
from radio_utils.book.render import for_page, pages, render
from radio_utils.book.status import status_page
from radio_utils.files import atomic_write

NEW = "https://github.com/somebody/another-name"


@pytest.fixture(autouse=True)
def _own_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIO_UTILS_RESULTS", raising=False)


@pytest.fixture
def book(tmp_path: Path) -> Project:
    notebook = chapter("01_first", "answer = 6 * 7\nprint(answer, rho, type(rho).__name__)")
    return tiny_project(tmp_path / "book", ("01_first", notebook))


def outputs(path: Path) -> str:
    return "".join(output.get("text", "") for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", []))


def replace(cell: Any, old: str, new: str) -> None:
    cell.source = cell.source.replace(old, new)


def cli(project: Project, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
    command = [sys.executable, "-m", "radio_utils.book", *arguments]
    return subprocess.run(command, cwd=project.root, env=environment, capture_output=True, text=True, check=False)


class TestParameters:
    @pytest.mark.parametrize(
        ("text", "value"),
        [("0.2", 0.2), ("1e-3", 1e-3), ("3", 3), ("-1", -1), ("true", True), ("False", False), ("none", None), ("x", "x"),
         ('"3"', "3"), ("[1, 2]", [1, 2]), ("laptop", "laptop"), ("a b", "a b"), ("", ""), ("05", "05"),
          ("{[1]}", "{[1]}")],
    )  # fmt: skip
    def test_are_read_as_literals(self, text: str, value: Any) -> None:
        assert literal(text) == value
        assert type(literal(text)) is type(value)

    @pytest.mark.parametrize("text", ["{1, 2}", "b'x'", "[1, {2: 3}]", "1j"])
    def test_what_no_cell_can_be_given_is_refused(self, book: Project, text: str) -> None:
        with pytest.raises(BookError, match=r"parameter names holds .*, which a cell cannot be given"):
            run(book, "01_first", {"names": literal(text)})

    def test_defaults_are_those_of_the_cell(self, book: Project) -> None:
        assert defaults(book.chapter("01_first")) == {
            "preset": "laptop", "seed": 0, "rho": 0.1, "quick": True, "names": ["a", "b"], "label": "x",
        }  # fmt: skip

    @pytest.mark.parametrize(
        "value",
        [
            "http://h/v1?key=a&b=c#d",
            "a # b",
            "#",
            "a == b",
            'say "=" twice',
            "two\nlines # = x",
            {"a=b": ["#", (1, None)]},
            -0.5,
        ],
    )
    def test_defaults_may_hold_any_sign(self, book: Project, value: Any) -> None:
        cell = f"preset = 'laptop'  # one of = presets\nseed = 0\nsuspect = {value!r}\nrho: float = (\n    0.5  # half\n)"
        write(book, "01_first", chapter("01_first", parameters=cell))
        assert defaults(book.chapter("01_first")) == {"preset": "laptop", "seed": 0, "suspect": value, "rho": 0.5}

    def test_unknown_one_is_an_error_before_anything_runs(self, book: Project) -> None:
        with pytest.raises(BookError, match=r"01_first has no parameter 'rhoo'; it has preset, seed, rho"):
            run(book, "01_first", {"rhoo": 0.2})
        assert not book.build.exists()

    def test_unknown_chapter(self, book: Project) -> None:
        with pytest.raises(BookError, match=r"unknown chapter '07_nothing'; the chapters are 01_first"):
            run(book, "07_nothing", {})
        with pytest.raises(BookError, match="unknown chapter"):
            execute(book, "smoke", ["07_nothing"])

    def test_a_tuple_arrives_as_a_list(self, book: Project) -> None:
        """Papermill makes text of it."""
        write(book, "01_first", chapter("01_first", "print(names)"))
        given = {"names": literal("('a', (1, 0.5), {'b': (None, True)})")}
        assert outputs(run(book, "01_first", given)).strip() == "['a', [1, 0.5], {'b': [None, True]}]"

    def test_no_parameters_cell(self, book: Project) -> None:
        write(book, "01_first", chapter("01_first", parameters=None))
        with pytest.raises(BookError, match="0 cells are tagged `parameters`"):
            run(book, "01_first", {})
        with pytest.raises(BookError, match="0 cells are tagged `parameters`"):
            execute(book, "smoke")

    @pytest.mark.parametrize(
        "source",
        [
            "x = f()",
            "x = y",
            "import os",
            "x, y = 1, 2",
            "x = y = 1",
            "a.b = 1",
            "x += 1",
            "",
            "x = (",
            "x: int",
            "x = {[]: 1}",
        ],
    )
    def test_cell_with_more_than_literals(self, source: str) -> None:
        assert parameter_problems(source)

    @pytest.mark.parametrize("source", ["x = 1", "x: float = 0.1", "x = -1  # why", "x = [0.1, None]\ny = {'a': (1,)}"])
    def test_cell_with_literals(self, source: str) -> None:
        assert parameter_problems(source) == []


class TestRun:
    def test_takes_own_parameters_and_leaves_the_book_alone(self, book: Project, tmp_path: Path) -> None:
        execute(book, "laptop")
        executed = (book.executed("laptop") / "01_first.ipynb").read_bytes()
        record = (book.results("laptop") / "01_first.json").read_bytes()

        default = run(book, "01_first", {"rho": 0.25, "seed": 7})
        assert default == book.build / "runs" / "01_first.ipynb"
        assert outputs(default) == "42 0.25 float\n"
        assert json.loads((book.build / "runs" / "results" / "laptop" / "01_first.json").read_text())["seed"] == 7

        chosen = run(book, "01_first", {}, output=tmp_path / "mine" / "out.ipynb", results=tmp_path / "mine")
        assert outputs(chosen) == "42 0.1 float\n"
        assert (tmp_path / "mine" / "laptop" / "01_first.json").is_file()

        assert (book.executed("laptop") / "01_first.ipynb").read_bytes() == executed
        assert (book.results("laptop") / "01_first.json").read_bytes() == record
        assert fresh(book, "laptop", "01_first") is not None

    def test_refuses_an_output_inside_the_book(self, book: Project) -> None:
        for place in (book.executed("laptop") / "01_first.ipynb", book.chapter("01_first")):
            with pytest.raises(BookError, match="belongs to the book"):
                run(book, "01_first", {}, output=place)

    def test_works_in_the_checkout_from_anywhere(self, book: Project, tmp_path: Path, monkeypatch: Any) -> None:
        write(book, "01_first", chapter("01_first", "import os; print(os.getcwd())"))
        monkeypatch.chdir(tmp_path)
        assert outputs(run(book, "01_first", {})).strip() == str(book.root)


class TestFailure:
    def test_names_the_cell_its_source_and_the_traceback(self, book: Project) -> None:
        source = "def inner(x):\n    return 1 / x\nprint('before')\ninner(0)  # here it fails"
        write(book, "01_first", chapter("01_first", source))
        with pytest.raises(ChapterFailed) as caught:
            execute(book, "smoke")
        text = str(caught.value)
        assert "chapter 01_first: cell 5 of 6 failed" in text
        assert "inner(0)  # here it fails" in text
        assert "ZeroDivisionError: division by zero" in text
        assert "in inner(x)" in text
        assert "\x1b" not in text
        assert not (book.executed("smoke") / "01_first.ipynb").exists()
        assert "before" in outputs(book.executed("smoke") / "01_first.failed.ipynb")
        assert not list(book.executed("smoke").glob(".*.partial*"))

    def test_ends_a_stale_output(self, book: Project) -> None:
        execute(book, "smoke")
        write(book, "01_first", chapter("01_first", "raise RuntimeError('no')"))
        with pytest.raises(ChapterFailed):
            execute(book, "smoke")
        assert not (book.executed("smoke") / "01_first.ipynb").exists()
        with pytest.raises(BookError, match="01_first isn't executed from the present sources on preset smoke"):
            render(book, "smoke")

    def test_time_limit_holds_for_the_whole_chapter(self, book: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its first cell takes it all, by a clock that knows no other; the next would have as much if it were its own."""
        over = book.root / "over"
        clock = SimpleNamespace(monotonic=lambda: PATIENCE * over.exists())
        monkeypatch.setattr("radio_utils.book.execute.time", clock)
        cells = "pathlib.Path('over').touch()", "import time; time.sleep(3000)  # slow"
        write(book, "01_first", chapter("01_first", *cells))
        with pytest.raises(ChapterFailed, match=rf"took longer than the chapter's time limit of {PATIENCE:g} s") as caught:
            execute(book, "smoke", timeout=PATIENCE)
        assert "time.sleep(3000)  # slow" in str(caught.value)

    def test_killed_kernel_is_told(self, book: Project) -> None:
        write(book, "01_first", chapter("01_first", "os.kill(os.getpid(), 9)"))
        with pytest.raises(ChapterFailed, match="lost its kernel") as caught:
            execute(book, "smoke")
        assert "os.kill(os.getpid(), 9)" in str(caught.value)

    def test_chapter_without_a_record(self, book: Project) -> None:
        notebook = chapter("01_first")
        notebook.cells[-1].source = "pass"
        write(book, "01_first", notebook)
        with pytest.raises(ChapterFailed, match="without its record"):
            execute(book, "smoke")

    def test_killed_in_the_middle_leaves_no_output(self, book: Project) -> None:
        write(book, "01_first", chapter("01_first", "pathlib.Path('started').touch()\nimport time; time.sleep(3000)"))
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "radio_utils.book", "execute", "--preset", "smoke"]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, cwd=book.root, env=environment, stdout=quiet, stderr=quiet) as child:
            wait_until(lambda: (book.root / "started").exists() or child.poll() is not None)
            child.kill()
        assert (book.root / "started").exists()
        assert not (book.executed("smoke") / "01_first.ipynb").exists()
        write(book, "01_first", chapter("01_first"))
        assert list(execute(book, "smoke")) == ["01_first"]  # its lock went with it


class TestExecute:
    def test_runs_in_order_and_writes_the_preset(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")
        shown = (
            "where = os.environ['RADIO_UTILS_RESULTS']\n"
            "print(where, preset, sorted(os.listdir(where + '/smoke')) if '02' in {0!r} else '')"
        )
        book = tiny_project(tmp_path, *((name, chapter(name, shown.format(name))) for name in ("02_second", "01_first")))
        ran = execute(book, "smoke")
        assert list(ran) == ["01_first", "02_second"]
        assert outputs(book.executed("smoke") / "02_second.ipynb") == "results smoke ['01_first.json']\n"
        assert json.loads((book.results("smoke") / "02_second.json").read_text())["preset"] == "smoke"
        assert "total" in caplog.text
        assert "2 of 2 chapters ran on smoke" in caplog.text
        assert all(f"{name} " in caplog.text for name in ran)

    def test_keeps_what_is_unchanged(self, book: Project) -> None:
        assert list(execute(book, "smoke")) == ["01_first"]
        before = (book.executed("smoke") / "01_first.ipynb").read_bytes()
        assert execute(book, "smoke") == {}
        assert (book.executed("smoke") / "01_first.ipynb").read_bytes() == before
        assert list(execute(book, "smoke", force=True)) == ["01_first"]

    def test_notices_every_input(self, book: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        execute(book, "smoke")

        def stale() -> bool:
            return fresh(book, "smoke", "01_first") is None

        assert not stale()
        assert fresh(book, "laptop", "01_first") is None  # another preset

        path = book.chapter("01_first")
        executed = book.executed("smoke") / "01_first.ipynb"
        record = book.results("smoke") / "01_first.json"
        code, presets = book.root / "radio_utils" / "core.py", book.root / "radio_utils" / "presets.yaml"
        wanted = book.root / "requirements.txt"
        for changed in (path, code, presets, record, executed):
            kept = changed.read_text()
            changed.write_text(kept.replace("42", "43") + "\n" if changed is not path else kept.replace("6 * 7", "7 * 6"))
            if changed is not executed:  # white space after the JSON changes nothing there
                assert stale(), changed
            changed.write_text(kept)
            assert not stale(), changed
        kept = code.read_text()
        code.write_text(f'"""Another docstring."""\n\n{kept}  # a comment\n')
        assert not stale(), "a page would be the same"
        code.write_text(kept)
        (book.root / "radio_utils" / "more").mkdir()
        (book.root / "radio_utils" / "more" / "new.py").write_text("")
        assert stale()
        shutil.rmtree(book.root / "radio_utils" / "more")
        seeds = book.root / "results" / "seed-1" / "smoke"
        seeds.mkdir(parents=True)
        (seeds / "01_first.json").write_text("{}")
        assert stale()
        shutil.rmtree(seeds.parent)
        record.unlink()
        assert stale()
        execute(book, "smoke")
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
        assert stale()
        monkeypatch.undo()
        assert not stale()
        wanted.write_text("scipy==1\n")
        assert stale()
        wanted.write_text("numpy==2.4.6\nnot-installed-anywhere==1\n")
        executed.write_text("{ torn")
        assert stale()

    def test_follows_a_chapter_that_reads_another(self, tmp_path: Path) -> None:
        reader = chapter("02_second", "source = '01_first'")
        others = [(name, chapter(name)) for name in ("01_first", "03_third")]
        book = tiny_project(tmp_path, ("02_second", reader), *others)
        execute(book, "smoke")
        write(book, "01_first", chapter("01_first", "changed = 1"))
        assert list(execute(book, "smoke")) == ["01_first", "02_second"]

    def test_only_the_named_chapters(self, tmp_path: Path) -> None:
        book = tiny_project(tmp_path, *((name, chapter(name)) for name in ("01_first", "02_second")))
        assert list(execute(book, "smoke", ["02_second"])) == ["02_second"]

    def test_no_chapters(self, tmp_path: Path) -> None:
        with pytest.raises(BookError, match="no chapters"):
            execute(tiny_project(tmp_path), "smoke")


class TestCheck:
    def test_a_good_book_has_no_problem(self, book: Project) -> None:
        assert check(book) == []

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda nb: nb.cells[2].update(outputs=[new_output("stream", text="x")]), "cell 3 has outputs"),
            (lambda nb: nb.cells[2].update(execution_count=3), "cell 3 has an execution count"),
            (lambda nb: nb.cells[3].update(source="x = 1" + " " * 100 + "# wide"), "cell 4 has a line of 111 characters"),
            (lambda nb: nb.cells[1].metadata.update(tags=[]), "0 code cells are tagged 'setup'"),
            (lambda nb: nb.cells[2].metadata.update(tags=[]), "0 code cells are tagged 'parameters'"),
            (lambda nb: nb.cells[3].metadata.update(tags=["parameters"]), "2 code cells are tagged 'parameters'"),
            (lambda nb: nb.cells[2].update(source="x = len('a')"), "x isn't a literal"),
            (lambda nb: nb.cells[-1].update(source="print(1)"), "the last code cell must call chapter.record()"),
            (lambda nb: nb.cells.insert(0, new_markdown_cell("no title")), "starts with the title"),
            (lambda nb: nb.cells.insert(1, nb.cells.pop(2)), "the setup cell must come before"),
            (lambda nb: nb.metadata.pop("kernelspec"), "kernelspec.name must be python3"),
            (lambda nb: nb.metadata.pop("language_info"), "language_info.name must be python"),
            (lambda nb: nb.metadata.update(widgets={}), "metadata.widgets"),
            (
                lambda nb: nb.cells.insert(1, new_markdown_cell("[![a](https://x.org/a.svg)](b)")),
                "host, https://x.org/a.svg;",
            ),
            (lambda nb: nb.cells[1].update(source="import os"), "doesn't name the repository"),
            (lambda nb: nb.cells[0].update(source="# Title"), "no Colab link"),
            (lambda nb: replace(nb.cells[0], "01_first", "02_second"), "leads to notebooks/02_second"),
            (lambda nb: replace(nb.cells[0], "your_org", "their_org"), "leads to their_org/"),
            (lambda nb: replace(nb.cells[0], "/main/", "/other/"), "branch other"),
        ],
    )
    def test_tells_each_fault(self, book: Project, change: Any, told: str) -> None:
        notebook = chapter("01_first")
        change(notebook)
        write(book, "01_first", notebook)
        problems = check(book)
        assert any(told in problem and problem.startswith("notebooks/01_first.ipynb") for problem in problems), problems

    def test_visible_cells_are_short(self, book: Project) -> None:
        long = "\n".join(f"x{number} = {number}" for number in range(13))
        for tags, told in (([], True), (["hide-input"], False), (["hide-cell"], False)):
            notebook = chapter("01_first")
            notebook.cells[3].update(source=long)
            notebook.cells[3].metadata.update(tags=tags)
            write(book, "01_first", notebook)
            assert any("cell 4 shows 13 lines of code" in problem for problem in check(book)) is told

    def test_the_reading_time_is_computed(self, book: Project) -> None:
        notebook = chapter("01_first")
        notebook.cells[0].source += "\n\n| Time | 9 minutes to read |\n\n" + "word " * 700
        figure = {"tags": ["hide-input"], "mystnb": {"figure": {"name": "fig"}}}
        notebook.cells[4:4] = [new_code_cell("draw()", metadata=figure) for _ in range(2)]
        words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
        words += sum(len(cell.source.split()) for cell in (notebook.cells[2], notebook.cells[3], *notebook.cells[6:]))
        wanted = round(words / 200 + 1)
        write(book, "01_first", notebook)
        assert any(f"states 9 minutes to read, and {wanted} are computed" in problem for problem in check(book))
        notebook.cells[0].source = notebook.cells[0].source.replace("| 9 minutes", f"| {wanted} minutes")
        write(book, "01_first", notebook)
        assert check(book) == []

    @pytest.mark.parametrize(
        ("prose", "told"),
        [
            ("A key is secret.", ["key"]),
            ("Keys are secret.", ["key"]),
            ("A {term}`key` is secret; a key is.", []),
            ("A key is secret; a {term}`key` is.", ["key"]),
            ("{term}`Keys <key>` are secret.", []),
            ("Under a {term}`decoy key` nobody wrote.", []),  # no use of the shorter term
            ("# A key\n\n`key` $key$ [key](key.md) {cite}`key` keyed, key-dependent", []),
            ("```python\nkey\n```\n\n$$\nkey\n$$", []),
            ("A decoy key and a key.", ["decoy key", "key"]),
            ("A {term}`key` and a {term}`lock`, {term}`locks <lock>`.", ["lock"]),  # which no entry explains
        ],
    )
    def test_first_uses_lead_to_the_glossary(self, book: Project, prose: str, told: list[str]) -> None:
        entries = "# Glossary\n\n```{glossary}\ndecoy key\n  One that nobody used.\n\nkey\n  A secret,\n  kept.\n```\n"
        (book.root / "book" / "glossary.md").write_text(entries)
        notebook = chapter("01_first")
        notebook.cells.insert(3, new_markdown_cell(prose))
        write(book, "01_first", notebook)
        found = [problem for problem in check(book) if "glossary" in problem]
        assert [re.search("(?:use of '|{term}`)(.*?)['`]", problem)[1] for problem in found] == told  # type: ignore[index]

    def test_setup_cells_must_be_identical(self, tmp_path: Path) -> None:
        other = chapter("02_second")
        other.cells[1].source += " "
        book = tiny_project(tmp_path, ("01_first", chapter("01_first")), ("02_second", other))
        assert [p for p in check(book) if "02_second" in p and "differs from that of 01_first" in p]

    def test_chapter_names(self, book: Project) -> None:
        write(book, "Untitled", chapter("01_first"))
        with pytest.raises(BookError, match=r"notebooks/Untitled\.ipynb"):
            check(book)


class TestAddress:
    @pytest.mark.parametrize(
        "url",
        ["http://github.com/a/b", "https://github.com/a", "https://github.com/a/b/c", "git@github.com:a/b", "github.com",
         "https:///a/b", "", "https://host/a/b", "https://github.com/a/b?x=1", "https://github.com/a/b#x",
         "https://github.com/a/b c", None, 3],
    )  # fmt: skip
    def test_of_another_form_is_an_error(self, book: Project, url: Any) -> None:
        with pytest.raises(BookError, match="https://host/owner/name"):
            checked_address(url)
        with pytest.raises(BookError):
            set_address(book, url)
        assert book.address() == ADDRESS

    def test_is_set_everywhere_and_back(self, book: Project) -> None:
        files = [book.config, book.chapter("01_first"), book.root / "README.md"]
        before = [path.read_bytes() for path in files]
        assert set(set_address(book, NEW)) == set(files)
        assert book.address() == NEW
        assert check(book) == []
        text = book.chapter("01_first").read_text()
        assert ADDRESS not in text
        assert "your_org" not in text
        assert f'REPOSITORY = \\"{NEW}\\"' in text
        assert "github/somebody/another-name/blob/main/notebooks/01_first.ipynb" in text
        readme = (book.root / "README.md").read_text()
        assert f"Clone {NEW}.git and open {NEW}." in readme
        assert f"{ADDRESS}-fork" in readme  # another repository's name starts with ours
        assert "# Jupyter Book 1." in book.config.read_text()  # comments stay
        assert yaml.safe_load(book.config.read_text())["repository"] == {"url": NEW, "branch": "main"}
        assert set_address(book, NEW + "/") == []
        set_address(book, ADDRESS)
        assert [path.read_bytes() for path in files] == before

    def test_half_done_work_is_finished_by_a_second_try(self, book: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        def killed(path: Path, text: str) -> None:
            if path == book.config:
                raise KeyboardInterrupt
            atomic_write(path, text)

        monkeypatch.setattr("radio_utils.book.check.atomic_write", killed)
        with pytest.raises(KeyboardInterrupt):
            set_address(book, NEW)
        monkeypatch.undo()
        set_address(book, NEW)
        assert check(book) == []

    def test_disagreement_is_found(self, book: Project) -> None:
        book.config.write_text(book.config.read_text().replace(ADDRESS, NEW))
        assert len(check(book)) >= 2

    def test_missing_address(self, book: Project) -> None:
        book.config.write_text("title: x\n")
        with pytest.raises(BookError, match=r"no repository\.url"):
            book.address()


class TestRender:
    def test_page_has_no_bars_no_widgets_no_paths(self) -> None:
        bar = "training:  50%|█████     | 5/10 [00:00<00:00, 99.0it/s]\rtraining: 100%|██████████| 10/10 [00:00<00:00]\n"
        notebook = chapter("01_first")
        notebook.metadata["widgets"] = {"state": {}}
        notebook.metadata["papermill"] = {"input_path": "/somewhere"}
        cell = new_code_cell("x", metadata={"papermill": {"duration": 1}, "tags": ["t"]})
        cell.outputs = [
            new_output("stream", name="stderr", text=bar),
            new_output("stream", name="stdout", text="100%| looks | like one\n"),
            new_output("stream", name="stderr", text=bar + "UserWarning: look at this\n" + bar),
        ]
        notebook.cells.append(cell)
        page = for_page(notebook)
        assert set(page.metadata) == {"kernelspec", "language_info"}
        assert page.cells[-1].metadata == {"tags": ["t"]}
        kept = [output.text for output in page.cells[-1].outputs]
        assert kept == ["100%| looks | like one\n", "UserWarning: look at this\n"]

    def test_a_figure_stands_alone_in_its_cell(self) -> None:
        name = new_output("execute_result", {"text/plain": "<Axes: >"})
        image = new_output("display_data", {"image/png": "", "text/plain": "<Figure>"})
        notebook = chapter("01_first", "figure", "no figure")
        for cell in notebook.cells[-3:-1]:
            cell.outputs = [name, image]
        notebook.cells[-3].metadata["mystnb"] = {"figure": {"name": "fig-x"}}
        page = for_page(notebook)
        assert page.cells[-3].outputs == [image]
        assert page.cells[-2].outputs == [name, image]

    def test_builds_skips_and_fails_hard(self, tmp_path: Path) -> None:
        prose = new_markdown_cell("## Part\n\nSee {eq}`eq-p`.\n\n$$ p = 1 $$ (eq-p)")
        book = tiny_project(tmp_path / "book", ("01_first", chapter("01_first", prose)))
        with pytest.raises(BookError, match="isn't executed"):
            render(book, "smoke")
        execute(book, "smoke")
        html = render(book, "smoke")
        assert html == book.build / "html-smoke"
        page = (html / "notebooks" / "01_first.html").read_text()
        assert f"blob/main/notebooks/{'01_first'}.ipynb" in page
        assert "https://cdn" not in page
        assert (html / "_static" / "mathjax" / "MathJax.js").is_file()
        assert "book/introduction.html" in (html / "index.html").read_text()
        assert "1.5\u00a0s" in (html / "book" / "status.html").read_text()
        first = (html / "index.html").stat().st_mtime_ns

        render(book, "smoke")
        assert (html / "index.html").stat().st_mtime_ns == first

        introduction = book.root / "book" / "introduction.md"
        introduction.write_text("# Introduction\n\n[](no-such-target) {cite}`nobody1900`\n")
        for _ in range(2):  # the second build must not pass because pages look unchanged
            with pytest.raises(BookError, match="each warning is an error") as caught:
                render(book, "smoke")
            assert "nobody1900" in str(caught.value)
        assert (html / "index.html").stat().st_mtime_ns == first, "the last good pages stay until better ones exist"

    def test_other_hosts_get_no_colab_button(self, tmp_path: Path) -> None:
        book = tiny_project(tmp_path / "book", ("01_first", chapter("01_first")))
        set_address(book, "https://git.example.org/owner/name")
        execute(book, "smoke")
        page = (render(book, "smoke") / "notebooks" / "01_first.html").read_text()
        assert "colab.research.google.com/github/your_org" not in page

    def test_pages_of_this_book(self) -> None:
        names = pages(Project(REPOSITORY))
        assert names[0] == "book/introduction"
        assert "book/status" in names


class TestStatus:
    def test_shows_what_ran_and_what_did_not(self, book: Project) -> None:
        record = {"chapter": "01_first", "preset": "gpu", "seed": 3, "seconds": 1234.56,
                  "hardware": {"gpu": "Some GPU", "cores": 8}, "versions": {"torch": "2.13.0"},
                  "date": "2026-05-06", "tables": {}}  # fmt: skip
        atomic_write(book.results("gpu") / "01_first.json", json.dumps(record))
        page = status_page(book)
        assert "  - not yet run\n  - 1,234.6\u00a0s\n  - not yet run\n  - not yet run\n" in page
        for shown in ("gpu Some GPU, cores 8", "torch 2.13.0", "2026-05-06", "## Tier `paper`", "Not yet run."):
            assert shown in page

    @pytest.mark.parametrize("text", ["{", "[]", '{"seconds": NaN}', '{"chapter": "01_first"}', '{"seconds": null}'])
    def test_refuses_a_damaged_record(self, book: Project, text: str) -> None:
        atomic_write(book.results("gpu") / "01_first.json", text)
        with pytest.raises(BookError, match=r"gpu.01_first\.json"):
            status_page(book)

    def test_other_tiers_are_read_from_the_checkout(self, book: Project, tmp_path: Path, monkeypatch: Any) -> None:
        atomic_write(book.root / "results" / "gpu" / "01_first.json", '{"seconds": 77}')
        monkeypatch.setenv("RADIO_UTILS_RESULTS", str(tmp_path / "moved"))
        assert "77.0\u00a0s" in status_page(book)


class TestCommandLine:
    def test_run(self, book: Project) -> None:
        done = cli(book, "run", "01_first", "-p", "rho", "0.25", "-r", "label", "0.5", "--preset", "smoke")
        assert done.returncode == 0, done.stderr
        assert outputs(book.build / "runs" / "01_first.ipynb") == "42 0.25 float\n"
        cells = nbformat.read(book.build / "runs" / "01_first.ipynb", 4).cells
        injected = next(cell for cell in cells if "injected-parameters" in cell.metadata.get("tags", []))
        assert 'label = "0.5"' in injected.source
        assert 'preset = "smoke"' in injected.source

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["run", "01_first", "-p", "rhoo", "1"], "has no parameter 'rhoo'"),
            (["run", "nothing"], "unknown chapter 'nothing'"),
            (["run", "01_first", "--timeout", "0"], "a positive number"),
            (["render"], "isn't executed from the present sources"),
            (["repository", "nowhere"], "https://host/owner/name"),
        ],
    )
    def test_one_clear_error(self, book: Project, arguments: list[str], told: str) -> None:
        done = cli(book, *arguments)
        assert done.returncode != 0
        assert told in done.stderr
        assert "Traceback" not in done.stderr

    def test_failing_cell(self, book: Project) -> None:
        write(book, "01_first", chapter("01_first", "raise ValueError('so it is')"))
        done = cli(book, "execute")
        assert done.returncode == 1
        assert "cell 5 of 6 failed" in done.stderr
        assert "raise ValueError('so it is')" in done.stderr
        assert "ValueError: so it is" in done.stderr

    def test_check_and_repository(self, book: Project, capsys: pytest.CaptureFixture[str]) -> None:
        root = ["--root", str(book.root)]
        assert main([*root, "check"]) == 0
        assert main([*root, "repository"]) == 0
        assert ADDRESS in capsys.readouterr().out
        assert main([*root, "repository", NEW]) == 0
        assert book.address() == NEW
        write(book, "01_first", chapter("01_first"))
        assert main([*root, "check"]) == 1
        assert "notebooks/01_first.ipynb" in capsys.readouterr().err

    def test_outside_a_checkout(self, tmp_path: Path) -> None:
        found = Project.find(tmp_path)  # an editable install falls back to its own checkout
        assert found.root == REPOSITORY


def test_digest_keeps_parts_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a") == digest(b"a")


def test_this_book_follows_its_conventions() -> None:
    assert check(Project(REPOSITORY)) == []
