"""Copies are found wherever they begin and end, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radio_utils.audit import copies

texts = st.lists(st.lists(st.integers(0, 2), max_size=12).map(lambda ids: np.array(ids, np.int64)), max_size=5)


def reference(some: list[Any], others: list[Any], run: int) -> list[bool]:
    """From the definition: every run of every text is looked for in every other."""
    known = {tuple(other[i : i + run]) for other in others for i in range(other.size - run + 1)}
    found = []
    for text in some:
        starts = [i for i in range(text.size - run + 1) if tuple(text[i : i + run]) in known]
        found.append(2 * len({i + j for i in starts for j in range(run)}) > text.size)
    return found


@given(some=texts, others=texts)
def test_it_is_the_definition(some: list[Any], others: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copies, "RUN", 3)
        patched.setattr(copies, "_AT_ONCE", 7)
        assert copies.standing_in(some, others).tolist() == reference(some, others, 3)


def test_a_long_text_is_found_among_many() -> None:
    rng = np.random.default_rng(0)
    others = [rng.integers(0, 50_000, 150) for _ in range(3000)]
    hers = [other[5:-7] for other in others[::10]]
    theirs = [rng.integers(0, 50_000, 150) for _ in range(300)]
    assert copies.standing_in(hers + theirs, others).tolist() == [True] * 300 + [False] * 300
    assert copies.standing_in([], others).size == 0 and not copies.standing_in(hers, []).any()
