"""Executors whose workers may die: this process, processes of this machine, tasks of Ray.

Each is a :class:`concurrent.futures.Executor`. Where a worker dies, its future raises ``BrokenExecutor``, no other future
does, and the next ``submit`` finds another worker.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any


class Here(Executor):
    """The caller's own thread: what is submitted is done at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call ``fn``: a future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Executor):
    """Processes of this machine, each a pool of its own: a pool is broken as a whole when one of its processes dies."""

    def __init__(self, workers: int) -> None:
        self._threads = max(1, (os.cpu_count() or 1) // workers)
        self._free: queue.SimpleQueue[ProcessPoolExecutor | None] = queue.SimpleQueue()  # None: not begun, or dead
        for _ in range(workers):
            self._free.put(None)
        self._workers = workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a process that is free call ``fn``. Waits for one where all are busy."""
        pool = self._free.get() or self._hired()
        try:
            future = pool.submit(fn, *args, **kwargs)
        except BrokenExecutor:  # it died while it had nothing to do
            pool = self._hired()
            future = pool.submit(fn, *args, **kwargs)
        future.add_done_callback(partial(self._let_go, pool))
        return future

    def _let_go(self, pool: ProcessPoolExecutor, future: Future[Any]) -> None:
        died = not future.cancelled() and isinstance(future.exception(), BrokenExecutor)
        self._free.put(None if died else pool)
        if died:
            pool.shutdown(wait=False)

    def _hired(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=(self._threads,))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the processes go when what they have in hand is done."""
        for _ in range(self._workers):
            if pool := self._free.get():
                pool.shutdown(wait=wait, cancel_futures=cancel_futures)


def _begin(threads: int) -> None:
    """What a worker process does first: share the cores with the others, and see to it that it ends with its parent."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # torch is imported later
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class RayTasks(Executor):
    """Tasks of Ray, each on one processor and ``gpus`` GPUs. Ray is started unless it runs, and stopped only if it was.

    ``address`` is that of a cluster, by default ``RAY_ADDRESS``; without either it is started here with ``workers``
    processors. Raises ``ImportError`` where Ray is missing.
    """

    def __init__(self, workers: int, address: str | None = None, gpus: float = 0.0) -> None:
        self._ray = ray()
        self._ours = not self._ray.is_initialized()
        if self._ours:
            where = address or os.environ.get("RAY_ADDRESS") or "local"
            local = {"num_cpus": workers, "include_dashboard": False} if where == "local" else {}
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a start calls home
            self._ray.init(address=where, logging_level=logging.ERROR, log_to_driver=False, **local)
        # the caller counts the tries; Ray's own would be endless where memory runs out
        self._function = self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_on_ray)
        self._under_way: dict[Future[Any], Any] = {}
        self._last: tuple[Any, Any] = (None, None)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker call ``fn``, which is sent once however often it is called in succession."""
        if self._last[0] is not fn:
            self._last = fn, self._ray.put(pickle.dumps(fn))
        folders = [str(Path(folder).absolute()) for folder in sys.path]
        reference = self._function.remote(self._last[1], folders, args, kwargs)
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self._under_way[future] = reference
        reference.future().add_done_callback(partial(self._done, future))
        return future

    def _done(self, future: Future[Any], theirs: Future[Any]) -> None:
        error = theirs.exception()
        self._under_way.pop(future, None)
        if error is None:
            future.set_result(theirs.result())
        elif isinstance(error, self._ray.exceptions.RayTaskError):  # raised by the task itself
            future.set_exception(error)
        else:
            broken = BrokenExecutor(f"its Ray worker is lost ({type(error).__name__})")
            broken.__cause__ = error
            future.set_exception(broken)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel what is under way, and stop Ray where it was started here."""
        for reference in list(self._under_way.values()):
            self._ray.cancel(reference, force=True)
        if self._ours:
            self._ray.shutdown()


def ray() -> Any:
    """The module of Ray. Raises ``ImportError`` where it is missing."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError(
            "backend='ray' needs Ray: pip install 'radio-utils[ray]', or choose backend='processes'"
        ) from error


def _on_ray(packed: bytes, folders: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A task of Ray, whose workers do not know by themselves where the caller's modules are."""
    sys.path.extend([folder for folder in folders if folder not in sys.path])
    return pickle.loads(packed)(*args, **kwargs)
