"""What a verdict stands on beside its p: when the key was fixed, who knows it and the decoys, how often somebody tried."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trials import GAMMA, KEY, WORDS, World, audited, request, watermark, write_file, write_ids

from radio_utils import audit as audits
from radio_utils import commit
from radio_utils.audit import AuditError, Verdict, auditing
from radio_utils.audit.__main__ import main
from radio_utils.audit.earlier import earlier_audits
from radio_utils.audit.tests import TESTS, SuspectTest

ENTROPY = "0123456789abcdef" * 2


def record(verdict: Verdict) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(verdict.report.with_name("verdict.json").read_text())
    return found


def opening(verdict: Verdict) -> str:
    """The report before its verdict."""
    return verdict.report.read_text().partition('<div class="verdict')[0]


# ----------------------------------------------------------------------------------------------------------------------
# When the key was fixed


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = commit.commit(watermark(), KEY)
    return str(made.write(tmp_path_factory.mktemp("published") / "commitment.json"))


def test_a_commitment_is_opened_and_its_date_is_told(world: World, audit: Any, committed: str) -> None:
    found = audit(world.guilty, commitment=committed)
    made = commit.Commitment.read(committed)
    assert found.convicted and record(found)["commitment"]["date"] == made.date
    page = opening(found)
    assert made.date in page and found.commitment["sha256"] in page and "not proved" not in page
    assert "proved only by where and when that file was published" in page
    assert record(found)["inputs"]["commitment"] == found.commitment
    assert f"--commitment {committed}" in record(found)["command"]


def test_without_one_the_report_begins_with_saying_so(world: World, audit: Any) -> None:
    found = audit(world.guilty)
    assert record(found)["commitment"] is None and "When the key was fixed:</strong> not proved" in opening(found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": "another key of Alice's"}, "is to another key"),
        ({"window": 2}, "is to window=1 in place of 2"),
        ({"gamma": 0.5}, "is to gamma=0.25 in place of 0.5"),
        ({"vocab_size": WORDS + 8}, "is to vocab_size=128 in place of 136"),
        ({"scheme": "gumbel max"}, "is to scheme='green list' in place of 'gumbel max'"),
        ({"commitment": "nothing.json"}, "commitment: nothing.json cannot be read"),
        ({"commitment": "texts"}, "commitment: .* is not strict JSON|is no commitment"),
    ],
)
def test_one_that_does_not_open_stops_the_audit(
    world: World, tmp_path: Path, committed: str, changes: dict[str, Any], words: str
) -> None:
    settings = {"commitment": committed} | changes
    if settings["commitment"] == "texts":
        settings["commitment"] = world.used
    with pytest.raises(AuditError, match=words) as error:
        audits.check(request(world, tmp_path / "out", world.guilty, **settings))
    assert KEY not in str(error.value) and not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------------------
# Who knows the key


@pytest.mark.parametrize(
    ("key", "scheme", "words"),
    [
        (15485863, "transformers lefthash", "15485863, the default key of transformers"),
        (15485863 + (1 << 32), "transformers selfhash", "15485863, the default key of transformers"),
        (3, "released green list", "3, the default seed of the paper's release"),
        (42, "gumbel max", "42, the key of vLLM's documentation"),
        ("15485863", "green list", "15485863, the default key"),
        (0, "released gumbel max", "small number"),
        ("k", "green list", "a single sign"),
        ("demonstration key 0", "green list", "a demonstration key of this book"),
    ],
)
def test_nobody_is_accused_with_a_key_that_others_know(
    world: World, tmp_path: Path, key: Any, scheme: str, words: str
) -> None:
    with pytest.raises(AuditError, match=f"the key is .*{words}.*mark with a key that nobody can guess"):
        audits.check(request(world, tmp_path / "out", world.guilty, key=key, scheme=scheme))


def test_text_that_somebody_marked_with_a_default_key_convicts_only_in_a_rehearsal(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    marked = write_file(tmp_path / "marked.jsonl", write_ids(100, watermark(15485863), seed=51))
    answers = write_file(tmp_path / "answers.jsonl", write_ids(60, watermark(15485863), seed=52))
    monkeypatch.setenv("THE_KEY", "int:15485863")
    arguments = [
        f"--suspect={answers}", f"--watermarked-texts={marked}", f"--tokenizer={world.base}", "--key-env=THE_KEY",
        "--window=1", f"--gamma={GAMMA}", "--decoys=99", f"--output-dir={tmp_path / 'out'}",
    ]  # fmt: skip
    assert main(arguments) == 2
    assert "default key of transformers" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*arguments, "--rehearsal"]) == 0
    found = json.loads((tmp_path / "out" / "verdict.json").read_text())
    page = (tmp_path / "out" / "report.html").read_text().partition('<div class="verdict')[0]
    assert found["outcome"] == "convicted" and "A rehearsal." in page and "accuses nobody" in page
    assert " --rehearsal " in found["command"]


def test_a_key_that_can_be_found_by_trying_is_told(world: World, audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "find the key by trying" not in audit(world.guilty).report.read_text()
    monkeypatch.setattr(auditing.keys, "short_key", lambda key, scheme: "Anybody can find the key by trying.")
    assert "leaves the same trace. Anybody can find the key by trying." in audit(world.guilty).report.read_text()


# ----------------------------------------------------------------------------------------------------------------------
# Who knew the decoys


def decoys_of(verdict: Verdict) -> list[Any]:
    return [None if test.null is None else test.null.log10_p.tolist() for test in verdict.tests]


def test_decoys_are_fresh_and_recorded(world: World, tmp_path: Path) -> None:
    first, second = (audited(world, tmp_path / name, world.guilty) for name in "ab")
    assert decoys_of(first) != decoys_of(second) and first.log10_p == second.log10_p
    entropy = record(first)["decoy_entropy"]
    assert len(entropy) == 32 and entropy != record(second)["decoy_entropy"]
    assert f"--decoy-entropy {entropy}" in record(first)["command"]
    again = audited(world, tmp_path / "c", world.guilty, decoy_entropy=entropy)
    assert decoys_of(again) == decoys_of(first) and again.tests == first.tests
    # the seed has no part in them
    assert decoys_of(audited(world, tmp_path / "d", world.guilty, decoy_entropy=entropy, seed=5)) == decoys_of(first)


def test_nobody_draws_decoys_until_he_likes_them(world: World, tmp_path: Path) -> None:
    first = auditing.run(request(world, tmp_path / "out", world.guilty))
    again = auditing.run(request(world, tmp_path / "out", world.guilty, batch_size=5))
    assert again.decoy_entropy == first.decoy_entropy and again.tests == first.tests
    for _ in range(2):  # plain texts that Alice's model writes are evidence as well
        hers = auditing.run(request(world, tmp_path / "hers", world.guilty, alice=world.base))
        first = first if first.inputs.keys() == hers.inputs.keys() else hers
        assert hers.decoy_entropy == first.decoy_entropy
    with pytest.raises(AuditError, match="another decoy_entropy"):
        auditing.run(request(world, tmp_path / "out", world.guilty, decoy_entropy=ENTROPY))


@pytest.mark.parametrize("access", ["open", "closed", "both"])
def test_decoys_are_drawn_when_all_evidence_is_fixed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, access: str
) -> None:
    order: list[str] = []
    for of, name in [(SuspectTest, "judged"), *((type(test), "run") for test in TESTS)]:
        real = getattr(of, name)
        monkeypatch.setattr(of, name, lambda *a, n=name, f=real, **o: (order.append(n), f(*a, **o))[1])
    draw = auditing._entropy
    monkeypatch.setattr(auditing, "_entropy", lambda *a: (order.append("draw"), draw(*a))[1])
    audited(world, tmp_path / "out", world.guilty, access=access, reference=world.base)
    drawn = order.index("draw")
    assert order.count("draw") == 1 and order.count("judged") >= 1 and set(order[:drawn]) == {"run"}
    assert "run" not in order[drawn:]


class Spoiler:
    """Alice's mark, and with it whatever the decoy keys of a seed that anybody knows favour together."""

    def logits_processor(self) -> Any:
        windows, tokens = np.divmod(np.arange(WORDS * WORDS), WORDS)
        scores = [watermark().with_decoy(0, i).scores(windows[:, None], tokens) for i in range(99)]
        liked = np.mean(scores, axis=0) - GAMMA
        own = watermark().scores(windows[:, None], tokens)
        bias = torch.from_numpy((2 * own + 60 * liked).reshape(WORDS, WORDS))
        return lambda ids, logits: logits + bias[ids[:, -1]]


def test_a_guilty_suspect_cannot_spoil_his_audit(world: World, tmp_path: Path) -> None:
    answers = write_file(tmp_path / "answers.jsonl", write_ids(60, Spoiler(), seed=61))
    prepared_for = audited(world, tmp_path / "a", answers, tokenizer=world.base, decoy_entropy="0" * 32)
    assert prepared_for.outcome == "void"  # were the decoys known beforehand, so it would have gone
    assert audited(world, tmp_path / "b", answers, tokenizer=world.base).outcome == "convicted"


@pytest.mark.parametrize("entropy", ["0", "42", "g" * 32, "A" * 32, "0x" + "a" * 32, "a" * 31])
def test_decoys_that_a_suspect_could_guess_are_refused(world: World, tmp_path: Path, entropy: str) -> None:
    with pytest.raises(AuditError, match="decoy_entropy must be 32 to 128 digits"):
        request(world, tmp_path, world.guilty, decoy_entropy=entropy)


# ----------------------------------------------------------------------------------------------------------------------
# How often one tried


def test_earlier_audits_of_the_same_suspect_are_counted(world: World, tmp_path: Path) -> None:
    place = tmp_path / "audits"
    first = audited(world, place / "1", world.innocent, alpha=0.01)
    assert first.earlier == () and "none was found in the folders beside this one" in opening(first)
    other = audited(world, place / "2", world.guilty)
    assert other.earlier == ()
    renamed = str(shutil.copytree(world.innocent, tmp_path / "another name"))
    third = audited(world, place / "3", renamed, access="closed", alpha=0.02)
    assert [(one["folder"], one["alpha"], one["outcome"]) for one in third.earlier] == [("1", 0.01, "not convicted")]
    page = opening(third)
    assert "must share one α" in page and "0.03 at most" in page and "<code>1</code>" in page
    assert record(third)["earlier"][0]["date"] == record(first)["date"]
    # an audit that is gone on with does not count itself
    assert len(auditing.run(request(world, place / "3", renamed, access="closed", alpha=0.02)).earlier) == 1
    (place / "4").mkdir()
    for text in (
        "",
        "{}",
        '{"inputs": {"suspect": 5}}',
        '{"inputs": [1]}',
        "[1]",
        '{"inputs": {"suspect": {"sha256": {"a": 1}}}}',
    ):
        (place / "4" / "verdict.json").write_text(text)
        assert len(earlier_audits(place / "5", third.inputs)) == 2


def test_suspects_are_known_by_what_they_are(tmp_path: Path) -> None:
    def with_suspect(suspect: Any, **more: Any) -> dict[str, Any]:
        return {"watermarked_texts": {"sha256": "00"}, "suspect": suspect, **more}

    said = with_suspect({"name": "https://h/v1", "model": "bob"}, answers={"file": "x", "sha256": "aa"})
    cases = {
        "weights": with_suspect({"name": "a", "sha256": {"model.safetensors": "01", "config.json": "02"}}),
        "hub": with_suspect({"name": "org/bob", "sha256": {"hub commit": "c0ffee"}}),
        "unknown": with_suspect({"name": "org/bob", "sha256": {"hub commit": "unknown"}}),
        "answers": with_suspect({"file": "x.jsonl", "sha256": "bb", "texts": 3}),
        "endpoint": said,
    }
    for name, inputs in cases.items():
        (tmp_path / name).mkdir()
        verdict = {"inputs": inputs, "date": name, "outcome": "void", "alpha": 0.001, "fingerprint": "f"}
        (tmp_path / name / "verdict.json").write_text(json.dumps(verdict))

    def seen(inputs: dict[str, Any]) -> list[str]:
        return [one["folder"] for one in earlier_audits(tmp_path / "mine", inputs)]

    assert seen(with_suspect({"name": "b", "sha256": {"model.safetensors": "01", "config.json": "ff"}})) == ["weights"]
    assert seen(with_suspect({"name": "b", "sha256": {"model.safetensors": "02"}})) == []
    assert seen(cases["hub"]) == ["hub"] and seen(cases["unknown"]) == []
    assert seen(with_suspect({"file": "renamed", "sha256": "bb"})) == ["answers"]
    assert seen(with_suspect({"name": "https://H/v1/", "model": "bob"})) == ["endpoint"]
    assert seen(with_suspect({"name": "https://h/v1", "model": "carol"})) == []
    assert seen(with_suspect({"file": "kept answers", "sha256": "aa"})) == ["endpoint"]  # what it said, given as a file


# ----------------------------------------------------------------------------------------------------------------------
# What a rejection proves


def test_the_report_says_what_a_conviction_by_answers_does_not_prove(world: World, audit: Any, tmp_path: Path) -> None:
    prompts, answers = write_ids(60, None, seed=11)[:, :8], write_ids(60, watermark(), seed=12)
    file = write_file(tmp_path / "answers.jsonl", np.concatenate([prompts, answers], axis=1), prompt=8)
    said, read = audit(file, tokenizer=world.base), audited(world, tmp_path / "read", world.guilty)
    assert said.convicted and read.convicted
    for words in ("retrieved for the prompt", "system prompt", "a proxy that passes prompts on to her own API"):
        assert words in said.report.read_text() and words not in read.report.read_text()
    for verdict in (said, read):
        page = verdict.report.read_text()
        assert "by way of a third model" in page and "with the key by anyone leaves the same trace" in page
        assert "Is the arithmetic right?" in page and "no decoy can show that the real key had a say" in page
