"""What a chapter's prose is held to: the minutes that it takes, and the terms that lead to the glossary."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from radio_utils.book.project import NotebookNode, tags

LONGEST_CELL = 12  # lines of code that a reader takes in at a glance
_WORDS_A_MINUTE = 200
_MINUTES_A_FIGURE = 0.5
_STATED = re.compile(r"\| Time \| (\d+) minutes? to read")
_ENTRY = re.compile(r"(?m)^(?!```)(\S[^\n]*)\n {2}\S")
# a linked term, and all in which a word is no prose: code, formulas, headings, links, roles
_LINKED = r"\{term\}`(?:[^`<]*<)?(?P<linked>[^`<>]+)>?`"
_OTHER = r"```.*?```|\$\$.*?\$\$|\$[^$]+\$|^#[^\n]*$|!?\[[^\]]*\]\([^)]*\)|(?:\{[\w:]+\})?`[^`]*`"


def reading_minutes(notebook: NotebookNode) -> int:
    """Minutes to read a chapter: words of its prose and its visible code at 200 a minute, and half a minute a figure."""
    words, figures = 0, 0
    for cell in notebook.cells:
        figures += "figure" in cell.metadata.get("mystnb", {})
        if cell.cell_type == "markdown" or is_visible(cell):
            words += len(cell.source.split())
    return max(1, round(words / _WORDS_A_MINUTE + _MINUTES_A_FIGURE * figures))


def is_visible(cell: NotebookNode) -> bool:
    """Whether a page shows the code of this cell unasked."""
    return bool(cell.cell_type == "code" and not {"hide-input", "hide-cell", "setup"} & set(tags(cell)))


def glossary_terms(text: str) -> list[str]:
    """The terms that a page with a glossary directive defines."""
    inside = re.search(r"```\{glossary\}\n(.*?)```", text, re.S)
    return _ENTRY.findall(inside[1]) if inside else []


def prose_problems(notebook: NotebookNode, terms: Sequence[str]) -> list[str]:
    """Too long cells, another reading time than the computed one, first uses of terms without a link, links to no term."""
    problems = []
    for number, cell in enumerate(notebook.cells, start=1):
        lines = len(cell.source.splitlines())
        if is_visible(cell) and "parameters" not in tags(cell) and lines > LONGEST_CELL:
            problems.append(f"cell {number} shows {lines} lines of code; split it, or move what is no idea to the package")
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    minutes = reading_minutes(notebook)
    if (stated := _STATED.search(prose)) and int(stated[1]) != minutes:
        problems.append(f"its head states {stated[1]} minutes to read, and {minutes} are computed; write {minutes}")
    for term, linked in first_uses(prose, terms):
        if not linked:
            problems.append(f"the first use of {term!r} doesn't lead to the glossary; write {{term}}`{term}`")
    known = {term.lower() for term in terms}
    for name in dict.fromkeys(found["linked"].strip() for found in re.finditer(_LINKED, prose)):
        if known and name.lower() not in known:
            problems.append(f"{{term}}`{name}` leads to no entry of the glossary; define it there, or write it plainly")
    return problems


def first_uses(prose: str, terms: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Each of the ``terms`` that ``prose`` uses, in singular or plural, and whether its first use is a link.

    A term within a longer one ("key" in "decoy key") is no use of it.
    """
    if not terms:
        return
    longest_first = "|".join(re.escape(term) for term in sorted(terms, key=len, reverse=True))
    pattern = re.compile(rf"{_LINKED}|{_OTHER}|(?i:(?<![\w-])(?P<term>{longest_first})s?(?![\w-]))", re.S | re.M)
    by_name, met = {term.lower(): term for term in terms}, set[str]()
    for found in pattern.finditer(prose):
        name = by_name.get(str(found["linked"] or found["term"] or "").strip().lower())
        if name is not None and name not in met:
            met.add(name)
            yield name, found["linked"] is not None
