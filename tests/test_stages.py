"""A tier's work in pieces: each stage once, in an order that works, and a stop when time is up."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from worlds import small

from radio_utils import presets, stages
from radio_utils.artifacts import Store
from radio_utils.presets import PresetError, load_preset
from radio_utils.stages import Stage, work
from radio_utils.world import training
from radio_utils.world.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Stage], list[str]]:
    """Ten stages of 40 s by their clock, which only say that they were done, and who has said it."""
    done: list[str] = []
    monkeypatch.setattr(stages, "time", SimpleNamespace(monotonic=lambda: 1000.0 + 40 * len(done)))
    return [Stage(name, partial(done.append, name)) for name in (f"stage {i}" for i in range(10))], done


def test_stages_are_done_in_order_and_timed(counting: tuple[list[Stage], list[str]]) -> None:
    todo, done = counting
    assert work(todo, minutes=float("inf")) == [(stage.name, 40.0) for stage in todo]
    assert done == [stage.name for stage in todo]


def test_none_is_begun_after_the_minutes(counting: tuple[list[Stage], list[str]]) -> None:
    todo, _ = counting
    assert work(todo, minutes=2) == [(f"stage {i}", 40.0) for i in range(4)], "the fourth begins at 2:00 and is finished"
    assert len(work(todo, minutes=0.1)) == 1, "the first is always done, so that going on ends"


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_no_time_is_refused(minutes: float) -> None:
    with pytest.raises(ValueError, match="minutes must be above 0"):
        work([], minutes=minutes)


def test_a_stage_that_fails_is_not_passed_over(counting: tuple[list[Stage], list[str]]) -> None:
    todo, done = counting
    with pytest.raises(OSError, match="full"):
        work([todo[0], Stage("failing", lambda: (_ for _ in ()).throw(OSError("full"))), todo[1]], minutes=float("inf"))
    assert done == ["stage 0"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", presets.names())
def test_stages_stand_in_an_order_that_works(name: str, device: str, tmp_path: Path) -> None:
    found = [stage.name for stage in stages.stages(World(load_preset(name), store=Store(tmp_path), device=device))]
    assert len(set(found)) == len(found) > 20
    assert not list(tmp_path.iterdir()), "listing makes nothing"
    wanted = ("Alice's model", "pairs, plain", "Bob at 0.5", "reading Bob at 0.5, supervised")
    places = [next(i for i, one in enumerate(found) if part in one) for part in wanted]
    assert sorted(set(places)) == places, "on processors all sets are one stage and all models the next: side by side"


def test_a_second_pass_only_reads(written_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = small(mixtures__rhos=[0.0, 1.0], reading__contrast_rhos=[1.0], querying__prompts=4)
    store = Store(shutil.copytree(written_store, tmp_path / "store"))
    work(stages.stages(World(preset, store=store, progress=False)), minutes=float("inf"))
    made = sorted(path.name for path in store.root.iterdir())
    kinds = {name.rsplit("-", 1)[0] for name in made}
    assert {"alice", "base", "bob", "twin", "predictions", "answers", "contrast", "pairs"} <= kinds
    monkeypatch.setattr(Store, "_build", lambda *_, **__: pytest.fail("made again"))
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("trained again"))
    todo = stages.stages(World(preset, store=store, progress=False))
    assert len(work(todo, minutes=float("inf"))) == len(todo)
    assert sorted(path.name for path in store.root.iterdir()) == made


@pytest.fixture
def command(counting: tuple[list[Stage], list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The command line, over stages that only count; what it was called with."""
    todo, done = counting
    asked: dict[str, Any] = {"done": done}

    def listed(world: World) -> list[Stage]:
        asked["world"] = world
        return todo

    monkeypatch.setattr(stages, "stages", listed)
    monkeypatch.setenv("RADIO_UTILS_STORE", str(tmp_path / "chosen"))
    return asked


def test_the_exit_status_says_whether_work_is_left(command: dict[str, Any], tmp_path: Path) -> None:
    assert stages.main(["--preset", "smoke", "--seed", "3"]) == 0
    assert len(command["done"]) == 10
    world = command["world"]
    assert (world.preset.name, world.seed, world.store.root) == ("smoke", 3, tmp_path / "chosen")
    assert stages.main(["--preset", "smoke", "--minutes", "0.5"]) == stages.UNFINISHED == 75
    assert len(command["done"]) == 11


def test_an_unknown_preset_is_a_wrong_command(command: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        stages.main(["--preset", "laptpo"])
    assert caught.value.code == 2
    assert "unknown preset 'laptpo'; choose one of" in capsys.readouterr().err
    assert command["done"] == []
    with pytest.raises(PresetError):
        load_preset("laptpo")
