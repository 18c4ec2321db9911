"""The page of benchmarks: read from the record that ``make bench`` writes; every number and ratio is computed from it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from radio_utils.book.project import BookError, Project
from radio_utils.book.tables import Table, page, text_of
from radio_utils.files import read_json

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]
Made = TypeVar("Made")

_OTHERS = ("transformers", "plain")
_AXES = (
    ("tokens", "tokens", "tokens read", "text"),
    ("vocabulary", "vocab_size", "vocabulary size V (tokens)", "scheme"),
    ("window", "window", "window k (tokens)", "scheme"),
    ("keys", "keys", "keys tried", "scheme"),
)


def benchmarks_page(project: Project) -> str:
    """The Markdown of the page, or a page that says that nothing has been measured.

    Raises:
        BookError: the record isn't strict JSON with the fields that the page shows.
    """
    record = _record(project)
    return page("benchmarks.md", record=None) if record is None else _checked(project, lambda: _page(record))


def benchmarks_figure(project: Project) -> bytes | None:
    """The figure beside the page, as SVG, the same bytes for the same record; None where nothing has been measured.

    Raises:
        BookError: the record isn't strict JSON with the fields that the figure shows.
    """
    record = _record(project)
    return None if record is None else _checked(project, lambda: _figure(record["tables"]))


def tables_of(tables: Tables) -> list[Table]:
    """The tables with their ratios, from those of the record that are there and not empty."""
    makers: dict[str, Callable[[Sequence[Row]], Table]] = {
        "peers": _peers,
        "compat": partial(_compat, "compat", "Detection of published schemes, tokens a second"),
        "engines": partial(_compat, "engines", "Detection of engines' marks, tokens a second"),
        "processors": _processors,
        "tokens": _tokens,
        "vocabulary": partial(_grown, "vocab_size", "V", "vocabulary", "Detection and the size of the vocabulary"),
        "window": partial(_grown, "window", "k", "window", "Detection and the length of the window"),
        "keys": _keys,
    }
    return [make(tables[name]) for name, make in makers.items() if tables.get(name)]


def _path(project: Project) -> Path:
    return project.root / "results" / "benchmarks.json"


def _record(project: Project) -> Mapping[str, Any] | None:
    path = _path(project)
    if not path.is_file():
        return None
    try:
        record: Mapping[str, Any] = read_json(path)
        for name, rows in record["tables"].items():
            if not all(float(row["seconds"]) > 0 for row in rows):
                raise ValueError(f"a row of {name} took no time")
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error
    return record


def _damaged(path: Path, error: Exception) -> BookError:
    return BookError(f"{path}: this isn't a record of benchmarks ({error!r}); run `make bench` again, or delete it")


def _checked(project: Project, make: Callable[[], Made]) -> Made:
    try:
        return make()
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise _damaged(_path(project), error) from error


# --- tables -----------------------------------------------------------------------------------------------------------


def _rate(row: Row) -> float:
    """Tokens a second."""
    return float(row["tokens"]) / float(row["seconds"])


def _number(value: float) -> str:
    """Three significant digits, thousands separated."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is no measured number")
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.0f}" if digits <= 0 else f"{value:.3g}"


def _count(value: Any) -> str:
    return f"{int(value):,}"


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{_number(value / size)}\u00a0{unit}"
    return f"{_number(value / 1e-6)}\u00a0µs"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{_number(value)}×"


def _one(rows: Iterable[Row], **where: Any) -> Row | None:
    """The row with these values; None if there is none."""
    return next((row for row in rows if all(row[name] == value for name, value in where.items())), None)


def _faster(row: Row, other: Row | None) -> float | None:
    """How many times as many tokens a second."""
    return None if other is None or other is row else _rate(row) / _rate(other)


def _peers(rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        others = [_faster(row, _one(rows, program=name, text=row["text"])) for name in _OTHERS]
        shown = (row["text"], row["program"], _count(row["tokens"]), _number(_rate(row)))
        lines.append((*shown, *(_times(one) for one in others)))
    header = ("Text", "Program", "Tokens", "Tokens a second", "Against transformers", "Against plain code")
    return Table("tab-bench-peers", "Detection, tokens a second", header, tuple(lines))


def _compat(name: str, caption: str, rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        same = [one for one in rows if (one["scheme"], one["text"]) == (row["scheme"], row["text"])]
        other = next((one for one in same if not one["program"].startswith("ours")), None)
        shown = (row["scheme"], row["text"], row["program"], _count(row["tokens"]), _number(_rate(row)))
        lines.append((*shown, _times(_faster(row, other))))
    header = ("Scheme", "Text", "Program", "Tokens", "Tokens a second", "Against the other program")
    return Table(f"tab-bench-{name}", caption, header, tuple(lines))


def _step(row: Row) -> float:
    return float(row["seconds"]) / int(row["steps"])


def _processors(rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        where = {"vocab_size": row["vocab_size"], "threads": row["threads"]}
        theirs = _one(rows, program="transformers", **where)
        green = _one(rows, program="ours, green list", **where)
        faster = None if theirs is None or theirs is row else _step(theirs) / _step(row)
        cost = None if green is None or green is row else _step(row) / _step(green)
        shown = (_count(row["vocab_size"]), _count(row["threads"]), row["program"], _seconds(_step(row)))
        lines.append((*shown, _times(faster), _times(cost)))
    header = ("V", "Threads", "Program", "Time a step", "Faster than transformers", "Time of our green list")
    return Table("tab-bench-processors", "Logits processors, time a step", header, tuple(lines))


def _tokens(rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        peak = "–" if "peak_bytes" not in row else f"{_number(row['peak_bytes'] / 2**20)}\u00a0MiB"
        shown = (row["text"], _count(row["tokens"]), _count(row["scored"]), _seconds(row["seconds"]))
        lines.append((*shown, _number(_rate(row)), peak))
    header = ("Text", "Tokens", "Distinct pairs", "Time", "Tokens a second", "Peak memory")
    return Table("tab-bench-tokens", "Detection on a stream of texts", header, tuple(lines))


def _grown(column: str, symbol: str, name: str, caption: str, rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        least = min((one for one in rows if one["scheme"] == row["scheme"]), key=lambda one: int(one[column]))
        ratio = None if least is row else float(row["seconds"]) / float(least["seconds"])
        shown = (row["scheme"], _count(row[column]), _count(row["scored"]), _seconds(row["seconds"]))
        lines.append((*shown, _number(_rate(row)), _times(ratio)))
    header = ("Scheme", symbol, "Distinct pairs", "Time", "Tokens a second", f"Time at the least {symbol}")
    return Table(f"tab-bench-{name}", caption, header, tuple(lines))


def _keys(rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        each = float(row["seconds"]) / int(row["keys"])
        shown = (row["scheme"], _count(row["keys"]), _count(row["pairs"]), _seconds(row["seconds"]), _seconds(each))
        lines.append((*shown, _number(row["pairs"] / each)))
    header = ("Scheme", "Keys", "Distinct pairs", "Time", "Time a key", "Pairs a second and key")
    return Table("tab-bench-keys", "Which of many keys wrote the texts", header, tuple(lines))


# --- the page ---------------------------------------------------------------------------------------------------------


def _page(record: Mapping[str, Any]) -> str:
    tables: Tables = record["tables"]
    if missing := [name for name in ("peers", "compat", "processors", *(axis[0] for axis in _AXES)) if not tables[name]]:
        raise ValueError(f"{missing[0]} is empty")
    return page(
        "benchmarks.md",
        record=record,
        tables={"engines": None} | {table.name.removeprefix("tab-bench-"): table for table in tables_of(tables)},
        share=_share(tables),
        lists_faster=_peer_range(tables, "ours, lists of ints"),
        array_faster=_peer_range(tables, "ours, one array"),
        powers={table: _powers(tables, table, by) for table, _, _, by in _AXES if table in ("tokens", "keys")},
        longest=max(tables["tokens"], key=lambda row: (row["tokens"], row["scored"])),
        ends={table: _series(tables, table, column, by) for table, column, _, by in _AXES},
        most_keys=max(tables["keys"], key=lambda row: int(row["keys"])),
        axes=[(label, _series(tables, table, column, by)) for table, column, label, by in _AXES],
        count=_count,
        number=_number,
        seconds=_seconds,
        words=text_of,
    )


def _share(tables: Tables) -> str:
    found = [row["scored"] / row["tokens"] for row in tables["tokens"] if row["text"] == "natural-like"]
    return f"between {100 * min(found):.0f}\u00a0% (the longest text) and {100 * max(found):.0f}\u00a0%"


def _peer_range(tables: Tables, program: str) -> str:
    rows = tables["peers"]
    found = [
        _faster(row, _one(rows, program="transformers", text=row["text"])) for row in rows if row["program"] == program
    ]
    ratios = sorted(ratio for ratio in found if ratio is not None)
    return f"{_number(ratios[0])} to {_number(ratios[-1])} times"


def _series(tables: Tables, table: str, column: str, by: str) -> dict[str, list[tuple[float, float]]]:
    """Points (value, seconds) in ascending order, for each value of the column ``by``."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in tables[table]:
        found.setdefault(str(row[by]), []).append((float(row[column]), float(row["seconds"])))
    return {name: sorted(points) for name, points in found.items()}


def _power(points: Sequence[tuple[float, float]]) -> float:
    """The exponent b of time ~ valueᵇ between the last point and the one that is nearest to a hundredth of it."""
    last, seconds = points[-1]
    begin, then = min(points[:-1], key=lambda point: abs(math.log(point[0] * 100 / last)))
    return math.log(seconds / then) / math.log(last / begin)


def _powers(tables: Tables, table: str, by: str) -> list[tuple[str, float]]:
    """The exponents with which the time of a table grows, by name."""
    return [(name, _power(points)) for name, points in _series(tables, table, table, by).items()]


def _figure(tables: Tables) -> bytes:
    import matplotlib
    import matplotlib.pyplot as plt

    from radio_utils import figures

    with matplotlib.rc_context():
        figures.set_style()
        matplotlib.rcParams["svg.hashsalt"] = "benchmarks"  # the same record must give the same bytes
        figure, axes = plt.subplots(2, 2, figsize=(9.0, 6.6))
        try:
            for ax, (table, column, label, by) in zip(axes.flat, _AXES, strict=True):
                styles = zip(("o", "s"), ("-", "--"), (figures.BLUE, figures.VERMILION), strict=True)
                series = _series(tables, table, column, by)
                for (name, points), (marker, line, colour) in zip(series.items(), styles, strict=False):
                    values, seconds = zip(*points, strict=True)
                    ax.plot(values, seconds, marker=marker, ls=line, color=colour, label=name)
                ax.set(xscale="log", yscale="log", xlabel=label, ylabel="time (s)")
                if table == "window":  # too short for powers of ten
                    ticks = sorted({value for points in series.values() for value, _ in points})
                    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
                    ax.xaxis.set_minor_formatter("")
                ax.legend()
            figure.tight_layout()
            drawn = io.BytesIO()
            figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
        finally:
            plt.close(figure)
    return drawn.getvalue()
