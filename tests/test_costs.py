"""The arithmetic of what a tier costs, against counts of real models and the limits that the tiers promise."""

from __future__ import annotations

import pytest

from radio_utils import costs, presets
from radio_utils.presets import load_preset
from radio_utils.world import models


@pytest.mark.parametrize("which", ["alice", "base"])
def test_parameters_are_those_of_the_model(which: str) -> None:
    preset = load_preset("laptop")
    model = getattr(preset, which)
    assert model.build is not None
    real = models.new_model(model.build, preset.tokenizer.vocab_size, 0, 0)
    # biases and norms are left out of the estimate
    assert costs.parameters(model, preset.tokenizer.vocab_size) == pytest.approx(real.num_parameters(), rel=0.03)


def test_a_hub_model_says_its_size() -> None:
    assert costs.parameters(load_preset("paper").base, 32_000) == 6.7e9


def test_colab_ends_within_90_minutes_and_14_gb() -> None:
    preset = load_preset("colab")
    assert 5 < costs.minutes(preset, costs.T4) < 60  # half as much again is still under 90
    assert preset.memory_estimate_gb() < 14


def test_pocket_ends_within_its_hours_on_two_cores() -> None:
    preset = load_preset("pocket")
    assert 60 < costs.minutes(preset, costs.CORES) < preset.minutes
    # the measured rates of a core: 540 tokens read a second, 200 written for 64 texts at once, 165 learned
    size = preset.base.parameters
    assert size
    read = costs.Work("read", 2 * size * 1080, 0, 0)
    learned = costs.Work("learned", 6 * size * 330, 0, 0)
    written = costs.Work("written", 2 * size * 400, 2 * size * 400 / 64, 400 / 64)
    assert read.seconds(costs.CORES) == pytest.approx(1, rel=0.1)
    assert learned.seconds(costs.CORES) == pytest.approx(1, rel=0.1)
    assert written.seconds(costs.CORES) == pytest.approx(1, rel=0.1)


def test_every_stage_of_the_gpu_tier_ends_within_10_minutes() -> None:
    preset = load_preset("gpu")
    for work in costs.works(preset):
        models_trained = len({*preset.mixtures.rhos, *preset.reading.contrast_rhos}) + 1
        pieces = models_trained if work.name.startswith("fine-tuning") else 5 if work.name == "Alice writes" else 1
        assert work.seconds(costs.H200) / pieces < 600, work.name


def test_seconds_are_bound_by_the_slower_of_arithmetic_and_memory() -> None:
    device = costs.Device("toy", 100.0, 10.0, 0.5, 0.5, 2.0)
    assert costs.Work("w", 500.0, 10.0, 3.0).seconds(device) == pytest.approx(500 / 50 + 6)
    assert costs.Work("w", 50.0, 100.0, 0.0, devices=2).seconds(device) == pytest.approx(100 / 5 / 2)


@pytest.mark.parametrize("name", presets.names())
def test_every_tier_has_positive_work(name: str) -> None:
    for work in costs.works(load_preset(name)):
        assert work.operations > 0 and work.bytes > 0 and work.steps > 0
