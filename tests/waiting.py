"""How the tests wait: for what happens, however long that takes. A limit is for silence alone, such as a deadlock's."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 3600.0  # s, for what must come: no test that passes waits so long


def wait_until(condition: Callable[[], object]) -> None:
    """Return once ``condition`` holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "what the test waits for never happened"
        time.sleep(0.005)
