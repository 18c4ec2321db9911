"""What the generated pages share: tables as MyST writes them, recorded values in words, and the templates beside this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """A table of strings, for a page or a terminal. ``str`` of it is Markdown; ``widths`` are percents, one a column."""

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    widths: Sequence[int] = ()

    def __str__(self) -> str:
        options = {"header-rows": "1", "widths": " ".join(map(str, self.widths)), "name": self.name}
        cells = [
            f"{'  -' if place else '* -'} {cell}" for row in (self.header, *self.rows) for place, cell in enumerate(row)
        ]
        given = [f":{name}: {value}" for name, value in options.items() if value]
        return "\n".join(line.rstrip() for line in (f"```{{list-table}} {self.caption}", *given, "", *cells, "```"))


def page(template: str, **values: Any) -> str:
    """The page that a template of this folder makes of these values. Raises ``ValueError`` for one that it lacks."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("radio_utils.book", ""), undefined=jinja2.StrictUndefined, autoescape=False,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    try:
        return environment.get_template(template).render(values)
    except jinja2.UndefinedError as error:
        raise ValueError(str(error)) from error


def text_of(value: Any) -> str:
    """A recorded value in words."""
    if value is None:
        return NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text_of(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return ", ".join(text_of(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value).replace("\n", " ")
