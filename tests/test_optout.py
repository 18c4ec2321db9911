"""The share of texts without the mark: coverage of its interval, whatever the law and however the strength varies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

import radio_utils as ru
from radio_utils import optout
from radio_utils.stats.laws import Bernoulli, Exponential, Law, fair_bits
from radio_utils.watermarks.engines import VLLMGumbel

LAWS: dict[str, Law] = {"green": Bernoulli(0.25), "gumbel": Exponential(), "bits": fair_bits(8)}


def texts(law: Law, share: float, rng: np.random.Generator, strength: float = 0.3) -> tuple[Any, Any]:
    """Totals and counts of 200 texts, of which the marked ones are marked with differing strength, not by tilts."""
    n = rng.integers(20, 150, 200)
    effect = np.where(rng.random(200) < share, 0.0, strength * rng.gamma(4.0, 0.25, 200))
    if isinstance(law, Bernoulli):
        return rng.binomial(n, np.minimum(0.95, law.rate + effect)), n
    if isinstance(law, Exponential):
        return rng.gamma(n, 1.0 + 2.0 * effect), n
    return rng.binomial(8 * n, np.minimum(0.95, 0.5 + effect / 2)), n


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
def test_the_interval_holds_the_share(name: str, share: float) -> None:
    rng, found = np.random.default_rng(3), []
    for _ in range(8):
        found.append(optout.share_of(*texts(LAWS[name], share, rng), LAWS[name]))
    covered = sum(one.low <= share <= one.high for one in found)
    assert covered >= stats.binom.ppf(0.005, len(found), 0.9)  # that the share is drawn text by text included
    assert abs(np.mean([one.share for one in found]) - share) < 0.05
    assert np.mean([one.high - one.low for one in found]) < 0.25


def test_nothing_marked_is_not_taken_for_marked() -> None:
    rng = np.random.default_rng(4)
    assert all(optout.share_of(*texts(LAWS["green"], 1.0, rng), LAWS["green"]).high > 0.95 for _ in range(6))


def test_texts_are_judged_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    wm, rng = VLLMGumbel(3, 64, 2), np.random.default_rng(5)
    generated = []
    for i in range(60):  # answers of 24 tokens, each the likeliest of ten candidates by the mark; every third is plain
        answer: list[int] = []
        while len(answer) < 24:
            window = [-1, -1, *answer][-2:]
            candidates = rng.choice(64, 10, replace=False)
            scores = wm.scores(np.tile(window, (10, 1)), candidates)
            answer.append(int(candidates[scores.argmax() if i % 3 else 0]))
        generated.append(answer)
    found = optout.unmarked_share(generated, wm, prompts=[[1, 2, 3]] * 60)
    assert found.low <= 1 / 3 <= found.high and abs(found.share - 1 / 3) < 0.03 and found.texts == 60
    monkeypatch.setattr(optout, "MOST", 20)
    fewer = optout.unmarked_share([*generated, [5]], wm)
    assert fewer.texts == 20 and fewer.high - fewer.low > found.high - found.low


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optout.share_of([], [], Bernoulli(0.5)), "at least one text"),
        (lambda: optout.unmarked_share([[1]], ru.GumbelMax("a", 9, 1)), "no text is longer than the watermark's window=1"),
        (lambda: optout.unmarked_share([[1, 2]], ru.GumbelMax("a", 9, 1), prompts=[]), "equal in number, got 0 and 1"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
