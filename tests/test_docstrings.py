"""The docstrings of the names that readers call: parameters, returns, errors, source, and examples that run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from typing import Any

import numpy as np
import pytest

# torch is not needed by the examples of these modules
LIGHT = {
    "watermarks.schemes": "GreenList GumbelMax",
    "watermarks.published": "ReleasedGreenList ReleasedGumbelMax TransformersGreenList",
    "detection": "detect null_audit which_key judge curve audit_evidence compare",
    "planning": "pairs_needed power_at effect_seen simulate_power tokens_needed advise entropy_of",
    "evidence": "collect from_pairs frequent_windows",
    "eprocess": "EProcess",
    "commit": "commit",
    "keyless": "compare_vocabularies classify repeated_answers ending_effects",
    "stats.ks": "family_wise",
}
OTHERS = {
    "membership": "zlib_entropy pieces membership_test membership_scores candidates_needed token_scores "
    "zlib_calibrated_losses",
    "remarking": "worlds_needed remark_control",
    "reading": "read_open_model read_evidence",
    "contrast": "judge_contrast audit_contrast",
    "querying": "query_closed_model query_until count_answers score_answers",
    "sharding": "detect_shards read_shards answer_shards",
}
NAMES = [(module, name) for modules in (LIGHT, OTHERS) for module, names in modules.items() for name in names.split()]


def documented(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"radio_utils.{module}"), name)


def sections(text: str) -> dict[str, str]:
    found = re.split(r"(?m)^(Parameters|Returns|Raises|Notes|Examples)\n-+$", text)
    assert len(found[1::2]) == len(set(found[1::2])), "a section stands twice"
    return dict(zip(found[1::2], found[2::2], strict=True))


def parameters(text: str) -> dict[str, str]:
    """What each parameter is; several may share a description."""
    entries = re.findall(r"(?m)^(\S.*)\n((?:    .*\n?)+)", text)
    names = [([one.strip("*") for one in head.partition(" : ")[0].split(", ")], said.strip()) for head, said in entries]
    return {one: said for those, said in names for one in those}


def test_forty_names_are_documented() -> None:
    assert len(NAMES) >= 40


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_sections_are_complete_and_in_order(module: str, name: str) -> None:
    found = documented(module, name)
    parts = sections(inspect.getdoc(found) or "")
    order = [part for part in ("Parameters", "Returns", "Raises", "Notes", "Examples") if part in parts]
    assert list(parts) == order and "Notes" in parts and len(parts["Notes"].strip()) > 15
    assert ("Returns" in parts) == (not inspect.isclass(found)), "a function says what it returns, a class is it"
    listed = parameters(parts["Parameters"])
    assert list(listed) == [one for one in inspect.signature(found).parameters if one != "self"]
    for one, text in listed.items():
        if elsewhere := re.fullmatch(r"As in :func:`([\w.]+)`.", text):
            home, _, other = elsewhere[1].removeprefix("radio_utils.").rpartition(".")
            text = parameters(sections(inspect.getdoc(documented(home or module, other)) or "")["Parameters"])[one]
            assert not text.startswith("As in"), f"{one} is explained one step away"
        assert text, "each has a description"


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_examples_run(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = documented(module, name)
    tests = doctest.DocTestFinder(recurse=False).find(found, name, globs={})
    examples = [example for test in tests for example in test.examples]
    assert examples or module not in LIGHT
    with np.printoptions(legacy=False):
        for test in tests:
            result = doctest.DocTestRunner(verbose=False).run(test)
            assert result.failed == 0
