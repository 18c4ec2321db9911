"""Pairs that score alike under every key: the same in all texts of a scheme, whoever wrote them, and counted by no test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import radio_utils as ru
from radio_utils import contrast, detection, engines, evidence, querying

V = 300
SCHEMES: dict[str, Any] = {
    "transformers lefthash": lambda: ru.compat.TransformersGreenList({"hashing_key": 15485863}, V),
    "transformers selfhash": lambda: ru.compat.TransformersGreenList({"seeding_scheme": "selfhash", "context_width": 3}, V),
    "released": lambda: ru.compat.ReleasedGreenList(3, V, 2),
    "SBW lefthash": lambda: engines.SBW(7, V, 2, "lefthash"),
    "SBW selfhash": lambda: engines.SBW(7, V, 3, "selfhash"),
    **{
        name: lambda name=name: engines.KirchenbauerGreenList(V, name, hash_key=15485863)
        for name in (
            "simple_1", "selfhash", "minhash", "skipgram", "ff-additive_prf-2-False", "ff-multiplicative_prf-2-False",
            "ff-minfunc_prf-2-False", "ff-simple_skip_prf-3-False", "ff-anchored_skipgram_prf-3-False",
            "ff-anchored_minhash_prf-3-True", "ff-minskipgram_prf-3-False", "ff-noncomm_prf-2-False",
            "ff-position_prf-2-False", "ff-multiplicative_prf-3-True",
        )
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=SCHEMES)
def wm(request: pytest.FixtureRequest) -> Any:
    return SCHEMES[request.param]()


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), zeros=st.floats(0, 1))
def test_keyless_pairs_are_those_that_all_keys_score_alike(wm: Any, seed: int, zeros: float) -> None:
    rng = np.random.default_rng(seed)
    windows = rng.integers(0, V, (40, wm.window)) * (rng.random((40, wm.window)) >= zeros)
    if wm.scheme == "sbw":  # before an answer's first tokens
        windows[:10, 0] = windows[:5, 1] = -1
    tokens = rng.integers(0, V, 40) * (rng.random(40) >= zeros)
    own = wm.colour_ids(windows, tokens)
    shared = np.mean([wm.with_decoy(1, index).colour_ids(windows, tokens) == own for index in range(40)], axis=0)
    found = wm.keyless(windows, tokens)
    # of several ids in a window the key decides which one seeds its list, so that one key may know it and another not
    assert np.array_equal(found, shared > 0)
    everywhere = np.array([wm.with_decoy(1, index).scores(windows, tokens) for index in range(60)])
    assert found[np.all(everywhere == everywhere[0], axis=0) & (shared == 1)].all()


def text_after_zero(wm: Any) -> list[list[int]]:
    """What another key's Alice writes where the list is everybody's: one green token after each run of zeros."""
    greens = np.flatnonzero(wm.scores(np.zeros((V - 1, wm.window), int), np.arange(1, V)) == 1) + 1
    return [[0] * wm.window + [int(token)] for token in greens]


@pytest.mark.parametrize("name", ["transformers lefthash", "SBW lefthash", "simple_1", "ff-multiplicative_prf-2-False"])
def test_texts_of_another_key_convict_nobody_by_them(name: str) -> None:
    wm = SCHEMES[name]()
    texts = text_after_zero(wm.with_decoy(3, 3))
    assert len(texts) > 50
    found = ru.detect(texts, wm)
    assert found.log10_p > -3 and found.seen >= len(texts) > found.scored
    watch = querying.Watch(wm, dedup="window" if wm.law.without_return else "window+token")
    watch.add([[1, 2]] * len(texts), [np.array(text) for text in texts])
    assert watch.highest < 1
    pairs = evidence.collect(texts, wm.window, V)
    weighted = contrast.Contrast(pairs, np.full(len(pairs), 100))
    assert contrast.judge_contrast(weighted, wm).log10_p > -3
    many = [*texts, *np.random.default_rng(0).integers(1, V, (40, 30)).tolist()]
    assert stats.kstest(ru.null_audit(many, wm, keys=200).uniform_p, "uniform").pvalue > 1e-3
    audit = contrast.audit_contrast(weighted, wm, keys=50)
    assert audit.log10_p.min() > -3


def test_no_curve_is_drawn_where_no_key_has_a_say() -> None:
    wm = SCHEMES["simple_1"]()
    found = evidence.collect([[0, 5]], wm.window, V)
    assert detection.judge(found, wm).scored == 0
    with pytest.raises(ValueError, match="no pair of the evidence depends on the key"):
        detection.curve(found, wm)
