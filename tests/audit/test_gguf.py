"""Weights as people hand them out, in GGUF files: read by the audit, and asked behind llama.cpp's own server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import words
from llama_server import ALIAS, serving

from radio_utils.audit import AuditError, audit_suspect
from radio_utils.audit.__main__ import main
from radio_utils.suspects.exporting import write_gguf

gguf = pytest.importorskip("gguf")
KEY = "alice's key 2026 of the served tests"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Alice's texts, and two that were trained alike, one of them on her marked texts, as folders and as GGUF files."""
    root = tmp_path_factory.mktemp("gguf")
    tokenizer = words.save_tokenizer(root / "tokenizer")
    marked, plain = words.write(500, words.watermark(KEY), seed=1), words.write(600, None, seed=2)
    words.write_file(root / "marked.jsonl", marked[:120], tokenizer)
    words.write_file(root / "plain.jsonl", plain[500:], tokenizer)
    for name, learned, precision in (("guilty", marked, "F32"), ("innocent", plain[:500], "F16")):
        write_gguf(words.save_model(root / name, learned), root / f"{name}.gguf", precision=precision)
    return {one.name: one for one in root.iterdir()}


def settings(case: dict[str, Path], **changes: Any) -> dict[str, Any]:
    usual = {"window": 1, "gamma": words.GAMMA, "decoys": 99, "decoy_entropy": "5a" * 16, "rehearsal": "no"}
    return usual | {"watermarked_texts": str(case["marked.jsonl"])} | changes


@pytest.mark.parametrize(("who", "outcome"), [("guilty", "convicted"), ("innocent", "not convicted")])
def test_weights_behind_llama_cpp_s_server(
    case: dict[str, Path], who: str, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    pytest.importorskip("xllamacpp", reason="llama.cpp's server is not installed: pip install xllamacpp")
    monkeypatch.setenv("ALICE_KEY", KEY)
    with serving(case[f"{who}.gguf"], context=128) as address:
        given = settings(
            case, suspect=address, suspect_model=ALIAS, key_env="ALICE_KEY", tokenizer=str(case["tokenizer"]),
            max_queries=96, max_tokens=32, output_dir=str(tmp_path),
        )  # fmt: skip
        assert main([f"--{name.replace('_', '-')}={value}" for name, value in given.items()]) == 0
    verdict = json.loads((tmp_path / "verdict.json").read_text("utf-8"))
    assert verdict["outcome"] == outcome
    applied = {test["name"]: test for test in verdict["tests"] if test["applied"]}
    assert "answers, watched" in applied and all(test["sound"] and test["refused"] == 0 for test in applied.values())
    if who == "innocent":
        assert all(test["scored"] > 300 and test["log10_p"] > -3 for test in applied.values())
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    assert all(one["answer"].startswith(" ") for one in answers if "request" in one)


def test_a_file_is_read_as_its_folder_is(case: dict[str, Path], tmp_path: Path) -> None:
    """Suspect and what it is compared with are files; rows without a token, which a GGUF file names, are no tokens."""
    verdicts = {}
    for form in ("", ".gguf"):
        models = {"suspect": case[f"guilty{form}"], "alice": case[f"innocent{form}"]}
        verdicts[form] = audit_suspect(
            **{name: str(value) for name, value in models.items()}, key=KEY, output_dir=str(tmp_path / f"out{form}"),
            **settings(case, plain_texts=str(case["plain.jsonl"]), worlds=0),
        )  # fmt: skip
    found, of_folder = verdicts[".gguf"], verdicts[""]
    assert found.outcome == of_folder.outcome == "convicted"
    for test, same in zip(found.tests, of_folder.tests, strict=True):
        assert (test.applied, test.name) == (same.applied, same.name)
        if test.applied and test.name.startswith("reading"):  # the contrast is with a model in half precision
            assert (test.scored, test.log10_p) == (same.scored, same.log10_p)
    assert "tokenizer is Alice's, token by token. Rows 352 to 356 " in (found.vocabulary or "")
    page = found.report.read_text("utf-8")
    written = {name: (found.report.parent / name).read_text("utf-8") for name in ("plan.json", "verdict.json")}
    for who, stored in (("suspect", "F32 (12 tensors)"), ("alice", "F16 (9 tensors), F32 (3 tensors)")):
        assert found.inputs[who]["quantisation"] == stored and f"{who}: quantisation" in page
        for text in (page, *written.values()):
            assert f"The weights of {who} come from a GGUF file, stored as {stored}" in text
    assert "quantisation" not in of_folder.inputs["suspect"]
    again = tmp_path / "renamed.gguf"
    shutil.copy(case["guilty.gguf"], again)
    with pytest.raises(AuditError, match="reference is the suspect itself, weight for weight"):
        audit_suspect(
            str(again), reference=str(case["guilty.gguf"]), key=KEY, output_dir=str(tmp_path / "same"), **settings(case)
        )
    assert [one["folder"] for one in json.loads(written["verdict.json"])["earlier"]] == []


def test_alice_s_tokenizer_may_be_a_file(case: dict[str, Path], tmp_path: Path) -> None:
    """Its fillers are no tokens, so the mark is over the tokens alone, and who has her tokenizer is seen to have it."""
    given = settings(case, tokenizer=str(case["innocent.gguf"]), plain_texts=str(case["plain.jsonl"]))
    found = audit_suspect(str(case["guilty"]), key=KEY, output_dir=str(tmp_path / "out"), **given)
    assert found.convicted and "tokenizer is Alice's, token by token" in (found.vocabulary or "")


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: -file.stat().st_size // 4])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def headless(file: Path) -> None:
    file.write_bytes(b"PK\3\4" + file.read_bytes()[4:])


def doubled(file: Path) -> None:
    shutil.copy(file, file.with_name("other.gguf"))


def rewritten(file: Path, *fields: tuple[str, int]) -> None:
    """A file of one tensor, no tokenizer, and these fields."""
    writer = gguf.GGUFWriter(file, "llama")
    for name, value in fields:
        writer.add_uint16(name, value)
    writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def one_part(file: Path) -> None:
    rewritten(file, ("split.count", 3))


def another_s(file: Path) -> None:
    from toys import write_gguf as write_toy

    write_toy(file, quantised=False)


@pytest.mark.parametrize("name", ["suspect", "reference", "alice", "tokenizer"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (torn, r"bob\.gguf is no whole GGUF file \(.+\); get the file again"),
        (empty, r"bob\.gguf is no whole GGUF file \(.+\); get the file again"),
        (headless, r"bob\.gguf is no whole GGUF file \(.+\); get the file again"),
        (doubled, r"holds 2 GGUF files \(bob\.gguf, other\.gguf\); give the path of the one that is meant"),
        (rewritten, r"bob\.gguf holds no tokenizer; give a file that was written with one"),
        (one_part, r"bob\.gguf is one part of a model; join all parts"),
    ],
)
def test_odd_files_stop_an_audit_before_anything_is_read(
    case: dict[str, Path], name: str, spoil: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    (tmp_path / "bob").mkdir()
    file = tmp_path / "bob" / "bob.gguf"
    shutil.copy(case["innocent.gguf"], file)
    spoil(file)
    models = {"suspect": str(case["guilty.gguf"]), name: str(tmp_path / "bob")}
    with pytest.raises(AuditError, match=rf"^{name}: .*{said}") as caught:
        audit_suspect(**models, key=KEY, output_dir=str(tmp_path / "out"), **settings(case, watermarked_texts="none.jsonl"))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reference", "reference has another tokenizer than suspect; give the model that the suspect was made from"),
        ("alice", "alice has another tokenizer than the texts; give Alice's own unmarked model"),
    ],
)
def test_another_tokenizer_stops_an_audit_before_anything_is_read(
    case: dict[str, Path], name: str, said: str, tmp_path: Path
) -> None:
    another_s(tmp_path / "bob.gguf")
    models = {"suspect": str(case["guilty.gguf"]), "tokenizer": str(case["tokenizer"]), name: str(tmp_path / "bob.gguf")}
    with pytest.raises(AuditError, match=said):
        audit_suspect(**models, key=KEY, output_dir=str(tmp_path / "out"), **settings(case, watermarked_texts="none.jsonl"))
