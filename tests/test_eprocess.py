"""The e-process: its law under the null, its growth, and the sequential test built on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio_utils import EProcess, GreenList, GumbelMax, compat, detect
from radio_utils import evidence as ev
from radio_utils.querying import Watch, audit_watch, query_closed_model, query_until
from radio_utils.suspects import LocalSuspect

GREEN, GUMBEL = GreenList("alice", 1000, 1), GumbelMax("alice", 1000, 1)


@pytest.mark.parametrize("wm", [GREEN, GreenList("a", 1000, 1, gamma=0.5), GumbelMax("a", 1000, 1)])
def test_the_wealth_is_fair_under_the_null(wm: Any) -> None:
    """One step is a fair bet from every state: the mean of the next wealth is the wealth."""
    bet = EProcess(wm)
    x = np.linspace(0, 60, 600_001)
    for total, count in ((0.0, 0), (3.0, 9), (40.0, 100), (90.0, 100)):
        now = 10 ** bet.log10_e(total, count)
        if isinstance(wm, GreenList):
            won, lost = (10 ** bet.log10_e(total + mark, count + 1) for mark in (1, 0))
            after = wm.gamma * won + (1 - wm.gamma) * lost
        else:
            after = np.trapezoid(np.exp(-x) * 10 ** bet.log10_e(total + x, np.full(x.size, count + 1)), x)
            assert after <= now * (1 + 1e-6)
            continue  # the mean over an exponential has a heavy tail: what lies beyond 60 is missing
        assert after == pytest.approx(now, rel=1e-12)


@pytest.mark.parametrize(("wm", "alpha"), [(GREEN, 0.05), (GREEN, 0.01), (GUMBEL, 0.05)])
def test_false_alarms_at_any_stopping_time_stay_below_alpha(wm: Any, alpha: float) -> None:
    rng = np.random.default_rng(4)
    runs, length = 2000, 1500
    scores = (rng.random((runs, length)) < 0.25).astype(float) if wm is GREEN else rng.exponential(size=(runs, length))
    totals, counts = scores.cumsum(axis=1)[:, ::10], np.arange(1, length + 1)[::10]
    ever = (EProcess(wm).log10_e(totals, counts) >= -math.log10(alpha)).any(axis=1).mean()
    assert ever <= alpha + 3 * math.sqrt(alpha / runs)
    assert ever > 0  # a bet that never wins would prove nothing


def test_the_wealth_grows_nearly_as_fast_as_the_best_bet() -> None:
    rng = np.random.default_rng(5)
    for rate in (0.3, 0.4, 0.7):
        scores = (rng.random(20_000) < rate).astype(float)
        seen = scores.mean()
        best = seen * math.log10(seen / 0.25) + (1 - seen) * math.log10((1 - seen) / 0.75)
        path = EProcess(GREEN).path(scores)
        assert 20_000 * best - 3 < path[-1] < 20_000 * best  # of the best bet in hindsight
        assert np.isfinite(path).all()


@settings(max_examples=50)
@given(st.integers(0, 10**7), st.floats(0, 1))
def test_e_values_are_finite_and_grow_with_the_score(count: int, share: float) -> None:
    total = round(share * count)
    bet = EProcess(GREEN)
    assert math.isfinite(bet.log10_e(total, count))
    if total < count:
        assert bet.log10_e(total + 1, count) > bet.log10_e(total, count)


class Scripted:
    """A suspect that answers from a list, and counts what it was asked."""

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        self.answers, self.asked = [np.array(a, np.int64) for a in answers], 0

    def answer(self, prompts: Sequence[Any]) -> list[np.ndarray]:
        start = self.asked
        self.asked += len(prompts)
        return self.answers[start : self.asked]


def answers_of(wm: Any, n: int, strength: int, seed: int = 0) -> list[list[int]]:
    """Each token is the best scored of ``strength`` random ones."""
    rng, texts = np.random.default_rng(seed), []
    for _ in range(n):
        text = [int(rng.integers(1000))]
        for _ in range(30):
            candidates = rng.integers(0, 1000, strength)
            scores = wm.scores(np.full((strength, 1), text[-1]), candidates)
            text.append(int(candidates[scores.argmax()]))
        texts.append(text)
    return texts


@pytest.mark.parametrize("wm", [GREEN, GUMBEL])
def test_a_guilty_suspect_is_asked_no_more_than_needed(wm: Any) -> None:
    suspect = Scripted(answers_of(wm, 100, 2))
    prompts = [[i] for i in range(100)]
    found = query_until(suspect, prompts, wm, alpha=1e-3, batch=5)
    assert found.convicted
    assert found.asked == suspect.asked < 60
    assert found.log10_p <= -3
    assert found.log10_e.shape == found.counts.shape == (found.asked // 5,)
    whole = query_closed_model(Scripted(answers_of(wm, 100, 2)), prompts, wm)
    assert whole.log10_p < -3
    # what was scored is what the plain detector scores on the same answers
    plain = detect(suspect.answers[: found.asked], wm, prompts=prompts[: found.asked])
    assert (found.scored, found.seen) == (plain.scored, plain.seen)
    assert found.total == pytest.approx(plain.total)


def test_an_innocent_suspect_costs_the_budget_and_is_acquitted() -> None:
    suspect = Scripted(answers_of(GREEN, 100, 1))
    found = query_until(suspect, [[i] for i in range(100)], GREEN, budget=40, batch=16)
    assert (found.convicted, found.asked, suspect.asked) == (False, 40, 40)
    assert found.log10_p > -3


def test_a_pair_is_scored_once_however_often_it_comes() -> None:
    watch = Watch(GREEN)
    answers = [np.array(a) for a in answers_of(GREEN, 10, 3)]
    prompts = [[0]] * 10
    watch.add(prompts, answers)
    once = watch.verdict(0.01, 10)
    for _ in range(5):
        watch.add(prompts, answers)
    again = watch.verdict(0.01, 60)
    assert (once.scored, once.total) == (again.scored, again.total)
    assert len(set(again.log10_e.tolist())) == 1


def test_a_local_model_asked_again_answers_anew() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1000, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, eos_token_id=None, bos_token_id=1, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    found = query_until(LocalSuspect(model, (), max_new_tokens=10), [[5, 6]] * 12, GREEN, batch=4)
    assert (found.asked, found.convicted) == (12, False)
    assert np.all(np.diff(found.counts) > 20)  # every batch brings pairs that were not met before


def tokens_of(n: int, vocab_size: int, seed: int, length: int = 30) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, vocab_size, (n, length)))


RELEASED = compat.ReleasedGreenList(3, 20, 1)
SELFHASH = compat.TransformersGreenList({"seeding_scheme": "selfhash", "context_width": 3}, 20)


@pytest.mark.parametrize("wm", [RELEASED, SELFHASH, compat.TransformersGreenList({}, 20)])
def test_lists_with_a_fixed_number_of_greens_are_asked_once(wm: Any) -> None:
    """Of a list of 20 tokens with 5 greens, 15 reds say that the others are green: no bet at the old odds is fair."""
    for call in (
        lambda: EProcess(wm),
        lambda: Watch(wm),
        lambda: query_until(Scripted([]), [[1]], wm),
        lambda: audit_watch([[1]], [np.array([1, 2])], wm, keys=5),
    ):
        with pytest.raises(ValueError, match="fixed number of greens: the odds are then not fair; use dedup='window'"):
            call()
    answers, prompts = tokens_of(12, 20, 1), [[0]] * 12
    watch = Watch(wm, dedup="window")
    for start in range(0, 12, 4):
        watch.add(prompts[start : start + 4], answers[start : start + 4])
    verdict = watch.verdict(0.01, 12)
    windows, lists = set[tuple[int, ...]](), set[int]()
    for start in range(0, 12, 4):
        found = ev.collect(
            answers[start : start + 4], wm.window, 20, prompts=prompts[start : start + 4], dedup="window",
            shared=ev.shared_by(wm), hidden=True,
        )  # fmt: skip
        ids = wm.list_ids(found.windows, found.tokens).tolist()
        lists |= {one for one, window in zip(ids, map(tuple, found.windows.tolist()), strict=True) if window not in windows}
        windows |= set(map(tuple, found.windows.tolist()))
    assert 0 < verdict.scored == len(lists)
    assert type(verdict.convicted) is bool


def test_false_alarms_of_fixed_lists_stay_below_alpha() -> None:
    answers, prompts = tokens_of(400, 3, 2, 6), [[0]] * 400
    for wm in (compat.TransformersGreenList({"seeding_scheme": "selfhash", "context_width": 3, "greenlist_ratio": 0.5}, 3),
               compat.ReleasedGreenList(3, 3, 2, gamma=0.5)):  # fmt: skip
        highest = audit_watch(prompts, answers, wm, keys=300, dedup="window", batch=1)
        for alpha in (0.5, 0.2, 0.05):
            assert np.mean(highest >= -math.log10(alpha)) <= alpha + 3 * math.sqrt(alpha / 300)


@pytest.mark.parametrize("wm", [RELEASED, SELFHASH, compat.ReleasedGumbelMax(3, 20, 1), GumbelMax("a", 20, 1)])
def test_the_audit_is_the_watch_itself(wm: Any) -> None:
    answers, prompts = tokens_of(15, 20, 3), [[0]] * 15
    highest = audit_watch(prompts, answers, wm, keys=5, seed=2, batch=4, dedup="window")
    for i in range(5):
        watch = Watch(wm.with_decoy(2, i), dedup="window")
        for start in range(0, 15, 4):
            watch.add(prompts[start : start + 4], answers[start : start + 4])
        assert highest[i] == pytest.approx(max(0.0, watch.highest))


def test_scores_that_are_rounded_down_may_be_bet_on() -> None:
    wm = compat.ReleasedGumbelMax(3, 1000, 1)
    assert EProcess(wm).log10_e(30.0, 20) == EProcess(GUMBEL).log10_e(30.0, 20)
    suspect = Scripted(answers_of(wm, 60, 3))
    found = query_until(suspect, [[i] for i in range(60)], wm, batch=5)
    assert found.convicted is True
    plain = detect(suspect.answers[: found.asked], wm, prompts=[[i] for i in range(found.asked)])
    assert (found.scored, found.total) == (plain.scored, pytest.approx(plain.total))
    highest = audit_watch([[i] for i in range(30)], suspect.answers[:30], wm, keys=60)
    assert np.mean(highest >= 1) <= 0.1 + 3 * math.sqrt(0.1 / 60)


def test_a_window_is_scored_once_where_that_is_wanted() -> None:
    watch, answers = Watch(GREEN, dedup="window"), [np.array([1, 2, 3, 1, 4]), np.array([1, 5, 6, 7])]
    for answer in answers:
        watch.add([[0]], [answer])
    assert watch.verdict(0.1, 2).counts.tolist() == [3, 5]  # 1, 2 and 3; then 5 and 6
    assert type(watch.verdict(0.1, 2).convicted) is bool


def test_bad_input_is_named() -> None:
    for call, words in (
        (lambda: query_until(Scripted([]), [[1]], GREEN, alpha=0.0), "alpha must lie strictly between 0 and 1"),
        (lambda: query_until(Scripted([]), [[1]], GREEN, batch=0), "batch must be at least 1 prompt, got 0"),
        (lambda: query_until(Scripted([]), [], GREEN), "prompts is empty"),
        (lambda: query_until(Scripted([]), [[1]], GREEN, budget=0), "budget must be at least 1"),
        (lambda: EProcess(GREEN).log10_e(math.nan, 3), "must be numbers"),
        (lambda: EProcess(GREEN).log10_e(math.inf, 3), "must be numbers that are finite"),
        (lambda: EProcess(GREEN, dedup=None), "dedup=None scores repeats"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert EProcess(compat.ReleasedGreenList(3, 1000, 2), dedup="window").log10_e(0, 0) == pytest.approx(0.0, abs=1e-12)
