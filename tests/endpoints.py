"""Servers for the tests of suspects behind an API: one that fails on demand, and a proxy that spoils a real one."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from radio_utils.suspects import load_tokenizer
from radio_utils.suspects.endpoint import EndpointSuspect

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "and", "cat", "what", "is"]


def reply(prompt: str, seed: int) -> str:
    """What the made-up model answers: a function of the prompt and the seed."""
    rng = random.Random(f"{prompt}|{seed}")
    return "".join(f" {rng.choice(WORDS)}" for _ in range(rng.randrange(0, 9)))


@dataclass(frozen=True)
class Seen:
    """One request as the server saw it."""

    path: str
    prompt: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def name(self) -> str:
        return self.headers.get("idempotency-key", "")


# what a server does in place of answering: a status with a body and headers, or the name of a fault
Fault = str | tuple[int, str, dict[str, str]] | None


def refusal(status: int, message: str = "no", code: str | None = None, **headers: str) -> Fault:
    body = json.dumps({"error": {"message": message, "code": code, "type": code}})
    return status, body, {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class FakeServer:
    """An OpenAI-compatible server in a thread. ``fault(number, seen)`` says what the number-th request meets."""

    fault: Callable[[int, Seen], Fault] = lambda number, seen: None
    models: Any = field(default_factory=lambda: {"object": "list", "data": [{"id": "toy", "object": "model"}]})
    latency: float = 0.0
    seen: list[Seen] = field(default_factory=list)
    most: int = 0  # unanswered at once
    port: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked(self) -> list[Seen]:
        """The requests that cost something."""
        return [seen for seen in self.seen if seen.path != "/v1/models"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer takes 40 ms
    fake: FakeServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self._serve({})

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _serve(self, body: dict[str, Any]) -> None:
        fake = self.fake
        prompt = body["messages"][0]["content"] if "messages" in body else body.get("prompt", "")
        headers = {name.lower(): value for name, value in self.headers.items()}
        with fake._lock:
            seen = Seen(self.path, prompt, body, headers)
            fake.seen.append(seen)
            number = len(fake.seen) - 1
            fake._now += 1
            fake.most = max(fake.most, fake._now)
        fault = fake.fault(number, seen)
        time.sleep(fake.latency)
        with fake._lock:  # before the answer, for whoever has that may ask again
            fake._now -= 1
        try:
            self._answer(seen, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, seen: Seen, fault: Fault) -> None:
        if isinstance(fault, tuple):
            status, text, headers = fault
            self._send(status, text.encode(), **headers)
            return
        if seen.path == "/v1/models":
            said: Any = self.fake.models
        else:
            text = reply(seen.prompt, seen.body.get("seed", 0))
            choice = {"message": {"role": "assistant", "content": text}} if "messages" in seen.body else {"text": text}
            usage = {"prompt_tokens": len(seen.prompt.split()), "completion_tokens": len(text.split())}
            said = {"object": "text_completion", "choices": [choice], "usage": usage}
        whole = json.dumps(said).encode()
        match fault:
            case None:
                self._send(200, whole)
            case "refuse":
                self._reset()
            case "reset":
                self._head(200, len(whole))
                self.wfile.write(whole[: len(whole) // 2])
                self._reset()
            case "truncate":  # the length is that of the whole
                self._head(200, len(whole))
                self.wfile.write(whole[: len(whole) // 2])
                self.close_connection = True
            case "cut":  # a proxy that cuts and mends the length
                self._send(200, whole[: len(whole) // 2])
            case "late":
                time.sleep(0.8)
                self._send(200, whole)
            case "drip":
                self._head(200, len(whole))
                for byte in whole[:40]:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.05)
                self.close_connection = True
            case "html":
                self._send(200, b"<html>welcome</html>")
            case _:
                self._send(200, fault.encode())

    def _head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, data: bytes, **headers: str) -> None:
        self._head(status, len(data), **headers)
        self.wfile.write(data)

    def _reset(self) -> None:
        _reset(self.connection)
        self.close_connection = True


def _reset(connection: socket.socket) -> None:
    """Close with a reset, as a process that is killed or a firewall would."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RD)
    connection.close()


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that were killed


@contextmanager
def served(fake: FakeServer) -> Iterator[FakeServer]:
    """Run the server on a free port of the loopback."""
    server = _Threads(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    fake.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    """A port of the loopback where nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Proxy:
    """Passes requests on to a server at ``port``; the answer to the n-th meets ``faults[n]``, those after them nothing."""

    target: int
    faults: Sequence[str | None]
    port: int = 0
    met: list[str | None] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def pass_on(self, client: socket.socket) -> None:
        """One connection, which carries one request."""
        with client:
            request = _request(client)
            if not request:
                return
            with self._lock:
                fault = self.faults[len(self.met)] if len(self.met) < len(self.faults) else None
                self.met.append(fault)
            if fault == "500":
                client.sendall(b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\nconnection: close\r\n\r\noops")
                return
            answer = b""
            with socket.create_connection(("127.0.0.1", self.target)) as server:
                server.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                while part := server.recv(65536):
                    answer += part
            spoilt = answer[: -len(answer.partition(b"\r\n\r\n")[2]) // 2] if fault in ("reset", "truncate") else answer
            client.sendall(spoilt)
            if fault == "reset":
                _reset(client)


def _request(client: socket.socket) -> bytes:
    """A whole request without its Connection header."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(65536)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    length = next((int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += client.recv(65536)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@contextmanager
def proxied(proxy: Proxy) -> Iterator[Proxy]:
    """Run the proxy on a free port of the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy.port = listening.getsockname()[1]

        def accept() -> None:
            while True:
                try:
                    client = listening.accept()[0]
                except OSError:
                    return
                threading.Thread(target=_quietly, args=(proxy, client), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield proxy
        finally:
            listening.shutdown(socket.SHUT_RDWR)


def _quietly(proxy: Proxy, client: socket.socket) -> None:
    with suppress(OSError):  # a client that gave up
        proxy.pass_on(client)


def ask(tokenizer: Path, options: dict[str, Any], prompts: list[list[int]]) -> None:
    """What a process does that is killed: ask all prompts."""
    EndpointSuspect(tokenizer=load_tokenizer(tokenizer), **options).answer(prompts)
