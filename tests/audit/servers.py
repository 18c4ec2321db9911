"""A fake of OpenAI's protocol on the loopback: a suspect that continues Alice's table, guilty or not, or misbehaves."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from trials import DELTA, TABLE, WORDS, watermark, words


class Server:
    """What the server does and was asked. ``trouble(number)`` may give (status, body) in place of an answer."""

    def __init__(self, *, guilty: bool, delay: float = 0.0) -> None:
        logits = TABLE.clone()
        if guilty:
            windows, tokens = np.divmod(np.arange(WORDS * WORDS), WORDS)
            green = watermark().scores(windows[:, None], tokens).reshape(WORDS, WORDS)
            logits += DELTA / 2 * torch.from_numpy(green)
        self.table = torch.softmax(logits, dim=-1).cumsum(dim=-1).numpy()
        self.delay, self.trouble = delay, lambda number: None
        self.address = ""
        self.asked: list[dict[str, Any]] = []

    def answer(self, prompt: str, seed: int, count: int) -> str:
        """A continuation that depends on prompt and seed alone."""
        draw = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:8], "big"))
        ids = [int(prompt.split()[-1][1:])]
        for uniform in draw.random(count):
            ids.append(min(WORDS - 1, int(np.searchsorted(self.table[ids[-1]], uniform))))
        return words(ids[1:])

    @property
    def requests(self) -> list[str]:
        """The names of the requests for answers, in order."""
        return [one["name"] for one in self.asked]


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it so)
            pass

        def reply(self, status: int, body: Any) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            trouble = server.trouble(-1)
            self.reply(*(trouble or (200, {"object": "list", "data": [{"id": "bob", "object": "model"}]})))

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.asked.append(asked | {"name": self.headers["Idempotency-Key"]})
                trouble = server.trouble(len(server.asked))
            time.sleep(server.delay)
            if trouble:
                self.reply(*trouble)
                return
            chat = "messages" in asked
            prompt = asked["messages"][0]["content"] if chat else asked["prompt"]
            text = server.answer(prompt, asked["seed"], asked["max_tokens"])
            choice = {"index": 0, "finish_reason": "length"}
            choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            self.reply(200, {"id": "1", "object": "completion", "choices": [choice]})

    lock = threading.Lock()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        server.address = f"http://127.0.0.1:{http.server_port}"
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
