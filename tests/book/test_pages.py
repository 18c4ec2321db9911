"""The rendered book in headless Chromium: what a reader meets on each page, at the widths of a desktop and of a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from screens import browser, browser_path, served, wait_for_mathjax
from waiting import PATIENCE

from radio_utils.book import BookError, Project
from radio_utils.book.execute import execute
from radio_utils.book.project import owner_and_name, read_notebook
from radio_utils.book.render import pages, render

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser_path() is None, reason="no Chromium is installed: `apt-get install chromium` gives one"),
]

ROOT = Path(__file__).resolve().parents[2]
PROJECT = Project(ROOT)
PRESET = "smoke"
PAGES = pages(PROJECT)
CHAPTERS = [name for name in PAGES if name.startswith("notebooks/")]


@pytest.fixture(scope="session")
def html() -> Path:
    """The book on the smoke preset; what `make test` has just built is used as it is."""
    try:
        execute(PROJECT, PRESET)
        return render(PROJECT, PRESET)
    except BookError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def address(html: Path) -> Iterator[str]:
    with served(html) as where:
        yield where


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


LINKS = "() => [...document.querySelectorAll('a[href]')].map(link => link.href)"


class Visit:
    """One page, opened, with everything that went wrong while it loaded."""

    def __init__(self, chromium: Any, address: str, name: str, width: int = 1280) -> None:
        self.page = chromium.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(1000 * PATIENCE)
        self.console: list[str] = []
        self.failed: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda message: self.console.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("requestfailed", lambda request: self.failed.append(request.url))
        self.page.on("response", lambda answer: self.failed.append(answer.url) if answer.status >= 400 else None)
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.goto(f"{address}/{name}.html", wait_until="load")
        wait_for_mathjax(self.page)


@pytest.fixture(scope="module")
def visits(chromium: Any, address: str) -> Iterator[dict[str, Visit]]:
    """Every page of the table of contents, opened once."""
    opened = {name: Visit(chromium, address, name) for name in PAGES}
    yield opened
    for visit in opened.values():
        visit.page.close()


def test_the_table_of_contents_holds_every_chapter() -> None:
    assert [name.removeprefix("notebooks/") for name in CHAPTERS] == PROJECT.chapters()


@pytest.mark.parametrize("name", PAGES)
def test_loads_without_errors_and_without_the_network(visits: dict[str, Visit], address: str, name: str) -> None:
    visit = visits[name]
    assert visit.console == []
    assert visit.failed == []
    assert visit.hosts <= {urlsplit(address).netloc, ""}, "a page asked another host for something"


@pytest.mark.parametrize("name", PAGES)
def test_has_one_title(visits: dict[str, Visit], name: str) -> None:
    titles = visits[name].page.locator("article h1")
    assert titles.count() == 1
    assert titles.first.inner_text().strip()


@pytest.mark.parametrize("name", PAGES)
def test_images_load_and_say_what_they_show(visits: dict[str, Visit], name: str) -> None:
    page = visits[name].page
    page.evaluate("() => document.querySelectorAll('img[loading=lazy]').forEach(one => one.loading = 'eager')")
    page.wait_for_function("() => [...document.images].every(image => image.complete)")
    images = page.evaluate(
        "() => [...document.querySelectorAll('article img')].map(one => [one.src, one.alt, one.naturalWidth])"
    )
    for source, alternative, width in images:
        assert width > 0, f"{source} doesn't load"
        assert alternative and len(alternative) > 10, f"{source} has no alternative text; its mystnb metadata gives it"
        assert not re.search(r"\.(png|svg|jpe?g)$|^\.\./", alternative), f"{source}: its alternative text is a file name"


@pytest.mark.parametrize("name", PAGES)
def test_equations_are_typeset(visits: dict[str, Visit], name: str) -> None:
    page = visits[name].page
    raw = page.evaluate(
        """() => {
            const article = document.querySelector('article').cloneNode(true);
            article.querySelectorAll('pre, code, script').forEach(one => one.remove());
            return [article.innerText, document.querySelectorAll('article .math.notranslate').length,
                    document.querySelectorAll('article .math.notranslate .MathJax').length,
                    document.querySelectorAll('.merror, .MathJax_Error, .MathJax .noError').length];
        }"""
    )
    text, equations, typeset, errors = raw
    assert typeset >= equations
    assert errors == 0
    assert "$$" not in text
    assert not re.search(r"\\(begin|frac|mathrm|gamma|rho|log)\b|\$\\", text), "TeX is seen as text"


@pytest.mark.parametrize("name", CHAPTERS)
def test_code_that_is_shown_fits_a_desktop(visits: dict[str, Visit], name: str) -> None:
    """The lines that `book check` lets pass are not cut. A hidden cell may scroll when it is opened."""
    cut = visits[name].page.evaluate(
        """() => [...document.querySelectorAll('div.cell:not([class*=tag_hide]) div.cell_input pre')]
            .filter(one => one.scrollWidth > one.clientWidth).map(one => one.innerText)"""
    )
    assert cut == []


def test_a_browser_understands_the_whole_stylesheet(visits: dict[str, Visit]) -> None:
    """A brace too many loses the rule after it, and one too few the rest."""
    found = visits[PAGES[0]].page.evaluate(
        """() => [...document.styleSheets].filter(one => (one.href || '').includes('/custom.css'))
            .map(one => [...one.cssRules].map(rule => [rule.constructor.name, rule.cssRules.length]))"""
    )
    source = re.sub(
        r"/\*.*?\*/", "", (ROOT / "book" / "_static" / "custom.css").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert len(found) == 1
    media = [number for kind, number in found[0] if kind == "CSSMediaRule"]
    assert len(media) == source.count("@media")
    assert len(found[0]) + sum(media) == source.count("{") == source.count("}")


@pytest.mark.parametrize("name", CHAPTERS)
def test_figures_are_numbered_and_have_captions(visits: dict[str, Visit], name: str) -> None:
    for figure in visits[name].page.locator("article figure").all():
        assert re.match(r"Fig\.\s*\d+\.\d+", figure.locator(".caption-number").inner_text())
        assert len(figure.locator("figcaption").inner_text()) > 30


@pytest.mark.parametrize("name", PAGES)
def test_contents_lead_to_every_chapter(visits: dict[str, Visit], address: str, name: str) -> None:
    script = "() => [...document.querySelectorAll('nav.bd-links a')].map(link => link.href.split('#')[0])"
    links = visits[name].page.evaluate(script)
    assert {f"{address}/{chapter}.html" for chapter in CHAPTERS} <= {*links, f"{address}/{name}.html"}


@pytest.mark.parametrize("name", PAGES)
def test_internal_links_lead_somewhere(visits: dict[str, Visit], html: Path, address: str, name: str) -> None:
    links = visits[name].page.evaluate(LINKS)
    inner = [urlsplit(link) for link in links if link.startswith(address)]
    assert inner
    for link in inner:
        target = html / link.path.lstrip("/")
        assert target.is_file(), f"{link.geturl()} leads nowhere"
        if link.fragment and target.suffix == ".html":
            anchor = re.escape(link.fragment)
            assert re.search(rf'id="{anchor}"', target.read_text(encoding="utf-8")), f"{link.geturl()}: no such anchor"


@pytest.mark.parametrize("name", CHAPTERS)
def test_colab_opens_the_source_notebook(visits: dict[str, Visit], name: str) -> None:
    links = visits[name].page.evaluate(LINKS)
    colab = [link for link in links if link.startswith("https://colab.research.google.com/")]
    expected = f"https://colab.research.google.com/github/{owner_and_name(PROJECT.address())}/blob/main/{name}.ipynb"
    assert len(colab) >= 2, "the theme's button and the badge of the chapter's head"
    assert set(colab) == {expected}
    assert (ROOT / f"{name}.ipynb").is_file()


@pytest.mark.parametrize("name", CHAPTERS)
def test_progress_bars_and_warnings_do_not_litter_the_page(visits: dict[str, Visit], name: str) -> None:
    outputs = visits[name].page.locator("article .cell_output").all_inner_texts()
    for text in outputs:
        assert not re.search(r"\d+%\|", text)
        assert "Traceback (most recent call last)" not in text
        assert "Warning:" not in text
        assert str(ROOT) not in text, "a path of this machine"


def test_search_finds_a_word(chromium: Any, address: str) -> None:
    visit = Visit(chromium, address, "search")
    visit.page.goto(f"{address}/search.html?q=watermark", wait_until="load")
    visit.page.wait_for_selector("#search-results ul.search li a[href*='notebooks/']")
    script = "() => [...document.querySelectorAll('#search-results ul.search li a')].map(link => link.href)"
    found = visit.page.evaluate(script)
    assert any("/notebooks/" in link for link in found)
    assert visit.console == []
    assert visit.failed == []
    visit.page.close()


def test_hidden_solutions_open(visits: dict[str, Visit]) -> None:
    clicked = 0
    for name in CHAPTERS:
        page = visits[name].page
        for box in page.locator("article .admonition.toggle, article .admonition.dropdown").all()[:1]:
            body = box.locator("p:not(.admonition-title)").first
            assert not body.is_visible()
            box.locator("button, .admonition-title").first.click()
            assert body.is_visible()
            clicked += 1
    if not clicked:
        pytest.skip("no chapter has a hidden solution")


@pytest.mark.parametrize("name", PAGES)
def test_is_readable_on_a_phone(chromium: Any, address: str, name: str) -> None:
    visit = Visit(chromium, address, name, width=390)
    wide = visit.page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    # what is wider than the screen and lies in no box that scrolls
    outside = visit.page.evaluate(
        """() => [...document.querySelectorAll('article *')].filter(one => {
            if (one.getBoundingClientRect().right <= window.innerWidth + 1) return false;
            for (let box = one.parentElement; box && box.tagName !== 'ARTICLE'; box = box.parentElement)
                if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(box).overflowX)) return false;
            const flow = getComputedStyle(one).overflowX;
            return !['auto', 'scroll', 'hidden'].includes(flow) && one.getClientRects().length > 0;
        }).map(one => one.outerHTML.slice(0, 120))"""
    )
    covered = visit.page.evaluate(
        """() => [...document.querySelectorAll('div.math')].filter(one => {
            const [number, formula] = ['.eqno', '.MathJax_Display'].map(name => one.querySelector(name));
            return number && formula && number.getBoundingClientRect().bottom > formula.getBoundingClientRect().top + 1;
        }).map(one => one.id)"""
    )
    size = visit.page.evaluate("() => parseFloat(getComputedStyle(document.querySelector('article p')).fontSize)")
    visit.page.close()
    assert wide[0] <= wide[1], f"the page scrolls sideways: {wide[0]} px wide on a screen of {wide[1]} px"
    assert outside == []
    assert covered == [], "an equation's number lies on the formula"
    assert size >= 14


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_page_is_of_the_executed_chapter(html: Path, name: str) -> None:
    executed = read_notebook(PROJECT.executed(PRESET) / f"{name.removeprefix('notebooks/')}.ipynb")
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code" and cell.source.strip())
    sources = read_notebook(html / "_sources" / f"{name}.ipynb")
    assert [cell.source for cell in sources.cells] == [cell.source for cell in executed.cells]
    assert "papermill" not in sources.metadata
