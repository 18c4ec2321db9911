"""The suspect behind an API: asks, repeats what may succeed, and keeps every answer."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from radio_utils import evidence as ev
from radio_utils.suspects.endpoint.address import Address
from radio_utils.suspects.endpoint.errors import BudgetError, EndpointError, ListingError
from radio_utils.suspects.endpoint.log import AnswerLog, Request, Settings, Usage
from radio_utils.suspects.endpoint.pacing import LONGEST_BACKOFF, Clock, Pace
from radio_utils.suspects.endpoint.protocol import (
    GARBAGE,
    Answer,
    Failure,
    Stopped,
    answer_in,
    garbage,
    hidden,
    is_listed,
    is_path,
    models_in,
    refused_setting,
    retry_after,
    storable,
    transport_errors,
)
from radio_utils.suspects.endpoint.wording import Wording
from radio_utils.suspects.local import Ids

T = TypeVar("T")

KINDS = ("completions", "chat")
_LARGEST_BODY = 16_000_000  # bytes: such an answer with every character escaped, and what goes with it
_LONGEST_WAIT = 600.0  # seconds that a server may ask to wait; beyond it, a person should decide
_GUARDED = 12  # characters of a secret that no text holds by chance
_OF_PROMPT = {400, 413, 422, 451}  # refusals that may be about the one prompt: a filter, or a text that is too long
_OF_SERVER = 16  # prompts refused one after another that are a matter of the server's
_GARBLED = 3  # prompts, and one in a hundred of those answered, whose replies may be garbage; more are the server's fault
_ODD_ATTEMPTS = 3  # for a reply without an answer, which may have been paid for
_FLAGGED = re.compile(r"flagged|moderation|safety|content policy", re.IGNORECASE)  # what a 403 about credentials says not
_NO_LIST = {404, 405, 500, 501}  # a server that cannot list its models may answer all the same


@dataclass(eq=False)
class EndpointSuspect:
    """A model behind an API that speaks OpenAI's protocol. It knows text only; its tokens are those of ``tokenizer``.

    Prompts are decoded, and answers tokenised, with Alice's ``tokenizer``, without the tokens that open or end a text. A
    prompt written in her chat template is sent as it is, or as the bare message to the chat route. ``url`` is the server's
    address, with or without ``/v1``; a user and password in it are sent as basic authentication. ``api_key_env`` names the
    environment variable that holds the API key; a local server needs none. ``kind`` is the route: ``"completions"``, which
    continues the prompt, or ``"chat"``, where the prompt is the user's message.

    ``log`` holds the answers, one JSON line each; only one process may use it at a time. A prompt that is asked again, in
    the same call or a later one, is another draw; a new instance begins with the first draws, which the log answers. Each
    request has its own ``seed``, for servers that honour it.

    ``concurrency`` requests are under way at once, ``timeout`` (seconds) bounds each, ``attempts`` how often one is tried,
    ``requests_per_minute`` how fast they are sent. ``budget`` is the most requests that may ever be sent for this log,
    repeated attempts included. ``jitter`` spreads the repeated attempts in time and decides nothing else.

    A prompt that the server refuses for good, or answers without text, has an empty answer (:attr:`refusals` counts them),
    unless so many do in a row that it speaks of the server. Settings that it refuses by name are left out
    (:attr:`left_out`).

    Raises ``ValueError`` for a field out of range.
    """

    url: str = field(repr=False)
    model: str
    tokenizer: Any = field(repr=False)
    log: Path
    api_key_env: str = ""
    kind: str = "completions"
    temperature: float = 0.8
    top_p: float = 0.95
    max_tokens: int = 128
    seed: int = 0
    concurrency: int = 4
    timeout: float = 120.0
    attempts: int = 6
    requests_per_minute: float | None = None
    budget: int | None = None
    progress: str | None = None
    jitter: random.Random = field(default_factory=random.Random, repr=False)
    clock: Clock = field(default_factory=Clock, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {self.kind!r}")
        if not self.model:
            raise ValueError("model is empty; name the model that the server should answer with")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        for name in ("max_tokens", "concurrency", "attempts", "budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("timeout", "requests_per_minute"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        self._address = Address(self.url)
        if self._address.kind not in ("", self.kind):
            raise ValueError(
                f"url leads to the route of {self._address.kind!r}, kind is {self.kind!r}; give {self._address.kind!r} as "
                "kind (in an audit as api), or the address without its route"
            )
        if self._address.user and self.api_key_env:
            raise ValueError(f"url holds credentials, and api_key_env={self.api_key_env!r} names others; drop one of them")
        self._wording = Wording(self.tokenizer, self.kind)
        self._log = AnswerLog(Path(self.log))
        self._asked: Counter[str] = Counter()
        self._given: list[str] = []
        self._without: set[str] = set()
        self._in_a_row = 0  # prompts that were refused since the last answer
        self._lock = threading.Lock()

    @property
    def usage(self) -> Usage:
        """What was sent and answered so far, over everything in the log. Raises :class:`EndpointError` for a broken log."""
        self._log.read()
        return self._log.usage

    @property
    def refusals(self) -> dict[str, int]:
        """Why prompts that this instance asked have no answer, and how many of them."""
        return dict(Counter(self._log.refused[one] for one in self._given if one in self._log.refused))

    @property
    def left_out(self) -> tuple[str, ...]:
        """Settings that the server refused by name, so that some of the answers were given without them."""
        return tuple(sorted(self._without))

    def check(self) -> tuple[str, ...]:
        """Ask which models there are, which costs nothing, and return their ids; none if the server does not say.

        Raises :class:`EndpointError` where the server cannot be reached, or lists its models and ``model`` is not one of
        them (a path is never listed), and where openai is not installed; a :class:`ListingError` where it is reached and
        refuses the credentials for this route or answers garbage, for it may answer prompts all the same.
        """
        with self._client() as client:

            def listed() -> Any:
                try:
                    return self._fetched(client.models.with_streaming_response.list)
                except Failure as failure:
                    if failure.status in _NO_LIST:
                        return []
                    raise

            try:
                offered, whole = models_in(self._persistently(listed, Pace(self.clock), threading.Event()))
                if offered and whole and not is_path(self.model) and not is_listed(self.model, offered):
                    some = ", ".join(map(repr, offered[:5])) + (", …" if len(offered) > 5 else "")
                    raise Failure(f"offers no model {self.model!r}, but {some}", "name one of those")
            except Failure as failure:
                if failure.status is not None or failure.garbled:
                    failure.error = ListingError
                raise self._error(failure) from None
        return offered

    def answer(self, prompts: Sequence[ArrayLike]) -> list[Ids]:
        """One answer to each prompt: what the log holds, and the rest from the server.

        Raises ``ValueError`` for token ids that are not the tokenizer's or a prompt without text, before anything is sent;
        :class:`BudgetError` once the budget is spent, and :class:`EndpointError` for whatever else ends the asking, a log
        that is broken or in use, or where openai is not installed. What was answered until then is in the log, and the
        same call goes on from there.
        """
        texts = self._texts(prompts)
        requests = self._requests(texts)
        with self._log.opened():
            missing = [request for request in requests if request.id not in self._log.answers]
            if missing:
                self._gather(missing, len(requests))
            answers = [self._log.answers[request.id] for request in requests]
            self._without |= self._log.without.get(self._settings, set())
        self._given += [request.id for request in requests]
        self._asked.update(texts)  # only now: a call that failed and is repeated asks for the same draws
        return [np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int64) for text in answers]

    def _texts(self, prompts: Sequence[ArrayLike]) -> list[str]:
        texts = []
        for i, ids in enumerate(ev.checked_prompts(prompts, len(self.tokenizer), shortest=1)):
            text = self._wording.text(ev.without_gaps(ids))
            if not text:
                raise ValueError(f"prompts[{i}] holds special tokens only; give it some text, or drop it")
            texts.append(storable(text))
        return texts

    def _requests(self, texts: Sequence[str]) -> list[Request]:
        asked, requests = self._asked.copy(), []
        for text in texts:
            requests.append(Request(*self._settings, prompt=text, draw=asked[text]))
            asked[text] += 1
        return requests

    @property
    def _settings(self) -> Settings:
        sampling = float(self.temperature), float(self.top_p), self.max_tokens, self.seed
        return self._address.public, self.model, self.kind, *sampling

    def _gather(self, requests: Sequence[Request], total: int) -> None:
        """Ask all of these and log the answers; after the first failure, wait for what is under way and raise."""
        stop, lock, failures = threading.Event(), threading.Lock(), list[Failure]()
        left, pace = iter(requests), Pace(self.clock, self.requests_per_minute)
        quiet, known = self.progress is None, total - len(requests)
        self._without |= self._log.without.get(self._settings, set())
        refused: list[tuple[Request, Failure]] = []

        def settle() -> None:
            """Keep what was refused, once an answer shows that it is about the prompts."""
            while refused:
                request, failure = refused.pop(0)
                self._log.add(request, "", refused=failure.what)

        def too_many_garbled() -> bool:
            known = sum(why.startswith(GARBAGE) for why in self._log.refused.values())
            garbled = known + sum(failure.garbled for _, failure in refused)
            return garbled > _GARBLED + self.usage.answers // 100

        def work() -> None:
            while not stop.is_set():
                with lock:
                    request = next(left, None)
                if request is None:
                    return
                try:
                    self._ask(client, request, pace, stop)
                    with lock:
                        self._in_a_row = 0
                        settle()
                        bar.update()
                except Failure as failure:
                    with lock:
                        if failure.of_prompt:
                            refused.append((request, failure))
                            self._in_a_row += 1
                        if not failure.of_prompt or self._in_a_row >= _OF_SERVER or too_many_garbled():
                            failures.append(failure)
                            stop.set()
                except BaseException:  # a full disk: no answer could be kept
                    stop.set()
                    raise

        with (
            tqdm(total=total, initial=known, desc=self.progress, disable=quiet, unit="answer") as bar,
            self._client() as client,
            ThreadPoolExecutor(self.concurrency) as pool,
        ):
            workers = [pool.submit(work) for _ in range(min(self.concurrency, len(requests)))]
            try:
                for worker in workers:
                    worker.result()
            except BaseException:  # an interrupt too: the answers under way are paid for
                stop.set()
                raise
        causes = [failure for failure in failures if not isinstance(failure, Stopped)]
        if refused and not causes and self._settings not in self._log.without:
            causes = [refused[0][1]]  # nobody was ever answered
        if causes:
            self._in_a_row = 0
            raise self._error(causes[0])
        settle()

    def _ask(self, client: Any, request: Request, pace: Pace, stop: threading.Event) -> None:
        said: dict[str, Any]
        if self.kind == "chat":
            route, said = client.chat.completions, {"messages": [{"role": "user", "content": request.prompt}]}
        else:
            route, said = client.completions, {"prompt": request.prompt}

        sent: set[str] = set()  # the settings that were left out

        def send() -> Answer:
            with self._lock:
                sent.clear()
                sent.update(self._without)
            settings: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p, "seed": request.own_seed}
            settings["max_tokens"] = self.max_tokens
            settings = {name: value for name, value in settings.items() if name not in sent}
            if "max_tokens" in sent:  # without a limit an answer could cost anything
                settings["max_completion_tokens"] = self.max_tokens
            answered = self._fetched(
                lambda: route.with_streaming_response.create(
                    **said,
                    model=self.model,
                    extra_body=settings,
                    extra_headers={"Idempotency-Key": request.id},
                )
            )
            return answer_in(answered, self.kind == "chat", self._excerpt)

        def reserve() -> None:
            if not self._log.note(request, self.budget):
                what = f"was sent {self._log.usage.requests:,} requests, which is all that budget={self.budget} allows"
                raise Failure(what, "raise the budget to go on", error=BudgetError)

        while True:
            try:
                found = self._persistently(send, pace, stop, reserve)
            except Failure as failure:
                if not self._given_up(failure.refused, sent):
                    raise
            else:
                break
        guarded = [secret for secret in self._secrets() if len(secret) >= _GUARDED]  # a log may be published
        self._log.add(
            request, hidden(found.text, guarded), found.prompt_tokens, found.completion_tokens, without=sorted(sent)
        )

    def _given_up(self, setting: str, sent: set[str]) -> bool:
        """Whether a setting that a server refused is left out from now on; ``sent`` were left out when it refused.

        Once an answer was given with these settings, a refusal is not about them.
        """
        with self._lock:
            if not setting or setting in sent:
                return False
            if setting not in self._without:
                if self._log.without.get(self._settings) == self._without:
                    return False
                self._without.add(setting)
            return True

    def _persistently(
        self, call: Callable[[], T], pace: Pace, stop: threading.Event, reserve: Callable[[], None] | None = None
    ) -> T:
        """The result of ``call``, tried again while that may help. ``reserve`` is called before each attempt."""
        for attempt in itertools.count(1):
            pace.wait(stop)
            if stop.is_set():
                raise Stopped
            if reserve is not None:
                reserve()
            try:
                result = call()
            except Failure as failure:
                delay = failure.wait or min(LONGEST_BACKOFF, 2.0 ** (attempt - 2)) * self.jitter.uniform(0.5, 1.5)
                if failure.final or delay > _LONGEST_WAIT:
                    raise
                if attempt >= (min(_ODD_ATTEMPTS, self.attempts) if failure.of_prompt else self.attempts):
                    failure.what += f", {attempt} times in a row" if attempt > 1 else ""
                    raise
                if failure.status == 429:
                    pace.hold(delay)
                else:
                    self.clock.sleep(delay, stop)
            else:
                pace.ease()
                return result
        raise AssertionError("unreachable")

    def _fetched(self, call: Callable[[], AbstractContextManager[Any]]) -> Any:
        """The JSON that a route answers, or a :class:`Failure`."""
        import openai

        unreachable: tuple[type[Exception], ...] = (openai.APIConnectionError, *transport_errors())
        deadline, body = time.monotonic() + self.timeout, bytearray()
        late = Failure(f"did not answer within {self.timeout:g} s", "raise timeout, or try again later", final=False)
        try:
            with call() as response:
                for part in response.iter_bytes():
                    body += part
                    if len(body) > _LARGEST_BODY:
                        raise garbage(f"more than {_LARGEST_BODY:,} bytes")
                    if time.monotonic() > deadline:  # a server that drips never lets a single read time out
                        raise late
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except unreachable as error:
            if "Timeout" in type(error).__name__:
                raise late from None
            reason = self._excerpt(str(error.__cause__ or error)) or type(error).__name__
            broke = f"broke off its answer ({reason})" if body else f"cannot be reached ({reason})"
            raise Failure(broke, "check url and that the server runs, and run this again", final=False) from None
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise garbage(f"no JSON but {self._excerpt(body.decode('utf-8', 'replace'))!r}") from None

    def _refusal(self, error: Any) -> Failure:
        """What an HTTP status other than success means."""
        status = int(error.status_code)
        stated = error.body.get("message") if isinstance(error.body, dict) else None
        said = self._excerpt(stated if isinstance(stated, str) else error.response.text)
        answered = f"({status}: {said})" if said else f"({status})"
        if status == 403 and _FLAGGED.search(said):
            return Failure(f"refuses the prompt {answered}", "ask other prompts", status=status, of_prompt=True)
        if status in (401, 403):
            remedy = "name the environment variable of a valid API key with api_key_env"
            if self.api_key_env or self._address.user:
                remedy = f"renew the {f'API key in {self.api_key_env}' if self.api_key_env else 'credentials in url'}"
            return Failure(f"refuses the credentials {answered}", remedy, status=status)
        if status == 402 or (status == 429 and "insufficient_quota" in (error.code, error.type)):
            return Failure(f"has no quota left for you {answered}", "raise the quota and run this again", status=status)
        if status == 404:
            what = f"knows no model {self.model!r} on this route {answered}"
            return Failure(what, "mend url, model or kind", status=status)
        if status in (408, 409, 429) or status >= 500:
            wait = retry_after(error.response.headers.get("retry-after"))
            what = "is asked too often" if status == 429 else "fails"
            asks = f" and asks to wait {wait:,.0f} s" if wait else ""
            remedy = "lower requests_per_minute or concurrency" if status == 429 else "run this again once it works"
            return Failure(f"{what} {answered}{asks}", remedy, final=False, status=status, wait=wait)
        return Failure(
            f"refuses the request {answered}", "mend model, kind or the sampling's settings", status=status,
            of_prompt=status in _OF_PROMPT, refused=refused_setting(error.response.text, error.body),
        )  # fmt: skip

    def _error(self, failure: Failure) -> EndpointError:
        safe = f"{self.usage.answers:,} answers are safe in {self.log}"
        return failure.error(f"the endpoint {self._address.public} {failure.what}; {safe}; {failure.remedy}")

    @contextmanager
    def _client(self) -> Iterator[Any]:
        try:
            openai = importlib.import_module("openai")
        except ImportError as error:
            raise EndpointError("a suspect behind an API needs openai; pip install openai") from error
        with openai.OpenAI(
            base_url=self._address.public,
            api_key=self._key() or "none",
            timeout=self.timeout,
            max_retries=0,  # they are ours: they count against the budget
            # not left in the address, which the client's library may write to its own log
            default_headers=self._headers() or None,
            default_query=dict(self._address.query) or None,
        ) as client:
            yield client

    def _headers(self) -> dict[str, str]:
        """What a request carries beside the key, which goes as a bearer's token; Azure reads it elsewhere."""
        if self._address.user:
            return {"Authorization": f"Basic {self._address.basic}"}
        return {"api-key": self._key()} if self._address.azure and self._key() else {}

    def _key(self) -> str:
        if not self.api_key_env:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise EndpointError(f"api_key_env={self.api_key_env!r} is not set in the environment; put the API key there")
        if not (key.isascii() and key.isprintable()):
            raise EndpointError(f"the API key in {self.api_key_env} holds characters that no key has; copy it again")
        return key

    def _secrets(self) -> list[str]:
        return [*self._address.secrets, *([self._key()] if self.api_key_env else [])]

    def _excerpt(self, text: str) -> str:
        """The beginning of what a server said, on one line and without secrets."""
        line = " ".join(hidden(text, self._secrets()).split())
        return line if len(line) <= 200 else line[:200] + " …"
