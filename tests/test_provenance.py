"""What names an artifact's code: the syntax trees of what makes it, and of all that this uses."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import radio_utils
from radio_utils import engines, experiments, provenance
from radio_utils.artifacts import Store
from radio_utils.presets import load_preset
from radio_utils.provenance import code_version
from radio_utils.world.world import World

SOURCE = Path(radio_utils.__file__).parent


@pytest.fixture(scope="module")
def makers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Makers by name: methods of a world, and functions that measure it."""
    preset = load_preset("smoke")
    world = World(preset, store=Store(tmp_path_factory.mktemp("store")), progress=False)
    theirs = engines.from_config({"algorithm": "gumbel", "key": 1}, 1024)
    return {
        "pretrained": [world._pretrain],
        "pairs": [world._write, preset.watermark.make("key", 1024)],
        "pairs of an engine": [world._write, theirs],
        "bob": [world._tune, lambda: None, functools.partial(world.mixture, 0.5)],
        "answers": [experiments.answers],
        "predictions": [experiments.read_shard, world.used_by],
    }


def versions(makers: dict[str, list[Any]]) -> dict[str, str]:
    provenance._closure.cache_clear()
    provenance._version.cache_clear()
    return {name: code_version(*those) for name, those in makers.items()}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.fixture
def rewrite(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], None]]:
    """Other source than that which runs; its lines keep their numbers."""
    found, file = provenance._read, provenance._file

    def rewritten(path: str, old: str, new: str) -> None:
        text = (SOURCE / path).read_text(encoding="utf-8")
        assert old in text and old.count("\n") == new.count("\n")
        name = "radio_utils." + path.removesuffix(".py").replace("/", ".")
        other = SimpleNamespace(read_text=lambda encoding: text.replace(old, new, 1))
        with monkeypatch.context() as patched:
            patched.setattr(provenance, "_file", lambda module: other if module == name else file(module))
            there = provenance._Module(name)
        monkeypatch.setattr(provenance, "_read", lambda module: there if module == name else found(module))

    yield rewritten
    monkeypatch.undo()
    versions({})


def test_what_is_not_of_the_package_is_refused() -> None:
    with pytest.raises(ValueError, match="none of which is code of radio_utils"):
        code_version(json.dumps)
    with pytest.raises(ValueError, match="none of which is code of radio_utils"):
        code_version(None)


ALL = {"pretrained", "pairs", "pairs of an engine", "bob", "answers", "predictions"}


@pytest.mark.parametrize(
    ("module", "old", "new", "expected"),
    [
        ("world/training.py", "betas=(0.9, 0.95)", "betas=(0.9, 0.99)", ALL),
        # a maker's own lines
        ("world/origins.py", "generator.shuffle(documents)", "None", {"pretrained"}),
        ("world/writing.py", "[shard::shards][:count]", "[shard::shards]", {"pairs", "pairs of an engine"}),
        # far away, and by no name: the watermark's class
        ("watermarks/prf.py", 'b"radio_utils/prf/1"', 'b"radio_utils/prf/2"', ALL),
        ("watermarks/engine_processors.py", "from __future__ import annotations", "CHANGED = 1", {"pairs of an engine"}),
        ("watermarks/schemes.py", "from __future__ import annotations", "CHANGED = 1", {"pairs"}),
        # what a maker uses beside it, and what others do there
        ("world/choosing.py", '"mixture", run=True', '"other", run=True', {"bob", "answers", "predictions"}),
        ("world/tuning.py", "self.preset.mixtures.size // count", "count", set()),
        ("experiments.py", "from __future__ import annotations", "CHANGED = 1", set()),
        ("presets.py", "from __future__ import annotations", "CHANGED = 1", set()),
        ("figures/style.py", "from __future__ import annotations", "CHANGED = 1", set()),
        # words
        ("world/training.py", '"""Train in place; ', '"""Other words; ', set()),
        ("world/training.py", "    steps = steps or Steps()", "    steps = steps or Steps()  # a comment", set()),
    ],
)
def test_code_that_changes_renames_what_it_makes(
    module: str, old: str, new: str, expected: set[str], makers: dict[str, list[Any]], rewrite: Callable[..., None]
) -> None:
    before = versions(makers)
    assert len(set(before.values())) == len(before)
    rewrite(module, old, new)
    assert changed(before, versions(makers)) == expected


MOVED = """
import json, tempfile
from radio_utils import provenance
from radio_utils.artifacts import Store
from radio_utils.presets import load_preset
from radio_utils.world.world import World

preset = load_preset("smoke")
world = World(preset, store=Store(tempfile.mkdtemp()), progress=False)
print(provenance.code_version(world._write, preset.watermark.make("key", 1024)))
"""


def version(root: Path) -> str:
    """The version that a package in another folder gives, in a process of its own."""
    run = subprocess.run([sys.executable, "-c", MOVED], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def rewritten(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_definition_that_moves_renames_nothing(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "radio_utils", ignore=shutil.ignore_patterns("__pycache__", "*.jsonl"))
    before, decoding = version(tmp_path), tmp_path / "radio_utils" / "decoding"
    warping = (decoding / "warping.py").read_text(encoding="utf-8")
    start = warping.index("def draw(")
    (decoding / "warping.py").write_text(warping[:start], encoding="utf-8")
    imports = "from __future__ import annotations\nimport torch\nfrom radio_utils.decoding.warping import Logits\n\n"
    (decoding / "drawing.py").write_text(imports + warping[start:], encoding="utf-8")
    rewritten(
        decoding / "generation.py",
        "from radio_utils.decoding.warping import Logits, Sampling, draw, warp",
        "from radio_utils.decoding.drawing import draw\nfrom radio_utils.decoding.warping import Logits, Sampling, warp",
    )
    rewritten(
        decoding / "__init__.py", "import Sampling, apply_temperature, draw, ", "import Sampling, apply_temperature, "
    )
    rewritten(
        decoding / "__init__.py",
        "from radio_utils.decoding.warping",
        "from radio_utils.decoding.drawing import draw\nfrom radio_utils.decoding.warping",
    )
    assert version(tmp_path) == before
