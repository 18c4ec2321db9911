"""Plots: labelled axes, one axis of ρ and one of log10 p for all chapters, error bars where there is an error."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from radio_utils.detection import NullAudit
from radio_utils.figures.pages import SETTINGS, with_series
from radio_utils.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, THRESHOLD, VERMILION, Rows


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
    _share_axis(ax, [row["rho"] for row in rows], "rho")
    _z_axis(ax)
    ax.legend()
    return ax


def side_by_side(
    runs: Mapping[str, Sequence[Rows]], *, series: str, labels: Mapping[Any, str], x: str = "rho", y: str = "log10_p"
) -> Figure:
    """:func:`log10_p_against_share` (or with ``y="z"`` :func:`z_against_share`) of several runs, one panel each, one scale.

    Of each run the first rows are drawn with markers and those of its other seeds faintly. A line that a run lacks is not
    drawn there.
    """
    figure, axes = plt.subplots(1, len(runs), figsize=(7.2 if len(runs) == 1 else 10, 4), sharey=True, squeeze=False)
    for ax, (name, run) in zip(axes[0], runs.items(), strict=True):
        if len(runs) > 1:
            ax.set_title(name, size=11)
        if not run:
            ax.set_xticks([])
            ax.text(0.5, 0.5, "not yet run", color=GREY, ha="center", transform=ax.transAxes)
            continue
        rows, *others = run
        there = {value: label for value, label in labels.items() if any(row[series] == value for row in rows)}
        _series(rows, others, x=x, y=y, series=series, labels=there, ax=ax)
        _share_axis(ax, [row[x] for row in rows], x)
    for ax in axes[0]:
        if y == "z":
            _z_axis(ax)
        else:
            drawn = [line.get_ydata() for one in axes[0] for line in one.get_lines() if line.get_label() in labels.values()]
            _log10_p_axis(ax, min((float(np.nanmin(values)) for values in drawn if len(values)), default=THRESHOLD))
        ax.label_outer()
    if len(runs) > 1:  # two of these labels would touch
        figure.supxlabel(axes[0, 0].get_xlabel(), size=axes[0, 0].xaxis.label.get_size())
        for ax in axes[0]:
            ax.set_xlabel("")
    axes[0, 0].legend()
    figure.tight_layout()
    return figure


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


def curves_in_panels(
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    *,
    xlabel: str,
    ylabel: str | None = None,
    chosen: float | None = None,
    log_x: bool = True,
) -> Figure:
    """What a knob does, as small multiples: curves of log10 p, or of ``ylabel`` on a logarithmic axis, on common axes.

    Each curve is (x, y). A dotted line marks x = ``chosen``.
    """
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.3 * columns + 0.6, 2.6 * rows + 0.5), sharex=True, sharey=True, squeeze=False
    )
    lowest = min(float(np.nanmin(y)) for curves in panels.values() for _, y in curves.values())
    for ax, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        colours = dict(zip(curves, itertools.cycle((BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)), strict=False))
        for (name, (x, y)), style in zip(curves.items(), itertools.cycle(["-", "--", "-.", ":"]), strict=False):
            ax.plot(np.asarray(x), np.asarray(y), ls=style, lw=2, color=colours[name], label=name)
        if log_x:
            ax.set_xscale("log")
        if ylabel is None:
            _log10_p_axis(ax, lowest)
        else:
            ax.set_yscale("log")
        ax.set_ylabel("")
        if chosen is not None:
            ax.axvline(chosen, color=GREY, ls=":", lw=1.5)
        ax.set_xlabel(xlabel)
        ax.set_title(title, fontsize=11)
        ax.label_outer()
    for ax in axes.flat[len(panels) - columns : len(panels)]:  # none is below these
        ax.tick_params(labelbottom=True)
        ax.set_xlabel(xlabel)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    figure.supylabel(ylabel or "log10 p  (lower: stronger evidence)", fontsize=11)
    handles = {name: line for ax in axes.flat for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    if len(handles) > 1:
        figure.legend(handles.values(), handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2)
    figure.tight_layout()
    return figure


def _z_axis(ax: Axes) -> None:
    """An axis of standard deviations, with the band that holds 95 % of innocents."""
    ax.axhspan(-1.96, 1.96, color=GREY, alpha=0.15, lw=0, label="95 % of innocents")
    ax.set_ylabel("evidence z (standard deviations)")


def _log10_p_axis(ax: Axes, lowest: float | None = None) -> None:
    """A log10 p axis: even steps down to -10, where verdicts are made, and compressed below; a line at p = 0.001."""
    if lowest is None:
        lowest = min(float(np.nanmin(line.get_ydata())) for line in ax.get_lines())
    ax.axhline(THRESHOLD, color=GREY, ls="--", lw=1)
    ax.text(0.99, THRESHOLD + 0.2, "p = 0.001", color=GREY, size=9, ha="right", transform=ax.get_yaxis_transform())
    ax.set_yscale("symlog", linthresh=10, linscale=1.6)
    ticks = [0, -3, -6, -10, *(-step * 10**power for power in range(1, 8) for step in (2, 5, 10))]
    last = next(i for i, tick in enumerate(ticks) if i == len(ticks) - 1 or tick <= lowest)
    ax.set_yticks(ticks[: last + 1], [f"{tick:,}".replace("-", "−") for tick in ticks[: last + 1]])
    ax.minorticks_off()
    ax.set_ylim(min(1.15 * lowest, 1.5 * THRESHOLD), 0.6)
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


def story(runs: Mapping[str, Sequence[Rows]]) -> Figure:
    """The book in one figure: log10 p against ρ in the four settings, from the rows of the summary tables.

    Each run has a panel: its rows, and then those of its other seeds.
    """
    drawn = {name: [[with_series(row) for row in rows if row["watermark"]] for rows in run] for name, run in runs.items()}
    return side_by_side(drawn, series="series", labels={name: name for name in SETTINGS})
