"""Processor time of a tree of processes against what the processes and the system say themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from radio_utils import processes
from radio_utils.processes import cpu_seconds

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes as POSIX has them")

# one that computes itself, has a child that did and is gone, and one that did and lives
TREE = """
import subprocess, sys, time
spin = "import time\\nwhile time.process_time() < 0.4: pass\\n"
subprocess.run([sys.executable, "-c", spin], check=True)
child = subprocess.Popen([sys.executable, "-c", spin + "print(flush=True)\\ntime.sleep(3000)"], stdout=subprocess.PIPE)
child.stdout.readline()
exec(spin)
print(child.pid, flush=True)
time.sleep(3000)
"""
WAYS: dict[str, Callable[[], dict[int, tuple[int, float]]]] = {"proc": processes._from_proc, "ps": processes._from_ps}


@pytest.mark.parametrize("way", WAYS)
def test_a_tree(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (way == "proc" and not Path("/proc/self/stat").exists()) or (way == "ps" and shutil.which("ps") is None):
        pytest.skip("not on this system")
    monkeypatch.setattr(processes, "_from_proc", WAYS[way])
    monkeypatch.setattr(processes, "_from_ps", WAYS[way])
    with subprocess.Popen([sys.executable, "-c", TREE], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        found = cpu_seconds(parent.pid)
        os.kill(child, 9)
        parent.kill()
        _, _, usage = os.wait4(parent.pid, 0)
        parent.returncode = 0
    assert found is not None
    ended = 0.4 if way == "proc" else 0.0  # ps leaves out what children that ended have spent
    rough = 0.05 if way == "proc" else 2.0  # and counts whole seconds
    assert 0.8 + ended - rough <= found
    assert found <= usage.ru_utime + usage.ru_stime + 0.4 + 1.0 + rough + 60 * (way == "ps")


def test_nobody() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    assert cpu_seconds(gone.pid) == 0


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict[int, tuple[int, float]]:
        raise FileNotFoundError("ps")

    monkeypatch.setattr(processes, "_from_proc", fail)
    monkeypatch.setattr(processes, "_from_ps", fail)
    assert cpu_seconds(os.getpid()) is None


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_a_child_ends_with_its_killed_parent() -> None:
    """The pipe that both hold ends when the last of them is gone."""
    child = "import time; from radio_utils.processes import end_with_parent as follow"
    child += "; follow(); print(flush=True); time.sleep(3000)"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(3000)"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        process.kill()
        assert process.stdout.read() == ""
