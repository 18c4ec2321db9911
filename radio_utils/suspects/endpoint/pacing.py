"""When the next request may be sent."""

from __future__ import annotations

import threading
import time

LONGEST_BACKOFF = 60.0  # seconds
_FIRST_GAP = 0.25  # seconds between requests once the server said that they are too many


class Clock:
    """The time that waiting goes by."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def sleep(self, seconds: float, woken: threading.Event) -> None:
        """Wait, but not longer than until ``woken`` is set."""
        woken.wait(seconds)


class Pace:
    """Says when the next request may be sent, to all threads alike."""

    def __init__(self, clock: Clock, per_minute: float | None = None) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._least = self._gap = 0.0 if per_minute is None else 60.0 / per_minute
        self._next = clock.now()

    def wait(self, stop: threading.Event) -> None:
        """Return when it is this thread's turn, or ``stop`` is set."""
        while not stop.is_set():
            with self._lock:
                now = self._clock.now()
                left = self._next - now
                if left <= 0:
                    self._next = now + self._gap
                    return
            self._clock.sleep(left, stop)

    def hold(self, seconds: float) -> None:
        """Send nothing for so long, and then more slowly: the server had too much."""
        with self._lock:
            now = self._clock.now()
            if self._next <= now + self._gap:  # the first of those that were refused together
                self._gap = min(LONGEST_BACKOFF, max(_FIRST_GAP, 2 * self._gap))
            self._next = max(self._next, now + seconds)

    def ease(self) -> None:
        """Send a little faster again: an answer came."""
        with self._lock:
            self._gap = max(self._least, 0.9 * self._gap if self._gap > 0.01 else 0.0)
