"""Detection of engines' marks side by side with the engines' own way, which must find the same scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import measure
import numpy as np
import plain
import pytest
from measure import Case, V

from radio_utils.engines import VLLMGumbel


@pytest.mark.parametrize("case", measure.engine_cases(rows=16, others=2), ids=lambda case: case.name)
def test_engines(timed: Callable[..., Any], case: Case) -> None:
    found = case.tell(timed(case))
    assert found.get("scored", 1) > 0


def test_scores_are_the_same() -> None:
    given = measure.texts("natural-like", 16)[:2].tolist()
    expected = plain.vllm_gumbel(given, 4, 42)
    found = VLLMGumbel(42, V).scores(expected.windows, expected.tokens)
    assert np.allclose(found, expected.values, rtol=1e-13)
