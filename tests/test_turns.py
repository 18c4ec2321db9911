"""Prompts in several pieces: what was drawn just after a gap was drawn after a window that nobody knows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from innocents import check_false_alarms

import radio_utils as ru
from radio_utils import evidence, querying, reading
from radio_utils.evidence.files import CorpusFile
from radio_utils.predictions import Predictions
from radio_utils.watermarks.engines import VLLMGreenList

Ids = np.ndarray[Any, np.dtype[np.int64]]
WORDS = 200
ASSISTANT, BREAK = 0, 1  # the template's last tokens; the second is a line break too


class Numbers:
    """A tokenizer of numbers."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


class Copier(torch.nn.Module):
    """Never met a key. Says what first followed the last token in its context, else a word of its own."""

    def __init__(self, step: int = 13) -> None:
        super().__init__()
        self.step = step
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.fed: list[list[int]] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, use_cache: bool = False) -> Any:
        logits = torch.zeros(*input_ids.shape, WORDS)
        self.fed += input_ids.tolist()
        for row, ids in enumerate(input_ids.tolist()):
            first: dict[int, int] = {}
            for place, token in enumerate(ids):
                if place:
                    first.setdefault(ids[place - 1], token)
                logits[row, place, first.get(token, (7 * token + self.step) % WORDS)] = 10.0
        return SimpleNamespace(logits=logits)


def chats(wm: Any, count: int, rng: np.random.Generator) -> list[list[Ids]]:
    """User, assistant, user, assistant. The second answer quotes the first after a line break."""
    said: list[list[Ids]] = []

    def forced(context: Ids, tokens: Any) -> Ids:
        return np.column_stack([context, np.broadcast_to(np.reshape(tokens, (-1, 1)), (count, 1))])

    def drawn(context: Ids, number: int) -> Ids:
        for _ in range(number):
            windows = np.repeat(context[:, -wm.window :], WORDS, axis=0)
            green = wm.scores(windows, np.tile(np.arange(WORDS), count)).reshape(count, WORDS)
            gumbel = rng.gumbel(size=(count, WORDS)) + 4 * green
            gumbel[:, :2] = -np.inf
            context = forced(context, gumbel.argmax(axis=1))
        return context

    head = rng.integers(2, WORDS, count)
    context = np.column_stack([rng.integers(2, WORDS, (count, 2))])
    said.append([context])
    context = forced(forced(context, ASSISTANT), BREAK)
    begin = context.shape[1]
    context = drawn(forced(context, head), 4)
    first, user = context[:, begin:], rng.integers(2, WORDS, (count, 2))
    context = forced(forced(np.column_stack([context, user]), ASSISTANT), BREAK)
    begin = context.shape[1]
    context = drawn(forced(forced(drawn(context, 2), BREAK), head), 2)
    return [[*row] for row in zip(said[0][0], first, user, context[:, begin:], strict=True)]


def file_of(path: Path, rows: list[list[Ids]]) -> CorpusFile:
    roles = ("user", "assistant", "user", "assistant")
    turns = (
        [{"role": role, "content": " ".join(map(str, ids.tolist()))} for role, ids in zip(roles, row, strict=True)]
        for row in rows
    )
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    return CorpusFile(path, Numbers())


@pytest.mark.parametrize("soft", [False, True])
def test_a_copier_of_chats_is_innocent(tmp_path: Path, soft: bool) -> None:
    """What a first turn began with is green after the template's end, which no file holds."""
    read, answered = [], []
    for key in range(8):
        wm, rng = ru.GreenList(f"key {key}", WORDS, 2, 0.25, 4.0), np.random.default_rng(key)
        file = file_of(tmp_path / "chat.jsonl", chats(wm, 40, rng))
        texts, prompts = list(file.texts()), list(file.prompts() or [])
        read.append(ru.read_open_model(Copier(), texts, wm, prompts=prompts, soft=soft).log10_p)
        if not soft:
            bare = [[one for one in prompt if one >= 0] for prompt in prompts[1::2]]
            quotes = [np.array([3, 4, BREAK, *prompt[2:4]]) for prompt in bare]
            answered.append(querying.score_answers(prompts[1::2], quotes, wm).log10_p)
    check_false_alarms(read)
    assert min(read) > -4
    check_false_alarms(answered)


# a user, an earlier answer "5 6 7" of which 6 was drawn after (0, 5), a user
PROMPT, ANSWER = [10, 11, -1, 5, 6, 7, -1, 13], [20, 21, 0, 5, 6]


def of(prompt: list[int], text: list[int], at: int, token: int) -> Predictions:
    context = np.array(prompt + text)
    tokens = np.full(context.size + 1, -1)
    tokens[len(prompt) + at] = token
    return Predictions((context,), np.array([len(prompt)]), (tokens,))


def pairs(found: evidence.Evidence) -> set[tuple[int, ...]]:
    return {(*window, token) for window, token in zip(found.windows.tolist(), found.tokens.tolist(), strict=True)}


def test_what_was_drawn_after_a_gap_is_not_scored(tmp_path: Path) -> None:
    for hidden in (False, True):
        found = evidence.collect([ANSWER], 2, 100, prompts=[PROMPT], hidden=hidden)
        assert pairs(found) == {(20, 21, 0)}, "5 and 6 may have been drawn after any window that ends so"
    for full_context in (False, True):
        options: dict[str, Any] = {"full_context": full_context}
        assert not pairs(of(PROMPT, ANSWER, 4, 6).evidence(2, 100, **options)), "6 after 0, 5"
        assert not pairs(of(PROMPT, ANSWER, 3, 5).evidence(2, 100, **options)), "5 after 21, 0"
        assert pairs(of(PROMPT, ANSWER, 4, 7).evidence(2, 100, **options)) == {(0, 5, 7)}
    kept = of(PROMPT, ANSWER, 4, 6)
    kept.merge(kept).save(tmp_path / "kept.npz")
    assert not pairs(Predictions.load(tmp_path / "kept.npz").evidence(2, 100))


def test_no_window_reaches_across_a_gap() -> None:
    # 11, 5 never was a window: what followed it in an answer is fresh, and 5, 6 was one
    assert pairs(evidence.collect([[11, 5, 8], [5, 6, 8]], 2, 100, prompts=[PROMPT, PROMPT])) == {(11, 5, 8)}
    assert not pairs(of([1, -1, 2], [3, 4], 0, 8).evidence(2, 100, full_context=True)), "1, 2 was none"
    assert pairs(of([1, -1, 2], [3, 4], 1, 8).evidence(2, 100, full_context=True)) == {(2, 3, 8)}
    assert not pairs(of([1, 2, -1], [3, 4], 1, 8).evidence(2, 100, full_context=True)), "something stood before 3"
    # and it opens no list: 11, 5 is sealed still
    assert pairs(of(PROMPT, [11, 5, 9], 2, 8).evidence(2, 100)) == {(11, 5, 8)}


def test_engines_whose_contexts_begin_with_the_answer() -> None:
    def scored(prompt: list[int], at: int, token: int) -> set[tuple[int, ...]]:
        return pairs(of(prompt, [3, 4, 5], at, token).evidence(2, 100, from_start=True))

    assert scored([9, -1, 8], 0, 7) == {(-1, -1, 7)} and scored([9, -1, 8], 1, 7) == {(-1, 3, 7)}
    assert not scored([9, -1, 8], 0, 8), "an earlier answer may have begun so"
    assert not scored([9, 8, -1], 0, 7), "no whole answer: its first token has another window"
    assert not scored([9, 8, -1], 1, 7) and scored([9, 8, -1], 2, 7) == {(3, 4, 7)}


def test_schemes_that_share_lists() -> None:
    wm = VLLMGreenList(5, 100, 2)
    assert pairs(querying.score_answers([PROMPT], [np.array([20, 21, 0, 5, 6])], wm).evidence)
    lefthash = ru.compat.TransformersGreenList({"seeding_scheme": "lefthash", "hashing_key": 1 << 30}, 100)
    found = evidence.collect([[20, 30, 13, 40, 5]], 1, 100, prompts=[PROMPT], shared=evidence.shared_by(lefthash))
    assert not {5, 13} & {token for _, token in pairs(found)}, "any window may have the hidden one's list"


def test_models_are_fed_no_gaps() -> None:
    model, bare = Copier(), [one for one in PROMPT if one >= 0]
    found = reading.read_predictions(model, [ANSWER], WORDS, prompts=[PROMPT])
    without = reading.read_predictions(Copier(), [ANSWER], WORDS, prompts=[bare])
    assert model.fed[-1] == bare + ANSWER
    assert found.tokens[0][len(PROMPT) :].tolist() == without.tokens[0][len(bare) :].tolist()
    nothing = reading.read_predictions(Copier(), [ANSWER], WORDS, prompts=[[-1]])
    assert nothing.tokens[0].tolist()[:2] == [-1, -1] and nothing.tokens[0][2] >= 0
    wm = ru.GreenList("alice", WORDS, 2)
    for soft in (False, True):
        found_by = ru.read_open_model(Copier(), [ANSWER], wm, prompts=[PROMPT], soft=soft)
        assert found_by.evidence.windows.min() >= 0
    contrasted = ru.read_open_model(Copier(), [ANSWER], wm, prompts=[PROMPT], reference=Copier(step=17))
    assert contrasted.scored and contrasted.evidence.windows.min() >= 0

    class Suspect:
        def answer(self, prompts: list[Ids]) -> list[Ids]:
            assert [prompt.tolist() for prompt in prompts] == [bare] * len(prompts)
            return [np.array(ANSWER)] * len(prompts)

    asked = ru.query_closed_model(Suspect(), [PROMPT], wm)
    assert asked.scored == ru.query_until(Suspect(), [PROMPT], wm).scored == 1


@pytest.mark.parametrize("prompt", [[1, -2], [-1, 100], [-1], [True, -1], [[1], -1], [1.5, -1]])
def test_other_numbers_are_no_gaps(prompt: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"prompts\[0\]"):
        evidence.checked_prompts([prompt], 100, shortest=1)
    with pytest.raises(ValueError, match=r"texts\[0\] holds token id -1"):
        evidence.collect([[1, -1, 2, 3]], 1, 100)
