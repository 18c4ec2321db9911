"""A chapter is ended for silence and never for slowness; what ends the run ends its kernel, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import REPOSITORY, chapter, tiny_project, write
from waiting import PATIENCE, wait_until

from radio_utils.book import Project, kernels
from radio_utils.book.__main__ import PARENT
from radio_utils.book.execute import ChapterFailed, execute
from radio_utils.book.kernels import Watch

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and groups of processes")


@pytest.fixture(autouse=True)
def _own_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIO_UTILS_RESULTS", raising=False)


@pytest.fixture
def book(tmp_path: Path) -> Project:
    return tiny_project(tmp_path / "book", ("01_first", chapter("01_first")))


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def watch_by(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]) -> None:
    """How often the watch looks is the machine's affair, and how much time it sees go by is that of ``clock``."""
    monkeypatch.setattr(kernels, "time", SimpleNamespace(monotonic=clock))


class TestWatch:
    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
        """The time, of which a twentieth of a second goes by from look to look."""
        now = 0.0

        def look() -> float:
            nonlocal now
            now += 0.05
            return now

        watch_by(monkeypatch, look)
        return lambda: now

    @pytest.mark.parametrize("rate", [0.0, 0.001])
    def test_ends_what_does_nothing(self, rate: float, now: Callable[[], float]) -> None:
        """A kernel that waits spends a thousandth of a processor."""
        ended = threading.Event()
        with Watch(0.2, lambda: rate * now(), ended.set) as watch:
            assert ended.wait(PATIENCE) and watch.silent

    @pytest.mark.parametrize("rate", [0.02, 1.0, 64.0])
    def test_leaves_what_computes_however_slowly(self, rate: float, now: Callable[[], float]) -> None:
        looks = 0

        def spent() -> float:
            nonlocal looks
            looks += 1
            return rate * now()

        with Watch(0.1, spent, lambda: None) as watch:
            wait_until(lambda: looks > 20 or watch.silent)
        assert not watch.silent

    def test_leaves_what_speaks(self) -> None:
        looks = 0

        def spent() -> float:
            nonlocal looks
            looks += 1
            watch.hear()
            return 3.0

        watch = Watch(0.1, spent, lambda: None)
        with watch:
            wait_until(lambda: looks > 20 or watch.silent)
        assert not watch.silent

    def test_concludes_nothing_where_nothing_is_known(self) -> None:
        looks = 0

        def spent() -> None:
            nonlocal looks
            looks += 1

        with Watch(0.1, spent, lambda: None) as watch:
            wait_until(lambda: looks > 20 or watch.silent)
        assert not watch.silent

    def test_never(self) -> None:
        with Watch(None, lambda: pytest.fail("looked"), lambda: pytest.fail("ended")) as watch:
            watch.hear()

    def test_a_process_that_ended_is_a_sign_of_life(self) -> None:
        """The processor time of the tree is then less than before."""
        looks = 0

        def spent() -> float:
            nonlocal looks
            looks += 1
            return 100.0 - looks

        with Watch(0.1, spent, lambda: None) as watch:
            wait_until(lambda: looks > 20 or watch.silent)
        assert not watch.silent

    def test_knows_what_is_done(self) -> None:
        watch = Watch(None, lambda: None, lambda: None)
        for text in ("hello", "\rpre-training alice:  12%|█▏        | 3/25 [00:10<01:00]", "\n50 %\n"):
            watch.hear(text)
        assert watch.doing == "pre-training alice: 12%"


WORKING = """
import time
begun = time.process_time()
for piece in range(1, 61):
    while time.process_time() - begun < piece / 20: pass
    with open('work', 'a') as file: file.write('.')
"""
CHILD = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', {0!r}], check=True)"


class TestSilence:
    def test_ends_a_deadlock(self, book: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """The watch's time begins with it: a kernel may take as long as it likes to start."""
        begun = book.root / "begun"
        watch_by(monkeypatch, lambda: time.monotonic() if begun.exists() else 0.0)
        stuck = "pathlib.Path('begun').touch(); import threading; threading.Lock().acquire(), threading.Event().wait()"
        write(book, "01_first", chapter("01_first", stuck))
        with pytest.raises(ChapterFailed, match=r"cell 5 of 6 gave no sign of life for 6 s \(--silence\)") as caught:
            execute(book, "smoke", silence=6)
        assert "Event().wait()" in str(caught.value)

    def test_leaves_a_long_cell_that_only_computes(self, book: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """The second half of the time the kernel itself does nothing, and waits for a child that computes.

        The watch's time is the work done: a second for each twentieth of a second of a processor.
        """
        work = book.root / "work"
        watch_by(monkeypatch, lambda: float(work.stat().st_size) if work.exists() else 0.0)
        write(book, "01_first", chapter("01_first", f"{WORKING}\n{CHILD.format(WORKING)}\nprint('done')"))
        assert list(execute(book, "smoke", silence=1)) == ["01_first"]
        assert work.stat().st_size == 2 * 60

    def test_a_kernel_that_never_starts_is_told(self, book: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        command = [sys.executable, "-c", "raise SystemExit(3)"]
        monkeypatch.setattr(kernels._Manager, "format_kernel_cmd", lambda *_, **__: command)
        with pytest.raises(ChapterFailed, match="lost its kernel"):
            execute(book, "smoke")


WAITING = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3000)"])
pathlib.Path("pids.part").write_text(f"{os.getpid()} {child.pid}")
pathlib.Path("pids.part").rename("pids")
while True: pass
"""


@posix_only
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
class TestStopping:
    @pytest.fixture
    def running(self, book: Project) -> Iterator[Callable[..., tuple[subprocess.Popen[str], list[int]]]]:
        """A run of the book from the command line, and the processes of its kernel and of the kernel's child."""
        write(book, "01_first", chapter("01_first", WAITING))
        runs: list[subprocess.Popen[str]] = []
        started: list[int] = []

        def start(*arguments: str, **variables: str) -> tuple[subprocess.Popen[str], list[int]]:
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
            command = [sys.executable, "-m", "radio_utils.book", *arguments]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, cwd=book.root, env=environment, stdout=pipe, stderr=pipe, text=True)
            wait_until(lambda: (book.root / "pids").exists() or process.poll() is not None)
            pids = [int(pid) for pid in (book.root / "pids").read_text().split()]
            runs.append(process)
            started.extend(pids)
            return process, pids

        yield start
        for process in runs:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                stream.close()
        for pid in filter(alive, started):
            os.kill(pid, signal.SIGKILL)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_by_a_signal(self, number: signal.Signals, book: Project, running: Any) -> None:
        before = signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may have it ignored, which is inherited
        try:
            process, pids = running("execute", "--preset", "smoke")
        finally:
            signal.signal(number, before)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + number
        assert not any(map(alive, pids))
        assert f"stopped by {number.name}. Chapters that had ended are kept." in err
        assert "`make book PRESET=smoke` goes on from there" in err
        assert "Traceback" not in err and "KeyboardInterrupt" not in out + err
        write(book, "01_first", chapter("01_first"))
        assert list(execute(book, "smoke")) == ["01_first"], "its lock went with it"

    def test_one_chapter_by_a_signal(self, running: Any) -> None:
        process, pids = running("run", "01_first", "--preset", "smoke")
        process.send_signal(signal.SIGTERM)
        assert "The same command goes on from there" in process.communicate(timeout=PATIENCE)[1]
        assert not any(map(alive, pids))

    def test_killed(self, running: Any) -> None:
        process, pids = running("execute", "--preset", "smoke")
        process.kill()
        process.wait()  # its pipes are those of the kernel's child too, which is nobody's to end
        wait_until(lambda: not alive(pids[0]))

    def test_with_make(self, running: Any) -> None:
        """Also where ``make`` is killed and a shell stands between."""
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3000)"]) as make:
            process, pids = running("execute", "--preset", "smoke", **{PARENT: str(make.pid)})
            assert process.poll() is None
            make.kill()
            make.wait()
            assert "stopped by SIGTERM" in process.communicate(timeout=PATIENCE)[1]
        assert not any(map(alive, pids))

    def test_nohup_is_respected(self, running: Any) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited by what is started now
        try:
            process, pids = running("execute", "--preset", "smoke")
        finally:
            signal.signal(signal.SIGHUP, before)
        ignored = re.search(r"^SigIgn:\t(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        assert ignored and int(ignored[1], 16) >> (signal.SIGHUP - 1) & 1
        process.send_signal(signal.SIGHUP)  # which the system drops
        assert process.poll() is None and all(map(alive, pids))

    def test_the_makefile_names_itself(self, tmp_path: Path) -> None:
        """A recipe with the Makefile's own variable prints the process of make, whatever shell runs it."""
        line = next(line for line in (REPOSITORY / "Makefile").read_text().splitlines() if line.startswith("BOOK"))
        (tmp_path / "Makefile").write_text(f"BIN := {tmp_path}\n{line}\nprobe:\n\t@$(BOOK)\n")
        (tmp_path / "python").write_text(f'#!/bin/sh\necho "${PARENT}"\n')
        (tmp_path / "python").chmod(0o755)
        with subprocess.Popen(["make", "-s", "probe"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as make:
            assert make.communicate()[0].strip() == str(make.pid)


def test_a_good_chapter_ends_in_silence(book: Project, capfd: pytest.CaptureFixture[str]) -> None:
    execute(book, "smoke")
    out, err = capfd.readouterr()
    assert "KeyboardInterrupt" not in out + err and "ERROR" not in out + err
