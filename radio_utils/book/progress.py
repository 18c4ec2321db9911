"""How far a run of the book has come: a line at each chapter's start, and once a minute while one runs.

What is left is estimated from the seconds of the committed records, scaled by how much longer the chapters so far took on
this machine, and shared out over those that run side by side. It is no promise: what the store holds already takes no time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from radio_utils.book.project import Project
from radio_utils.files import read_json

logger = logging.getLogger(__name__)


class Progress:
    """Of a run of these chapters, in this order."""

    def __init__(
        self, project: Project, preset: str, names: Sequence[str], *, every: float = 60.0, at_once: int = 1
    ) -> None:
        self._names, self._every, self._at_once = list(names), every, at_once
        self._expected = {name: _recorded(project, preset, name) for name in names}
        self._took: dict[str, float] = {}
        self._begun: dict[str, float] = {}  # when those began that run

    def order(self) -> list[str]:
        """In which to begin them. Side by side, the longest goes before the others as soon as the first have left room.

        Begun late, it would still be at work, and alone, when all others have ended.
        """
        first, rest = self._names[: self._at_once], self._names[self._at_once :]
        if self._at_once > 1 and rest:
            longest = max(rest, key=lambda name: self._expected[name] or 0.0)
            rest.sort(key=lambda name: name != longest)
        return first + rest

    def took(self, name: str, seconds: float) -> None:
        """A chapter is done; ``seconds`` is what it took, now or when it ran."""
        self._took[name] = seconds

    @contextmanager
    def of(self, name: str, doing: Callable[[], str]) -> Iterator[None]:
        """While chapter ``name`` runs. ``doing`` says what it does, if that is known."""
        over, start = threading.Event(), time.monotonic()
        self._begun[name] = start
        number = f"chapter {self._names.index(name) + 1} of {len(self._names)}"
        logger.info("%-24s %s%s", name, number, self._told(name, 0.0))

        def tell() -> None:
            while not over.wait(self._every):
                elapsed = time.monotonic() - start
                work = f", {doing()}" if doing() else ""
                logger.info("%-24s %s, %s so far%s%s", name, number, _time(elapsed), work, self._told(name, elapsed))

        thread = threading.Thread(target=tell, daemon=True, name="progress of the book")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            del self._begun[name]

    def left(self, name: str, elapsed: float) -> float | None:
        """About how many seconds the run still takes, ``elapsed`` seconds into chapter ``name``; None if nothing tells."""
        now = time.monotonic()
        running = {one: now - begun for one, begun in tuple(self._begun.items())} | {name: elapsed}
        after = [one for one in self._names if one not in running and one not in self._took]
        if any(self._expected[one] is None for one in (*running, *after)):
            return None
        expected = {one: seconds or 0.0 for one, seconds in self._expected.items()}
        known = {one: seconds for one, seconds in self._took.items() if expected[one]}
        rate = sum(known.values()) / sum(expected[one] for one in known) if known else 1.0
        if any(seconds > rate * expected[one] for one, seconds in running.items()):
            # slower than it seemed; all together, for one may be making what another's record says that it made
            spent = known | running
            rate = max(rate, sum(spent.values()) / max(1.0, sum(expected[one] for one in spent)))
        still = {one: max(0.0, rate * expected[one] - running.get(one, 0.0)) for one in (*running, *after)}
        return max(max(still[one] for one in running), sum(still.values()) / self._at_once)

    def _told(self, name: str, elapsed: float) -> str:
        left = self.left(name, elapsed)
        return f"; about {_time(left)} left" if left and left >= 1 else ""  # past its time, nobody knows


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _recorded(project: Project, preset: str, name: str) -> float | None:
    path = project.root / "results" / "seed-0" / preset / f"{name}.json"
    try:
        return float(read_json(path)["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
