"""Several Bobs at once, one core each.

A small model's training step is too short to share between cores: two trainings side by side finish about 1.6 times sooner
than one after the other on both. Each worker is a process of its own that asks the store, as the chapters do, so nothing is
made twice and a worker that dies costs the Bob under way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from radio_utils.world.world import World


class WorkerError(RuntimeError):
    """A worker process failed; the message ends with what it said last."""


def train_side_by_side(world: World, rhos: Sequence[float | str], workers: int) -> None:
    """Fine-tune the Bobs of these shares ("twin": the innocent twin) in ``workers`` processes.

    Raises :class:`WorkerError` when one fails.
    """
    shares = [list(rhos[start::workers]) for start in range(min(workers, len(rhos)))]
    hidden = not world.progress
    with (
        tqdm(total=len(rhos), desc="fine-tuning Bobs side by side", disable=hidden, unit="model", mininterval=5.0) as bar,
        ThreadPoolExecutor(len(shares)) as pool,
    ):
        list(pool.map(lambda share: _run(_request(world, share), bar), shares))


def _request(world: World, rhos: list[float | str]) -> str:
    """What a worker must know, for its standard input: the key must not stand on a command line, where others see it."""
    key: Any = world.key if not isinstance(world.key, bytes) else {"hex": world.key.hex()}
    fields = {"preset": world.preset.model_dump(), "seed": world.seed, "key": key, "store": str(world.store.root)}
    return json.dumps(fields | {"rhos": rhos})


def _run(request: str, bar: Any) -> None:
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "radio_utils.world.workers"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=environment
        ) as child:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(request)
            child.stdin.close()
            for _ in child.stdout:
                bar.update()
        if child.returncode != 0:
            said.seek(0)
            raise WorkerError(f"a training process ended with status {child.returncode}: {said.read()[-2000:].strip()}")


def _main() -> None:
    from radio_utils.artifacts import Store
    from radio_utils.presets import Preset
    from radio_utils.world.world import World

    asked = json.load(sys.stdin)
    key = bytes.fromhex(asked["key"]["hex"]) if isinstance(asked["key"], dict) else asked["key"]
    world = World(
        Preset(**asked["preset"]), seed=asked["seed"], key=key, store=Store(asked["store"]), progress=False
    )  # fmt: skip
    for rho in asked["rhos"]:
        world.fine_tune(rho)
        sys.stdout.write(f"{rho}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
