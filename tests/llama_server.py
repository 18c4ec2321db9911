"""llama.cpp's own server, of the wheel xllamacpp, in a process of its own: what it asserts cannot end the tests.

::

    python tests/llama_server.py model.gguf SLOTS CONTEXT PORT

prints its address and serves until its input ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ALIAS = "bob"
_ADDRESS = "serving at "


def serve(model: str, *, slots: int, context: int, port: int) -> None:
    """Serve until the input ends: ``slots`` answers at a time of ``context`` tokens each, prompt and all, on one thread."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {ALIAS}
    params.n_parallel, params.n_ctx = slots, slots * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.port, params.n_gpu_layers, params.fit_params, params.ui = port, 0, False, False
    params.verbosity = 1
    server = xllamacpp.Server(params)
    sys.stdout.write(f"\n{_ADDRESS}{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


@contextmanager
def serving(model: Path, *, slots: int = 4, context: int = 512, port: int = 0) -> Iterator[str]:
    """The address of a server that answers with this GGUF file; port 0 is any that is free."""
    command = [sys.executable, __file__, str(model), str(slots), str(context), str(port)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        said = []
        try:
            for line in server.stdout:
                if line.startswith(_ADDRESS):
                    break
                said.append(line)
            else:
                raise RuntimeError(f"llama.cpp's server did not start: {''.join(said)}")
            yield line.removeprefix(_ADDRESS).strip()
        finally:
            server.stdin.close()
            server.stdin = None
            server.communicate()


def asked(address: str, route: str, **body: Any) -> Any:
    """What a route of the server answers to a body."""
    request = urllib.request.Request(
        f"{address}/{route}", json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)


if __name__ == "__main__":
    serve(sys.argv[1], **dict(zip(("slots", "context", "port"), map(int, sys.argv[2:]), strict=True)))
