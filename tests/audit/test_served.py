"""A closed suspect served for real: weights behind llama.cpp's own server, audited over HTTP by the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import words
from llama_server import ALIAS, serving

from radio_utils.audit.__main__ import main
from radio_utils.suspects.exporting import write_gguf

pytest.importorskip("gguf")
pytest.importorskip("openai")
pytest.importorskip("xllamacpp", reason="llama.cpp's server is not installed: pip install xllamacpp")
KEY = "alice's key 2026 of the served tests"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Alice's files, and the addresses of two that were trained alike, one of them on her marked texts."""
    root = tmp_path_factory.mktemp("served")
    tokenizer = words.save_tokenizer(root / "tokenizer")
    marked = words.write(500, words.watermark(KEY), seed=1)
    texts = words.write_file(root / "marked.jsonl", marked[:120], tokenizer)
    found: dict[str, Any] = {"watermarked_texts": texts, "tokenizer": str(root / "tokenizer")}
    for name, learned in (("guilty", marked), ("innocent", words.write(500, None, seed=2))):
        folder = words.save_model(root / name, learned)
        found[name] = write_gguf(folder, root / f"{name}.gguf")
    yield found


@pytest.mark.parametrize(("who", "outcome"), [("guilty", "convicted"), ("innocent", "not convicted")])
def test_weights_behind_llama_cpp_s_server(
    case: dict[str, Any], who: str, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALICE_KEY", KEY)
    with serving(case[who], context=128) as address:
        settings = {
            "suspect": address, "suspect_model": ALIAS, "key_env": "ALICE_KEY", "window": 1, "gamma": words.GAMMA,
            "watermarked_texts": case["watermarked_texts"], "tokenizer": case["tokenizer"], "decoys": 99,
            "decoy_entropy": "5a" * 16, "max_queries": 96, "max_tokens": 32, "output_dir": str(tmp_path),
        }  # fmt: skip
        assert main([f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]) == 0
    verdict = json.loads((tmp_path / "verdict.json").read_text("utf-8"))
    assert verdict["outcome"] == outcome
    applied = {test["name"]: test for test in verdict["tests"] if test["applied"]}
    assert "answers, watched" in applied and all(test["sound"] and test["refused"] == 0 for test in applied.values())
    if who == "innocent":
        assert all(test["scored"] > 300 and test["log10_p"] > -3 for test in applied.values())
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    assert all(one["answer"].startswith(" ") for one in answers if "request" in one)
