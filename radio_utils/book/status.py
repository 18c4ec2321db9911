"""The status page: every experiment on every tier beside the paper's figure, and what ran where.

``experiments.yaml`` says what the experiments are and where their figures stand; all of ours are read from the records
that the chapters write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field

from radio_utils import costs
from radio_utils.book.project import BookError, Project
from radio_utils.book.tables import NOTHING, Table, page, text_of
from radio_utils.files import read_json
from radio_utils.presets import load_preset

Record = Mapping[str, Any]
Row = Mapping[str, Any]

TIERS = ("laptop", "pocket", "gpu", "colab", "paper")
_NOT_RUN = "not yet run"
_FILE = "experiments.yaml"

# --- the experiments --------------------------------------------------------------------------------------------------

Line = Annotated[str, Field(pattern=r"^\S(.*\S)?$")]
Scalar = bool | int | float | str
Values = Annotated[tuple[Scalar, ...], Field(min_length=1)]


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Section):
    """Where one figure of ours stands in a record, and how it is shown.

    Rows of ``table`` count whose columns equal those of ``where`` (or one of several values there); then those with larger
    values than in ``above`` and none larger than in ``at_most``. ``pick`` takes their mean, the ``least``, or the mean of
    the rows that share the ``first``, the ``last`` or ``each`` value of the column ``by``.
    """

    table: Line
    where: Mapping[str, Scalar | Values] = {}
    above: Mapping[str, float] = {}
    at_most: Mapping[str, float] = {}
    column: Line = "log10_p"
    show: Literal["power_of_ten", "p_value", "number", "percent"] = "power_of_ten"
    pick: Literal["mean", "least", "first", "last", "each"] = "mean"
    by: Line | None = None

    @pydantic.model_validator(mode="after")
    def _by_goes_with_pick(self) -> Figure:
        if (self.by is None) != (self.pick in ("mean", "least")):
            raise ValueError(f"pick={self.pick} and by={self.by}: first, last and each need the column by, others none")
        return self


class Experiment(_Section):
    """One row of the page. ``paper`` is what the paper or its release states, as Markdown, or None."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    title: Line
    chapter: Annotated[str, Field(pattern=r"^\d\d_[a-z0-9_]+$")]
    paper: Line | None
    figure: Figure


class Group(_Section):
    """Experiments that stand together."""

    title: Line
    experiments: Annotated[tuple[Experiment, ...], Field(min_length=1)]


class _File(_Section):
    groups: Annotated[tuple[Group, ...], Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _distinct(self) -> _File:
        names = [one.id for group in self.groups for one in group.experiments]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the id {twice[0]} is given twice; choose another")
        return self


def load_experiments(text: str | None = None) -> tuple[Group, ...]:
    """The groups of experiments in ``text``, by default those of ``experiments.yaml``, in the page's order.

    Raises:
        BookError: the text isn't YAML, or a field is unknown, missing or has a value that it can't have.
    """
    if text is None:
        text = resources.files("radio_utils.book").joinpath(_FILE).read_text(encoding="utf-8")
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BookError(f"{_FILE}: this isn't YAML ({error}); mend it there") from error
    try:
        return _File.model_validate(raw).groups
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in _named(raw, first["loc"])) or "the file"
        what = "unknown field" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        got = "" if isinstance(first["input"], dict | list) else f" (got {first['input']!r})"  # a branch says nothing
        raise BookError(f"{_FILE}: {where}: {what}{got}") from error


def _named(raw: Any, place: Sequence[int | str]) -> list[int | str]:
    """``place`` with the id or the title of an entry for its number, where it has one."""
    found: list[int | str] = []
    for part in place:
        try:
            raw = raw[part]
        except (LookupError, TypeError):
            raw = None  # a missing field, or pydantic's name for one kind of value
        name = (raw.get("id") or raw.get("title")) if isinstance(part, int) and isinstance(raw, dict) else None
        found.append(part if name is None else str(name))
    return found


# --- records ----------------------------------------------------------------------------------------------------------


def read_record(project: Project, tier: str, name: str) -> Record | None:
    """The record of a chapter on a tier, or None where it has not run. Raises ``BookError`` for a damaged one."""
    path = project.results(tier) / f"{name}.json"
    if not path.is_file():
        # a moved results folder holds this machine's runs; what was recorded elsewhere lies in the checkout
        path = project.root / "results" / tier / f"{name}.json"
    if not path.is_file():
        return None
    return _parsed(path)


def read_seeds(project: Project, tier: str) -> dict[int, dict[str, Record]]:
    """The records of a tier that the checkout keeps of several seeds: by seed, then by chapter.

    They lie in ``results/seed-N/<tier>``. Raises ``BookError`` for a damaged one.
    """
    found: dict[int, dict[str, Record]] = {}
    for folder in (project.root / "results").glob("seed-*"):
        if number := re.fullmatch(r"seed-(\d+)", folder.name):
            paths = [folder / tier / f"{name}.json" for name in project.chapters()]
            if records := {path.stem: _parsed(path) for path in paths if path.is_file()}:
                found[int(number[1])] = records
    return dict(sorted(found.items()))


def _parsed(path: Path) -> Record:
    try:
        record: Record = read_json(path)
        float(record["seconds"])
        for name, rows in (record.get("tables") or {}).items():
            if not isinstance(rows, list | None) or not all(isinstance(row, dict) for row in rows or []):
                raise TypeError(f"table {name!r} is not a list of rows")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BookError(
            f"{path}: this isn't a chapter's record ({error!r}); run the chapter again, or delete it"
        ) from error
    return record


# --- one figure -------------------------------------------------------------------------------------------------------


def figure_text(figure: Figure, record: Record) -> str:
    """The figure as a cell of a table shows it.

    A dash stands for a figure that the record doesn't hold, "none" for one that no row is within the bounds of.

    Raises:
        ValueError: a column that must hold numbers holds something else.
    """
    rows = [row for row in (record.get("tables") or {}).get(figure.table) or [] if _matches(row, figure.where)]
    bounds = {*figure.above, *figure.at_most}
    rows = [row for row in rows if all(_number(row, name) is not None for name in bounds)]
    within = [row for row in rows if _within(row, figure)]
    if rows and not within:
        return "none"
    if figure.by is not None:
        return _along(figure, figure.by, within)
    if figure.pick == "mean":
        return _mean(figure, within)
    values = _values(within, figure.column)
    if not values:
        return NOTHING
    return _shown(min(values), figure.show) + (f" (least of {len(values)})" if len(values) > 1 else "")


def _along(figure: Figure, by: str, rows: Sequence[Row]) -> str:
    """The mean of the rows at the first, the last or each value of the column ``by``, in the order of its numbers."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        if row.get(by) is not None:
            groups.setdefault(row[by], []).append(row)
    if not groups:
        return NOTHING
    values = list(groups)
    places = [_as_number(value) for value in values]
    if None not in places:  # words keep the order of the record
        values = [value for _, value in sorted(zip(places, values, strict=True))]
    if figure.pick == "each":
        return "; ".join(f"{text_of(value)}: {_mean(figure, groups[value])}" for value in values)
    value = values[0 if figure.pick == "first" else -1]
    return _mean(figure, groups[value], "" if by == figure.column else f" at {text_of(value)}")


def _mean(figure: Figure, rows: Sequence[Row], where: str = "") -> str:
    values = _values(rows, figure.column)
    if not values:
        return NOTHING
    many = f"{len(values)}" if len(values) == len(rows) else f"{len(values)} of {len(rows)}"
    runs = f" (mean of {many})" if len(rows) > 1 else ""
    return _shown(sum(values) / len(values), figure.show) + where + runs


def _shown(value: float, show: str) -> str:
    if show == "percent":
        return f"{100 * value:.3g}\u00a0%"
    if show == "number":
        return f"{value:#.3g}".removesuffix(".")
    if show == "p_value" and value > -3:
        return f"{10**value:.2g}"
    return f"$10^{{{round(value, 1) + 0.0:.1f}}}$"  # adding 0 makes -0.0 plain 0.0


def _values(rows: Iterable[Row], column: str) -> list[float]:
    """The numbers of a column; a row that lacks it or holds None has none."""
    return [value for row in rows if (value := _number(row, column)) is not None]


def _number(row: Row, column: str) -> float | None:
    value = row.get(column)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"column {column!r} holds {value!r} where a number is needed")
    return float(value)


def _as_number(value: Any) -> float | None:
    """What to sort a value of a column by: numbers may stand there as text, beside columns of words."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _matches(row: Row, where: Mapping[str, Scalar | Values]) -> bool:
    return all(
        any(_same(row.get(name), one) for one in (wanted if isinstance(wanted, tuple) else (wanted,)))
        for name, wanted in where.items()
    )


def _same(left: Any, right: Scalar) -> bool:
    numbers = [isinstance(one, int | float) and not isinstance(one, bool) for one in (left, right)]
    if all(numbers):
        return math.isclose(left, float(right), abs_tol=1e-12)
    return type(left) is type(right) and bool(left == right)


def _within(row: Row, figure: Figure) -> bool:
    above = all(row[name] > bound for name, bound in figure.above.items())
    return above and all(row[name] <= bound for name, bound in figure.at_most.items())


# --- the page ---------------------------------------------------------------------------------------------------------


def status_page(project: Project, preset: str = "laptop") -> str:
    """The Markdown of the status page; ``preset`` is shown too when it isn't one of the tiers.

    Raises:
        BookError: a record isn't strict JSON with the fields that the page shows.
    """
    tiers = TIERS if preset in TIERS else (preset, *TIERS)
    chapters, groups = project.chapters(), load_experiments()
    records = {tier: _tier_records(project, tier) for tier in tiers}
    columns = {f"`{tier}`": _cells(tier, records[tier]) for tier in tiers}
    seconds = [
        [f"[](/notebooks/{name}.ipynb)"]
        + [_seconds(records[tier][name]) if name in records[tier] else _NOT_RUN for tier in tiers]
        for name in chapters
    ]
    totals = [[float(record["seconds"]) for record in records[tier].values()] for tier in tiers]
    total = ["total", *(f"{sum(each):,.1f}\u00a0s" if each else NOTHING for each in totals)]
    return page(
        "status.md",
        not_run=_NOT_RUN,
        experiments=_experiments(
            groups, chapters, "Every experiment on every tier", "tab-experiments", columns, paper=True
        ),
        seeds=list(_spread(project, groups, tiers)),
        times=Table("tab-status", "Seconds for each chapter and tier", ["Chapter", *tiers], [*seconds, total]),
        estimates=_estimates(),
        tiers=[(tier, _ran(records[tier]), list(_notes(records[tier]))) for tier in tiers],
    )


def _estimates() -> Table:
    """What chapters 1 to 7 should take on the larger tiers, by arithmetic."""
    rows = []
    for tier, device in costs.DEVICES.items():
        preset = load_preset(tier)
        for work in costs.works(preset):
            amounts = [f"{work.operations:.1e}", f"{work.bytes:.1e}", f"{work.steps:,.0f}"]
            rows.append([tier, work.name, *amounts, f"{work.seconds(device) / 60:.1f}"])
        memory = preset.memory_estimate_gb()  # known for models of the hub
        where = f"{preset.devices} × {device.name}" + (f", {memory:.0f} GB each" if memory else "")
        rows.append([f"**{tier}**", where, "", "", "", f"**{costs.minutes(preset, device):.0f}**"])
    header = ["Tier", "Work", "Operations", "Bytes", "Steps", "Minutes"]
    return Table("tab-estimates", "Estimated work of chapters 1 to 7", header, rows)


def _tier_records(project: Project, tier: str) -> dict[str, Record]:
    """The records of a tier's last run, and of chapters without one the checkout's of the first seed that has it."""
    seeds = read_seeds(project, tier).values()
    found = {}
    for name in project.chapters():
        record = read_record(project, tier, name) or next((kept[name] for kept in seeds if name in kept), None)
        if record is not None:
            found[name] = record
    return found


def _cells(place: str, records: Mapping[str, Record]) -> Callable[[Experiment], str]:
    """A column: the text of each experiment's cell, from the records of one place."""

    def cell(experiment: Experiment) -> str:
        record = records.get(experiment.chapter)
        if record is None:
            return _NOT_RUN
        try:
            return figure_text(experiment.figure, record)
        except ValueError as error:
            raise BookError(
                f"results/{place}/{experiment.chapter}.json, table {experiment.figure.table!r}, for {experiment.id} "
                f"of {_FILE}: {error}; run the chapter again, or mend {_FILE}"
            ) from error

    return cell


def _experiments(
    groups: Iterable[Group],
    chapters: Sequence[str],
    caption: str,
    name: str,
    columns: Mapping[str, Callable[[Experiment], str]],
    *,
    paper: bool = False,
) -> Table:
    """A table with a row for each experiment, under a row for each group; ``paper`` adds the paper's column."""
    header = ["Experiment", *(["The paper {cite}`sander2024radioactive`"] if paper else []), *columns]
    rows = []
    for group in groups:
        rows.append([f"**{_unbroken(group.title)}**", *([""] * (len(header) - 1))])
        for one in group.experiments:
            title = _unbroken(one.title)
            first = f"[{title}](/notebooks/{one.chapter}.ipynb)" if one.chapter in chapters else title
            stated = [_unbroken(one.paper) if one.paper else NOTHING] if paper else []
            rows.append([first, *stated, *(cell(one) for cell in columns.values())])
    return Table(name, caption, header, rows, [28, *([20] if paper else []), *[14] * len(columns)])


def _spread(project: Project, groups: Iterable[Group], tiers: Iterable[str]) -> Iterator[Table]:
    """The experiments at each seed that the checkout keeps, for the tiers of which it keeps several."""
    for tier in tiers:
        if len(seeds := read_seeds(project, tier)) > 1:
            columns = {f"seed {seed}": _cells(f"seed-{seed}/{tier}", records) for seed, records in seeds.items()}
            dates = sorted({text_of(record.get("date")) for records in seeds.values() for record in records.values()})
            when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
            caption = f"Tier {tier}, recorded {when}: one column for each seed"  # backticks would end the fence
            yield _experiments(groups, project.chapters(), caption, f"tab-seeds-{tier}", columns)


def _ran(records: Mapping[str, Record]) -> Table | None:
    """What ran on a tier, None for nothing."""
    fields = ("preset", "seed", "seconds", "hardware", "date")
    rows = [
        [f"`{name}`", *(_seconds(record) if field == "seconds" else text_of(record.get(field)) for field in fields)]
        for name, record in records.items()
    ]
    return Table("", "", ["Chapter", *map(str.capitalize, fields)], rows) if rows else None


def _notes(records: Mapping[str, Record]) -> Iterator[tuple[str, list[str]]]:
    """What chapters were made with, those that agree in one line: a heading, and its lines."""
    for heading, field in (("Models that were taken", "models"), ("Versions", "versions")):
        groups: dict[str, list[str]] = {}
        for name, record in records.items():
            if field == "versions" or field in record:
                groups.setdefault(text_of(record.get(field)), []).append(name)
        if groups:
            whole = len(records)
            yield (
                heading,
                [
                    f"{'all chapters' if len(names) == whole else ', '.join(f'`{name}`' for name in names)}: {text}"
                    for text, names in groups.items()
                ],
            )


def _unbroken(text: str) -> str:
    """``text`` with spaces that no line breaks at, around an equals sign and before a percent sign."""
    return text.replace(" %", "\u00a0%").replace(" = ", "\u00a0=\u00a0")


def _seconds(record: Record) -> str:
    return f"{float(record['seconds']):,.1f}\u00a0s"
