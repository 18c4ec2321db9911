"""The status page: what ran where, read from the records of each tier."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from radio_utils.book.project import BookError, Project

TIERS = ("laptop", "gpu", "colab", "paper")


def status_page(project: Project, preset: str = "laptop") -> str:
    """The Markdown of the status page; ``preset`` is shown too when it isn't one of the four tiers.

    Raises:
        BookError: a record isn't strict JSON with the fields that the page shows.
    """
    tiers = TIERS if preset in TIERS else (preset, *TIERS)
    chapters = project.chapters()
    places = [(tier, name) for tier in tiers for name in chapters]
    records = {place: record for place in places if (record := read_record(project, *place)) is not None}
    lines = [
        "# Status",
        "",
        "What ran, on which tier and hardware, with which versions: generated from the records that the chapters write.",
        "",
        "```{list-table} Seconds for each chapter and tier",
        ":header-rows: 1",
        ":name: tab-status",
        "",
        *_row(["Chapter", *tiers]),
    ]
    for name in chapters:
        cells = [_seconds(records[tier, name]) if (tier, name) in records else "not yet run" for tier in tiers]
        lines += _row([f"[](/notebooks/{name}.ipynb)", *cells])
    totals = [[float(records[tier, name]["seconds"]) for name in chapters if (tier, name) in records] for tier in tiers]
    lines += _row(["total", *(f"{sum(total):,.1f}\u00a0s" if total else "–" for total in totals)])
    lines += ["```", ""]
    for tier in tiers:
        lines += _tier(tier, {name: records[tier, name] for name in chapters if (tier, name) in records})
    return "\n".join(lines)


def _tier(tier: str, records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [f"## Tier `{tier}`", ""]
    if not records:
        return [*lines, "Not yet run.", ""]
    lines += ["```{list-table}", ":header-rows: 1", "", *_row(["Chapter", "Preset", "Seed", "Seconds", "Hardware", "Date"])]
    for name, record in records.items():
        shown = [_text(record.get(field)) for field in ("preset", "seed")]
        lines += _row([f"`{name}`", *shown, _seconds(record), _text(record.get("hardware")), _text(record.get("date"))])
    lines += ["```", "", "Versions:", ""]
    groups: dict[str, list[str]] = {}
    for name, record in records.items():
        groups.setdefault(_text(record.get("versions")), []).append(name)
    for text, names in groups.items():
        whose = "all chapters" if len(groups) == 1 else ", ".join(f"`{name}`" for name in names)
        lines.append(f"- {whose}: {text}")
    return [*lines, ""]


def read_record(project: Project, tier: str, name: str) -> Mapping[str, Any] | None:
    """The record of a chapter on a tier, or None where it has not run. Raises ``BookError`` for a damaged one."""
    path = project.results(tier) / f"{name}.json"
    if not path.is_file():
        # a moved results folder holds this machine's runs; what was recorded elsewhere lies in the checkout
        path = project.root / "results" / tier / f"{name}.json"
    if not path.is_file():
        return None
    return _parsed(path)


def _parsed(path: Path) -> Mapping[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
        float(record["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BookError(
            f"{path}: this isn't a chapter's record ({error!r}); run the chapter again, or delete it"
        ) from error
    if not isinstance(record, dict):
        raise BookError(f"{path}: a record is one JSON object")
    return record


def _row(cells: Iterable[str]) -> list[str]:
    return [f"{'* -' if index == 0 else '  -'} {cell}" for index, cell in enumerate(cells)]


def _seconds(record: Mapping[str, Any]) -> str:
    return f"{float(record['seconds']):,.1f}\u00a0s"


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value).replace("\n", " ")
