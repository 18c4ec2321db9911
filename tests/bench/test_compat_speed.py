"""Detection of published schemes side by side with plain code, which must find the same scores bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import measure
import numpy as np
import plain
import pytest
from measure import GAMMA, KINDS, Case, K, V

from radio_utils.compat import ReleasedGreenList, ReleasedGumbelMax
from radio_utils.detection import detect


@pytest.mark.parametrize("case", measure.compat_cases(rows=16, others=1), ids=lambda case: case.name)
def test_compat(timed: Callable[..., Any], case: Case) -> None:
    assert 0 < case.tell(timed(case))["scored"] < case.facts["tokens"]


@pytest.mark.parametrize("kind", KINDS)
def test_green_lists_are_the_same(kind: str) -> None:
    rows, wm = measure.texts(kind, 16)[:2], ReleasedGreenList(3, V, K, GAMMA)
    expected = plain.green_list(rows.tolist(), V, K, GAMMA, 3)
    assert np.array_equal(wm.scores(expected.windows, expected.tokens), expected.values)
    verdict = detect(rows, wm)
    assert (verdict.scored, verdict.total) == (expected.values.size, expected.values.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_gumbel_numbers_are_the_same(kind: str) -> None:
    rows, wm = measure.texts(kind, 16)[:2], ReleasedGumbelMax(3, V, K)
    expected = plain.gumbel_max(rows.tolist(), V, K, 3)
    assert np.array_equal(wm.uniforms(expected.windows, expected.tokens), expected.values)
    verdict = detect(rows, wm)
    assert verdict.scored == expected.values.size
    assert verdict.total == pytest.approx(-np.log1p(-expected.values).sum(), rel=1e-12)
