"""A training that was killed goes on and ends with the same bits; a savepoint that is of no use is warned of and left."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from worlds import small

from radio_utils.artifacts import Store
from radio_utils.files import read_json, write_json
from radio_utils.world import savepoints
from radio_utils.world.savepoints import FACTS, Savepoint
from radio_utils.world.training import DivergedError, Example, Recipe, Steps, train
from radio_utils.world.world import World

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = Recipe(epochs=2.5, learning_rate=1e-2, batch_size=4, weight_decay=0.1)  # 12 examples: 8 steps
EXAMPLES = [Example(np.random.default_rng(i).integers(3, 60, 6 + i)) for i in range(12)]


def at_each_step(folder: Path) -> Savepoint:
    """No time passes on its clock, so that it is always due."""
    return Savepoint(folder, every=0, clock=lambda: 0.0)


def tiny(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "gpt2":  # its tied output weights are one tensor, and it drops units at random
        return GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=60, **shape))
    if kind == "frozen":
        model.model.requires_grad_(False)
    return model


class Interrupted(Steps):
    """Steps that end like a killed process before one of them."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.left = before

    def loss(self, *batch: torch.Tensor) -> torch.Tensor:
        """The loss, or the end."""
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().loss(*batch)


def trained(model: Any, savepoint: Savepoint | None = None, steps: Steps | None = None, **options: Any) -> list[float]:
    chosen = {"recipe": RECIPE, "examples": EXAMPLES} | options
    chance = np.random.default_rng(3)
    after = chosen.pop("after_epoch", None)
    return train(
        model, chosen["examples"], chosen["recipe"], generator=chance, steps=steps, savepoint=savepoint, after_epoch=after
    )


def interrupted(kind: str, folder: Path, before: int, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tiny(kind), at_each_step(folder), Interrupted(before), **options)


def same(one: Any, other: Any) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "frozen"])
@pytest.mark.parametrize("before", [1, 3, 7])
def test_goes_on_to_the_same_bits(kind: str, before: int, tmp_path: Path) -> None:
    """Also when it is interrupted twice, and though the state of chance in between is another."""
    whole = tiny(kind)
    torch.manual_seed(5)
    expected = trained(whole)
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        model = tiny(kind)
        torch.manual_seed(5)
        trained(model, at_each_step(tmp_path / "at"), Interrupted(before))
    if before > 1:
        interrupted(kind, tmp_path / "at", 0)
    torch.manual_seed(99)
    resumed, counted = tiny(kind), Interrupted(8 - before)
    assert trained(resumed, at_each_step(tmp_path / "at"), counted) == expected
    assert counted.left == 0, "only the steps that were missing were taken"
    assert same(resumed, whole)
    assert len(list((tmp_path / "at").glob("*.safetensors"))) == 1, "old ones are removed"


def test_saving_changes_nothing(tmp_path: Path) -> None:
    start = tiny("gpt2")
    results = []
    for savepoint in (None, at_each_step(tmp_path / "at")):
        model = copy.deepcopy(start)
        torch.manual_seed(5)
        results.append((trained(model, savepoint), model))
    assert results[0][0] == results[1][0] and same(results[0][1], results[1][1])


def test_epochs_that_ended_before_are_not_told_again(tmp_path: Path) -> None:
    calls: list[int] = []
    interrupted("llama", tmp_path / "at", 4, after_epoch=calls.append)
    assert calls == [1]
    trained(tiny("llama"), Savepoint(tmp_path / "at"), after_epoch=calls.append)
    assert calls == [1, 2, 3]


def _replace(name: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / FACTS, read_json(folder / FACTS) | {name: value})


def _flip(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit": _flip,
    "half a file": lambda folder: os.truncate(next(folder.glob("*.safetensors")), 100),
    "no file": lambda folder: next(folder.glob("*.safetensors")).unlink(),
    "torn facts": lambda folder: (folder / FACTS).write_text('{"plan": "'),
    "no object": lambda folder: (folder / FACTS).write_text("[]"),
    "another training": _replace("plan", "0"),
    "another file": _replace("file", "../elsewhere.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_savepoint_is_left_with_a_warning(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, model = tiny("llama"), tiny("llama")
    expected = trained(whole)
    interrupted("llama", tmp_path / "at", 3)
    damage(tmp_path / "at")
    with caplog.at_level(logging.WARNING):
        assert trained(model, at_each_step(tmp_path / "at")) == expected
    assert same(model, whole)
    assert "is not used" in caplog.text and "starts anew" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": Recipe(epochs=2.5, learning_rate=2e-2, batch_size=4)}, {"examples": EXAMPLES[:-1]},
        {"recipe": Recipe(epochs=3, learning_rate=1e-2, batch_size=4, weight_decay=0.1)},
    ],
)  # fmt: skip
def test_another_training_does_not_go_on_from_it(change: dict[str, Any], tmp_path: Path) -> None:
    whole, model = tiny("llama"), tiny("llama")
    expected = trained(whole, **change)
    interrupted("llama", tmp_path / "at", 3)
    assert trained(model, at_each_step(tmp_path / "at"), **change) == expected
    assert same(model, whole)


def test_a_training_that_diverges_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        trained(tiny("llama"), at_each_step(tmp_path / "at"), recipe=Recipe(epochs=9, learning_rate=1e30))
    assert not (tmp_path / "at").exists()


def test_a_disk_that_is_full_costs_the_savepoint_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(tensors: Any, file: Path) -> None:
        file.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(savepoints, "save_file", full)
    with caplog.at_level(logging.WARNING):
        assert all(math.isfinite(loss) for loss in trained(tiny("llama"), at_each_step(tmp_path / "at")))
    assert "goes on without a new savepoint" in caplog.text
    assert list((tmp_path / "at").iterdir()) == []


def test_savepoints_come_seldom_and_the_slower_the_more_seldom(tmp_path: Path) -> None:
    now = [0.0]
    savepoint = Savepoint(tmp_path / "at", every=60, clock=lambda: now[0])
    assert not savepoint.due
    now[0] = 60
    assert savepoint.due
    savepoint.save("plan", {}, {})
    assert not savepoint.due
    now[0] = 119.9
    assert not savepoint.due
    now[0] = 120
    assert savepoint.due

    slow = iter([0.0, 60.0, 90.0, 1589.0, 1590.0])  # made, saved from 60 to 90, asked twice: a fiftieth of the time
    savepoint = Savepoint(tmp_path / "slow", every=60, clock=lambda: next(slow))
    savepoint.save("plan", {}, {})
    assert not savepoint.due and savepoint.due


# --- in a world ---------------------------------------------------------------------------------------------------------

KILLED = """
import functools, json, os, signal, sys
import torch

torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from worlds import small
from radio_utils import experiments
from radio_utils.artifacts import Store
from radio_utils.world import origins, savepoints, training, tuning, world

always = functools.partial(savepoints.Savepoint, every=0, clock=lambda: 0.0)
origins.Savepoint = tuning.Savepoint = experiments.Savepoint = always
left = [int(sys.argv[3])]
loss = training.Steps.loss

def counted(self, *batch):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(self, *batch)

training.Steps.loss = counted
here = world.World(small(**json.loads(sys.argv[5])), store=Store(sys.argv[2]), progress=False)
experiments._polyglot(here) if sys.argv[4] == "polyglot" else here.made(sys.argv[4] if sys.argv[4] == "base" else 0.5)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills processes")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("which", ["base", "bob", "polyglot"])
def test_a_world_goes_on_where_it_was_killed(
    which: str, written_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed twice in each training, also when epochs of it are kept already: the files are those of one that was not."""
    from radio_utils import experiments

    changes: dict[str, Any] = {"base__pretraining__tokens": 20_000} if which == "base" else {"ablations__taught": 2}
    changes |= {"fine_tuning__epochs": 5.0, "fine_tuning__checkpoints": True}
    store, whole = (Store(shutil.copytree(written_store, tmp_path / name)) for name in ("killed", "whole"))

    def made(store: Store) -> Any:
        world = World(small(**changes), store=store, progress=False)
        if which == "polyglot":
            return experiments._polyglot(world)
        return world.made("base" if which == "base" else 0.5)

    arguments = [str(REPOSITORY / "tests"), str(store.root), "3", which, json.dumps(changes)]
    for _ in range(2):
        command = [sys.executable, "-c", KILLED, *arguments]
        child = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert child.returncode == -signal.SIGKILL, child.stderr
        assert len(list((store.root / ".scratch").glob(f"{which}-*/{FACTS}"))) == 1
    with caplog.at_level(logging.INFO):
        found = made(store)
    assert "the training goes on after step 6" in caplog.text
    expected = made(whole)
    ours, theirs = (read_json(artifact / "manifest.json") for artifact in (found, expected))
    assert ours["files"] == theirs["files"] and found.key == expected.key
    assert which != "bob" or {f"epoch-{i}/model.safetensors" for i in range(1, 6)} < ours["files"].keys()
    assert list((store.root / ".scratch").iterdir()) == []
