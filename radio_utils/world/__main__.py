"""A worker: it makes what it is asked for on standard input, a line for each, and answers when it is done.

:mod:`radio_utils.world.workers` starts it.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Iterator

from radio_utils.processes import end_with_parent
from radio_utils.world.names import parse
from radio_utils.world.world import World


def _lines(at_work: threading.Event) -> Iterator[str]:
    """The lines of standard input, read as they come. When it ends while ``at_work``, so does this process."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            at_work.set()
            lines.put(line)
        if at_work.is_set():  # nobody waits for the answer
            os._exit(1)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    return iter(lines.get, "")


def main() -> None:
    """Work until standard input ends."""
    end_with_parent()
    at_work = threading.Event()
    for line in _lines(at_work):
        asked = json.loads(line)
        World.described(asked["world"]).made(parse(asked["which"]))
        at_work.clear()
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
