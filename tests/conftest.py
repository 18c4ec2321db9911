"""What all tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# tests import their own helpers (tests/tiny.py, tests/worlds.py) by name
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def written_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a store with the small world's two models and all of Alice's pairs: copy it, and add nothing to it."""
    import torch
    from worlds import small

    from radio_utils.artifacts import Store
    from radio_utils.world.world import World

    root = tmp_path_factory.mktemp("written")
    world = World(small(), store=Store(root), progress=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small models only lose time to more
    for which in ("watermarked", "plain", "kept", "fresh", "outside"):
        world.written(which)
    world.model_inputs("base")
    torch.set_num_threads(threads)
    return root
