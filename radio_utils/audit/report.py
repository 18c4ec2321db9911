"""The verdict on paper: ``verdict.json`` for programs and ``report.html`` for people.

The page needs nothing beside itself, runs no script, and shows whatever a model or a file name says as text: all values
are escaped, and the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import shlex
import time
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from radio_utils import figures
from radio_utils.audit import tests
from radio_utils.audit.request import Request
from radio_utils.audit.verdict import UNSOUND, TestResult, Verdict
from radio_utils.files import atomic_write, write_json
from radio_utils.provenance import hardware, versions


def write(verdict: Verdict, folder: Path) -> None:
    """Write both files, each all or nothing."""
    about = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "versions": versions(),
        "hardware": hardware(),
        "command": command(verdict.settings | {"decoy_entropy": verdict.decoy_entropy}),
    }
    write_json(folder / "verdict.json", verdict.record() | about)
    atomic_write(folder / "report.html", page(verdict, about))


def command(settings: dict[str, Any]) -> str:
    """The command line that repeats an audit, in another folder. A key that Python was given is left to be filled in.

    In Python where a watermark was given, which no command line can hold.
    """
    usual = {one.name: one.default for one in dataclasses.fields(Request)} | {"mark": settings.get("mark")}
    given = {name: value for name, value in settings.items() if name != "output_dir" and value != usual[name]}
    if "mark" in settings:
        words = [f"{name}={value!r}" for name, value in given.items()]
        return f"radio_utils.audit.run(Request({', '.join(words)}, mark=MARK, output_dir='again'))"
    words = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(str(value))}")
        for name, value in given.items()
    ]
    if not settings["key_env"] and not settings["key_file"]:
        words.append("--key-file KEY")
    return " ".join(["python -m radio_utils.audit", *words, "--output-dir again"])


def page(verdict: Verdict, about: dict[str, Any]) -> str:
    """The report as one HTML page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["odds"] = odds
    environment.filters["one_digit"] = one_digit
    template = environment.from_string(resources.files("radio_utils.audit").joinpath("report.html").read_text("utf-8"))
    words = {one.name: tests.named(one.name).describe() for one in verdict.tests if one.applied}
    return template.render(
        v=verdict, about=about, words=words, conditions=dict.fromkeys(one.holds for one in words.values() if one.holds),
        of_base=[one.name for one in verdict.tests if _of_base(one, verdict)],
        plannable=[name for name in words if tests.named(name).plannable],
        picture=_picture(verdict), flat=_flat, unsound=UNSOUND, settings=_used(verdict.settings),
        alphas=min(1.0, verdict.alpha + sum(one["alpha"] for one in verdict.earlier)),
    )  # fmt: skip


def one_digit(value: float) -> str:
    """With one digit after the point, and never -0.0."""
    return f"{round(value, 1) + 0.0:.1f}"


def odds(log10_p: float) -> str:
    """A p-value in words: 1 in 2,000, or 1 in 10⁴⁴."""
    if log10_p > -0.01:
        return "1, or hardly less"
    if log10_p > -6:
        return f"1 in {10**-log10_p:,.0f}" if log10_p < -1 else f"1 in {10**-log10_p:.1f}"
    return "1 in 10" + f"{-log10_p:.0f}".translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _of_base(test: TestResult, verdict: Verdict) -> bool:
    """Whether a test would convict, were it not for the model that the suspect was made from."""
    if test.added is None or test.log10_p is None or test.log10_corrected is None:
        return False
    level = math.log10(verdict.alpha)
    return min(0.0, test.log10_p + math.log10(verdict.counted)) <= level < test.log10_corrected


def _picture(verdict: Verdict) -> str:
    """Each test's p among those of the decoys, as the text of a PNG image's address; empty without one."""
    shown = {t.name: (t.log10_p, t.null.log10_p) for t in verdict.tests if t.null is not None and t.log10_p is not None}
    if not shown:
        return ""
    drawn = io.BytesIO()
    # a figure of its own, not pyplot's: a notebook that has drawn none yet must go on to show its own
    with matplotlib.rc_context():
        figures.set_style()
        figure = Figure(figsize=(7, 0.9 + 0.7 * len(shown)))
        figures.among_decoys(shown, ax=figure.subplots())
        figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(drawn.getvalue()).decode()


def _used(settings: dict[str, Any]) -> dict[str, Any]:
    """The parameters that said something: a configuration or a watermark stands in place of some others."""
    if settings.get("engine_config") or settings.get("mark"):
        return {name: value for name, value in settings.items() if name not in ("scheme", "window", "gamma")}
    return settings


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values as rows."""
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}: ") if isinstance(value, dict) else [(prefix + name, value)]
    return rows
