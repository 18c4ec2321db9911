"""The verdict on paper: ``verdict.json`` for programs and ``report.html`` for people.

The page needs nothing beside itself, runs no script, and shows whatever a model or a file name says as text: all values
are escaped, and the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import shlex
import time
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from radio_utils import figures
from radio_utils.artifacts import atomic_write, write_json
from radio_utils.audit.request import Request
from radio_utils.audit.verdict import TRACE, UNSOUND, Verdict
from radio_utils.chapter import hardware, versions

TESTS = {
    "reading, supervised": "What the model expects along texts that it may have been trained on",
    "reading, unsupervised": "What the model expects along marked texts that it cannot have seen",
    "contrastive reading": "How its expectations differ from those of the model it was made from, along unmarked texts",
    "answers, watched": "Its answers, scored as they came, until they sufficed",
    "answers, all": "Its answers to a number of prompts that was fixed beforehand",
    "control": "The first test, on the model that the suspect was made from",
}


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
    """The command line that repeats an audit, in another folder. A key that Python was given is left to be filled in."""
    usual = {one.name: one.default for one in dataclasses.fields(Request)}
    words = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(str(value))}")
        for name, value in settings.items()
        if name != "output_dir" and value != usual[name]
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
    return template.render(
        v=verdict, about=about, descriptions=TESTS, picture=_picture(verdict), remarks=remarks(verdict), flat=_flat,
        trace=TRACE, unsound=UNSOUND, alphas=verdict.alpha + sum(one["alpha"] for one in verdict.earlier),
    )  # fmt: skip


def one_digit(value: float) -> str:
    """With one digit after the point, and never -0.0."""
    return f"{round(value, 1) + 0.0:.1f}"


def odds(log10_p: float) -> str:
    """A p-value in words: 1 in 2,000, or 1 in 10⁴⁴."""
    if log10_p > -0.01:
        return "1, as for any innocent"
    if log10_p > -6:
        return f"1 in {10**-log10_p:,.0f}" if log10_p < -1 else f"1 in {10**-log10_p:.1f}"
    return "1 in 10" + f"{-log10_p:.0f}".translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def remarks(verdict: Verdict) -> list[str]:
    """What would change this verdict."""
    found = []
    control = verdict.control
    if verdict.outcome == "void":
        if control is not None and control.log10_p is not None and control.log10_p <= TRACE:
            found.append(_BEFORE)
        if any(not test.sound for test in verdict.tests):
            found.append(_MISBEHAVED)
    if verdict.outcome == "not convicted":
        for test in verdict.tests:
            if test.needed_pairs is not None:
                found.append(
                    f"{test.name}: about {test.needed_pairs:,} distinct pairs in place of {test.scored:,} would convict "
                    f"nine times in ten, if the effect of {test.effect:.4f} that is seen here is real; it may be chance."
                )
        found.append(_FAINT)
    if verdict.outcome == "convicted":
        if verdict.of_answers:
            found.append(_ANSWERS)
        decisive = verdict.decisive
        if decisive is not None and decisive.name.startswith("answers"):
            found.append(_NOT_LEARNED)
        found += [f"{_KNOWN_KEY} {verdict.short_key}".strip(), _THIRD_MODEL, _CHOSEN, _LICENCE, _REPEAT]
    return found


_BEFORE = (
    "The model that the suspect was made from shows the trace as well. Whatever put it there, this audit cannot tell what "
    "the suspect's owner added. Give the right reference, or ask where its data came from."
)
_MISBEHAVED = (
    "Keys that nobody used do not behave as they must in a test above, so its p-value cannot be believed. Something is "
    "wrong with its evidence or its arithmetic, such as pairs that count more than once."
)
_FAINT = (
    "The suspect may have used so few of the texts, or changed them so much, that this much evidence cannot show it. No "
    "evidence is not evidence of innocence. A second audit with more text is a test of its own: whoever tries until one "
    "convicts must divide α among the tries."
)
_ANSWERS = (
    "Proof that the answers are not the suspect's, or that the marked model wrote or rewrote them. The tests take the file "
    "as given: keep a record of how the answers were obtained. A mean score close to that of the watermarked texts "
    "themselves is what the marked model writes, rather than what a model that learned from it does."
)
_NOT_LEARNED = (
    "Proof that the suspect had marked text before it when it answered. The tests of answers reject that its words know "
    "nothing of the key, not that it learned them in training: text that was retrieved for the prompt (a search engine, a "
    "store of documents), a system prompt or an earlier turn with marked text, answers kept from Alice's model, or a proxy "
    "that passes prompts on to her own API leave the same trace, and the last a far stronger one."
)
_KNOWN_KEY = (
    "Proof that the key was known to the suspect's owner, or to whoever wrote the suspect's other data: text written with "
    "the key by anyone leaves the same trace."
)
_THIRD_MODEL = (
    "Proof that the trace came by way of a third model: one that learned from Alice's text hands a weaker trace on to "
    "whoever learns from what it writes, or is made from it, and they need never have met her text."
)
_LICENCE = (
    "Proof that the watermarked texts, or answers of the marked model, reached the suspect by a way that their licence "
    "allows: the tests say that they were learned from, not how they were obtained."
)
_CHOSEN = (
    "Proof that texts, prompts or answers were picked because they score well under the key. The tests pick nothing by it, "
    "but they take their inputs as given, and decoy keys cannot show it."
)
_REPEAT = (
    "A repetition with the same inputs that comes out otherwise: keep the key secret and the inputs as they are, so that "
    "others can repeat it."
)


def _picture(verdict: Verdict) -> str:
    """Each test's p among those of the decoys, as the text of a PNG image's address; empty without one."""
    tests = [*verdict.tests, *([verdict.control] if verdict.control is not None else [])]
    shown = {t.name: (t.log10_p, t.null.log10_p) for t in tests if t.null is not None and t.log10_p is not None}
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


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values as rows."""
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}: ") if isinstance(value, dict) else [(prefix + name, value)]
    return rows
