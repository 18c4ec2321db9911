"""The page of benchmarks: from a toy record, without one, from a damaged one, and in a rendered book."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tiny import REPOSITORY, chapter, tiny_project

from radio_utils.book import BookError, Project
from radio_utils.book.benchmarks import benchmarks_figure, benchmarks_page, tables_of
from radio_utils.book.execute import execute
from radio_utils.book.render import pages, render


def toy() -> dict[str, Any]:
    """A record whose ratios are easy to tell."""
    peers = [
        {"program": program, "text": text, "vocab_size": 7000, "window": 3, "tokens": tokens, "scored": tokens // 2,
         "seconds": seconds, "rounds": 3}
        for text in ("natural-like", "uniform")
        for program, tokens, seconds in (
            ("ours, one array", 1_000_000, 0.1), ("ours, lists of ints", 100_000, 0.02),
            ("transformers", 1000, 0.5), ("plain", 1000, 0.25),
        )
    ]  # fmt: skip
    processors = [
        {"program": program, "vocab_size": 7000, "threads": 1, "batch": 5, "steps": 4, "seconds": seconds, "rounds": 3}
        for program, seconds in (("ours, green list", 0.004), ("ours, Gumbel-max", 0.006), ("transformers", 0.04))
    ]
    compat = [
        {"scheme": "a scheme", "text": "uniform", "vocab_size": 7000, "window": 3, "program": program, "tokens": tokens,
         "seconds": 1.0, "rounds": 3}
        for program, tokens in (("ours", 12_000), ("plain", 1000))
    ]  # fmt: skip
    tokens = [
        {"text": text, "tokens": 10**n, "scored": 6 * 10 ** (n - 1), "seconds": 10.0 ** (n - 7), "rounds": 1,
         "peak_bytes": 2**20 * 10**n // 10**4, "start_bytes": 0}
        for text in ("natural-like", "uniform")
        for n in (4, 5, 6)
    ]  # fmt: skip
    grown = {
        table: [
            {"scheme": scheme, column: value, "tokens": 1000, "scored": 900, "seconds": value / 1000, "rounds": 1}
            for scheme in ("green list", "Gumbel-max")
            for value in (1, 2, 4)
        ]
        for table, column in (("vocabulary", "vocab_size"), ("window", "window"))
    }
    keys = [
        {"scheme": scheme, "keys": number, "pairs": 500, "seconds": number / 100, "rounds": 1}
        for scheme in ("green list", "Gumbel-max")
        for number in (10, 1000)
    ]
    tables = {"peers": peers, "processors": processors, "compat": compat, "tokens": tokens, **grown, "keys": keys}
    return {"date": "2026-01-02", "versions": {"python": "3.11"}, "hardware": {"cores": 9}, "tables": tables}


def recorded(project: Project, record: Any) -> Project:
    path = project.root / "results" / "benchmarks.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    return project


@pytest.fixture
def book(tmp_path: Path) -> Project:
    return tiny_project(tmp_path / "book", ("01_first", chapter("01_first")))


def test_says_that_nothing_was_measured(book: Project) -> None:
    page = benchmarks_page(book)
    assert page.startswith("# Benchmarks\n")
    assert "Not yet run" in page
    assert "figure" not in page
    assert benchmarks_figure(book) is None


def test_computes_ratios(book: Project) -> None:
    page = benchmarks_page(recorded(book, toy()))
    for shown in (
        "2026-01-02", "cores 9", "python 3.11", "a vocabulary of 7,000 and a window of 3", "for 5 answers",
        "  - 10,000,000\n  - 5,000×\n  - 2,500×\n",  # one array: 10⁷ tokens a second against 2000 and 4000
        "  - 5,000,000\n  - 2,500×\n  - 1,250×\n",
        "  - 1.5\u00a0ms\n  - 6.67×\n  - 1.5×\n",  # Gumbel-max: a step against transformers' and our green list's
        "  - 12,000\n  - 12,000\n  - 12×\n",
        "$n^{1.00}$ for natural-like text", "$n^{1.00}$ (Gumbel-max)", "100\u00a0MiB", "175 bytes for each distinct pair",
        "2,500 to 2,500 times as many", "60\u00a0% (the longest text)", "4 times the time from 1 to 4 (green list)",
    ):  # fmt: skip
        assert shown in page, shown


def test_other_numbers_give_another_page_and_figure(book: Project) -> None:
    page, figure = benchmarks_page(recorded(book, toy())), benchmarks_figure(book)
    assert benchmarks_figure(book) == figure, "the same record gives the same bytes"
    changed = toy()
    changed["tables"]["tokens"][0]["seconds"] *= 3
    assert benchmarks_page(recorded(book, changed)) != page
    assert benchmarks_figure(book) != figure


def test_figure_is_svg_with_an_alternative(book: Project) -> None:
    drawn = benchmarks_figure(recorded(book, toy()))
    assert drawn is not None
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    alternative = next(line for line in benchmarks_page(book).splitlines() if line.startswith(":alt:"))
    assert "keys tried: green list from 100 ms at 10 to 10 s at 1,000" in alternative


def _without_table(record: dict[str, Any]) -> None:
    del record["tables"]["compat"]


def _empty_table(record: dict[str, Any]) -> None:
    record["tables"]["keys"] = []


def _without_column(record: dict[str, Any]) -> None:
    del record["tables"]["peers"][0]["seconds"]


def _text_for_a_number(record: dict[str, Any]) -> None:
    record["tables"]["tokens"][1]["seconds"] = "fast"


def _no_time(record: dict[str, Any]) -> None:
    record["tables"]["processors"][2]["seconds"] = 0


def _rows_of_nothing(record: dict[str, Any]) -> None:
    record["tables"]["window"] = [None]


def _one_size(record: dict[str, Any]) -> None:
    record["tables"]["tokens"] = record["tables"]["tokens"][:1]


@pytest.mark.parametrize(
    "damage", [_without_table, _empty_table, _without_column, _text_for_a_number, _no_time, _rows_of_nothing, _one_size]
)
def test_names_a_damaged_record(book: Project, damage: Any) -> None:
    record = toy()
    damage(record)
    with pytest.raises(BookError, match=r"benchmarks\.json: this isn't a record of benchmarks .* run `make bench` again"):
        benchmarks_page(recorded(book, record))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tables": NaN}', '{"tables": []}', '{"tables": {}}'])
def test_names_a_torn_record(book: Project, text: str) -> None:
    recorded(book, text)
    for make in (benchmarks_page, benchmarks_figure):
        with pytest.raises(BookError, match=r"benchmarks\.json"):
            make(book)


def test_tables_of_what_was_measured_alone() -> None:
    tables = toy()["tables"]
    one = tables_of({"peers": tables["peers"][:1], "keys": []})
    assert [table.name for table in one] == ["tab-bench-peers"]
    assert one[0].rows[0][-2:] == ("–", "–")


def test_renders_without_a_warning(book: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIO_UTILS_RESULTS", raising=False)
    toc = book.root / "book" / "_toc.yml"
    toc.write_text(toc.read_text().replace("book/status\n", "book/status\n      - file: book/benchmarks\n"))
    execute(recorded(book, toy()), "smoke")
    html = render(book, "smoke")
    page = (html / "book" / "benchmarks.html").read_text()
    assert "_images/benchmarks.svg" in page
    assert "5,000×" in page
    assert (html / "_images" / "benchmarks.svg").is_file()


def test_stands_beside_the_status_page() -> None:
    names = pages(Project(REPOSITORY))
    assert names.index("book/benchmarks") == names.index("book/status") + 1


def test_record_of_this_book_can_be_shown() -> None:
    page, figure = benchmarks_page(Project(REPOSITORY)), benchmarks_figure(Project(REPOSITORY))
    assert ("Not yet run" in page) == (figure is None)
