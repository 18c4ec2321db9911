"""Audits of marks that no scheme's name says: an engine's configuration, or a watermark of one's own."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trials import WORDS, World, audited, request, write_file

from radio_utils import engines
from radio_utils.audit import AuditError, check
from radio_utils.compat import ReleasedGreenList

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_new_scheme import TwoBits

SECRET = 918273645546372819
VLLM: dict[str, Any] = {"algorithm": "gumbel", "key": SECRET, "context_width": 2}


def best_of(wm: Any, texts: int = 100, length: int = 48) -> np.ndarray:
    """Each word is the best of six: marked, whatever the scheme's own generator is."""
    rng = np.random.default_rng(3)
    ids = rng.integers(0, WORDS, (texts, length))
    for place in range(wm.window, length):
        candidates = rng.integers(0, WORDS, (texts, 6))
        scores = np.column_stack([wm.scores(ids[:, place - wm.window : place], one) for one in candidates.T])
        ids[:, place] = candidates[np.arange(texts), scores.argmax(axis=1)]
    return ids


def written(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "engine.json"
    path.write_text(json.dumps(config))
    return str(path)


def test_an_engines_file_is_all_that_is_needed(world: World, tmp_path: Path) -> None:
    file = write_file(tmp_path / "used.jsonl", best_of(engines.from_config(VLLM, WORDS)))
    config = written(tmp_path, VLLM)
    found = audited(
        world, tmp_path / "out", world.innocent, engine_config=config, key=None, watermarked_texts=file,
        reference=world.base, fresh_texts=world.plain,
    )  # fmt: skip
    assert found.outcome == "not convicted" and all(test.applied for test in found.tests if test.name.startswith("c"))
    assert found.texts_log10_p < -20
    kept = "".join(one.read_text() for one in (tmp_path / "out").glob("*.*"))
    assert str(SECRET) not in kept and "engine.json" in kept


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**VLLM, "context_width": 4}, "with window=2 they do"),
        ({**VLLM, "key": 42}, "42, the key of vLLM's documentation"),
        ({**VLLM, "colour": 1}, "engine_config: config has unknown fields"),
        ({k: v for k, v in VLLM.items() if k != "key"}, "give the key beside it"),
        ({**VLLM, "key": 2**64 + SECRET}, "engine_config: "),
    ],
)
def test_what_is_wrong_with_it_is_said(world: World, tmp_path: Path, config: dict[str, Any], words: str) -> None:
    file = write_file(tmp_path / "used.jsonl", best_of(engines.from_config(VLLM, WORDS)))
    made = request(
        world, tmp_path / "out", world.innocent, engine_config=written(tmp_path, config), key=None, watermarked_texts=file
    )
    with pytest.raises(AuditError, match=words) as caught:
        check(made)
    assert str(SECRET) not in str(caught.value) and str(2**64 + SECRET) not in str(caught.value)


def test_the_key_may_stand_in_the_environment(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_file(tmp_path / "used.jsonl", best_of(engines.from_config(VLLM, WORDS)))
    bare = written(tmp_path, {"algorithm": "gumbel", "context_width": 2})
    monkeypatch.setenv("ALICES_KEY", hex(SECRET))
    made = request(
        world, tmp_path / "out", world.innocent, engine_config=bare, key=None, key_env="ALICES_KEY", watermarked_texts=file
    )
    check(made)
    synthid = written(tmp_path, {"keys": [654, 400, 836, 123], "ngram_len": 3})
    with pytest.raises(AuditError, match="the list of keys in the documentation"):
        check(replace(made, key_env="", engine_config=synthid))


def test_a_watermark_of_ones_own_is_audited(world: World, tmp_path: Path) -> None:
    mark = TwoBits("a key that is its own", WORDS)
    file = write_file(tmp_path / "used.jsonl", best_of(mark))
    found = audited(
        world, tmp_path / "out", world.innocent, mark=mark, key=None, watermarked_texts=file, reference=world.base,
        fresh_texts=world.plain, access="both",
    )  # fmt: skip
    assert found.outcome == "not convicted" and found.fingerprint == mark.fingerprint
    assert sum(test.applied for test in found.tests) == 3
    with pytest.raises(AuditError, match="mark is a whole watermark"):
        request(world, tmp_path / "out", world.innocent, mark=mark, key=None, watermarked_texts=file, engine_config="x")


@pytest.mark.parametrize("weighed", ["contrastive reading", "soft reading"])
def test_where_p_is_an_upper_bound_the_report_says_so(world: World, tmp_path: Path, weighed: str) -> None:
    given = {"reference": world.base} if weighed == "contrastive reading" else {}
    said = {}
    for mark in (ReleasedGreenList(SECRET, WORDS, 1), TwoBits("a key that is its own", WORDS)):
        file = write_file(tmp_path / "used.jsonl", best_of(mark))
        found = audited(
            world, tmp_path / mark.scheme, world.innocent, mark=mark, key=None, watermarked_texts=file,
            plain_texts=world.plain, **given,
        )  # fmt: skip
        notes = {test.name: test.note for test in found.tests if test.applied}
        assert len(notes) > 1 and weighed in notes
        said[mark.scheme] = [name for name, note in notes.items() if "p is an upper bound" in note]
        assert ("p is an upper bound" in found.report.read_text()) == bool(said[mark.scheme])
    assert said == {"released green list": [weighed], "two bits": []}
