"""The answers of a closed suspect: counted, kept, and what the first of them promise of all."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from radio_utils import decoding
from radio_utils import evidence as ev
from radio_utils.audit import preflight
from radio_utils.audit.case import Case, Ids, OpenModel, Weights, prompts_are_chats, readable
from radio_utils.audit.errors import AuditError
from radio_utils.audit.parts import PART, store
from radio_utils.audit.texts import digest_of, tokenizer_digest
from radio_utils.audit.verdict import TestResult
from radio_utils.files import atomic_write
from radio_utils.provenance import code_version
from radio_utils.retokenising import Retokenised
from radio_utils.suspects import LocalSuspect, Suspect
from radio_utils.suspects.feeding import Feeding

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heard:
    """What came back: ``answers`` in number, those that are ``empty`` and those ``refused`` among them, and what to say."""

    answers: int
    empty: int
    refused: int = 0
    note: str = ""

    def added_to(self, result: TestResult) -> TestResult:
        """The result with these numbers."""
        return replace(result, answers=self.answers, empty=self.empty, refused=self.refused)


def heard(
    audit: Case, answers: Sequence[Ids], refusals: Mapping[str, int] | None = None, left_out: Sequence[str] = ()
) -> Heard:
    """Count the answers, and say what a reader must know of them."""
    refused = sum((refusals or {}).values())
    empty = sum(answer.size == 0 for answer in answers) - refused
    notes = []
    if empty:
        notes.append(f"{empty:,} of {len(answers):,} answers are empty: {_is_chat(audit)}.")
    if refusals:
        reasons = "; ".join(f"{count:,} times it {why}" for why, count in refusals.items())
        notes.append(f"{refused:,} prompts have no answer, as the server has none for them ({reasons}).")
    for name in left_out:
        instead = ", and max_completion_tokens given in its place" if name == "max_tokens" else ""
        notes.append(f"The server refuses the setting {name}, so it was left out{instead}.")
    for note in notes:
        logger.info(note)
    return Heard(len(answers), empty, refused, " ".join(notes))


def _is_chat(audit: Case) -> str:
    """What to look at where a suspect does not answer."""
    if audit.request.kind == "endpoint" and audit.request.api == "completions":
        return "is this a chat model? try --api chat"
    if audit.request.kind == "model":
        return "is this a chat model, and the prompts lack its template?"
    return "is max_tokens too small for a model that thinks before it answers?"


def check_answered(audit: Case, answers: Sequence[Ids]) -> None:
    """Raise :class:`AuditError` where there is nothing to score."""
    if any(answer.size > audit.wm.window for answer in answers):
        return
    empty = sum(answer.size == 0 for answer in answers)
    raise AuditError(
        f"none of the {len(answers)} answers is longer than window={audit.wm.window} tokens, and {empty} are empty; raise "
        f"max_tokens, or use prompts that the suspect answers ({_is_chat(audit)})"
    )


def look_ahead(audit: Case, prompts: Sequence[Ids], answers: Sequence[Ids], keep: Ids, level: float) -> None:
    """Say what all answers will show, by the length of the first and by what φ leaves of their pairs."""
    wm, first = audit.wm, list(zip(prompts, answers, strict=False))
    half = first[: len(first) // 2]

    def pairs(of: Sequence[tuple[Ids, Ids]], kept: Ids | None) -> int:
        long = [(asked, said) for asked, said in of if said.size > wm.window]
        if not long:
            return 0
        asked, said = [one for one, _ in long], [one for _, one in long]
        options: dict[str, Any] = {"shared": ev.shared_by(wm), "hidden": True}
        return len(ev.collect(said, wm.window, wm.vocab_size, prompts=asked, keep=kept, **options))

    with audit.timed("statistics"):
        some, all_of_them, fewer = pairs(first, keep), pairs(first, None), pairs(half, keep)
    growth = min(1.0, math.log(some / fewer) / math.log(len(first) / len(half))) if fewer else 1.0
    expected = round(some * (len(prompts) / len(first)) ** growth)
    need = preflight.power(wm, expected, audit.of_texts, level)
    mean = sum(answer.size for answer in answers) / len(answers)
    audit.first_answers = {
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


def answers_of(audit: Case, opened: OpenModel, of: Weights, prompts: Sequence[Ids], progress: bool) -> list[Ids]:
    """The answers of a model at hand, kept part by part, and all together in a file that may be given as a suspect."""
    request, found = audit.request, list[Ids]()
    same, size = opened.vocabulary.same, max(1, PART // request.max_tokens)
    for start in range(0, len(prompts), size):
        some = prompts[start : start + size]

        def build(folder: Path, some: Sequence[Ids] = some, start: int = start) -> None:
            given = _local(audit, opened, of, progress, request.seed + start).answer(some)
            atomic_write(folder / "answers.jsonl", _rows(some, given))

        config: dict[str, Any] = {
            "prompts": digest_of(some, None), "model": of.digest, "dtype": request.dtype, "fed": _feeding(audit, of).digest,
            "temperature": request.temperature, "max_tokens": request.max_tokens, "seed": request.seed + start,
            "tokenizers": None if same else list(map(tokenizer_digest, (audit.tokenizer, opened.tokenizer))),
        }  # fmt: skip
        version = code_version("querying", "retokenising", "suspects")
        with audit.timed("model"), readable(of.name):
            made = store(audit).get("answers", config, build, version=version)
        lines = (made / "answers.jsonl").read_text("utf-8").splitlines()
        found += [np.array(json.loads(line)["ids"], np.int64) for line in lines]
    name = "answers" if of is opened.suspect else "answers_of_the_reference"
    path = audit.kept_answers[name] = request.folder / f"{name}_at_hand.jsonl"
    atomic_write(path, _rows(prompts, found))
    return found


def _rows(prompts: Sequence[Ids], answers: Sequence[Ids]) -> str:
    rows = ({"prompt_ids": prompt.tolist(), "ids": ids.tolist()} for prompt, ids in zip(prompts, answers, strict=True))
    return "".join(json.dumps(row) + "\n" for row in rows)


def _feeding(audit: Case, of: Weights) -> Feeding:
    """How prompts are fed: with the model's template where they are a user's words."""
    return of.feeding if prompts_are_chats(audit) else of.feeding.without_template()


def _local(audit: Case, opened: OpenModel, of: Weights, progress: bool, seed: int) -> Suspect:
    """A model at hand, behind a closed door."""
    request = audit.request
    options: dict[str, Any] = {
        "stop_tokens": of.stop_tokens,
        "sampling": decoding.Sampling(temperature=request.temperature),
        "max_new_tokens": request.max_tokens,
        "batch_size": 4 * request.batch_size,
        "seed": seed,
        "progress": "answers" if progress else None,
        "feeding": _feeding(audit, of),
    }
    if opened.vocabulary.same:
        return LocalSuspect(of.model, **options)
    return Retokenised(of.model, its_tokenizer=opened.tokenizer, tokenizer=audit.tokenizer, **options)
