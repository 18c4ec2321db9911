"""Instruction data of a chat model: its own template, instructions that no key has touched, and a writing that resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from radio_utils import GreenList, decoding, evidence
from radio_utils.suspects import load_model, load_tokenizer
from radio_utils.world import chats, instructions
from radio_utils.world.chats import Chat, Turn, write_turns
from radio_utils.world.instructions import Pair, TooFewPairsError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(toy_chat: Path) -> Any:
    return load_model(toy_chat)


@pytest.fixture(scope="module")
def tokenizer(toy_chat: Path) -> Any:
    return load_tokenizer(toy_chat)


def mark(tokenizer: Any, key: str = "alice") -> GreenList:
    return GreenList(key, len(tokenizer), 1, 0.25, 4.0)


def write(model: Any, tokenizer: Any, count: int, *wms: Any, seed: int = 0, **options: Any) -> list[list[Turn]]:
    manner: dict[str, Any] = {"sampling": decoding.Sampling(1.0), "max_new_tokens": 30, "batch_size": 12}
    return write_turns(model, tokenizer, count, wms or [None], generator=np.random.default_rng(seed), **(manner | options))


def long(tokenizer: Any, turns: list[Turn]) -> list[Any]:
    """The answers, as they were drawn, in which a pair can be scored."""
    return [answer for answer in instructions.written_ids(tokenizer, turns)[1] if answer.size > 1]


def test_an_example_is_the_template_s_own_conversation(tokenizer: Any) -> None:
    pair = Pair("What is water?", "Rain, and the 7 seas.")
    (example,) = Chat(tokenizer).examples([pair])
    said = [{"role": "user", "content": pair.instruction}, {"role": "assistant", "content": pair.answer}]
    assert tokenizer.decode(example.ids) + "\n" == tokenizer.apply_chat_template(said, tokenize=False)
    assert tokenizer.decode(example.ids[example.loss_from :]) == f"{pair.answer}<|im_end|>", (
        "the loss is on the answer only"
    )
    assert example.ids[-1] == tokenizer.eos_token_id


def test_a_turn_is_asked_in_the_template_wherever_pairs_are(tokenizer: Any) -> None:
    (turn,) = Chat(tokenizer).turns([Pair("What is water?", "Wet.", (5, 6, 7), 2)])
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is water?"}], tokenize=False, add_generation_prompt=True
    )
    assert (turn.prompt, turn.text) == (asked, f"{asked}Wet.")
    assert instructions.prompt_ids(tokenizer, [turn])[0].tolist() == tokenizer(asked, add_special_tokens=False)["input_ids"]
    prompts, answers = instructions.written_ids(tokenizer, [turn])
    assert (prompts[0].tolist(), answers[0].tolist()) == ([5, 6], [7]), "what was drawn is read as it was drawn"


def test_turns_are_kept_with_the_tokens_that_were_drawn(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    (turns,) = write(model, tokenizer, 20, mark(tokenizer))
    assert len(turns) == len({turn.instruction for turn in turns}) == 20
    chat = Chat(tokenizer)
    for turn in turns:
        assert turn.drawn[: turn.answer_from] == tuple(chat.prompt(turn.instruction).tolist())
        assert tokenizer.decode(turn.drawn[turn.answer_from :], skip_special_tokens=True).strip() == turn.answer
        assert turn.instruction.startswith(chats.BEGINNINGS) and "\n" not in turn.instruction
    instructions.save_pairs(tmp_path / "pairs.jsonl", turns)
    loaded = chat.turns(instructions.load_pairs(tmp_path / "pairs.jsonl"))
    assert [(t.asked, t.drawn, t.answer_from) for t in loaded] == [(t.asked, t.drawn, t.answer_from) for t in turns]


def test_the_key_marks_answers_and_never_an_instruction(model: Any, tokenizer: Any) -> None:
    wm, other = mark(tokenizer), mark(tokenizer, "bob")
    sets = {name: write(model, tokenizer, 30, key)[0] for name, key in (("mine", wm), ("other", other), ("plain", None))}
    said = {name: [turn.instruction for turn in turns] for name, turns in sets.items()}
    assert said["mine"] == said["other"] == said["plain"], "an instruction depends on chance alone"

    def p_value(which: str) -> float:
        found = evidence.collect(long(tokenizer, sets[which]), 1, wm.vocab_size)
        green = round(float(wm.scores(found.windows, found.tokens).sum()))
        return float(stats.binomtest(green, len(found), 0.25, alternative="greater").pvalue)

    assert p_value("mine") < 1e-10 < 1e-3 < min(p_value("other"), p_value("plain"))


def test_worlds_of_several_keys_share_batches(model: Any, tokenizer: Any) -> None:
    wms = [mark(tokenizer, f"key {i}") for i in range(3)]
    worlds = write(model, tokenizer, 12, *wms)
    assert [len(turns) for turns in worlds] == [12, 12, 12]
    for i, turns in enumerate(worlds):
        found = evidence.collect(long(tokenizer, turns), 1, len(tokenizer))
        means = [float(wm.scores(found.windows, found.tokens).mean()) for wm in wms]
        assert int(np.argmax(means)) == i and means[i] > 0.4


@pytest.mark.parametrize("batches", [1, 3])
def test_a_writing_that_was_killed_goes_on(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    generate, calls, limit = decoding.generate, 0, batches

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        if calls == limit:
            raise KeyboardInterrupt
        calls += 1
        return generate(*args, **options)

    monkeypatch.setattr(chats.decoding, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        write(model, tokenizer, 24, mark(tokenizer), kept=tmp_path / "kept")
    calls, limit = 0, 10**6
    whole = write(model, tokenizer, 24, mark(tokenizer))
    in_all, calls = calls, 0
    assert write(model, tokenizer, 24, mark(tokenizer), kept=tmp_path / "kept") == whole
    assert calls == in_all - batches > 0, "what was kept is not written again"
    calls = 0
    assert write(model, tokenizer, 24, mark(tokenizer, "bob"), kept=tmp_path / "kept") != whole and calls > 0


def test_near_duplicates_and_what_is_no_instruction_are_not_asked() -> None:
    new = chats._New()
    assert new("What is the difference between a lake and a sea?")
    assert not new("what is the difference between a sea and a lake")
    assert new("What is the difference between a violin and a viola?")
    assert not new("Why is that?") and not new("What is the sea?\nIt is wide and blue.") and not new("")


def test_a_template_that_ends_turns_with_words(tokenizer: Any) -> None:
    import copy

    words = copy.deepcopy(tokenizer)
    words.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}<<{{ m['content'] }}>> {% elif m['role'] == 'user' %}"
        "[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    chat = Chat(words)
    drawn = np.array(words(" is rain? [/INST] It is wet.", add_special_tokens=False)["input_ids"])
    assert chat.instruction("What", drawn) == "What is rain?"
    assert chat.stop_tokens == [words.eos_token_id]
    (example,) = chat.examples([Pair("What is rain?", "Wet.")])
    assert words.decode(example.ids).startswith("[INST] What is rain? [/INST]") and example.ids[-1] == words.eos_token_id


def test_what_cannot_be_written_is_said(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ValueError, match=r"no chat_template; take an instruct model's tokenizer"):
        write(model, bare, 2)
    with pytest.raises(ValueError, match="vocab_size is 7"):
        write(model, tokenizer, 2, GreenList("k", 7, 1, 0.25, 2.0))
    with pytest.raises(ValueError, match="wms mixes watermarks with None"):
        write(model, tokenizer, 2, None, mark(tokenizer))
    monkeypatch.setattr(chats, "WORDS", 1000)
    with pytest.raises(TooFewPairsError, match=r"of \d+ texts only 0 are a new instruction with an answer"):
        write(model, tokenizer, 60)
