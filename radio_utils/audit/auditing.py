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
from collections.abc import Sequence
from typing import Any

from radio_utils import keys
from radio_utils.audit import preflight, report, spelling
from radio_utils.audit.alice import no_control
from radio_utils.audit.case import Case, OpenModel, check_same_inputs, open_endpoint, open_model, prepared, verdict_before
from radio_utils.audit.earlier import earlier_audits
from radio_utils.audit.errors import AuditError
from radio_utils.audit.plan import estimated, plan, spoken
from radio_utils.audit.request import Request
from radio_utils.audit.testing import carried_out
from radio_utils.audit.texts import tokenizer_digest
from radio_utils.audit.verdict import Outcome, TestResult, Verdict
from radio_utils.files import sha256_of, write_json
from radio_utils.suspects.endpoint.errors import ListingError

logger = logging.getLogger(__name__)


def run(request: Request, *, progress: bool = False) -> Verdict:
    """Carry out an audit and write ``plan.json``, ``verdict.json`` and ``report.html`` into its folder.

    Raises :class:`AuditError`, or :class:`radio_utils.suspects.endpoint.EndpointError` where a server fails, for whatever
    stops it; what was gathered until then is kept and used again.
    """
    audit = prepared(request)
    opened: Any = None
    vocabulary = None  # in words, with how the models are fed
    if request.kind == "model":
        opened = open_model(audit)
        vocabulary = f"{opened.vocabulary.words} {fed(audit, opened)}"
        audit.spelling = spelling.measured(audit, opened)
    elif request.kind == "endpoint":
        opened = open_endpoint(audit, progress)
        try:
            opened.check()
        except ListingError as error:
            logger.info("models are not listed, and prompts are asked all the same: %s", error)
    inputs = _inputs(audit, opened)
    check_same_inputs(request, inputs)
    planned = plan(audit, opened)
    tests = [one for one in planned if one.applies]
    if not tests:
        reasons = "; ".join(f"{one.name}: {one.why}" for one in planned)
        raise AuditError(f"no test applies ({reasons})")
    shared = sum(one.applies or one.counts for one in planned)
    level = math.log10(request.alpha / shared)
    needs = {one.name: preflight.power(audit.wm, one.pairs, audit.of_texts, level) for one in tests}
    preflight.check_enough({name: need for name, need in needs.items() if name != "contrastive reading"}, request.alpha)
    if vocabulary is not None:
        logger.info(vocabulary)
    for line in spoken(planned, no_control(audit, opened)):
        logger.info(line)
    estimate = estimated(audit, opened, tests)
    for name, value in estimate.items():
        if value is not None:
            logger.info("%s: %s", name.replace("_", " "), f"{value:,}")
    write_json(
        request.folder / "plan.json",
        {
            "alpha": request.alpha,
            "level_of_each_test": request.alpha / shared,
            "tests": [{"test": one.name, "applies": one.applies, "why": one.why} for one in planned],
            "fed": vocabulary,
            "no_remarking_control": no_control(audit, opened),
            "estimate": estimate,
            "settings": request.public(),
            "fingerprint": audit.wm.fingerprint,
        },
    )
    results, control, entropy = carried_out(audit, opened, planned, shared, progress, draw=lambda: _entropy(audit, inputs))
    inputs |= _gathered(audit)
    estimate |= audit.first_answers
    earlier = earlier_audits(request.folder, inputs)
    verdict = Verdict(
        outcome=outcome_of(results, math.log10(request.alpha)),
        alpha=request.alpha,
        tests=tuple(results),
        control=control,
        counted=shared,
        texts_log10_p=audit.of_texts.log10_p,
        vocabulary=vocabulary,
        estimate=estimate,
        inputs=inputs,
        settings=request.public(),
        fingerprint=audit.wm.fingerprint,
        seconds={name: round(value, 2) for name, value in audit.clock.items()},
        folder=str(request.folder),
        decoy_entropy=entropy,
        commitment=audit.commitment,
        earlier=earlier,
        short_key=keys.short_key(request.secret(), request.named),
    )
    report.write(verdict, request.folder)
    return verdict


def check(request: Request) -> None:
    """Look for what is wrong before a model is loaded or a server is asked. Raises :class:`AuditError`."""
    prepared(request)


def outcome_of(tests: Sequence[TestResult], log10_alpha: float) -> Outcome:
    """Convicted by any sound test; void where only tests that cannot be believed would convict."""
    guilty = [test for test in tests if test.log10_corrected is not None and test.log10_corrected <= log10_alpha]
    if any(test.sound for test in guilty):
        return "convicted"
    return "void" if guilty else "not convicted"


def fed(audit: Case, opened: OpenModel) -> str:
    """How the models are fed, in words; where it is the same for all, once."""
    chats = any(one is not None and one.prompts is not None for one in (audit.texts, audit.fresh, audit.plain))
    models = [one for one in (opened.suspect, opened.reference, opened.alice) if one is not None]
    words = {one.name: (one.feeding if chats else one.feeding.without_template()).words for one in models}
    if len(set(words.values())) == 1:
        return words["suspect"]
    return " ".join(f"{name.capitalize()}: {said}" for name, said in words.items())


def _inputs(audit: Case, opened: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"watermarked_texts": audit.texts.described(), **_plain(audit)}
    if audit.commitment is not None:
        found["commitment"] = audit.commitment
    if audit.fresh is not None:
        found["fresh_texts"] = audit.fresh.described()
    if isinstance(opened, OpenModel):
        for one in (opened.suspect, opened.reference, opened.alice):
            if one is not None:
                found[one.name] = {"name": getattr(audit.request, one.name), "sha256": one.digest}
                found[one.name] |= {"tokenizer": tokenizer_digest(one.feeding.tokenizer), "fed": one.feeding.digest}
                if one.unused:
                    found[one.name]["weights not used"] = ", ".join(one.unused)
    elif audit.answers is not None:
        found["suspect"] = audit.answers.described()
    else:
        found["suspect"] = {"name": audit.request.shown_suspect, "model": audit.request.suspect_model}
    if audit.request.tokenizer:
        found["tokenizer"] = {"name": audit.request.tokenizer, "sha256": tokenizer_digest(audit.tokenizer)}
    return found


def _entropy(audit: Case, inputs: dict[str, Any]) -> str:
    """What decoy keys are made from, drawn when all evidence is fixed: a suspect that knew them could spoil its audit.

    A verdict that the folder holds about this very evidence keeps its decoys, so that nobody draws until he likes them.
    """
    if audit.request.decoy_entropy:
        return audit.request.decoy_entropy
    before = verdict_before(audit.request) or {}
    drawn = before.get("decoy_entropy")
    if isinstance(drawn, str) and re.fullmatch(r"[0-9a-f]{32,}", drawn) and before["inputs"] == inputs | _gathered(audit):
        return drawn
    return secrets.token_hex(16)


def _gathered(audit: Case) -> dict[str, Any]:
    """What was made in the audit and is an input of the tests too: what a server answered, what Alice's model wrote."""
    if audit.request.kind == "endpoint":
        log = audit.request.folder / "answers.jsonl"
        return {"answers": {"file": str(log), "sha256": sha256_of(log)}}
    answers = {name: {"file": str(path), "sha256": sha256_of(path)} for name, path in audit.kept_answers.items()}
    return _plain(audit) | answers


def _plain(audit: Case) -> dict[str, Any]:
    """The plain texts, where they are no other input."""
    return {} if audit.plain is None or audit.plain is audit.fresh else {"plain_texts": audit.plain.described()}
