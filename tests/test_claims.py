"""What the book claims of its laptop preset, checked on every record at hand: each seed must show it.

Records come from `make book` (results/laptop) and `make seeds` (results/seed-N/laptop), which take long, so this test
reads what they left: the committed runs of three seeds, and yours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECORDS = sorted(path.parent for path in (ROOT / "results").glob("**/laptop/06_closed_model.json"))
INNOCENT = -3.0

pytestmark = pytest.mark.skipif(not RECORDS, reason="no laptop run is recorded here; run `make book` or `make seeds`")


def rows(folder: Path, chapter: str, table: str) -> list[dict[str, Any]]:
    return json.loads((folder / f"{chapter}.json").read_text(encoding="utf-8"))["tables"][table]


def only(found: list[dict[str, Any]], **where: Any) -> float:
    matching = [row for row in found if all(row[name] == value for name, value in where.items())]
    assert len(matching) == 1, f"{len(matching)} rows match {where}"
    return matching[0]["log10_p"]


def has_contrast(folder: Path) -> bool:
    return '"contrast"' in (folder / "05_open_model.json").read_text(encoding="utf-8")


def needs_contrast(folder: Path) -> None:
    if not has_contrast(folder):
        pytest.skip("recorded before contrastive reading; `make seeds` records it")


@pytest.fixture(params=RECORDS, ids=lambda path: path.relative_to(ROOT / "results").as_posix())
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_innocents_are_acquitted(folder: Path) -> None:
    found = rows(folder, "05_open_model", "open_model") + rows(folder, "06_closed_model", "closed_model")
    innocent = [row for row in found if row["rho"] == 0]
    # reading in two settings, contrastive reading, answers in two settings with and without φ
    assert len(innocent) == (7 if has_contrast(folder) else 6)
    assert min(row["log10_p"] for row in innocent) > INNOCENT


def test_null_audits_are_uniform(folder: Path) -> None:
    for chapter in ("02_threat_model", "05_open_model", "06_closed_model"):
        for row in rows(folder, chapter, "null_audit"):
            assert row["ks_p"] > 1e-3, row


def test_open_supervised(folder: Path) -> None:
    found = rows(folder, "05_open_model", "open_model")
    supervised = {row["rho"]: row["log10_p"] for row in found if row["setting"] == "supervised"}
    assert {row["method"] for row in found if row["setting"] == "supervised"} == {"reading"}
    assert supervised[0.05] <= -3
    assert supervised[0.1] <= -10
    ordered = [supervised[rho] for rho in sorted(supervised)]
    assert ordered == sorted(ordered, reverse=True), "evidence must grow with each larger share"


def test_open_unsupervised(folder: Path) -> None:
    found = rows(folder, "05_open_model", "open_model")
    assert only(found, rho=0.1, setting="unsupervised", method="reading") <= -5
    assert only(found, rho=0.5, setting="unsupervised", method="reading") <= -10


def test_contrastive_reading(folder: Path) -> None:
    needs_contrast(folder)
    found = rows(folder, "05_open_model", "open_model")
    assert only(found, rho=0.1, setting="unsupervised", method="contrastive") <= -10
    assert only(found, rho=0.05, setting="unsupervised", method="contrastive") <= -5
    for row in rows(folder, "05_open_model", "contrast"):
        if row["log10_chernoff"] is not None:  # three routes to one number
            assert row["log10_p"] <= row["log10_chernoff"] + 1e-9
            assert abs(row["log10_saddlepoint"] - row["log10_p"]) < 0.02 * max(1.0, -row["log10_p"])


def test_contrastive_reading_hears_more_than_hard_reading_of_the_same_text(folder: Path) -> None:
    needs_contrast(folder)
    found = rows(folder, "05_open_model", "contrast")
    z = {(row["rho"], row["reference"]): row["z"] for row in found}
    for rho in (0.05, 0.1):
        hard = z[rho, "none"]
        assert z[rho, "base"] > hard
        assert z[rho, "base and twin"] > 1.7 * hard


def test_a_watched_test_convicts_the_guilty_early_and_the_innocent_never(folder: Path) -> None:
    needs_contrast(folder)
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


def test_membership(folder: Path) -> None:
    found = {row["d"]: row["log10_p"] for row in rows(folder, "04_membership", "membership")}
    assert found[1.0] <= -10
    assert found[0.2] <= -5
    assert found[0.0] > -2
    strong = [found[d] for d in sorted(found, reverse=True) if d >= 0.1]
    assert strong == sorted(strong), "evidence must weaken as d falls"


def test_watermarked_text_is_detected_and_plain_text_is_not(folder: Path) -> None:
    for row in rows(folder, "01_watermarking", "detection") + rows(folder, "03_data_and_models", "detection"):
        assert row["log10_p"] < -20 if row["watermarked"] else row["log10_p"] > INNOCENT, row
