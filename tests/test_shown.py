"""What marked prompts show: by its definition, pair by pair, and the inequality that the rule rests on, by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio_utils import evidence as ev
from radio_utils.shown import Shown, shown_by

V = 5
TEXTS = st.lists(st.lists(st.integers(0, V - 1), max_size=7), max_size=4)


def every_pair(window: int, vocab_size: int) -> tuple[list[tuple[int, ...]], ev.Words]:
    rows = list(itertools.product(range(vocab_size), repeat=window + 1))
    return rows, ev.Packing(window, vocab_size).pack(list(np.array(rows).T))


@settings(max_examples=60)
@given(TEXTS, st.integers(1, 3), st.booleans())
def test_what_is_told_and_touched_equals_the_definition(texts: list[list[int]], window: int, whole: bool) -> None:
    shown = Shown(texts, window, V, whole=whole)
    rows, words = every_pair(window, V)
    drawn = {tuple(t[i : i + window + 1]) for t in texts for i in range(len(t) - window)}
    possible = set(drawn)
    if not whole:  # a token near the start may have been drawn after any window that ends in what stands before it
        for text in texts:
            for j in range(min(window, len(text))):
                possible |= {row for row in rows if row[window - j :] == tuple(text[: j + 1])}
    touched = {row[:-1] for row in possible}
    assert shown.told(words).tolist() == [row in possible for row in rows]
    assert shown.touched(words).tolist() == [row[:-1] in touched for row in rows]


def test_pairs_of_several_words() -> None:
    big = 1 << 40
    shown = Shown([[7, big - 1, 5]], 1, big, whole=True)
    words = ev.Packing(1, big).pack([np.array([7, big - 1, 7, 5]), np.array([big - 1, 5, 5, 7])])
    assert shown.told(words).tolist() == [True, True, False, False]
    assert shown.touched(words).tolist() == [True, True, True, False]


def likelihoods(chances: np.ndarray, bias: float, top: int, draws: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """All colourings of a list, [2^V, V], and the chance of these draws after its window under each."""
    colours = np.array(list(itertools.product([0, 1], repeat=chances.size)))
    raised = chances * np.exp(bias * colours)
    kept = np.where(raised >= -np.sort(-raised, axis=1)[:, top - 1 : top], raised, 0.0)
    return colours, np.prod((kept / kept.sum(1, keepdims=True))[:, draws], axis=1)


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.floats(0.1, 4.0), st.integers(2, V), st.integers(1, 6))
def test_tokens_that_were_not_drawn_are_less_green_jointly(seed: int, bias: float, top: int, count: int) -> None:
    """Harris' inequality as it is used: every weighted sum with weights that are not negative has the smaller tail."""
    rng = np.random.default_rng(seed)
    chances, gamma = rng.dirichlet(np.ones(V)), 0.3
    draws = rng.integers(0, V, count).tolist()
    colours, likely = likelihoods(chances, bias, top, draws)
    if likely.sum() == 0:
        return
    prior = np.prod(np.where(colours == 1, gamma, 1 - gamma), axis=1)
    posterior = prior * likely / (prior @ likely)
    weights = rng.integers(0, 4, V)
    weights[draws] = 0
    totals = colours @ weights
    for least in range(1, int(weights.sum()) + 1):
        assert posterior[totals >= least].sum() <= prior[totals >= least].sum() + 1e-12


def test_plain_prompts_show_nothing() -> None:
    assert shown_by([[1, 2]], None, False, 1, V) is None
    with pytest.raises(ValueError, match=r"drawn is given, but prompts_marked=False"):
        shown_by([[1, 2]], [[1, 2]], False, 1, V)
    with pytest.raises(ValueError, match=r"drawn\[0\] holds token id 9"):
        shown_by([[1, 2]], [[1, 9]], True, 1, V)
