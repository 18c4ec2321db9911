"""A very small world for the tests: a minute's preset cut down to seconds."""

from __future__ import annotations

from typing import Any

from radio_utils.presets import Preset, load_preset
from radio_utils.world.world import World

SMALLER: dict[str, Any] = {
    "corpus__packages": ["networkx"], "tokenizer__vocab_size": 600, "alice__pretraining__tokens": 90_000,
    "base__pretraining__tokens": 4_000, "self_instruct__pairs": 20, "self_instruct__unused": 12, "self_instruct__fresh": 16,
    "mixtures__size": 20, "mixtures__rhos": [0.0, 0.1, 0.5, 1.0], "fine_tuning__epochs": 1.0, "suspect__max_new_tokens": 12,
    "reading__texts": 16, "querying__prompts": 10, "membership__candidates": 12, "membership__fresh": 14,
    "ablations__taught": 0, "ablations__opening_words": 100,
}  # fmt: skip


def small(**changes: Any) -> Preset:
    return load_preset("smoke", **(SMALLER | changes))


def again(world: World, **options: Any) -> World:
    """A new world over the same store: nothing cached in memory."""
    preset = options.pop("preset", world.preset)
    return World(preset, store=world.store, progress=False, **options)
