"""From an engine's switch to a verdict: who was trained on its marked text is convicted by its configuration alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trials import WORDS, World, audited, save_model, write_file, write_ids

from radio_utils import engines

SECRET = 918273645546372819
CONFIGS: dict[str, dict[str, Any]] = {
    "gumbel, k = 1": {"algorithm": "gumbel", "context_width": 1},
    "gumbel, k = 4": {"algorithm": "gumbel"},
    "dual key": {"algorithm": "dual_key_gumbel"},
    "synthid, k = 1": {"algorithm": "synthid", "context_width": 1},
    "sbw": {"algorithm": "sbw"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_engines_switch_convicts_who_learned_its_text_and_nobody_else(world: World, tmp_path: Path, name: str) -> None:
    config = CONFIGS[name] | {"key": SECRET}
    wm = engines.from_config(config, WORDS)
    used = write_ids(60, wm, seed=11)
    bob = save_model(tmp_path / "bob", used, base=world.base, epochs=15)
    file = tmp_path / "engine.json"
    file.write_text(json.dumps(config))
    given: dict[str, Any] = {
        "engine_config": str(file), "watermarked_texts": write_file(tmp_path / "used.jsonl", used, prompt=2), "key": None,
        "full_context": True,
    }  # fmt: skip
    guilty = audited(world, tmp_path / "guilty", bob, **given)
    assert guilty.outcome == "convicted"
    innocents = {"another text": world.innocent, "another key": world.carols}
    for who, suspect in innocents.items():
        found = audited(world, tmp_path / who, suspect, **given)
        assert found.outcome == "not convicted", who
