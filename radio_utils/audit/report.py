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
from radio_utils.audit.request import Request
from radio_utils.audit.verdict import UNSOUND, TestResult, Verdict
from radio_utils.files import atomic_write, write_json
from radio_utils.provenance import hardware, versions

TESTS = {
    "contrastive reading": "How its expectations differ from those of a model that never met the key, along unmarked texts",
    "reading, supervised": "What the model expects along texts that it may have been trained on",
    "reading, unsupervised": "What the model expects along marked texts that it cannot have seen",
    "answers, watched": "Its answers, scored as they came, until they sufficed",
    "answers, all": "Its answers to a number of prompts that was fixed beforehand",
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
        unsound=UNSOUND, alphas=verdict.alpha + sum(one["alpha"] for one in verdict.earlier),
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
    level, control = math.log10(verdict.alpha), verdict.control
    found = [f"{t.name}: {_BASE}" for t in verdict.tests if _of_base(t, verdict)]
    if verdict.outcome == "void":
        if control.leaks:
            found.append(_LEAKS)
        if any((t.ks_p is not None and t.ks_p < UNSOUND) or t.alarms is not None for t in verdict.tests if not t.sound):
            found.append(_MISBEHAVED)
    if control.strength_p is not None and control.strength_p < 0.0201:  # the least that 99 worlds can give
        found.append(_OTHER_PIPELINE)
    if verdict.outcome == "not convicted":
        for test in verdict.tests:
            if test.needed_pairs is not None and test.sound and (test.log10_p or 0.0) > level:
                found.append(
                    f"{test.name}: about {test.needed_pairs:,} distinct pairs in place of {test.scored:,} would convict "
                    f"nine times in ten, if the effect of {test.effect:.4f} that is seen here is real; it may be chance."
                )
        found.append(_FAINT)
    if verdict.outcome == "convicted":
        if verdict.of_answers:
            found.append(_ANSWERS)
        elif not verdict.settings.get("reference"):
            found.append(_CHAIN)
        decisive = verdict.decisive
        if decisive is not None and decisive.name.startswith("answers"):
            found.append(_NOT_LEARNED)
        found += [f"{_KNOWN_KEY} {verdict.short_key}".strip(), _THIRD_MODEL, _CHOSEN, _LICENCE, _REPEAT]
    return found


def _of_base(test: TestResult, verdict: Verdict) -> bool:
    """Whether a test would convict, were it not for the model that the suspect was made from."""
    if test.added is None or test.log10_p is None or test.log10_corrected is None:
        return False
    level = math.log10(verdict.alpha)
    return min(0.0, test.log10_p + math.log10(verdict.counted)) <= level < test.log10_corrected


_BASE = (
    "the suspect leans towards the key here, and the model that it was made from shows the trace too, so that this test "
    "does not tell what the suspect's owner added, and does not convict. Ask where that model's data came from."
)
_LEAKS = (
    "Reading convicts this suspect under keys that nobody used, on texts that were written under them for the purpose. So "
    "the marked texts themselves tell the key to whoever reads them, by the way in which they were chosen, cut into tokens "
    "or written, and no test of reading them can be believed. Contrastive reading of plain text is not concerned."
)
_OTHER_PIPELINE = (
    "The texts are marked more strongly, or more weakly, than all that Alice's model wrote for the re-marking control: its "
    "rank says little. Give the bias (delta), the temperature and the prompts with which the texts were written."
)
_CHAIN = (
    "Proof that the trace was there before: the verdict is about the suspect or a model that it was made from. Give that "
    "model as reference, and each test is one of what the suspect's owner added."
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
    "but they take their inputs as given, and decoy keys cannot show it; the re-marking control can, if what it writes is "
    "picked alike."
)
_REPEAT = (
    "A repetition with the same inputs that comes out otherwise: keep the key secret and the inputs as they are, so that "
    "others can repeat it."
)


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


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values as rows."""
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}: ") if isinstance(value, dict) else [(prefix + name, value)]
    return rows
