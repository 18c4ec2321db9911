"""A few threads for numpy's loops, which let go of the interpreter's lock. In a browser's Python there are none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 1 if sys.platform == "emscripten" else min(4, os.cpu_count() or 1)


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``function`` of each item, in order, on several threads. Few items are taken at a time: they may be large."""
    left = iter(items)
    waiting = list(islice(left, 2))
    if THREADS == 1 or len(waiting) < 2:
        yield from map(function, chain(waiting, left))
        return
    left = chain(waiting, left)
    with ThreadPoolExecutor(THREADS) as pool:
        while few := list(islice(left, 2 * THREADS)):
            yield from pool.map(function, few)
