"""An audit from its request to its verdict.

The order is the point: parameters, files and watermark are checked before a model is loaded or a server is asked; which
tests are run, and at what level each, is written down before the first of them is run; and no choice looks at a result. If
m tests could apply, each is held to α/m, so that the chance of a false conviction is at most α however they depend on each
other.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from radio_utils import keys
from radio_utils.audit import alice, preflight, report, spelling
from radio_utils.audit.case import Case, check_same_inputs, open_endpoint, open_model, prepared, verdict_before
from radio_utils.audit.earlier import earlier_audits
from radio_utils.audit.errors import AuditError
from radio_utils.audit.plan import Planned, estimated, plan
from radio_utils.audit.request import Request
from radio_utils.audit.texts import tokenizer_digest
from radio_utils.audit.verdict import Control, Outcome, TestResult, Verdict
from radio_utils.files import sha256_of, write_json
from radio_utils.suspects.endpoint.errors import ListingError

logger = logging.getLogger(__name__)


def run(request: Request, *, progress: bool = False) -> Verdict:
    """Carry out an audit and write ``plan.json``, ``verdict.json`` and ``report.html`` into its folder.

    Raises :class:`AuditError`, or :class:`radio_utils.suspects.endpoint.EndpointError` where a server fails, for whatever
    stops it; what was gathered until then is kept and used again.
    """
    case = prepared(request)
    case.progress = progress
    vocabulary = None  # in words, with how the models are fed
    if request.kind == "model":
        case.opened = open_model(case)
        vocabulary = " ".join([case.models.vocabulary.words, *stored(case), fed(case)])
        case.spelling = spelling.measured(case)
    elif request.kind == "endpoint":
        case.server = open_endpoint(case)
        try:
            case.server.check()
        except ListingError as error:
            logger.info("models are not listed, and prompts are asked all the same: %s", error)
    inputs = _inputs(case)
    check_same_inputs(request, inputs)
    planned, no_control = plan(case), alice.no_control(case)
    if not any(one.applies for one in planned):
        raise AuditError(f"no test applies ({'; '.join(f'{one.test.name}: {one.why}' for one in planned)})")
    shared = sum(one.counts for one in planned)
    level = math.log10(request.alpha / shared)
    needed = [one for one in planned if one.applies and one.test.plannable]
    needs = {one.test.name: preflight.power(case.wm, one.pairs, case.of_texts, level) for one in needed}
    preflight.check_enough(needs, request.alpha)
    if vocabulary is not None:
        logger.info(vocabulary)
    for one in planned:
        logger.info("%s: %s, %s", one.test.name, "yes" if one.applies else "no", one.why)
    logger.info("re-marking control: %s", f"no, {no_control}" if no_control else "yes, her model is at hand")
    with case.timed("statistics"):
        unmarked = preflight.unmarked(case.texts, case.wm)
    logger.info(
        "of %s about %.0f %% carry no mark, or too faint a one (%.0f to %.0f %%), which dilutes every effect by as much",
        case.texts.name, 100 * unmarked.share, 100 * unmarked.low, 100 * unmarked.high,
    )  # fmt: skip
    estimate = estimated(case, planned)
    for name, value in estimate.items():
        if value is not None:
            logger.info("%s: %s", name.replace("_", " "), f"{value:,}")
    write_json(
        request.folder / "plan.json",
        {
            "alpha": request.alpha,
            "level_of_each_test": request.alpha / shared,
            "tests": [{"test": one.test.name, "applies": one.applies, "why": one.why} for one in planned],
            "fed": vocabulary,
            "no_remarking_control": no_control,
            "unmarked_texts": asdict(unmarked),
            "smallest_effect_where_marked": {
                name: preflight.where_marked(need, unmarked.high) for name, need in needs.items()
            },
            "estimate": estimate,
            "settings": request.public(),
            "fingerprint": case.wm.fingerprint,
        },
    )
    results, control, entropy = carried_out(case, planned, shared, no_control, draw=lambda: _entropy(case, inputs))
    inputs |= _gathered(case)
    verdict = Verdict(
        outcome=outcome_of(results, math.log10(request.alpha)),
        alpha=request.alpha,
        tests=tuple(results),
        control=control,
        counted=shared,
        texts_log10_p=case.of_texts.log10_p,
        vocabulary=vocabulary,
        estimate=estimate | case.first_answers,
        inputs=inputs,
        settings=request.public(),
        fingerprint=case.wm.fingerprint,
        seconds={name: round(value, 2) for name, value in case.clock.items()},
        folder=str(request.folder),
        decoy_entropy=entropy,
        commitment=case.commitment,
        earlier=earlier_audits(request.folder, inputs),
        short_key=keys.short_key(request.secret(), request.named),
    )
    report.write(verdict, request.folder)
    return verdict


_LEAK = "It convicts under keys that nobody used too: the texts tell the key (see the re-marking control)."


def carried_out(
    case: Case, planned: Sequence[Planned], count: int, no_control: str, draw: Callable[[], str]
) -> tuple[list[TestResult], Control, str]:
    """The result of each planned test, the re-marking control, and what the decoy keys came from.

    α is shared among ``count`` tests, and ``no_control`` says why there is no control. ``draw`` gives the hexadecimal
    digits that decoy keys come from, and is asked once, when all evidence is fixed. Where the control finds a leak, no test
    of marked texts is sound.
    """
    level = math.log10(case.request.alpha / count)
    judges = [one.test.run(case, level) if one.applies else None for one in planned]
    entropy = draw()
    seed = int(entropy, 16)
    with case.timed("statistics"):
        found = [
            TestResult(one.test.name, applied=False, why=one.why) if judge is None else judge(seed)
            for one, judge in zip(planned, judges, strict=True)
        ]
    control = Control(no_control) if no_control else alice.control(case, seed)
    results = []
    for one, result in zip(planned, found, strict=True):
        if result.applied:
            smallest = None
            if one.test.plannable and result.scored:
                smallest = preflight.power(case.wm, result.scored, case.of_texts, level).smallest
            result = result.corrected(count).planned(case.wm, one.why, level, smallest)
            if control.leaks and one.test.reads_marked:
                result = replace(result, sound=False, note=f"{result.note} {_LEAK}".strip())
        results.append(result)
    return results, control, entropy


def check(request: Request) -> None:
    """Look for what is wrong before a model is loaded or a server is asked. Raises :class:`AuditError`."""
    prepared(request)


def outcome_of(tests: Sequence[TestResult], log10_alpha: float) -> Outcome:
    """Convicted by any sound test; void where only tests that cannot be believed would convict."""
    guilty = [test for test in tests if test.log10_corrected is not None and test.log10_corrected <= log10_alpha]
    if any(test.sound for test in guilty):
        return "convicted"
    return "void" if guilty else "not convicted"


def stored(case: Case) -> list[str]:
    """How weights are stored that come as GGUF files, in words."""
    return [
        f"The weights of {one.name} come from a GGUF file, stored as {one.quantisation}; what is read is what this left."
        for one in case.models.all
        if one.quantisation
    ]


def fed(case: Case) -> str:
    """How the models are fed, in words; where it is the same for all, once."""
    chats = any(one is not None and one.prompts is not None for one in (case.texts, case.fresh, case.plain))
    models = case.models.all
    words = {one.name: (one.feeding if chats else one.feeding.without_template()).words for one in models}
    if len(set(words.values())) == 1:
        return words["suspect"]
    return " ".join(f"{name.capitalize()}: {said}" for name, said in words.items())


def _inputs(case: Case) -> dict[str, Any]:
    found: dict[str, Any] = {"watermarked_texts": case.texts.described(), **_plain(case)}
    if case.commitment is not None:
        found["commitment"] = case.commitment
    if case.fresh is not None:
        found["fresh_texts"] = case.fresh.described()
    if case.opened is not None:
        for one in case.opened.all:
            found[one.name] = {"name": getattr(case.request, one.name), "sha256": one.digest}
            found[one.name] |= {"tokenizer": tokenizer_digest(one.feeding.tokenizer), "fed": one.feeding.digest}
            if one.quantisation:
                found[one.name]["quantisation"] = one.quantisation
            if one.unused:
                found[one.name]["weights not used"] = ", ".join(one.unused)
    elif case.answers is not None:
        found["suspect"] = case.answers.described()
    else:
        found["suspect"] = {"name": case.request.shown_suspect, "model": case.request.suspect_model}
    if case.request.tokenizer:
        found["tokenizer"] = {"name": case.request.tokenizer, "sha256": tokenizer_digest(case.tokenizer)}
    return found


def _entropy(case: Case, inputs: dict[str, Any]) -> str:
    """What decoy keys are made from, drawn when all evidence is fixed: a suspect that knew them could spoil its audit.

    A verdict that the folder holds about this very evidence keeps its decoys, so that nobody draws until he likes them.
    """
    if case.request.decoy_entropy:
        return case.request.decoy_entropy
    before = verdict_before(case.request) or {}
    drawn = before.get("decoy_entropy")
    if isinstance(drawn, str) and re.fullmatch(r"[0-9a-f]{32,}", drawn) and before["inputs"] == inputs | _gathered(case):
        return drawn
    return secrets.token_hex(16)


def _gathered(case: Case) -> dict[str, Any]:
    """What was made in the audit and is an input of the tests too: what a server answered, what Alice's model wrote."""
    if case.request.kind == "endpoint":
        log = case.request.folder / "answers.jsonl"
        return {"answers": {"file": str(log), "sha256": sha256_of(log)}}
    answers = {name: {"file": str(path), "sha256": sha256_of(path)} for name, path in case.kept_answers.items()}
    return _plain(case) | answers


def _plain(case: Case) -> dict[str, Any]:
    """The plain texts, where they are no other input."""
    return {} if case.plain is None or case.plain is case.fresh else {"plain_texts": case.plain.described()}
