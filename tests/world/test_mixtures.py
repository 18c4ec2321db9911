"""Mixtures: exact, nested, seeded."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio_utils.world import mixtures
from radio_utils.world.instructions import Pair
from radio_utils.world.mixtures import ShareError

MARKED = [Pair(f"marked {i}", "answer") for i in range(60)]
PLAIN = [Pair(f"plain {i}", "answer") for i in range(60)]


def mix(rho: float, size: int = 60, seed: int = 0) -> mixtures.Mixture:
    return mixtures.mix(MARKED, PLAIN, rho, size, generator=np.random.default_rng(seed))


@given(rho=st.floats(0, 1), size=st.integers(1, 60), seed=st.integers(0, 5))
@settings(max_examples=80)
def test_composition_is_exact(rho: float, size: int, seed: int) -> None:
    found = mix(rho, size, seed)
    assert len(found) == len(found.pairs) == size
    assert len(found.watermarked) == round(rho * size)
    assert abs(len(found.watermarked) - rho * size) <= 0.5
    assert set(found.watermarked) <= set(MARKED) and set(found.plain) <= set(PLAIN)
    assert len(set(found.pairs)) == size, "no pair twice"
    assert found == mix(rho, size, seed)


@given(low=st.floats(0, 1), high=st.floats(0, 1), size=st.integers(1, 60))
@settings(max_examples=50)
def test_mixtures_are_nested(low: float, high: float, size: int) -> None:
    low, high = sorted((low, high))
    small, large = mix(low, size), mix(high, size)
    assert large.watermarked[: len(small.watermarked)] == small.watermarked
    assert small.plain[: len(large.plain)] == large.plain


def test_ends_and_seeds() -> None:
    assert mix(0.0).watermarked == () and set(mix(0.0).plain) == set(PLAIN)
    assert mix(1.0).plain == () and set(mix(1.0).watermarked) == set(MARKED)
    assert mix(0.5).pairs == mix(0.5).watermarked + mix(0.5).plain
    assert set(mix(0.5, seed=1).watermarked) != set(mix(0.5, seed=2).watermarked)
    assert mix(0.5).rho == 0.5


@pytest.mark.parametrize("share", [-0.01, 1.01, math.nan, math.inf, 5])
def test_shares_outside_the_interval(share: float) -> None:
    with pytest.raises(ShareError, match=r"rho must be a share in \[0, 1\], got .*; 5 % is 0.05"):
        mix(share)
    with pytest.raises(ShareError, match=r"d must be a share in \[0, 1\]"):
        mixtures.keep_with_degree(MARKED, PLAIN, share, 10, generator=np.random.default_rng(0))
    assert issubclass(ShareError, ValueError)


def test_more_than_there_is() -> None:
    with pytest.raises(ShareError, match=r"needs 61 watermarked pairs, but only 60 exist"):
        mix(1.0, 61)
    with pytest.raises(ShareError, match=r"needs 90 plain pairs, but only 60 exist"):
        mix(0.1, 100)
    with pytest.raises(ShareError, match="size must be at least 1"):
        mix(0.5, 0)
    with pytest.raises(ShareError, match=r"d=1.0 of 61 pairs needs 61 used pairs, but only 60 exist"):
        mixtures.keep_with_degree(MARKED, PLAIN, 1.0, 61, generator=np.random.default_rng(0))
    with pytest.raises(ShareError, match=r"needs 61 unused pairs"):
        mixtures.keep_with_degree(MARKED, PLAIN, 0.0, 61, generator=np.random.default_rng(0))


@given(d=st.floats(0, 1), size=st.integers(1, 60))
@settings(max_examples=50)
def test_degree_of_supervision_is_exact(d: float, size: int) -> None:
    kept = mixtures.keep_with_degree(MARKED, PLAIN, d, size, generator=np.random.default_rng(3))
    assert len(kept.used) == round(d * size) and len(kept.pairs) == size == len(set(kept.pairs))
    assert set(kept.used) <= set(MARKED) and set(kept.unused) <= set(PLAIN)
    assert kept == mixtures.keep_with_degree(MARKED, PLAIN, d, size, generator=np.random.default_rng(3))


def test_a_set_has_at_least_one_pair() -> None:
    with pytest.raises(mixtures.ShareError, match="size must be at least 1 pair, got -4"):
        mixtures.keep_with_degree([], [], 0.5, -4, generator=np.random.default_rng(0))
