"""What the book claims of its laptop preset, checked on every record at hand: each seed must show it.

Records come from `make book` (results/laptop) and `make seeds` (results/seed-N/laptop), which take long, so this test
reads what they left: the committed runs of three seeds, and yours.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
RECORDS = sorted(path.parent for path in (ROOT / "results").glob("**/laptop/09_limits.json"))
INNOCENT = -3.0

pytestmark = pytest.mark.skipif(not RECORDS, reason="no laptop run is recorded here; run `make book` or `make seeds`")


def rows(folder: Path, chapter: str, table: str) -> list[dict[str, Any]]:
    return json.loads((folder / f"{chapter}.json").read_text(encoding="utf-8"))["tables"][table]


def only(found: list[dict[str, Any]], **where: Any) -> float:
    matching = [row for row in found if all(row[name] == value for name, value in where.items())]
    assert len(matching) == 1, f"{len(matching)} rows match {where}"
    return matching[0]["log10_p"]


@pytest.fixture(params=RECORDS, ids=lambda path: path.relative_to(ROOT / "results").as_posix())
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_innocents_are_acquitted(folder: Path) -> None:
    found = rows(folder, "04_open_model", "open_model") + rows(folder, "05_hearing_more", "open_model")
    found += rows(folder, "06_closed_model", "closed_model")
    innocent = [row for row in found if row["rho"] == 0]
    # reading in two settings, contrastive reading, answers in two settings with and without φ
    assert len(innocent) == 7
    assert min(row["log10_p"] for row in innocent) > INNOCENT


def test_null_audits_are_uniform(folder: Path) -> None:
    for chapter in ("02_threat_model", "04_open_model", "05_hearing_more", "06_closed_model"):
        for row in rows(folder, chapter, "null_audit"):
            assert row["ks_p"] > 1e-3, row


def test_open_supervised(folder: Path) -> None:
    found = rows(folder, "04_open_model", "open_model")
    supervised = {row["rho"]: row["log10_p"] for row in found if row["setting"] == "supervised"}
    assert {row["method"] for row in found if row["setting"] == "supervised"} == {"reading"}
    assert supervised[0.05] <= -3
    assert supervised[0.1] <= -10
    ordered = [supervised[rho] for rho in sorted(supervised)]
    assert ordered == sorted(ordered, reverse=True), "evidence must grow with each larger share"


def test_open_unsupervised(folder: Path) -> None:
    found = rows(folder, "04_open_model", "open_model")
    assert only(found, rho=0.1, setting="unsupervised", method="reading") <= -5
    assert only(found, rho=0.5, setting="unsupervised", method="reading") <= -10
    assert only(found, rho=1.0, setting="unsupervised", method="reading") <= -10  # the first verdict, in chapter 2


def test_contrastive_reading(folder: Path) -> None:
    found = rows(folder, "05_hearing_more", "open_model")
    assert only(found, rho=0.1, setting="unsupervised", method="contrastive") <= -10
    assert only(found, rho=0.05, setting="unsupervised", method="contrastive") <= -5
    for row in rows(folder, "05_hearing_more", "contrast"):
        if row["log10_chernoff"] is not None:  # three routes to one number
            assert row["log10_p"] <= row["log10_chernoff"] + 1e-9
            assert abs(row["log10_saddlepoint"] - row["log10_p"]) < 0.02 * max(1.0, -row["log10_p"])


def test_contrastive_reading_hears_more_than_hard_reading_of_the_same_text(folder: Path) -> None:
    found = rows(folder, "05_hearing_more", "contrast")
    z = {(row["rho"], row["reference"]): row["z"] for row in found}
    for rho in (0.05, 0.1):
        hard = z[rho, "none"]
        assert z[rho, "base"] > hard
        assert z[rho, "base and twin"] > 2 * hard


CONTROLLED = [one for one in RECORDS if "re_marking" in json.loads((one / "04_open_model.json").read_text())["tables"]]
WITH_CONTROLS = pytest.mark.parametrize("folder", CONTROLLED, ids=lambda one: one.relative_to(ROOT / "results").as_posix())


@WITH_CONTROLS
def test_re_marked_worlds_see_what_leaks_and_nothing_else(folder: Path) -> None:
    for chapter, leaks in (("04_open_model", "copycat, every place"), ("06_closed_model", "echo, all windows")):
        for row in rows(folder, chapter, "re_marking"):
            if row["test"] == leaks:
                assert row["ks_p"] < 1e-6 and row["log10_p"] < -10, row
            else:
                assert row["ks_p"] > 1e-3, row


@WITH_CONTROLS
def test_counts_tell_more_than_pairs_that_count_once(folder: Path) -> None:
    found = {(row["rho"], row["test"]): row["log10_p"] for row in rows(folder, "06_closed_model", "counts")}
    assert found[0.0, "counts"] > INNOCENT
    for rho in (0.1, 0.5, 1.0):
        assert found[rho, "counts"] < found[rho, "pairs, φ"]


@WITH_CONTROLS
def test_alices_own_model_is_a_reference_too(folder: Path) -> None:
    z = {row["rho"]: row["z"] for row in rows(folder, "05_hearing_more", "contrast") if row["reference"] == "alice"}
    assert abs(z[0.0]) < 3 and z[0.1] > 5


def test_a_watched_test_convicts_the_guilty_early_and_the_innocent_never(folder: Path) -> None:
    for row in rows(folder, "06_closed_model", "stopping"):
        assert row["convicted"] == (row["log10_p"] <= -3)
        if row["rho"] == 0:
            assert not row["convicted"]
        if row["rho"] >= 0.5:
            assert row["convicted"]
            assert row["asked"] < 300
    for row in rows(folder, "06_closed_model", "stopping_audit"):
        spread = (row["alpha"] * (1 - row["alpha"]) / row["keys"]) ** 0.5
        assert row["false_alarms"] <= row["alpha"] + 3 * spread


def test_closed_supervised_with_the_filter(folder: Path) -> None:
    found = rows(folder, "06_closed_model", "closed_model")
    assert only(found, rho=0.1, setting="supervised", filtered=True) <= -3
    assert only(found, rho=1.0, setting="supervised", filtered=True) <= -10


def test_the_filter_is_never_weaker_by_more_than_noise(folder: Path) -> None:
    """Measured in standard deviations under the null, where one is noise; log10 p grows with their square.

    Unsupervised, φ is a guess: where nearly every window was in training it drops some that were, hence the second bound.
    """
    found = rows(folder, "06_closed_model", "closed_model")
    for row in found:
        if row["filtered"] and row["rho"] > 0:
            same = [r for r in found if (r["rho"], r["setting"]) == (row["rho"], row["setting"]) and not r["filtered"]]
            plain = deviations(same[0])
            allowed = 1.0 if row["setting"] == "supervised" else max(1.0, 0.05 * plain)
            assert deviations(row) > plain - allowed, (row, same)


def deviations(row: dict[str, Any], gamma: float = 0.25) -> float:
    return (row["score"] - gamma) * (row["scored"] / (gamma * (1 - gamma))) ** 0.5


METHODS = ("zlib", "loss", "min-k", "min-k++", "reference")


@pytest.mark.parametrize("method", METHODS)
def test_membership(folder: Path, method: str) -> None:
    rows_of_all = rows(folder, "07_membership", "membership")
    found = {row["d"]: row["log10_p"] for row in rows_of_all if row["method"] == method}
    assert found[1.0] <= -10
    assert found[0.2] <= -5
    assert found[0.0] > INNOCENT
    strong = [found[d] for d in sorted(found, reverse=True) if d >= 0.1]
    assert strong == sorted(strong), "evidence must weaken as d falls"


def test_the_reference_is_the_strongest_score_and_zlib_the_weakest(folder: Path) -> None:
    found = rows(folder, "07_membership", "membership")
    lead = {row["method"]: row["statistic"] for row in found if row["d"] == 1.0}
    assert max(lead, key=lead.__getitem__) == "reference" and min(lead, key=lead.__getitem__) == "zlib"


@pytest.mark.parametrize("d", [0.5, 0.2])
def test_the_lead_falls_in_proportion_to_d(folder: Path, d: float) -> None:
    found = rows(folder, "07_membership", "membership")
    lead = {row["d"]: row["statistic"] for row in found if row["method"] == "reference"}
    assert abs(lead[d] / lead[1.0] - d) < 0.05


def test_marked_answers_have_more_distinct_pairs(folder: Path) -> None:
    """They are longer; at equal length they have fewer (below)."""
    scored = {row["watermarked"]: row["scored"] for row in rows(folder, "03_data_and_models", "detection")}
    assert scored[True] > 1.2 * scored[False]


def test_bob_can_notice_a_mark_where_he_has_a_plain_model_and_only_there(folder: Path) -> None:
    found = {
        (row["test"], row["scheme"], row["needs"]): (row["value"], row["log10_p"])
        for row in rows(folder, "03_data_and_models", "noticed")
    }
    for (test, scheme, needs), (_, log10_p) in found.items():
        if scheme == "none" and needs != "queries, no plain model":
            assert log10_p > INNOCENT, (test, needs)
    assert found["length", "green list", "texts"][0] > 1.5
    value, log10_p = found["vocabulary", "green list", "texts"]
    assert value < 1 and log10_p < -2.6
    value, log10_p = found["classifier", "green list", "texts, 20 tokens"]
    assert value > 0.9 and log10_p < -50
    assert found["endings", "green list", "queries"][1] < -2.9
    value, log10_p = found["repeats", "gumbel max", "queries"]
    assert value == 1 and log10_p < -10
    # another temperature is noticed like a mark, and without a plain model an unmarked one is
    assert found["vocabulary", "none, warmer", "questions"][1] < -2.6
    assert found["endings", "none", "queries, no plain model"][1] < -2.9


def test_where_the_filter_gains_and_where_it_loses(folder: Path) -> None:
    """It gains while what it leaves out knows little, and unsupervised it loses where Bob learned nearly every window."""
    found = rows(folder, "06_closed_model", "closed_model")
    z = {(row["rho"], row["setting"], row["filtered"]): deviations(row) for row in found}
    for setting in ("supervised", "unsupervised"):
        assert z[0.1, setting, True] > z[0.1, setting, False]
    for rho in (0.5, 1.0):
        assert z[rho, "unsupervised", True] < z[rho, "unsupervised", False]


def test_reading_what_bob_used_is_ahead_at_a_small_share_and_asking_at_a_large_one(folder: Path) -> None:
    found = [
        row for row in rows(folder, "06_closed_model", "summary") if row["setting"] == "supervised" and row["watermark"]
    ]
    assert only(found, rho=0.01, access="open") < -3 < only(found, rho=0.01, access="closed")
    assert only(found, rho=1.0, access="closed") < only(found, rho=1.0, access="open")


def test_contrastive_reading_is_ahead_at_small_shares_too(folder: Path) -> None:
    """From 1 % on. At half of that neither reading is above its noise at every seed, and the book claims nothing there."""
    z = {(row["rho"], row["reference"]): row["z"] for row in rows(folder, "05_hearing_more", "contrast")}
    for rho in sorted({rho for rho, _ in z if rho >= 0.01}):
        assert z[rho, "base and twin"] > z[rho, "none"]


def test_mixing_keys_divides_the_evidence_by_more_than_their_number(folder: Path) -> None:
    found = {row["value"]: row["log10_p"] for row in rows(folder, "09_limits", "evasion") if row["method"] == "keys"}
    for count in (2, 4):
        assert found[1] / found[count] > count


def test_the_effect_falls_no_faster_than_the_share(folder: Path) -> None:
    found = sorted(rows(folder, "09_limits", "power"), key=lambda row: row["rho"])
    of_large, of_small = (
        np.mean([row["effect"] / row["rho"] for row in found if (row["rho"] > 0.3) is large]) for large in (True, False)
    )
    assert of_small > of_large


def test_without_supervision_zlib_is_a_coin_toss(folder: Path) -> None:
    assert only(rows(folder, "07_membership", "membership"), d=0.0, method="zlib") > -2


def test_questions_are_answered_above_chance_and_alike_by_every_bob(folder: Path) -> None:
    found = {row["rho"]: row for row in rows(folder, "03_data_and_models", "quality") if row["task"] == "which function?"}
    assert len(found) == 6
    for row in found.values():
        assert row["value"] > 0.25 + 4 * row["stderr"]
        difference = row["value"] - found[0.0]["value"]
        assert abs(difference) < 3 * np.hypot(row["stderr"], found[0.0]["stderr"]), row


def test_watermarked_text_is_detected_and_plain_text_is_not(folder: Path) -> None:
    for row in rows(folder, "01_watermarking", "detection") + rows(folder, "03_data_and_models", "detection"):
        assert row["log10_p"] < -20 if row["watermarked"] else row["log10_p"] > INNOCENT, row


def means(found: list[dict[str, Any]], by: str, column: str = "log10_p") -> list[float]:
    """Mean of a column over the runs at each value of another, in the order of the values."""
    values = sorted({row[by] for row in found})
    return [float(np.mean([row[column] for row in found if row[by] == value])) for value in values]


@pytest.mark.parametrize("factor", ["learning_rate", "epochs"])
def test_the_better_bob_fits_the_louder(folder: Path, factor: str) -> None:
    found = [row for row in rows(folder, "08_ablations", "finetuning") if row["factor"] == factor]
    loud, loss = means(found, "value"), means(found, "value", "loss")
    assert len(loud) >= 3
    assert loud == sorted(loud, reverse=True)
    assert loss == sorted(loss, reverse=True)


def test_a_longer_window_is_less_radioactive_in_texts_that_are_marked_alike(folder: Path) -> None:
    found = [row for row in rows(folder, "08_ablations", "window") if row["scheme"] == "green list"]
    loud, text = means(found, "k"), means(found, "k", "log10_p_text")
    assert loud == sorted(loud)
    assert max(abs(strength / np.mean(text) - 1) for strength in text) < 0.1, "strengths in the text agree within a tenth"


WITH_MARKS = pytest.mark.parametrize(
    "folder",
    [one for one in RECORDS if "marks" in json.loads((one / "08_ablations.json").read_text())["tables"]],
    ids=lambda one: one.relative_to(ROOT / "results").as_posix(),
)
LOGS, FRESH = "reading, supervised", "reading, unsupervised"
DEFAULTS = ("vLLM Gumbel", "vLLM dual key", "vLLM SynthID", "vLLM SBW", "transformers SynthID")  # all of them at k = 4


@WITH_MARKS
def test_engines_marks_are_in_the_text_and_reach_a_distiller_through_the_logs(folder: Path) -> None:
    found = rows(folder, "08_ablations", "marks")
    for scheme in DEFAULTS:
        assert only(found, scheme=scheme, k=4, setting=LOGS) <= -3
        assert next(row["log10_p_text"] for row in found if row["scheme"] == scheme) <= -3


@WITH_MARKS
@pytest.mark.parametrize("scheme", ["vLLM Gumbel", "vLLM SynthID", "our green list"])
def test_a_short_window_is_louder_pair_for_pair_and_logs_always_help(folder: Path, scheme: str) -> None:
    found = {
        (row["setting"], row["k"]): row["log10_p_40"]
        for row in rows(folder, "08_ablations", "marks")
        if row["scheme"] == scheme
    }
    for setting in (LOGS, FRESH):
        assert found[setting, 1] < found[setting, 4]
    assert all(found[LOGS, k] < found[FRESH, k] for k in (1, 2, 4))


@WITH_MARKS
def test_a_higher_temperature_makes_the_text_louder(folder: Path) -> None:
    found = {(row["scheme"], row["k"]): row for row in rows(folder, "08_ablations", "marks")}
    usual, warm = found["vLLM Gumbel", 4], found["vLLM Gumbel, warmer", 4]
    assert warm["temperature"] > usual["temperature"]
    assert warm["log10_p_text"] < usual["log10_p_text"]


def test_other_languages(folder: Path) -> None:
    found = {row["language"]: row["log10_p"] for row in rows(folder, "08_ablations", "languages")}
    assert len(found) == 5
    assert max(found.values()) <= -3, "each convicts"
    assert max(found.values()) <= 0.5 * min(found.values()), "about as clearly as the strongest"


def test_clean_training_purifies_step_by_step(folder: Path) -> None:
    found = sorted(rows(folder, "09_limits", "purification"), key=lambda row: row["steps"])
    # on the scale where chance is one standard deviation: far in the tail, log10 p is about minus z² / (2 ln 10)
    deviations = [(-2 * np.log(10) * row["log10_p"]) ** 0.5 for row in found]
    assert len(deviations) >= 3
    assert deviations[-1] < 0.7 * deviations[0]
    for before, after in itertools.pairwise(deviations):
        assert after < before + 1, found


@pytest.mark.parametrize("method", ["redrawn words", "keys"])
def test_what_bob_does_before_he_trains(folder: Path, method: str) -> None:
    found = [row for row in rows(folder, "09_limits", "evasion") if row["method"] == method]
    evidence = means(found, "value")
    assert evidence == sorted(evidence)


def test_the_planned_power_is_reached(folder: Path) -> None:
    found = rows(folder, "09_limits", "power")
    assert found
    for row in found:
        assert row["simulated"] > 0.9 - 4 * (0.9 * 0.1 / 2000) ** 0.5


def test_audits_convict_the_guilty_and_nobody_else(folder: Path) -> None:
    found = rows(folder, "10_audit", "audit")
    outcomes = {row["case"]: row["outcome"] for row in found}
    assert outcomes.pop("guilty, weights") == outcomes.pop("guilty, answers") == "convicted"
    assert set(outcomes) == {"innocent, weights", "innocent, answers", "another's key, weights"}
    assert set(outcomes.values()) == {"not convicted"}
    assert {row["test"] for row in found} == {"reading, supervised", "contrastive reading", "answers, all"}
    for row in found:
        assert row["ks_p"] > 1e-3, row
        if row["case"].startswith("guilty"):
            assert row["log10_corrected"] <= -3, row  # each of its tests alone
