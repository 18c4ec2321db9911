"""Processes that belong together: what they inherit, what a tree of them computes, children that end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Have Linux kill this process when the one that started it ends, however that ends. Elsewhere this does nothing."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def cpu_seconds(pid: int) -> float | None:
    """Processor time (s) of a process and all that it has started; None where the system doesn't tell."""
    import psutil

    try:
        first = psutil.Process(pid)
        family = [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    except psutil.Error:
        return None
    spent = 0.0
    for one in family:
        try:
            spent += sum(one.cpu_times()[:4])  # its own, and that of its children which have ended
        except psutil.NoSuchProcess:  # it ended just now
            continue
        except psutil.Error:
            return None
    return spent


def kill_group(pid: int, kill: Callable[[], object]) -> None:
    """Kill a process that leads a group, with the group; with ``kill`` where there are no groups or it leads none."""
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
            return
    except (AttributeError, OSError):
        pass
    kill()


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for a while: a process that starts meanwhile inherits them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
