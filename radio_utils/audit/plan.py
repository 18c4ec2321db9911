"""The plan: which tests apply, why the others do not, and what it will cost; made from the inputs alone.

Contrastive reading of plain text comes first: it is the only one of the open tests into which no text can whisper. Whether
fresh texts carry the mark decides between two tests, and the key has a say in that: both are counted, or a key that is
lucky with the texts would have a test more without paying for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from radio_utils import reading
from radio_utils.audit.case import Case, Ids, prompt_source, prompts_for, readable
from radio_utils.audit.parts import parts_of
from radio_utils.audit.texts import Texts

_TEMPLATE = 64  # tokens that are allowed for a chat's template where the tokenizer has none


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
    return [_contrastive_planned(audit, opened), _reading_planned(audit), _fresh_planned(audit), *_answers_planned(audit)]


def _not_read(audit: Case) -> str:
    """Why weights are not read, empty where they are."""
    if audit.request.kind != "model":
        return "needs the suspect's weights"
    return "" if "open" in audit.request.modes else "only closed tests were asked for"


def _spelling(audit: Case, texts: Texts) -> tuple[bool, str]:
    """Whether texts hold tokens enough as they were drawn, and what is said of it."""
    if audit.spelling is None or not texts.from_strings:
        return True, ""
    if not audit.spelling.tokens:
        return False, (
            "the texts are strings, and how they were spelt can be told neither by Alice's model nor by a suspect with her "
            "tokenizer; give rows with ids, or alice"
        )
    return True, f"; {audit.spelling.words(audit.wm)}"


def _reading_planned(audit: Case) -> Planned:
    name = "reading, supervised"
    if why := _not_read(audit):
        return Planned(name, False, why)
    good, spelt = _spelling(audit, audit.texts)
    if not good:
        return Planned(name, False, spelt)
    return Planned(name, True, f"weights and texts that it may have used are at hand{spelt}", audit.of_texts.scored)


def _fresh_planned(audit: Case) -> Planned:
    name = "reading, unsupervised"
    if why := _not_read(audit):
        return Planned(name, False, why)
    if audit.fresh is None or audit.of_fresh is None:
        return Planned(name, False, "no fresh texts were given")
    good, spelt = _spelling(audit, audit.fresh)
    if not good:
        return Planned(name, False, spelt)
    if not audit.fresh_marked:
        why = "the fresh texts do not carry the watermark, so their windows say nothing of its lists"
        return Planned(name, False, why, counts=True)
    return Planned(name, True, f"weights and fresh marked texts are at hand{spelt}", audit.of_fresh.scored)


def _contrastive_planned(audit: Case, opened: Any) -> Planned:
    name = "contrastive reading"
    if why := _not_read(audit):
        return Planned(name, False, why)
    if not (audit.request.reference or audit.request.alice):
        return Planned(name, False, "no model to compare with was given, neither reference nor alice")
    if not opened.vocabulary.same:
        return Planned(name, False, "the suspect's tokenizer is not Alice's")
    other = "the model it was made from" if audit.request.reference else "Alice's own unmarked model"
    if audit.plain is not None:
        why = f"weights, {other}, and texts without the mark ({audit.plain.name})"
        return Planned(name, True, why, audit.plain.tokens)
    if audit.request.alice:
        why = f"weights, {other}, and texts without the mark, which Alice's own model writes"
        return Planned(name, True, why, audit.of_texts.scored)
    if audit.fresh is None:
        return Planned(name, False, "no texts without the watermark: give plain_texts, or alice to write them")
    why = "the fresh texts carry the watermark, or their prompts do: give plain_texts, or alice to write them"
    return Planned(name, False, why, counts=True)


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
        return _spent_at_most(audit)
    tokens = unread = 0
    for of in [opened.suspect] if opened.reference is None else [opened.suspect, opened.reference]:
        for name, texts in (("reading, supervised", audit.texts), ("reading, unsupervised", audit.fresh)):
            if name in names and texts is not None:
                tokens += sum(context.size for context in texts.contexts)
                unread += sum(part.tokens for part in parts_of(audit, opened, of, texts) if not part.kept)
    if "contrastive reading" in names:
        own = 2 * sum(context.size for context in (audit.plain or audit.texts).contexts)
        tokens, unread = tokens + own, unread + own
    seconds = None
    if unread:
        with audit.timed("model"), readable("suspect"):
            seconds = round(unread * _seconds_per_token(opened.suspect.model, audit), 1)
    asked = len(prompts_for(audit)) * request.max_tokens if "answers, all" in names else 0
    return {"tokens_read": tokens, "seconds_of_reading": seconds, "tokens_written_at_most": asked}


def _spent_at_most(audit: Case) -> dict[str, Any]:
    """What a server may charge: every request may be sent, and a failed one may have been paid for."""
    request, prompts = audit.request, prompts_for(audit)
    sizes = sorted((_tokens_asked(audit, prompt) for prompt in prompts), reverse=True)
    requests = request.max_requests or 4 * request.max_queries
    most_in = sum(sizes[:requests]) + max(0, requests - len(sizes)) * max(sizes)

    def cost(tokens_in: int, answers: int) -> float | None:
        priced = request.price_in > 0 or request.price_out > 0
        return (
            round((tokens_in * request.price_in + answers * request.max_tokens * request.price_out) / 1e6, 4)
            if priced
            else None
        )

    return {
        "answers_at_most": len(prompts),
        "requests_at_most": requests,
        "tokens_in_at_most": most_in,
        "tokens_out_at_most": requests * request.max_tokens,
        "cost_at_most": cost(most_in, requests),
        "cost_if_none_is_repeated": cost(sum(sizes), len(prompts)),
    }


def _tokens_asked(audit: Case, prompt: Ids) -> int:
    """Tokens of a prompt as a server counts them: with what its tokenizer adds, and with the template of a chat."""
    tokenizer = audit.tokenizer
    text = tokenizer.decode(prompt.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    size = max(prompt.size, len(tokenizer(text)["input_ids"]))
    if audit.request.api != "chat":
        return size
    try:
        whole = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
    except Exception:  # none, or one that needs more than a turn: templates are programs
        return size + _TEMPLATE
    return max(size, len(tokenizer(whole)["input_ids"]))


def _seconds_per_token(model: Any, audit: Case) -> float:
    """Measured once, on two texts."""
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    fed = [np.minimum(text, vocabulary - 1) for text in audit.texts.ids[:2]]
    started = time.perf_counter()
    reading.read_predictions(model, fed, vocabulary, batch_size=len(fed))
    return (time.perf_counter() - started) / sum(text.size for text in fed)


def spoken(planned: Sequence[Planned], no_control: str) -> Iterator[str]:
    """The plan, a line for each test; ``no_control`` says why the re-marking control is not run."""
    for one in planned:
        yield f"{one.name}: {'yes' if one.applies else 'no'}, {one.why}"
    yield f"re-marking control: {f'no, {no_control}' if no_control else 'yes, her model is at hand'}"
