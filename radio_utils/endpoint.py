"""Suspects behind an API: any server that speaks OpenAI's protocol.

Every answer costs money, so it is written to a log, line by line, and is on the disk before it counts: what was answered is
never asked again, after an error, a crash or a change of one's mind. A request is known by a hash of the server, the model,
the sampling, the prompt's text and the number of times that this prompt was asked before. Each attempt to send one is noted
in the log *before* it is made, so a budget of requests holds whatever happens.

Lines of the log: ``{"sent": request}`` and ``{"request": …, "url": …, …, "prompt": …, "draw": …, "answer": …, …}``. No key
and no password is ever written there.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike
from tqdm import tqdm

from radio_utils import evidence as ev
from radio_utils.suspects import Ids

T = TypeVar("T")

KINDS = ("completions", "chat")
_LONGEST_ANSWER = 1_000_000  # characters
_LARGEST_BODY = 16_000_000  # bytes: such an answer with every character escaped, and what goes with it
_LONGEST_WAIT = 600.0  # seconds that a server may ask to wait; beyond it, a person should decide
_LONGEST_BACKOFF = 60.0
_FIRST_GAP = 0.25  # seconds between requests once the server said that they are too many
_GUARDED = 12  # characters of a secret that no text holds by chance
_NO_LIST = {404, 405, 500, 501}  # a server that cannot list its models may answer all the same


class EndpointError(RuntimeError):
    """A server that could not be asked on. Its message is one sentence: what happened, what is safe, what to do."""


class BudgetError(EndpointError):
    """The budget of requests is spent."""


class Clock:
    """The time that waiting goes by."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def sleep(self, seconds: float, woken: threading.Event) -> None:
        """Wait, but not longer than until ``woken`` is set."""
        woken.wait(seconds)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a log has cost: requests sent, answers, and their tokens as far as the server counted them."""

    requests: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(eq=False)
class EndpointSuspect:
    """A model behind an API that speaks OpenAI's protocol. It knows text only; its tokens are those of ``tokenizer``.

    Prompts are decoded, and answers tokenised, with Alice's ``tokenizer``, without special tokens. ``url`` is the server's
    address, with or without ``/v1``; a user and password in it are sent as basic authentication. ``api_key_env`` names the
    environment variable that holds the API key; a local server needs none. ``kind`` is the route: ``"completions"``, which
    continues the prompt, or ``"chat"``, where the prompt is the user's message.

    ``log`` holds the answers, one JSON line each; only one process may use it at a time. A prompt that is asked again, in
    the same call or a later one, is another draw; a new instance begins with the first draws, which the log answers. Each
    request has its own ``seed``, for servers that honour it.

    ``concurrency`` requests are under way at once, ``timeout`` (seconds) bounds each, ``attempts`` how often one is tried,
    ``requests_per_minute`` how fast they are sent. ``budget`` is the most requests that may ever be sent for this log,
    repeated attempts included. ``jitter`` spreads the repeated attempts in time and decides nothing else.

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
        self._address = _Address(self.url)
        if self._address.user and self.api_key_env:
            raise ValueError(f"url holds credentials, and api_key_env={self.api_key_env!r} names others; drop one of them")
        self._log = _Log(Path(self.log))
        self._asked: Counter[str] = Counter()

    @property
    def usage(self) -> Usage:
        """What was sent and answered so far, over everything in the log. Raises :class:`EndpointError` for a broken log."""
        self._log.read()
        return self._log.usage

    def check(self) -> tuple[str, ...]:
        """Ask which models there are, which costs nothing, and return their ids; none if the server does not say.

        Raises :class:`EndpointError` where the server cannot be reached, refuses the credentials, answers garbage, or
        lists its models and ``model`` is not one of them (a path is never listed), and where openai is not installed.
        """
        with self._client() as client:

            def listed() -> Any:
                try:
                    return self._fetched(client.models.with_streaming_response.list)
                except _Failure as failure:
                    if failure.status in _NO_LIST:
                        return []
                    raise

            try:
                offered, whole = _models(self._persistently(listed, _Pace(self.clock), threading.Event()))
                named = not {self.model, f"{self.model}:latest"}.isdisjoint(offered)
                if offered and whole and not named and not _is_path(self.model):
                    some = ", ".join(map(repr, offered[:5])) + (", …" if len(offered) > 5 else "")
                    raise _Failure(f"offers no model {self.model!r}, but {some}", "name one of those")
            except _Failure as failure:
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
        self._asked.update(texts)  # only now: a call that failed and is repeated asks for the same draws
        return [np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int64) for text in answers]

    def _texts(self, prompts: Sequence[ArrayLike]) -> list[str]:
        texts = []
        for i, ids in enumerate(ev.checked_texts("prompts", prompts, len(self.tokenizer), shortest=1)):
            text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if not text:
                raise ValueError(f"prompts[{i}] holds special tokens only; give it some text, or drop it")
            texts.append(_storable(text))
        return texts

    def _requests(self, texts: Sequence[str]) -> list[_Request]:
        asked, requests = self._asked.copy(), []
        for text in texts:
            requests.append(
                _Request(
                    url=self._address.public,
                    model=self.model,
                    kind=self.kind,
                    temperature=float(self.temperature),
                    top_p=float(self.top_p),
                    max_tokens=self.max_tokens,
                    seed=self.seed,
                    prompt=text,
                    draw=asked[text],
                )
            )
            asked[text] += 1
        return requests

    def _gather(self, requests: Sequence[_Request], total: int) -> None:
        """Ask all of these and log the answers; after the first failure, wait for what is under way and raise."""
        stop, lock, failures = threading.Event(), threading.Lock(), list[_Failure]()
        left, pace = iter(requests), _Pace(self.clock, self.requests_per_minute)
        quiet, known = self.progress is None, total - len(requests)

        def work() -> None:
            while not stop.is_set():
                with lock:
                    request = next(left, None)
                if request is None:
                    return
                try:
                    self._ask(client, request, pace, stop)
                except _Failure as failure:
                    failures.append(failure)
                    stop.set()
                except BaseException:  # a full disk: no answer could be kept
                    stop.set()
                    raise
                else:
                    with lock:
                        bar.update()

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
        causes = [failure for failure in failures if not isinstance(failure, _Stopped)]
        if causes:
            raise self._error(causes[0])

    def _ask(self, client: Any, request: _Request, pace: _Pace, stop: threading.Event) -> None:
        said: dict[str, Any]
        if self.kind == "chat":
            route, said = client.chat.completions, {"messages": [{"role": "user", "content": request.prompt}]}
        else:
            route, said = client.completions, {"prompt": request.prompt}

        def send() -> _Answer:
            answered = self._fetched(
                lambda: route.with_streaming_response.create(
                    **said,
                    model=self.model,
                    temperature=self.temperature,
                    top_p=self.top_p,
                    max_tokens=self.max_tokens,
                    seed=request.own_seed,
                    extra_headers={"Idempotency-Key": request.id},
                )
            )
            return self._read(answered)

        def reserve() -> None:
            if not self._log.note(request, self.budget):
                what = f"was sent {self._log.usage.requests:,} requests, which is all that budget={self.budget} allows"
                raise _Failure(what, "raise the budget to go on", error=BudgetError)

        found = self._persistently(send, pace, stop, reserve)
        guarded = [secret for secret in self._secrets() if len(secret) >= _GUARDED]  # a log may be published
        self._log.add(request, _hidden(found.text, guarded), found.prompt_tokens, found.completion_tokens)

    def _persistently(
        self, call: Callable[[], T], pace: _Pace, stop: threading.Event, reserve: Callable[[], None] | None = None
    ) -> T:
        """The result of ``call``, tried again while that may help. ``reserve`` is called before each attempt."""
        for attempt in itertools.count(1):
            pace.wait(stop)
            if stop.is_set():
                raise _Stopped
            if reserve is not None:
                reserve()
            try:
                result = call()
            except _Failure as failure:
                delay = failure.wait or min(_LONGEST_BACKOFF, 2.0 ** (attempt - 2)) * self.jitter.uniform(0.5, 1.5)
                if failure.final or delay > _LONGEST_WAIT:
                    raise
                if attempt >= self.attempts:
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
        """The JSON that a route answers, or a :class:`_Failure`."""
        import openai

        unreachable: tuple[type[Exception], ...] = (openai.APIConnectionError, *_transport_errors())
        deadline, body = time.monotonic() + self.timeout, bytearray()
        late = _Failure(f"did not answer within {self.timeout:g} s", "raise timeout, or try again later", final=False)
        try:
            with call() as response:
                for part in response.iter_bytes():
                    body += part
                    if len(body) > _LARGEST_BODY:
                        raise _garbage(f"more than {_LARGEST_BODY:,} bytes")
                    if time.monotonic() > deadline:  # a server that drips never lets a single read time out
                        raise late
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except unreachable as error:
            if "Timeout" in type(error).__name__:
                raise late from None
            reason = self._excerpt(str(error.__cause__ or error)) or type(error).__name__
            broke = f"broke off its answer ({reason})" if body else f"cannot be reached ({reason})"
            raise _Failure(broke, "check url and that the server runs, and run this again", final=False) from None
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise _garbage(f"no JSON but {self._excerpt(body.decode('utf-8', 'replace'))!r}") from None

    def _refusal(self, error: Any) -> _Failure:
        """What an HTTP status other than success means."""
        status = int(error.status_code)
        stated = error.body.get("message") if isinstance(error.body, dict) else None
        said = self._excerpt(stated if isinstance(stated, str) else error.response.text)
        answered = f"({status}: {said})" if said else f"({status})"
        if status in (401, 403):
            remedy = "name the environment variable of a valid API key with api_key_env"
            if self.api_key_env or self._address.user:
                remedy = f"renew the {f'API key in {self.api_key_env}' if self.api_key_env else 'credentials in url'}"
            return _Failure(f"refuses the credentials {answered}", remedy, status=status)
        if status == 402 or (status == 429 and "insufficient_quota" in (error.code, error.type)):
            return _Failure(f"has no quota left for you {answered}", "raise the quota and run this again", status=status)
        if status == 404:
            what = f"knows no model {self.model!r} on this route {answered}"
            return _Failure(what, "mend url, model or kind", status=status)
        if status in (408, 409, 429) or status >= 500:
            wait = _retry_after(error.response.headers.get("retry-after"))
            what = "is asked too often" if status == 429 else "fails"
            asks = f" and asks to wait {wait:,.0f} s" if wait else ""
            remedy = "lower requests_per_minute or concurrency" if status == 429 else "run this again once it works"
            return _Failure(f"{what} {answered}{asks}", remedy, final=False, status=status, wait=wait)
        return _Failure(f"refuses the request {answered}", "mend model, kind or the sampling's settings", status=status)

    def _read(self, said: Any) -> _Answer:
        """The answer in what a route returned, or a :class:`_Failure`."""
        place = "choices[0].message.content" if self.kind == "chat" else "choices[0].text"
        try:
            choice = said["choices"][0]
            text = choice["message"]["content"] if self.kind == "chat" else choice["text"]
        except (KeyError, IndexError, TypeError):
            raise _garbage(f"no {place} in {self._excerpt(json.dumps(said))}") from None
        if not isinstance(text, str):
            raise _garbage(f"{place} is {self._excerpt(json.dumps(text))} and no string")
        if len(text) > _LONGEST_ANSWER:
            raise _garbage(f"an answer of {len(text):,} characters")
        usage = said.get("usage")
        counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
        prompt_tokens, completion_tokens = (count if _is_count(count) else None for count in counts)
        return _Answer(_storable(text), prompt_tokens, completion_tokens)

    def _error(self, failure: _Failure) -> EndpointError:
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
            default_headers={"Authorization": f"Basic {self._address.basic}"} if self._address.user else None,
            default_query=dict(self._address.query) or None,
        ) as client:
            yield client

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
        line = " ".join(_hidden(text, self._secrets()).split())
        return line if len(line) <= 200 else line[:200] + " …"


# ----------------------------------------------------------------------------------------------------------------------
# The log


@dataclass(frozen=True, slots=True)
class _Request:
    """All that an answer depends on; ``draw`` counts how often the prompt was asked before."""

    url: str
    model: str
    kind: str
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    prompt: str
    draw: int

    @property
    def id(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]

    @property
    def own_seed(self) -> int:
        """31 bits, which every server can read. It does not depend on the server: two copies of one may be compared."""
        text = json.dumps([self.seed, self.draw, self.prompt])
        return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:4], "big") >> 1


class _Log:
    """The answers and requests sent, on the disk and in memory. Threads may share it while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, str] = {}
        self.usage = Usage()
        self._known: tuple[int, ...] = ()  # the state of the file that was read
        self._whole = 0  # bytes of it that are whole lines
        self._file = -1
        self._writing = threading.Lock()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the log for this process alone, and know what others have written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.path}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise EndpointError(f"{self.path} is in use by another process; wait for its end or give another log") from None
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                self.read()
                os.ftruncate(self._file, self._whole)  # a torn last line was never counted
                try:
                    yield
                finally:
                    status = os.fstat(self._file)
                    self._known, self._whole = _state(status), status.st_size
            finally:
                os.close(self._file)
        finally:
            lock.release()

    def read(self) -> None:
        """Read the log if it has changed; a torn last line is passed over."""
        with self._writing:
            try:
                state = _state(self.path.stat())
                if state == self._known:
                    return
                data = self.path.read_bytes()
            except FileNotFoundError:
                state, data = (), b""
            self.answers, self.usage, self._known = {}, Usage(), ()
            *lines, torn = data.split(b"\n")
            for number, line in enumerate(lines, 1):
                try:
                    self._take(json.loads(line))
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    what = f"{self.path}, line {number}, is neither an answer nor a request"
                    raise EndpointError(f"{what}; mend or remove it, or give another log") from None
            self._known, self._whole = state, len(data) - len(torn)

    def note(self, request: _Request, budget: int | None) -> bool:
        """Write that a request is about to be sent; ``False``, and nothing written, if the budget is spent."""
        with self._writing:
            if budget is not None and self.usage.requests >= budget:
                return False
            self._write({"sent": request.id})
            return True

    def add(self, request: _Request, answer: str, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Write an answer; it is on the disk when this returns."""
        tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        with self._writing:
            self._write({"request": request.id, **asdict(request), "answer": answer, **tokens}, sync=True)

    def _write(self, line: dict[str, Any], *, sync: bool = False) -> None:
        size = os.fstat(self._file).st_size
        left = memoryview(json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n")
        try:
            while left:
                left = left[os.write(self._file, left) :]
            if sync:  # which takes the lines before it along; until then they need only survive this process
                os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, size)
            error.filename = str(self.path)
            raise
        self._take(line)

    def _take(self, line: Any) -> None:
        """Count one line of the log. Raises an error of Python's if it is none."""
        now = self.usage
        if line.keys() == {"sent"} and isinstance(line["sent"], str):
            self.usage = Usage(now.requests + 1, now.answers, now.prompt_tokens, now.completion_tokens)
            return
        rest = dict(line)
        name, answer = rest.pop("request"), rest.pop("answer")
        used = rest.pop("prompt_tokens"), rest.pop("completion_tokens")
        if not isinstance(answer, str) or _Request(**rest).id != name or not all(u is None or _is_count(u) for u in used):
            raise ValueError("not what was written")
        if name not in self.answers:  # a line that was copied changes nothing
            self.answers[name] = answer
            asked, written = (count or 0 for count in used)
            self.usage = Usage(now.requests, now.answers + 1, now.prompt_tokens + asked, now.completion_tokens + written)


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# ----------------------------------------------------------------------------------------------------------------------
# What servers say


class _Failure(Exception):
    """An attempt that failed; ``final`` if others would fail as well. ``wait`` is what the server asks for, in seconds."""

    def __init__(
        self,
        what: str,
        remedy: str,
        *,
        final: bool = True,
        status: int | None = None,
        wait: float | None = None,
        error: type[EndpointError] = EndpointError,
    ) -> None:
        super().__init__(what)
        self.what, self.remedy, self.final, self.status, self.wait, self.error = what, remedy, final, status, wait, error


class _Stopped(_Failure):
    """A request that was not sent because another failed."""

    def __init__(self) -> None:
        super().__init__("was not asked", "run this again")


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


def _garbage(what: str) -> _Failure:
    return _Failure(f"answers garbage: {what}", "check that url is a server of OpenAI's protocol", final=False)


def _models(said: Any) -> tuple[tuple[str, ...], bool]:
    """The ids that a list of models holds, and whether it is all of it."""
    # some servers send the bare list, some null where there is none
    listed = said.get("data", said) if isinstance(said, dict) else said
    listed = [] if listed is None else listed
    if not isinstance(listed, list) or not all(isinstance(one, dict) and isinstance(one.get("id"), str) for one in listed):
        raise _garbage("JSON that is no list of models")
    return tuple(one["id"] for one in listed), not (isinstance(said, dict) and said.get("has_more"))


def _is_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or "\\" in model


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date. None if it asks for nothing that makes sense."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return seconds if 0 < seconds < math.inf else None


def _storable(text: str) -> str:
    """Text that UTF-8 can hold: JSON may bring halves of characters, which no tokenizer reads."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _hidden(text: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "[hidden]")
    return text


def _transport_errors() -> tuple[type[Exception], ...]:
    """The errors of the library below openai, whose name depends on its version."""
    found: list[type[Exception]] = []
    for name in ("httpx2", "httpx"):
        with suppress(ImportError):
            found.append(importlib.import_module(name).HTTPError)
    return tuple(found)


# ----------------------------------------------------------------------------------------------------------------------
# Where and when


class _Address:
    """A server's address, taken apart; ``public`` holds no credentials."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url.strip())
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        if parts.scheme not in ("http", "https") or not host:
            # it is not shown: who mistypes an address may have typed a password too
            raise ValueError("url is no address of a server; give one such as https://host/v1 or http://localhost:8000")
        self.user, password = unquote(parts.username or ""), unquote(parts.password or "")
        self.basic = base64.b64encode(f"{self.user}:{password}".encode()).decode()
        self.query = parse_qsl(parts.query)
        path = parts.path.rstrip("/")
        if not re.search(r"/v\d[^/]*(/|$)", path):
            path += "/v1"
        place = f"[{host}]" if ":" in host else host
        self.public = f"{parts.scheme}://{place}{'' if port is None else f':{port}'}{path}"
        given = [self.user, password, self.basic if self.user else "", *(value for _, value in self.query)]
        self.secrets = [form for value in given if value for form in {value, quote(value, safe="")}]


class _Pace:
    """Says when the next request may be sent, to all threads alike."""

    def __init__(self, clock: Clock, per_minute: float | None = None) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._least = self._gap = 0.0 if per_minute is None else 60.0 / per_minute
        self._next = clock.now()

    def wait(self, stop: threading.Event) -> None:
        """Return when it is this thread's turn, or ``stop`` is set."""
        while not stop.is_set():
            with self._lock:
                now = self._clock.now()
                left = self._next - now
                if left <= 0:
                    self._next = now + self._gap
                    return
            self._clock.sleep(left, stop)

    def hold(self, seconds: float) -> None:
        """Send nothing for so long, and then more slowly: the server had too much."""
        with self._lock:
            now = self._clock.now()
            if self._next <= now + self._gap:  # the first of those that were refused together
                self._gap = min(_LONGEST_BACKOFF, max(_FIRST_GAP, 2 * self._gap))
            self._next = max(self._next, now + seconds)

    def ease(self) -> None:
        """Send a little faster again: an answer came."""
        with self._lock:
            self._gap = max(self._least, 0.9 * self._gap if self._gap > 0.01 else 0.0)
