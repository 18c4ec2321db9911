"""Rows of users who opted out of the mark: the plan says how many they are, and what that asks of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trials import World, watermark, write_file, write_ids

from radio_utils.audit import preflight


def test_the_plan_says_how_many_texts_carry_no_mark(world: World, audit: Any, tmp_path: Path) -> None:
    rows = [*write_ids(70, watermark(), seed=1), *write_ids(30, None, seed=9)]
    found = audit(world.innocent, watermarked_texts=write_file(tmp_path / "some.jsonl", rows))
    planned = json.loads((found.report.parent / "plan.json").read_text())
    share = planned["unmarked_texts"]
    assert share["low"] <= 0.3 <= share["high"] and abs(share["share"] - 0.3) < 0.1 and share["texts"] == 100
    (needed,) = planned["smallest_effect_where_marked"].values()
    (applied,) = (one for one in found.tests if one.applied)
    assert applied.smallest_effect is not None and 0 < needed < 1
    assert all(one["test"] in {test.name for test in found.tests} for one in planned["tests"])


@pytest.mark.parametrize(("smallest", "share", "expected"), [(0.1, 0.5, 0.2), (0.1, 1.0, None), (None, 0.0, None)])
def test_what_is_diluted_must_be_stronger(smallest: float | None, share: float, expected: float | None) -> None:
    assert preflight.where_marked(preflight.Need(100, smallest, 0.3), share) == expected
