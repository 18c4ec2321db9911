"""Logits processors side by side: a step for 16 answers at two vocabularies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import measure
import pytest
import torch
from measure import GAMMA, PROCESSORS, SECRET, VOCABULARIES, Case, K

from radio_utils.watermarks import GreenList, GumbelMax


@pytest.mark.parametrize("case", measure.processor_cases(1), ids=lambda case: case.name)
def test_processors(timed: Callable[..., Any], case: Case) -> None:
    scores = timed(case)
    vocab_size = case.facts["vocab_size"]
    contexts, logits = measure.step_input(vocab_size)
    assert scores.shape == logits.shape
    windows = contexts[-1][:, -K:]
    if case.facts["program"] == "ours, green list":
        green = GreenList(SECRET, vocab_size, K, GAMMA).green_rows(windows.numpy())
        assert torch.equal(scores, logits + 2.0 * torch.from_numpy(green))
    elif case.facts["program"] == "ours, Gumbel-max":
        r = GumbelMax(SECRET, vocab_size, K).uniform_rows_torch(windows)
        winners = (logits.double() - (-r.log()).log()).argmax(dim=-1)
        assert torch.equal(scores.argmax(dim=-1), winners)
        assert torch.equal(torch.isfinite(scores).sum(dim=-1), torch.ones(len(scores), dtype=torch.long))
    else:
        assert torch.equal((scores != logits).sum(dim=-1), torch.full((len(scores),), int(GAMMA * vocab_size)))


def test_every_processor_is_measured_at_every_vocabulary() -> None:
    found = {(case.facts["program"], case.facts["vocab_size"]) for case in measure.processor_cases(1)}
    assert found == {(program, vocab_size) for program in PROCESSORS for vocab_size in VOCABULARIES}
