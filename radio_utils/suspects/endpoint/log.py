"""The log of an endpoint's answers: each is on the disk before it counts.

Lines: ``{"sent": request}``, written *before* an attempt is made, and ``{"request": …, "url": …, …, "prompt": …, "draw": …,
"answer": …, …}``, with ``without`` where settings were left out, and ``refused`` where there is no answer and why. A
request is known by a hash of all that its answer depends on. A torn last line was never counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from radio_utils.suspects.endpoint.errors import EndpointError


@dataclass(frozen=True, slots=True)
class Usage:
    """What a log has cost: requests sent, answers, and their tokens as far as the server counted them."""

    requests: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


Settings = tuple[str, str, str, float, float, int, int]


@dataclass(frozen=True, slots=True)
class Request:
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
        """The name of the request in the log: 32 hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]

    @property
    def settings(self) -> Settings:
        """All but the prompt: what is the same for all prompts, and decides whether a server understands."""
        return self.url, self.model, self.kind, self.temperature, self.top_p, self.max_tokens, self.seed

    @property
    def own_seed(self) -> int:
        """31 bits, which every server can read. It does not depend on the server: two copies of one may be compared."""
        text = json.dumps([self.seed, self.draw, self.prompt])
        return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:4], "big") >> 1


class AnswerLog:
    """The answers and requests sent, on the disk and in memory. Threads may share it while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, str] = {}
        self.refused: dict[str, str] = {}  # why some of them are empty
        self.without: dict[Settings, set[str]] = {}  # what was answered, and which of it was left out
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
            self.answers, self.refused, self.without, self.usage, self._known = {}, {}, {}, Usage(), ()
            *lines, torn = data.split(b"\n")
            for number, line in enumerate(lines, 1):
                try:
                    self._take(json.loads(line))
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    what = f"{self.path}, line {number}, is neither an answer nor a request"
                    raise EndpointError(f"{what}; mend or remove it, or give another log") from None
            self._known, self._whole = state, len(data) - len(torn)

    def note(self, request: Request, budget: int | None) -> bool:
        """Write that a request is about to be sent; ``False``, and nothing written, if the budget is spent."""
        with self._writing:
            if budget is not None and self.usage.requests >= budget:
                return False
            self._write({"sent": request.id})
            return True

    def add(
        self,
        request: Request,
        answer: str,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        *,
        without: Iterable[str] = (),
        refused: str = "",
    ) -> None:
        """Write an answer, or why there is none; it is on the disk when this returns."""
        line = {"request": request.id, **asdict(request), "answer": answer}
        line |= {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        line |= ({"without": sorted(without)} if without else {}) | ({"refused": refused} if refused else {})
        with self._writing:
            self._write(line, sync=True)

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
        without, refused = rest.pop("without", []), rest.pop("refused", "")
        request = Request(**rest)
        if not isinstance(answer, str) or request.id != name or not all(u is None or is_count(u) for u in used):
            raise ValueError("not what was written")
        if not isinstance(refused, str) or not all(isinstance(one, str) for one in without):
            raise ValueError("not what was written")
        if name not in self.answers:  # a line that was copied changes nothing
            self.answers[name] = answer
            if refused:
                self.refused[name] = refused
            else:
                self.without.setdefault(request.settings, set()).update(without)
            asked, written = (count or 0 for count in used)
            self.usage = Usage(now.requests, now.answers + 1, now.prompt_tokens + asked, now.completion_tokens + written)


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def is_count(value: object) -> bool:
    """Whether a number of tokens can be believed."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
