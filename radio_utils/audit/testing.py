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
from tqdm import tqdm

from radio_utils import contrast, detection, querying, reading
from radio_utils import evidence as ev
from radio_utils.audit import alice, preflight
from radio_utils.audit.answers import Heard, answers_of, check_answered, heard, look_ahead
from radio_utils.audit.case import Case, Ids, OpenModel, Weights, prompts_for, readable
from radio_utils.audit.errors import AuditError
from radio_utils.audit.parts import joined, parts_of, store
from radio_utils.audit.plan import Planned
from radio_utils.audit.texts import Texts
from radio_utils.audit.verdict import Control, TestResult
from radio_utils.predictions import Predictions
from radio_utils.provenance import code_version

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
    count: int,
    progress: bool,
    draw: Callable[[], str],
) -> tuple[list[TestResult], Control, str]:
    """The result of each planned test, the re-marking control, and what the decoy keys came from.

    α is shared among ``count`` tests. ``draw`` gives the hexadecimal digits that decoy keys come from, and is asked once,
    when all evidence is fixed. Where the control finds a leak, no test of reading marked texts is sound.
    """
    makers: dict[str, Callable[[], Judge]] = {
        "contrastive reading": lambda: _read_contrast(audit, opened, progress),
        "reading, supervised": lambda: _read(audit, opened, "reading, supervised", audit.texts, progress),
        "reading, unsupervised": lambda: _read(audit, opened, "reading, unsupervised", audit.fresh, progress),
    }
    applied = {one.name for one in planned if one.applies}
    judges = {name: make() for name, make in makers.items() if name in applied}
    if "answers, all" in applied:
        judges |= _ask(audit, opened, math.log10(audit.request.alpha / count), "answers, watched" in applied, progress)
    entropy = draw()
    seed = int(entropy, 16)
    with audit.timed("statistics"):
        found = {name: judge(seed) for name, judge in judges.items()}
    why = alice.no_control(audit, opened)
    control = Control(why) if why else alice.control(audit, opened, seed, progress)
    results = []
    for one in planned:
        result = found.get(one.name) or TestResult(name=one.name, applied=False, why=one.why)
        if result.applied:
            level = math.log10(audit.request.alpha / count)
            result = result.corrected(count).planned(audit.wm, one.why, level, _smallest(audit, result, level))
            if control.leaks and one.name.startswith("reading"):
                result = replace(result, sound=False, note=f"{result.note} {_LEAK}".strip())
        results.append(result)
    return results, control, entropy


def _smallest(audit: Case, result: TestResult, level: float) -> float | None:
    """The effect that the pairs which were scored would show nine times in ten; None for a test that is not planned so.

    Pairs of contrastive reading have weights, and a watched test needs more of them than one of a fixed number.
    """
    if result.name in ("contrastive reading", "answers, watched") or not result.scored:
        return None
    return preflight.power(audit.wm, result.scored, audit.of_texts, level).smallest


_LEAK = "It convicts under keys that nobody used too: the texts tell the key (see the re-marking control)."


def _read(audit: Case, opened: OpenModel, name: str, texts: Texts | None, progress: bool) -> Judge:
    """Reading mode along the texts, and where there is a reference, that of both at the same places."""
    assert texts is not None
    wm = audit.wm
    predicted = _predictions(audit, opened, opened.suspect, texts, name if progress else None)
    note = ""
    if not opened.vocabulary.same:
        places = sum(t.size - max(s, 1) for t, s in zip(predicted.tokens, predicted.starts.tolist(), strict=True))
        decided = sum(int(np.count_nonzero(tokens >= 0)) for tokens in predicted.tokens)
        note = f"Of {places:,} places the suspect's tokenizer decides {decided:,}; the others are not scored."
    options: dict[str, Any] = {"shared": ev.shared_by(wm), "full_context": audit.request.full_context}
    with audit.timed("statistics"):
        found = predicted.evidence(wm.window, wm.vocab_size, **options)
    base = None
    if opened.reference is not None:
        of_base = _predictions(audit, opened, opened.reference, texts, f"{name}, reference" if progress else None)
        with audit.timed("statistics"):
            base = of_base.evidence(wm.window, wm.vocab_size, places_of=predicted, **options)
    return lambda seed: _judged(audit, name, found, seed, note, base=base, respelt=audit.allowance(texts))


def _predictions(audit: Case, opened: OpenModel, of: Weights, texts: Texts, bar: str | None) -> Predictions:
    """What a model expects along the texts. It depends on no key and is kept, part by part."""
    parts, read = list(parts_of(audit, opened, of, texts)), []
    with (
        audit.timed("model"),
        readable(of.name),
        tqdm(total=sum(part.tokens for part in parts), desc=bar, disable=bar is None, unit="token") as shown,
    ):
        for part in parts:
            read.append(part.read())
            shown.update(part.tokens)
    return joined(read)


def _judged(
    audit: Case,
    name: str,
    found: ev.Evidence,
    seed: int,
    note: str,
    *,
    base: ev.Evidence | None = None,
    respelt: float = 0.0,
) -> TestResult:
    """The verdict on evidence, its comparison with that of the model before, and its decoy audit."""
    verdict = detection.judge(found, audit.wm, respelt=respelt)
    decoys = None
    if len(found):
        decoys = detection.audit_evidence(found, audit.wm, keys=audit.request.decoys, seed=seed)
    else:
        note = f"{note} No place could be scored, so p = 1.".strip()
    added = None if base is None else detection.compare(found, base, audit.wm)
    return replace(TestResult.of(name, verdict, audit.wm, decoys, note), added=added)


def _read_contrast(audit: Case, opened: OpenModel, progress: bool) -> Judge:
    """Contrastive reading of plain text. Its weights depend on no key and are kept."""
    wm, request, reference = audit.wm, audit.request, opened.reference or opened.alice
    assert reference is not None
    if audit.plain is None:
        audit.plain = alice.plain_texts(audit, opened, progress)
    texts, own = audit.plain, preflight.log10_p_of(audit.plain, wm)

    def build(folder: Path) -> None:
        reading.read_contrast(
            opened.suspect.model, reference.model, texts.ids, wm.window, wm.vocab_size, prompts=texts.prompts,
            feeding=[opened.suspect.feeding, reference.feeding], batch_size=request.batch_size,
            progress="contrastive reading" if progress else None,
        ).save(folder)  # fmt: skip

    config = {"texts": texts.digest, "window": wm.window, "vocab_size": wm.vocab_size}
    config |= {"model": opened.suspect.digest, "reference": reference.digest, "dtype": request.dtype}
    config["fed"] = [opened.suspect.feeding.digest, reference.feeding.digest]
    with audit.timed("model"), readable(f"suspect or {reference.name}"):
        version = code_version("contrast")
        made = store(audit).get("contrast", config, build, version=version)
    found = contrast.Contrast.load(made.path)

    def judge(seed: int) -> TestResult:
        verdict = contrast.judge_contrast(found, wm, text_log10_p=own)
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
        answers = answers_of(audit, opened, opened.suspect, prompts, progress)
        look_ahead(audit, prompts, answers[:_BATCH], keep, level)
        check_answered(audit, answers)
        of_base = None
        if opened.reference is not None:
            of_base = answers_of(audit, opened, opened.reference, prompts, progress)
        said = heard(audit, answers)
        return {"answers, all": _scored_answers(audit, prompts, answers, keep, said.note, of_base=of_base, said=said)}
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
        if not start:
            look_ahead(audit, prompts, answers, keep, level)
    asked = prompts[: len(answers)]
    check_answered(audit, answers)
    said = heard(audit, answers, getattr(opened, "refusals", {}), getattr(opened, "left_out", ()))
    seen = watch.verdict(10**level, len(answers))

    def judge(seed: int) -> TestResult:
        highest = querying.audit_watch(
            asked, answers, audit.wm, keep=keep, batch=_BATCH, keys=audit.request.decoys, seed=seed, dedup=dedup
        )
        alarms = float(np.mean(highest >= -math.log10(_WATCH_LEVEL)))
        allowed = _WATCH_LEVEL + 4 * math.sqrt(_WATCH_LEVEL * (1 - _WATCH_LEVEL) / highest.size)
        result = TestResult.of_watched(seen, audit.wm, highest, alarms, sound=alarms <= allowed)
        return said.added_to(replace(result, note=said.note))

    if seen.convicted:
        why = f"not needed: the watched test was decided after {seen.asked} of {len(prompts)} prompts"
        fixed: Judge = lambda seed: TestResult(name="answers, all", applied=False, why=why)  # noqa: E731
    else:
        fixed = _scored_answers(audit, asked, answers, keep, said.note, said=said)
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
    of_base: Sequence[Ids] | None = None,
    said: Heard | None = None,
) -> Judge:
    said = said or Heard(len(answers), sum(answer.size == 0 for answer in answers))

    def evidence(of: Sequence[Ids]) -> ev.Evidence:
        return querying.score_answers(prompts, of, audit.wm, keep=keep).evidence

    with audit.timed("statistics"):
        try:
            found, base = evidence(answers), None if of_base is None else evidence(of_base)
        except ValueError as error:
            raise AuditError(f"the suspect's answers, or its reference's, cannot be scored: {error}") from error
    return lambda seed: said.added_to(_judged(audit, "answers, all", found, seed, note, base=base))
