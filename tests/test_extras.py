"""What is said where a module is missing."""

from __future__ import annotations

import importlib
import sys

import pytest

from radio_utils import extras


def test_a_missing_module_names_its_extra() -> None:
    with (
        pytest.raises(ModuleNotFoundError, match=r"^this needs pyarrow: pip install 'radio-utils\[parquet\]'$") as caught,
        extras.named("this"),
    ):
        raise ModuleNotFoundError("No module named 'pyarrow.parquet'", name="pyarrow.parquet")
    assert caught.value.name == "pyarrow.parquet"


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'somebody'", name="somebody"),
        ModuleNotFoundError("an inner module needs torch: pip install 'radio-utils[models]'", name="torch"),
        ImportError("cannot import name 'x' from 'torch'", name="torch"),
        ValueError("no import at all"),
    ],
)
def test_other_errors_pass_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, extras.named("this"):
        raise error
    assert caught.value is error


def test_only_modules_of_the_package_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    extras.install()
    assert sum(one is extras._Finder for one in sys.meta_path) == 1, "installed once, however often it is asked for"
    assert extras._Finder.find_spec("json") is None and extras._Finder.find_spec("radio_utils_of_others.x") is None
    monkeypatch.setitem(sys.modules, "seaborn", None)  # as if it were not installed
    for name in [one for one in sys.modules if one.startswith("radio_utils.figures")]:  # the room and all in it
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("radio_utils.figures")
