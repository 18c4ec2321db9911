"""The whole argument in seconds: a model trained on watermarked tokens is found out, its innocent twin is not.

Alice is a random table of next-token probabilities, so that everything is known: her text is drawn from it with or
without the watermark, and Bob is a small GPT-NeoX trained on that text from scratch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import radio_utils as ru
from radio_utils import decoding, detection
from radio_utils.presets import Build
from radio_utils.suspects import LocalSuspect
from radio_utils.world import models, training

pytestmark = pytest.mark.usefixtures("one_thread")

VOCABULARY, LENGTH, TRAINED, FRESH = 128, 64, 800, 120
Ids = NDArray[np.int64]


class Alice:
    """A first-order source: logits of the next token depend on the last token only, and are rather flat."""

    def __init__(self) -> None:
        self.table = torch.from_numpy(np.random.default_rng(7).normal(0, 1.0, (VOCABULARY, VOCABULARY)))

    def write(self, count: int, wm: ru.Watermark | None, seed: int) -> Ids:
        generator = torch.Generator().manual_seed(seed)
        texts = torch.randint(0, VOCABULARY, (count, 1), generator=generator)
        process = None if wm is None else wm.logits_processor()
        for _ in range(LENGTH - 1):
            logits = self.table[texts[:, -1]]
            if process is not None:
                logits = process(texts, logits)
            texts = torch.cat([texts, decoding.draw(logits, generator)[:, None]], dim=1)
        found: Ids = texts.numpy()
        return found


@dataclass
class Trial:
    wm: Any
    used: Ids
    fresh: Ids
    guilty: Any
    innocent: Any


def bob(texts: Ids) -> Any:
    model = models.new_model(
        Build(architecture="gpt_neox", width=64, layers=1, heads=2, key_value_heads=2), VOCABULARY, 0, seed=1
    )
    recipe = training.Recipe(epochs=3, learning_rate=1e-2, batch_size=32, max_length=LENGTH)
    training.train(model, [training.Example(row) for row in texts], recipe, generator=np.random.default_rng(0))
    return model.eval()


@pytest.fixture(scope="module", params=["greenlist", "gumbelmax"])
def trial(request: pytest.FixtureRequest) -> Trial:
    green = request.param == "greenlist"
    wm = ru.GreenList("alice", VOCABULARY, 1, 0.25, 3.0) if green else ru.GumbelMax("alice", VOCABULARY, 1)
    alice = Alice()
    used = alice.write(TRAINED, wm, seed=1)
    return Trial(wm, used, alice.write(FRESH, wm, seed=2), bob(used), bob(alice.write(TRAINED, None, seed=3)))


def wrong(wm: Any) -> Any:
    return type(wm)("mallory", *((VOCABULARY, 1, 0.25, 3.0) if isinstance(wm, ru.GreenList) else (VOCABULARY, 1)))


def ask(model: Any, trial: Trial, wm: Any | None = None) -> ru.Detection:
    suspect = LocalSuspect(model, stop_tokens=(), sampling=decoding.Sampling(1.0), max_new_tokens=24, seed=5)
    return ru.query_closed_model(suspect, trial.fresh[:, :8], wm or trial.wm)


def innocent_twins(trial: Trial) -> list[ru.Detection]:
    return [
        ru.read_open_model(trial.innocent, trial.used[:FRESH], trial.wm),
        ru.read_open_model(trial.innocent, trial.fresh, trial.wm),
        ask(trial.innocent, trial),
    ]


def test_the_guilty_model_is_convicted(trial: Trial) -> None:
    verdicts = {
        "open, supervised": ru.read_open_model(trial.guilty, trial.used[:FRESH], trial.wm),
        "open, unsupervised": ru.read_open_model(trial.guilty, trial.fresh, trial.wm),
        "closed": ask(trial.guilty, trial),
    }
    assert {name: verdict.log10_p for name, verdict in verdicts.items() if verdict.log10_p > -6} == {}
    assert all(verdict.scored >= 10 for verdict in verdicts.values())  # Gumbel-max at k = 1 writes in circles


def test_the_innocent_model_is_not(trial: Trial) -> None:
    for verdict in innocent_twins(trial):
        assert verdict.scored > 100
        assert verdict.log10_p > -3


def test_the_null_audit_stands_beside_it(trial: Trial) -> None:
    for verdict in innocent_twins(trial):
        audit = detection.audit_evidence(verdict.evidence, trial.wm, keys=200, seed=0)
        assert audit.ks_p > 1e-3
        assert audit.min_log10_p > -5


def test_a_wrong_key_finds_nothing_in_the_guilty_model(trial: Trial) -> None:
    other = wrong(trial.wm)
    assert ru.read_open_model(trial.guilty, trial.used[:FRESH], other).log10_p > -3
    assert ru.read_open_model(trial.guilty, trial.fresh, other).log10_p > -3
    assert ask(trial.guilty, trial, other).log10_p > -3
    audit = detection.audit_evidence(ask(trial.guilty, trial).evidence, trial.wm, keys=200, seed=1)
    assert audit.ks_p > 1e-3


def test_membership_needs_no_key_but_the_texts_themselves(trial: Trial) -> None:
    """The guilty model is also surer of watermarked text than its innocent twin is: the trace is in its predictions."""

    def loss(model: Any) -> float:
        ids = torch.from_numpy(trial.fresh)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[:, :-1]
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))

    assert loss(trial.guilty) < loss(trial.innocent) - 0.2
