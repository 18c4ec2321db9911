"""A tier's long work in pieces: one artifact after another, and a stop after so many minutes.

::

    python -m radio_utils.stages --preset gpu --minutes 9      # again and again, until it says that nothing is left

Every stage is an artifact of the store: asked for again it is read. Of the stage under way a training goes on from its last
savepoint and a chat model's writing behind its last batch; any other begins anew. The chapters then find everything made.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from radio_utils import experiments
from radio_utils.artifacts import Store, default_root
from radio_utils.presets import PresetError, load_preset
from radio_utils.world.names import SETS, PairSet, Which
from radio_utils.world.world import World

logger = logging.getLogger(__name__)
UNFINISHED = 75  # the exit status when work is left: EX_TEMPFAIL


@dataclass(frozen=True)
class Stage:
    """One piece of work: its name and how to do it. Done again it costs a look into the store."""

    name: str
    make: Callable[[], object]


def stages(world: World) -> list[Stage]:
    """Everything that chapters 1 to 7 ask of a world, in the order in which it must be made."""
    preset = world.preset
    prompts: tuple[PairSet, ...] = ("watermarked", "fresh")
    settings: tuple[experiments.Setting, ...] = ("supervised", "unsupervised")
    rhos = sorted({*preset.mixtures.rhos, *preset.reading.contrast_rhos})
    found = [
        Stage("Alice's model", partial(world.model_inputs, "alice")),
        Stage("Bob's base", partial(world.model_inputs, "base")),
    ]
    texts: dict[str, Which] = {f"pairs, {which}": f"pairs/{which}" for which in SETS}
    models: dict[str, Which] = {f"Bob at {rho:g}": rho for rho in rhos}
    models["the innocent twin"] = "twin"
    if world.device == "cpu":  # one core each
        found += [Stage(", ".join(some), partial(world.make, *some.values())) for some in (texts, models)]
    else:
        found += [Stage(name, partial(world.made, which)) for name, which in (texts | models).items()]
    for rho in preset.mixtures.rhos:
        for setting in settings:
            name = f"reading Bob at {rho:g}, {setting}"
            found.append(Stage(name, partial(experiments.reading, world, rho, setting)))
        for asked in prompts:
            name = f"answers of Bob at {rho:g}, {asked} prompts"
            found.append(Stage(name, partial(experiments.answers, world, rho, asked, preset.querying.prompts)))
    for rho in preset.reading.contrast_rhos:
        for references in (("base",), ("base", "twin"), ("alice",)):
            name = f"contrast of Bob at {rho:g} with {' and '.join(references)}"
            found.append(Stage(name, partial(experiments.contrast, world, rho, references=references)))
    return found


def work(todo: list[Stage], *, minutes: float) -> list[tuple[str, float]]:
    """Do stages until ``minutes`` have passed; none is begun after that. Returns (name, seconds) of those done."""
    if not minutes > 0:
        raise ValueError(f"minutes must be above 0, got {minutes}")
    begun, done = time.monotonic(), []
    for stage in todo:
        if time.monotonic() - begun > 60 * minutes:
            break
        started = time.monotonic()
        stage.make()
        done.append((stage.name, time.monotonic() - started))
        logger.info("%8.1f s  %s", done[-1][1], stage.name)
    return done


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status is 0 when nothing is left, 75 when time ran out."""
    parser = argparse.ArgumentParser(prog="python -m radio_utils.stages", description="Make a tier's artifacts in pieces.")
    parser.add_argument("--preset", default="gpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no stage after so many minutes")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        preset = load_preset(options.preset)
    except PresetError as error:
        parser.error(str(error))
    todo = stages(World(preset, seed=options.seed, store=Store(default_root())))
    done = work(todo, minutes=options.minutes)
    logger.info("%d of %d stages done, %.0f s", len(done), len(todo), sum(seconds for _, seconds in done))
    return 0 if len(done) == len(todo) else UNFINISHED


if __name__ == "__main__":
    sys.exit(main())
