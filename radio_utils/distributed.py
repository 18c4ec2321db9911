"""Several devices together, through ``accelerate launch``: one fine-tuning on all of them, everything else shared out.

::

    accelerate launch --use_fsdp --num_processes 8 -m radio_utils.distributed --preset paper write
    accelerate launch --use_fsdp --num_processes 8 -m radio_utils.distributed --preset paper tune
    accelerate launch --num_processes 8 -m radio_utils.distributed --preset paper read

Writing and reading are cut into the preset's ``shards``, each an artifact of its own that any process on any machine may
make: the result is that of one process, bit for bit, however many there are, and a machine that dies loses the shards
under way. Fine-tuning takes each batch apart and adds the gradients up again; up to rounding the model is that of one
process. All processes must see the same store (``RADIO_UTILS_STORE`` on a shared disk).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from radio_utils import experiments
from radio_utils.artifacts import Store, default_root
from radio_utils.presets import load_preset
from radio_utils.world.names import SETS, Which, fine_tuned, parse
from radio_utils.world.training import IGNORED, Recipe, Steps, optimiser_of
from radio_utils.world.world import World

logger = logging.getLogger(__name__)
STAGES = ("write", "tune", "read")


class SharedSteps(Steps):
    """The optimiser's steps that all processes of an ``accelerate.Accelerator`` take together.

    Process r of n sees the examples r, r + n, … of each batch. The loss is a sum divided by the number of labelled tokens
    of the *whole* batch, so that the gradients' mean over the processes is the gradient that one process would have.
    """

    resumable = False  # the state is spread over the processes

    def __init__(self, accelerator: Any) -> None:
        """``accelerator`` decides on devices, precision and sharding (DDP, FSDP, …)."""
        super().__init__()
        self.accelerator = accelerator

    def start(self, model: Any, recipe: Recipe, total: int) -> None:
        """Take a model for ``total`` steps."""
        self.device = self.accelerator.device
        wrapped = self.accelerator.prepare(model)
        optimiser, self._schedule = optimiser_of(wrapped, recipe, total)
        self._optimiser = self.accelerator.prepare(optimiser)
        self.model = wrapped

    def loss(self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The share of this process in the batch's mean loss, times the number of processes."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        labelled = int((labels != IGNORED).sum())
        mine = slice(rank, None, ranks)
        if ids[mine].shape[0] == 0:  # fewer examples than processes: take part in the step, and teach nothing
            ids, mask, labels = ids[:1], mask[:1], torch.full_like(labels[:1], IGNORED)
        else:
            ids, mask, labels = ids[mine], mask[mine], labels[mine]
        ids, mask, labels = (tensor.to(self.device) for tensor in (ids, mask, labels))
        with self.accelerator.autocast():
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        wanted = labels != IGNORED
        total: torch.Tensor = functional.cross_entropy(logits[wanted].float(), labels[wanted], reduction="sum")
        share: torch.Tensor = total * (ranks / labelled)
        return share

    def value(self, loss: torch.Tensor) -> float:
        """The whole batch's loss, the same on every process."""
        return float(self.accelerator.reduce(loss.detach().clone(), reduction="mean"))

    def descend(self, loss: torch.Tensor) -> None:
        """One step down the gradient."""
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimiser.step()
        self._schedule.step()
        self._optimiser.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Any] | None:
        """The whole model's weights, gathered from all processes."""
        return dict(self.accelerator.get_state_dict(self.model))


def write(world: World, accelerator: Any) -> None:
    """Every set of Alice's pairs, its shards shared out among the processes."""
    for which in SETS:
        for shard in range(accelerator.process_index, world.preset.shards, accelerator.num_processes):
            world.written_shard(which, shard)
    accelerator.wait_for_everyone()


def tune(world: World, accelerator: Any, models: Sequence[Which]) -> None:
    """Fine-tune these models that the store lacks, all processes on one model at a time."""
    for which in models:
        missing = torch.tensor([int(accelerator.is_main_process and not world.has(which))], device=accelerator.device)
        if int(accelerator.reduce(missing, reduction="sum")) == 0:
            continue
        steps = SharedSteps(accelerator)
        if accelerator.is_main_process:
            world.made(which, steps=steps)
        else:
            world.take_part(which, steps)
        accelerator.wait_for_everyone()
        accelerator.free_memory()


def read(world: World, accelerator: Any, models: Sequence[Which]) -> None:
    """Read every model in both settings, the texts' shards shared out among the processes."""
    for which in models:
        for setting in ("supervised", "unsupervised"):
            for shard in range(accelerator.process_index, world.preset.shards, accelerator.num_processes):
                experiments.read_shard(world, which, setting, shard)
    accelerator.wait_for_everyone()


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    from accelerate import Accelerator

    parser = argparse.ArgumentParser(prog="accelerate launch -m radio_utils.distributed", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", action="append", help="a share, or the name of another model (default: every share)")
    options = parser.parse_args(arguments)
    try:
        asked: list[Which] = [fine_tuned(parse(name)) for name in options.model or ()]
    except ValueError as error:
        parser.error(f"--model: {error}")
    accelerator = Accelerator()
    world = World(
        load_preset(options.preset),
        seed=options.seed,
        store=Store(default_root()),
        progress=accelerator.is_main_process,
        device=str(accelerator.device),
    )
    models = asked or list(world.preset.mixtures.rhos)
    if options.stage == "write":
        write(world, accelerator)
    elif options.stage == "tune":
        tune(world, accelerator, models)
    else:
        read(world, accelerator, models)
    return 0


if __name__ == "__main__":
    sys.exit(main())
