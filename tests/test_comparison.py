"""A suspect against his base: exact tests of two sets of pairs, and a base with a trace that convicts nobody."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from innocents import check_false_alarms
from scipy import stats

import radio_utils as ru
from radio_utils import detection, evidence
from radio_utils.predictions import Predictions
from radio_utils.stats import tails


@pytest.mark.parametrize(("x", "n", "y", "m"), [(3, 5, 1, 6), (0, 4, 2, 3), (4, 4, 0, 4), (2, 9, 2, 9)])
def test_fisher_by_counting(x: int, n: int, y: int, m: int) -> None:
    green = x + y
    tail = sum(Fraction(math.comb(green, i) * math.comb(n + m - green, n - i), math.comb(n + m, n))
               for i in range(x, min(n, green) + 1) if n - i <= n + m - green)  # fmt: skip
    assert 10 ** tails.log10_fisher(x, n, y, m) == pytest.approx(float(tail), rel=1e-9)
    expected = stats.fisher_exact([[x, n - x], [y, m - y]], alternative="greater").pvalue
    assert 10 ** tails.log10_fisher(x, n, y, m) == pytest.approx(expected, rel=1e-9)


def test_deep_tails_and_empty_sides() -> None:
    assert tails.log10_fisher(900, 1000, 100, 1000) < -250
    assert tails.log10_fisher(3, 3, 0, 0) == tails.log10_fisher(0, 0, 2, 3) == 0.0
    assert tails.log10_exponential_ratio(0.0, 0, 1.0, 2) == 0.0


def test_means_of_exponentials_are_an_f_test() -> None:
    for total, count, other, others in ((12.0, 7, 5.0, 9), (3.0, 4, 8.0, 5)):
        f = (total / count) / (other / others)
        assert 10 ** tails.log10_exponential_ratio(total, count, other, others) == pytest.approx(
            stats.f.sf(f, 2 * count, 2 * others), rel=1e-9
        )


@pytest.mark.parametrize("rate", [0.25, 0.6])
def test_no_false_alarm_whatever_trace_the_base_has(rate: float) -> None:
    """The base is green too often; what the suspect adds is as green, and no more."""
    rng, size = np.random.default_rng(0), 60
    found = []
    for key in range(400):
        wm = ru.GreenList(f"key {key}", size, 1, 0.25)
        green = wm.green_rows(np.arange(size)[:, None])
        chance = np.where(green, rate / 0.25, (1 - rate) / 0.75)
        pairs = [rng.choice(size * size, 400, replace=False, p=(chance / chance.sum()).ravel()) for _ in range(2)]
        his, base = (evidence.from_pairs((one // size)[:, None], one % size, size) for one in pairs)
        found.append(detection.compare(his, base, wm).log10_p)
    check_false_alarms(found)


def test_a_guilty_suspect_stands_out_at_the_same_places() -> None:
    size = 400
    wm = ru.GreenList("alice", size, 1, 0.25)
    rng = np.random.default_rng(1)
    contexts = [rng.integers(size, size=30) for _ in range(100)]
    greens = [int(np.flatnonzero(row)[0]) for row in wm.green_rows(np.arange(size)[:, None])]

    def predicted(lean: float) -> Predictions:
        tokens: list[Any] = []
        for context in contexts:
            plain = rng.integers(size, size=context.size)
            learned = [greens[w] if rng.random() < lean else int(v) for w, v in zip(context, plain, strict=True)]
            tokens.append(np.array([-1, *learned], np.int64))
        return Predictions(tuple(contexts), np.zeros(len(contexts), np.int64), tuple(tokens))

    bob, base = predicted(0.5), predicted(0.0)
    pairs = bob.evidence(1, size, full_context=True), base.evidence(1, size, full_context=True, places_of=bob)
    verdict = detection.compare(*pairs, wm)
    assert verdict.log10_p < -1.5 and verdict.score > verdict.base_score
    assert detection.compare(pairs[1], pairs[0], wm).log10_p > -1
    with pytest.raises(ValueError, match="places_of must be predictions of the same texts"):
        base.evidence(1, size, places_of=Predictions(bob.contexts[:-1], bob.starts[:-1], bob.tokens[:-1]))


def test_gumbel() -> None:
    wm = ru.GumbelMax("alice", 50, 1)
    assert wm.law.log10_between(30.0, 10, 10.0, 10) < -1
