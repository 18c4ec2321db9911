"""What Alice's own model and plain texts add: the first open test, the re-marking control, and texts that were strings."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from trials import DELTA, GAMMA, KEY, WORDS, World, audited, request, watermark, write_file, write_ids

from radio_utils import detection, suspects
from radio_utils.audit import AuditError, Verdict, alice, audit_suspect, case, spelling
from radio_utils.audit.__main__ import main
from radio_utils.audit.texts import Texts
from radio_utils.keys import SCHEMES, make_watermark
from radio_utils.predictions import Predictions

CONTRAST, SUPERVISED = "contrastive reading", "reading, supervised"
NUMBER, KEYS, LAST = 918273645546372819, 40, WORDS - 1


def by_name(verdict: Verdict) -> dict[str, Any]:
    return {test.name: test for test in verdict.tests}


def planned(verdict: Verdict) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(verdict.report.with_name("plan.json").read_text())
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Plain text first


@pytest.mark.parametrize("given", ["plain_texts", "fresh_texts", "alice", "alice and marked fresh texts"])
def test_plain_text_is_read_first_wherever_it_can_be_had(world: World, tmp_path: Path, given: str) -> None:
    changes: dict[str, Any] = {
        "plain_texts": {"plain_texts": world.plain, "reference": world.base},
        "fresh_texts": {"fresh_texts": world.plain, "alice": world.base},
        "alice": {"alice": world.base},
        "alice and marked fresh texts": {"alice": world.base, "fresh_texts": world.fresh},
    }[given]
    for suspect, outcome in ((world.guilty, "convicted"), (world.innocent, "not convicted")):
        found = audited(world, tmp_path / outcome, suspect, **changes)
        assert found.outcome == outcome and found.tests[0].name == CONTRAST == planned(found)["tests"][0]["test"]
        first = found.tests[0]
        assert first.applied and first.scored > 1000 and (first.log10_p < -20) == (outcome == "convicted")
        assert found.report.read_text().index(f"<strong>{CONTRAST}") < found.report.read_text().index(
            f"<strong>{SUPERVISED}"
        )
        if given != "fresh_texts":
            assert found.inputs["plain_texts"]["texts"] > 100
        if given.startswith("alice"):
            written = Path(found.inputs["plain_texts"]["file"])
            rows = [json.loads(line) for line in written.read_text().splitlines()]
            assert tmp_path in written.parents and len(rows) == alice.WRITTEN
            assert detection.detect([row["ids"] for row in rows], watermark()).log10_p > -4
            assert found.inputs["alice"]["sha256"].keys() >= {"model.safetensors"}
    assert found.counted == len([t for t in found.tests if t.applied]) + (given == "fresh_texts")


def test_plain_texts_that_carry_the_mark_are_refused_by_name(world: World, audit: Any, tmp_path: Path) -> None:
    marked = np.concatenate([write_ids(60, watermark(), seed=9), write_ids(60, None, seed=9)], axis=1)
    prompted = write_file(tmp_path / "prompted.jsonl", marked, prompt=48)  # only the prompts do
    for file in (world.fresh, world.used, prompted):
        with pytest.raises(AuditError, match=r"^plain_texts carry the watermark, or their prompts do"):
            audit(world.guilty, plain_texts=file, reference=world.base)
    with pytest.raises(AuditError, match=r"^texts that alice writes carry the watermark"):
        audit(world.innocent, alice=world.guilty)  # a marked model is no unmarked one
    found = audit(world.guilty, fresh_texts=prompted, reference=world.base)
    assert "or their prompts do" in found.tests[0].why and not found.tests[0].applied and found.counted == 3


def test_no_word_of_a_marked_prompt_stands_before_plain_texts(world: World, tmp_path: Path) -> None:
    drawn = write_ids(100, watermark(), seed=1)[:, :24]
    template = np.tile([5, 6, 7], (100, 1))
    plain = write_ids(100, None, seed=1)[:, :24]

    def openings(texts: Any, prompt: int, **changes: Any) -> list[list[int]]:
        file = write_file(tmp_path / "used.jsonl", texts, prompt=prompt)
        prepared = case.prepared(request(world, tmp_path / "out", world.guilty, watermarked_texts=file, **changes))
        return [one.tolist() for one in alice.openings(prepared)]

    marked = np.concatenate([template, drawn], axis=1)
    assert openings(marked, 10) == [[5, 6, 7]] * alice.WRITTEN  # what all prompts begin with
    free = openings(drawn, 8)
    assert {len(one) for one in free} == {1} and openings(drawn, 0) == free  # nothing of theirs
    human = np.concatenate([plain, drawn], axis=1)
    assert openings(human, 24)[:100] == plain.tolist()  # a mark would show in them, and none does
    assert openings(human, 1) == free  # none could show in so little


def marked_under(scheme: str) -> np.ndarray:
    """The best of six words at each place: marked, whatever the scheme's own generator is."""
    wm, rng = make_watermark(scheme, NUMBER, WORDS, 1, GAMMA), np.random.default_rng(3)
    texts = rng.integers(0, WORDS, (100, 48))
    for place in range(1, 48):
        candidates = rng.integers(0, WORDS, (100, 6))
        scores = np.column_stack([wm.scores(texts[:, place - 1 : place], one) for one in candidates.T])
        texts[:, place] = candidates[np.arange(100), scores.argmax(axis=1)]
    return texts


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_read_against_a_reference(world: World, tmp_path: Path, scheme: str) -> None:
    file = write_file(tmp_path / "used.jsonl", marked_under(scheme))
    found = audited(
        world, tmp_path / "out", world.innocent, scheme=scheme, key=NUMBER, watermarked_texts=file, reference=world.base,
        fresh_texts=world.plain,
    )  # fmt: skip
    assert found.outcome == "not convicted" and found.tests[0].applied
    assert by_name(found)[SUPERVISED].added is not None


def test_a_tokenizer_that_is_not_alices(world: World, audit: Any, tmp_path: Path) -> None:
    from trials import save_tokenizer

    other = shutil.copytree(world.innocent, tmp_path / "other")
    save_tokenizer(other, {f"w{i}": (i + 3) % WORDS for i in range(WORDS)})
    found = audit(str(other), alice=world.base)
    assert not found.tests[0].applied and found.tests[0].why == "the suspect's tokenizer is not Alice's"
    with pytest.raises(AuditError, match=r"^alice has another tokenizer than the texts"):
        audit(world.innocent, alice=str(other), tokenizer=world.base)


# ----------------------------------------------------------------------------------------------------------------------
# The re-marking control


@pytest.fixture(scope="module")
def prompted(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Texts that the guilty suspect used, behind their first words."""
    rows = [json.loads(line)["text"].split() for line in Path(world.used).read_text().splitlines()]
    ids = [[int(word[1:]) for word in row] for row in rows]
    return write_file(tmp_path_factory.mktemp("prompted") / "used.jsonl", ids, prompt=6)


@pytest.fixture
def controlled(world: World, prompted: str, tmp_path: Path) -> Any:
    return functools.partial(
        audited, world, tmp_path / "out", alice=world.base, delta=DELTA, watermarked_texts=prompted, worlds=30,
        control_texts=40,
    )  # fmt: skip


def test_the_control_ranks_the_real_texts_and_sees_no_leak(world: World, controlled: Any) -> None:
    guilty = controlled(world.guilty)
    control = guilty.control
    assert (control.why, control.texts, control.worlds, control.leaks) == ("", 40, 30, False)
    assert control.rank_p == pytest.approx(1 / 31) and control.ks_p > 1e-3 and control.log10_p < -5
    again = controlled(world.guilty, decoy_entropy=guilty.decoy_entropy)
    assert again.control == control and again.tests == guilty.tests
    record = json.loads(guilty.report.with_name("verdict.json").read_text())
    assert record["control"]["rank_p"] == control.rank_p and planned(guilty)["no_remarking_control"] == ""
    head = guilty.report.read_text().partition('<div class="verdict')[0]
    assert "keys that nobody used (keys: 30, texts under each: 40)" in head
    assert controlled(world.innocent).control.rank_p > 1 / 31


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alice": ""}, "give her own unmarked model as alice"),
        ({"worlds": 0}, "worlds is 0"),
        ({"delta": 0.0}, "give delta, the bias"),
        ({"watermarked_texts": "used"}, "have no prompts of at least window=1 tokens"),
        ({"access": "closed"}, "made for the reading of marked texts"),
    ],
)
def test_why_there_is_no_control(world: World, controlled: Any, changes: dict[str, Any], words: str) -> None:
    found = controlled(world.innocent, **{n: getattr(world, str(v), v) for n, v in changes.items()})
    assert words in found.control.why == planned(found)["no_remarking_control"] and found.control.worlds == 0
    assert "Re-marking control:</strong> not run" in found.report.read_text().partition('<div class="verdict')[0]


def test_the_control_keeps_no_prompt_that_the_key_wrote() -> None:
    """Later turns of a chat stand behind earlier ones, which other worlds do not write again."""
    ids = list(np.random.default_rng(0).integers(0, WORDS, (3, 9)))
    before = [np.array([1, 2]), np.concatenate([[1, 2, -1], ids[0], [-1, 3]]), np.array([-1])]
    texts = Texts("watermarked_texts", "a.jsonl", "", 0, ids, before)
    of: Any = SimpleNamespace(texts=texts, wm=watermark(), request=SimpleNamespace(control_texts=9))
    assert alice._prompted(of) == [0]
    texts.prompts[2:] = [np.array([5])]  # type: ignore[index]
    assert alice._prompted(of) == [0, 2]


class Echo(torch.nn.Module):
    """An innocent that copies: after a word, what came after it before; after two ends of a line the 17th word."""

    def __init__(self, like: Any, newline: int | None = None) -> None:
        super().__init__()
        self.like, self.newline, self.config, self.device = like, newline, like.config, like.device
        self.get_output_embeddings = like.get_output_embeddings

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        logits = self.like(input_ids=input_ids, **options).logits.clone()
        for row, ids in enumerate(input_ids.tolist()):
            last: dict[int, int] = {}
            for place, token in enumerate(ids):
                if place:
                    last[ids[place - 1]] = token
                if token in last:
                    logits[row, place, last[token]] += 50.0
                if self.newline is not None and place > 17 and ids[place - 1 : place + 1] == [self.newline] * 2:
                    logits[row, place, ids[16]] += 100.0
        return SimpleNamespace(logits=logits)


def suspect_is(monkeypatch: pytest.MonkeyPatch, echo: Any) -> None:
    load = case._load
    monkeypatch.setattr(case, "_load", lambda name, *rest: echo if name == "suspect" else load(name, *rest))


def test_a_leak_makes_the_reading_of_marked_texts_unsound(
    world: World, controlled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were every place scored, an innocent that copies would be convicted; the control sees it, decoys do not."""
    suspect_is(monkeypatch, Echo(suspects.load_model(world.innocent)))
    assert controlled(world.innocent).outcome == "not convicted"
    evidence = Predictions.evidence
    monkeypatch.setattr(Predictions, "evidence", lambda *a, **o: evidence(*a, **o | {"skip_seen": False}))
    found = controlled(world.innocent, seed=1)
    test = by_name(found)[SUPERVISED]
    assert test.log10_p < -10 and test.ks_p > 1e-3 and found.control.leaks
    assert not test.sound and found.outcome == "void" and "tell the key" in test.note
    page = found.report.read_text()
    assert "There is a leak" in page and "under keys that nobody used" in page and "do not behave as they must" not in page


def test_an_echo_behind_prompts_and_a_template_that_nobody_sees(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alice's model had two ends of a line before each text; the echo expects after others what the text began with."""
    suspect_is(monkeypatch, Echo(suspects.load_model(world.innocent), newline=LAST))
    found, unsealed, evidence = [], [], Predictions.evidence
    for number in range(KEYS):
        key = f"one of many keys, number {number}"
        wm = watermark(key, window=2)
        prompts = write_ids(120, wm, seed=number, length=16)
        whole = np.concatenate([prompts, np.full((120, 2), LAST)], axis=1)
        texts = np.minimum(write_ids(120, wm, seed=100 + number, start=whole, length=25), LAST - 1)
        texts[:, 22:24] = LAST  # they come again, once in each text
        file = write_file(tmp_path / "used.jsonl", np.delete(texts, [16, 17], axis=1), prompt=16)
        changes = {"watermarked_texts": file, "alpha": 0.05, "key": key, "window": 2, "reference": world.base}
        found.append(by_name(audited(world, tmp_path / "out", world.innocent, **changes))[SUPERVISED])
        if number < 8:
            with monkeypatch.context() as patched:
                patched.setattr(Predictions, "evidence", lambda *a, **o: evidence(*a, **o | {"skip_seen": False}))
                unsealed.append(by_name(audited(world, tmp_path / "out", world.innocent, **changes))[SUPERVISED])
    for level in (0.05, 0.01):
        for log10_p in ([one.log10_p for one in found], [one.log10_corrected for one in found]):
            assert sum(10**p <= level for p in log10_p) <= stats.binom.ppf(0.995, KEYS, level)
    assert np.mean([one.log10_p for one in unsealed]) < -1 and min(one.ks_p for one in unsealed) > 1e-3  # no decoy shows it


def test_full_contexts_need_prompts(world: World, audit: Any, prompted: str) -> None:
    with pytest.raises(AuditError, match="full_context is said of prompts, and watermarked_texts has none"):
        audit(world.guilty, full_context=1)
    more = by_name(audit(world.guilty, watermarked_texts=prompted, full_context="yes"))[SUPERVISED]
    assert more.scored > by_name(audit(world.guilty, watermarked_texts=prompted))[SUPERVISED].scored


# ----------------------------------------------------------------------------------------------------------------------
# Texts as strings


@pytest.fixture(scope="module")
def merging(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The world's models under a tokenizer of 92 letters and 36 pairs of them, and a suspect's texts as strings and ids."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("merging")
    letters = [chr(0x4E00 + i) for i in range(92)]
    pairs = [(letters[i], letters[i + 36]) for i in range(36)]
    vocabulary = {token: i for i, token in enumerate([*letters, *map("".join, pairs)])}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=pairs))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    found = {}
    for name in ("base", "guilty", "innocent"):
        found[name] = str(shutil.copytree(getattr(world, name), root / name))
        tokenizer.save_pretrained(found[name])
    rows = [json.loads(line)["text"].split() for line in Path(world.used).read_text().splitlines()]
    ids = [[int(word[1:]) for word in row] for row in rows]
    for name, keys in (("strings", ("text",)), ("ids", ("ids",)), ("both", ("text", "ids"))):
        lines = [{"text": tokenizer.decode(row), "ids": row} for row in ids]
        found[name] = str(root / f"{name}.jsonl")
        Path(found[name]).write_text("\n".join(json.dumps({key: line[key] for key in keys}) for line in lines))
    return found


def test_strings_are_allowed_for_and_ids_need_nothing(world: World, tmp_path: Path, merging: dict[str, str]) -> None:
    found = {
        name: audited(world, tmp_path / name, merging["guilty"], watermarked_texts=merging[name], fresh_texts="")
        for name in ("strings", "ids", "both")
    }
    strings, ids = (by_name(found[name])[SUPERVISED] for name in ("strings", "ids"))
    assert by_name(found["both"])[SUPERVISED] == ids and "cut again" not in ids.why
    assert "made from strings; of 4,096 that the suspect drew" in strings.why and "give rows with ids" in strings.why
    assert strings.why in {one["test"]: one["why"] for one in planned(found["strings"])["tests"]}[SUPERVISED]
    assert strings.why.replace("'", "&#39;") in found["strings"].report.read_text()
    kept = json.loads(next((tmp_path / "strings" / "evidence").glob("spelling-*/spelling.json")).read_text())
    share = kept["changed"] / kept["tokens"]
    most = stats.binomtest(kept["changed"], kept["tokens"]).proportion_ci(0.98, method="exact").high
    assert 0 < share < most < 0.1
    unchanged = float(watermark().log10_p(strings.score * strings.scored, strings.scored))
    bound = stats.binom.logsf(round(strings.score * strings.scored) - 1, strings.scored, GAMMA + most / GAMMA) / np.log(10)
    assert unchanged < strings.log10_p == pytest.approx(bound, rel=1e-6)
    assert found["strings"].convicted and found["ids"].inputs["watermarked_texts"]["from_strings"] is False


def test_alices_model_spells_where_it_is_at_hand(world: World, tmp_path: Path, merging: dict[str, str]) -> None:
    changes = {"watermarked_texts": merging["strings"], "alice": merging["base"]}
    assert (
        "that Alice's model drew" in by_name(audited(world, tmp_path / "a", merging["guilty"], **changes))[SUPERVISED].why
    )
    # a suspect with another tokenizer cannot, and nobody else is there
    with pytest.raises(AuditError, match=r"reading, supervised: the texts are strings, .* give rows with ids, or alice"):
        audited(world, tmp_path / "b", world.guilty, watermarked_texts=merging["strings"], tokenizer=merging["base"])


def test_what_is_changed_is_counted_at_its_place(merging: dict[str, str]) -> None:
    tokenizer = suspects.load_tokenizer(merging["base"])
    assert spelling.respells(tokenizer)
    for ids, changed in (([0, 1, 2], 0), ([0, 36, 2], 2), ([2, 0, 36, 0, 36], 4), ([92, 0, 1], 0), ([92, 0, 36, 36], 2)):
        assert spelling.changed(tokenizer, np.array(ids)) == changed
    one = spelling.Spelling(0, 4096, "the suspect")
    assert one.most == pytest.approx(1 - 0.01 ** (1 / 4096)) and one.allowance(watermark()) == one.most / GAMMA
    assert spelling.Spelling(40, 40, "x").allowance(watermark()) < 1 == spelling.Spelling(0, 0, "nobody").most


def test_words_are_spelt_in_one_way(world: World) -> None:
    assert not spelling.respells(suspects.load_tokenizer(world.base))


# ----------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_takes_all_of_it(
    world: World, prompted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("ALICE_KEY", KEY)
    caplog.set_level("INFO")
    arguments = [
        f"--suspect={world.guilty}", f"--watermarked-texts={prompted}", f"--alice={world.base}", f"--delta={DELTA}",
        f"--plain-texts={world.plain}", "--worlds=8", "--control-texts=20", "--alice-temperature=1", "--full-context", "no",
        "--key-env=ALICE_KEY", "--window=1", "--decoys=99", f"--output-dir={tmp_path / 'out'}",
    ]  # fmt: skip
    assert main(arguments) == 0
    found = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert found["control"]["worlds"] == 8 and found["settings"]["full_context"] is False
    assert "re-marking control: yes" in caplog.text and "contrastive reading: yes" in caplog.text
    assert f"--alice {world.base}" in found["command"] and "--full-context" not in found["command"]
    assert main([*arguments[:-1], "--full-context", f"--output-dir={tmp_path / 'full'}"]) == 0
    again = json.loads((tmp_path / "full" / "verdict.json").read_text())
    assert again["settings"]["full_context"] is True and "--full-context " in again["command"]
    with pytest.raises(AuditError, match=r"alice: model folder .* does not exist"):
        audit_suspect(world.guilty, watermarked_texts=prompted, alice="./nobody", key=KEY, output_dir=str(tmp_path / "x"))
