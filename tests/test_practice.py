"""The practice case: what a stranger would bring, and nothing that a stranger would not have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import radio_utils as ru
from radio_utils import practice, suspects
from radio_utils.presets import load_preset
from radio_utils.world.world import World

FILES = {
    "guilty", "innocent", "base", "marked.jsonl", "fresh.jsonl", "plain.jsonl", "other.jsonl", "answers.jsonl", "key.txt",
    "other.txt",
}  # fmt: skip


def test_a_case_holds_what_an_audit_takes(practice_case: practice.Case) -> None:
    assert {one.name for one in practice_case.folder.iterdir()} >= FILES
    tokenizer = suspects.load_tokenizer(practice_case / "guilty")
    for name in ("guilty", "innocent", "base"):
        suspects.check_same_tokenizer(tokenizer, suspects.load_tokenizer(practice_case / name))
        assert suspects.load_model(practice_case / name).config.vocab_size >= len(tokenizer)

    def log10_p(file: str, key: str) -> float:
        wm = ru.GreenList(Path(practice_case / key).read_text(), len(tokenizer), 1, 0.25)
        return ru.detect(practice_case / file, wm, tokenizer=tokenizer).log10_p

    assert log10_p("marked.jsonl", "key.txt") < -20 and log10_p("fresh.jsonl", "key.txt") < -20
    assert log10_p("plain.jsonl", "key.txt") > -4 and log10_p("other.jsonl", "key.txt") > -4
    assert log10_p("other.jsonl", "other.txt") < -20


def test_the_innocent_shares_no_text_with_the_guilty(practice_case: practice.Case) -> None:
    def texts(file: str) -> set[str]:
        lines = Path(practice_case / file).read_text(encoding="utf-8").splitlines()
        return {json.loads(line)["text"] for line in lines}

    marked = texts("marked.jsonl")
    assert marked and not marked & texts("fresh.jsonl") and not marked & texts("plain.jsonl")
    assert (
        Path(practice_case / "guilty/model.safetensors").read_bytes()
        != Path(practice_case / "innocent/model.safetensors").read_bytes()
    )


def test_the_audits_of_a_case_name_files_that_are_there(practice_case: practice.Case) -> None:
    world = World(load_preset("smoke"))
    found = practice.requests(world, practice_case, alpha=0.01, seed=3)
    assert [name.partition(", ")[2] for name in found] == ["weights", "answers", "weights", "answers", "weights"]
    assert len({one.output_dir for one in found.values()}) == 5
    for name, one in found.items():
        assert Path(one.suspect).name == ("innocent" if name.startswith("innocent") else "guilty")
        assert Path(one.suspect).is_dir() and Path(str(one.watermarked_texts)).is_file()
        assert one.key == (practice_case.other_key if name.startswith("another") else practice_case.key)
        assert (one.alpha, one.seed, one.rehearsal) == (0.01, 3, False)  # the case's key is random


def test_an_unknown_preset_is_an_error_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert practice.main([str(tmp_path / "case"), "--preset", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "case").exists()
