"""How often a test may convict somebody who is innocent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVELS = (0.05, 0.01, 0.001)


def check_false_alarms(log10_p: Sequence[float]) -> None:
    """The share of verdicts at or below each level is no larger than chance explains, ninety-nine times in a hundred."""
    p = 10.0 ** np.asarray(log10_p, float)
    for level in LEVELS:
        alarms, most = int(np.sum(p <= level)), int(stats.binom.ppf(0.995, p.size, level))
        assert alarms <= most, f"{alarms} of {p.size} innocents at level {level}, at most {most} are chance"
