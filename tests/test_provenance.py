"""What names an artifact's code: the syntax trees of its maker and of all that this imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import radio_utils
from radio_utils.provenance import code_version

SOURCE = Path(radio_utils.__file__).parent


def test_an_unknown_maker_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'world\.nothing', which is no module"):
        code_version("world.nothing")


def test_closure_reaches_what_is_imported_indirectly_and_not_what_only_types_need() -> None:
    from radio_utils.provenance import _read

    seen: set[str] = set()
    waiting = ["radio_utils.world.instructions"]
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen.add(name)
            waiting += _read(name)[0]
    assert {"radio_utils.decoding.generation", "radio_utils.watermarks.prf"} <= seen
    assert not {"radio_utils.figures", "radio_utils.chapter", "radio_utils.audit"} & seen


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(SOURCE, tmp_path / "radio_utils", ignore=shutil.ignore_patterns("__pycache__", "*.jsonl"))
    return tmp_path


def version(root: Path, maker: str = "world.training") -> str:
    """The version that a package in another folder gives, in a process of its own."""
    program = f"from radio_utils.provenance import code_version; print(code_version({maker!r}))"
    run = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def rewritten(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_words_rename_nothing_and_code_does(copy: Path) -> None:
    before, training = version(copy), copy / "radio_utils" / "world" / "training.py"
    text = training.read_text(encoding="utf-8")
    training.write_text('"""Other words."""\n# a comment\n' + text.partition('"""\n')[2], encoding="utf-8")
    assert version(copy) == before
    training.write_text(text.replace("1e-", "2e-", 1) if "1e-" in text else text + "\nCHANGED = 1\n", encoding="utf-8")
    assert version(copy) != before


def test_a_line_in_an_indirect_import_renames(copy: Path) -> None:
    maker = "world.instructions"
    before = version(copy, maker)
    rewritten(copy / "radio_utils" / "watermarks" / "prf.py", 'b"radio_utils/prf/1"', 'b"radio_utils/prf/2"')
    assert version(copy, maker) != before


def test_a_definition_that_moves_within_the_closure_renames_nothing(copy: Path) -> None:
    maker, decoding = "decoding", copy / "radio_utils" / "decoding"
    before = version(copy, maker)
    warping = (decoding / "warping.py").read_text(encoding="utf-8")
    start = warping.index("def draw(")
    (decoding / "warping.py").write_text(warping[:start], encoding="utf-8")
    (decoding / "drawing.py").write_text(
        "from __future__ import annotations\nimport torch\nfrom radio_utils.decoding.warping import Logits\n\n"
        + warping[start:],
        encoding="utf-8",
    )
    rewritten(
        decoding / "generation.py",
        "from radio_utils.decoding.warping import Logits, Sampling, draw, warp",
        "from radio_utils.decoding.drawing import draw\nfrom radio_utils.decoding.warping import Logits, Sampling, warp",
    )
    rewritten(
        decoding / "__init__.py",
        "import Sampling, apply_temperature, draw, ",
        "import Sampling, apply_temperature, ",
    )
    rewritten(
        decoding / "__init__.py",
        "from radio_utils.decoding.generation",
        "from radio_utils.decoding.drawing import draw\nfrom radio_utils.decoding.generation",
    )
    assert version(copy, maker) == before
