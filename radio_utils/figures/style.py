"""One look for all figures: a colour-blind-safe palette, and the defaults of matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import seaborn as sns

# Okabe and Ito's palette, told apart in every common form of colour blindness
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#6B6B6B",
)  # fmt: skip
THRESHOLD = -3.0  # where the figures draw a line: p = 1/1000

Rows = Sequence[Mapping[str, Any]]


def set_style() -> None:
    """The look of every figure."""
    sns.set_theme(context="notebook", style="ticks", palette=[BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY])
    matplotlib.rcParams.update(
        {
            "figure.figsize": (7.2, 4.0), "figure.dpi": 110, "savefig.bbox": "tight", "axes.spines.top": False,
            "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False, "font.size": 11,
        }
    )  # fmt: skip
