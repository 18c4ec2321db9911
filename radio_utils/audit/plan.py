"""The plan: which tests apply, why the others do not, and what it will cost; made from the inputs alone.

Whether fresh texts carry the mark decides between two tests, and the key has a say in that: both are counted, or a key that
is lucky with the texts would have a test more without paying for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from radio_utils import reading
from radio_utils.audit.case import Case, prompt_source, prompts_for, readable

_SPEED_TEXTS = 32  # texts of the batch that is timed for the estimate


@dataclass(frozen=True)
class Planned:
    """A test and, before anything is run, whether it applies and why.

    ``counts`` says whether α is shared with it: it applies, or would with another key.
    """

    name: str
    applies: bool
    why: str
    pairs: int = 0
    counts: bool = False


def plan(audit: Case, opened: Any) -> list[Planned]:
    """All tests, and for each whether it applies and why. Only inputs are looked at."""
    return [_reading_planned(audit), _fresh_planned(audit), _contrastive_planned(audit, opened), *_answers_planned(audit)]


def _reading_planned(audit: Case) -> Planned:
    name = "reading, supervised"
    if audit.request.kind != "model":
        return Planned(name, False, "needs the suspect's weights")
    if "open" not in audit.request.modes:
        return Planned(name, False, "only closed tests were asked for")
    return Planned(name, True, "weights and texts that it may have used are at hand", audit.of_texts.scored)


def _fresh_planned(audit: Case) -> Planned:
    name = "reading, unsupervised"
    if audit.request.kind != "model" or "open" not in audit.request.modes:
        return Planned(name, False, _reading_planned(audit).why)
    if audit.fresh is None or audit.of_fresh is None:
        return Planned(name, False, "no fresh texts were given")
    if not audit.fresh_marked:
        why = "the fresh texts do not carry the watermark, so their windows say nothing of its lists"
        return Planned(name, False, why, counts=True)
    return Planned(name, True, "weights and fresh marked texts are at hand", audit.of_fresh.scored)


def _contrastive_planned(audit: Case, opened: Any) -> Planned:
    name = "contrastive reading"
    if audit.request.kind != "model" or "open" not in audit.request.modes:
        return Planned(name, False, _reading_planned(audit).why)
    if not audit.request.reference:
        return Planned(name, False, "no reference model was given")
    if audit.fresh is None or audit.of_fresh is None:
        return Planned(name, False, "no fresh texts without the watermark were given")
    if not opened.vocabulary.same:
        return Planned(name, False, "the suspect's tokenizer is not Alice's")
    if audit.wm.scheme not in ("green list", "released green list", "transformers green list"):
        return Planned(name, False, f"it is made for green lists, not for the scheme {audit.wm.scheme!r}")
    if audit.of_fresh.log10_p < reading.MARKED:
        return Planned(name, False, "the fresh texts carry the watermark; this test needs text without it", counts=True)
    return Planned(
        name, True, "weights, the model it was made from, and fresh texts without the mark", audit.of_fresh.scored
    )


def _answers_planned(audit: Case) -> list[Planned]:
    fixed, watched = "answers, all", "answers, watched"
    request = audit.request
    if "closed" not in request.modes:
        why = "the suspect's weights are read, which tells more than its answers"
        return [Planned(watched, False, why), Planned(fixed, False, why)]
    if request.kind == "answers":
        return [
            Planned(watched, False, "the answers are given, so watching them come saves nothing"),
            Planned(fixed, True, "the suspect's answers are given", _answer_pairs(audit)),
        ]
    source = f"its answers to {prompt_source(audit)}"
    if request.kind == "model":
        return [
            Planned(watched, False, "answers of a model at hand cost nothing, so there is no need to stop early"),
            Planned(fixed, True, source, _answer_pairs(audit)),
        ]
    return [
        Planned(watched, True, f"{source}, stopped as soon as they suffice", _answer_pairs(audit)),
        Planned(fixed, True, f"{source}, if all are needed", _answer_pairs(audit)),
    ]


def _answer_pairs(audit: Case) -> int:
    """About how many distinct pairs the answers can give: as dense in them as in Alice's texts."""
    request = audit.request
    tokens = len(prompts_for(audit)) * request.max_tokens if audit.answers is None else audit.answers.tokens
    return int(min(tokens, audit.of_texts.scored * max(1.0, tokens / max(1, audit.texts.tokens)) ** 0.5))


def estimated(audit: Case, opened: Any, tests: Sequence[Planned]) -> dict[str, Any]:
    """Tokens, and where it can be told seconds or money, before anything is spent."""
    request, names = audit.request, {one.name for one in tests}
    if request.kind == "answers":
        return {}
    if request.kind == "endpoint":
        prompts = prompts_for(audit)
        tokens_in = sum(prompt.size for prompt in prompts)
        tokens_out = len(prompts) * request.max_tokens
        cost = (tokens_in * request.price_in + tokens_out * request.price_out) / 1e6
        priced = request.price_in > 0 or request.price_out > 0
        return {
            "answers_at_most": len(prompts),
            "requests_at_most": request.max_requests or 4 * request.max_queries,
            "tokens_in_at_most": tokens_in,
            "tokens_out_at_most": tokens_out,
            "cost_at_most": round(cost, 4) if priced else None,
        }
    tokens = 0
    readings = [
        ("reading, supervised", audit.texts),
        ("reading, unsupervised", audit.fresh),
        ("contrastive reading", audit.fresh),
    ]
    for name, texts in readings:
        if name in names and texts is not None:
            models = 1 if name == "reading, unsupervised" or opened.reference is None else 2
            tokens += models * (texts.tokens + sum(p.size for p in texts.prompts or []))
    seconds = None
    if tokens:
        with audit.timed("model"), readable("suspect"):
            seconds = round(tokens * _seconds_per_token(opened.model, audit), 1)
    asked = len(prompts_for(audit)) * request.max_tokens if "answers, all" in names else 0
    return {"tokens_read": tokens, "seconds_of_reading": seconds, "tokens_written_at_most": asked}


def _seconds_per_token(model: Any, audit: Case) -> float:
    """Measured on one batch, after one that warms up."""
    some = audit.texts.ids[: min(_SPEED_TEXTS, audit.request.batch_size)]
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    fed = [np.minimum(text, vocabulary - 1) for text in some]
    for _ in range(2):
        started = time.perf_counter()
        reading.read_predictions(model, fed, vocabulary, batch_size=len(fed))
        taken = time.perf_counter() - started
    return taken / sum(text.size for text in fed)


def spoken(planned: Sequence[Planned], estimate: dict[str, Any]) -> Iterator[str]:
    """The plan and its estimate, a line each."""
    for one in planned:
        yield f"{one.name}: {'yes' if one.applies else 'no'}, {one.why}"
    for name, value in estimate.items():
        if value is not None:
            yield f"{name.replace('_', ' ')}: {value:,}"
