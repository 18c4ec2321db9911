"""The closed-model test: what is sent, what is scored, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import radio_utils as ru
from radio_utils import querying
from radio_utils.suspects import LocalSuspect, Suspect

VOCABULARY = 64
WM = ru.GreenList("alice", VOCABULARY, 2, 0.25, 2.0)


class Parrot:
    """A suspect with fixed answers that remembers what it was asked."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self.answers, self.asked = list(answers), []

    def answer(self, prompts: Sequence[Any]) -> list[Any]:
        self.asked = [list(map(int, prompt)) for prompt in prompts]
        return self.answers[: len(prompts)]


PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
ANSWERS = [np.array([1, 2, 3, 40, 41]), np.array([1, 2, 3, 40]), np.array([50, 51, 52, 50, 51, 52])]


def pairs(found: ru.Detection) -> set[tuple[int, ...]]:
    rows = zip(found.evidence.windows.tolist(), found.evidence.tokens.tolist(), strict=True)
    return {(*window, token) for window, token in rows}


def test_windows_of_an_answers_own_prompt_are_not_scored() -> None:
    found = ru.query_closed_model(Parrot(ANSWERS), PROMPTS, WM)
    # (1, 2) and (2, 3) lie in the first prompt; the second answer holds them too, and its prompt does not
    assert pairs(found) == {(3, 40, 41), (1, 2, 3), (2, 3, 40), (50, 51, 52), (51, 52, 50), (52, 50, 51)}
    assert found.seen == 3 + 2 + 4
    windows, tokens = found.evidence.windows, found.evidence.tokens
    assert found.total == WM.scores(windows, tokens).sum()
    assert found.log10_p == WM.log10_p(found.total, 6)


def test_the_filter_and_the_deduplication_are_passed_on() -> None:
    found = ru.query_closed_model(Parrot(ANSWERS), PROMPTS, WM, keep=[[2, 3], [50, 51]])
    assert pairs(found) == {(2, 3, 40), (50, 51, 52)}
    loose = ru.query_closed_model(Parrot(ANSWERS), PROMPTS, WM, dedup=None)
    assert loose.dedup is None and loose.scored == 1 + 2 + 4
    nothing = ru.query_closed_model(Parrot(ANSWERS), PROMPTS, WM, keep=[[60, 61]])
    assert nothing.scored == 0 and nothing.log10_p == 0.0


def test_budget_limits_what_is_sent() -> None:
    for budget, sent in ((1, 1), (2, 2), (3, 3), (10, 3), (None, 3)):
        suspect = Parrot(ANSWERS)
        ru.query_closed_model(suspect, PROMPTS, WM, budget=budget)
        assert suspect.asked == PROMPTS[:sent]
    with pytest.raises(ValueError, match="budget must be at least 1"):
        ru.query_closed_model(Parrot(ANSWERS), PROMPTS, WM, budget=0)


def test_prompts_may_be_one_array() -> None:
    suspect = Parrot(ANSWERS)
    ru.query_closed_model(suspect, np.array([[1, 2, 3], [4, 5, 6]]), WM)
    assert suspect.asked == [[1, 2, 3], [4, 5, 6]]


def test_short_answers_are_dropped_with_their_prompts() -> None:
    answers = [np.array([1, 2]), np.zeros(0, np.int64), np.array([1, 2, 3])]
    found = ru.query_closed_model(Parrot(answers), PROMPTS, WM)
    assert pairs(found) == {(1, 2, 3)}  # kept, because its own prompt is the third
    with pytest.raises(ValueError, match="no answer is longer than the watermark's window=2"):
        ru.query_closed_model(Parrot([[1, 2], [], [3]]), PROMPTS, WM)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="prompts is empty"):
        ru.query_closed_model(Parrot(ANSWERS), [], WM)
    with pytest.raises(ValueError, match=r"prompts\[1\]"):
        ru.query_closed_model(Parrot(ANSWERS), [[1], [VOCABULARY]], WM)
    with pytest.raises(ValueError, match=r"prompts\[0\]"):
        ru.query_closed_model(Parrot(ANSWERS), [[]], WM)
    with pytest.raises(ValueError, match="equal in number, got 3 and 2"):
        ru.query_closed_model(Parrot(ANSWERS[:2]), PROMPTS, WM)
    with pytest.raises(ValueError, match=r"answers\[0\] holds token id 64"):
        ru.query_closed_model(Parrot([[1, 2, VOCABULARY]]), [[1]], WM)
    with pytest.raises(TypeError, match="must have answer"):
        ru.query_closed_model("a model", PROMPTS, WM)


def test_what_is_wrong_with_the_call_is_said_before_anything_is_asked() -> None:
    for options, words in (
        ({"keep": [[1, 2, 3]]}, "keep must be windows of shape"),
        ({"keep": [[1, VOCABULARY]]}, "keep holds token id 64"),
        ({"dedup": "tokens"}, "dedup must be one of"),
    ):
        for query in (ru.query_closed_model, ru.query_until):
            suspect = Parrot(ANSWERS)
            with pytest.raises(ValueError, match=words):
                query(suspect, PROMPTS, WM, **options)  # type: ignore[operator]
            assert suspect.asked == []
    with pytest.raises(ValueError, match="dedup=None scores repeats"):
        ru.query_until(Parrot(ANSWERS), PROMPTS, WM, dedup=None)
    with pytest.raises(ValueError, match=r"^prompts\[1\] is empty; give it at least one token"):
        ru.query_closed_model(Parrot(ANSWERS), [[1], []], WM)


def test_answers_that_cannot_be_scored_are_not_lost() -> None:
    bad = [ANSWERS[0], np.array([1, VOCABULARY + 5, 3]), ANSWERS[2]]
    with pytest.raises(querying.QueryError, match=r"answers\[1\] holds token id 69") as caught:
        ru.query_closed_model(Parrot(bad), PROMPTS, WM)
    assert [a.tolist() for a in caught.value.answers] == [a.tolist() for a in bad]

    class Batches:
        def __init__(self) -> None:
            self.left = list(bad)

        def answer(self, prompts: Sequence[Any]) -> list[Any]:
            return [self.left.pop(0) for _ in prompts]

    with pytest.raises(querying.QueryError, match=r"answers\[1\] holds token id 69") as caught:
        ru.query_until(Batches(), PROMPTS, WM, batch=1)
    assert [a.tolist() for a in caught.value.answers] == [a.tolist() for a in bad[:2]]
    with pytest.raises(querying.QueryError, match="equal in number") as caught:
        ru.query_closed_model(Parrot(ANSWERS[:2]), PROMPTS, WM)
    assert len(caught.value.answers) == 2


def test_an_audit_refuses_prompts_without_answers() -> None:
    with pytest.raises(ValueError, match="equal in number, got 3 and 2"):
        querying.audit_watch(PROMPTS, ANSWERS[:2], WM, keys=5, batch=1)


def test_a_bare_transformers_model_is_a_suspect() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    suspect = querying.as_suspect(model)
    assert isinstance(suspect, LocalSuspect) and isinstance(suspect, Suspect) and suspect.stop_tokens == (3,)
    found = ru.query_closed_model(model, PROMPTS, WM)
    answers = suspect.answer(PROMPTS)
    assert all(3 not in answer.tolist() for answer in answers)
    assert found == querying.score_answers(PROMPTS, answers, WM)  # the same seed, so the same answers
    model.generation_config.eos_token_id = [3, 5]
    assert querying.as_suspect(model).stop_tokens == (3, 5)  # type: ignore[attr-defined]
    model.generation_config.eos_token_id = None
    assert querying.as_suspect(model).stop_tokens == ()  # type: ignore[attr-defined]
    asked = Parrot(ANSWERS)
    assert querying.as_suspect(asked) is asked
