"""The book's figures: one style, a colour-blind-safe palette, labelled axes, error bars where there is an error."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from radio_utils.detection import NullAudit
from radio_utils.watermarks import Watermark

# Okabe and Ito's palette, told apart in every common form of colour blindness
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#6B6B6B",
)  # fmt: skip
_THRESHOLD = -3.0  # where the figures draw a line: p = 1/1000


def set_style() -> None:
    """The look of every figure."""
    sns.set_theme(context="notebook", style="ticks", palette=[BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY])
    matplotlib.rcParams.update(
        {
            "figure.figsize": (7.2, 4.0), "figure.dpi": 110, "savefig.bbox": "tight", "axes.spines.top": False,
            "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False, "font.size": 11,
        }
    )  # fmt: skip


Rows = Sequence[Mapping[str, Any]]


def log10_p_against_share(
    rows: Rows,
    *,
    series: str,
    labels: Mapping[Any, str],
    x: str = "rho",
    others: Sequence[Rows] = (),
    ax: Axes | None = None,
) -> Axes:
    """log10 p against ρ (or another share), one line for each value of the column ``series``.

    ``others`` are the rows of runs with other seeds, drawn faintly in the colour of their series.
    """
    ax = _series(rows, others, x=x, y="log10_p", series=series, labels=labels, ax=ax)
    _share_axis(ax, [row[x] for row in rows], x)
    _log10_p_axis(ax)
    ax.legend()
    return ax


def z_against_share(
    rows: Rows, *, series: str, labels: Mapping[Any, str], others: Sequence[Rows] = (), ax: Axes | None = None
) -> Axes:
    """Standard deviations of evidence against ρ, as :func:`log10_p_against_share`."""
    ax = _series(rows, others, x="rho", y="z", series=series, labels=labels, ax=ax)
    ax.axhspan(-1.96, 1.96, color=GREY, alpha=0.15, lw=0, label="95 % of innocents")
    _share_axis(ax, [row["rho"] for row in rows], "rho")
    ax.set_ylabel("evidence z (standard deviations)")
    ax.legend()
    return ax


def _series(
    rows: Rows, others: Sequence[Rows], *, x: str, y: str, series: str, labels: Mapping[Any, str], ax: Axes | None
) -> Axes:
    """One line with markers for each label, and thin ones without for other seeds."""
    ax = ax or plt.subplots()[1]
    markers = itertools.cycle("osD^vP")
    for value, label in labels.items():
        runs = [sorted((100 * row[x], row[y]) for row in run if row[series] == value) for run in (rows, *others)]
        (line,) = ax.plot(*np.array(runs[0]).reshape(-1, 2).T, marker=next(markers), label=label)
        for run in runs[1:]:
            ax.plot(*np.array(run).reshape(-1, 2).T, color=line.get_color(), lw=1, alpha=0.35)
    return ax


def _share_axis(ax: Axes, shares: Sequence[float], x: str) -> None:
    """The axis of a share, the same in every figure: linear up to 1 %, so that 0 has a place, then logarithmic."""
    ax.set_xscale("symlog", linthresh=1)
    ticks = sorted({100 * share for share in shares})
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    name = {"rho": "share of Bob's data from Alice, ρ (%)", "d": "degree of supervision, d (%)"}.get(x, x)
    ax.set_xlabel(f"{name}; linear up to 1, logarithmic beyond")


def wealth(paths: Mapping[str, tuple[ArrayLike, ArrayLike]], *, alpha: float, xlabel: str, ax: Axes | None = None) -> Axes:
    """log10 of the wealth of a sequential test against a count, with the line at which it convicts."""
    ax = ax or plt.subplots()[1]
    markers = itertools.cycle("osD^vP")
    for label, (counts, log10_e) in paths.items():
        ax.plot(np.asarray(counts), np.asarray(log10_e), marker=next(markers), ms=4, label=label)
    ax.axhline(-np.log10(alpha), color=GREY, ls="--", lw=1)
    ax.text(0.99, -np.log10(alpha) + 0.1, "1/α", color=GREY, size=9, ha="right", transform=ax.get_yaxis_transform())
    ax.set_xscale("log")
    ax.set(xlabel=xlabel, ylabel="log10 of the wealth E")
    ax.legend()
    return ax


def p_curves(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, xlabel: str, ax: Axes | None = None) -> Axes:
    """log10 p against a count, one line for each named (count, log10 p) pair."""
    ax = ax or plt.subplots()[1]
    styles = itertools.cycle(["-", "--", "-.", ":"])
    for label, (counts, log10_p) in curves.items():
        ax.plot(np.asarray(counts), np.asarray(log10_p), ls=next(styles), lw=2, label=label)
    _log10_p_axis(ax)
    ax.set_xlabel(xlabel)
    ax.legend()
    return ax


def _log10_p_axis(ax: Axes) -> None:
    """A log10 p axis: even steps down to -10, where verdicts are made, and compressed below; a line at p = 0.001."""
    lowest = min(float(np.nanmin(line.get_ydata())) for line in ax.get_lines())
    ax.axhline(_THRESHOLD, color=GREY, ls="--", lw=1)
    ax.text(0.99, _THRESHOLD + 0.2, "p = 0.001", color=GREY, size=9, ha="right", transform=ax.get_yaxis_transform())
    ax.set_yscale("symlog", linthresh=10, linscale=1.6)
    ticks = [0, -3, -6, -10, *(-step * 10**power for power in range(1, 8) for step in (2, 5, 10))]
    last = next(i for i, tick in enumerate(ticks) if i == len(ticks) - 1 or tick <= lowest)
    ax.set_yticks(ticks[: last + 1], [f"{tick:,}".replace("-", "−") for tick in ticks[: last + 1]])
    ax.minorticks_off()
    ax.set_ylim(min(1.15 * lowest, 1.5 * _THRESHOLD), 0.6)
    ax.set_ylabel("log10 p  (lower: stronger evidence)")


def audit(audits: Mapping[str, NullAudit]) -> Figure:
    """Empirical distribution of each audit's p-values against the diagonal, with the 99 % band of uniform samples."""
    size = (min(3.6 * len(audits) + 0.6, 11), 3.6)
    figure, axes = plt.subplots(1, len(audits), figsize=size, sharey=True, squeeze=False)
    for ax, (name, one) in zip(axes[0], audits.items(), strict=True):
        ordered = np.sort(one.uniform_p)
        share = np.arange(1, ordered.size + 1) / ordered.size
        band = 1.628 / np.sqrt(ordered.size)  # Kolmogorov's 99 % point
        ax.fill_between([0, 1], [-band, 1 - band], [band, 1 + band], color=GREY, alpha=0.2, lw=0, label="99 % band")
        ax.plot([0, 1], [0, 1], color=GREY, lw=1)
        ax.plot(ordered, share, color=BLUE, lw=2, label=f"{one.keys} decoy keys")
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="p-value", title=name)
        ax.legend(loc="lower right", fontsize=9)
    axes[0, 0].set_ylabel("share of decoys with a smaller p")
    figure.tight_layout()
    return figure


def among_decoys(found: Mapping[str, tuple[float, ArrayLike]], *, ax: Axes | None = None) -> Axes:
    """Each test's log10 p under the real key (diamond) among those under decoy keys that nobody used (dots)."""
    ax = ax or plt.subplots(figsize=(7, 0.9 + 0.7 * len(found)))[1]
    scatter = np.random.default_rng(0)
    for place, (log10_p, decoys) in enumerate(found.values()):
        values = np.asarray(decoys, np.float64)
        ax.scatter(values, place + scatter.uniform(-0.25, 0.25, values.size), s=6, alpha=0.35, color=GREY, linewidths=0)
        ax.scatter([log10_p], [place], marker="D", s=70, color=VERMILION, zorder=3)
    ax.set_yticks(range(len(found)), list(found))
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_xscale("symlog", linthresh=5, linscale=1.5)
    lowest = min(float(np.min([log10_p, *np.asarray(decoys)])) for log10_p, decoys in found.values())
    ticks = [tick for tick in (-10_000, -1000, -100, -20, -10, -5, -3, -1, 0) if tick >= min(1.5 * lowest, -3)]
    ax.set_xticks(ticks, [f"−{-tick:,}" if tick else "0" for tick in ticks])
    ax.set_xlim(min(1.5 * lowest, -4), 0.3)
    ax.minorticks_off()
    ax.set(xlabel="log10 p  (further left: stronger evidence)")
    return ax


def two_distributions(panels: Mapping[str, tuple[ArrayLike, ArrayLike]], *, names: tuple[str, str], xlabel: str) -> Figure:
    """Two histograms a panel, on common axes."""
    size = (min(4.6 * len(panels), 11), 3.6)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False)
    everything = np.concatenate([np.concatenate([np.asarray(a), np.asarray(b)]) for a, b in panels.values()])
    bins = np.histogram_bin_edges(everything, bins=40, range=tuple(np.quantile(everything, [0.001, 0.999])))
    for ax, (title, pair) in zip(axes[0], panels.items(), strict=True):
        for values, name, colour, fill in zip(pair, names, (VERMILION, BLUE), (True, False), strict=True):
            ax.hist(
                np.asarray(values), bins=bins, density=True, histtype="stepfilled" if fill else "step",
                color=colour, alpha=0.45 if fill else 1.0, lw=2, label=name,
            )  # fmt: skip
        ax.set(title=title, xlabel=xlabel)
    axes[0, 0].set_ylabel("density")
    axes[0, 0].legend(fontsize=9)
    figure.tight_layout()
    return figure


def threat_model() -> Figure:
    """Who gives what to whom: the diagram of the threat model."""
    boxes = {
        "Alice's model A\nkey s": (0.09, 0.75, BLUE), "watermarked text\n$D^A$": (0.36, 0.75, GREY),
        "Bob's data D\nshare ρ from A": (0.63, 0.75, VERMILION), "suspect B": (0.91, 0.75, VERMILION),
        "other data": (0.36, 0.2, GREY), "base model $B_0$": (0.63, 0.2, GREY),
        "Alice's test\nkey s, p-value": (0.91, 0.2, BLUE),
    }  # fmt: skip
    arrows = {
        (0, 1): "writes", (1, 2): "", (2, 3): "fine-tuning", (4, 2): "", (5, 3): "",
        (3, 6): "open: logits\nclosed: answers",
    }  # fmt: skip
    figure, ax = plt.subplots(figsize=(10, 3.2))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_axis_off()
    style = {"boxstyle": "round,pad=0.5", "fc": "white", "lw": 2}
    drawn = [
        ax.text(x, y, label, ha="center", va="center", bbox=style | {"ec": whose}) for label, (x, y, whose) in boxes.items()
    ]
    for (start, end), label in arrows.items():
        (x0, y0), (x1, y1) = drawn[start].get_position(), drawn[end].get_position()
        line = {"arrowstyle": "->", "color": GREY, "lw": 1.5, "shrinkA": 2, "shrinkB": 2}
        patches = {"patchA": drawn[start].get_bbox_patch(), "patchB": drawn[end].get_bbox_patch()}
        ax.annotate("", (x1, y1), (x0, y0), arrowprops=line | patches)
        if label:
            across = y0 == y1
            where = ((x0 + x1) / 2, y0 + 0.09) if across else (x0 + 0.012, (y0 + y1) / 2)
            ax.text(*where, label, ha="center" if across else "left", va="center", fontsize=9, color=GREY)
    return figure


def bars(
    labels: Sequence[str],
    heights: ArrayLike,
    *,
    errors: ArrayLike | None = None,
    ylabel: str,
    xlabel: str,
    ax: Axes | None = None,
) -> Axes:
    """Bars with error bars."""
    ax = ax or plt.subplots()[1]
    ax.bar(list(labels), np.asarray(heights), yerr=errors, color=SKY, edgecolor=BLUE, capsize=4)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def with_errors(rows: Rows, *, series: str, ylabel: str, others: Sequence[Rows] = ()) -> Axes:
    """``value`` ± ``stderr`` at each ρ, one line for each value of the column ``series``; other seeds faintly."""
    ax = plt.subplots()[1]
    markers = itertools.cycle("osD^vP")
    for name in dict.fromkeys(row[series] for row in rows):
        runs = [
            sorted((100 * r["rho"], r["value"], r["stderr"]) for r in run if r[series] == name) for run in (rows, *others)
        ]
        shares, heights, errors = zip(*runs[0], strict=True)
        drawn = ax.errorbar(shares, heights, yerr=errors, marker=next(markers), capsize=4, label=name)
        for run in runs[1:]:
            ax.plot([r[0] for r in run], [r[1] for r in run], color=drawn.lines[0].get_color(), lw=1, alpha=0.35)
    _share_axis(ax, [row["rho"] for row in rows], "rho")
    ax.set_ylabel(ylabel)
    ax.legend()
    return ax


def means(
    rows: Rows,
    *,
    x: str,
    y: str,
    series: str | None = None,
    labels: Mapping[Any, str] | None = None,
    xlabel: str,
    ylabel: str = "log10 p  (lower: stronger evidence)",
    log: bool = False,
    others: Sequence[Rows] = (),
    ax: Axes | None = None,
) -> Axes:
    """Mean of ``y`` at each ``x`` over the rows that share it (runs), with its standard error; one line a series.

    ``others`` are the rows of other seeds, whose means are drawn faintly.
    """
    ax = ax or plt.subplots()[1]
    frame, markers = pd.DataFrame(list(rows)), itertools.cycle("osD^vP")
    groups = [("", frame)] if series is None else list(frame.groupby(series, sort=False))
    for name, part in groups:
        found = part.groupby(x)[y].agg(["mean", "sem"]).reset_index()
        label = None if series is None else (labels or {}).get(name, str(name))
        errors = found["sem"].fillna(0.0)
        drawn = ax.errorbar(found[x], found["mean"], yerr=errors, marker=next(markers), capsize=4, label=label)
        for run in others:
            same = pd.DataFrame([row for row in run if series is None or row[series] == name], columns=[x, y])
            ax.plot(same.groupby(x)[y].mean(), color=drawn.lines[0].get_color(), lw=1, alpha=0.35)
    if log:
        ax.set_xscale("log")
    ticks = sorted(frame[x].unique())
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if series is not None:
        ax.legend()
    return ax


def means_in_panels(
    panels: Mapping[str, Sequence[Rows]],
    *,
    x: str,
    y: str,
    series: str | None = None,
    xlabel: str = "",
    ylabel: str = "log10 p  (lower: stronger evidence)",
    log: bool = False,
) -> Figure:
    """:func:`means` side by side on one axis of ``y``: under each title this run's rows, then those of other seeds."""
    size = (min(5.0 * len(panels), 12), 3.8)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for ax, (title, (rows, *others)) in zip(axes[0], panels.items(), strict=True):
        means(rows, x=x, y=y, series=series, xlabel=xlabel, ylabel=ylabel, log=log, others=others, ax=ax)
        ax.set_title(title, fontsize=10)
        ax.label_outer()
        if series is not None:
            ax.get_legend().remove()
    if series is not None:
        axes[0, -1].legend(*axes[0, 0].get_legend_handles_labels(), bbox_to_anchor=(1, 1), loc="upper left")
    figure.tight_layout()
    return figure


def fit_and_loudness(rows: Rows, labels: Mapping[str, str], *, losses: Mapping[str, str]) -> Figure:
    """log10 p against Bob's losses, one panel a loss and one marker a factor: does the better fit make the louder trace?"""
    figure, axes = plt.subplots(1, len(losses), figsize=(5 * len(losses), 3.8), sharey=True, squeeze=False)
    for ax, (loss, name) in zip(axes[0], losses.items(), strict=True):
        markers = itertools.cycle("osD^vP")
        for factor, label in labels.items():
            points = [(row[loss], row["log10_p"]) for row in rows if row["factor"] == factor]
            if points:
                ax.scatter(*np.transpose(points), marker=next(markers), s=45, alpha=0.8, label=label)
        ax.invert_xaxis()
        ax.set(xlabel=f"{name} (nats a token); better fit to the right", ylabel="log10 p")
        ax.label_outer()
    axes[0, -1].legend()
    figure.tight_layout()
    return figure


def strength_and_loudness(rows: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[tuple[Any, ...]]]) -> Axes:
    """log10 p in Bob against log10 p in the text, mean and standard error over the runs of each watermark.

    ``groups`` lists watermarks, as (scheme, k, gamma, delta), under a label; those with one γ are joined by a line. Each
    point says its δ, or its γ where that is what varies.
    """
    ax = plt.subplots()[1]
    markers = itertools.cycle("osD^vP")
    for label, names in groups.items():
        points = []
        joined = len(names) > 1 and len({gamma for _, _, gamma, _ in names}) == 1
        for name in names:
            same = [row for row in rows if tuple(row[c] for c in ("scheme", "k", "gamma", "delta")) == name]
            found = [row["log10_p"] for row in same]
            error = np.std(found, ddof=1) / len(found) ** 0.5 if len(found) > 1 else 0.0
            points.append((same[0]["log10_p_text"], same[0]["stderr_text"], np.mean(found), error))
            if name[2] is not None:
                said = f"δ = {name[3]:g}" if joined else f"γ = {name[2]:g}"
                ax.annotate(said, (points[-1][0], points[-1][2]), (6, 6), textcoords="offset points", size=8, color=GREY)
        x, dx, y, dy = map(np.array, zip(*sorted(points), strict=True))
        line = "-" if joined else "none"
        ax.errorbar(x, y, xerr=dx, yerr=dy, marker=next(markers), capsize=3, label=label, ls=line)
    ax.set(xlabel="strength in the text: log10 p of 40 pairs", ylabel="loudness in Bob: log10 p")
    ax.legend()
    return ax


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
    pairs: dict[str, list[tuple[ArrayLike | None, int]]] = {}
    for title, text in texts.items():
        ids = np.asarray(text, np.int64)
        pairs[title] = [(None, int(token)) for token in ids[: wm.window]]
        if ids.size > wm.window:
            windows = np.lib.stride_tricks.sliding_window_view(ids, wm.window)[:-1]
            pairs[title] += zip(windows, ids[wm.window :].tolist(), strict=True)
    return coloured_pairs(tokenizer, pairs, wm)


def coloured_pairs(tokenizer: Any, strips: Mapping[str, Sequence[tuple[ArrayLike | None, int]]], wm: Watermark) -> Html:
    """As :func:`coloured`, of (window, token) pairs that need not be a text: what a model expects along one, for example.

    A token without a window is grey.
    """
    level = wm.law.median
    blocks = []
    for title, pairs in strips.items():
        windows = [np.asarray(window, np.int64) for window, _ in pairs if window is not None]
        scores = iter(wm.scores(windows, [token for window, token in pairs if window is not None]) if windows else ())
        marks = [None if window is None else bool(next(scores) > level) for window, _ in pairs]
        spans = "".join(_token(tokenizer.decode([int(i)]), mark) for (_, i), mark in zip(pairs, marks, strict=True))
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


_SETTINGS = ("open, supervised", "open, unsupervised", "closed, supervised", "closed, unsupervised")


def summary(rows: Sequence[Mapping[str, Any]]) -> Any:
    """log10 p of every setting (rows) at every share ρ (columns)."""
    frame = pd.DataFrame(list(rows))
    frame["watermark"] = frame["watermark"].map({True: "watermark", False: "membership"})
    frame["test"] = frame["access"] + ", " + frame["setting"]
    wide = frame.pivot_table(index=["watermark", "test"], columns="rho", values="log10_p", sort=False)
    wide.columns = [f"{100 * rho:g}\u00a0%" for rho in wide.columns]
    wide.index.names = [None, None]
    return wide.style.format(_three_digits).set_caption("log10 p by the share ρ; lower is stronger")


def story(rows: Rows, *, others: Sequence[Rows] = ()) -> Figure:
    """The book in one figure: log10 p against ρ in the four settings, from the rows of the summary table."""
    figure, ax = plt.subplots()
    lines, *faint = ([_named(row) for row in run if row["watermark"]] for run in (rows, *others))
    log10_p_against_share(lines, series="series", labels={name: name for name in _SETTINGS}, others=faint, ax=ax)
    return figure


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "series": f"{row['access']}, {row['setting']}"}


def convictions(runs: Sequence[Rows], *, level: float = _THRESHOLD) -> Any:
    """In how many runs each setting of the summary convicts, log10 p at most ``level``, at each share ρ: "2 of 3"."""
    rows = [_named(row) for run in runs for row in run if row["watermark"]]
    shares = sorted({row["rho"] for row in rows})
    table = []
    for name in _SETTINGS:
        cells = {}
        for share in shares:
            found = [row["log10_p"] <= level for row in rows if row["series"] == name and row["rho"] == share]
            cells[f"ρ = {100 * share:g}\u00a0%"] = f"{sum(found)} of {len(found)}"
        table.append({"test": name, **cells})
    return pd.DataFrame(table).style.hide(axis="index")
