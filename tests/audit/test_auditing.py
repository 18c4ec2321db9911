"""Whole audits of models at hand: who is convicted, what stops one, what is kept, and that the key stays secret."""

from __future__ import annotations

import dataclasses
import functools
import html
import itertools
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from trials import (
    GAMMA,
    KEY,
    LENGTH,
    WORDS,
    World,
    audited,
    request,
    save_model,
    save_tokenizer,
    watermark,
    words,
    write_file,
    write_ids,
)

from radio_utils import decoding, detection, reading, suspects
from radio_utils.audit import AuditError, Verdict, audit_suspect, auditing, plan, report, run
from radio_utils.audit.auditing import outcome_of
from radio_utils.audit.tests.reading import SupervisedReading
from radio_utils.audit.verdict import TestResult
from radio_utils.suspects import LocalSuspect

SETTINGS: dict[str, dict[str, Any]] = {
    "open": {},
    "open, reference": {"reference": "base"},
    "open, reference, plain text": {"reference": "base", "fresh_texts": "plain"},
    "open, fresh marked text": {"fresh_texts": "fresh"},
    "closed": {"access": "closed"},
    "closed, reference": {"access": "closed", "reference": "base"},
    "both": {"access": "both", "reference": "base", "fresh_texts": "fresh"},
}


def of_world(world: World, settings: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(world, value, value) if isinstance(value, str) else value for name, value in settings.items()}


def applied(verdict: Verdict) -> dict[str, TestResult]:
    return {test.name: test for test in verdict.tests if test.applied}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_guilty_is_convicted_and_the_innocent_acquitted(world: World, audit: Any, setting: str, tmp_path: Path) -> None:
    changes = of_world(world, SETTINGS[setting])
    guilty = audit(world.guilty, **changes)
    assert guilty.outcome == "convicted" and guilty.convicted and guilty.log10_p < -20
    for other in (world.innocent, world.carols):
        verdict = audited(world, tmp_path / Path(other).name, other, **changes)
        assert verdict.outcome == "not convicted" and verdict.log10_p > -3
        assert all(test.scored and test.scored > 50 for test in applied(verdict).values())  # not for want of evidence
        assert applied(verdict).keys() == applied(guilty).keys()
    assert all(test.log10_p is not None and test.log10_p < -20 for test in applied(guilty).values())
    for name, test in applied(guilty).items():
        assert (test.added is not None) == ("reference" in changes and name != "contrastive reading")
        assert test.added is None or (test.added.log10_p < -8 and test.added.score > 0.5 > test.added.base_score)


def test_reading_agrees_with_a_count_by_hand(world: World, audit: Any) -> None:
    """All texts are followed; of the lists that none has drawn from, the one with most predictions before it is opened."""
    model, wm = suspects.load_model(world.guilty), watermark()
    texts = []
    for line in Path(world.used).read_text().splitlines():
        ids = [int(word[1:]) for word in json.loads(line)["text"].split()]
        with torch.inference_mode():
            texts.append((ids, model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()))
    at, opened, pairs = [0] * len(texts), set[int](), set()
    while True:
        standing: dict[int, set[int]] = {}
        usable = set()  # what a text began with was drawn after who knows what, and its model has read it
        for i, (ids, predicted) in enumerate(texts):
            while at[i] < len(ids) and ids[at[i]] in opened:
                at[i] += 1
            if at[i] < len(ids):
                standing.setdefault(ids[at[i]], set()).add(predicted[at[i]])
                if predicted[at[i]] != ids[0]:
                    usable.add((ids[at[i]], predicted[at[i]]))
        if not standing:
            break
        window = min(standing, key=lambda one: (-len(standing[one]), one))
        opened.add(window)
        pairs |= {pair for pair in usable if pair[0] == window}
    green = sum(wm.scores(np.array([[a] for a, _ in pairs]), np.array([b for _, b in pairs])))
    (test,) = applied(audit(world.guilty)).values()
    assert (test.scored, test.score) == (len(pairs), green / len(pairs))
    # far in the tail: compare logarithms
    assert test.log10_p == pytest.approx(stats.binom.logsf(green - 1, len(pairs), GAMMA) / math.log(10), rel=1e-6)


def test_answers_agree_with_a_count_by_hand(world: World, audit: Any, tmp_path: Path) -> None:
    """The verdict on a file of answers; a window that stands in an answer's own prompt is not scored."""
    prompts, answers = write_ids(40, watermark("any"), seed=11)[:, :8], write_ids(40, watermark(), seed=12)
    file = write_file(tmp_path / "answers.jsonl", np.concatenate([prompts, answers], axis=1), prompt=8)
    verdict = audit(file, tokenizer=world.base)
    pairs = set()
    for prompt, answer in zip(prompts.tolist(), answers.tolist(), strict=True):
        pairs |= {(a, b) for a, b in itertools.pairwise(answer) if a not in prompt and b != prompt[0]}
    green = sum(watermark().scores(np.array([[a] for a, _ in pairs]), np.array([b for _, b in pairs])))
    (test,) = applied(verdict).values()
    assert (test.scored, test.score) == (len(pairs), green / len(pairs))
    assert verdict.convicted and test.note == ""


AUDITS, ALPHA = 200, 1e-2


class Imagined:
    """An innocent suspect behind an API, without the API: the words of Alice's table, unmarked."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed

    def check(self) -> None:
        (self.folder / "answers.jsonl").touch()

    def answer(self, prompts: Any) -> list[Any]:
        self.seed += 100_000
        start = np.array([prompt[-2:] for prompt in prompts])
        return list(write_ids(len(start), None, self.seed, start=start, length=34)[:, 2:])


def test_of_200_innocents_no_more_are_convicted_than_alpha_allows(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has another key and other texts, and is read, asked or both; also a reference and unmarked texts are given."""
    monkeypatch.setattr(report, "_picture", lambda verdict: "")
    monkeypatch.setattr(auditing, "open_endpoint", lambda case: Imagined(tmp_path / "out", case.request.seed))
    for name in ("load_model", "load_tokenizer"):
        monkeypatch.setattr(suspects, name, functools.cache(getattr(suspects, name)))
    convicted, smallest = 0, []
    plain = write_file(tmp_path / "plain.jsonl", write_ids(40, None, seed=7))
    kinds: list[dict[str, Any]] = [
        {"access": "open"},
        {"access": "closed"},
        {"access": "both"},
        {"suspect_model": "imagined", "tokenizer": world.base, "max_queries": 64},
        {"access": "open"},
        {"suspect_model": "imagined", "tokenizer": world.base, "max_queries": 64},
        {"access": "open", "reference": world.base, "fresh_texts": plain},
        {"access": "both", "reference": world.base},
    ]
    for number in range(AUDITS):
        wm = watermark(f"key {number}", window=2)
        used = write_file(tmp_path / "used.jsonl", write_ids(60, wm, seed=1000 + number))
        suspect = world.base if number % 8 < 2 else world.innocent  # not where it is the reference
        changes = {"seed": number, "alpha": ALPHA, "window": 2, "max_queries": 30} | kinds[number % 8]
        if "suspect_model" in changes:
            suspect = "http://localhost"
        monkeypatch.setenv("TEST_KEY", f"key {number}")
        verdict = audited(world, tmp_path / "out", suspect, **changes, watermarked_texts=used, key_env="TEST_KEY")
        assert verdict.texts_log10_p < -20
        assert {t.name: (t.scored, t.ks_p) for t in applied(verdict).values() if (t.scored or 0) < 100 or not t.sound} == {}
        convicted += verdict.convicted
        smallest += [test.log10_p for name, test in applied(verdict).items() if name != "answers, watched"]
    low, high = stats.binom.ppf([0.005, 0.995], AUDITS, ALPHA)
    assert low <= convicted <= high
    # the single tests are not merely timid: their p-values spread as they must
    p = 10.0 ** np.array(smallest, np.float64)
    for level in (0.05, 0.2, 0.5):
        inside = stats.binom.ppf([0.0005, 0.9995], p.size, level)
        assert inside[0] - 0.03 * p.size <= (p <= level).sum() <= inside[1]


# ----------------------------------------------------------------------------------------------------------------------
# What could make a p-value too small


def test_as_many_tests_are_counted_whatever_the_key_finds_in_fresh_texts(world: World, audit: Any, tmp_path: Path) -> None:
    """Fresh texts are read in one way or another, as they look marked or not; the key must not choose the price."""
    for number, fresh in enumerate((world.fresh, world.plain)):
        for reference, counted in ((world.base, 3), ("", 2)):
            verdict = audited(world, tmp_path / f"{number}{counted}", world.guilty, fresh_texts=fresh, reference=reference)
            assert verdict.counted == counted
            planned = json.loads((tmp_path / f"{number}{counted}" / "plan.json").read_text())
            assert planned["level_of_each_test"] == verdict.alpha / counted
            for test in applied(verdict).values():
                assert test.log10_p is not None
                counts = test.log10_p if test.added is None else max(test.log10_p, test.added.log10_p)
                assert test.log10_corrected == pytest.approx(counts + math.log10(counted))
    assert audit(world.guilty).counted == 1


def test_a_suspect_that_repeats_its_prompts_is_no_culprit(world: World, audit: Any, tmp_path: Path) -> None:
    """It copies the marked prompts: nothing of that counts, and where the prompts were lost the report says so."""
    prompts = write_ids(100, watermark(), seed=21, length=24)
    file = write_file(tmp_path / "echoes.jsonl", np.concatenate([prompts, prompts], axis=1), prompt=24)
    echo = audit(file, tokenizer=world.base)
    assert echo.outcome == "not convicted" and applied(echo)["answers, all"].scored == 0
    bare = audit(write_file(tmp_path / "bare.jsonl", prompts), tokenizer=world.base)
    assert "no prompt was found for 100: the p-value holds only" in applied(bare)["answers, all"].note
    assert "no prompt was found for 100: the p-value holds only" in bare.report.read_text()


def test_texts_that_the_suspect_may_have_used_are_not_fresh(world: World, audit: Any, tmp_path: Path) -> None:
    lines = Path(world.used).read_text().splitlines(), Path(world.fresh).read_text().splitlines()
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join([*lines[0][:3], *lines[1]]) + "\n")
    with pytest.raises(AuditError, match="fresh_texts holds 3 of the watermarked_texts"):
        audit(world.guilty, fresh_texts=str(mixed))
    with pytest.raises(AuditError, match="fresh_texts holds 100 of"):
        audit(world.guilty, fresh_texts=world.used)
    short = tmp_path / "short.jsonl"  # what anyone may have written
    short.write_text(json.dumps({"text": words([1, 2, 3])}) + "\n" + "\n".join(lines[1]))
    used = tmp_path / "used.jsonl"
    used.write_text(json.dumps({"text": words([1, 2, 3])}) + "\n" + "\n".join(lines[0]))
    assert audit(world.guilty, watermarked_texts=str(used), fresh_texts=str(short)).convicted


def test_a_trace_in_the_model_before_convicts_nobody_who_added_nothing(world: World, audit: Any, tmp_path: Path) -> None:
    verdict = audit(world.guilty, reference=world.carols, watermarked_texts=world.used)
    assert verdict.convicted
    grown = suspects.load_model(world.guilty)
    with torch.no_grad():
        grown.get_output_embeddings().weight.mul_(1.01)  # trained on, by a little
    grown.save_pretrained(str(tmp_path / "grown"))
    suspects.load_tokenizer(world.guilty).save_pretrained(str(tmp_path / "grown"))
    for access in ("open", "closed"):
        before = audit(str(tmp_path / "grown"), reference=world.guilty, access=access)
        (test,) = applied(before).values()
        assert test.log10_p is not None and test.log10_p < -20 and test.added is not None and test.added.log10_p > -2
        assert before.outcome == "not convicted" and before.log10_p > -2
        page = before.report.read_text()
        assert "<strong>Not convicted.</strong>" in page and "it is not shown that it does so more than" in page
        assert "What the suspect added" in page and "distinct pairs in place of" not in page
    alone = audit(str(tmp_path / "grown"))
    assert alone.convicted and alone.about == "the suspect or a model that it was made from"
    assert "a model that it was made from learned" in alone.report.read_text()


def test_a_model_is_not_its_own_reference(world: World, audit: Any, tmp_path: Path) -> None:
    copied = shutil.copytree(world.guilty, tmp_path / "a copy")
    for reference in (world.guilty, str(copied)):
        with pytest.raises(AuditError, match="reference is the suspect itself, weight for weight"):
            audit(world.guilty, reference=reference)


def words_of(path: str) -> list[list[str]]:
    return [json.loads(line)["text"].split() for line in Path(path).read_text().splitlines()]


def test_earlier_turns_are_nobodys_answers(world: World, audit: Any, tmp_path: Path) -> None:
    """In each chat Alice's model spoke first, and the suspect then."""
    hers, own = (write_ids(40, wm, seed=22) for wm in (watermark(), None))
    chats = (
        [{"role": role, "content": words(ids)} for role, ids in zip(["assistant", "user", "assistant"], turns, strict=True)]
        for turns in zip(hers, own[:, :5], own[:, 5:], strict=True)
    )
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in chats))
    (test,) = applied(audit(str(file), tokenizer=world.base)).values()
    assert test.answers == 40 and test.log10_p > -3


def answers_file(path: Path, answers: list[list[str]], **columns: Any) -> str:
    path.write_text("".join(json.dumps({"text": " ".join(answer)} | columns) + "\n" for answer in answers))
    return str(path)


@pytest.mark.parametrize("given", ["used", "fresh"])
def test_a_file_of_alices_texts_is_no_file_of_answers(world: World, audit: Any, given: str) -> None:
    name = {"used": "watermarked_texts", "fresh": "fresh_texts"}[given]
    with pytest.raises(AuditError, match=f"suspect is the file of the {name}"):
        audit(getattr(world, given), tokenizer=world.base, fresh_texts=world.fresh)


@pytest.mark.parametrize(
    "changed",
    [
        lambda text: text,
        lambda text: text[:-1],
        lambda text: text[1:],
        lambda text: [*text, "w1"],
        lambda text: text[:20],
        lambda text: [*text[:24], "w3", *text[25:]],
        lambda text: ["w5"] * 20 + text[:30],
    ],
    ids=["whole", "an end cut off", "a first token lost", "an end added", "cut short", "a token changed", "after others"],
)
def test_alices_own_texts_are_nobodys_answers(world: World, audit: Any, changed: Any, tmp_path: Path) -> None:
    hers = [changed(text) for text in words_of(world.used)[:40] + words_of(world.fresh)[:20]]
    theirs = [[f"w{one}" for one in text] for text in write_ids(40, watermark(), seed=21)]
    suspect = answers_file(tmp_path / "answers.jsonl", hers + theirs)
    with pytest.raises(
        AuditError, match="60 of its 100 longer answers are watermarked_texts or fresh_texts, word for word"
    ):
        audit(suspect, tokenizer=world.base, fresh_texts=world.fresh)


def test_a_suspect_that_learned_some_by_heart_is_convicted_and_the_report_says_so(
    world: World, audit: Any, tmp_path: Path
) -> None:
    theirs = [[f"w{one}" for one in text] for text in write_ids(45, watermark(), seed=21)]
    for heart in (5, 0):
        answers = theirs + [text[:-2] for text in words_of(world.used)[:heart]]
        verdict = audit(answers_file(tmp_path / "answers.jsonl", answers), tokenizer=world.base)
        assert verdict.convicted
        words = "Of 50 answers of at least 20 tokens 5 are for the most part Alice's own texts, word for word"
        assert (words in html.unescape(verdict.report.read_text())) == bool(heart)
        assert ("own texts, word" in verdict.tests[4].note) == bool(heart)


def test_who_repeats_the_opening_of_a_text_that_was_the_prompt_has_copied_nothing(
    world: World, audit: Any, tmp_path: Path
) -> None:
    answers = [
        text[:16] + [f"w{one}" for one in own]
        for text, own in zip(words_of(world.used)[:50], write_ids(50, None, seed=22, length=14), strict=True)
    ]
    suspect = answers_file(tmp_path / "answers.jsonl", answers, prompt="w1")
    assert "own texts" not in audit(suspect, tokenizer=world.base).tests[4].note


@pytest.mark.parametrize("prompt", [None, "", "mixed"])
def test_answers_without_prompts_hold_on_a_condition(world: World, audit: Any, prompt: str | None, tmp_path: Path) -> None:
    texts = [[f"w{one}" for one in text] for text in write_ids(60, None, seed=23)]
    suspect = answers_file(tmp_path / "answers.jsonl", texts, **({} if prompt is None else {"prompt": ""}))
    if prompt == "mixed":
        rows = Path(suspect).read_text().splitlines()
        Path(suspect).write_text("\n".join(row.replace('"prompt": ""', '"prompt": "w1 w2"') for row in rows[:20]))
        with Path(suspect).open("a") as file:
            file.write("\n" + "\n".join(rows[20:]))
    note = audit(suspect, tokenizer=world.base).tests[4].note
    assert (
        f"Of 60 answers that are longer than the window no prompt was found for {40 if prompt == 'mixed' else 60}: " in note
    )
    assert "without their prompts" not in note


def test_all_rows_of_a_file_are_counted(world: World, audit: Any, tmp_path: Path) -> None:
    texts = [[f"w{one}" for one in text] for text in write_ids(60, None, seed=23)]
    suspect = answers_file(tmp_path / "answers.jsonl", [*texts, *[[]] * 25, ["w1"], ["w2"]], prompt="w1 w2")
    verdict = audit(suspect, tokenizer=world.base)
    test = verdict.tests[4]
    assert (test.answers, test.empty, test.refused) == (87, 25, None)
    page = verdict.report.read_text()
    assert "Answers given: 87. Empty answers: 25. Not scored, as not longer than the window, though not empty: 2." in page
    assert "Refused" not in page


def test_tests_whose_decoys_misbehave_convict_nobody(world: World, audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence that scores one pair again and again: what the decoys are there to find."""
    judge = detection.judge

    def doubled(found: Any, wm: Any, **options: Any) -> Any:
        once = judge(found, wm)
        log10_p = float(wm.log10_p(once.total * 20, once.scored * 20))
        return dataclasses.replace(once, log10_p=log10_p)

    audit_evidence = detection.audit_evidence

    def audited_evidence(found: Any, wm: Any, *, keys: int, seed: int) -> Any:
        honest = audit_evidence(found, wm, keys=keys, seed=seed)
        totals = [judge(found, wm.with_decoy(seed, i)) for i in range(keys)]
        p = 10 ** np.array([float(wm.log10_p(one.total * 20, one.scored * 20)) for one in totals])
        uneven = dataclasses.replace(honest.ks, log10_p=math.log10(stats.kstest(p, "uniform").pvalue))
        return dataclasses.replace(honest, log10_p=np.log10(p), ks=uneven)

    monkeypatch.setattr(detection, "judge", doubled)
    monkeypatch.setattr(detection, "audit_evidence", audited_evidence)
    verdict = audit(world.guilty)
    (test,) = applied(verdict).values()
    assert not test.sound and verdict.outcome == "void" and verdict.log10_p == 0.0
    page = verdict.report.read_text()
    assert "<strong>Void.</strong>" in page and "cannot be believed" in page and "<td>NO</td>" in page


def result(log10_corrected: float, *, sound: bool = True) -> TestResult:
    return TestResult(name="t", applied=True, log10_p=log10_corrected, log10_corrected=log10_corrected, sound=sound)


def test_outcomes() -> None:
    innocent, guilty, unsound = result(-1.0), result(-9.0), result(-9.0, sound=False)
    assert outcome_of([innocent, guilty], -3.0) == "convicted"
    assert outcome_of([innocent], -3.0) == "not convicted"
    assert outcome_of([unsound], -3.0) == "void"
    assert outcome_of([unsound, guilty], -3.0) == "convicted"
    assert outcome_of([result(-1.0, sound=False)], -3.0) == "not convicted"
    assert outcome_of([result(-3.0)], -3.0) == "convicted"
    assert outcome_of([TestResult(name="t", applied=False)], -3.0) == "not convicted"
    for own, of_base, counts in ((-9.0, -1.0, -1.0), (-2.0, -9.0, -2.0), (-9.0, -8.0, -8.0)):  # both must reject
        compared = dataclasses.replace(result(own), added=detection.Comparison(5, 0.5, 5, 0.2, of_base)).corrected(1)
        assert compared.log10_p == own and compared.log10_corrected == counts


def test_nothing_is_chosen_after_a_result(
    world: World, audit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is on the disk before the first test, and the same whatever the tests find."""

    class Stopped(Exception):
        pass

    def stop(*args: Any, **options: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(SupervisedReading, "run", stop)
        with pytest.raises(Stopped):
            audit(world.guilty, access="both", fresh_texts=world.fresh)
    out = tmp_path / "out"
    assert sorted(one.name for one in out.iterdir()) == ["plan.json"]
    planned = json.loads((out / "plan.json").read_text())
    verdict = audit(world.guilty, access="both", fresh_texts=world.fresh)
    assert [one["test"] for one in planned["tests"] if one["applies"]] == list(applied(verdict))
    innocent = audited(world, tmp_path / "other", world.innocent, access="both", fresh_texts=world.fresh)
    assert innocent.record().keys() == verdict.record().keys()
    others = json.loads((tmp_path / "other" / "plan.json").read_text())
    assert others["tests"] == planned["tests"] and others["level_of_each_test"] == planned["level_of_each_test"]


# ----------------------------------------------------------------------------------------------------------------------
# What is kept, and when it is used again


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each reading of a model, the timing of the estimate not counted."""
    found: list[int] = []
    read = reading.read_predictions

    def counted(*args: Any, **options: Any) -> Any:
        found.append(1)
        return read(*args, **options)

    monkeypatch.setattr(reading, "read_predictions", counted)
    monkeypatch.setattr(plan, "_seconds_per_token", lambda model, case: 1e-6)
    return found


def test_evidence_is_kept_and_read_anew_when_anything_in_it_changes(
    world: World, audit: Any, readings: list[int], tmp_path: Path
) -> None:
    first = audit(world.guilty)
    assert len(readings) == 1
    again = audit(world.guilty, alpha=1e-6, decoys=120)  # nothing that was read depends on these
    assert (
        len(readings) == 1
        and applied(again)["reading, supervised"].log10_p == applied(first)["reading, supervised"].log10_p
    )
    lines = Path(world.used).read_text().splitlines()
    fewer, prompted = tmp_path / "fewer.jsonl", tmp_path / "prompted.jsonl"
    fewer.write_text("\n".join(lines[:50]))
    audit(world.guilty, watermarked_texts=str(fewer))
    assert len(readings) == 2
    prompted.write_text("\n".join(json.dumps({"prompt": "w5 w6"} | json.loads(line)) for line in lines))
    audit(world.guilty, watermarked_texts=str(prompted))
    assert len(readings) == 3
    assert audit(world.innocent, reference=world.guilty).outcome == "not convicted"
    assert len(readings) == 4  # the reference is the model that was read first
    assert audit(world.guilty).convicted and len(readings) == 4


def test_a_verdict_is_neither_lost_nor_mixed_up(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = run(request(world, folder, world.innocent))
    again = run(request(world, folder, world.innocent, batch_size=7, concurrency=2))
    assert (again.outcome, again.log10_p, again.tests) == (first.outcome, first.log10_p, first.tests)
    kept = (folder / "verdict.json").read_bytes()
    for changes, expected in (
        ({"alpha": 0.01}, "an audit with another alpha;"),
        ({"access": "closed", "seed": 3}, "another access, seed;"),
        ({"key": "another key of Alice's"}, "another key;"),
    ):
        with pytest.raises(AuditError, match=expected):
            run(request(world, folder, world.innocent, **changes))
        assert (folder / "verdict.json").read_bytes() == kept
    # the same names, but other contents
    texts, bob = tmp_path / "texts.jsonl", shutil.copytree(world.innocent, tmp_path / "bob")
    shutil.copy(world.used, texts)
    asked = functools.partial(request, world, tmp_path / "named", str(bob), watermarked_texts=str(texts))
    run(asked())
    kept = (tmp_path / "named" / "verdict.json").read_bytes()
    shutil.copy(Path(world.guilty) / "model.safetensors", bob)
    with pytest.raises(AuditError, match="an audit in which suspect had another content; give another folder"):
        run(asked())
    shutil.copy(Path(world.innocent) / "model.safetensors", bob)
    texts.write_text("\n".join(texts.read_text().splitlines()[:70]))
    with pytest.raises(AuditError, match="in which watermarked_texts had another content"):
        run(asked())
    assert (tmp_path / "named" / "verdict.json").read_bytes() == kept
    (folder / "verdict.json").write_text("{}")
    with pytest.raises(AuditError, match=r"verdict.json cannot be read"):
        run(request(world, folder, world.innocent))


def test_evidence_of_another_tokenizer_with_the_same_tokens_is_not_taken(
    world: World, audit: Any, readings: list[int], tmp_path: Path
) -> None:
    """Two tokenizers may have one vocabulary and cut a text differently: the ids that were read decide, not the file."""
    from tokenizers import Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast

    audit(world.guilty, tokenizer=world.base)
    source = Tokenizer.from_file(str(Path(world.base) / "tokenizer.json"))
    source.normalizer = normalizers.Replace("w7 ", "w8 ")
    PreTrainedTokenizerFast(tokenizer_object=source).save_pretrained(str(tmp_path / "hers"))
    audit(world.guilty, tokenizer=str(tmp_path / "hers"))
    assert len(readings) == 2


def test_a_damaged_store_is_made_anew(world: World, audit: Any, tmp_path: Path, readings: list[int]) -> None:
    first = audit(world.guilty)
    (file,) = (tmp_path / "out" / "evidence").glob("*/predictions.npz")
    file.write_bytes(file.read_bytes()[:100])
    again = audit(world.guilty)
    assert len(readings) == 2 and again.tests == first.tests


# ----------------------------------------------------------------------------------------------------------------------
# Other tokenizers, other vocabularies, models that fail


@pytest.fixture(scope="module")
def permuted(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A guilty suspect whose tokenizer has Alice's words under other numbers, in no order of hers, and twelve more."""
    folder = tmp_path_factory.mktemp("permuted")
    order = np.random.default_rng(5).permutation(WORDS)
    model = suspects.load_model(world.guilty)
    model.resize_token_embeddings(WORDS + 12)
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        old = embedding[:WORDS].clone()
        embedding[torch.from_numpy(order)] = old
        embedding[WORDS:] = 0.0
    model.save_pretrained(str(folder))
    save_tokenizer(folder, {f"w{i}": int(order[i]) for i in range(WORDS)} | {f"x{i}": WORDS + i for i in range(12)})
    return str(folder)


@pytest.mark.parametrize("access", ["open", "closed"])
def test_a_suspect_with_another_tokenizer_is_convicted(world: World, audit: Any, permuted: str, access: str) -> None:
    verdict = audit(permuted, tokenizer=world.base, access=access)
    assert verdict.convicted and verdict.log10_p < -20
    assert "tokenizer differs from Alice's in 140 tokens" in (verdict.vocabulary or "")
    decided = re.fullmatch(r"Of ([\d,]+) places .* decides ([\d,]+); the others are not scored\.", verdict.tests[1].note)
    assert (decided is not None) == (access == "open")
    if decided:
        places, scored = (int(number.replace(",", "")) for number in decided.groups())
        assert places >= scored >= (verdict.tests[1].scored or 0) > 0
    # texts as numbers mean nothing to the suspect; its own tokenizer finds no mark in Alice's words
    with pytest.raises(AuditError, match="do not carry this watermark"):
        audit(permuted, access=access)


def test_a_vocabulary_padded_beyond_the_tokenizers(world: World, audit: Any, permuted: str, tmp_path: Path) -> None:
    """Alice's lists are drawn from all rows of her model, of which her tokenizer uses a part."""
    from radio_utils import GreenList

    wm = GreenList(KEY, WORDS + 16, 1, GAMMA, 4.0)
    texts = [[one for one in text if one < WORDS] for text in _padded_texts(wm)]
    used = write_file(tmp_path / "used.jsonl", texts)
    folder = save_model(tmp_path / "bob", np.array([text[:40] for text in texts if len(text) >= 40]), base=world.base)
    for suspect in (folder, permuted):
        if suspect == folder:  # fewer logits than the watermark has tokens
            with pytest.raises(AuditError, match="suspect cannot be read or asked: the model has 128 logits"):
                audit(suspect, watermarked_texts=used, vocab_size=WORDS + 16, tokenizer=world.base)
        else:
            verdict = audit(suspect, watermarked_texts=used, vocab_size=WORDS + 16, tokenizer=world.base)
            assert verdict.tests[1].scored > 25


def _padded_texts(wm: Any) -> list[list[int]]:
    generator, process = torch.Generator().manual_seed(1), wm.logits_processor()
    table = torch.nn.functional.pad(torch.zeros(WORDS, WORDS, dtype=torch.float64), (0, 16), value=-math.inf)
    texts = torch.randint(0, WORDS, (200, 1), generator=generator)
    for _ in range(LENGTH):
        texts = torch.cat([texts, decoding.draw(process(texts, table[texts[:, -1]]), generator)[:, None]], dim=1)
    found: list[list[int]] = texts.tolist()
    return found


def test_what_no_model_can_read_is_one_sentence(world: World, audit: Any, tmp_path: Path) -> None:
    model = suspects.load_model(world.innocent)
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = math.nan
    nan = shutil.copytree(world.innocent, tmp_path / "nan")
    model.save_pretrained(str(nan))
    with pytest.raises(AuditError, match=r"^suspect cannot be read or asked: .*NaN"):
        audit(str(nan))
    with pytest.raises(AuditError, match=r"^reference cannot be read or asked: .*NaN"):
        audit(world.innocent, reference=str(nan))
    assert (tmp_path / "out" / "evidence").is_dir()  # the suspect's reading was kept

    small = shutil.copytree(world.innocent, tmp_path / "short-sighted")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    with pytest.raises(AuditError, match=r"^watermarked_texts: 48 tokens with a prompt are more than the 32 that suspect"):
        audit(str(small))
    with pytest.raises(AuditError, match=r"^max_tokens: 36 tokens with a prompt are more than the 32"):
        audit(str(small), access="closed", max_tokens=20)
    assert audit(str(small), access="closed", max_tokens=16).outcome == "not convicted"

    with pytest.raises(AuditError, match="reference has another tokenizer than suspect"):
        other = shutil.copytree(world.base, tmp_path / "other")
        save_tokenizer(other, {f"w{i}": (i + 1) % WORDS for i in range(WORDS)})
        audit(world.innocent, reference=str(other))
    mixed = shutil.copytree(world.innocent, tmp_path / "mixed")
    save_tokenizer(mixed, {f"w{i}": i for i in range(WORDS + 5)})
    with pytest.raises(AuditError, match="suspect has 128 logits and its tokenizer 133 tokens"):
        audit(str(mixed))
    for device in ("cuda:99", "no such device"):
        with pytest.raises(AuditError, match=f"^device='{device}' cannot be used here"):
            audit(world.innocent, device=device)
    with pytest.raises(AuditError, match=r"^suspect: .*nothing does not exist"):
        audit(str(tmp_path / "nothing"))
    with pytest.raises(AuditError, match=r"^suspect: there is no folder 'nobody of this name' here"):
        audit("nobody of this name")
    pickled = shutil.copytree(world.innocent, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(AuditError, match=r"^suspect: .* holds weights as pickle files only, .* never opened"):
        audit(str(pickled))
    with pytest.raises(AuditError, match=r"^suspect: no causal model could be read"):
        audit(save_tokenizer(tmp_path / "no model", {"w0": 0, "w1": 1} | {f"w{i}": i for i in range(WORDS)}))


def test_prompts_are_asked_once_at_temperature_0(world: World, audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    answer = LocalSuspect.answer
    monkeypatch.setattr(LocalSuspect, "answer", lambda self, prompts: asked.append(len(prompts)) or answer(self, prompts))
    audit(world.guilty, access="closed", temperature=0, max_queries=300)
    audit(world.guilty, access="closed", max_queries=300)
    assert asked == [100, 300]


def test_prompts_that_belong_to_texts_too_short_are_none(world: World, audit: Any, tmp_path: Path) -> None:
    lines = [{"prompt": "", **json.loads(line)} for line in Path(world.used).read_text().splitlines()]
    file = tmp_path / "used.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in [{"prompt": "w1 w2", "text": "w3"}, *lines]))
    verdict = audit(world.guilty, watermarked_texts=str(file), access="closed")
    assert verdict.convicted
    assert verdict.inputs["watermarked_texts"]["too_short"] == 1 and not verdict.inputs["watermarked_texts"]["prompts"]


def test_one_verdict_for_one_request(world: World, tmp_path: Path) -> None:
    options = {"window": 1, "max_queries": 40, "max_tokens": 24, "decoys": 99, "access": "both", "key": KEY}
    options["decoy_entropy"] = "0123456789abcdef" * 2
    found = [
        audit_suspect(world.guilty, watermarked_texts=world.used, output_dir=str(tmp_path / name), **options)
        for name in ("a", "b")
    ]
    assert found[0].tests == found[1].tests and found[0].convicted
    with pytest.raises(AuditError, match=r"unknown parameter.*windows"):
        audit_suspect(world.guilty, watermarked_texts=world.used, windows=1)
    assert request(world, tmp_path, world.guilty).window == 1


# ----------------------------------------------------------------------------------------------------------------------
# What must not get out


@pytest.mark.parametrize(
    ("written", "forms"),
    [
        ("a secret between us: 8f1c", ["a secret between us", "8f1c"]),
        ("hex:00ff10deadbeef5a", ["00ff10deadbeef5a", "deadbeef"]),
        ("int:918273645546372819", ["918273645546372819"]),
    ],
)
def test_the_key_is_in_no_file_and_in_no_output(
    world: World,
    audit: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
    caplog: Any,
    written: str,
    forms: list[str],
) -> None:
    caplog.set_level("DEBUG")
    form = written.partition(":")[0]
    key: Any = {"hex": lambda: bytes.fromhex(written[4:]), "int": lambda: int(written[4:])}.get(form, lambda: written)()
    used = write_file(tmp_path / "used.jsonl", write_ids(100, watermark(key), seed=31))
    (tmp_path / "key").write_text(written + "\n")
    monkeypatch.setenv("THE_KEY", written)
    for source in ({"key_env": "THE_KEY"}, {"key_file": str(tmp_path / "key")}):
        verdict = audit(world.innocent, watermarked_texts=used, access="both", reference=world.base, **source)
        assert verdict.outcome == "not convicted" and verdict.texts_log10_p < -20
    scheme = "green list" if form == "int" else "transformers lefthash"  # each stops, the second because of the key
    with pytest.raises(AuditError) as stopped:
        changes = {"watermarked_texts": world.plain, "scheme": scheme, "key_env": "THE_KEY"}
        audited(world, tmp_path / "out" / "stopped", world.innocent, **changes)
    captured = capfd.readouterr()
    told = [captured.out, captured.err, caplog.text, str(stopped.value), repr(verdict), str(stopped.value.__cause__)]
    forms = [*forms, *([str(list(key))[1:-1], key.decode("latin-1")] if isinstance(key, bytes) else [])]
    files = [one for one in (tmp_path / "out").rglob("*") if one.is_file()]
    assert {"plan.json", "verdict.json", "report.html", "predictions.npz", "manifest.json"} <= {one.name for one in files}
    for form in forms:
        assert all(form not in text for text in told)
        assert all(form.encode() not in one.read_bytes() for one in files)
        assert all(form not in str(one) for one in files)


def test_inputs_cannot_leave_the_folder_of_the_audit(world: World, tmp_path: Path) -> None:
    """Whatever names and texts say, all that is written lies in output_dir."""
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    evil = shutil.copytree(world.innocent, place / "..%2f..%2fbob")
    lines = Path(world.used).read_text().splitlines()
    texts = [json.loads(line) | {"id": "../../../escaped", "file": "/tmp/escaped"} for line in lines]
    used = place / "..used..jsonl"
    used.write_text("\n".join(json.dumps(one) for one in texts))
    before = {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*") if one.is_file()}
    out = place / "out"
    verdict = audited(
        world, out, str(evil), watermarked_texts=str(used), suspect_model="../../../escaped", access="both",
        reference=str(Path(world.base) / ".." / "base"),
    )  # fmt: skip
    assert verdict.outcome == "not convicted"
    after = {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*") if one.is_file() and out not in one.parents}
    assert after == before
