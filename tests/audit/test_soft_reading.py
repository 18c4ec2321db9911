"""Soft reading in an audit: plain texts, no other model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trials import World, audited


def row_of(found: Any) -> dict[str, Any]:
    record = json.loads((found.report.parent / "verdict.json").read_text())
    (row,) = (one for one in record["tests"] if one["name"] == "soft reading")
    return dict(row)


def test_plain_texts_alone_convict_the_guilty_only(world: World, tmp_path: Path) -> None:
    for suspect, guilty in ((world.guilty, True), (world.innocent, False)):
        found = audited(world, tmp_path / str(guilty), suspect, plain_texts=world.plain)
        row = row_of(found)
        assert row["applied"] and row["sound"] and row["scored"] > 100
        assert (row["log10_p"] < -10) == guilty and (guilty or row["log10_p"] > -2)
        assert "each token weighted by its probability" in found.report.read_text()
    again = audited(world, tmp_path / "True", world.guilty, plain_texts=world.plain)
    assert row_of(again)["log10_p"] < -10


@pytest.mark.parametrize("given", ["nothing", "a reference"])
def test_it_gives_way(world: World, tmp_path: Path, given: str) -> None:
    options = {} if given == "nothing" else {"plain_texts": world.plain, "reference": world.base}
    found = audited(world, tmp_path / "without", world.innocent, **options)
    row = row_of(found)
    assert not row["applied"] and row["why"] == {
        "nothing": "no plain_texts were given", "a reference": "there is a model to compare with, which tells more"
    }[given]  # fmt: skip
