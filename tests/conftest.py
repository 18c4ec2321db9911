"""What all tests share."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# a slow machine is no failure; whatever else the profile in use says (a server's, where they run on one) stays
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# tests import their own helpers (tests/tiny.py, tests/worlds.py) by name
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    """A command that a test runs in this process sets levels of logging; the next test must not see them."""
    loggers = [logging.getLogger(name) for name in (None, "radio_utils", "papermill")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: such small models only lose time to more."""
    with _one_thread():
        yield


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The architecture of every model that is trained in this process."""
    from radio_utils.world import training

    runs: list[str] = []
    train = training.train

    def counted(model: Any, *args: Any, **options: Any) -> list[float]:
        runs.append(model.config.model_type)
        return train(model, *args, **options)

    monkeypatch.setattr(training, "train", counted)
    return runs


@pytest.fixture(scope="session")
def toy_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a chat model with random weights."""
    pytest.importorskip("gguf")
    from toys import write_gguf

    return write_gguf(tmp_path_factory.mktemp("toy") / "toy.Q4_1.gguf")


@pytest.fixture(scope="session")
def toy_chat(toy_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in the standard format."""
    from radio_utils.world import pretrained

    folder = tmp_path_factory.mktemp("toy chat")
    pretrained.unpack(pretrained.facts_of(toy_gguf), toy_gguf, folder)
    return folder


@pytest.fixture(scope="session")
def written_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a store with the small world's two models and all of Alice's pairs: copy it, and add nothing to it."""
    from worlds import small

    from radio_utils.artifacts import Store
    from radio_utils.world.world import World

    root = tmp_path_factory.mktemp("written")
    world = World(small(), store=Store(root), progress=False)
    with _one_thread():
        for which in ("watermarked", "plain", "kept", "fresh", "outside"):
            world.written(which)
        world.model_inputs("base")
    return root


@pytest.fixture(scope="session")
def practice_case(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A case to audit: its world is so small that it is made in seconds, and its guilty Bob is convicted all the same."""
    from radio_utils.artifacts import Store
    from radio_utils.practice import make_case
    from radio_utils.presets import load_preset
    from radio_utils.world.world import World

    sizes = {"self_instruct__pairs": 160, "mixtures__size": 160, "membership__candidates": 40}
    recipe = {"fine_tuning__epochs": 8.0, "fine_tuning__learning_rate": 5e-3}
    store = Store(tmp_path_factory.mktemp("practice store"))
    with _one_thread():
        key = "a secret of these tests: 7a1f03"  # a case without one would draw another each time
        world = World(load_preset("smoke", **sizes, **recipe), key=key, store=store, progress=False)
        return make_case(world, 0.5, tmp_path_factory.mktemp("practice"), fresh=40)
