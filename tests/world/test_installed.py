""" "*" stands for everything installed that has Python source, but for this package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from radio_utils.world import corpus
from radio_utils.world.installed import EVERYTHING, resolved


def test_named_packages_stay_as_they_are() -> None:
    assert resolved(["numpy", "no_such_package"]) == ("numpy", "no_such_package")
    assert resolved(()) == ()


def test_everything_has_source_and_is_not_ours() -> None:
    found = resolved([EVERYTHING])
    assert found[0] == corpus.STANDARD_LIBRARY
    assert list(found[1:]) == sorted(set(found[1:]))
    assert {"numpy", "torch", "transformers", "networkx", "filelock"} <= set(found)
    assert "radio_utils" not in found, "this package's own docstrings are no text of the world"
    assert not any(name.startswith("_") for name in found)
    for name in found[1:]:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None and Path(spec.origin).suffix == ".py"
    assert resolved(["numpy", EVERYTHING]) == found


def test_what_is_resolved_can_be_read() -> None:
    """No name of them is refused, and each has a version, which the corpus is named by."""
    found = resolved([EVERYTHING])
    assert set(corpus.package_versions(found)) == set(found)
    assert corpus.package_versions(found)["numpy"].count(".") >= 2


def test_what_has_no_source_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "with_source.py").write_text('"""A module."""\n')
    (tmp_path / "namespace_only").mkdir()
    (tmp_path / "broken").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "half_imported", type(sys)("half_imported"))  # its __spec__ is None: find_spec raises
    names = ["with_source", "namespace_only", "half_imported", "not_there", "not-a-name", "radio_utils", "_private", "sys"]
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {name: ["x"] for name in names})
    assert resolved([EVERYTHING]) == (corpus.STANDARD_LIBRARY, "with_source")
