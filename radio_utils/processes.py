"""Processes that belong together: what they inherit, what a tree of them computes, children that end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Have Linux kill this process when the one that started it ends, however that ends. Elsewhere this does nothing."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def cpu_seconds(pid: int) -> float | None:
    """Processor time (s) of a process and all that it has started; None where the system doesn't tell."""
    try:
        known = _from_proc() if Path("/proc/self/stat").exists() else _from_ps()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    family, grown = {pid}, True
    while grown:
        children = {one for one, (parent, _) in known.items() if parent in family} - family
        family |= children
        grown = bool(children)
    return sum(known[one][1] for one in family if one in known)


def _from_proc() -> dict[int, tuple[int, float]]:
    """Parent and processor time of every process, with that of its children which have ended: proc(5)."""
    tick = os.sysconf("SC_CLK_TCK")
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                # the name of the program, in parentheses, may hold anything
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:  # it ended just now
                continue
            found[int(folder.name)] = (int(fields[1]), sum(map(int, fields[11:15])) / tick)
    return found


def _from_ps() -> dict[int, tuple[int, float]]:
    done = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,time="], capture_output=True, text=True, check=True)
    found = {}
    for line in done.stdout.splitlines():
        pid, parent, spent = line.split()
        days, _, clock = spent.rpartition("-")
        seconds = 0.0
        for part in clock.split(":"):
            seconds = 60 * seconds + float(part)
        found[int(pid)] = (int(parent), seconds + 86400 * int(days or 0))
    return found


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
