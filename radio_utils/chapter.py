"""What a chapter calls first and last: set up, then record.

A chapter opens a :class:`Chapter`, adds rows to its tables as it measures, speaks in prose whose numbers come from those
measurements, and records everything as ``results/<preset>/<chapter>.json``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from radio_utils import figures
from radio_utils.artifacts import Store, default_root
from radio_utils.files import write_json
from radio_utils.presets import REAL, REAL_NAME, Preset, load_preset
from radio_utils.provenance import hardware, versions
from radio_utils.world.world import World

logger = logging.getLogger(__name__)

_RECORDS = Path(__file__).resolve().parent.parent / "results"  # of the repository, where the package is used from a clone

# The columns of every table that a chapter may record. A row with other columns is an error.
COLUMNS: dict[str, tuple[str, ...]] = {
    "detection": ("scheme", "k", "watermarked", "scored", "log10_p"),
    "repetition": ("dedup", "repeats", "scored", "false_alarms", "keys"),
    "settings": ("supervised", "access", "watermark", "test"),
    "quality": ("rho", "task", "metric", "value", "stderr"),
    "noticed": ("test", "scheme", "needs", "value", "log10_p"),
    "samples": ("written", "instruction", "answer"),
    "composition": ("rho", "watermarked", "plain", "loss_first", "loss_last"),
    "membership": ("method", "d", "statistic", "log10_p"),
    "membership_needed": ("d", "log10_p", "candidates"),
    "contrast": ("rho", "reference", "scored", "z", "log10_p", "log10_saddlepoint", "log10_chernoff"),
    "counts": ("rho", "test", "scored", "log10_p"),
    "stopping": ("rho", "setting", "asked", "scored", "log10_p", "log10_p_fixed", "convicted"),
    "stopping_audit": ("alpha", "keys", "false_alarms"),
    "open_model": ("rho", "setting", "method", "scored", "score", "log10_p"),
    "closed_model": ("rho", "setting", "filtered", "scored", "score", "log10_p"),
    "null_audit": ("test", "keys", "ks_p", "min_log10_p"),
    "re_marking": ("test", "worlds", "log10_p", "rank", "p", "ks_p"),
    "stranger": ("file", "sha256", "quantisation", "tokens"),
    "another_tokenizer": ("trained", "test", "scored", "score", "log10_p"),
    "finetuning": ("factor", "value", "log10_p", "loss", "held_out"),
    "finetuning_kept": ("factor", "value", "log10_p"),
    "window": ("scheme", "k", "log10_p_text", "log10_p"),
    "watermark": ("scheme", "k", "gamma", "delta", "setting", "log10_p_text", "stderr_text", "log10_p"),
    "languages": ("language", "setting", "scored", "log10_p"),
    "marks": ("scheme", "k", "log10_p_text", "setting", "log10_p", "log10_p_40", "stderr_text", "temperature", "scored"),
    "languages_equal": ("language", "pairs", "log10_p", "stderr"),
    "purification": ("steps", "log10_p"),
    "purification_kept": ("passes", "steps", "log10_p"),
    "evasion": ("method", "value", "log10_p_text", "log10_p", "loss"),
    "evasion_kept": ("method", "value", "log10_p_text", "log10_p", "loss"),
    "power": ("rho", "effect", "pairs", "tokens", "extrapolated", "simulated"),
    "audit": ("case", "test", "scored", "log10_p", "log10_corrected", "ks_p", "outcome"),
    "summary": ("rho", "setting", "access", "watermark", "log10_p"),
}


class Chapter:
    """One run of one chapter."""

    def __init__(self, name: str, *, preset: str, seed: int = 0, key_env: str = "", **changes: Any) -> None:
        """``key_env`` names the environment variable that holds Alice's key; empty, a demonstration key is used.

        ``changes`` replace fields of the preset (dots written as ``__``). Raises ``PresetError`` for an unknown preset or
        field, ``KeyError`` for an environment variable that is not set, and ``ValueError`` for a seed that is no whole
        number from 0 on.
        """
        if isinstance(seed, bool) or seed != int(seed) or seed < 0:
            raise ValueError(f"seed must be a whole number from 0 on, got {seed!r}")
        self.name, self.seed, self.started = name, int(seed), time.monotonic()
        self.preset: Preset = load_preset(preset, **changes)
        self._quieten()
        self.world = World(self.preset, seed=self.seed, key=_key_from(key_env), store=Store(default_root()))
        self.tables: dict[str, list[dict[str, Any]]] = {}
        figures.set_style()
        if self.preset.device == "cuda" and self.world.device == "cpu":
            warnings.warn(
                f"preset {preset!r} is meant for a GPU and none is here; choose a GPU runtime or preset='laptop'",
                stacklevel=2,
            )

    def add(self, table: str, result: object = None, **named: Any) -> None:
        """Add one row: the columns in ``named``, and of the others the attributes of ``result`` that have their names.

        Raises ``ValueError`` for an unknown table, a column that the table has not, or one that nothing fills.
        """
        if table not in COLUMNS:
            raise ValueError(f"unknown table {table!r}; choose one of {', '.join(COLUMNS)}")
        found = {name: getattr(result, name) for name in COLUMNS[table] if name not in named and hasattr(result, name)}
        row = named | found
        if set(row) != set(COLUMNS[table]):
            raise ValueError(f"a row of {table!r} has the columns {COLUMNS[table]}, got {tuple(row)}")
        self.tables.setdefault(table, []).append({name: _plain(row[name]) for name in COLUMNS[table]})

    def value(self, table: str, column: str, **where: Any) -> Any:
        """The one recorded value of a column in the row that matches ``where``: what prose quotes."""
        rows = self.rows(table, **where)
        if len(rows) != 1:
            raise LookupError(f"{len(rows)} rows of {table!r} match {where}; exactly one is needed")
        return rows[0][column]

    def rows(self, table: str, **where: Any) -> list[dict[str, Any]]:
        """The rows of a table in this run that match ``where``."""
        return _matching(self.tables.get(table, []), where)

    def other_seeds(self, table: str, **where: Any) -> list[list[dict[str, Any]]]:
        """:meth:`rows` in the committed runs of this chapter with other seeds: what figures draw faintly.

        A run of other sizes is none of these, and an installed package has no records: the list may be empty.
        """
        runs = self._committed(self.preset, table).items()
        return [_matching(rows, where) for seed, rows in runs if seed != self.seed]

    def all_seeds(self, table: str, **where: Any) -> list[list[dict[str, Any]]]:
        """:meth:`rows` in this run, and then in each of :meth:`other_seeds`."""
        return [self.rows(table, **where), *self.other_seeds(table, **where)]

    def lower(self, table: str, column: str, one: dict[str, Any], other: dict[str, Any], **where: Any) -> str:
        """In how many seeds the mean of a column is lower where ``one`` holds than where ``other`` does: "in 2 of 3 seeds".

        ``where`` is common to both. A seed that lacks either counts as none.
        """
        both = zip(self.all_seeds(table, **where, **one), self.all_seeds(table, **where, **other), strict=True)
        return of_seeds(_mean(first, column) < _mean(second, column) for first, second in both if first and second)

    def on_real_model(self, table: str, *, by: Iterable[str], column: str = "log10_p", mean: bool = False) -> Any:
        """A column of a table in this run beside the committed runs on a real model: one more column for each seed.

        ``by`` are the columns that name a row. A row that a run lacks is a dash there. With ``mean`` the rows of one name
        are one experiment's repetitions, and their mean is shown; without it they raise ``ValueError``.
        """
        names = tuple(by)
        runs = {self.preset.name: self.tables.get(table, [])}
        runs |= {f"{REAL}, seed {seed}": rows for seed, rows in self._real(table).items()}
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for run, all_rows in runs.items():
            for key, rows in _grouped(all_rows, names).items():
                if len(rows) > 1 and not mean:
                    raise ValueError(f"by={list(names)} names several rows of {table!r}; add another of its columns")
                empty = dict(zip(names, key, strict=True)) | {f"{column}, {one}": None for one in runs}
                shown = found.setdefault(key, empty)
                shown[f"{column}, {run}"] = _mean(rows, column) if len(rows) > 1 else rows[0][column]
        if len(runs) == 1 and self.preset.name != REAL:
            self.say(f"On a real model (the tier `{REAL}`): not yet run.")
        return figures.table(list(found.values()))

    def beside_real_model(self, table: str, *, where: Mapping[str, Any] | None = None, **drawn: Any) -> Any:
        """The lines of a table against a share, in this run and on a real model, side by side.

        Rows that match ``where`` are drawn; ``drawn`` goes to :func:`radio_utils.figures.side_by_side`.
        """
        wanted = dict(where or {})
        real = [_matching(rows, wanted) for rows in self._real(table).values()]
        runs = {f"this run ({self.preset.name})": self.all_seeds(table, **wanted)}
        if self.preset.name != REAL:
            runs[REAL_NAME] = real
        return figures.side_by_side(runs, **drawn)

    def real(self, table: str, **where: Any) -> list[dict[str, Any]]:
        """:meth:`rows` of the first committed run on a real model; none where there is no run."""
        return next(iter(self.real_seeds(table, **where)), [])

    def real_seeds(self, table: str, **where: Any) -> list[list[dict[str, Any]]]:
        """:meth:`rows` of each committed run on a real model."""
        return [_matching(rows, where) for rows in self._real(table).values()]

    def _real(self, table: str) -> dict[int, list[dict[str, Any]]]:
        """By seed, the committed runs of this chapter on a real model, the tier ``pocket`` as it is now.

        A run of this tier itself has nothing to be compared with.
        """
        return {} if self.preset.name == REAL else self._committed(load_preset(REAL), table)

    def _committed(self, preset: Preset, table: str) -> dict[int, list[dict[str, Any]]]:
        """The rows of a table in the committed runs of this chapter at these sizes, by seed."""
        found = {}
        for path in _RECORDS.glob(f"seed-*/{preset.name}/{self.name}.json"):
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["config_hash"] == config_hash(preset, record["seed"]) and table in record["tables"]:
                found[int(record["seed"])] = record["tables"][table]
        return dict(sorted(found.items()))

    def across_seeds(self, table: str, column: str, **where: Any) -> list[Any]:
        """:meth:`value` in this run, and then in each of :meth:`other_seeds` that has the row."""
        others = self.other_seeds(table, **where)
        return [self.value(table, column, **where), *(rows[0][column] for rows in others if len(rows) == 1)]

    def mean(self, table: str, column: str, **where: Any) -> float:
        """The mean of a column over the rows, of several runs say, that match ``where``."""
        rows = self.rows(table, **where)
        if not rows:
            raise LookupError(f"no row of {table!r} matches {where}")
        return _mean(rows, column)

    def means(self, table: str, columns: Sequence[str], *, by: Sequence[str], **where: Any) -> list[dict[str, Any]]:
        """The means of ``columns`` over the rows (of several runs, say) that agree in the columns ``by``: a short table."""
        return [
            dict(zip(by, key, strict=True)) | {name: _mean(rows, name) for name in columns}
            for key, rows in _grouped(self.rows(table, **where), by).items()
        ]

    def say(self, text: str) -> None:
        """Show a paragraph. Its numbers are filled in from the record by the caller, never typed."""
        from IPython.display import Markdown, display

        display(Markdown(" ".join(text.split())))

    def show(self, table: str, *, columns: Iterable[str] | None = None, caption: str = "") -> Any:
        """The recorded table, styled for the page."""
        return figures.table(self.tables[table], columns=columns, caption=caption)

    def record(self) -> Path:
        """Write ``results/<preset>/<chapter>.json``, all or nothing, and return its path."""
        folder = Path(os.environ.get("RADIO_UTILS_RESULTS", "results")) / self.preset.name
        path = folder / f"{self.name}.json"
        taken = self.world.sources()
        write_json(
            path,
            {
                "chapter": self.name,
                "preset": self.preset.name,
                "seed": self.seed,
                "config_hash": self.config_hash(),
                **({"models": taken} if taken else {}),
                "versions": versions(),
                "hardware": hardware(),
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "seconds": round(time.monotonic() - self.started, 1),
                "tables": self.tables,
            },
        )
        return path

    def config_hash(self) -> str:
        """Hash of every size of the preset and the seed."""
        return config_hash(self.preset, self.seed)

    @staticmethod
    def _quieten() -> None:
        """Pages show what was measured, not how the libraries chat about it."""
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()


def config_hash(preset: Preset, seed: int) -> str:
    """Hash of every size of the preset and the seed. A field that came later names nothing at its default."""
    sizes = preset.model_dump()
    if preset.precision == Preset.model_fields["precision"].default:
        del sizes["precision"]
    text = json.dumps([sizes, seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_seeds(hits: Iterable[bool]) -> str:
    """In how many seeds something is so, for prose: "in 2 of 3 seeds"."""
    found = [bool(hit) for hit in hits]
    return f"in {sum(found)} of {len(found)} seeds" if len(found) != 1 else f"in {sum(found)} of 1 seed"


def least_and_most(values: Iterable[float], digits: int = 2) -> str:
    """The range of a number over the seeds, for prose: "0.61 to 0.66"."""
    found = sorted(values)
    shown = [f"{value:.{digits}f}" for value in (found[0], found[-1])]
    return shown[0] if shown[0] == shown[1] else " to ".join(shown)


def power_of_ten(log10_p: float) -> str:
    """A p-value for prose, as a power of ten: $10^{-12.3}$, or the plain number down to a thousandth."""
    return f"{10**log10_p:.2g}" if log10_p > -3 else f"$10^{{{log10_p:.1f}}}$"


def percent(share: float) -> str:
    """A share for prose: 5 %."""
    return f"{100 * share:g} %"


def _matching(rows: list[dict[str, Any]], where: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in rows if all(_same(row[name], value) for name, value in where.items())]


def _grouped(rows: Iterable[dict[str, Any]], by: Sequence[str]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The rows that agree in the columns ``by``, in the order of their first."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return groups


def _mean(rows: list[dict[str, Any]], column: str) -> float:
    return float(np.mean([row[column] for row in rows]))


def _key_from(variable: str) -> str | None:
    if not variable:
        return None
    if not os.environ.get(variable):
        raise KeyError(f"key_env={variable!r} is not set in the environment; export it, or leave key_env empty")
    return os.environ[variable]


def _plain(value: Any) -> Any:
    """Numbers as Python has them; NaN and infinity become None, because strict JSON has neither."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    raise TypeError(f"a table holds numbers, strings, booleans and None, got {type(value).__name__}: {value!r}")


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float | int):
        return math.isclose(left, right, abs_tol=1e-12)
    return bool(left == right)
