"""What a page shows that is no plot: tables, dialogues, and texts whose tokens are marked."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from radio_utils.figures.style import THRESHOLD, Rows
from radio_utils.watermarks import Watermark


class Html:
    """A piece of HTML that notebooks and the rendered book show as it is."""

    def __init__(self, source: str) -> None:
        self.source = source

    def _repr_html_(self) -> str:
        return self.source

    def __repr__(self) -> str:
        return "HTML for a page"


def framed(page: str, *, height: int, title: str = "report") -> Html:
    """A whole HTML page in a frame ``height`` pixels high, in which no script runs and no request is made."""
    return Html(
        f'<iframe sandbox title="{html.escape(title)}" srcdoc="{html.escape(page)}" '
        f'style="width: 100%; height: {height}px; border: 1px solid #ccc"></iframe>'
    )


def coloured(tokenizer: Any, texts: Mapping[str, ArrayLike], wm: Watermark) -> Html:
    """Texts with each token marked: green-list tokens filled and underlined, others plain, unscored ones grey.

    In general a token is marked when its score is above the middle of its law: ½ for greens, ln 2 for Gumbel-max.
    """
    blocks = []
    for title, text in texts.items():
        ids, k = np.asarray(text, np.int64), wm.window
        marks: list[bool | None] = [None] * min(ids.size, k)
        if ids.size > k:
            windows = np.lib.stride_tricks.sliding_window_view(ids, k)[:-1]
            marks += (wm.scores(windows, ids[k:]) > wm.law.median).tolist()
        spans = "".join(_token(tokenizer.decode([i]), mark) for i, mark in zip(ids.tolist(), marks, strict=True))
        scored = [mark for mark in marks if mark is not None]
        share = f"{100 * sum(scored) / len(scored):.0f} % marked" if scored else "too short to score"
        heading = f'<div class="radio-title">{html.escape(title)} <small>({share})</small></div>'
        blocks.append(f'<div class="radio-text">{heading}{spans}</div>')
    return Html(_TEXT_STYLE + "".join(blocks))


_TEXT_STYLE = (
    "<style>.radio-text{margin:.6em 0;line-height:1.9;overflow-wrap:anywhere}.radio-title{font-weight:600}"
    ".radio-g{background:#b9e3d6;color:#06281f;border-bottom:2px solid #009E73;border-radius:2px}"
    ".radio-n{color:#888}</style>"
)


def _token(text: str, mark: bool | None) -> str:
    shown = html.escape(text).replace("\n", "⏎ ")
    if mark is None:
        return f'<span class="radio-n">{shown}</span>'
    return f'<span class="radio-g">{shown}</span>' if mark else f"<span>{shown}</span>"


def dialogue(question: str, answers: Mapping[str, str]) -> Html:
    """One question and several models' answers, as a table."""
    rows = "".join(
        f"<tr><th scope='row' style='white-space:nowrap;text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(answer)}</td></tr>"
        for name, answer in answers.items()
    )
    caption = f"<caption style='text-align:left'>{html.escape(question)}</caption>"
    return Html(f"<table class='radio-dialogue'>{caption}{rows}</table>")


_HEADERS = {
    "rho": "ρ", "d": "d", "k": "k", "log10_p": "log10 p", "scored": "scored pairs", "score": "mean score", "ks_p": "KS p",
    "log10_saddlepoint": "log10 p, saddlepoint", "log10_chernoff": "log10 p, Chernoff",
    "log10_p_fixed": "log10 p, all answers",
    "stderr_text": "standard error", "gamma": "γ", "delta": "δ", "effect": "effect (score − γ)",
    "simulated": "power, simulated", "pairs": "pairs needed", "tokens": "tokens needed",
    "min_log10_p": "smallest log10 p", "keys": "decoy keys", "log10_p_text": "log10 p of the text",
}  # fmt: skip


_MEASURES = ("min_log10_p", "z", "statistic", "value", "ks_p", "loss_first", "loss_last", "loss", "effect", "stderr_text")


def table(rows: Sequence[Mapping[str, Any]], *, columns: Iterable[str] | None = None, caption: str = "") -> Any:
    """Rows as a table with readable headers and rounded numbers."""
    frame = pd.DataFrame(list(rows))
    if columns is not None:
        frame = frame[list(columns)]
    formats: dict[str, Any] = {}
    for name in frame.columns:
        header = _HEADERS.get(name, name.replace("_", " "))
        if name in ("rho", "d", "alpha", "false_alarms"):
            formats[header] = lambda v: f"{100 * v:g}\u00a0%"
        elif name == "simulated":
            formats[header] = lambda v: f"{100 * v:.1f}\u00a0%"
        elif name in _MEASURES or name.startswith("log10_"):
            formats[header] = _three_digits
        elif name in ("score", "stderr"):
            formats[header] = lambda v: "–" if v is None or v != v else f"{v:.3f}"
        elif pd.api.types.is_integer_dtype(frame[name]):
            formats[header] = "{:,}"
        elif pd.api.types.is_float_dtype(frame[name]):
            formats[header] = _three_digits
    frame = frame.rename(columns=lambda name: _HEADERS.get(name, name.replace("_", " ")))
    return frame.style.hide(axis="index").format(formats).set_caption(caption)


def _three_digits(value: float | None) -> str:
    if value is None or value != value:
        return "–"
    if abs(value) >= 1000 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


SETTINGS = ("open, supervised", "open, unsupervised", "closed, supervised", "closed, unsupervised")


def summary(rows: Sequence[Mapping[str, Any]]) -> Any:
    """log10 p of every setting (rows) at every share ρ (columns)."""
    frame = pd.DataFrame(list(rows))
    frame["watermark"] = frame["watermark"].map({True: "watermark", False: "membership"})
    frame["test"] = frame["access"] + ", " + frame["setting"]
    wide = frame.pivot_table(index=["watermark", "test"], columns="rho", values="log10_p", sort=False)
    wide.columns = [f"{100 * rho:g}\u00a0%" for rho in wide.columns]
    wide.index.names = [None, None]
    return wide.style.format(_three_digits).set_caption("log10 p by the share ρ; lower is stronger")


def with_series(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the summary with the name of its setting, one of ``SETTINGS``."""
    return {**row, "series": f"{row['access']}, {row['setting']}"}


def convictions(runs: Sequence[Rows], *, level: float = THRESHOLD) -> Any:
    """In how many runs each setting of the summary convicts, log10 p at most ``level``, at each share ρ: "2 of 3"."""
    rows = [with_series(row) for run in runs for row in run if row["watermark"]]
    shares = sorted({row["rho"] for row in rows})
    table = []
    for name in SETTINGS:
        cells = {}
        for share in shares:
            found = [row["log10_p"] <= level for row in rows if row["series"] == name and row["rho"] == share]
            cells[f"ρ = {100 * share:g}\u00a0%"] = f"{sum(found)} of {len(found)}"
        table.append({"test": name, **cells})
    return pd.DataFrame(table).style.hide(axis="index")
