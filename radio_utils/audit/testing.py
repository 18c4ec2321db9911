"""The tests of a plan, carried out: evidence from the suspect, the verdict on it, and its decoy audit.

First all evidence is gathered, then the decoy keys are drawn, then it is judged. Evidence of reading depends on no key. It
is kept in the audit's folder, so that an audit that was cut goes on there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from radio_utils import contrast, decoding, detection, querying, reading
from radio_utils import evidence as ev
from radio_utils.artifacts import Store, code_version
from radio_utils.audit import preflight
from radio_utils.audit.case import Case, Ids, OpenModel, prompts_for, readable
from radio_utils.audit.errors import AuditError
from radio_utils.audit.plan import Planned
from radio_utils.audit.texts import Texts, tokenizer_digest
from radio_utils.audit.verdict import TestResult
from radio_utils.predictions import Predictions
from radio_utils.retokenising import Retokenised, read_across
from radio_utils.suspects import LocalSuspect, Suspect

_WATCH_LEVEL = 0.05  # share of decoys that may look convincing in a watched test
_BATCH = 16  # prompts after which the watched test looks again


_NO_PROMPTS = (
    "The answers came without their prompts: the p-value holds only if no prompt held watermarked text, which an answer "
    "could have copied."
)


Judge = Callable[[int], TestResult]  # of evidence that is fixed: the seed of the decoy keys → the result


def carried_out(
    audit: Case,
    opened: Any,
    planned: Sequence[Planned],
    needs: dict[str, preflight.Need],
    count: int,
    progress: bool,
    draw: Callable[[], str],
) -> tuple[list[TestResult], TestResult | None, str]:
    """The result of each planned test, that of the control, and what the decoy keys came from.

    α is shared among ``count`` tests. ``draw`` gives the hexadecimal digits that decoy keys come from, and is asked once,
    when all evidence is fixed.
    """
    makers: dict[str, Callable[[], Judge]] = {
        "reading, supervised": lambda: _read(audit, opened, "reading, supervised", audit.texts, progress),
        "reading, unsupervised": lambda: _read(audit, opened, "reading, unsupervised", audit.fresh, progress),
        "contrastive reading": lambda: _read_contrast(audit, opened, progress),
    }
    applied = {one.name for one in planned if one.applies}
    judges = {name: make() for name, make in makers.items() if name in applied}
    if "answers, all" in applied:
        judges |= _ask(audit, opened, math.log10(audit.request.alpha / count), "answers, watched" in applied, progress)
    control = _control(audit, opened, applied, progress)
    entropy = draw()
    with audit.timed("statistics"):
        found = {name: judge(int(entropy, 16)) for name, judge in judges.items()}
        of_control = None if control is None else control(int(entropy, 16))
    results = []
    for one in planned:
        result = found.get(one.name) or TestResult(name=one.name, applied=False, why=one.why)
        if result.applied:
            smallest = None if one.name == "contrastive reading" else needs[one.name].smallest
            level = math.log10(audit.request.alpha / count)
            result = result.corrected(count).planned(audit.wm, one.why, level, smallest)
        results.append(result)
    return results, of_control, entropy


def _control(audit: Case, opened: Any, applied: set[str], progress: bool) -> Judge | None:
    """The first test, on the model that the suspect was made from."""
    if not isinstance(opened, OpenModel) or opened.reference is None:
        return None
    if "reading, supervised" in applied:
        return _read(audit, opened, "control", audit.texts, progress, of_reference=True)
    prompts = prompts_for(audit)
    with audit.timed("model"), readable("reference"):
        answers = _local(audit, replace(opened, model=opened.reference), progress).answer(prompts)
    return _scored_answers(audit, prompts, answers, _filter(audit), name="control")


def _store(audit: Case) -> Store:
    return Store(audit.request.folder / "evidence")


def _read(
    audit: Case, opened: OpenModel, name: str, texts: Texts | None, progress: bool, *, of_reference: bool = False
) -> Judge:
    """Reading mode along the texts. Its evidence depends on no key and is kept."""
    assert texts is not None
    wm, request = audit.wm, audit.request
    model = opened.reference if of_reference else opened.model
    bar = name if progress else None

    def build(folder: Path) -> None:
        options: dict[str, Any] = {"prompts": texts.prompts, "batch_size": request.batch_size, "progress": bar}
        if opened.vocabulary.same:
            found = reading.read_predictions(model, texts.ids, wm.vocab_size, **options)
        else:
            found = read_across(model, opened.tokenizer, audit.tokenizer, texts.ids, **options)
        found.save(folder / "predictions.npz")

    config = {
        "texts": texts.digest,
        "vocab_size": wm.vocab_size,
        "model": _names(opened, of_reference),
        "dtype": request.dtype,
        "tokenizers": None if opened.vocabulary.same else list(map(tokenizer_digest, (audit.tokenizer, opened.tokenizer))),
    }
    with audit.timed("model"), readable("reference" if of_reference else "suspect"):
        made = _store(audit).get(
            "predictions", config, build, version=code_version("reading.py", "retokenising.py", "predictions.py")
        )
    predicted = Predictions.load(made / "predictions.npz")
    note = ""
    if not opened.vocabulary.same:
        places = sum(t.size - max(s, 1) for t, s in zip(predicted.tokens, predicted.starts.tolist(), strict=True))
        decided = sum(int(np.count_nonzero(tokens >= 0)) for tokens in predicted.tokens)
        note = f"Of {places:,} places the suspect's tokenizer decides {decided:,}; the others are not scored."
    with audit.timed("statistics"):
        found = predicted.evidence(wm.window, wm.vocab_size, shared=ev.shared_by(wm))
    return lambda seed: _judged(audit, name, found, seed, note)


def _names(opened: OpenModel, of_reference: bool) -> dict[str, str]:
    digest = opened.reference_digest if of_reference else opened.digest
    return dict(digest or {})


def _judged(audit: Case, name: str, found: ev.Evidence, seed: int, note: str) -> TestResult:
    """The verdict on evidence and its decoy audit."""
    verdict = detection.judge(found, audit.wm)
    if len(found) == 0:
        return TestResult.of(name, verdict, audit.wm, None, f"{note} No place could be scored, so p = 1.".strip())
    decoys = detection.audit_evidence(found, audit.wm, keys=audit.request.decoys, seed=seed)
    return TestResult.of(name, verdict, audit.wm, decoys, note)


def _read_contrast(audit: Case, opened: OpenModel, progress: bool) -> Judge:
    wm, request, texts, of_fresh = audit.wm, audit.request, audit.fresh, audit.of_fresh
    assert texts is not None and of_fresh is not None

    def build(folder: Path) -> None:
        reading.read_contrast(
            opened.model, opened.reference, texts.ids, wm.window, wm.vocab_size, prompts=texts.prompts,
            batch_size=request.batch_size, progress="contrastive reading" if progress else None,
        ).save(folder)  # fmt: skip

    config = {"texts": texts.digest, "window": wm.window, "vocab_size": wm.vocab_size}
    config |= {"model": _names(opened, False), "reference": _names(opened, True), "dtype": request.dtype}
    with audit.timed("model"), readable("suspect or reference"):
        version = code_version("reading.py", "contrast.py", "evidence.py")
        made = _store(audit).get("contrast", config, build, version=version)
    found = contrast.Contrast.load(made.path)

    def judge(seed: int) -> TestResult:
        verdict = contrast.judge_contrast(found, wm, text_log10_p=of_fresh.log10_p)
        decoys = None
        if len(found.pairs):
            decoys = contrast.audit_contrast(found, wm, keys=request.decoys, seed=seed)
        return TestResult.of("contrastive reading", verdict, wm, decoys)

    return judge


def _ask(audit: Case, opened: Any, level: float, watched: bool, progress: bool) -> dict[str, Judge]:
    """The closed tests. A watched one stops asking when its wealth reaches 10^−level."""
    keep = _filter(audit)
    if audit.answers is not None:
        prompts = audit.answers.prompts or [np.zeros(0, np.int64)] * len(audit.answers.ids)
        note = "" if audit.answers.prompts is not None else _NO_PROMPTS
        return {"answers, all": _scored_answers(audit, prompts, audit.answers.ids, keep, note)}
    prompts = prompts_for(audit)
    if not watched:
        with audit.timed("model"), readable("suspect"):
            answers = _local(audit, opened, progress).answer(prompts)
        return {"answers, all": _scored_answers(audit, prompts, answers, keep)}
    dedup: ev.Dedup = "window" if isinstance(audit.wm, ev.SharesLists) else "window+token"
    watch = querying.Watch(audit.wm, keep=keep, dedup=dedup)
    answers = []
    while len(answers) < len(prompts) and watch.highest < -level:
        start = len(answers)
        some = prompts[start : start + _BATCH]
        with audit.timed("model"), readable("suspect"):
            given_now = opened.answer(some)
        answers += given_now
        with audit.timed("statistics"):
            watch.add(some, given_now, first=start)
    asked = prompts[: len(answers)]
    if not any(answer.size > audit.wm.window for answer in answers):
        raise AuditError(
            f"none of the {len(answers)} answers is longer than window={audit.wm.window} tokens; raise max_tokens, or use "
            "prompts that the suspect answers"
        )
    seen = watch.verdict(10**level, len(answers))

    def judge(seed: int) -> TestResult:
        highest = querying.audit_watch(
            asked, answers, audit.wm, keep=keep, batch=_BATCH, keys=audit.request.decoys, seed=seed, dedup=dedup
        )
        alarms = float(np.mean(highest >= -math.log10(_WATCH_LEVEL)))
        allowed = _WATCH_LEVEL + 4 * math.sqrt(_WATCH_LEVEL * (1 - _WATCH_LEVEL) / highest.size)
        return TestResult.of_watched(seen, audit.wm, highest, alarms, sound=alarms <= allowed)

    if seen.convicted:
        why = f"not needed: the watched test was decided after {seen.asked} of {len(prompts)} prompts"
        fixed: Judge = lambda seed: TestResult(name="answers, all", applied=False, why=why)  # noqa: E731
    else:
        fixed = _scored_answers(audit, asked, answers, keep)
    return {"answers, watched": judge, "answers, all": fixed}


def _filter(audit: Case) -> Ids:
    """The filter φ: the windows of the texts that the suspect may have used."""
    return ev.frequent_windows(audit.texts.ids, audit.wm.window, audit.wm.vocab_size)


def _scored_answers(
    audit: Case,
    prompts: Sequence[Ids],
    answers: Sequence[Ids],
    keep: Ids,
    note: str = "",
    name: str = "answers, all",
) -> Judge:
    with audit.timed("statistics"):
        try:
            found = querying.score_answers(prompts, answers, audit.wm, keep=keep)
        except ValueError as error:
            raise AuditError(f"the suspect's answers cannot be scored: {error}") from error
    return lambda seed: _judged(audit, name, found.evidence, seed, note)


def _local(audit: Case, opened: OpenModel, progress: bool) -> Suspect:
    """A model at hand, behind a closed door."""
    request = audit.request
    bare = querying.as_suspect(opened.model)
    assert isinstance(bare, LocalSuspect)
    options: dict[str, Any] = {
        "stop_tokens": bare.stop_tokens,
        "sampling": decoding.Sampling(temperature=request.temperature),
        "max_new_tokens": request.max_tokens,
        "batch_size": 4 * request.batch_size,
        "seed": request.seed,
        "progress": "answers" if progress else None,
    }
    if opened.vocabulary.same:
        return LocalSuspect(opened.model, **options)
    return Retokenised(opened.model, its_tokenizer=opened.tokenizer, tokenizer=audit.tokenizer, **options)
