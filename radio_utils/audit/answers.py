"""The answers of a closed suspect: counted, kept, and what the first of them promise of all."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from radio_utils import decoding
from radio_utils import evidence as ev
from radio_utils.audit import preflight
from radio_utils.audit.case import Case, Ids, Weights, copied_among
from radio_utils.audit.copies import RUN
from radio_utils.audit.errors import AuditError
from radio_utils.audit.parts import PART
from radio_utils.audit.texts import digest_of, rows_of
from radio_utils.audit.verdict import TestResult
from radio_utils.files import atomic_write
from radio_utils.provenance import code_version
from radio_utils.retokenising import Retokenised
from radio_utils.suspects import LocalSuspect, Suspect
from radio_utils.suspects.feeding import Feeding

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heard:
    """What came back to ``prompts``, and what to say of it.

    Of ``number`` prompts ``empty`` have an answer without a token, and ``refused`` have none; None where nobody can tell.
    ``enough`` says why no other test needs these answers; empty where one does.
    """

    prompts: Sequence[Ids]
    answers: Sequence[Ids]
    number: int
    empty: int
    refused: int | None = None
    note: str = ""
    enough: str = ""

    def added_to(self, result: TestResult) -> TestResult:
        """The result with the answers in number, and those that are empty or refused among them."""
        return replace(result, answers=self.number, empty=self.empty, refused=self.refused)


def given(case: Case) -> Heard:
    """The answers of a file, all of whose rows count, also those that are too short to score."""
    texts = case.answers
    assert texts is not None
    prompts = texts.prompts or [text[:0] for text in texts.ids]
    notes, bare = _copied(*case.copied), sum(not prompt.size for prompt in prompts)
    if bare:
        notes.append(
            f"Of {len(prompts):,} answers that are longer than the window no prompt was found for {bare:,}: the p-value "
            "holds only if no watermarked text stood before those, which an answer could have copied."
        )
    if few := texts.short - texts.empty:
        notes.append(f"Not scored, as not longer than the window, though not empty: {few:,}.")
    return Heard(prompts, texts.ids, len(texts.ids) + texts.short, texts.empty, note=" ".join(notes))


def _copied(same: int, long: int) -> list[str]:
    """What to say of answers that are Alice's own texts."""
    if not same:
        return []
    said = (
        f"Of {long:,} answers of at least {RUN} tokens {same:,} are for the most part Alice's own texts, word for word: "
        "looked up, kept from her model, learned by heart, or words that many use."
    )
    return [said]


def heard(case: Case, prompts: Sequence[Ids], answers: Sequence[Ids]) -> Heard:
    """The answers, and what a reader must know of them. Raises :class:`AuditError` where there is nothing to score."""
    empty, notes = sum(answer.size == 0 for answer in answers), []
    if not any(answer.size > case.wm.window for answer in answers):
        raise AuditError(
            f"none of the {len(answers)} answers is longer than window={case.wm.window} tokens, and {empty} are empty; "
            f"raise max_tokens, or use prompts that the suspect answers ({_is_chat(case)})"
        )
    refusals: dict[str, int] = getattr(case.server, "refusals", {})
    refused = sum(refusals.values())
    empty -= refused
    if empty:
        notes.append(f"{empty:,} of {len(answers):,} answers are empty: {_is_chat(case)}.")
    if refusals:
        reasons = "; ".join(f"{count:,} times it {why}" for why, count in refusals.items())
        notes.append(f"{refused:,} prompts have no answer, as the server has none for them ({reasons}).")
    for name in getattr(case.server, "left_out", ()):
        instead = ", and max_completion_tokens given in its place" if name == "max_tokens" else ""
        notes.append(f"The server refuses the setting {name}, so it was left out{instead}.")
    with case.timed("statistics"):
        notes += _copied(*copied_among(answers, case.texts, case.fresh))
    for note in notes:
        logger.info(note)
    return Heard(prompts, answers, len(answers), empty, refused, " ".join(notes))


def _is_chat(case: Case) -> str:
    """What to look at where a suspect does not answer."""
    if case.request.kind == "endpoint" and case.request.api == "completions":
        return "is this a chat model? try --api chat"
    if case.request.kind == "model":
        return "is this a chat model, and the prompts lack its template?"
    return "is max_tokens too small for a model that thinks before it answers?"


def look_ahead(case: Case, prompts: Sequence[Ids], answers: Sequence[Ids], level: float) -> None:
    """Say what all answers will show, by the length of the first and by what φ leaves of their pairs."""
    wm, first = case.wm, list(zip(prompts, answers, strict=False))
    half = first[: len(first) // 2]

    def pairs(of: Sequence[tuple[Ids, Ids]], kept: Ids | None) -> int:
        long = [(asked, said) for asked, said in of if said.size > (0 if wm.marks_start else wm.window)]
        if not long:
            return 0
        asked, said = [one for one, _ in long], [one for _, one in long]
        options: dict[str, Any] = {"shared": ev.shared_by(wm), "hidden": True, "from_start": wm.marks_start}
        return len(ev.collect(said, wm.window, wm.vocab_size, prompts=asked, keep=kept, **options))

    with case.timed("statistics"):
        some, all_of_them, fewer = pairs(first, case.windows), pairs(first, None), pairs(half, case.windows)
    growth = min(1.0, math.log(some / fewer) / math.log(len(first) / len(half))) if fewer else 1.0
    expected = round(some * (len(prompts) / len(first)) ** growth)
    need = preflight.power(wm, expected, case.of_texts, level)
    mean = sum(answer.size for answer in answers) / len(answers)
    case.first_answers = {
        "first_answers": len(answers),
        "tokens_of_a_first_answer": round(mean, 1),
        "share_that_the_filter_leaves": round(some / all_of_them, 4) if all_of_them else 0.0,
        "pairs_expected_of_all": expected,
        "effect_expected_to_be_seen": None if need.smallest is None else round(need.smallest, 4),
    }
    shown = f"which shows an effect of {need.smallest:.3f}" if need.smallest is not None else "which cannot show any effect"
    logger.info(
        "the first %d answers have %.0f tokens each, and the filter leaves %.0f %% of their pairs: all %d will give about "
        "%d pairs, %s nine times in ten (the marked texts have %.3f)%s",
        len(answers), mean, 100 * some / max(1, all_of_them), len(prompts), expected, shown, need.strongest,
        "" if need.enough else "; that is too little, raise max_queries or max_tokens",
    )  # fmt: skip


def answers_of(case: Case, of: Weights, prompts: Sequence[Ids]) -> list[Ids]:
    """The answers of a model at hand, kept part by part, and all together in a file that may be given as a suspect."""
    request, found = case.request, list[Ids]()
    size = max(1, PART // request.max_tokens)
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]

        def build(folder: Path, some: Sequence[Ids] = some, start: int = start) -> None:
            given = _local(case, of, request.seed + start).answer(some)
            atomic_write(folder / "answers.jsonl", rows_of(some, given))

        config: dict[str, Any] = {
            "prompts": digest_of(some, None), "model": of.digest, "dtype": request.dtype, "fed": _feeding(case, of).digest,
            "temperature": request.temperature, "max_tokens": request.max_tokens, "seed": request.seed + start,
            "tokenizers": case.models.tokenizers(case),
        }  # fmt: skip
        made = case.kept("answers", config, build, of.name, code_version(build))
        lines = (made / "answers.jsonl").read_text("utf-8").splitlines()
        found += [np.array(json.loads(line)["ids"], np.int64) for line in lines]
    name = "answers" if of is case.models.suspect else "answers_of_the_reference"
    path = case.kept_answers[name] = request.folder / f"{name}_at_hand.jsonl"
    atomic_write(path, rows_of(prompts, found))
    return found


def _feeding(case: Case, of: Weights) -> Feeding:
    """How prompts are fed: with the model's template where they are a user's words."""
    return of.feeding if case.asked.chats else of.feeding.without_template()


def _local(case: Case, of: Weights, seed: int) -> Suspect:
    """A model at hand, behind a closed door."""
    request, models = case.request, case.models
    options: dict[str, Any] = {
        "stop_tokens": of.stop_tokens,
        "sampling": decoding.Sampling(temperature=request.temperature),
        "max_new_tokens": request.max_tokens,
        "batch_size": 4 * request.batch_size,
        "seed": seed,
        "progress": case.bar("answers"),
        "feeding": _feeding(case, of),
    }
    if models.vocabulary.same:
        return LocalSuspect(of.model, **options)
    return Retokenised(of.model, its_tokenizer=models.tokenizer, tokenizer=case.tokenizer, **options)
