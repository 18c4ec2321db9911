"""The plan: which tests apply, why the others do not, and what it will cost; made from the inputs alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from radio_utils import evidence as ev
from radio_utils import reading
from radio_utils.audit import tests
from radio_utils.audit.case import Case, Ids, readable

_TEMPLATE = 64  # tokens that are allowed for a chat's template where the tokenizer has none


@dataclass(frozen=True)
class Planned:
    """A test and, before anything is run, whether it applies and why; ``counts`` says whether α is shared with it."""

    test: tests.SuspectTest
    applies: bool
    why: str
    pairs: int
    counts: bool


def plan(case: Case) -> list[Planned]:
    """All tests, and for each whether it applies and why. Only inputs are looked at."""
    found = [(test, test.applies(case)) for test in tests.TESTS]
    return [Planned(one, a.yes, a.why, one.pairs(case) if a.yes else 0, a.yes or a.keyed) for one, a in found]


def estimated(case: Case, planned: Sequence[Planned]) -> dict[str, Any]:
    """Tokens, and where it can be told seconds or money, before anything is spent."""
    if case.server is not None:
        return _spent_at_most(case)
    if case.opened is None:
        return {}
    costs, seconds = [one.test.cost(case) for one in planned if one.applies], None
    if unread := sum(cost.unread for cost in costs):
        with case.timed("model"), readable("suspect"):
            seconds = round(unread * _seconds_per_token(case.models.suspect.model, case), 1)
    return {
        "tokens_read": sum(cost.read for cost in costs),
        "seconds_of_reading": seconds,
        "tokens_written_at_most": sum(cost.written for cost in costs),
    }


def _spent_at_most(case: Case) -> dict[str, Any]:
    """What a server may charge: every request may be sent, and a failed one may have been paid for."""
    request, prompts = case.request, case.asked.prompts
    sizes = sorted((_tokens_asked(case, prompt) for prompt in prompts), reverse=True)
    requests = request.max_requests or 4 * request.max_queries
    most_in = sum(sizes[:requests]) + max(0, requests - len(sizes)) * max(sizes)

    def cost(tokens_in: int, answers: int) -> float | None:
        if not (request.price_in or request.price_out):
            return None
        return round((tokens_in * request.price_in + answers * request.max_tokens * request.price_out) / 1e6, 4)

    return {
        "answers_at_most": len(prompts),
        "requests_at_most": requests,
        "tokens_in_at_most": most_in,
        "tokens_out_at_most": requests * request.max_tokens,
        "cost_at_most": cost(most_in, requests),
        "cost_if_none_is_repeated": cost(sum(sizes), len(prompts)),
    }


def _tokens_asked(case: Case, prompt: Ids) -> int:
    """Tokens of a prompt as a server counts them: with what its tokenizer adds, and with the template of a chat."""
    tokenizer, prompt = case.tokenizer, ev.without_gaps(prompt)
    text = tokenizer.decode(prompt.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    size = max(prompt.size, len(tokenizer(text)["input_ids"]))
    if case.request.api != "chat":
        return size
    try:
        whole = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
    except Exception:  # none, or one that needs more than a turn: templates are programs
        return size + _TEMPLATE
    return max(size, len(tokenizer(whole)["input_ids"]))


def _seconds_per_token(model: Any, case: Case) -> float:
    """Measured once, on two texts."""
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    fed = [np.minimum(text, vocabulary - 1) for text in case.texts.ids[:2]]
    started = time.perf_counter()
    reading.read_predictions(model, fed, vocabulary, batch_size=len(fed))
    return (time.perf_counter() - started) / sum(text.size for text in fed)
