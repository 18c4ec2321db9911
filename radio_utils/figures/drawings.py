"""Drawings of the book's mechanisms, made from the tokens and plans that a chapter has at hand.

Each one shows the pairs that the test itself would take: what is left out of a drawing is left out of the evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from radio_utils import evidence as ev
from radio_utils.figures.boxes import Cell, Sheet, shown
from radio_utils.figures.style import BLUE, GREEN, GREY, VERMILION
from radio_utils.predictions import Places, Predictions
from radio_utils.watermarks import Watermark

Ids = NDArray[np.int64]
_LEGEND: tuple[tuple[Cell], ...] = ((("green", "green"),), (("not green", "red"),))


def windows_and_lists(tokenizer: Any, text: ArrayLike, candidates: Sequence[ArrayLike], wm: Watermark) -> Figure:
    """Place by place of a text: the window, tokens that might follow with their colours, and the one that was drawn.

    ``text`` has k tokens and then as many as ``candidates`` has rows; a row holds ids to show, and what was drawn is added
    where it is not among them. Green means a score above the middle of the scheme's law.
    """
    ids, k = np.asarray(text, np.int64), wm.window
    if ids.size != k + len(candidates):
        raise ValueError(f"candidates must have a row for each of {ids.size - k} tokens, got {len(candidates)}")
    sheet = Sheet()
    for t, row in enumerate(candidates, start=k):
        window, drawn = ids[t - k : t], int(ids[t])
        after = np.asarray(row, np.int64)
        after = after if drawn in after else np.append(after, drawn)
        looks = _colours(np.repeat(window[None], after.size, axis=0), after, wm)
        cells = [((shown(tokenizer, token), "window"),) for token in window] + [(("→", "none"),)]
        for token, look in zip(after.tolist(), looks, strict=True):
            bold = "green, drawn" if look == "green" else "red, drawn"
            cells.append(((shown(tokenizer, token), bold if token == drawn else look),))
        sheet.strip(cells, indent=24)
        sheet.space()
    sheet.strip([(("window", "window"),), *_LEGEND, (("drawn", "green, drawn"),), (("drawn", "red, drawn"),)])
    return sheet.figure()


def reading_mode(tokenizer: Any, found: Predictions, wm: Watermark, *, places: int = 20) -> Figure:
    """The first places of each text, as B was fed it: above what he has just read, below what he expects next.

    What he expects is scored where the list of its window is still sealed when all these texts are followed side by side
    (:mod:`radio_utils.predictions`); it is dashed where a text has drawn from that list before. Prompts are taken to hold
    all that stood before the texts (``full_context``), as in this book.
    """
    where = Places.of(found, wm.window, True)
    scored = where.known & (where.predicted >= 0)
    scored &= where.sealed(ev.shared_by(wm))
    scored[scored] = ~where.explained(scored, any_window=ev.shared_by(wm) is not None)
    looks = np.full(scored.size, "left out", object)
    looks[scored] = _colours(where.windows(scored), where.predicted[scored], wm)
    sheet = Sheet()
    for number, (begin, start, size) in enumerate(zip(where.begins, found.starts, where.sizes, strict=True)):
        sheet.say(f"text {number + 1}: read above, expected next below")
        here = range(begin + max(start, 1), min(begin + max(start, 1) + places, begin + size))
        sheet.strip([
            ((shown(tokenizer, where.ids[at - 1]), "plain"), (shown(tokenizer, where.predicted[at]), looks[at]))
            for at in here
        ])  # fmt: skip
        sheet.space()
    sheet.strip([*_LEGEND, (("not scored: its list is open", "left out"),)])
    return sheet.figure()


def prompt_exclusion(tokenizer: Any, prompt: ArrayLike, answer: ArrayLike, wm: Watermark, *, longest: int = 48) -> Figure:
    """A prompt and its answer: which windows of the prompt come again, and which places of the answer that leaves to score.

    Of both the first ``longest`` tokens are drawn; all of the prompt counts.
    """
    asked, said, k = np.asarray(prompt, np.int64), np.asarray(answer, np.int64), wm.window
    windows, tokens = _places(said, wm)
    scored = _holds(_evidence(said, wm, prompts=[asked]), windows, tokens)
    again = np.zeros(asked.size, bool)
    if asked.size >= k:
        own = np.lib.stride_tricks.sliding_window_view(asked, k)
        for i in np.flatnonzero(ev.rows_among(own, windows)) if len(windows) else ():
            again[i : i + k] = True
    sheet = Sheet()
    sheet.say("prompt")
    sheet.strip([((shown(tokenizer, t), "window" if a else "plain"),) for t, a in zip(asked, again, strict=True)][:longest])
    sheet.space()
    sheet.say("answer")
    first = said.size - len(tokens)
    looks = ["plain"] * first + _looks(scored, windows, tokens, wm)
    sheet.strip([((shown(tokenizer, t), look),) for t, look in zip(said, looks, strict=True)][:longest])
    sheet.space()
    sheet.strip([(("comes again", "window"),), *_LEGEND, (("not scored", "left out"),)])
    return sheet.figure()


def filtered(
    tokenizer: Any, prompt: ArrayLike, answer: ArrayLike, wm: Watermark, keep: ArrayLike, *, longest: int = 24
) -> Figure:
    """The filter φ on one answer: above the window's last token, in φ or not; below the token that was said after it."""
    said = np.asarray(answer, np.int64)
    windows, tokens = _places(said, wm)
    found = _evidence(said, wm, prompts=[prompt], keep=keep)
    kept = ev.Filter(keep, found.packing).passing(found.packing.pack_windows(windows))
    scored = _holds(found, windows, tokens)
    looks = _looks(scored, windows, tokens, wm)
    columns = [
        ((shown(tokenizer, window[-1]), "window" if inside else "filtered"), (shown(tokenizer, token), look))
        for window, inside, token, look in zip(windows, kept, tokens, looks, strict=True)
    ]
    sheet = Sheet()
    sheet.say("window above, what was said after it below")
    sheet.strip(columns[:longest])
    sheet.space()
    sheet.strip([(("in φ", "window"),), (("not in φ", "filtered"),), *_LEGEND, (("not scored", "left out"),)])
    return sheet.figure()


def bets(
    labels: Sequence[str], scores: ArrayLike, *, gamma: float, guess: float, alpha: float, ax: Axes | None = None
) -> Axes:
    """Wealth after each of a few pairs that are bet on with one guess, with the line 1/α at which it convicts.

    ``scores`` [n] are 1 for green and 0 for red pairs, ``gamma`` is the chance of green under H₀ and ``guess`` what the
    bettor takes for Bob's.
    """
    ax = ax or plt.subplots()[1]
    green = np.asarray(scores, np.float64) == 1
    paid = np.where(green, guess / gamma, (1 - guess) / (1 - gamma))
    wealth = np.cumprod(np.append(1.0, paid))
    ax.plot(range(wealth.size), wealth, color=GREY, lw=1, drawstyle="steps-post")
    after = np.arange(1, wealth.size)
    ax.scatter(after[green], wealth[1:][green], color=GREEN, s=55, zorder=3, label=f"green: × {guess / gamma:.2g}")
    hollow: dict[str, Any] = {"facecolors": "white", "edgecolors": VERMILION, "linewidths": 1.8}
    ax.scatter(after[~green], wealth[1:][~green], s=55, zorder=3, label=f"red: × {(1 - guess) / (1 - gamma):.2g}", **hollow)
    ax.axhline(1 / alpha, color=GREY, ls="--", lw=1)
    ax.text(0.01, 1 / alpha, "1/α", color=GREY, size=9, va="bottom", transform=ax.get_yaxis_transform())
    ax.set_yscale("log")
    ax.set_ylim(min(0.5, wealth.min() / 1.5), 2 * max(1 / alpha, wealth.max()))
    names: dict[str, Any] = {"family": "DejaVu Sans Mono", "rotation": 90, "size": 9, "parse_math": False}
    ax.set_xticks(range(wealth.size), ["", *labels], **names)
    ax.set(xlabel="pairs, in the order in which they come", ylabel="wealth E")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return ax


def audit_plan(plan: Mapping[str, Any]) -> Figure:
    """The plan of an audit, as ``plan.json`` has it: which tests are run, the share of α of each, and what convicts."""
    level = plan["level_of_each_test"]
    shares = round(plan["alpha"] / level)
    unseen = shares - sum(one["applies"] for one in plan["tests"])
    sheet = Sheet()
    sheet.strip([((f"α = {plan['alpha']:g}", "window"),), ((f"→ shared among m = {shares}", "none"),)])
    sheet.space()
    for one in plan["tests"]:
        share: Cell = (f"α/m = {level:.2g}", "green") if one["applies"] else ("not run", "left out")
        sheet.strip([(share,), ((one["test"], "none"),)])
        if not one["applies"]:
            sheet.say(one["why"], indent=4)
            sheet.space()
    if unseen > 0:
        sheet.strip([((f"α/m = {level:.2g}", "filtered"),), ((f"{unseen} more that another key would allow", "none"),)])
    sheet.space()
    sheet.strip([(("convicted if min p ≤ α/m", "window"),)])
    return sheet.figure()


def _places(text: Ids, wm: Watermark) -> tuple[Ids, Ids]:
    """The windows [n, k] and tokens [n] of an answer, from its first token on where the scheme's marks start there."""
    padded = np.concatenate([np.full(wm.window, -1), text]) if wm.marks_start else text
    if padded.size <= wm.window:
        return np.zeros((0, wm.window), np.int64), np.zeros(0, np.int64)
    return np.lib.stride_tricks.sliding_window_view(padded, wm.window)[:-1], padded[wm.window :]


def _evidence(answer: Ids, wm: Watermark, **options: Any) -> ev.Evidence:
    """The pairs of one answer that the closed test scores."""
    return ev.collect(
        [answer], wm.window, wm.vocab_size, shared=ev.shared_by(wm), hidden=True, from_start=wm.marks_start, **options
    )


def _holds(found: ev.Evidence, windows: Ids, tokens: Ids) -> NDArray[np.bool_]:
    return found.holds(found.packing.pack_pairs(windows, tokens))


def _looks(scored: NDArray[np.bool_], windows: Ids, tokens: Ids, wm: Watermark) -> list[str]:
    colours = _colours(windows, tokens, wm)
    return [colour if one else "left out" for colour, one in zip(colours, scored, strict=True)]


def _colours(windows: Ids, tokens: Ids, wm: Watermark) -> list[str]:
    scores = wm.scores(windows, tokens) if len(tokens) else np.zeros(0)
    return ["green" if score > wm.law.median else "red" for score in scores]


def threat_model() -> Figure:
    """Who gives what to whom: the diagram of the threat model."""
    left, right = 0.27, 0.8
    boxes = {
        "Alice's model A\nkey s": (left, 0.93, BLUE), "watermarked text\n$D^A$": (left, 0.72, GREY),
        "Bob's data D\nshare ρ from A": (left, 0.5, VERMILION), "suspect B": (left, 0.29, VERMILION),
        "other data": (right, 0.5, GREY), "base model $B_0$": (right, 0.29, GREY),
        "Alice's test\nkey s, p-value": (left, 0.07, BLUE),
    }  # fmt: skip
    arrows = {
        (0, 1): "writes", (1, 2): "", (2, 3): "fine-tuning", (4, 2): "", (5, 3): "",
        (3, 6): "open: logits\nclosed: answers",
    }  # fmt: skip
    figure, ax = plt.subplots(figsize=(4.6, 4.8), dpi=160)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_axis_off()
    style = {"boxstyle": "round,pad=0.4", "fc": "white", "lw": 2}
    drawn = [
        ax.text(x, y, label, ha="center", va="center", fontsize=10, bbox=style | {"ec": whose})
        for label, (x, y, whose) in boxes.items()
    ]
    for (start, end), label in arrows.items():
        (x0, y0), (x1, y1) = drawn[start].get_position(), drawn[end].get_position()
        line = {"arrowstyle": "->", "color": GREY, "lw": 1.5, "shrinkA": 2, "shrinkB": 2}
        patches = {"patchA": drawn[start].get_bbox_patch(), "patchB": drawn[end].get_bbox_patch()}
        ax.annotate("", (x1, y1), (x0, y0), arrowprops=line | patches)
        ax.text(x0 + 0.03, (y0 + y1) / 2, label, ha="left", va="center", fontsize=9, color="#333333")
    return figure
