"""Marks of engines in the small world: who writes what, what each setting tests, and what an audit is given."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from worlds import small

from radio_utils import engines, experiments, marks, querying, reading
from radio_utils.artifacts import Store
from radio_utils.chapter import COLUMNS
from radio_utils.detection import detect
from radio_utils.evidence import frequent_windows
from radio_utils.presets import PresetError, load_preset
from radio_utils.world import instructions
from radio_utils.world.world import World

pytestmark = pytest.mark.usefixtures("one_thread")
SWITCH = {"algorithm": "sbw", "sbw_scheme": "lefthash", "sbw_delta": 6.0, "context_width": 2}


@pytest.fixture(scope="module")
def bob(written_store: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = shutil.copytree(written_store, tmp_path_factory.mktemp("store") / "store")
    preset = small(ablations__size=10, ablations__texts=6, ablations__epochs=1)
    return marks.marked(World(preset, store=Store(root), progress=False), SWITCH)


def test_the_engine_answers_questions_that_carry_no_mark(bob: World) -> None:
    for marked, plain in (("watermarked", "plain"), ("fresh", "outside")):
        pairs, questions = bob.pairs(marked), bob.pairs(plain)  # type: ignore[arg-type]
        assert [pair.instruction for pair in pairs] == [pair.instruction for pair in questions]
        assert all(pair.answer for pair in pairs)
        prompts, answers = instructions.written_ids(bob.tokenizer, pairs)
        for prompt, expected in zip(prompts, instructions.prompt_ids(bob.tokenizer, pairs), strict=True):
            assert prompt.tolist() == expected.tolist()
        found = detect([text for text in answers if text.size > 2], bob.watermark)
        assert found.log10_p < -5
        # contexts begin with the answer: its first token comes after a window that holds -1 only
        first = bob.watermark.scores(np.full((len(answers), 2), -1), np.array([text[0] for text in answers]))
        assert first.mean() > 0.8


def test_no_two_answers_under_one_switch_are_under_another(bob: World) -> None:
    other = marks.marked(bob, marks.with_window(SWITCH, 1))
    assert other.watermark.window == 1
    assert other.written("plain") == bob.written("plain"), "the questions are the same"
    assert other.written("watermarked") != bob.written("watermarked")
    stronger = marks.marked(bob, {"algorithm": "sbw", "sbw_delta": 3.0})
    strongest = marks.marked(bob, {"algorithm": "sbw", "sbw_delta": 4.0})
    assert stronger.watermark.fingerprint == strongest.watermark.fingerprint
    key = [world._shard("watermarked", 0).config for world in (stronger, strongest)]
    assert key[0] != key[1], "the strength is no part of a fingerprint"


def test_each_setting_is_the_test_that_it_names(bob: World) -> None:
    found = {row["setting"]: row for row in marks.rows("vLLM SBW", bob)}
    assert tuple(found) == marks.SETTINGS
    assert all(tuple(row) == COLUMNS["marks"] for row in found.values())
    wm, pairs = bob.watermark, bob.used_by(marks.BOB)[:6]
    prompts, texts = instructions.written_ids(bob.tokenizer, pairs)
    read = reading.read_open_model(bob.bob(marks.BOB), texts, wm, prompts=prompts, full_context=True)
    assert found["reading, supervised"]["log10_p"] == pytest.approx(read.log10_p, abs=0.5)  # but for ties
    asked, given = experiments.answers(bob, marks.BOB, "watermarked", 6)
    keep = frequent_windows(instructions.answer_ids(bob.tokenizer, bob.used_by(marks.BOB)), wm.window, wm.vocab_size)
    assert found["answers, supervised"]["log10_p"] == querying.score_answers(asked, given, wm, keep=keep).log10_p
    prompts, texts = instructions.written_ids(bob.tokenizer, marks.unseen(bob)[:6])
    fresh = reading.read_open_model(bob.bob(marks.BOB), texts, wm, prompts=prompts, full_context=True)
    assert found["reading, unsupervised"]["scored"] == fresh.scored
    wide = marks.wide(list(found.values()))
    assert [row["reading, unsupervised"] for row in wide] == [fresh.log10_p]
    with pytest.raises(ValueError, match="setting must be one of"):
        marks.verdict(bob, "reading")


def test_what_bob_was_given_is_not_called_unseen(bob: World, monkeypatch: pytest.MonkeyPatch) -> None:
    used, fresh = bob.used_by(marks.BOB), bob.pairs("fresh")
    copied = replace(fresh[0], answer=used[3].answer)
    monkeypatch.setattr(World, "pairs", lambda self, which: [copied, *fresh[1:]] if which == "fresh" else [])
    monkeypatch.setattr(World, "used_by", lambda self, which: used)
    assert copied not in marks.unseen(bob) and fresh[1] in marks.unseen(bob)


def test_where_every_answer_came_again_nothing_is_read(bob: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "unseen", lambda world: [])
    found = marks.verdict(bob, "reading, unsupervised")
    assert (found.scored, found.log10_p) == (0, 0.0)


def test_convictions_are_counted_over_the_seeds_that_have_a_mark() -> None:
    def seed(**found: float) -> list[dict[str, object]]:
        return [
            {"scheme": scheme, "k": 4, "log10_p_text": -9.0, "setting": setting, "log10_p": log10_p - i}
            for scheme, log10_p in found.items()
            for i, setting in enumerate(marks.SETTINGS)
        ]

    narrow, wide = marks.convicted([seed(a=-2.0, b=-3.5), seed(a=-1.0), seed(c=-9.0)])
    assert [narrow[one] for one in marks.SETTINGS] == ["0 of 2", "1 of 2", "2 of 2", "2 of 2"]
    assert (wide["scheme"], wide["k"], wide["reading, supervised"]) == ("b", 4, "1 of 1")


def test_an_audit_gets_configuration_and_texts_and_no_more(bob: World, tmp_path: Path) -> None:
    given = marks.write_case(bob, tmp_path)
    config = json.loads(Path(given["engine_config"]).read_text())
    wm = engines.from_config(config, len(bob.tokenizer))
    assert wm.fingerprint == bob.watermark.fingerprint
    rows = [json.loads(line) for line in Path(given["watermarked_texts"]).read_text().splitlines()]
    assert len(rows) == 10
    assert detect([row["ids"] for row in rows if len(row["ids"]) > 2], wm).log10_p < -5


def test_keys_of_engines_come_from_alices_and_never_stand_in_a_preset() -> None:
    preset = load_preset("smoke", watermark__scheme="engine", watermark__engine={"ngram_len": 3})
    layers = preset.watermark.engine_config("a")["keys"]
    assert len(set(layers)) == 30
    assert layers == preset.watermark.engine_config("a")["keys"] != preset.watermark.engine_config("b")["keys"]
    assert preset.watermark.make("a", 500).window == 2
    for engine in ({"algorithm": "gumbel", "key": 4711}, {"algorithm": "gumble"}):
        with pytest.raises(PresetError, match="watermark") as caught:
            load_preset("smoke", watermark__scheme="engine", watermark__engine=engine)
        assert "4711" not in str(caught.value)
    with pytest.raises(PresetError, match="belong together"):
        load_preset("smoke", watermark__scheme="engine")
    with pytest.raises(ValueError, match="only that of an engine"):
        load_preset("smoke").watermark.engine_config("a")


@pytest.mark.parametrize("config", [{"algorithm": "synthid", "key": 5}, {"algorithm": "sbw", "key": 5}])
def test_a_score_of_many_bits_is_compared_at_its_whole_range(config: dict[str, object]) -> None:
    wm = engines.from_config(config, 500)
    for total in (round(40 * wm.law.mean), round(36 * wm.law.largest), round(40 * wm.law.largest)):
        assert experiments.log10_p_at(wm, total / 40, 40) == pytest.approx(float(wm.log10_p(total, 40)), rel=1e-6)
