"""A chapter's kernel: watched for silence, never for slowness, and ended with the process that runs the chapter.

What a kernel says, and processor time that it or its children spend, are signs of life. A kernel that gives none for long
is deadlocked and is ended; one that is slow is not.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import papermill.clientwrap
import papermill.engines
from jupyter_client.manager import AsyncKernelManager

from radio_utils.processes import cpu_seconds, end_with_parent, kill_group

ENGINE = "radio_utils"
# The share of one processor that a tree of processes spends at least when it is at work. A kernel that waits spends less
# than a thousandth; on a machine with a hundred others that want each core, one that computes gets a hundredth.
_AT_WORK = 0.003
_BAR = re.compile(r"([^\r\n]*?\d+%)\|")
_FOREVER = 2**31 - 1


class Watch:
    """Watches one kernel from its start to its end: use it as a context.

    ``silence`` (s, None for ever) is how long it may give no sign of life, ``spent`` the processor time (s) that it has
    used, or None where that can't be known: then nothing can be concluded from its silence. ``end`` ends it.
    """

    def __init__(
        self, silence: float | None, spent: Callable[[], float | None], end: Callable[[], object], *, tick: float = 10.0
    ) -> None:
        self.silent = False  # whether it was ended for its silence
        self.doing = ""  # what its last bar showed
        self._silence, self._spent, self._end, self._heard = silence, spent, end, threading.Event()
        self._tick = min(tick, silence / 4) if silence else tick
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watch of a kernel")

    def __enter__(self) -> Watch:
        if self._silence is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._silence is not None:
            self._thread.join()

    def hear(self, text: str = "") -> None:
        """The kernel said something."""
        self._heard.set()
        if bars := _BAR.findall(text):
            self.doing = " ".join(bars[-1].split())

    def _watch(self) -> None:
        assert self._silence is not None
        before, quiet = self._spent(), 0.0
        last = time.monotonic()
        while not self._over.wait(self._tick):
            now = time.monotonic()
            # this process may have been stopped or starved meanwhile: no time in which it didn't look counts
            quiet += min(now - last, 2 * self._tick)
            last = now
            spent = self._spent()
            if spent is None or before is None or self._heard.is_set() or not 0 <= spent - before < _AT_WORK * quiet:
                self._heard.clear()
                before, quiet = spent, 0.0
            elif quiet >= self._silence:
                self.silent = True
                self._end()
                return


class Together:
    """The kernels of one run. Several may be at work side by side, and one may wait for what another makes.

    So none is silent while another works.
    """

    def __init__(self) -> None:
        self.over = False  # whether they were ended, and no other may begin
        self._clients: list[_Client] = []

    def spent(self) -> float | None:
        """Processor time (s) of all that are here; None where it can't be known."""
        found = [client.spent() for client in tuple(self._clients)]
        known = [one for one in found if one is not None]
        return sum(known) if len(known) == len(found) else None

    def end(self) -> None:
        """End them all."""
        self.over = True
        for client in tuple(self._clients):
            client.kill()

    @contextmanager
    def joined(self, client: _Client) -> Iterator[None]:
        """While this one is at work."""
        self._clients.append(client)
        try:
            yield
        finally:
            self._clients.remove(client)


class _Manager(AsyncKernelManager):
    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:  # type: ignore[override]
        """End it without the interrupt that jupyter_client sends first: one that has just fallen idle complains of it.

        It is idle or dead here, and may need a while to go on a machine that is busy.
        """
        await self.request_shutdown(restart=restart)
        await self.finish_shutdown(waittime=0.0 if now else 120.0, restart=restart)
        await self.cleanup_resources(restart=restart)


class _Client(papermill.clientwrap.PapermillNotebookClient):  # type: ignore[misc]
    def __init__(
        self, notebook: Any, silence: float | None, watching: Callable[[Watch], object], together: Together, **options: Any
    ) -> None:
        super().__init__(notebook, **options)
        self._together = together
        self._watched = Watch(silence, together.spent, self.kill)
        watching(self._watched)

    def execute(self, **options: Any) -> Any:
        """Run the notebook. Whatever ends it, the kernel and what it has started end too."""
        if os.name == "posix":
            options["preexec_fn"] = end_with_parent
        with self._together.joined(self), self._watched:
            try:
                return super().execute(**options)
            finally:
                self.kill()

    def papermill_execute_cells(self) -> None:
        """Run the cells. What stops them elsewhere than in a cell ends a kernel that may be at work."""
        try:
            super().papermill_execute_cells()
        except BaseException:
            self.kill()
            raise

    def process_message(self, message: Any, *arguments: Any, **options: Any) -> Any:
        """A sign of life."""
        content = message.get("content", {})
        self._watched.hear(str(content.get("text", "")))
        return super().process_message(message, *arguments, **options)

    def _process(self) -> Any:
        provisioner = getattr(self.km, "provisioner", None)
        return getattr(provisioner, "process", None)

    def spent(self) -> float | None:
        """Processor time (s) of the kernel and what it has started."""
        process = self._process()
        return cpu_seconds(process.pid) if process is not None else None

    def kill(self) -> None:
        """End the kernel and what it has started."""
        process = self._process()
        if process is not None and process.poll() is None:
            with suppress(OSError):
                kill_group(process.pid, process.kill)


class _Engine(papermill.engines.Engine):  # type: ignore[misc]
    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, *, silence: float | None, watching: Callable[[Watch], object],
        together: Together, timeout_func: Callable[[Any], float | None], extra_arguments: list[str], **_: Any,
    ) -> None:  # fmt: skip
        # nothing in this library may give up because the machine is slow: the watch alone decides
        client = _Client(
            nb_man, silence, watching, together, kernel_name=kernel_name, kernel_manager_class=_Manager,
            timeout_func=timeout_func, startup_timeout=_FOREVER, iopub_timeout=_FOREVER, extra_arguments=extra_arguments,
            log=papermill.engines.logger,
        )  # fmt: skip
        client.execute()


papermill.engines.papermill_engines.register(ENGINE, _Engine)
