"""Several artifacts of worlds at once, one core each: models and sets of pairs.

A small model's step is too short to share between cores: on two of them, two fine-tunings or two sets of pairs side by side
are there about 1.5 times sooner than one after the other on both. Two pre-trainings, whose batches are larger, gain only a
sixth: too little where one takes much longer than the other. Each worker is a process of its own that asks the store, as
the chapters do, so nothing is made twice and a worker that dies costs the artifact under way. A worker ends with the
process that started it: its standard input ends then, and on Linux the system kills it. It is not one of multiprocessing's,
as those of :mod:`radio_utils.executors` are: these run the caller's script anew, so they ask for a guard in it, which the
cells of a chapter and a reader's own lines lack.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from tqdm import tqdm

from radio_utils.artifacts import Artifact
from radio_utils.world.names import Which, named

_CONTAINER = Path("/sys/fs/cgroup/memory.max")  # bytes, or "max"


class Maker(Protocol):
    """What a :class:`radio_utils.world.world.World` is to those who make it work."""

    device: str
    progress: bool

    @property
    def memory_gb(self) -> float:
        """GB that one process needs to make anything of this world."""

    def has(self, which: Which) -> bool:
        """Whether its store holds what has this name."""

    def made(self, which: Which) -> Artifact:
        """What has this name, made if the store lacks it."""

    def description(self) -> dict[str, Any]:
        """What another process must know to make the same."""


Job = tuple[Maker, Which]  # a model or a set of pairs: its world, and its name there


class WorkerError(RuntimeError):
    """A worker process failed; the message ends with what it said last."""


def make_all(jobs: Sequence[Job], *, workers: int | None = None) -> None:
    """Make those that the store lacks, named as ``World.made`` does. On a processor several at once, one for each core.

    ``workers`` is how many at most; without it as many as torch has threads and the machine has memory for.

    There each is made by a process with one thread, be it one of many or the last that was missing: sums in another order
    would make another model. What a job is made from is made before, one after the other: ask for it in an earlier call. A
    machine lost half-way has lost what was under way and nothing else. Raises :class:`WorkerError` when a process fails.
    """
    missing = [(world, which) for world, which in jobs if not world.has(which)]
    if not missing:
        return
    if workers is None:
        fit = max(1, int(_memory_gb() / max(world.memory_gb for world, _ in missing)))
        workers = min(torch.get_num_threads(), fit) if missing[0][0].device == "cpu" else 1
    if workers > 1:
        _make_side_by_side(missing, min(workers, len(missing)))
    for world, which in missing:
        world.made(which)


def _memory_gb() -> float:
    """GB of memory that this machine has, or the container may take."""
    found = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):  # no container, or one without a limit: "max"
        found = min(found, int(_CONTAINER.read_text()))
    return found / 1e9


def _make_side_by_side(jobs: Sequence[Job], workers: int) -> None:
    """Make them in ``workers`` processes, each of which takes the next job when it is done with one."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(_request(*job))
    hidden = not jobs[0][0].progress
    with (
        tqdm(total=len(jobs), desc="made side by side", disable=hidden, unit="artifact", mininterval=5.0) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        list(pool.map(lambda _: _work(waiting, bar), range(workers)))


def _request(world: Maker, which: Which) -> str:
    """What a worker must know, for its standard input: the key must not stand on a command line, where others see it."""
    return json.dumps({"world": world.description(), "which": str(named(which))})


def _work(waiting: queue.SimpleQueue[str], bar: Any) -> None:
    """Start a process and hand it one job after another."""
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "radio_utils.world"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=environment
        ) as child:
            assert child.stdin is not None and child.stdout is not None
            try:
                while True:
                    child.stdin.write(waiting.get_nowait() + "\n")
                    child.stdin.flush()
                    if not child.stdout.readline():
                        break  # it died: its status says so
                    bar.update()
            except (queue.Empty, BrokenPipeError):
                pass
            with suppress(BrokenPipeError):
                child.stdin.close()
        if child.returncode != 0:
            said.seek(0)
            raise WorkerError(f"a worker process ended with status {child.returncode}: {said.read()[-2000:].strip()}")
