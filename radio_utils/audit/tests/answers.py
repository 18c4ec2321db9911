"""The tests of what a suspect says: of a number of answers that is fixed beforehand, and of answers as they come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from radio_utils import evidence as ev
from radio_utils import querying
from radio_utils.audit.answers import answers_of, given, heard, look_ahead
from radio_utils.audit.case import Case, Ids, readable
from radio_utils.audit.errors import blamed
from radio_utils.audit.tests.base import Applies, Cost, Judge, SuspectTest, Words
from radio_utils.audit.verdict import TestResult

_WATCH_LEVEL = 0.05  # share of decoys that may look convincing in a watched test
_BATCH = 16  # prompts after which the watched test looks again

_HOLDS = "In an answer no window is scored that stands in its own prompt, from which it could be copied."
_NOT_LEARNED = (
    "Proof that the suspect had marked text before it when it answered. The tests of answers reject that its words know "
    "nothing of the key, not that it learned them in training: text that was retrieved for the prompt (a search engine, a "
    "store of documents), a system prompt or an earlier turn with marked text, answers kept from Alice's model, or a proxy "
    "that passes prompts on to her own API leave the same trace, and the last a far stronger one."
)


_NOT_ASKED = Applies(False, "the suspect's weights are read, which tells more than its answers")
_NOT_WATCHED = {
    "answers": Applies(False, "the answers are given, so watching them come saves nothing"),
    "model": Applies(False, "answers of a model at hand cost nothing, so there is no need to stop early"),
}


class Answers(SuspectTest):
    """What both tests of answers have in common."""

    def pairs(self, case: Case) -> int:
        """As dense in the answers as in Alice's texts."""
        tokens = len(case.asked.prompts) * case.request.max_tokens if case.answers is None else case.answers.tokens
        return int(min(tokens, case.of_texts.scored * max(1.0, tokens / max(1, case.texts.tokens)) ** 0.5))


class WatchedAnswers(Answers):
    """Answers of a server, scored as they come, until they suffice. What came goes on to the test of all answers."""

    name = "answers, watched"
    words = Words(
        "Its answers, scored as they came, until they sufficed",
        _HOLDS,
        "A watched test stops as soon as it reaches its level, so that its number lies just below the level, however "
        "strong the case.",
        (_NOT_LEARNED,),
    )
    plannable = False  # the number of its pairs is not fixed

    def applies(self, case: Case) -> Applies:
        """Where a server is asked."""
        if "closed" not in case.request.modes:
            return _NOT_ASKED
        if case.server is None:
            return _NOT_WATCHED[case.request.kind]
        return Applies(True, f"its answers to {case.asked.source}, stopped as soon as they suffice")

    def run(self, case: Case, level: float) -> Judge:
        """Ask until its wealth reaches 10^−level."""
        wm, server, prompts, answers = case.wm, case.server, case.asked.prompts, list[Ids]()
        dedup: ev.Dedup = "window" if wm.law.without_return else "window+token"
        watch = querying.Watch(wm, keep=case.windows, dedup=dedup)
        while len(answers) < len(prompts) and watch.highest < -level:
            start = len(answers)
            some = prompts[start : start + _BATCH]
            with case.timed("model"), readable("suspect"):
                given_now = server.answer(some)
            answers += given_now
            with case.timed("statistics"):
                watch.add(some, given_now, first=start)
            if not start:
                look_ahead(case, prompts, answers, level)
        answered, seen = prompts[: len(answers)], watch.verdict(10**level, len(answers))
        said = heard(case, answered, answers)
        enough = f"not needed: the watched test was decided after {seen.asked} of {len(prompts)} prompts"
        case.heard = replace(said, enough=enough if seen.convicted else "")

        def judge(seed: int) -> TestResult:
            highest = querying.audit_watch(
                answered, answers, wm, keep=case.windows, batch=_BATCH, keys=case.request.decoys, seed=seed, dedup=dedup
            )
            alarms = float(np.mean(highest >= -math.log10(_WATCH_LEVEL)))
            allowed = _WATCH_LEVEL + 4 * math.sqrt(_WATCH_LEVEL * (1 - _WATCH_LEVEL) / highest.size)
            result = TestResult(
                name=self.name, applied=True, seen=seen.seen, scored=seen.scored,
                score=seen.total / seen.scored if seen.scored else None, expected=wm.law.mean, log10_p=seen.log10_p,
                decoys=int(highest.size), lowest_decoy=-float(highest.max()), alarms=alarms, sound=alarms <= allowed,
                asked=seen.asked, note=said.note,
            )  # fmt: skip
            return said.added_to(result)

        return judge


class AllAnswers(Answers):
    """All answers, given in a file, by a model at hand, or by a server that the watched test has asked."""

    name = "answers, all"
    words = Words("Its answers to a number of prompts that was fixed beforehand", _HOLDS, undone=(_NOT_LEARNED,))

    def applies(self, case: Case) -> Applies:
        """Where closed tests are asked for, or nothing else is possible."""
        if "closed" not in case.request.modes:
            return _NOT_ASKED
        if case.answers is not None:
            return Applies(True, "the suspect's answers are given")
        source = f"its answers to {case.asked.source}"
        return Applies(True, source if case.server is None else f"{source}, if all are needed")

    def cost(self, case: Case) -> Cost:
        """Each prompt is answered at full length at most."""
        return Cost(written=len(case.asked.prompts) * case.request.max_tokens)

    def run(self, case: Case, level: float) -> Judge:
        """Gather what was not gathered yet, also of a reference."""
        of_base = None
        if case.answers is not None:
            said = given(case)
        elif case.heard is not None:
            said = case.heard
        else:
            prompts, models = case.asked.prompts, case.models
            answers = answers_of(case, models.suspect, prompts)
            look_ahead(case, prompts, answers[:_BATCH], level)
            said = heard(case, prompts, answers)
            if models.reference is not None:
                of_base = answers_of(case, models.reference, prompts)
        if said.enough:
            return lambda seed: TestResult(self.name, applied=False, why=said.enough)

        def evidence(of: Sequence[Ids]) -> ev.Evidence:
            return querying.score_answers(said.prompts, of, case.wm, keep=case.windows).evidence

        with case.timed("statistics"), blamed("the suspect's answers, or its reference's, cannot be scored", ValueError):
            found, base = evidence(said.answers), None if of_base is None else evidence(of_base)
        return lambda seed: said.added_to(self.judged(case, found, seed, said.note, base=base))
