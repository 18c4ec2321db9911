"""The reference pages, built from the package's docstrings with chapters that have their headings only."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from docutils.nodes import make_id
from nbformat.v4 import new_markdown_cell, new_notebook

import radio_utils as ru
from radio_utils.book import BookError, Project, render
from radio_utils.book import reference as pages_of_names
from radio_utils.book.reference import FOLDER, configuration, names, reference_pages, section_titles

ROOT = Path(__file__).resolve().parents[2]
# the modules whose public names readers call; those to come count from the day on which they are there
MODULES = {
    "detection", "reading", "querying", "contrast", "membership", "planning", "evidence", "decoding", "compat", "engines",
    "sharding", "suspects", "audit", "artifacts",
}  # fmt: skip


def headings(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.findall(r"(?m)^#+ .+$", text)


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    files = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in (ROOT / "book").glob("*.md")}
    files |= {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in (ROOT / "notebooks").glob("*.ipynb")}
    return section_titles(files)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole book, every page with its headings and the reference pages as they are; any warning is an error."""
    root = tmp_path_factory.mktemp("reference")
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("_build"))
    for name in ("_config.yml", "requirements.txt"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "results", root / "results")
    (root / "radio_utils").mkdir()
    shutil.copy(ROOT / "radio_utils" / "presets.yaml", root / "radio_utils")
    (root / "notebooks").mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        stub = new_notebook(cells=[new_markdown_cell("\n\n".join(headings(path)))])
        nbformat.write(stub, root / "notebooks" / path.name)
    project = Project(root)
    patch = pytest.MonkeyPatch()
    patch.setattr(render, "fresh", lambda *_: True)
    patch.setattr(Project, "executed", lambda self, _: self.root / "notebooks")
    try:
        return render.render(project, "laptop")
    finally:
        patch.undo()


def anchors(page: Path) -> set[str]:
    return set(re.findall(r'id="([^"]+)"', page.read_text(encoding="utf-8")))


def links(page: Path, within: str) -> list[tuple[Path, str]]:
    """The links within the page's parts of this class, as files and anchors."""
    text = page.read_text(encoding="utf-8")
    found = [href for part in re.findall(within, text, re.S) for href in re.findall(r'href="([^"#]*#[^"]+)"', part)]
    return [
        ((page.parent / href.split("#")[0]).resolve() if href[0] != "#" else page, href.split("#")[1]) for href in found
    ]


def test_every_public_name_of_the_package_is_listed() -> None:
    listed = {(one.module, one.name) for one in names()}
    for module in MODULES:
        if importlib.util.find_spec(f"radio_utils.{module}") is None:
            continue
        imported = importlib.import_module(f"radio_utils.{module}")
        public = getattr(imported, "__all__", None) or [
            name
            for name, value in vars(imported).items()
            if not name.startswith("_")
            and isinstance(value, type | type(headings))
            and value.__module__ == imported.__name__
        ]
        missing = {name for name in public if (module, name) not in listed}
        assert not missing, f"radio_utils.{module}: {missing}"
    by_name = {one.name for one in names()} | {one.module for one in names()}
    assert set(ru.__all__) <= by_name


def test_sections_exist_and_are_named_once(sections: dict[str, str]) -> None:
    assert {one.section for one in names()} <= sections.keys()
    assert reference_pages(sections).keys() == {f"{FOLDER}/{page}.md" for page in [*configuration(), "overview"]}
    with pytest.raises(BookError, match="there is no such section"):
        reference_pages({})


def test_a_name_that_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = configuration()
    changed["marks"]["modules"]["watermarks"]["names"] = {"RedList": "book/use_it#what-you-need"}
    monkeypatch.setattr(pages_of_names, "configuration", lambda: changed)
    names.cache_clear()
    with pytest.raises(BookError, match=r"explains RedList, which radio_utils\.watermarks doesn't have"):
        names()
    names.cache_clear()


def test_titles_are_those_of_headings_outside_code() -> None:
    files = {"a.md": b"# One: two\n\n```bash\n# no title\n```\n\n## *Three*\n", "b.svg": b"# no page"}
    assert section_titles(files) == {"a#one-two": "One: two", f"a#{make_id('*Three*')}": "*Three*"}


@pytest.mark.parametrize("one", names(), ids=lambda one: f"{one.module}.{one.name}")
def test_every_name_has_its_entry_and_links_both_ways(html: Path, one: Any) -> None:
    page = html / FOLDER / f"{one.page}.html"
    assert one.target in anchors(page)
    place, anchor = one.section.split("#")
    section = (html / f"{place}.html").resolve()
    assert anchor in anchors(section)
    assert (section, anchor) in links(page, r"Explained in.*?</p>")
    assert (page.resolve(), one.target) in links(section, r'<p class="reference-names">.*?</p>')


def test_the_overview_leads_to_all_exported_names(html: Path) -> None:
    found = links(html / FOLDER / "overview.html", r"<table.*?</table>")
    assert all(anchor in anchors(page) for page, anchor in found)
    assert {anchor.rpartition(".")[2] for _, anchor in found} >= {name for name in ru.__all__ if name[0].isupper()}


def test_annotations_stand_as_in_the_source(html: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (html / FOLDER / "detection.html").read_text(encoding="utf-8"))
    assert "detect(texts: Texts, wm: Watermark, *, prompts: Iterable[ArrayLike] | None = None" in text
    assert "_SupportsArray" not in text
