"""What the book claims of a real model, the tier `pocket`, checked on every committed record: each seed must show it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from radio_utils.presets import REAL

RESULTS = Path(__file__).resolve().parents[1] / "results"
INNOCENT = -3.0

Rows = list[dict[str, Any]]


def of(chapter: str) -> pytest.MarkDecorator:
    """A test for each record of a chapter: it is given the record's tables."""
    paths = sorted(RESULTS.glob(f"seed-*/{REAL}/{chapter}.json"))
    found = [pytest.param(json.loads(path.read_text(encoding="utf-8")), id=path.parts[-3]) for path in paths]
    return pytest.mark.parametrize("record", found or [pytest.param(None, marks=pytest.mark.skip(reason="no record"))])


def by(rows: Rows, *names: str, value: str = "log10_p") -> dict[Any, float]:
    return {tuple(row[name] for name in names) if len(names) > 1 else row[names[0]]: row[value] for row in rows}


@of("*")
def test_innocents_are_acquitted(record: dict[str, Any]) -> None:
    for name in ("open_model", "closed_model", "contrast", "counts", "stopping"):
        for row in record["tables"].get(name, []):
            if row["rho"] == 0:
                assert row["log10_p"] > INNOCENT, (name, row)


@of("*")
def test_null_audits_are_uniform(record: dict[str, Any]) -> None:
    for row in record["tables"].get("null_audit", []):
        assert row["ks_p"] > 1e-3, row


@of("*")
def test_texts_that_are_marked_anew_convict_nobody(record: dict[str, Any]) -> None:
    for row in record["tables"].get("re_marking", []):
        if row["test"] not in ("copycat, every place", "echo, all windows"):  # made to leak
            assert row["ks_p"] > 1e-3, row


@of("04_open_model")
def test_reading_what_alice_kept_convicts_at_small_shares(record: dict[str, Any]) -> None:
    found = by(record["tables"]["open_model"], "setting", "rho")
    assert found["supervised", 0.05] <= -10
    assert found["supervised", 0.1] <= -30
    ordered = [found["supervised", rho] for rho in (0.0, 0.01, 0.05, 0.1, 0.5, 1.0)]
    assert ordered == sorted(ordered, reverse=True)


@of("05_hearing_more")
def test_contrastive_reading_hears_on_plain_text_what_hard_reading_does_not(record: dict[str, Any]) -> None:
    """At a tenth neither is sure to convict; the chapter says what it would take."""
    found = by(record["tables"]["contrast"], "reference", "rho")
    assert found["base", 1.0] <= -30 and found["base and twin", 1.0] <= -30
    assert found["none", 1.0] > INNOCENT


@of("06_closed_model")
def test_answers_convict(record: dict[str, Any]) -> None:
    found = by(record["tables"]["closed_model"], "setting", "filtered", "rho")
    assert found["supervised", True, 0.1] <= -3 and found["supervised", True, 1.0] <= -30
    assert by(record["tables"]["counts"], "test", "rho")["counts", 1.0] <= -3  # of prompts that Bob never met


@of("06_closed_model")
def test_another_tokenizer_hides_no_trace(record: dict[str, Any]) -> None:
    tables = record["tables"]
    if "another_tokenizer" not in tables:
        pytest.skip("this run had no model of another family")
    found = by(tables["another_tokenizer"], "trained", "test")
    assert len(found) == 6
    assert all(p <= -30 if trained else p > INNOCENT for (trained, _), p in found.items())
    own = by(tables["closed_model"], "setting", "filtered", "rho")
    assert found[True, "answers, supervised"] < own["supervised", True, 1.0]
    assert found[True, "answers, unsupervised"] < own["unsupervised", False, 1.0]


@of("07_membership")
def test_membership_falls_with_the_share_of_members(record: dict[str, Any]) -> None:
    rows = record["tables"]["membership"]
    for method in {row["method"] for row in rows}:
        found = by([row for row in rows if row["method"] == method], "d")
        ordered = [found[d] for d in sorted(found)]
        assert ordered == sorted(ordered, reverse=True), method
        assert found[0.0] > INNOCENT


@of("08_ablations")
def test_along_what_he_learned_by_heart_no_window_is_louder(record: dict[str, Any]) -> None:
    """In small models a short window is much the louder (tests/test_claims.py); the chapter says why not here."""
    tables = record["tables"]
    found = by([row for row in tables["window"] if row["scheme"] == "green list"], "k")
    assert set(found) == {1, 2, 4} and max(found.values()) <= -30
    assert max(found.values()) / min(found.values()) > 0.9
    fresh = [row for row in tables["watermark"] if row["setting"] == "unsupervised"]
    assert len(fresh) == 3 and all(row["log10_p"] > INNOCENT for row in fresh)
    whole = next(row for row in tables["finetuning"] if (row["factor"], row["value"]) == ("adapter", 0))
    assert whole["loss"] < whole["held_out"] / 2, "by heart"


@of("08_ablations")
def test_the_recipe_that_fits_better_is_louder(record: dict[str, Any]) -> None:
    kept = by(record["tables"]["finetuning_kept"], "factor", "value")
    for factor in ("learning_rate", "epochs"):
        values = sorted(value for name, value in kept if name == factor)
        ordered = [kept[factor, value] for value in values]
        assert len(ordered) >= 2 and ordered == sorted(ordered, reverse=True)
    assert kept["adapter", 0] < kept["adapter", 16] <= -30


@of("09_limits")
def test_clean_fine_tuning_leaves_what_alice_kept(record: dict[str, Any]) -> None:
    for row in record["tables"]["purification_kept"]:
        assert row["log10_p"] <= -30, row
    kept = by(record["tables"]["evasion_kept"], "method", "value")
    assert kept["redrawn words", 0.0] < kept["redrawn words", 0.5] <= -3


@of("09_limits")
def test_plans_for_fresh_text_rest_on_effects_that_may_be_chance(record: dict[str, Any]) -> None:
    """What the chapter says beside the plans, from the scores of chapter 4 at the same seed."""
    path = RESULTS / f"seed-{record['seed']}" / REAL / "04_open_model.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["tables"]["open_model"]
    read = by([row for row in rows if row["setting"] == "unsupervised"], "rho", value="scored")
    for row in record["tables"]["power"]:
        assert row["effect"] < 2 * (0.25 * 0.75 / read[row["rho"]]) ** 0.5, row
