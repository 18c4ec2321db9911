"""Power planning: brute force and scipy's distributions, simulation, the laws of power, Heaps' law."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from radio_utils import GreenList, GumbelMax, compat, engines
from radio_utils.planning import (
    PairYield,
    Plan,
    TooManyPairsError,
    effect_seen,
    pairs_needed,
    power_at,
    simulate_power,
    tokens_needed,
)

GREEN, GUMBEL = GreenList("alice", 1000, 1), GumbelMax("alice", 1000, 1)
HALF, RARE = GreenList("alice", 1000, 1, gamma=0.5), GreenList("alice", 1000, 1, gamma=1 / 64)
SCHEMES: list[Any] = [GREEN, HALF, RARE, GUMBEL]


def brute_power(gamma: float, effect: float, log10_p: float, largest: int) -> np.ndarray:
    """Power for every n in 0 … largest, by looking at every number of greens."""
    found = np.zeros(largest + 1)
    for n in range(1, largest + 1):
        greens = np.arange(n + 2)
        critical = np.argmax(stats.binom.sf(greens - 1, n, gamma) <= 10.0**log10_p)
        found[n] = stats.binom.sf(critical - 1, n, gamma + effect)
    return found


CASES = [
    (GREEN, 0.2, -2.0, 0.8), (GREEN, 0.15, -3.0, 0.9), (GREEN, 0.7, -3.0, 0.99), (GREEN, 0.3, -1.0, 0.5),
    (GREEN, 0.74, -6.0, 0.9), (HALF, 0.2, -3.0, 0.9), (HALF, 0.45, -4.0, 0.95), (HALF, 0.12, -1.5, 0.3),
    (RARE, 0.05, -3.0, 0.9), (RARE, 0.9, -5.0, 0.999),
]  # fmt: skip


@pytest.mark.parametrize(("wm", "effect", "log10_p", "power"), CASES)
def test_green_lists_equal_brute_force(wm: GreenList, effect: float, log10_p: float, power: float) -> None:
    plan = pairs_needed(wm, effect, log10_p=log10_p, power=power)
    curve = brute_power(wm.gamma, effect, log10_p, 2 * plan.scored + 60)
    np.testing.assert_allclose(power_at(wm, effect, np.arange(curve.size), log10_p=log10_p), curve, rtol=1e-9, atol=1e-15)
    assert plan.scored == np.flatnonzero(curve < power)[-1] + 1
    assert plan.achieved == pytest.approx(curve[plan.scored], rel=1e-9)
    assert (plan.scheme, plan.effect, plan.target_log10_p, plan.power) == (wm.scheme, effect, log10_p, power)
    greens = math.floor(plan.scored * (wm.gamma + effect) + 1e-6)
    assert 10**plan.log10_p_expected == pytest.approx(stats.binom.sf(greens - 1, plan.scored, wm.gamma), rel=1e-8)


def test_the_saw_tooth_is_there_and_is_left_behind() -> None:
    plan = pairs_needed(GREEN, 0.2, log10_p=-2.0, power=0.8)
    teeth = power_at(GREEN, 0.2, np.arange(1, 1000), log10_p=-2.0)
    assert np.any(np.diff(teeth) < -0.02)
    lucky = int(np.argmax(teeth >= 0.8)) + 1
    assert lucky < plan.scored  # an n that has the power by luck, with larger ones that lack it
    assert np.all(teeth[plan.scored - 1 :] >= 0.8)
    assert teeth[plan.scored - 2] < 0.8


@pytest.mark.parametrize("wm", [GREEN, HALF, RARE])
@pytest.mark.parametrize(("effect", "log10_p"), [(0.02, -3.0), (0.2, -1.0), (0.2, -10.0), (0.49, -2.0)])
def test_the_power_lies_between_two_curves_that_never_fall(wm: GreenList, effect: float, log10_p: float) -> None:
    n = np.arange(1.0, 3000.0)
    lower, upper = wm.law.test_at(log10_p).bounds(n, effect)
    power = power_at(wm, effect, n, log10_p=log10_p)
    assert np.all((lower <= power + 1e-12) & (power <= upper + 1e-12))
    assert np.all(np.diff(lower) > -1e-12)
    assert np.all(np.diff(upper) > -1e-12)
    assert np.any(np.diff(power) < -1e-6)  # the power itself does fall


@pytest.mark.parametrize(
    ("effect", "log10_p", "power"), [(0.1, -3.0, 0.9), (0.5, -10.0, 0.99), (3.0, -2.0, 0.5), (0.02, -200.0, 0.9)]
)
def test_gumbel_max_equals_scipy(effect: float, log10_p: float, power: float) -> None:
    plan = pairs_needed(GUMBEL, effect, log10_p=log10_p, power=power)
    n = np.unique(np.geomspace(1, 2 * plan.scored, 50).round())
    expected = stats.gamma.sf(stats.gamma.isf(10.0**log10_p, n), n, scale=1 + effect)
    np.testing.assert_allclose(power_at(GUMBEL, effect, n, log10_p=log10_p), expected, rtol=1e-7, atol=1e-300)
    assert power_at(GUMBEL, effect, plan.scored - 1, log10_p=log10_p) < power <= plan.achieved
    assert np.all(np.diff(power_at(GUMBEL, effect, np.arange(1, 400), log10_p=log10_p)) >= -1e-12)
    assert plan.log10_p_expected == pytest.approx(float(GUMBEL.log10_p(plan.scored * (1 + effect), plan.scored)))


@pytest.mark.parametrize("wm", SCHEMES)
@pytest.mark.parametrize("power", [0.2, 0.9])
def test_simulation_agrees_within_four_standard_errors(wm: Any, power: float) -> None:
    generator = np.random.default_rng(3)
    for effect, log10_p in ((0.1, -3.0), (0.4, -8.0), (0.003, -2.0)):
        plan = pairs_needed(wm, effect, log10_p=log10_p, power=power)
        seen = simulate_power(wm, effect, plan.scored, log10_p=log10_p, repeats=4000, generator=generator)
        assert abs(seen - plan.achieved) <= 4 * math.sqrt(plan.achieved * (1 - plan.achieved) / 4000)


def test_a_simulation_under_hardly_any_effect_has_the_size_of_the_test() -> None:
    size = simulate_power(GREEN, 1e-9, 500, log10_p=-1.0, repeats=20_000, generator=np.random.default_rng(1))
    assert size <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / 20_000)
    assert power_at(GREEN, 1e-9, 500, log10_p=-1.0) <= 0.1 + 1e-6


effects = st.floats(0.005, 0.7)
targets = st.floats(-60.0, -0.31)
powers = st.floats(0.55, 0.995)
schemes = st.sampled_from(SCHEMES)


@settings(max_examples=60)
@given(schemes, effects, effects, targets, targets, powers, powers)
def test_less_effect_a_smaller_p_or_more_power_need_more_pairs(
    wm: Any, e1: float, e2: float, t1: float, t2: float, p1: float, p2: float
) -> None:
    if wm is HALF:
        e1, e2 = e1 / 2, e2 / 2
    if wm is RARE:
        e1, e2 = 1.3 * e1, 1.3 * e2
    e1, e2 = sorted((e1, e2))
    t1, t2 = sorted((t1, t2))
    p1, p2 = sorted((p1, p2))
    base = pairs_needed(wm, e2, log10_p=t2, power=p1)
    assert base.achieved >= p1
    assert power_at(wm, e2, base.scored - 1, log10_p=t2) < p1
    assert pairs_needed(wm, e1, log10_p=t2, power=p1).scored >= base.scored
    assert pairs_needed(wm, e2, log10_p=t1, power=p1).scored >= base.scored
    assert pairs_needed(wm, e2, log10_p=t2, power=p2).scored >= base.scored


@settings(max_examples=60)
@given(schemes, st.integers(1, 10**7), targets, powers, st.integers(0, 2**32))
def test_the_effect_seen_is_the_one_with_the_power(wm: Any, scored: int, log10_p: float, power: float, seed: int) -> None:
    if wm is not GUMBEL and wm.log10_p(scored, scored) > log10_p:
        with pytest.raises(ValueError, match="too few for log10_p"):
            effect_seen(wm, scored, log10_p=log10_p, power=power)
        return
    effect = effect_seen(wm, scored, log10_p=log10_p, power=power)
    assert effect > 0
    if wm is GUMBEL or wm.gamma + effect < 1 - 1e-9:
        assert power_at(wm, effect, scored, log10_p=log10_p) == pytest.approx(power, rel=1e-6)
        more = scored + int(np.random.default_rng(seed).integers(scored + 50))
        bounds = wm.law.test_at(log10_p).bounds(np.array([scored, more], float), effect)
        assert bounds[1][1] >= bounds[1][0] - 1e-9  # more pairs, more power, up to a tooth


def test_later_pairs_with_chances_of_their_own_do_no_harm() -> None:
    """Hoeffding: with the same mean, unequal chances of green only raise the power above one half."""
    plan = pairs_needed(GREEN, 0.15, log10_p=-3.0, power=0.9)
    chances = np.clip(np.random.default_rng(0).normal(0.4, 0.25, plan.scored), 0.01, 0.99)
    chances += 0.4 - chances.mean()
    law = np.ones(1)
    for chance in chances:
        law = np.convolve(law, [1 - chance, chance])
    hit = GREEN.log10_p(np.arange(law.size), np.full(law.size, plan.scored)) <= -3.0
    assert law[hit].sum() >= plan.achieved


@pytest.mark.parametrize(("wm", "effect"), [(GREEN, 0.1), (GREEN, 0.01), (HALF, 0.3), (RARE, 0.2), (GUMBEL, 0.3)])
@pytest.mark.parametrize("log10_p", [-250.0, -300.0, -3000.0])
def test_far_targets(wm: Any, effect: float, log10_p: float) -> None:
    plan = pairs_needed(wm, effect, log10_p=log10_p, power=0.9)
    assert power_at(wm, effect, plan.scored - 1, log10_p=log10_p) < 0.9 <= plan.achieved < 0.92
    assert plan.log10_p_expected < log10_p
    assert effect_seen(wm, plan.scored, log10_p=log10_p, power=plan.achieved) == pytest.approx(effect, rel=1e-9)
    seen = simulate_power(wm, effect, plan.scored, log10_p=log10_p, repeats=1000, generator=np.random.default_rng(2))
    assert abs(seen - plan.achieved) <= 4 * math.sqrt(0.09 / 1000)


def test_small_effects_agree_with_the_normal_approximation() -> None:
    z = float(stats.norm.isf(1e-10) + stats.norm.ppf(0.9))
    assert pairs_needed(GREEN, 1e-3, log10_p=-10.0).scored == pytest.approx(z * z * 0.1875 / 1e-6, rel=5e-3)
    assert pairs_needed(GUMBEL, 1e-3, log10_p=-10.0).scored == pytest.approx(z * z / 1e-6, rel=5e-3)


@pytest.mark.parametrize("wm", SCHEMES)
def test_planning_looks_at_few_tails(wm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    exact = type(wm.law).log10_tail

    def counted(self: Any, total: Any, count: Any) -> Any:
        looked.append(np.size(total))
        return exact(self, total, count)

    monkeypatch.setattr(type(wm.law), "log10_tail", counted)
    pairs_needed(wm, 1e-3, log10_p=-10.0)
    assert sum(looked) < 20_000 and len(looked) < 200


@pytest.mark.parametrize(
    "wm", [compat.ReleasedGreenList(vocab_size=1003), compat.ReleasedGumbelMax(vocab_size=1003), GREEN, GUMBEL]
)
def test_published_schemes_are_planned_with_their_own_tails(wm: Any) -> None:
    plan = pairs_needed(wm, 0.1, log10_p=-4.0, power=0.8)
    assert isinstance(plan, Plan)
    assert plan.scheme == wm.scheme
    null = getattr(wm, "gamma", 1.0)
    expected = plan.scored * (null + 0.1) if null == 1.0 else math.floor(plan.scored * (null + 0.1))
    assert plan.log10_p_expected == pytest.approx(float(wm.log10_p(expected, plan.scored)))


def test_shapes_follow_the_number_of_pairs() -> None:
    assert isinstance(power_at(GREEN, 0.1, 500), float)
    assert isinstance(effect_seen(GREEN, 500), float)
    grid = np.array([[0, 10, 500], [1000, 5000, 10**9]])
    assert power_at(GREEN, 0.1, grid).shape == grid.shape
    assert power_at(GREEN, 0.1, grid)[0, 2] == power_at(GREEN, 0.1, 500)
    assert power_at(GREEN, 0.1, 0) == power_at(GUMBEL, 0.1, 0) == 0.0
    assert effect_seen(GUMBEL, grid + 1).shape == grid.shape
    assert np.all(np.diff(effect_seen(GREEN, np.array([100, 1000, 10_000, 10**8]))) < 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pairs_needed(GREEN, 0.0), "effect must be positive.*got 0.0"),
        (lambda: pairs_needed(GREEN, -0.1), "effect must be positive"),
        (lambda: pairs_needed(GREEN, math.nan), "effect must be positive"),
        (lambda: pairs_needed(GREEN, 0.75), "effect=0.75 leaves γ \\+ effect = 1"),
        (lambda: power_at(GREEN, 0.8, 10), "effect=0.8 leaves"),
        (lambda: pairs_needed(GREEN, 1e-18), "effect=1e-18 is lost"),
        (lambda: pairs_needed(GUMBEL, 1e-18), "effect=1e-18 is lost"),
        (lambda: pairs_needed(GUMBEL, 0.0), "effect must be positive"),
        (lambda: pairs_needed(GUMBEL, math.inf), "effect must be positive and finite"),
        (lambda: pairs_needed(GREEN, 0.1, log10_p=0.0), "log10_p must be finite and at most.*got 0.0"),
        (lambda: pairs_needed(GREEN, 0.1, log10_p=3.0), "log10_p must be"),
        (lambda: pairs_needed(GREEN, 0.1, log10_p=-math.inf), "log10_p must be"),
        (lambda: pairs_needed(GREEN, 0.1, power=1.0), "power must lie strictly between.*got 1.0"),
        (lambda: pairs_needed(GREEN, 0.1, power=0.001), "power must lie strictly between the target p"),
        (lambda: effect_seen(GREEN, 500, power=0.0), "power must lie strictly"),
        (lambda: pairs_needed(GREEN, 1e-3, largest=10**6), "about 3.6e\\+06 pairs, above largest=1000000; score more text"),
        (lambda: pairs_needed(GREEN, 1e-7), "above largest=10000000000; .*supervised"),
        (lambda: pairs_needed(GREEN, 1e-12), "above largest="),
        (lambda: pairs_needed(GUMBEL, 1e-12), "above largest="),
        (lambda: pairs_needed(GREEN, 0.1, largest=0), "largest must be whole numbers from 1"),
        (lambda: pairs_needed(GREEN, 0.1, largest=10**13), "largest must be whole numbers from 1 to 10\\^12"),
        (lambda: power_at(GREEN, 0.1, -1), "scored must be whole numbers from 0 .* got -1"),
        (lambda: power_at(GREEN, 0.1, [1.5, 2]), "scored must be whole .* got 1.5"),
        (lambda: power_at(GREEN, 0.1, []), "scored must be .* got none"),
        (lambda: effect_seen(GREEN, 4), "scored=4 pairs are too few for log10_p=-3"),
        (lambda: simulate_power(GREEN, 0.1, 10, generator=np.random.RandomState(0)), "numpy Generator"),  # type: ignore[arg-type]
        (lambda: simulate_power(GREEN, 0.1, [1, 2], generator=np.random.default_rng()), "scored must be a single"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_errors_name_the_argument_the_value_and_the_remedy(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_largest_number_of_pairs_is_exact() -> None:
    plan = pairs_needed(GREEN, 0.1)
    assert pairs_needed(GREEN, 0.1, largest=plan.scored) == plan
    with pytest.raises(TooManyPairsError, match=f"above largest={plan.scored - 1}"):
        pairs_needed(GREEN, 0.1, largest=plan.scored - 1)


# Tokens


@pytest.mark.parametrize("span", [4.0, 2.0, math.inf])
def test_the_fit_recovers_a_known_curve(span: float) -> None:
    tokens = np.unique(np.geomspace(1000, 10**6, 40).round())
    law = PairYield.fit(tokens, np.round(2.0 * tokens**0.8), span=span)
    assert law.scale == pytest.approx(2.0, rel=1e-3)
    assert law.exponent == pytest.approx(0.8, abs=1e-4)
    assert law.misfit < 1e-3
    assert abs(law.bend) < 1e-4
    assert (law.measured_tokens, law.measured_pairs) == (10**6, round(2 * 10**4.8))
    found = law.tokens_for(10**6)
    assert found.tokens == pytest.approx((10**6 / 2) ** 1.25, rel=1e-3)
    assert found.beyond == pytest.approx(found.tokens / 10**6)


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0.05, 1)), min_size=3, max_size=12), st.data())
def test_within_what_was_measured_the_curve_is_read_off(steps: list[tuple[int, float]], data: st.DataObject) -> None:
    tokens, pairs = np.cumsum([step for step, _ in steps]), np.cumsum([math.ceil(step * new) for step, new in steps])
    law = PairYield.fit(tokens, pairs)
    for t, n in zip(tokens.tolist(), pairs.tolist(), strict=True):
        assert law.tokens_for(n).tokens == t
    wanted = data.draw(st.integers(1, int(pairs[-1])))
    found = law.tokens_for(wanted).tokens
    assert wanted <= found <= tokens[-1]
    before, there = np.interp([found - 1, found], [0, *tokens], [0, *pairs])
    assert before < wanted + 1e-6 and there >= wanted - 1e-6
    assert law.tokens_for(int(pairs[-1]) + 1).tokens >= tokens[-1]


def test_a_plan_near_half_power_of_an_approximated_law() -> None:
    """Where half of all totals reach the target, the two approximations of a tail meet with a small step."""
    wm = engines.VLLMDualKey(1, 1000, 2, alpha=0.3)
    plan = pairs_needed(wm, 0.2, log10_p=-3.0, power=0.5)
    seen = simulate_power(wm, 0.2, plan.scored, repeats=20_000, generator=np.random.default_rng(0))
    assert plan.achieved >= 0.5 and seen == pytest.approx(0.5, abs=0.02)


def test_far_beyond_what_was_measured_is_said() -> None:
    law = PairYield(scale=2.0, exponent=0.5, measured_tokens=10_000, measured_pairs=200)
    near, far = law.tokens_for(632), law.tokens_for(633)  # 100,000 tokens hold 632.5 pairs
    assert near.beyond < 10 < far.beyond
    assert not near.extrapolated
    assert far.extrapolated
    assert law.tokens_for(3).tokens == 3  # a token makes one pair at most, whatever the law says


def test_real_curves_bend_and_the_end_of_the_curve_tells_more() -> None:
    """Pairs of a Zipf law over finitely many: the law promises more than comes, less so when fitted to the end."""
    chances = 1.0 / (np.arange(1, 20_001) + 2.7)
    drawn = np.random.default_rng(0).choice(20_000, 200_000, p=chances / chances.sum())
    cuts = np.unique(np.geomspace(100, drawn.size, 40).astype(int))
    pairs = np.array([np.unique(drawn[:cut]).size for cut in cuts])
    known = cuts <= 20_000
    end, whole = (PairYield.fit(cuts[known], pairs[known], span=span) for span in (4.0, math.inf))
    assert end.bend < -0.03
    assert whole.bend == pytest.approx(0.0, abs=1e-12)
    promised = [law.scale * cuts[-1] ** law.exponent for law in (end, whole)]
    assert pairs[-1] < promised[0] < promised[1]
    assert end.tokens_for(int(pairs[-1])).tokens < cuts[-1]  # a lower bound


def test_tokens_follow_from_a_plan() -> None:
    plan = pairs_needed(GREEN, 0.05)
    law = PairYield(scale=3.0, exponent=0.7, measured_tokens=10**5)
    assert tokens_needed(plan, law) == law.tokens_for(plan.scored)
    constant = tokens_needed(plan, 0.25)
    assert constant.tokens == 4 * plan.scored
    assert constant.extrapolated  # nothing was measured
    assert tokens_needed(plan, 1.0).tokens == plan.scored


def test_an_exponent_above_one_is_one() -> None:
    tokens = np.array([100, 1000, 10_000])
    law = PairYield.fit(tokens, [50, 510, 5300], span=math.inf)
    assert law.exponent == 1.0
    assert law.scale == pytest.approx(math.exp(np.mean(np.log([0.5, 0.51, 0.53]))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PairYield.fit([1, 2], [1, 2]), "3 points at least"),
        (lambda: PairYield.fit([1, 2, 3], [1, 2]), "equal length"),
        (lambda: PairYield.fit([10, 10, 30], [1, 2, 3]), "counts must increase"),
        (lambda: PairYield.fit([10, 20, 30], [3, 2, 3]), "scored must not decrease"),
        (lambda: PairYield.fit([10, 20, 30], [3, 25, 26]), "scored\\[1\\]=25 exceeds counts\\[1\\]=20"),
        (lambda: PairYield.fit([10, 20, 30], [0, 2, 3]), "scored must be whole numbers from 1"),
        (lambda: PairYield.fit([10, 20, math.nan], [1, 2, 3]), "counts must be whole numbers .* got nan"),
        (lambda: PairYield.fit([10, 20, 30], [3, 3, 3]), "scored stays at 3 pairs"),
        (lambda: PairYield.fit([10, 20, 30], [3, 4, 5], span=1.0), "span must exceed 1"),
        (lambda: PairYield(scale=0.0, exponent=0.5), "scale must be positive"),
        (lambda: PairYield(scale=1.0, exponent=1.5), "exponent must lie in"),
        (lambda: PairYield(scale=1.0, exponent=0.1).tokens_for(1000), "10\\^30 tokens"),
        (lambda: PairYield(scale=1.0, exponent=0.5).tokens_for(0), "pairs must be whole"),
        (lambda: tokens_needed(pairs_needed(GREEN, 0.1), 1.5), "yield_ must be a PairYield or lie in"),
        (lambda: tokens_needed(pairs_needed(GREEN, 0.1), 0.0), "yield_ must be"),
    ],
)  # fmt: skip
def test_errors_of_growth_curves(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_planning_needs_no_torch() -> None:
    code = "import sys; from radio_utils import planning; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
