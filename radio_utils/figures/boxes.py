"""Tokens in boxes that flow like text, on a sheet that a phone and a screen both show in a readable size."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from radio_utils.figures.style import BLUE, GREEN, GREY, ORANGE, VERMILION

Cell = tuple[str, str]  # what a box says, and its look

_WIDTH = 330.0  # of a sheet, in points: 10 points are 11 pixels on a phone
_SIZE, _LETTER, _HEIGHT = 10, 6.02, 17.0  # of the font, of a letter and of a box, in points
_GAP, _LEADING = 4.0, 4.0  # between boxes, and between lines of them
_FONT = "DejaVu Sans Mono"  # comes with matplotlib, so that a letter is as wide everywhere
# Filled or hollow, thick or thin, whole or dashed: no look hangs on its colour alone
_LOOKS: dict[str, dict[str, Any]] = {
    "green": {"facecolor": "#b9e3d6", "edgecolor": GREEN, "linewidth": 1},
    "red": {"facecolor": "white", "edgecolor": VERMILION, "linewidth": 1},
    "green, drawn": {"facecolor": "#b9e3d6", "edgecolor": "black", "linewidth": 2.2},
    "red, drawn": {"facecolor": "white", "edgecolor": "black", "linewidth": 2.2},
    "window": {"facecolor": "#d5e8f5", "edgecolor": BLUE, "linewidth": 1},
    "left out": {"facecolor": "white", "edgecolor": GREY, "linewidth": 1, "linestyle": (0, (2, 2))},
    "filtered": {"facecolor": "#fbe9c8", "edgecolor": ORANGE, "linewidth": 1, "linestyle": (0, (2, 2))},
    "plain": {"facecolor": "#efefef", "edgecolor": "#efefef", "linewidth": 1},
}


class Sheet:
    """Lines of text and of boxes from top to bottom; the unit is the point.

    A box's look is the ``gid`` of its patch.
    """

    def __init__(self) -> None:
        self._boxes: list[tuple[float, float, float, str, str]] = []
        self._lines: list[tuple[float, str]] = []
        self._bottom = 0.0

    def say(self, text: str, *, indent: int = 0) -> None:
        """Add a paragraph, ``indent`` letters to the right."""
        margin = " " * indent
        for line in textwrap.wrap(text, int(_WIDTH / _LETTER), initial_indent=margin, subsequent_indent=margin):
            self._lines.append((self._bottom + _HEIGHT / 2, line))
            self._bottom += _HEIGHT - 2

    def strip(self, columns: Sequence[Sequence[Cell]], *, indent: int = 0) -> None:
        """Add columns of boxes, one below the other; what does not fit goes on below, ``indent`` points to the right."""
        x, deep = 0.0, max(map(len, columns), default=0) * _HEIGHT
        for column in columns:
            width = max(len(label) for label, _ in column) * _LETTER + 6
            if x > indent and x + width > _WIDTH:
                x, self._bottom = float(indent), self._bottom + deep + _LEADING
            for row, (label, look) in enumerate(column):
                self._boxes.append((x, self._bottom + row * _HEIGHT, width, label, look))
            x += width + _GAP
        self._bottom += deep + _LEADING

    def space(self) -> None:
        """Leave half a line free."""
        self._bottom += _HEIGHT / 2

    def figure(self) -> Figure:
        """What was added, as a figure of the sheet's width and as high as needed."""
        figure = plt.figure(figsize=((_WIDTH + 6) / 72, (self._bottom + 6) / 72), dpi=160)
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set(xlim=(-3, _WIDTH + 3), ylim=(self._bottom + 3, -3))
        ax.set_axis_off()
        font: dict[str, Any] = {"family": _FONT, "size": _SIZE, "va": "center_baseline", "parse_math": False}
        for x, y, width, label, look in self._boxes:
            if look != "none":
                shape = "round,pad=0,rounding_size=2"
                ax.add_patch(FancyBboxPatch((x, y + 1), width, _HEIGHT - 2, shape, gid=look, **_LOOKS[look]))
            ink = GREY if look == "left out" else "black"
            ax.text(x + width / 2, y + _HEIGHT / 2, label, ha="center", color=ink, **font)
        for y, line in self._lines:
            ax.text(0, y, line, color="#333333", **font | {"size": _SIZE - 1})
        return figure


def shown(tokenizer: Any, token: int, *, longest: int = 12) -> str:
    """A token as a box shows it: a space as ␣, a line's end as ⏎, and what the font lacks as □."""
    text = tokenizer.decode([int(token)]).replace("\n", "⏎").replace(" ", "␣")
    text = "".join(letter if ord(letter) in _glyphs() else "□" for letter in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(_FONT)).get_charmap())
