"""Tests of a sum at one target: scipy's distributions, and a law in other units."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from radio_utils.stats.laws import Bernoulli, Exponential, Histogram, Law, fair_bits

N = np.array([1.0, 7.0, 60.0, 900.0])


@pytest.mark.parametrize("scale", [0.3, 1.0, 40.0])
def test_exponentials_of_any_scale_equal_scipy(scale: float) -> None:
    test, effect = Exponential(scale).test_at(-3.0), 0.4 * scale
    expected = stats.gamma.sf(stats.gamma.isf(1e-3, N, scale=scale), N, scale=scale + effect)
    np.testing.assert_allclose(test.power(N, effect), expected, rtol=1e-9)
    seen = test.effect_seen(N, 0.8)
    np.testing.assert_allclose([test.power(N[[i]], one)[0] for i, one in enumerate(seen.tolist())], 0.8, rtol=1e-9)
    assert test.guess(effect, 0.9) == pytest.approx(Exponential().test_at(-3.0).guess(0.4, 0.9))


@pytest.mark.parametrize("law", [fair_bits(8), Histogram((0, 1, 5), (0.5, 0.4, 0.1), 0.25)])
def test_any_other_law_has_the_power_that_its_draws_have(law: Law) -> None:
    test, effect = law.test_at(-2.0), 0.15 * (law.largest - law.mean)
    totals = law.tilted_to(law.mean + effect).draw(60, 4000, np.random.default_rng(0))
    reached = np.mean(np.asarray(law.log10_tail(totals, np.full(4000, 60))) <= -2.0)
    assert test.power(np.array([60.0]), effect)[0] == pytest.approx(reached, abs=0.05)


@pytest.mark.parametrize("law", [Bernoulli(0.25), Exponential(), fair_bits(8)])
def test_the_largest_effect_is_one_that_can_be_planned(law: Law) -> None:
    test = law.test_at(-3.0)
    effect = min(test.largest_effect, 50.0)
    assert test.checked_effect(effect) == effect and test.power(np.array([30.0]), effect)[0] > 0.999
