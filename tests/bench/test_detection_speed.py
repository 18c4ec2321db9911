"""Detection side by side with transformers' detector and with plain code, and how its cost grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import measure
import numpy as np
import pytest
from measure import GAMMA, KINDS, LENGTH, SECRET, Case, K, V

from radio_utils.compat import TransformersGreenList
from radio_utils.detection import detect
from radio_utils.watermarks import GreenList

PEERS = measure.peer_cases(listed=110, arrayed=1000, others=1)
GROWTH = [
    *measure.growth_cases("vocabulary", (2000, 32_000, 256_000), rows=200),
    *measure.growth_cases("window", (1, 2, 4), rows=200),
]


@pytest.mark.parametrize("case", PEERS, ids=lambda case: case.name)
def test_peers(timed: Callable[..., Any], case: Case) -> None:
    result = timed(case)
    scored, positions = case.tell(result)["scored"], case.facts["tokens"] - K * case.facts["tokens"] // LENGTH
    assert 0 < scored <= positions
    if case.facts["program"].startswith("ours"):
        assert result.seen == positions
        assert result.log10_p > -6, "nobody marked this text"


@pytest.mark.parametrize("kind", KINDS)
def test_lists_array_and_stream_give_one_verdict(kind: str) -> None:
    wm = GreenList(SECRET, V, K, GAMMA)
    rows = measure.texts(kind, 1000)[:20]
    one = detect(rows, wm)
    assert one == detect(rows.tolist(), wm) == detect(iter(rows), wm)
    pairs = {tuple(row[i : i + K + 1]) for row in rows.tolist() for i in range(LENGTH - K)}
    assert one.scored == len(pairs)
    ordered = np.array(sorted(pairs))
    assert one.total == wm.scores(ordered[:, :K], ordered[:, K]).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_counts_what_our_reading_of_it_counts(kind: str) -> None:
    text = measure.texts(kind, 1000)[:1]
    theirs = measure.transformers_detector(width=1)(text)
    ours = detect(text, TransformersGreenList({"greenlist_ratio": GAMMA}, V))
    assert (ours.scored, ours.total) == (theirs.num_tokens_scored[0], theirs.num_green_tokens[0])


@pytest.mark.parametrize("case", GROWTH, ids=lambda case: f"{case.table}, {case.name}")
def test_growth(timed: Callable[..., Any], case: Case) -> None:
    verdict = timed(case)
    assert 0 < verdict.scored <= verdict.seen < case.facts["tokens"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [10**4, 10**5, 10**6, 10**7])
def test_tokens(timed: Callable[..., Any], kind: str, tokens: int) -> None:
    row = timed(measure.stream_case(kind, tokens), rounds=1 if tokens > 10**6 else 3)
    assert row["tokens"] == tokens
    assert 0 < row["scored"] <= tokens - K * tokens // LENGTH
