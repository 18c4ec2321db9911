"""Processor time of a tree of processes against what the processes and the system say themselves."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from radio_utils.processes import cpu_seconds

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes as POSIX has them")

# one that computes itself, has a child that did and is gone, and one that did and lives; it ends after that one
TREE = """
import subprocess, sys, time
spin = "import time\\nwhile time.process_time() < 0.4: pass\\n"
subprocess.run([sys.executable, "-c", spin], check=True)
child = subprocess.Popen([sys.executable, "-c", spin + "print(flush=True)\\ntime.sleep(3000)"], stdout=subprocess.PIPE)
child.stdout.readline()
exec(spin)
print(child.pid, flush=True)
child.wait()
"""


def test_a_tree() -> None:
    with subprocess.Popen([sys.executable, "-c", TREE], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        found = cpu_seconds(parent.pid)
        os.kill(child, 9)
        _, _, usage = os.wait4(parent.pid, 0)  # and of all that it waited for
        parent.returncode = 0
    assert found is not None
    assert found >= 1.2 - 0.06  # the three, each of them 0.4 s, in the system's ticks: six numbers, each rounded down
    assert found <= usage.ru_utime + usage.ru_stime


def test_nobody() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    assert cpu_seconds(gone.pid) == 0


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "cpu_times", refuse)
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
