"""Benchmarks run quickly here and assert what is right, never how fast it is; the ratios stand in the summary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import measure
import pytest

from radio_utils.book.benchmarks import tables_of

_ROWS = pytest.StashKey[dict[str, list[measure.Row]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = {}


@pytest.fixture
def timed(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[measure.Case], Any]:
    """Time a case, keep its row for the summary, return what its work returned."""

    def run(case: measure.Case, rounds: int = 3) -> Any:
        benchmark.group = case.table
        result = benchmark.pedantic(case.prepare(), rounds=rounds, warmup_rounds=1)
        if benchmark.stats is not None:  # None with --benchmark-disable
            row = case.row(float(benchmark.stats.stats.min), rounds, result)
            request.config.stash[_ROWS].setdefault(case.table, []).append(row)
        return result

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = config.stash.get(_ROWS, {})
    for table in tables_of(found):
        terminalreporter.section(table.caption)
        lines = [table.header, *table.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            terminalreporter.write_line("  ".join(map(str.ljust, line, widths)).rstrip())
