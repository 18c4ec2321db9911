"""Which of many keys wrote the texts, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import measure
import numpy as np
import pytest
from measure import GAMMA, SECRET, Case, K, V

from radio_utils.detection import detect, which_key
from radio_utils.watermarks import GreenList, GumbelMax

CASES = measure.key_cases((10, 100, 1000), pairs=20_000, gumbel_up_to=100)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_keys(timed: Callable[..., Any], case: Case) -> None:
    found = timed(case, rounds=1 if case.facts["keys"] > 100 else 3)
    assert found.log10_p.shape == (case.facts["keys"],)
    assert found.found() == [], "nobody marked this text"


@pytest.mark.parametrize("wm", [GreenList(SECRET, V, K, GAMMA), GumbelMax(SECRET, V, K)], ids=lambda wm: wm.scheme)
def test_one_pass_gives_each_keys_own_verdict(wm: GreenList | GumbelMax) -> None:
    given, candidates = measure.distinct_texts(3000), [wm.with_key(f"key {i}") for i in range(12)]
    found = which_key(given, candidates)
    alone = [detect(given, candidate) for candidate in candidates]
    assert np.allclose(found.totals, [one.total for one in alone], rtol=1e-12)
    assert np.allclose(found.log10_p, [one.log10_p for one in alone], rtol=1e-9)
