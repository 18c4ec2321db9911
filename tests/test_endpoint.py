"""Suspects behind an API: the same answers whatever the network does, nothing asked twice, nothing secret said."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from endpoints import WORDS, FakeServer, Fault, Proxy, Seen, ask, free_port, proxied, refusal, reply, served
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import PATIENCE, wait_until

import radio_utils as ru
from radio_utils import suspects
from radio_utils.suspects import Suspect
from radio_utils.suspects.endpoint import BudgetError, Clock, EndpointError, EndpointSuspect, Usage, protocol
from radio_utils.suspects.endpoint.address import Address
from radio_utils.world import models

VOCABULARY = 300
KEY = "sk-a-very-secret-key-0123456789"
PASSWORD = "pass/word:of+alice"


class FastClock(Clock):
    """A clock on which waiting takes no time."""

    def __init__(self) -> None:
        self.time, self.slept, self._lock = 0.0, list[float](), threading.Lock()

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float, woken: threading.Event) -> None:
        with self._lock:
            until = self.time + seconds
            self.slept.append(seconds)
        time.sleep(0.001)
        with self._lock:
            self.time = max(self.time, until)


class IdleClock(Clock):
    """A clock that stands still while anyone works: its time goes on, to the end of the shortest wait, when all wait.

    ``alive`` is how many there are.
    """

    def __init__(self, alive: Callable[[], int]) -> None:
        self.time, self.waits, self._alive, self._lock = 0.0, list[float](), alive, threading.Lock()

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float, woken: threading.Event) -> None:
        with self._lock:
            until = self.time + seconds
            self.waits.append(until)

        def over() -> bool:
            with self._lock:
                if len(self.waits) >= self._alive():
                    self.time = min(self.waits)
                if until <= self.time or woken.is_set():
                    self.waits.remove(until)
                    return True
                return False

        wait_until(over)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    models.train_tokenizer([" ".join(WORDS)] * 10, VOCABULARY, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    return suspects.load_tokenizer(tokenizer_folder)


@dataclass
class Bench:
    """Makes suspects of one log with a clock that does not wait."""

    tokenizer: Any
    folder: Path
    makes: type[EndpointSuspect] = EndpointSuspect

    @property
    def log(self) -> Path:
        return self.folder / "answers.jsonl"

    def suspect(self, url: str, **options: Any) -> EndpointSuspect:
        defaults: dict[str, Any] = {"model": "toy", "log": self.log, "clock": FastClock(), "jitter": random.Random(0)}
        return self.makes(url=url, tokenizer=self.tokenizer, **(defaults | {"timeout": PATIENCE} | options))

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_bytes().splitlines()]

    @staticmethod
    def answered_in(log: bytes) -> dict[str, str]:
        """The answers in the whole lines of a log, by request."""
        lines = [json.loads(line) for line in log.split(b"\n")[:-1]]
        return {line["request"]: line["answer"] for line in lines if "request" in line}

    def answered(self) -> dict[str, str]:
        return self.answered_in(self.log.read_bytes() if self.log.exists() else b"")

    def check_answers(self, fake: FakeServer, prompts: Sequence[str], found: Sequence[Any]) -> None:
        """The answers are those that the model gives to these prompts under the seeds that the server was sent."""
        seeds = {(line["prompt"], line["draw"]): line["request"] for line in self.lines() if "request" in line}
        sent = {seen.name: seen.body["seed"] for seen in fake.asked}
        draws: Counter[str] = Counter()
        assert len(found) == len(prompts) > 0
        for prompt, ids in zip(prompts, found, strict=True):
            text = reply(prompt, sent[seeds[prompt, draws[prompt]]])
            draws[prompt] += 1
            assert ids.dtype == np.int64 and ids.tolist() == self.ids([text])[0]


@pytest.fixture
def bench(tokenizer: Any, tmp_path: Path) -> Bench:
    return Bench(tokenizer, tmp_path)


PROMPTS = [f"{a} {b}" for a in WORDS for b in WORDS[:3]]  # 36


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_prompts_go_out_as_text_and_answers_come_back_as_tokens(bench: Bench, kind: str) -> None:
    with served(FakeServer()) as fake:
        suspect = bench.suspect(fake.url, kind=kind, temperature=0.5, top_p=0.9, max_tokens=11)
        assert isinstance(suspect, Suspect)
        prompts = bench.ids(PROMPTS)
        special = bench.tokenizer.eos_token_id
        found = suspect.answer([[special, *prompts[0]], *prompts[1:]])
        bench.check_answers(fake, PROMPTS, found)
    assert any(ids.size == 0 for ids in found) and any(ids.size > 3 for ids in found)  # an empty answer is one
    assert {seen.path for seen in fake.asked} == {"/v1/chat/completions" if kind == "chat" else "/v1/completions"}
    for seen in fake.asked:
        body = {name: seen.body[name] for name in ("model", "temperature", "top_p", "max_tokens")}
        assert body == {"model": "toy", "temperature": 0.5, "top_p": 0.9, "max_tokens": 11}
        assert 0 <= seen.body["seed"] < 2**31
    assert len({seen.body["seed"] for seen in fake.asked}) == len({seen.name for seen in fake.asked}) == len(PROMPTS)


def test_a_prompt_asked_again_is_another_draw_and_a_new_instance_begins_anew(bench: Bench) -> None:
    with served(FakeServer()) as fake:
        first = bench.suspect(fake.url, concurrency=3)
        prompts = bench.ids([PROMPTS[0]] * 3 + [PROMPTS[1]])
        once, again = first.answer(prompts), first.answer(prompts)
        assert len(fake.asked) == len({seen.name for seen in fake.asked}) == 8
        bench.check_answers(fake, [PROMPTS[0]] * 3, once[:3])
        assert {ids.tobytes() for ids in once[:3]} != {ids.tobytes() for ids in again[:3]}

        second = bench.suspect("http://127.0.0.1:" + str(fake.port) + "/v1/", concurrency=1)
        for expected in (once, again):
            assert all(np.array_equal(a, b) for a, b in zip(second.answer(prompts), expected, strict=True))
        assert len(fake.asked) == 8
        second.answer(prompts[:1])
        assert len(fake.asked) == 9
        assert second.answer([]) == []


def test_other_settings_share_a_log_but_no_answer(bench: Bench) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"temperature": 0.1}, {"top_p": 0.5}, {"max_tokens": 7}, {"seed": 1}, {"model": "other"}, {"kind": "chat"},
    ]  # fmt: skip
    with served(FakeServer()) as fake, served(FakeServer()) as elsewhere:
        prompts = bench.ids(PROMPTS[:3])
        given = [bench.suspect(fake.url, **change).answer(prompts) for change in changes]
        assert len(fake.asked) == len({seen.name for seen in fake.asked}) == 3 * len(changes)
        for change, answers in zip(changes, given, strict=True):  # from the log
            again = bench.suspect(fake.url, **change).answer(prompts)
            assert [ids.tolist() for ids in again] == [ids.tolist() for ids in answers]
        assert len(fake.asked) == 3 * len(changes) and not elsewhere.asked
        # another server is another suspect; a copy of the same one answers alike, for the seeds are the same
        copied = bench.suspect(elsewhere.url).answer(prompts)
        assert len(elsewhere.asked) == 3
        assert [ids.tolist() for ids in copied] == [ids.tolist() for ids in given[0]]


PASSING: dict[str, Fault] = {
    "refuse": "refuse", "reset": "reset", "truncate": "truncate", "cut": "cut", "html": "html",
    "no choices": '{"object": "text_completion"}', "empty choices": '{"choices": []}',
    "a list": "[1]", "null": "null", "null text": '{"choices": [{"text": null}]}',
    "no text": '{"choices": [{"text": 7}]}', "huge": json.dumps({"choices": [{"text": "a" * 1_000_001}]}),
    "deep": "[" * 100_000, "500": refusal(500), "502": (502, "<html>", {}), "408": refusal(408), "409": refusal(409),
    "429": refusal(429), "429 wait": refusal(429, retry_after="20"),
}  # fmt: skip


def test_faults_that_pass_change_no_answer(bench: Bench) -> None:
    """Every request meets one or two faults, then is answered; all kinds of faults are met."""
    faults, tries, met = list(PASSING.items()), Counter[str](), Counter[str]()

    def fault(number: int, seen: Seen) -> Fault:
        tries[seen.name] += 1
        first = PROMPTS.index(seen.prompt)
        if tries[seen.name] > 1 + first % 2:
            return None
        name, what = faults[(first + 7 * tries[seen.name]) % len(faults)]
        met[name] += 1
        return what

    with served(FakeServer(fault, latency=0.01)) as fake:
        found = bench.suspect(fake.url, concurrency=6).answer(bench.ids(PROMPTS))
        bench.check_answers(fake, PROMPTS, found)
    assert met.keys() == PASSING.keys()
    assert len(fake.asked) == len(PROMPTS) + sum(1 + i % 2 for i in range(len(PROMPTS))) == 90
    assert set(Counter(seen.name for seen in fake.asked).values()) == {2, 3}
    assert bench.suspect(fake.url).usage.requests == 90
    assert fake.most <= 6


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("html", r"answers garbage: no JSON but '<html>welcome</html>', 3 times in a row"),
        ('{"object": "text_completion"}', r"answers garbage: no choices\[0\]\.text in .*text_completion"),
        ('{"choices": [{"text": ["a"]}]}', r"choices\[0\]\.text is \[\"a\"\] and no string"),
        (json.dumps({"choices": [{"text": "é" * 1_000_001}]}), r"an answer of 1,000,001 characters"),
        ("x" * 16_100_000, r"more than 16,000,000 bytes"),
        ("refuse", r"cannot be reached \(.+\), 3 times in a row"),
        ("reset", r"broke off its answer|cannot be reached"),
        (refusal(503, "over\n  loaded"), r"fails \(503: over loaded\), 3 times in a row"),
    ],
    ids=["html", "no choices", "no string", "long", "huge", "refuse", "reset", "503"],
)  # fmt: skip
def test_what_does_not_pass_ends_the_asking_with_one_sentence(bench: Bench, fault: Fault, words: str) -> None:
    with served(FakeServer(lambda number, seen: fault if number >= 4 else None)) as fake:
        suspect = bench.suspect(fake.url, concurrency=1, attempts=3)
        with pytest.raises(EndpointError, match=words) as caught:
            suspect.answer(bench.ids(PROMPTS))
        # garbage may be about the one prompt: that of a fourth is not
        asked = 4 + 3 * (4 if "answers garbage" in str(caught.value) else 1)
        assert len(fake.asked) == asked
        said = str(caught.value)
        assert said.startswith(f"the endpoint {fake.url}/v1 ") and "\n" not in said and len(said) < 700
        assert f"; 4 answers are safe in {bench.log}; " in said
        fake.fault = lambda number, seen: None
        found = suspect.answer(bench.ids(PROMPTS))  # the same instance goes on with the same draws
        bench.check_answers(fake, PROMPTS, found)
        assert len(fake.asked) == asked + len(PROMPTS) - 4


class Hurried(EndpointSuspect):
    """Has little time, until it is given more."""

    @contextmanager
    def _client(self) -> Iterator[Any]:
        with super()._client() as self.client:
            yield self.client

    def take_time(self) -> None:
        self.timeout = self.client.timeout = PATIENCE


@pytest.mark.parametrize("fault", ["late", "drip"])
def test_what_comes_too_late_is_asked_again(bench: Bench, fault: Fault) -> None:
    """The server takes longer than the time limit by itself; once it does not, there is time for all."""

    def first_is_late(number: int, seen: Seen) -> Fault:
        suspect.take_time()  # what is under way keeps to its limit
        return fault if number == 0 else None

    bench.makes = Hurried
    with served(FakeServer(first_is_late)) as fake:
        suspect: Any = bench.suspect(fake.url, concurrency=1, timeout=0.3)
        bench.check_answers(fake, PROMPTS, suspect.answer(bench.ids(PROMPTS)))
        assert len(fake.asked) == len(PROMPTS) + 1
    with served(FakeServer(lambda number, seen: fault)) as fake:
        suspect = bench.suspect(fake.url, concurrency=1, attempts=3, timeout=0.3)
        with pytest.raises(EndpointError, match=r"did not answer within 0\.3 s, 3 times in a row; 36 answers are safe"):
            suspect.answer(bench.ids(PROMPTS))
        assert suspect.usage.requests == len(PROMPTS) + 1 + 3


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (refusal(401, "expired"), r"refuses the credentials \(401: expired\); .*name the environment variable of a valid"),
        (refusal(402), r"no quota left for you \(402"),
        (refusal(403), r"refuses the credentials \(403"),
        (refusal(404), r"knows no model 'toy' on this route \(404: no\); .*; mend url, model or kind"),
        (refusal(429, "pay", code="insufficient_quota"), r"no quota left for you \(429: pay\)"),
        (refusal(429, retry_after="86400"), r"asked too often \(429: no\) and asks to wait 86,400 s"),
    ],
    ids=["401", "402", "403", "404", "quota", "a day"],
)  # fmt: skip
def test_what_will_not_pass_is_not_tried_again(bench: Bench, fault: Fault, words: str) -> None:
    with served(FakeServer(lambda number, seen: fault if number >= 4 else None)) as fake:
        with pytest.raises(EndpointError, match=words) as caught:
            bench.suspect(fake.url, concurrency=1).answer(bench.ids(PROMPTS))
        assert len(fake.asked) == 5 and not isinstance(caught.value, BudgetError)
        assert f"; 4 answers are safe in {bench.log}; " in str(caught.value)
        assert len(bench.answered()) == 4


FILTERED = refusal(400, "The response was filtered", code="content_filter")
ODD: dict[str, Fault] = {
    "filter": FILTERED, "too long": refusal(400, "This model's maximum context length is 9 tokens, not max_tokens=11"),
    "422": refusal(422, "`inputs` must have less than 9 tokens"), "413": refusal(413), "451": refusal(451),
    "flagged": refusal(403, "your input was flagged by moderation"), "an error": '{"error": {"message": "upstream died"}}',
    "an error and no choices": '{"error": {"code": 502, "message": "bad"}, "choices": []}',
    "empty choices": '{"choices": []}', "null choices": '{"choices": null}', "null choice": '{"choices": [null]}',
    "html": "html", "no choices": '{"object": "text_completion"}', "a list": "[1, 2]",
    "no string": '{"choices": [{"text": 7}]}', "null text": '{"choices": [{"text": null}]}', "no text": '{"choices": [{}]}',
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("first", [False, True])
def test_an_odd_reply_is_not_taken_for_the_server(bench: Bench, name: str, first: bool) -> None:
    """Two prompts are never answered; all others are, and nobody asks the two again."""
    odd = {PROMPTS[0], PROMPTS[9]} if first else {PROMPTS[7], PROMPTS[30]}
    with served(FakeServer(lambda number, seen: ODD[name] if seen.prompt in odd else None)) as fake:
        suspect = bench.suspect(fake.url, concurrency=2)
        found = suspect.answer(bench.ids(PROMPTS))
        kept = [(prompt, ids) for prompt, ids in zip(PROMPTS, found, strict=True) if prompt not in odd]
        bench.check_answers(fake, [prompt for prompt, _ in kept], [ids for _, ids in kept])
        assert all(ids.size == 0 for prompt, ids in zip(PROMPTS, found, strict=True) if prompt in odd)
        ((reason, count),) = suspect.refusals.items()
        assert count == 2 and ("refuses" in reason or "answers" in reason)
        sent = len(fake.asked)
        assert sent == 34 + 2 * (1 if isinstance(ODD[name], tuple) else 3)
        again = bench.suspect(fake.url)
        assert [a.tolist() for a in again.answer(bench.ids(PROMPTS))] == [a.tolist() for a in found]
        assert len(fake.asked) == sent and again.refusals == suspect.refusals and again.left_out == ()


def test_more_than_a_few_prompts_answered_with_garbage_end_the_asking(bench: Bench) -> None:
    """Every third prompt is, so that they never come in a row; what is known of the first three is kept."""
    odd = set(PROMPTS[2::3])
    with served(FakeServer(lambda number, seen: "html" if seen.prompt in odd else None)) as fake:
        with pytest.raises(EndpointError, match=r"answers garbage: no JSON but '<html>.*; 11 answers are safe"):
            bench.suspect(fake.url, concurrency=1).answer(bench.ids(PROMPTS))
        assert len(fake.asked) == 8 + 3 * 4
        with pytest.raises(EndpointError, match="answers garbage"):  # nor is that forgotten by the next run
            bench.suspect(fake.url, concurrency=1).answer(bench.ids(PROMPTS))
        assert len(fake.asked) == 8 + 3 * 4 + 3


@pytest.mark.parametrize("after", [0, 4])
@pytest.mark.parametrize("name", ODD)
def test_oddity_after_oddity_speaks_of_the_server(bench: Bench, name: str, after: int) -> None:
    with served(FakeServer(lambda number, seen: ODD[name] if number >= after else None)) as fake:
        with pytest.raises(EndpointError, match=f"{after} answers are safe") as caught:
            bench.suspect(fake.url, concurrency=1).answer(bench.ids(PROMPTS))
        few = 4 if "answers garbage" in str(caught.value) else 16
        assert len(fake.asked) == after + few * (1 if isinstance(ODD[name], tuple) else 3)
        fake.fault = lambda number, seen: None
        found = bench.suspect(fake.url).answer(bench.ids(PROMPTS))  # none of it was held against a prompt
        bench.check_answers(fake, PROMPTS, found)


def test_who_answers_nobody_is_named_however_few_are_asked(bench: Bench) -> None:
    with served(FakeServer(lambda number, seen: refusal(400, "no such field"))) as fake:
        with pytest.raises(EndpointError, match=r"refuses the request \(400: no such field\); 0 answers.*mend model, kind"):
            bench.suspect(fake.url).answer(bench.ids(PROMPTS[:2]))
        assert len(fake.asked) == 2 and bench.answered() == {}


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("chat", {"message": {"content": None}, "finish_reason": "length"}, ""),
        ("chat", {"message": {"role": "assistant"}, "finish_reason": "content_filter"}, ""),
        (
            "chat",
            {"message": {"content": [{"type": "thinking"}, {"type": "text", "text": " fox"}]}},
            " fox",
        ),
        ("completions", {"text": None, "finish_reason": "stop"}, ""),
        ("completions", {"text": " fox", "finish_reason": None}, " fox"),
    ],
)
def test_a_reply_that_says_why_it_ended_is_an_answer(bench: Bench, kind: str, body: dict[str, Any], expected: str) -> None:
    with served(FakeServer(lambda number, seen: json.dumps({"choices": [body]}))) as fake:
        suspect = bench.suspect(fake.url, kind=kind)
        assert [a.tolist() for a in suspect.answer(bench.ids(PROMPTS[:3]))] == [
            bench.ids([expected])[0] if expected else []
        ] * 3
        assert len(fake.asked) == 3 and suspect.refusals == {}


PICKY: dict[str, tuple[set[str], Any]] = {
    "max_tokens": ({"max_tokens"}, {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                   "'max_completion_tokens' instead.", "param": "max_tokens", "code": "unsupported_parameter"}),
    "seed": ({"seed"}, {"message": "Unrecognized request argument supplied: seed", "param": None}),
    "extra": ({"seed"}, [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]),
    "both": ({"top_p"}, {"message": "`temperature` and `top_p` cannot both be specified for this model."}),
    "temperature": ({"temperature"}, {"message": "'temperature' does not support 0.8", "param": "temperature"}),
}  # fmt: skip


@pytest.mark.parametrize(
    "names", [("max_tokens",), ("seed",), ("extra",), ("both",), ("max_tokens", "temperature", "seed")]
)
def test_what_is_refused_by_name_is_left_out_and_said(bench: Bench, names: tuple[str, ...]) -> None:
    def fault(number: int, seen: Seen) -> Fault:
        for name in names:
            if PICKY[name][0] <= seen.body.keys():
                return 400, json.dumps({"detail" if name == "extra" else "error": PICKY[name][1]}), {}
        return json.dumps({"choices": [{"text": f" {seen.prompt}"}]})

    with served(FakeServer(fault)) as fake:
        suspect = bench.suspect(fake.url, max_tokens=11, concurrency=3)
        found = suspect.answer(bench.ids(PROMPTS))
        assert [a.tolist() for a in found] == bench.ids([f" {prompt}" for prompt in PROMPTS])
        left_out = set[str]().union(*(PICKY[name][0] for name in names))
        assert set(suspect.left_out) == left_out and suspect.refusals == {}
        last = fake.asked[-1].body
        assert not left_out & last.keys() and ("max_tokens" not in left_out or last["max_completion_tokens"] == 11)
        assert {"temperature", "top_p", "seed", "max_tokens"} - left_out <= last.keys()
        assert len(fake.asked) <= len(PROMPTS) + 3 * len(left_out) and suspect.usage.requests == len(fake.asked)
        again, sent = bench.suspect(fake.url, max_tokens=11), len(fake.asked)
        again.answer(bench.ids(PROMPTS + PROMPTS[:2]))
        assert again.left_out == suspect.left_out and len(fake.asked) == sent + 2  # it is known


def test_a_name_in_a_refusal_of_one_prompt_changes_no_setting(bench: Bench) -> None:
    fault = refusal(400, "seed is not supported for this prompt")
    with served(FakeServer(lambda number, seen: fault if seen.prompt == PROMPTS[5] else None)) as fake:
        suspect = bench.suspect(fake.url, concurrency=1)
        suspect.answer(bench.ids(PROMPTS))
        assert suspect.left_out == () and sum(suspect.refusals.values()) == 1


def test_what_is_under_way_when_another_fails_is_kept(bench: Bench) -> None:
    together, stops = threading.Barrier(4), list[threading.Event]()

    class Watched(FastClock):
        def sleep(self, seconds: float, woken: threading.Event) -> None:
            stops.append(woken)
            super().sleep(seconds, woken)

    def fault(number: int, seen: Seen) -> Fault:
        if number < 4:
            together.wait(PATIENCE)  # four at once
            if number == 2:
                return refusal(401)
            # the others are answered when the run has failed already, or goes on all the same
            wait_until(lambda: stops[0].is_set() or len(fake.asked) > 4)
        return None

    with served(FakeServer(fault)) as fake:
        with pytest.raises(EndpointError, match="3 answers are safe"):
            bench.suspect(fake.url, concurrency=4, requests_per_minute=60, clock=Watched()).answer(bench.ids(PROMPTS))
        assert len(fake.asked) == 4 and len(bench.answered()) == 3
        found = bench.suspect(fake.url, concurrency=4).answer(bench.ids(PROMPTS))
        bench.check_answers(fake, PROMPTS, found)
        assert len(fake.asked) == 4 + len(PROMPTS) - 3


@pytest.mark.parametrize("as_date", [False, True])
def test_a_refusal_for_haste_holds_back_all_threads(bench: Bench, as_date: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sent, today = IdleClock(lambda: min(4, len(PROMPTS) + 1 - len(sent))), list[float](), 1.8e9
    monkeypatch.setattr(protocol, "time", SimpleNamespace(time=lambda: today))

    def fault(number: int, seen: Seen) -> Fault:
        sent.append(clock.now())
        if number > 9:  # until the refusal was read; then one waits, or sends again all the same
            wait_until(lambda: clock.waits or clock.now() or len(sent) > 9 + 4)
        return refusal(429, retry_after=formatdate(today + 30, usegmt=True) if as_date else "30") if number == 9 else None

    with served(FakeServer(fault)) as fake:
        found = bench.suspect(fake.url, concurrency=4, clock=clock).answer(bench.ids(PROMPTS))
        bench.check_answers(fake, PROMPTS, found)
    # those of the other threads that were under way may still have come; all others waited
    assert 10 <= sum(when < 29 for when in sent) <= 10 + 3 and len(sent) == len(PROMPTS) + 1
    assert {when for when in sent if when < 29} == {0.0}


def test_a_server_that_takes_one_request_a_second_is_not_given_up(bench: Bench) -> None:
    lock, taken = threading.Lock(), [-1.0]
    clock = IdleClock(lambda: min(8, len(PROMPTS) + 1 - len(taken)))

    def fault(number: int, seen: Seen) -> Fault:
        with lock:
            if clock.now() < taken[-1] + 1:
                return refusal(429)
            taken.append(clock.now())
            return None

    with served(FakeServer(fault)) as fake:
        found = bench.suspect(fake.url, concurrency=8, attempts=8, clock=clock).answer(bench.ids(PROMPTS))
        bench.check_answers(fake, PROMPTS, found)
    assert len(PROMPTS) < len(fake.asked) < 4 * len(PROMPTS)


def test_requests_are_paced(bench: Bench) -> None:
    clock, sent = FastClock(), list[float]()

    def fault(number: int, seen: Seen) -> None:
        sent.append(clock.now())

    with served(FakeServer(fault)) as fake:
        bench.suspect(fake.url, concurrency=3, requests_per_minute=120, clock=clock).answer(bench.ids(PROMPTS[:20]))
    assert len(sent) == 20
    assert all(sorted(sent)[i] >= 0.5 * i - 0.5 - 1e-9 for i in range(20)) and max(sent) >= 9.5 - 1e-9


@pytest.mark.parametrize("concurrency", [1, 5])
@pytest.mark.parametrize("budget", [1, 7, 50])
def test_the_budget_holds_over_instances_and_retries(bench: Bench, budget: int, concurrency: int) -> None:
    with served(FakeServer(lambda number, seen: refusal(500) if number % 3 == 1 else None)) as fake:
        for _ in range(2):  # the second is not given a new one
            suspect = bench.suspect(fake.url, concurrency=concurrency, attempts=99, budget=budget)
            with pytest.raises(BudgetError, match=f"was sent {budget} requests, which is all that budget={budget} allows"):
                suspect.answer(bench.ids(PROMPTS))
            assert len(fake.asked) == budget == suspect.usage.requests
        assert len(bench.answered()) == suspect.usage.answers == sum(i % 3 != 1 for i in range(budget))
        again = bench.suspect(fake.url, concurrency=concurrency, attempts=99, budget=1000)
        found = again.answer(bench.ids(PROMPTS))
        bench.check_answers(fake, PROMPTS, found)
        assert Counter(seen.name for seen in fake.asked).keys() == bench.answered().keys()
        answered = len(fake.asked) - sum(i % 3 == 1 for i in range(len(fake.asked)))
        assert answered == len(PROMPTS)  # no prompt was answered twice


def test_a_spent_budget_does_not_hinder_the_log(bench: Bench) -> None:
    with served(FakeServer()) as fake:
        expected = bench.suspect(fake.url, budget=5).answer(bench.ids(PROMPTS[:5]))
        found = bench.suspect(fake.url, budget=5).answer(bench.ids(PROMPTS[:5]))
        assert [a.tolist() for a in found] == [a.tolist() for a in expected] and len(fake.asked) == 5


def test_tokens_are_summed_as_far_as_they_are_given(bench: Bench) -> None:
    texts = {
        PROMPTS[0]: '"usage": {"prompt_tokens": 3}',
        PROMPTS[1]: '"usage": {"prompt_tokens": true}',
        PROMPTS[2]: '"usage": 3',
    }

    def fault(number: int, seen: Seen) -> Fault:
        return f'{{"choices": [{{"text": "x"}}], {texts[seen.prompt]}}}' if seen.prompt in texts else None

    with served(FakeServer(fault)) as fake:
        suspect = bench.suspect(fake.url)
        assert suspect.usage == Usage() and not bench.log.exists()
        suspect.answer(bench.ids(PROMPTS))
        written = sum(len(reply(s.prompt, s.body["seed"]).split()) for s in fake.asked if s.prompt not in texts)
        expected = Usage(36, 36, 3 + 2 * 33, written)
        assert suspect.usage == expected == bench.suspect("http://elsewhere").usage


def test_halves_of_characters_are_mended(bench: Bench) -> None:
    with served(FakeServer(lambda number, seen: r'{"choices": [{"text": " fox \ud800 \ud83d\ude00 dog"}]}')) as fake:
        found = bench.suspect(fake.url).answer(bench.ids(PROMPTS[:1]))
        again = bench.suspect(fake.url).answer(bench.ids(PROMPTS[:1]))
    assert found[0].tolist() == again[0].tolist() == bench.ids([" fox ? \U0001f600 dog"])[0]


# ----------------------------------------------------------------------------------------------------------------------
# The log


@settings(max_examples=20)
@given(data=st.data())
def test_a_torn_last_line_is_cut_off(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    bench = Bench(tokenizer, tmp_path_factory.mktemp("torn"))
    with served(FakeServer()) as fake:
        expected = bench.suspect(fake.url).answer(bench.ids(PROMPTS[:4]))
        whole = bench.log.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        bench.log.write_bytes(whole[:cut] + data.draw(st.sampled_from([b"", b"\x00" * 9])))
        safe, before = bench.answered_in(whole[:cut]), len(fake.asked)
        suspect = bench.suspect(fake.url)
        assert suspect.usage.answers == len(safe)  # looking changes nothing
        found = suspect.answer(bench.ids(PROMPTS[:4]))
        assert [a.tolist() for a in found] == [a.tolist() for a in expected]
        assert {seen.name for seen in fake.asked[before:]} == bench.answered().keys() - safe
        assert bench.answered() == bench.answered_in(whole)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"",
        b"[]",
        b"7",
        b"\xff\xfe",
        b'{"sent": 3}',
        b'{"request": "a"}',
        b'{"sent": "a", "more": 1}',
        "changed",
        "tokens",
    ],
)
def test_a_broken_line_is_named(bench: Bench, line: bytes | str) -> None:
    with served(FakeServer()) as fake:
        bench.suspect(fake.url).answer(bench.ids(PROMPTS[:4]))
        lines = bench.log.read_bytes().split(b"\n")
        if line == "changed":  # an answer that was moved to another prompt
            place = next(i for i, one in enumerate(lines) if b'"draw": 0' in one)
            line = lines[place].replace(b'"draw": 0', b'"draw": 1')
        elif line == "tokens":
            place = next(i for i, one in enumerate(lines) if b'"prompt_tokens": 2' in one)
            line = lines[place].replace(b'"prompt_tokens": 2', b'"prompt_tokens": -2')
        else:
            place = 2
        assert lines[place] != line and isinstance(line, bytes)
        lines[place] = line
        bench.log.write_bytes(b"\n".join(lines))
        suspect = bench.suspect(fake.url)
        for _ in range(2):  # it is not taken as read after the first error
            for use in (lambda: suspect.answer(bench.ids(PROMPTS[:4])), lambda: suspect.usage):
                with pytest.raises(EndpointError, match=rf"answers\.jsonl, line {place + 1}, is neither"):
                    use()
        assert len(fake.asked) == 4


def test_two_processes_do_not_share_a_log(bench: Bench) -> None:
    with served(FakeServer()) as fake:
        code = "import filelock, sys\nwith filelock.FileLock(sys.argv[1]):\n    print('held', flush=True)\n    input()"
        arguments = [sys.executable, "-c", code, f"{bench.log}.lock"]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            with pytest.raises(EndpointError, match=r"answers\.jsonl is in use by another process; wait for its end"):
                bench.suspect(fake.url).answer(bench.ids(PROMPTS[:1]))
            assert not fake.asked
            other.communicate("\n", timeout=PATIENCE)
        bench.suspect(fake.url).answer(bench.ids(PROMPTS[:1]))
        with filelock.FileLock(f"{bench.log}.lock").acquire(timeout=0):  # it was given back
            pass


def test_instances_that_take_turns_see_what_the_other_wrote(bench: Bench) -> None:
    with served(FakeServer()) as fake:
        one, other = bench.suspect(fake.url), bench.suspect(fake.url)
        for prompt in bench.ids(PROMPTS[:6]):
            assert one.answer([prompt])[0].tolist() == other.answer([prompt])[0].tolist()
            one, other = other, one
        assert len(fake.asked) == 6 == one.usage.answers
        bench.log.unlink()
        one.answer(bench.ids(PROMPTS[:1]))
        assert len(fake.asked) == 7 and one.usage.answers == 1


def test_an_answer_is_on_the_disk_before_it_counts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a request is noted before it is sent."""
    forced, noted, sync = list[set[str]](), list[bool](), os.fsync

    def watched(file: int) -> None:
        sync(file)
        forced.append(bench.answered().keys() - suspect._log.answers.keys())

    def fault(number: int, seen: Seen) -> None:
        noted.append({"sent": seen.name} in bench.lines())

    with served(FakeServer(fault)) as fake:
        suspect = bench.suspect(fake.url, concurrency=1)
        monkeypatch.setattr(os, "fsync", watched)
        suspect.answer(bench.ids(PROMPTS))
    assert [len(names) for names in forced] == [1] * len(PROMPTS)
    assert set.union(*forced) == bench.answered().keys() and noted == [True] * len(PROMPTS)


def test_a_full_disk_leaves_a_whole_log(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    write, room = os.write, [1500]

    def limited(file: int, data: Any) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= len(data)
        return write(file, bytes(data)[: len(data) + min(0, room[0])])

    with served(FakeServer()) as fake:
        monkeypatch.setattr(os, "write", limited)
        with pytest.raises(OSError, match=r"No space left.*answers\.jsonl"):
            bench.suspect(fake.url, concurrency=3).answer(bench.ids(PROMPTS))
        monkeypatch.undo()
        assert bench.log.read_bytes().endswith(b"\n") and 0 < len(bench.answered()) <= len(fake.asked) < len(PROMPTS)
        found = bench.suspect(fake.url).answer(bench.ids(PROMPTS))
        bench.check_answers(fake, PROMPTS, found)


# ----------------------------------------------------------------------------------------------------------------------
# Secrets


def _everything_said(error: BaseException) -> str:
    return repr(error) + "".join(traceback.format_exception(error))


@pytest.mark.parametrize("how", ["key", "url", "query"])
@pytest.mark.parametrize("what", ["401", "503", "garbage", "no choices"])
def test_secrets_are_never_written_or_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str, what: str
) -> None:
    """The server shouts back all that it was sent, in its errors and in its answers."""
    monkeypatch.setenv("ALICES_KEY", KEY + "\n")
    shouted: list[str] = []

    def fault(number: int, seen: Seen) -> Fault:
        shouted.append(seen.headers["authorization"] + " " + seen.path + f" {PASSWORD if how == 'url' else ''}")
        if number < 2:
            return json.dumps({"choices": [{"text": shouted[-1]}]})
        if what in ("401", "503"):
            return refusal(int(what), shouted[-1] * 3)
        return shouted[-1] if what == "garbage" else json.dumps({"said": shouted[-1]})

    with served(FakeServer(fault)) as fake, caplog.at_level(logging.DEBUG):
        quoted = PASSWORD.replace("/", "%2F").replace(":", "%3A").replace("+", "%2B")
        url, options = f"{fake.url}/v1", {"api_key_env": "ALICES_KEY"}
        if how == "url":
            url, options = url.replace("//", f"//alice-the-user:{quoted}@"), {}
        elif how == "query":
            url += f"?token={quoted}"
        suspect = bench.suspect(url, concurrency=1, attempts=2, **options)
        with pytest.raises(EndpointError) as caught:
            suspect.answer(bench.ids(PROMPTS))
        with pytest.raises(EndpointError) as checked:
            suspect.check()
    secrets = {"key": [KEY], "url": [PASSWORD, quoted, "alice-the-user"], "query": [KEY, PASSWORD, quoted]}[how]
    if how == "url":
        secrets.append(shouted[0].split()[1])  # the user and password in base 64
        assert shouted[0].startswith("Basic ")
    else:
        assert shouted[0].startswith(f"Bearer {KEY}")
    assert how != "query" or "token=" in shouted[0]
    said = [_everything_said(caught.value), _everything_said(checked.value), repr(suspect), bench.log.read_text("utf-8")]
    if how != "query":  # what the client's library says at the level of debugging holds addresses whole
        said.append(caplog.text)
    assert "[hidden]" in said[0] and "[hidden]" in said[3]
    for text in said:
        assert not any(secret in text for secret in secrets)


@given(
    user=st.text(st.characters(codec="utf-8"), min_size=5, max_size=20),
    password=st.text(st.characters(codec="utf-8"), min_size=5, max_size=20),
    path=st.sampled_from(["", "/", "/v1", "/v1/", "/api/v1", "/api", "/v1beta/openai", "/api/paas/v4/"]),
)
def test_addresses_are_taken_apart(user: str, password: str, path: str) -> None:
    from urllib.parse import quote

    url = f"https://{quote(user, safe='')}:{quote(password, safe='')}@Host:81{path}?q=1#f"
    address = Address(url)
    expected = {"": "/v1", "/": "/v1", "/v1/": "/v1", "/api": "/api/v1", "/api/paas/v4/": "/api/paas/v4"}.get(path, path)
    assert address.public == f"https://host:81{expected}"
    assert address.user == user and {user, password} <= set(address.secrets)
    assert Address(f"http://[::1]:5{path}").public == f"http://[::1]:5{expected}"


@pytest.mark.parametrize(
    ("url", "public", "kind"),
    [
        ("https://h/v1/chat/completions", "https://h/v1", "chat"),
        ("https://h/v1/completions/", "https://h/v1", "completions"),
        ("https://h/v1/models", "https://h/v1", ""),
        ("https://h/inference/chat/completions", "https://h/inference", "chat"),
        ("https://h/chat/completions", "https://h", "chat"),
        ("https://h", "https://h/v1", ""),
        ("https://n.openai.azure.com", "https://n.openai.azure.com/openai/v1", ""),
        ("https://n.openai.azure.com/openai/v1/", "https://n.openai.azure.com/openai/v1", ""),
        (
            "https://n.openai.azure.com/openai/deployments/d?api-version=1",
            "https://n.openai.azure.com/openai/deployments/d",
            "",
        ),
        ("https://gate/openai/deployments/d/chat/completions?api-version=1", "https://gate/openai/deployments/d", "chat"),
    ],
)
def test_addresses_with_a_route_and_azures(url: str, public: str, kind: str) -> None:
    found = Address(url)
    assert (found.public, found.kind) == (public, kind)
    assert found.azure == ("azure" in url or "deployments" in url)


def test_routes_are_asked_where_the_address_says(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALICES_KEY", KEY)
    with served(FakeServer()) as fake:
        deployment = f"{fake.url}/openai/deployments/d/chat/completions?api-version=2025"
        bench.suspect(deployment, kind="chat", api_key_env="ALICES_KEY").answer(bench.ids(PROMPTS[:1]))
        assert fake.asked[-1].path == "/openai/deployments/d/chat/completions?api-version=2025"
        assert fake.asked[-1].headers["api-key"] == KEY
        bench.suspect(f"{fake.url}/inference/completions").answer(bench.ids(PROMPTS[:1]))
        assert fake.asked[-1].path == "/inference/completions" and "api-key" not in fake.asked[-1].headers
        with pytest.raises(
            ValueError, match="url leads to the route of 'chat', kind is 'completions'; give 'chat' as kind"
        ):
            bench.suspect(f"{fake.url}/v1/chat/completions")
        with pytest.raises(ValueError, match="deployment of Azure's without a version; add"):
            bench.suspect(f"{fake.url}/openai/deployments/d")


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://a/v1", "http://", "https://:8", "http://u:secret@h:port", "/v1"]
)
def test_what_is_no_address_is_not_repeated(bench: Bench, url: str) -> None:
    with pytest.raises(ValueError, match="url is no address of a server; give one such as") as caught:
        bench.suspect(url)
    assert "secret" not in str(caught.value)


def test_fields_out_of_range_are_named(bench: Bench) -> None:
    for change, words in (
        ({"kind": "talk"}, "kind must be one of .*'completions', 'chat'.*, got 'talk'"),
        ({"model": ""}, "model is empty"),
        ({"temperature": -0.1}, "temperature must be at least 0 and finite, got -0.1"),
        ({"temperature": float("nan")}, "temperature must"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"concurrency": 0}, "concurrency must"),
        ({"attempts": 0}, "attempts must"),
        ({"budget": 0}, "budget must be at least 1, got 0"),
        ({"timeout": 0}, "timeout must be positive and finite, got 0"),
        ({"requests_per_minute": float("inf")}, "requests_per_minute must"),
    ):
        with pytest.raises(ValueError, match=words):
            bench.suspect("http://localhost", **change)
    with pytest.raises(ValueError, match="url holds credentials, and api_key_env='KEY' names others"):
        bench.suspect("http://a:b@localhost", api_key_env="KEY")


def test_prompts_are_checked_before_anything_is_sent(bench: Bench) -> None:
    with served(FakeServer()) as fake:
        suspect = bench.suspect(fake.url)
        for prompts, words in (
            ([[1], []], r"prompts\[1\] is empty"),
            ([[VOCABULARY + 9]], r"prompts\[0\] holds token id 309"),
            ([[1, 2], [bench.tokenizer.eos_token_id]], r"prompts\[1\] holds special tokens only"),
        ):
            with pytest.raises(ValueError, match=words):
                suspect.answer(prompts)
        assert not fake.seen and not bench.log.exists()


def test_a_missing_key_and_a_missing_client_are_clear(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALICES_KEY", raising=False)
    with served(FakeServer()) as fake:
        suspect = bench.suspect(fake.url, api_key_env="ALICES_KEY")
        with pytest.raises(EndpointError, match="api_key_env='ALICES_KEY' is not set in the environment"):
            suspect.check()
        monkeypatch.setenv("ALICES_KEY", f"{KEY}\u2028x")
        with pytest.raises(EndpointError, match="API key in ALICES_KEY holds characters that no key has") as caught:
            suspect.answer([[1]])
        assert KEY not in str(caught.value)
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(EndpointError, match="needs openai; pip install openai"):
            bench.suspect(fake.url).answer([[1]])
        assert not fake.seen


# ----------------------------------------------------------------------------------------------------------------------
# The check before anything is paid for


def test_the_check_reports_what_is_offered(bench: Bench) -> None:
    with served(FakeServer()) as fake:
        suspect = bench.suspect(fake.url)
        for said, offered in (
            ({"data": [{"id": "a"}, {"id": "toy"}]}, ("a", "toy")),
            ([{"id": "toy"}], ("toy",)),
            ({"data": [{"id": "toy:latest"}]}, ("toy:latest",)),
            ({"data": [{"id": "models/toy"}]}, ("models/toy",)),
            ({"data": [{"id": "a"}, {"id": "t*"}]}, ("a", "t*")),
            ({"data": []}, ()),
            ({"data": None}, ()),
            ({"data": [{"id": "a"}], "has_more": True}, ("a",)),
        ):
            fake.models = said
            assert suspect.check() == offered
        fake.models = {"data": [{"id": "a"}]}
        assert bench.suspect(fake.url, model="/models/toy").check() == ("a",)
        with pytest.raises(EndpointError, match=r"offers no model 'toy', but 'a'; 0 answers are safe .*name one of those"):
            suspect.check()
        for garbage in ({"data": [{"name": "a"}]}, {"data": 3}, "models", {"object": "list", "models": []}):
            fake.models = garbage
            with pytest.raises(EndpointError, match="answers garbage: JSON that is no list of models"):
                suspect.check()
        assert not fake.asked and not bench.log.exists() and suspect.usage == Usage()


def test_the_check_tells_a_server_without_a_list_from_one_that_fails(bench: Bench) -> None:
    with served(FakeServer()) as fake:
        for status in (404, 405, 500, 501):
            fake.fault = lambda number, seen, status=status: refusal(status)
            before = len(fake.seen)
            assert bench.suspect(fake.url).check() == () and len(fake.seen) == before + 1
        for fault, words in (
            (refusal(401, "expired"), r"refuses the credentials \(401: expired\)"),
            (refusal(503), r"fails \(503: no\), 2 times in a row"),
            ("html", "answers garbage: no JSON but '<html>"),
            ("reset", "broke off its answer|cannot be reached"),
        ):
            fake.fault = lambda number, seen, fault=fault: fault
            with pytest.raises(EndpointError, match=words):
                bench.suspect(fake.url, attempts=2).check()
        fake.fault = lambda number, seen: "reset" if len(fake.seen) % 2 else None
        assert bench.suspect(fake.url).check() == ("toy",)


def test_nobody_there(bench: Bench) -> None:
    suspect = bench.suspect(f"http://127.0.0.1:{free_port()}", attempts=4)
    for ask_it in (suspect.check, lambda: suspect.answer([[1]])):
        suspect.clock = clock = FastClock()
        with pytest.raises(EndpointError, match=r"cannot be reached \(.*refused.*\), 4 times in a row; 0 answers"):
            ask_it()
        # 0.5, 1 and 2 s, each times 0.5 to 1.5
        assert [0.5 <= slept / 0.5 / 2**i <= 1.5 for i, slept in enumerate(clock.slept)] == [True] * 3


def test_the_real_clock_wakes_when_told() -> None:
    clock, woken = Clock(), threading.Event()
    before = clock.now()
    clock.sleep(0.05, woken)
    assert clock.now() - before >= 0.05
    woken.set()
    clock.sleep(PATIENCE, woken)
    assert clock.now() - before < PATIENCE


def test_the_closed_model_test_takes_it_as_a_suspect(bench: Bench) -> None:
    wm = ru.GreenList("alice", len(bench.tokenizer), 1, 0.25, 2.0)
    with served(FakeServer()) as fake:
        prompts = bench.ids(PROMPTS)
        verdict = ru.query_closed_model(bench.suspect(fake.url), prompts, wm)
        assert verdict.scored > 20
        watched = ru.query_until(bench.suspect(fake.url), prompts, wm, batch=5)
        assert watched.asked == len(PROMPTS) == len(fake.asked)  # all from the log
        assert watched.scored == verdict.scored and watched.total == pytest.approx(verdict.total)


# ----------------------------------------------------------------------------------------------------------------------
# Killed, and a real server


def test_killed_at_any_moment_nothing_is_lost_or_asked_again(bench: Bench, tokenizer_folder: Path) -> None:
    texts = [f"{a} {b} {c}" for a in WORDS for b in WORDS[:6] for c in WORDS[:5]]  # 360, more than twenty lives suffice for
    prompts, rng, kills = bench.ids(texts), random.Random(0), 0
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["radio_utils.suspects.endpoint", "openai", "transformers.models.auto.tokenization_auto"]
    )
    most, killed = len(texts), threading.Event()

    def fault(number: int, seen: Seen) -> Fault:
        if number >= most:  # however long the kill takes, it does not finish
            killed.wait(PATIENCE)
        return refusal(500) if number % 11 == 0 else None

    with served(FakeServer(fault, latency=0.02)) as fake:
        options = {"url": fake.url, "model": "toy", "log": bench.log, "concurrency": 3, "budget": 2000, "attempts": 8}
        options["timeout"] = PATIENCE
        while True:
            done, before = set(bench.answered()), len(fake.asked)
            most, killed = before + (17 if kills < 20 else 2000), threading.Event()
            process = context.Process(target=ask, args=(tokenizer_folder, options, prompts))
            process.start()
            if kills == 20:
                assert 20 < len(done) < len(texts)
                process.join(PATIENCE)
                assert process.exitcode == 0
            else:
                wanted = len({seen.name for seen in fake.asked}) + rng.randrange(1, 12)

                def enough(wanted: int = wanted, process: Any = process) -> bool:
                    return len({seen.name for seen in fake.asked}) >= wanted or not process.is_alive()

                wait_until(enough)
                time.sleep(rng.uniform(0, 0.15))
                process.kill()
                process.join(PATIENCE)
                killed.set()
                assert process.exitcode == -9  # it had not finished
                kills += 1
            assert not {seen.name for seen in fake.asked[before:]} & done
            if process.exitcode == 0:
                break
            assert set(bench.answered()) >= done
        noted = bench.suspect(fake.url).usage.requests
        found = bench.suspect(fake.url).answer(prompts)
        assert bench.suspect(fake.url).usage.requests == noted  # all of it is in the log
        bench.check_answers(fake, texts, found)
        sent = len(fake.asked)
    assert sent <= noted <= sent + 3 * kills  # a kill between the note and the sending counts against the budget
    with served(FakeServer()) as undisturbed:
        again = Bench(bench.tokenizer, bench.folder / "undisturbed")
        expected = again.suspect(undisturbed.url).answer(prompts)
        assert [a.tolist() for a in found] == [a.tolist() for a in expected]


@dataclass(frozen=True)
class Served:
    """A real server and its model."""

    port: int
    folder: Path
    model: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Iterator[Served]:
    """``transformers serve`` with random weights, without a hub or a cache of one."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=0, eos_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    model, folder, port = LlamaForCausalLM(config).eval(), tmp_path_factory.mktemp("model"), free_port()
    model.generation_config.update(do_sample=True, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = None
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "nowhere"), "OMP_NUM_THREADS": "1"}
    command = Path(sys.executable).parent / "transformers"
    arguments = [str(command), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (folder / "server.log").open("w") as said:
        server = subprocess.Popen(arguments, env={**os.environ, **offline}, stdout=said, stderr=said)
        try:
            wait_until(lambda: server.poll() is not None or _is_up(port))
            assert server.poll() is None, (folder / "server.log").read_text()
            yield Served(port, folder, model)
        finally:
            server.kill()
            server.wait()


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=PATIENCE) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_a_real_server_answers_as_its_model_does(bench: Bench, transformers_serve: Served, kind: str) -> None:
    options = {"model": str(transformers_serve.folder), "kind": kind, "temperature": 0.0, "max_tokens": 9, "concurrency": 3}
    suspect = bench.suspect(transformers_serve.url, **options)
    assert suspect.check() == ()  # there is no cache of the hub to list
    prompts = bench.ids(PROMPTS[:6])
    found = suspect.answer(prompts)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = transformers_serve.model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=9, pad_token_id=0)
        text = bench.tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)
        assert answer.tolist() == bench.ids([text.encode("utf-8", "replace").decode()])[0]
    assert len({answer.tobytes() for answer in found}) > 3
    assert suspect.usage == Usage(6, 6, sum(map(len, prompts)), suspect.usage.completion_tokens)
    assert 0 < suspect.usage.completion_tokens <= 54


def test_a_real_server_behind_a_bad_line_answers_the_same(bench: Bench, transformers_serve: Served) -> None:
    options = {"model": str(transformers_serve.folder), "temperature": 0.9, "max_tokens": 9, "concurrency": 1}
    prompts = bench.ids(PROMPTS[:8] + PROMPTS[:2])
    direct = bench.suspect(transformers_serve.url, **options).answer(prompts)
    assert direct[0].tolist() != direct[8].tolist()  # drawn anew
    faults = ["reset", None, "500", "truncate", None, "reset", "truncate", "500", None]
    with proxied(Proxy(transformers_serve.port, faults)) as proxy:
        spoilt = bench.suspect(proxy.url, **options)
        found = spoilt.answer(prompts)
    assert [a.tolist() for a in found] == [a.tolist() for a in direct]  # the server honours the seeds
    assert proxy.met[: len(faults)] == faults and len(proxy.met) == 10 + 6
    assert spoilt.usage.requests == 10 + 16 and spoilt.usage.answers == 20


def test_what_a_real_server_refuses(bench: Bench, transformers_serve: Served) -> None:
    with pytest.raises(EndpointError, match=r"refuses the request \(400: .*pinned.*mend model"):
        bench.suspect(transformers_serve.url, model="other").answer([[1]])
    with pytest.raises(EndpointError, match=r"knows no model .* on this route \(404"):
        bench.suspect(f"{transformers_serve.url}/v2", model=str(transformers_serve.folder)).answer([[1]])
