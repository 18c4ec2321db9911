"""Instruction data: written, parsed, stored."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from radio_utils import decoding
from radio_utils.presets import Build
from radio_utils.suspects import load_tokenizer
from radio_utils.watermarks import GreenList
from radio_utils.world import instructions, models
from radio_utils.world.instructions import OPENING, Pair, TooFewPairsError, parse_pair

PAIRS = [
    Pair("What is numpy.add?", "It adds two arrays, element by element."),
    Pair("What does len return?", "It returns the number of items in a container."),
    Pair("What is the parameter axis of sum?", "axis is int or None.\nThe axis along which to sum."),
]


def continuation(pairs: list[Pair]) -> str:
    """What a model writes after the opening word."""
    return "\n".join(pair.text for pair in pairs).removeprefix(OPENING)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    models.train_tokenizer([pair.text for pair in PAIRS] * 3, 300, folder)
    return load_tokenizer(folder)


def test_a_pair_survives_being_written_and_parsed() -> None:
    for pair in PAIRS:
        assert parse_pair(continuation([pair])) == pair
    assert parse_pair(continuation(PAIRS)) == PAIRS[0], "the first of several"
    assert parse_pair("  " + continuation(PAIRS[:1]) + "\n\n") == PAIRS[0]


LETTERS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=8, max_size=40)


@given(instruction=LETTERS, answer=st.lists(LETTERS, min_size=3, max_size=5))
@settings(max_examples=60)
def test_any_pair_of_plain_text_survives(instruction: str, answer: list[str]) -> None:
    pair = Pair(instruction, " ".join(answer))
    assume("Question:" not in pair.text[len(OPENING) :] and "Answer:" not in pair.answer + pair.instruction)
    assert parse_pair(continuation([pair, PAIRS[0]])) == pair


@pytest.mark.parametrize(
    "junk",
    [
        "", " ", " What is this?", " What is this?\nAnswer:", "\nAnswer: " + "x" * 30, " What is this?\nAnswer:  \n ",
        " short\nAnswer: " + "x" * 30, " What is this? Answer: on the same line, which is not the layout",
        " two\nlines of a question\nAnswer:",
    ],
)  # fmt: skip
def test_junk_is_no_pair(junk: str) -> None:
    assert parse_pair(junk) is None


def test_the_answer_has_no_say_in_whether_a_pair_is_kept() -> None:
    for answer in ("x", "too short", "x" * 30 + "\nAnswer: a second answer to one question"):
        assert parse_pair(f" What is this?\nAnswer: {answer}") == Pair("What is this?", answer)


def test_a_pair_keeps_the_tokens_that_were_drawn(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spelt one letter at a time, as no tokenizer would; reading must feed those, and not what the text tokenises to."""
    letters = [np.concatenate([tokenizer(c, add_special_tokens=False)["input_ids"] for c in text]) for text in numbered(41)]
    tail = tokenizer("\nQuestion: another", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(decoding, "generate", lambda *_, **__: [np.array([*ids, *tail], np.int64) for ids in letters])
    pairs = ask(tokenizer, 30)
    prompts, answers = instructions.written_ids(tokenizer, pairs)
    opening = tokenizer(OPENING, add_special_tokens=False)["input_ids"]
    for pair, prompt, answer, drawn in zip(pairs, prompts, answers, letters[:30], strict=True):
        assert [*prompt, *answer] == [*opening, *drawn]
        assert tokenizer.decode(prompt) == pair.prompt and tokenizer.decode(answer) == f" {pair.answer}"
        assert len(answer) > len(instructions.answer_ids(tokenizer, [pair])[0])
    by_people = instructions.written_ids(tokenizer, PAIRS)
    assert [a.tolist() for a in by_people[1]] == [a.tolist() for a in instructions.answer_ids(tokenizer, PAIRS)]


def test_ids_are_prompt_then_answer_then_end(tokenizer: Any) -> None:
    prompts, answers, texts = (
        make(tokenizer, PAIRS) for make in (instructions.prompt_ids, instructions.answer_ids, instructions.text_ids)
    )
    examples = instructions.examples(tokenizer, PAIRS)
    for pair, prompt, answer, text, example in zip(PAIRS, prompts, answers, texts, examples, strict=True):
        assert tokenizer.decode(prompt) == pair.prompt and tokenizer.decode(answer) == f" {pair.answer}"
        assert text.tolist() == [*prompt, *answer, tokenizer.eos_token_id]
        assert tokenizer.decode(text[:-1]) == pair.text
        # the answer alone is learned: the first token under the loss is the answer's first
        assert example.loss_from == prompt.size and np.array_equal(example.ids, text)
    assert instructions.prompt_ids(tokenizer, []) == [] and instructions.examples(tokenizer, []) == []


def test_saving_and_loading(tmp_path: Path) -> None:
    pairs = [*PAIRS, Pair("Qu'est-ce que ρ ?", 'quotes " and \\ and\u2028separators\nand lines')]
    instructions.save_pairs(tmp_path / "pairs.jsonl", pairs)
    assert instructions.load_pairs(tmp_path / "pairs.jsonl") == pairs
    drawn = Pair("a", "b", (5, 1, 2), 1)
    instructions.save_pairs(tmp_path / "drawn.jsonl", [drawn])
    (again,) = instructions.load_pairs(tmp_path / "drawn.jsonl")
    assert (again.drawn, again.answer_from) == ((5, 1, 2), 1)
    instructions.save_pairs(tmp_path / "none.jsonl", [])
    assert instructions.load_pairs(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("line", ["{", "[1, 2]", '"text"', '{"instruction": "x"}', "3", ""])
def test_a_bad_line_is_named_by_its_number(line: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = json.dumps({"instruction": "a", "answer": "b"})
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}, line 2: not a pair"):
        instructions.load_pairs(path)


class Writer:
    """Replaces decoding: continuations from a list, and the prompts that were shown."""

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self.tokenizer, self.texts, self.asked, self.seeds = tokenizer, texts, [], []

    def __call__(self, model: Any, prompts: Any, **options: Any) -> list[Any]:
        self.asked.append([self.tokenizer.decode(prompt) for prompt in prompts])
        self.seeds.append(options["generator"].initial_seed())
        start = sum(map(len, self.asked[:-1]))
        texts = [self.texts[(start + i) % len(self.texts)] for i in range(len(prompts))]
        return [np.array(ids, np.int64) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]


def ask(tokenizer: Any, count: int, *, shown: int = 2, seed: int = 0, model: Any = None, **options: Any) -> list[Pair]:
    return instructions.self_instruct(
        model or torch.nn.Linear(1, 1), tokenizer, options.pop("demonstrations", PAIRS), count, shown=shown,
        sampling=decoding.Sampling(1.0), max_new_tokens=8, generator=np.random.default_rng(seed), **options,
    )  # fmt: skip


def one_more(i: int) -> str:
    return continuation([Pair(f"What is number {i}?", f"It is the number {i} and nothing else.")])


def numbered(count: int) -> list[str]:
    return [one_more(i) for i in range(count)]


def test_self_instruct_gathers_distinct_pairs(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tokenizer, [*numbered(50), "junk", " more junk\nAnswer: "])
    monkeypatch.setattr(decoding, "generate", writer)
    pairs = ask(tokenizer, 45)
    assert len(pairs) == len(set(pairs)) == 45
    assert pairs == [Pair(f"What is number {i}?", f"It is the number {i} and nothing else.") for i in range(45)]
    end = models.END_OF_TEXT
    for prompt in writer.asked[0]:
        *shown, opening = prompt.split(end)
        assert opening == OPENING and len(shown) == 2
        assert all(text in {pair.text for pair in PAIRS} for text in shown)
    assert len(set(writer.asked[0])) > 1, "different demonstrations for different pairs"


def test_self_instruct_asks_again_for_what_is_missing(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tokenizer, [text for good in numbered(60) for text in (good, "junk", good)])
    monkeypatch.setattr(decoding, "generate", writer)
    assert len(ask(tokenizer, 55)) == 55
    assert len(writer.asked) > 1 and len(set(writer.seeds)) == len(writer.seeds), "every round has its own randomness"


def test_worlds_under_several_keys_share_their_rounds(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wms = [GreenList(key, len(tokenizer), 1) for key in range(3)]
    owners: list[list[Any]] = []

    def write(model: Any, prompts: Any, *, wm: Any, **options: Any) -> Any:
        """The world of key 1 writes junk half of the time, and must be asked again."""
        owners.append(wm)
        numbers = range(1000 * len(owners), 1000 * len(owners) + len(prompts))
        texts = [f" junk {n}" if own is wms[1] and n % 2 else one_more(n) for n, own in zip(numbers, wm, strict=True)]
        return [np.array(ids, np.int64) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    monkeypatch.setattr(decoding, "generate", write)
    options: dict[str, Any] = {"shown": 1, "sampling": decoding.Sampling(1.0), "max_new_tokens": 8}
    chance = np.random.default_rng(0)
    model = torch.nn.Linear(1, 1)
    found = instructions.self_instruct_under(model, tokenizer, PAIRS, 30, wms, generator=chance, **options)
    assert [len(set(pairs)) for pairs in found] == [30, 30, 30]
    assert len(owners) == 2
    assert [owners[0].count(wm) for wm in wms] == [41, 41, 41]
    assert set(owners[1]) == {wms[1]}
    with pytest.raises(ValueError, match="wms mixes watermarks with None"):
        instructions.self_instruct_under(model, tokenizer, PAIRS, 30, [wms[0], None], generator=chance, **options)


def test_a_model_that_repeats_itself_is_given_up(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "generate", Writer(tokenizer, numbered(3)))
    with pytest.raises(TooFewPairsError, match=r"only 3 hold an instruction and an answer; train the model longer"):
        ask(tokenizer, 10)


def test_a_random_model_is_given_up(tokenizer: Any) -> None:
    build = Build(architecture="llama", width=16, layers=1, heads=2, key_value_heads=1)
    model = models.new_model(build, len(tokenizer), tokenizer.eos_token_id, 0)
    with pytest.raises(TooFewPairsError, match=r"of .* texts only 0 hold"):
        ask(tokenizer, 5, model=model)


def test_too_few_demonstrations(tokenizer: Any) -> None:
    for demonstrations, shown in (([], 0), ([], 1), (PAIRS[:2], 3)):
        with pytest.raises(ValueError, match="demonstrations holds"):
            ask(tokenizer, 5, shown=shown, demonstrations=demonstrations)
