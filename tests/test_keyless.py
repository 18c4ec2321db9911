"""Tests without the key: true p-values where both sets come from one sampler, and power against marks on toy models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import innocents
import numpy as np
import pytest
from scipy import stats

import radio_utils as ru
from radio_utils import keyless

V = 40
MARKS: dict[str, Callable[[int], Any]] = {
    "greenlist": lambda key: ru.GreenList(key=key, vocab_size=V, window=1, gamma=0.25, delta=3.0),
    "gumbel": lambda key: ru.GumbelMax(key=key, vocab_size=V, window=1),
}


class Toy:
    """A model whose logits [V, V] depend on the last token only, and that writes under a mark or without."""

    def __init__(self, seed: int, spread: float = 2.0, wm: Any = None) -> None:
        self.draw = np.random.default_rng([seed, 1])
        logits = np.random.default_rng(seed).normal(0, spread, (V, V))
        self.noise: Any = None
        if wm is not None:
            scores = wm.scores(np.repeat(np.arange(V), V)[:, None], np.tile(np.arange(V), V)).reshape(V, V)
            if hasattr(wm, "delta"):
                logits = logits + wm.delta * scores
            else:
                self.noise = -np.log(-np.log1p(-np.exp(-scores)))  # scores are −ln(1 − r)
        self.logits = logits

    def next(self, last: Any) -> Any:
        """One token after each of the last tokens, by the Gumbel trick."""
        last = np.asarray(last)
        noise = self.draw.gumbel(size=(*last.shape, V)) if self.noise is None else self.noise[last]
        return np.argmax(self.logits[last] + noise, axis=-1)

    def texts(self, count: int, length: int = 25) -> list[Any]:
        columns = [self.draw.integers(V, size=count)]
        while len(columns) < length:
            columns.append(self.next(columns[-1]))
        return list(np.stack(columns, axis=1))


def of_unequal_lengths(toy: Toy, count: int) -> list[Any]:
    return [text[: toy.draw.integers(2, 26)] for text in toy.texts(count)]


def test_two_sets_of_one_sampler_are_seldom_told_apart() -> None:
    vocabularies, classified = [], []
    for seed in range(300):
        toy, draw = Toy(seed), np.random.default_rng(seed)
        first, second = of_unequal_lengths(toy, 25), of_unequal_lengths(toy, 40)
        vocabularies.append(keyless.compare_vocabularies(first, second, permutations=199, generator=draw).log10_p)
        classified.append(keyless.classify(first, second, generator=draw).log10_p)
    innocents.check_false_alarms(vocabularies)
    innocents.check_false_alarms(classified)
    # and neither is vacuous: a permutation's p is as often small as it says
    assert np.mean(np.array(vocabularies) <= np.log10(0.2)) > 0.12


@pytest.mark.parametrize("scheme", MARKS)
def test_marked_texts_are_told_from_plain_ones(scheme: str) -> None:
    plain, marked = Toy(0).texts(120), Toy(0, wm=MARKS[scheme](7)).texts(120)
    draw = np.random.default_rng(0)
    grown = keyless.compare_vocabularies(marked, plain, generator=draw)
    assert grown.log10_p == pytest.approx(np.log10(2 / 1000))
    assert grown.value < 0.5 if scheme == "gumbel" else abs(np.log(grown.value)) > 0.1
    found = keyless.classify(marked, plain, generator=draw)
    assert found.tested == 120 and found.low > 0.9 and found.log10_p < -20


def test_a_hotter_sampler_looks_like_a_mark() -> None:
    """What these tests see is a difference; that it is a mark is Bob's guess."""
    plain, hot = Toy(0).texts(120), Toy(0)
    hot.logits = hot.logits / 2
    assert keyless.compare_vocabularies(hot.texts(120), plain, generator=np.random.default_rng(0)).log10_p < -2


def test_vocabularies_by_hand() -> None:
    """Six pairs of which five are distinct, against the first six of eight, of which two are."""
    found = keyless.compare_vocabularies(
        [[0, 1, 2, 3, 4, 0, 1]], [[0, 1, 0, 1, 0, 1, 0, 1, 0]], permutations=9, generator=np.random.default_rng(0)
    )
    assert found.value == pytest.approx(5 / 2) and found.log10_p == 0.0


def test_interval_and_p_value_of_a_classifier() -> None:
    plain, marked = Toy(0).texts(31), Toy(1).texts(20)
    found = keyless.classify(marked, plain, generator=np.random.default_rng(0))
    right = round(found.accuracy * found.tested)
    expected = stats.binomtest(right, found.tested).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.tested == 10 + 16


def asked(model: Toy, repeats: int = 40) -> Any:
    """Answers to 8 beginnings × 9 endings; a beginning says how likely each token is, an ending is a last token."""
    table = np.broadcast_to(np.arange(9)[:, None], (8, 9, repeats))
    before = np.random.default_rng(99).normal(0, 1, (8, 1, 1, V))
    return np.argmax(model.logits[table] + before + model.draw.gumbel(size=(*table.shape, V)), axis=-1)


def test_endings_that_mean_nothing_are_seldom_noticed() -> None:
    alone, beside = [], []
    for seed in range(200):
        indifferent, moved = Toy(seed), Toy(seed)
        indifferent.logits = np.broadcast_to(indifferent.logits[0], (V, V))
        draw = np.random.default_rng(seed)
        alone.append(keyless.ending_effects(asked(indifferent), permutations=199, generator=draw).log10_p)
        pair = asked(moved), asked(moved)
        beside.append(keyless.ending_effects(*pair, permutations=199, generator=draw).log10_p)
    innocents.check_false_alarms(alone)
    innocents.check_false_alarms(beside)
    assert min(np.mean(np.array(found) <= np.log10(0.2)) for found in (alone, beside)) > 0.1


def test_a_green_list_moves_words_by_the_ending() -> None:
    draw, plain, marked = np.random.default_rng(0), Toy(0), Toy(0, wm=MARKS["greenlist"](7))
    found = keyless.ending_effects(asked(marked), asked(plain), generator=draw)
    assert found.log10_p == -3.0 and 0.5 < found.value < 2.5
    # a model that the last token moves by itself is accused without a model to compare with
    assert keyless.ending_effects(asked(plain), generator=draw).log10_p == -3.0


def answered_twice(model: Toy, prompts: int = 60, length: int = 3) -> list[Any]:
    pairs = []
    for prompt in range(prompts):
        columns = [np.full(2, prompt % V)]
        for _ in range(length):
            columns.append(model.next(columns[-1]))
        pairs.append(tuple(np.stack(columns[1:], axis=1)))
    return pairs


def test_fixed_sampling_repeats_itself() -> None:
    plain, fixed = Toy(0), Toy(0, wm=MARKS["gumbel"](7))
    found = keyless.repeated_answers(answered_twice(fixed), answered_twice(plain))
    assert found.value == 1.0 and found.log10_p < -6
    innocents.check_false_alarms(
        [
            keyless.repeated_answers(answered_twice(toy), answered_twice(toy)).log10_p
            for toy in (Toy(seed, spread=3.0) for seed in range(200))
        ]
    )


def test_errors_name_the_argument() -> None:
    draw, texts = np.random.default_rng(0), [[1, 2, 3], [2, 3, 4]]
    with pytest.raises(ValueError, match="others is empty"):
        keyless.compare_vocabularies(texts, [], generator=draw)
    with pytest.raises(ValueError, match=r"others\[0\] has 1 tokens"):
        keyless.classify(texts, [[1]], generator=draw)
    with pytest.raises(ValueError, match="at least 2 of each"):
        keyless.classify(texts, [[1, 2]], generator=draw)
    with pytest.raises(ValueError, match="permutations must be at least 1, got 0"):
        keyless.compare_vocabularies(texts, texts, permutations=0, generator=draw)
    with pytest.raises(ValueError, match="same prompts equally often"):
        keyless.ending_effects(np.zeros((2, 2, 3), int), np.zeros((2, 2, 4), int), generator=draw)
    with pytest.raises(ValueError, match=r"got shape \[2, 3\]"):
        keyless.ending_effects(np.zeros((2, 3), int), generator=draw)
    with pytest.raises(ValueError, match="hold 1 and 0 prompts"):
        keyless.repeated_answers([([1], [1])], [])
