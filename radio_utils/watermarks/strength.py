"""How strongly schemes mark: what a token scores that is drawn with the mark, by the way in which the draw is marked."""

from __future__ import annotations

import numpy as np
from scipy import special

from radio_utils.watermarks.base import Floats, Watermark

_LISTS = 200  # random lists, or twice as many as tournaments, of which the mean is taken


class Draws(Watermark):
    """Schemes that draw the token with the largest r^(1/p) and score −ln(1 − r)."""

    def excess(self, chances: Floats, generator: np.random.Generator) -> float:
        """Exact: Σ p·H(1/p) − 1, H the harmonic number; of two keys each draws, and scores, for its own share."""
        likely = chances[chances > 0]
        alone = float(likely @ (special.digamma(1.0 / likely + 1.0) + np.euler_gamma)) - 1.0
        return alone * self.law.variance / self.law.mean


class Biases(Watermark):
    """Schemes that add δ to the logits of green tokens, and score 1 for green."""

    delta: float

    def excess(self, chances: Floats, generator: np.random.Generator) -> float:
        """A mean over random lists."""
        p, gamma = _bulk(chances), self.law.mean
        green = (generator.random((_LISTS, p.size)) < gamma) @ p
        return float(np.mean(green * np.exp(self.delta) / (1.0 + green * np.expm1(self.delta)))) - gamma


class Tournaments(Watermark):
    """Schemes of ``depth`` layers with one bit a token, p ← p·(1 + g − Σpg) in each, that score the number of ones."""

    depth: int

    def excess(self, chances: Floats, generator: np.random.Generator) -> float:
        """A mean over random bits."""
        each = np.tile(_bulk(chances), (_LISTS // 2, 1))
        total = 0.0
        for _ in range(self.depth):
            # given p, the drawn token's bit is 1 with chance E[2G − G²] = ½ + (1 − Σp²)/4, where G = Σpg
            total += (1.0 - float((each * each).sum(axis=1).mean())) / 4.0
            bits = generator.random(each.shape, np.float32) < 0.5
            each = each * (1.0 + bits - (each * bits).sum(axis=1, keepdims=True))
        return total


def _bulk(chances: Floats) -> Floats:
    """The chances without the last thousandth, which makes no difference."""
    p = chances[: 1 + int(np.searchsorted(np.cumsum(chances), 1 - 1e-3))]
    found: Floats = p / p.sum()
    return found
