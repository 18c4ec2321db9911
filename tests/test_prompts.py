"""What a prompt may have shown of a list is not scored in its answer; and a filter counts texts, not occurrences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from innocents import check_false_alarms

import radio_utils as ru
from radio_utils import evidence, querying

SIZE = 12
IDS = st.lists(st.integers(0, SIZE - 1), min_size=4, max_size=9)
GAPPED = st.lists(st.integers(-1, SIZE - 1), min_size=4, max_size=9)
SHARING = {
    "selfhash": ru.compat.TransformersGreenList({"seeding_scheme": "selfhash", "context_width": 3}, SIZE),
    "lefthash with few lists": ru.compat.TransformersGreenList(
        {"seeding_scheme": "lefthash", "hashing_key": 1 << 30}, SIZE
    ),
    "released": ru.compat.ReleasedGumbelMax(3, SIZE, 2),
}


def left(texts: list[list[int]], prompts: list[list[int]], wm: Any, hidden: bool) -> set[tuple[tuple[int, ...], int]]:
    """Pair by pair, window by window."""
    k, kept = wm.window, set()
    shared = evidence.shared_by(wm)
    for text, prompt in zip(texts, prompts, strict=True):
        shown = [tuple(prompt[i : i + k]) for i in range(len(prompt) - k + 1) if -1 not in prompt[i : i + k]]
        # where something may be missing: the tokens there were drawn after windows that the prompt does not show
        begun = [0] * hidden + [i + 1 for i, one in enumerate(prompt) if one == -1]
        for i in range(len(text) - k):
            window, token = tuple(text[i : i + k]), text[i + k]
            told = window in shown
            if shared is not None:
                own = shared.colour_ids(np.array([window]), np.array([token]))[0]
                told |= any(shared.colour_ids(np.array([other]), np.array([token]))[0] == own for other in shown)
            for first in begun:
                told |= any(
                    prompt[j] == token and (shared is not None or list(window[k + first - j :]) == prompt[first:j])
                    for j in range(first, min(first + k, len(prompt)))
                    if -1 not in prompt[first:j]
                )
            if not told:
                kept.add((window, token))
    return kept


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", ["own lists", *SHARING])
@given(texts=st.lists(st.tuples(IDS, GAPPED), min_size=1, max_size=4))
@settings(max_examples=25)
def test_what_is_left_of_answers(name: str, hidden: bool, texts: list[tuple[list[int], list[int]]]) -> None:
    wm = SHARING.get(name) or ru.GreenList("alice", SIZE, 2)
    answers, prompts = [answer for answer, _ in texts], [prompt for _, prompt in texts]
    found = evidence.collect(answers, wm.window, SIZE, prompts=prompts, shared=evidence.shared_by(wm), hidden=hidden)
    pairs = set(zip(map(tuple, found.windows.tolist()), found.tokens.tolist(), strict=True))
    assert pairs == left(answers, prompts, wm, hidden)


def test_an_answer_that_recombines_a_marked_prompt_convicts_nobody() -> None:
    size, size_of_key = 30, 1 << 30
    tongue = np.random.default_rng(0).normal(size=(size, size))
    strict, naive = [], []
    for key in range(24):
        rng = np.random.default_rng([1, key])
        config = {"seeding_scheme": "selfhash", "context_width": 3, "hashing_key": 2 * int(rng.integers(size_of_key)) + 1}
        wm = ru.compat.TransformersGreenList(config, size)
        prompts = rng.integers(size, size=(10, 40))
        for t in range(wm.window, 40):
            windows = np.repeat(prompts[:, t - wm.window : t], size, axis=0)
            green = wm.scores(windows, np.tile(np.arange(size), len(prompts))).reshape(len(prompts), size)
            prompts[:, t] = np.argmax(tongue[prompts[:, t - 1]] + 4 * green + rng.gumbel(size=green.shape), axis=1)
        # pieces of two tokens of the prompt, in another order: new windows, old colours
        answers = [np.concatenate([p[i : i + 2] for i in rng.permutation(38)]) for p in prompts]
        strict.append(querying.score_answers(list(prompts), answers, wm))
        found = evidence.collect(answers, wm.window, size, prompts=prompts)
        naive.append(ru.detection.judge(found, wm).log10_p)
    check_false_alarms([one.log10_p for one in strict])
    assert sum(one.scored for one in strict) > 20
    assert np.median(naive) < -3


def test_a_filter_counts_texts() -> None:
    texts = [[1, 2, 1, 2, 1, 2], [3, 1, 4], [3, 5, 6]]
    assert evidence.frequent_windows(texts, 1, 8, at_least=2).tolist() == [[1], [3]]
    assert evidence.frequent_windows(texts, 1, 8).tolist() == [[i] for i in range(1, 7)]


def test_loops_do_not_choose_their_windows() -> None:
    """A list that favours the way back brings its window again and again: counted by occurrence, it would choose itself."""
    size = 40
    found: list[float] = []
    for key in range(300):
        rng = np.random.default_rng([2, key])
        wm = ru.GreenList(f"key {key}", size, 1, 0.25, 5.0)
        green = wm.green_rows(np.arange(size)[:, None])
        texts = rng.integers(size, size=(40, 1))
        for _ in range(11):
            favour = np.full((len(texts), size), 0.0)
            favour[np.arange(len(texts)), (texts[:, 0] + 1) % size] = 2.0  # a way round of two steps
            favour[np.arange(len(texts)), texts[:, 0]] = 2.0
            noisy = favour + 5.0 * green[texts[:, -1]] + rng.gumbel(size=favour.shape)
            texts = np.column_stack([texts, noisy.argmax(axis=1)])
        answers = [np.array([w, (w + 1) % size]) for w in range(size)]  # an innocent says what is likely after each
        by_texts = evidence.frequent_windows(list(texts), 1, size, at_least=14)
        if len(by_texts):
            found.append(querying.score_answers([[]] * size, answers, wm, keep=by_texts).log10_p)
    check_false_alarms(found)


def test_shards_refuse_prompts_where_windows_share_draws(tmp_path: Any) -> None:
    from radio_utils import sharding

    shard = tmp_path / "answers.jsonl"
    shard.write_text('{"ids": [1, 2, 3, 4], "prompt_ids": [5, 6]}\n')
    with pytest.raises(sharding.ShardError, match="has prompts, and windows of this scheme share draws"):
        sharding.detect_shards([shard], SHARING["released"], tmp_path / "results")
    assert sharding.detect_shards([shard], ru.GreenList("alice", SIZE, 2), tmp_path / "results").scored == 2
