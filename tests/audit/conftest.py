"""The world of the audits, made once."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from trials import OTHER_KEY, World, audited, save_model, watermark, write_file, write_ids
from waiting import PATIENCE

from radio_utils.suspects import endpoint


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """One thread for torch: such small models only lose time to more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers of these tests are this machine, which may be slow."""
    monkeypatch.setattr(endpoint, "EndpointSuspect", functools.partial(endpoint.EndpointSuspect, timeout=PATIENCE))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("audited")
    torch.set_num_threads(1)
    wm = watermark()
    used = write_ids(600, wm, seed=1)
    base = save_model(root / "base", write_ids(600, None, seed=3))
    return World(
        root,
        base,
        save_model(root / "guilty", used, base=base),
        save_model(root / "innocent", write_ids(600, None, seed=4), base=base),
        save_model(root / "carols", write_ids(600, watermark(OTHER_KEY), seed=5), base=base),
        write_file(root / "used.jsonl", used[:100]),
        write_file(root / "fresh.jsonl", write_ids(100, wm, seed=2)),
        write_file(root / "plain.jsonl", write_ids(200, None, seed=6)),
    )


@pytest.fixture
def audit(world: World, tmp_path: Path) -> Any:
    """Runs one audit with this world's settings; anything can be changed."""
    return functools.partial(audited, world, tmp_path / "out")
