"""The status page's tables of experiments: from small records, from none, from damaged ones, and in a rendered book."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import REPOSITORY, chapter, tiny_project

from radio_utils.book import BookError, Project
from radio_utils.book.execute import execute
from radio_utils.book.render import render
from radio_utils.book.status import Figure, figure_text, load_experiments, read_seeds, status_page
from radio_utils.chapter import COLUMNS

GROUPS = load_experiments()
ENTRIES = [one for group in GROUPS for one in group.experiments]
CHAPTERS = ("04_open_model", "05_hearing_more", "06_closed_model", "07_membership")
# tables that design.md names, for chapters to come
PLANNED = {
    "finetuning": ("factor", "value", "log10_p", "loss"),
    "window": ("scheme", "k", "log10_p_text", "log10_p"),
    "languages": ("language", "setting", "scored", "log10_p"),
    "purification": ("steps", "log10_p"),
}
GOOD = """
groups:
  - title: A group
    experiments:
      - id: first-one
        title: at d = 20 %
        chapter: 07_membership
        paper: null
        figure: {table: membership, where: {d: 0.2}}
"""


@pytest.fixture(autouse=True)
def _own_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIO_UTILS_RESULTS", raising=False)


@pytest.fixture
def book(tmp_path: Path) -> Project:
    return tiny_project(tmp_path / "book", *((name, chapter(name)) for name in CHAPTERS))


def write(project: Project, place: str, name: str, tables: Any, **fields: Any) -> Path:
    path = project.root / "results" / place / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"chapter": name, "seconds": 1.5, "date": "2026-01-02", "tables": tables} | fields))
    return path


def members(found: dict[float, float | None]) -> dict[str, Any]:
    return {"membership": [{"method": "zlib", "d": d, "statistic": 0.5, "log10_p": p} for d, p in found.items()]}


def open_model(found: dict[float, float], setting: str = "supervised", method: str = "reading") -> list[dict[str, Any]]:
    return [{"rho": rho, "setting": setting, "method": method, "log10_p": p} for rho, p in found.items()]


def cells(page: str, table: str, first: str) -> list[str]:
    """The cells after the first of the one row that begins so, in the list-table of that name."""
    lines = page.split(f":name: {table}\n\n")[1].split("\n```")[0].splitlines()
    begins = [number for number, line in enumerate(lines) if line == f"* - {first}"]
    assert len(begins) == 1, f"{len(begins)} rows begin with {first}"
    found = []
    for line in lines[begins[0] + 1 :]:
        if not line.startswith("  -"):
            break
        found.append(line[3:].strip())
    return found


def text(rows: list[dict[str, Any]], **fields: Any) -> str:
    return figure_text(Figure(table="t", **fields), {"tables": {"t": rows}})


def unbroken(words: str) -> str:
    return words.replace(" %", "\u00a0%").replace(" = ", "\u00a0=\u00a0")


def linked(title: str, name: str) -> str:
    return f"[{unbroken(title)}](/notebooks/{name}.ipynb)"


class TestFigure:
    @pytest.mark.parametrize(
        ("show", "value", "shown"),
        [
            ("power_of_ten", -12.34, "$10^{-12.3}$"),
            ("power_of_ten", -1816.09, "$10^{-1816.1}$"),
            ("power_of_ten", -0.3, "$10^{-0.3}$"),
            ("power_of_ten", -0.01, "$10^{0.0}$"),
            ("power_of_ten", 0, "$10^{0.0}$"),
            ("p_value", -0.2371, "0.58"),
            ("p_value", -2.9, "0.0013"),
            ("p_value", -3, "$10^{-3.0}$"),
            ("p_value", -7.46, "$10^{-7.5}$"),
            ("number", 3.2, "3.20"),
            ("number", 123.4, "123"),
            ("number", 0.01116, "0.0112"),
            ("percent", 0.6311, "63.1\u00a0%"),
            ("percent", 0.01, "1\u00a0%"),
        ],
    )
    def test_ways_to_show(self, show: str, value: float, shown: str) -> None:
        assert text([{"x": value}], column="x", show=show) == shown

    def test_mean_says_of_how_many(self) -> None:
        rows = [{"log10_p": -10.0}, {"log10_p": -13.0}, {"log10_p": None}]
        assert text(rows[:1]) == "$10^{-10.0}$"
        assert text(rows[:2]) == "$10^{-11.5}$ (mean of 2)"
        assert text(rows) == "$10^{-11.5}$ (mean of 2 of 3)"
        assert text(rows[2:]) == "–"
        assert text([]) == "–"

    def test_least(self) -> None:
        rows = [{"x": 0.5}, {"x": 0.25}, {"x": None}]
        assert text(rows, column="x", show="number", pick="least") == "0.250 (least of 2)"
        assert text(rows[:1], column="x", show="number", pick="least") == "0.500"
        assert text(rows[2:], column="x", show="number", pick="least") == "–"

    def test_first_last_and_each_follow_the_numbers(self) -> None:
        rows = [{"value": value, "log10_p": p} for value, p in ((10, -9.0), (2, -3.0), (10, -11.0), (None, -50.0))]
        assert text(rows, pick="first", by="value") == "$10^{-3.0}$ at 2"
        assert text(rows, pick="last", by="value") == "$10^{-10.0}$ at 10 (mean of 2)"
        assert text(rows, pick="each", by="value") == "2: $10^{-3.0}$; 10: $10^{-10.0}$ (mean of 2)"
        assert text(rows[3:], pick="first", by="value") == "–"

    def test_numbers_written_as_words_are_numbers_too(self) -> None:
        rows = [{"value": value, "log10_p": p} for value, p in (("1e-2", -9.0), ("0.002", -3.0))]
        assert text(rows, pick="first", by="value") == "$10^{-3.0}$ at 0.002"

    def test_words_keep_the_order_of_the_record(self) -> None:
        rows = [{"value": value, "log10_p": p} for value, p in (("rank 8", -2.0), ("full", -4.0), ("rank 8", -3.0))]
        assert text(rows, pick="each", by="value") == "rank 8: $10^{-2.5}$ (mean of 2); full: $10^{-4.0}$"
        assert text(rows, pick="last", by="value") == "$10^{-4.0}$ at full"

    def test_where(self) -> None:
        rows = [{"rho": rho, "filtered": on, "log10_p": -rho * 10 - on} for rho in (0.1, 1.0) for on in (False, True)]
        assert text(rows, where={"rho": 0.1 + 1e-16, "filtered": True}) == "$10^{-2.0}$"
        assert text(rows, where={"rho": 1, "filtered": False}) == "$10^{-10.0}$"
        assert text(rows, where={"filtered": 1, "rho": 1}) == "–", "true isn't 1"
        assert text(rows, where={"method": "zlib"}) == "–", "a column that isn't there"
        languages = [{"language": "it", "log10_p": -5.0}, {"language": "fr", "log10_p": -9.0}]
        assert text(languages, where={"language": ["Italian", "it"]}) == "$10^{-5.0}$"

    def test_bounds(self) -> None:
        rows = [{"rho": rho, "log10_p": p} for rho, p in ((0.0, -4.0), (0.1, -9.0), (0.05, -3.0), (0.01, -2.9))]
        least = {"above": {"rho": 0}, "at_most": {"log10_p": -3}, "column": "rho", "show": "percent"}
        least |= {"pick": "first", "by": "rho"}
        assert text(rows, **least) == "5\u00a0%"
        assert text(rows[3:], **least) == "none"
        assert text([{"rho": 0.1, "log10_p": None}], **least) == "–"
        assert text([], **least) == "–"

    @pytest.mark.parametrize("value", ["much", True, [1], float("inf")])
    def test_refuses_what_is_no_number(self, value: Any) -> None:
        with pytest.raises(ValueError, match=r"column 'log10_p' holds .* where a number is needed"):
            text([{"log10_p": value}])
        with pytest.raises(ValueError, match="column 'x' holds"):
            text([{"log10_p": -1.0, "x": value}], above={"x": 0})

    @pytest.mark.parametrize("missing", [{}, *({"tables": one} for one in (None, {}, {"t": None}, {"t": []}))])
    def test_missing_tables(self, missing: dict[str, Any]) -> None:
        assert figure_text(Figure(table="t"), missing) == "–"


class TestExperiments:
    def test_each_reads_columns_that_are_recorded(self) -> None:
        columns = PLANNED | COLUMNS
        for one in ENTRIES:
            figure = one.figure
            assert figure.table in columns, one.id
            by = [] if figure.by is None else [figure.by]
            used = {figure.column, *by, *figure.where, *figure.above, *figure.at_most}
            assert used <= set(columns[figure.table]), one.id

    def test_titles_tell_the_rows_of_a_group_apart(self) -> None:
        for group in GROUPS:
            titles = [one.title for one in group.experiments]
            assert len(set(titles)) == len(titles), group.title

    def test_two_never_show_the_same(self) -> None:
        shown = [(one.chapter, one.figure.model_dump_json()) for one in ENTRIES]
        assert len(set(shown)) == len(shown)

    def test_chapters_and_planned_ones(self) -> None:
        known = {*Project(REPOSITORY).chapters(), "08_ablations", "09_limits"}
        assert {one.chapter for one in ENTRIES} <= known

    def test_figures_of_p_values_are_logarithms(self) -> None:
        for one in ENTRIES:
            assert (one.figure.show in ("power_of_ten", "p_value")) == (one.figure.column == "log10_p"), one.id

    def test_defaults(self) -> None:
        (group,) = load_experiments(GOOD)
        (one,) = group.experiments
        assert (one.paper, one.figure.column, one.figure.show, one.figure.pick) == (None, "log10_p", "power_of_ten", "mean")

    @pytest.mark.parametrize(
        ("old", "new", "told"),
        [
            ("paper: null", "paper: null\n        papr: 1", r"A group\.experiments\.first-one\.papr: unknown field"),
            ("table: membership", "tabel: membership", r"first-one\.figure\.table: Field required"),
            ("table: membership", "table: [a]", r"first-one\.figure\.table"),
            ("        paper: null\n", "", r"first-one\.paper: Field required"),
            ("paper: null", "paper: ''", r"first-one\.paper: .*got ''"),
            ("title: at d", "title: |\n          two\n          lines", r"first-one\.title"),
            ("07_membership", "membership", r"first-one\.chapter: .*got 'membership'"),
            ("first-one", "First One", r"First One\.id"),
            ("{d: 0.2}", "{d: .nan}", r"first-one\.figure\.where\.d"),
            ("{d: 0.2}", "{d: []}", r"first-one\.figure\.where\.d"),
            ("{d: 0.2}", "{d: 0.2}, show: fraction", r"first-one\.figure\.show: .*got 'fraction'"),
            ("{d: 0.2}", "{d: 0.2}, pick: first", r"first-one\.figure: pick=first and by=None"),
            ("{d: 0.2}", "{d: 0.2}, by: d", r"first-one\.figure: pick=mean and by=d"),
            ("groups:", "groups: []\nothers:", r"groups: .*at least 1 item"),
            ("groups:", "- groups:", r"the file: "),
            ("groups:", "groups: {", r"this isn't YAML"),
        ],
    )
    def test_names_the_field_at_fault(self, old: str, new: str, told: str) -> None:
        assert old in GOOD
        with pytest.raises(BookError, match=rf"(?s)experiments\.yaml: .*{told}"):
            load_experiments(GOOD.replace(old, new, 1))

    def test_ids_are_distinct(self) -> None:
        twice = GOOD + GOOD.split("    experiments:\n")[1]
        with pytest.raises(BookError, match="the id first-one is given twice"):
            load_experiments(twice)


class TestPage:
    def test_lists_everything_where_nothing_ran(self, book: Project) -> None:
        page = status_page(book)
        assert page.index("tab-experiments") < page.index("tab-status") < page.index("## Tier `laptop`")
        assert "tab-seeds" not in page
        header = ["The paper {cite}`sander2024radioactive`", "`laptop`", "`pocket`", "`gpu`", "`colab`", "`paper`"]
        assert cells(page, "tab-experiments", "Experiment") == header
        for one in ENTRIES:
            title, paper = unbroken(one.title), unbroken(one.paper or "–")
            first = linked(title, one.chapter) if one.chapter in CHAPTERS else title
            block = page.split(f"* - {first}\n")
            assert len(block) > 1, one.id
            assert block[1].startswith(f"  - {paper}\n" + "  - not yet run\n" * 5)

    def test_shows_each_tier(self, book: Project) -> None:
        write(book, "laptop", "07_membership", members({1.0: -280.0, 0.2: -19.02, 0.0: -1.095}))
        write(book, "gpu", "07_membership", members({1.0: None, 0.2: -5.0}))
        write(book, "colab", "07_membership", {})
        page = status_page(book)
        paper = "$< 10^{-5}$ while d > 2\u00a0%"
        shown = cells(page, "tab-experiments", linked("d = 100 %", "07_membership"))
        assert shown == [paper, "$10^{-280.0}$", "not yet run", "–", "–", "not yet run"]
        shown = cells(page, "tab-experiments", linked("d = 20 %", "07_membership"))
        assert shown == [paper, "$10^{-19.0}$", "not yet run", "$10^{-5.0}$", "–", "not yet run"]
        shown = cells(page, "tab-experiments", linked("d = 0", "07_membership"))
        assert shown == ["a coin toss", "0.08", "not yet run", "–", "–", "not yet run"]

    def test_shows_another_preset_first(self, book: Project) -> None:
        write(book, "smoke", "07_membership", members({0.2: -1.04}))
        assert "`smoke`" not in status_page(book)
        shown = cells(status_page(book, "smoke"), "tab-experiments", linked("d = 20 %", "07_membership"))
        assert shown[1:] == ["$10^{-1.0}$"] + ["not yet run"] * 5

    def test_methods_settings_and_filters_are_kept_apart(self, book: Project) -> None:
        rows = open_model({0.0: -0.24, 0.05: -60.0}) + open_model({0.05: -8.0}, "unsupervised")
        rows += open_model({0.05: -99.0}, "data", "detector on D")
        audits = [{"test": str(p), "keys": 10, "ks_p": p, "min_log10_p": -3.0} for p in (0.5, 0.0112)]
        write(book, "laptop", "04_open_model", {"open_model": rows, "null_audit": audits})
        contrastive = open_model({0.05: -20.0}, "unsupervised", "contrastive")
        write(book, "laptop", "05_hearing_more", {"open_model": contrastive, "null_audit": audits[:1]})
        closed = [{"rho": 0.01, "setting": "supervised", "filtered": on, "log10_p": -1.5 - on} for on in (False, True)]
        summary = [
            {"rho": rho, "setting": "supervised", "access": access, "watermark": mark, "log10_p": -4.0 * mark}
            for rho in (0.0, 0.1, 0.5) for access in ("open", "closed") for mark in (False, True)
        ]  # fmt: skip
        write(book, "laptop", "06_closed_model", {"closed_model": closed, "summary": summary})
        page = status_page(book)
        for title, name, shown in (
            ("supervised, innocent Bob (ρ = 0)", "04_open_model", "0.58"),
            ("supervised, ρ = 5 %", "04_open_model", "$10^{-60.0}$"),
            ("unsupervised, ρ = 5 %", "04_open_model", "$10^{-8.0}$"),
            ("unsupervised, contrastive, ρ = 5 %", "05_hearing_more", "$10^{-20.0}$"),
            ("open model", "04_open_model", "0.0112 (least of 2)"),
            ("open model, contrastive", "05_hearing_more", "0.500"),
            ("closed model", "06_closed_model", "–"),
            ("supervised, without φ, ρ = 1 %", "06_closed_model", "$10^{-1.5}$"),
            ("supervised, with φ, ρ = 1 %", "06_closed_model", "$10^{-2.5}$"),
            ("open, supervised", "06_closed_model", "10\u00a0%"),
            ("closed, unsupervised", "06_closed_model", "–"),
        ):
            assert cells(page, "tab-experiments", linked(title, name))[1] == shown, title

    def test_chapters_to_come(self, tmp_path: Path) -> None:
        book = tiny_project(tmp_path / "new", ("08_ablations", chapter("08_ablations")))
        rates = [{"factor": "learning_rate", "value": v, "log10_p": p, "loss": 1.0} for v, p in ((0.01, -9), (0.001, -4))]
        runs = [{"factor": "epochs", "value": 8, "log10_p": p, "loss": 1.0} for p in (-6.0, -7.0)]
        ranks = [{"factor": "adapter", "value": v, "log10_p": -v / 2, "loss": 1.0} for v in (16, 4)]
        window = [{"scheme": "green list", "k": k, "log10_p_text": -300.0, "log10_p": -8.0 / k} for k in (1, 2, 4)]
        languages = [{"language": "it", "setting": "unsupervised", "scored": 9, "log10_p": -3.21}]
        tables = {"finetuning": rates + runs + ranks, "window": window, "languages": languages}
        write(book, "gpu", "08_ablations", tables)
        write(book, "gpu", "09_limits", {"purification": [{"steps": 0, "log10_p": -9.0}]})
        page = status_page(book)
        for title, shown in (
            ("smallest learning rate", "$10^{-4.0}$ at 0.001"),
            ("largest learning rate", "$10^{-9.0}$ at 0.01"),
            ("most epochs", "$10^{-6.5}$ at 8 (mean of 2)"),
            ("adapters, by rank (0 is full fine-tuning)", "4: $10^{-2.0}$; 16: $10^{-8.0}$"),
            ("green list, k = 4", "$10^{-2.0}$"),
            ("Gumbel-max, k = 8", "–"),
            ("Italian", "$10^{-3.2}$"),
        ):
            row = cells(page, "tab-experiments", linked(title, "08_ablations"))
            assert row[1:] == ["not yet run", "not yet run", shown, "not yet run", "not yet run"], title
        # a record without a chapter: nothing that a reader can look up
        assert cells(page, "tab-experiments", "fewest steps of clean training") == ["–"] + ["not yet run"] * 5

    @pytest.mark.parametrize(
        "tables", [[1], "x", {"membership": {}}, {"membership": [1]}, {"membership": [None]}, {"anything": 3}]
    )
    @pytest.mark.parametrize("place", ["gpu", "seed-3/laptop"])
    def test_refuses_damaged_tables(self, book: Project, place: str, tables: Any) -> None:
        write(book, place, "07_membership", tables)
        with pytest.raises(BookError, match=rf"{place}/07_membership\.json: this isn't a chapter's record"):
            status_page(book)

    @pytest.mark.parametrize("place", ["gpu", "seed-3/laptop"])
    def test_names_the_figure_that_is_no_number(self, book: Project, place: str) -> None:
        for seed in (1, 2):
            write(book, f"seed-{seed}/laptop", "07_membership", {})
        damaged: Any = {0.2: "tiny"}
        write(book, place, "07_membership", members(damaged))
        told = rf"results/{place}/07_membership\.json, table 'membership', for membership-20 .*'log10_p' holds 'tiny'"
        with pytest.raises(BookError, match=told):
            status_page(book)


class TestSeeds:
    def test_one_column_a_seed_in_order(self, book: Project) -> None:
        write(book, "laptop", "07_membership", members({0.2: -1.0}))
        for seed, p in ((10, -4.0), (0, -2.0), (2, -3.0)):
            write(book, f"seed-{seed}/laptop", "07_membership", members({0.2: p}))
        write(book, "seed-2/laptop", "04_open_model", {"open_model": open_model({0.05: -60.0})}, date="2026-02-03")
        page = status_page(book)
        assert "## From seed to seed" in page
        assert "Tier laptop, recorded 2026-01-02 to 2026-02-03: one column for each seed" in page
        assert cells(page, "tab-seeds-laptop", "Experiment") == ["seed 0", "seed 2", "seed 10"]
        degree = linked("d = 20 %", "07_membership")
        assert cells(page, "tab-seeds-laptop", degree) == ["$10^{-2.0}$", "$10^{-3.0}$", "$10^{-4.0}$"]
        share = linked("supervised, ρ = 5 %", "04_open_model")
        assert cells(page, "tab-seeds-laptop", share) == ["not yet run", "$10^{-60.0}$", "not yet run"]
        assert cells(page, "tab-experiments", degree)[1] == "$10^{-1.0}$", "the tier's column is the rendered run"

    def test_one_seed_is_no_spread(self, book: Project) -> None:
        write(book, "seed-1/laptop", "07_membership", {})
        write(book, "seed-2/gpu", "07_membership", {})
        write(book, "seed-3/laptop", "09_other", {})
        (book.root / "results" / "seed-4").mkdir()
        write(book, "seed-x/laptop", "07_membership", {})
        assert list(read_seeds(book, "laptop")) == [1]
        assert "seed to seed" not in status_page(book)

    def test_seeds_of_another_tier(self, book: Project) -> None:
        for seed in (0, 1):
            write(book, f"seed-{seed}/gpu", "07_membership", members({0.0: -0.3}))
        page = status_page(book)
        assert cells(page, "tab-seeds-gpu", linked("d = 0", "07_membership")) == ["0.5", "0.5"]
        assert "tab-seeds-laptop" not in page

    def test_a_tier_that_was_not_run_here_shows_what_the_checkout_keeps(self, book: Project) -> None:
        write(book, "seed-0/pocket", "07_membership", members({0.2: -7.0}), models={"base": {"quantisation": "Q4_1"}})
        write(book, "seed-1/pocket", "07_membership", members({0.2: -8.0}))
        page, degree = status_page(book), linked("d = 20 %", "07_membership")
        assert cells(page, "tab-experiments", degree)[1:] == ["not yet run", "$10^{-7.0}$"] + ["not yet run"] * 3
        assert "Models that were taken:\n\n- all chapters: base quantisation Q4_1\n" in page
        write(book, "pocket", "07_membership", members({0.2: -9.0}))
        assert cells(status_page(book), "tab-experiments", degree)[2] == "$10^{-9.0}$", "a run of one's own comes first"
        write(book, "seed-1/gpu", "07_membership", members({0.2: -6.0}))
        assert "$10^{-6.0}$" in cells(status_page(book), "tab-experiments", degree), "the first seed that has the chapter"

    def test_are_read_from_the_checkout(self, book: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for seed in (0, 1):
            write(book, f"seed-{seed}/laptop", "07_membership", {})
        monkeypatch.setenv("RADIO_UTILS_RESULTS", str(tmp_path / "moved"))
        assert "tab-seeds-laptop" in status_page(book)


def test_renders_without_a_warning(book: Project) -> None:
    write(book, "laptop", "07_membership", members({1.0: -280.0, 0.2: -19.02, 0.0: -1.095}))
    for seed in (0, 1):
        write(book, f"seed-{seed}/laptop", "07_membership", members({0.2: -7.0 - seed}))
    execute(book, "smoke")
    page = (render(book, "smoke") / "book" / "status.html").read_text()
    # a fence that isn't recognised is shown as it is, without a warning
    assert page.count("<table") == 6, "experiments, seeds, seconds, estimates, and the tiers smoke and laptop"
    assert "```" not in page
    assert "list-table" not in page
    assert f'../notebooks/07_membership.html"><span class="std std-doc">{unbroken("d = 100 %")}</span>' in page
    for shown in ("10^{-280.0}", "10^{-8.0}", "Sander <em>et al.</em>", "seed 1", "smallest learning rate"):
        assert shown in page, shown
    assert "{cite}" not in page


def test_page_of_this_book() -> None:
    page = status_page(Project(REPOSITORY))
    assert "tab-experiments" in page
    assert "tab-seeds-laptop" in page
