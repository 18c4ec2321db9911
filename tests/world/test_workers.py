"""Several artifacts at once: the same models and texts as alone, from worlds that may differ, and failures named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from worlds import again, small

from radio_utils.artifacts import Store
from radio_utils.world import instructions, workers
from radio_utils.world.workers import WorkerError, make_all
from radio_utils.world.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def world(written_store: Path, tmp_path: Path) -> World:
    return World(small(), store=Store(shutil.copytree(written_store, tmp_path / "store")), progress=False)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of the processes that are started."""
    commands: list[list[str]] = []
    popen = workers.subprocess.Popen

    def counted(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return popen(command, **options)

    monkeypatch.setattr(workers.subprocess, "Popen", counted)
    return commands


@pytest.mark.slow
def test_models_trained_side_by_side_are_those_trained_alone(
    world: World, tmp_path: Path, trainings: list[str], started: list[list[str]]
) -> None:
    """Two processes take five jobs of three worlds, also with a key of bytes, and this process trains none."""
    key = b"\x00secret"
    beside = again(world, key=key)
    worlds = [beside, beside.changed(run=1), beside.changed(fine_tuning__epochs=2.0)]
    jobs: list[workers.Job] = [(worlds[0], 0.1), (worlds[0], 1.0), (worlds[1], 0.5)]
    jobs += [(worlds[2], "twin"), (worlds[0], "twin")]
    make_all(jobs, workers=2)
    assert trainings == [] and len(started) == 2
    assert all(one.has(which) for one, which in jobs)
    assert "secret" not in repr(started) and key.hex() not in repr(started), "the key is on no command line"
    alone = World(world.preset, key=key, store=Store(shutil.copytree(world.store.root, tmp_path / "alone")), progress=False)
    for path in [*alone.store.root.glob("bob-*"), *alone.store.root.glob("twin-*")]:
        shutil.rmtree(path)
    for (one, which), other in zip(jobs, [alone, alone, alone.changed(run=1)], strict=False):
        assert other.training_losses(which) == pytest.approx(one.training_losses(which), abs=1e-4)
    assert len(worlds[2].training_losses("twin")) == 2 and worlds[2].made("twin") != worlds[0].made("twin")
    make_all(jobs, workers=2)
    assert len(started) == 2, "nothing is left to do"


@pytest.mark.slow
def test_pretrained_models_and_texts_made_side_by_side_are_those_made_alone(
    world: World, trainings: list[str], started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One set is asked for twice, and both processes come to it at once."""
    texts = {which: world.pairs(which) for which in ("watermarked", "plain")}
    for path in world.store.root.glob("pairs-*"):
        shutil.rmtree(path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(instructions, "self_instruct", lambda *args, **options: pytest.fail("written in this process"))
        beside, taught = again(world), world.changed(alice__pretraining__tokens=4000, base__pretraining__tokens=3000)
        jobs: list[workers.Job] = [(beside, "pairs/plain"), (again(world), "pairs/plain"), (beside, "pairs/watermarked")]
        make_all([*jobs, (taught, "alice"), (taught, "base")], workers=2)
        assert len(started) == 2 and trainings == []
        assert {which: beside.pairs(which) for which in texts} == texts
    found = {name: json.loads((taught.made(name) / "losses.json").read_text()) for name in ("alice", "base")}
    for name, losses in found.items():
        shutil.rmtree(taught.made(name).path)
        assert losses == pytest.approx(json.loads((taught.made(name) / "losses.json").read_text()), abs=1e-4)
    assert trainings == ["llama", "gpt_neox"], "the second time here"


@pytest.mark.slow
def test_a_failing_worker_is_named_and_the_others_are_kept(world: World, started: list[list[str]]) -> None:
    impossible = world.changed(fine_tuning__adapter={"rank": 2, "alpha": 4, "targets": ["no_such_layer"]})
    with pytest.raises(WorkerError, match=r"(?s)ended with status 1.*AdapterError: adapter\.targets=\['no_such_layer'\]"):
        make_all([(world, 0.1), (impossible, 0.5), (world, 0.5), (world, 1.0)], workers=2)
    assert [world.has(rho) for rho in (0.1, 0.5, 1.0)] == [True, True, True]
    assert not impossible.has(0.5)


def test_one_worker_trains_here_and_nothing_is_made_twice(
    world: World, trainings: list[str], started: list[list[str]]
) -> None:
    make_all([(world, 0.1), (world, 0.5)], workers=1)
    assert trainings == 2 * ["gpt_neox"] and started == []
    make_all([], workers=2)
    make_all([(world, 0.1), (world, 0.5)])
    assert len(trainings) == 2 and started == []


def test_the_last_that_is_missing_is_made_as_the_others_were(
    world: World, trainings: list[str], started: list[list[str]]
) -> None:
    """By a process with one thread: whether a run was interrupted must not decide a model's last bits."""
    make_all([(world, 0.1)], workers=1)
    make_all([(world, 0.1), (world, 0.5)], workers=4)
    assert len(started) == 1 and len(trainings) == 1 and world.has(0.5)


def test_a_world_makes_all_that_it_is_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("radio_utils.world.world.make_all", asked.append)
    world.make(0.1, "keys/1", "pairs/fresh")
    assert asked == [[(world, 0.1), (world, "keys/1"), (world, "pairs/fresh")]]


def test_the_same_model_named_twice_is_trained_once(world: World, trainings: list[str]) -> None:
    make_all([(world, 0.5), (again(world), 0.5)], workers=1)
    assert trainings == ["gpt_neox"]


@pytest.mark.slow
def test_a_worker_ends_when_nobody_waits_for_it(world: World) -> None:
    """Its standard input ends with its parent, and so does it, in the middle of a training."""
    command = [sys.executable, "-m", "radio_utils.world"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    endless = world.changed(fine_tuning__epochs=1e6, fine_tuning__learning_rate=1e-9)
    with start() as worker:
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(workers._request(world, "twin") + "\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "done\n" and world.has("twin"), "while it is asked it lives"
        worker.stdin.write(workers._request(endless, 0.5) + "\n")
        worker.stdin.flush()
        while not list((world.store.root / ".tmp").glob("bob-*")):
            assert worker.poll() is None
        worker.stdin.close()
        assert worker.wait() == 1
    with start() as worker:
        assert worker.stdin is not None
        worker.stdin.close()
        assert worker.wait() == 0, "one that has nothing to do ends well"


@pytest.mark.parametrize(("limit", "workers"), [("8_000_000_000", 1), ("17_000_000_000", 2), ("1000000000", 1), ("max", 4)])
def test_as_many_work_side_by_side_as_there_is_memory_for(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, workers: int
) -> None:
    container = tmp_path / "memory.max"
    container.write_text(limit.replace("_", "") + "\n")
    monkeypatch.setattr("radio_utils.world.workers._CONTAINER", container)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=64e9))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    asked: list[int] = []
    monkeypatch.setattr("radio_utils.world.workers._make_side_by_side", lambda jobs, count: asked.append(count))
    monkeypatch.setattr(World, "made", lambda self, which: None)
    large = world.changed(run=1, memory_gb=8)
    make_all([(large, rho) for rho in (0.0, 0.1, 0.5, 1.0)])
    assert (asked or [1]) == [workers]
