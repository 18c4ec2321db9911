"""What a chapter records: checked tables, strict JSON, no key."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from radio_utils import chapter as chapter_module
from radio_utils.chapter import COLUMNS, Chapter, least_and_most, of_seeds, percent, power_of_ten
from radio_utils.presets import PresetError, load_preset


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RADIO_UTILS_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("RADIO_UTILS_RESULTS", str(tmp_path / "results"))
    return tmp_path


def smoke(**changes: Any) -> Chapter:
    return Chapter("04_open_model", preset="smoke", **changes)


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not strict JSON")


def test_the_record_has_every_key_and_is_strict_json(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(chapter_module, "time", SimpleNamespace(**vars(time) | {"monotonic": lambda: now}))
    chapter = smoke(seed=3)
    chapter.add("membership", method="zlib", d=np.float64(0.5), statistic=math.nan, log10_p=np.float32(-2.5))
    chapter.add("membership", method="zlib", d=0.0, statistic=math.inf, log10_p=-math.inf)
    chapter.add("detection", scheme="greenlist", k=np.int64(1), watermarked=np.bool_(True), scored=7, log10_p=-400.25)
    now += 61.26
    path = chapter.record()
    assert path == folders / "results" / "smoke" / "04_open_model.json"
    record = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
    wanted = {"chapter", "preset", "seed", "config_hash", "versions", "hardware", "seconds", "tables"}
    assert wanted <= set(record)
    assert (record["chapter"], record["preset"], record["seed"]) == ("04_open_model", "smoke", 3)
    assert record["config_hash"] == chapter.config_hash()
    assert {"python", "torch", "transformers", "numpy"} <= set(record["versions"])
    assert {"machine", "cores", "gpu"} <= set(record["hardware"])
    assert record["seconds"] == 61.3
    assert record["tables"]["membership"] == [
        {"method": "zlib", "d": 0.5, "statistic": None, "log10_p": -2.5},
        {"method": "zlib", "d": 0.0, "statistic": None, "log10_p": None},
    ]
    row = record["tables"]["detection"][0]
    assert row == {"scheme": "greenlist", "k": 1, "watermarked": True, "scored": 7, "log10_p": -400.25}
    assert row["watermarked"] is True and isinstance(row["k"], int)
    assert json.loads(chapter.record().read_text()) == record  # recording again is fine


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("detection", "scheme k watermarked scored log10_p"),
        ("membership", "method d statistic log10_p"),
        ("open_model", "rho setting method scored score log10_p"),
        ("closed_model", "rho setting filtered scored score log10_p"),
        ("null_audit", "test keys ks_p min_log10_p"),
        ("quality", "rho task metric value stderr"),
    ],
)
def test_the_public_tables_have_their_columns(table: str, columns: str) -> None:
    assert COLUMNS[table] == tuple(columns.split())


def test_rows_are_checked() -> None:
    chapter = smoke()
    with pytest.raises(ValueError, match="unknown table 'open_modle'; choose one of"):
        chapter.add("open_modle", rho=0.1)
    good = dict.fromkeys(COLUMNS["null_audit"], 1)
    for bad in (good | {"p": 1}, {k: v for k, v in good.items() if k != "ks_p"}, {}):
        with pytest.raises(ValueError, match="a row of 'null_audit' has the columns"):
            chapter.add("null_audit", **bad)
    for value in (np.zeros(2), [1], object(), 1 + 2j):
        with pytest.raises(TypeError, match="a table holds numbers"):
            chapter.add("null_audit", **(good | {"ks_p": value}))
    assert not chapter.tables.get("null_audit")


def test_a_row_takes_from_a_result_what_is_not_named() -> None:
    chapter = smoke()
    audit = SimpleNamespace(keys=9, ks_p=0.5, min_log10_p=-1.5, test="not this", unused=1)
    chapter.add("null_audit", audit, test="a name")
    assert list(chapter.tables["null_audit"][0].items()) == [
        ("test", "a name"), ("keys", 9), ("ks_p", 0.5), ("min_log10_p", -1.5),
    ]  # fmt: skip
    for wrong in ({"keys": 3}, {"test": "t", "colour": "blue"}):  # a column is missing, one too many
        with pytest.raises(ValueError, match="a row of 'null_audit' has the columns"):
            chapter.add("null_audit", SimpleNamespace(ks_p=0.5, min_log10_p=-1.5), **wrong)


def test_other_seeds_are_those_of_the_same_sizes(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chapter_module, "_RECORDS", folders)
    for folder, seed, changes in (("seed-0", 0, {}), ("seed-1", 1, {}), ("seed-2", 2, {"audit_keys": 99})):
        monkeypatch.setenv("RADIO_UTILS_RESULTS", str(folders / folder))
        run = smoke(seed=seed, **changes)
        run.add("null_audit", test="a", keys=9, ks_p=seed / 10, min_log10_p=-1.0)
        run.record()
    assert [row["ks_p"] for (row,) in run.other_seeds("null_audit")] == []
    run = smoke(seed=0)
    run.add("null_audit", test="a", keys=9, ks_p=0.7, min_log10_p=-1.0)  # this run's, whatever seed-0 says
    assert run.across_seeds("null_audit", "ks_p", test="a") == [0.7, 0.1]
    assert run.other_seeds("detection") == []
    assert of_seeds(p > 0.5 for p in run.across_seeds("null_audit", "ks_p", test="a")) == "in 1 of 2 seeds"
    assert least_and_most([0.7, 0.1]) == "0.10 to 0.70" and least_and_most([0.1]) == "0.10"


def test_seeds_are_compared_by_their_means(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chapter_module, "_RECORDS", folders)

    def run_of(seed: int, short: float, long: float) -> Chapter:
        run = smoke(seed=seed)
        for k, mean in ((1, short), (4, long)):
            for log10_p in (mean - 1, mean + 1):
                run.add("window", scheme="green list", k=k, log10_p_text=-10.0, log10_p=log10_p)
        return run

    for seed, short in ((0, 5.0), (1, -5.0), (2, -3.0)):
        monkeypatch.setenv("RADIO_UTILS_RESULTS", str(folders / f"seed-{seed}"))
        run_of(seed, short, -4.0).record()
    run = run_of(0, -8.0, -2.0)  # in place of seed-0's record
    assert run.lower("window", "log10_p", {"k": 1}, {"k": 4}, scheme="green list") == "in 2 of 3 seeds"
    assert run.lower("window", "log10_p", {"k": 1}, {"k": 2}) == "in 0 of 0 seeds"  # no seed has k = 2
    assert [[row["log10_p"] for row in rows] for rows in run.all_seeds("window", k=1)] == [[-9, -7], [-6, -4], [-4, -2]]
    assert run.means("window", ["log10_p"], by=["k"]) == [{"k": 1, "log10_p": -8.0}, {"k": 4, "log10_p": -2.0}]
    assert run.mean("window", "log10_p", k=4) == -2.0 and len(run.rows("window", scheme="green list", k=4)) == 2


def test_a_run_stands_beside_those_on_a_real_model(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chapter_module, "_RECORDS", folders)
    run = smoke()
    said: list[str] = []
    monkeypatch.setattr(Chapter, "say", lambda _, text: said.append(text))
    for rho, p in ((0.0, -0.5), (0.1, -9.0)):
        run.add("open_model", rho=rho, setting="supervised", method="reading", scored=5, score=0.3, log10_p=p)
    alone = run.on_real_model("open_model", by=["rho"])
    assert said == ["On a real model (the tier `pocket`): not yet run."] and list(alone.data["log10 p, smoke"]) == [
        -0.5,
        -9.0,
    ]
    drawn = run.beside_real_model("open_model", series="setting", labels={"supervised": "supervised"})
    assert len(said) == 1 and drawn.axes[1].texts[0].get_text() == "not yet run", "one output: the page names the figure"
    rows = [{"rho": rho, "setting": "supervised", "log10_p": p} for rho, p in ((0.1, -30.0), (1.0, -99.0))]
    for seed, sizes in ((0, load_preset("pocket")), (1, load_preset("pocket", audit_keys=99))):
        record = {"seed": seed, "config_hash": chapter_module.config_hash(sizes, seed), "tables": {"open_model": rows}}
        place = folders / f"seed-{seed}" / "pocket" / f"{run.name}.json"
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps(record))
    both = run.on_real_model("open_model", by=["rho"]).data
    assert len(said) == 1 and list(both.columns[1:]) == ["log10 p, smoke", "log10 p, pocket, seed 0"], (
        "other sizes are none"
    )
    assert both.iloc[:, 1].fillna(0).tolist() == [-0.5, -9.0, 0.0] and both.iloc[:, 2].fillna(0).tolist() == [
        0.0,
        -30.0,
        -99.0,
    ]
    assert [row["log10_p"] for row in run.real("open_model", rho=1.0)] == [-99.0]
    assert run.real_seeds("open_model", rho=1.0) == [run.real("open_model", rho=1.0)] and run.real_seeds("contrast") == []
    drawn = run.beside_real_model("open_model", series="setting", labels={"supervised": "supervised", "plain": "plain"})
    assert [ax.get_title() for ax in drawn.axes] == ["this run (smoke)", "SmolLM2-135M-Instruct (pocket)"]
    assert len({ax.get_ylim() for ax in drawn.axes}) == 1 and drawn.axes[1].get_ylim()[0] < -99
    with pytest.raises(ValueError, match=r"by=\['setting'\] names several rows of 'open_model'"):
        run.on_real_model("open_model", by=["setting"])
    assert run.on_real_model("open_model", by=["setting"], mean=True).data.iloc[0, 1:].tolist() == [-4.75, -64.5]


def test_value_needs_exactly_one_row() -> None:
    chapter = smoke()
    for rho in (0.0, 0.1, 0.1 + 0.2):
        for setting in ("supervised", "unsupervised"):
            chapter.add("open_model", rho=rho, setting=setting, method="reading", scored=5, score=0.3, log10_p=-10 * rho)
    assert chapter.value("open_model", "log10_p", rho=0.3, setting="supervised") == pytest.approx(-3)
    assert chapter.value("open_model", "log10_p", rho=0, setting="supervised") == 0
    for where, count in (({"rho": 0.1}, 2), ({"rho": 0.2}, 0), ({}, 6)):
        with pytest.raises(LookupError, match=f"{count} rows of 'open_model'"):
            chapter.value("open_model", "log10_p", **where)
    with pytest.raises(LookupError):
        chapter.value("closed_model", "log10_p", rho=0.1)
    with pytest.raises(LookupError):
        chapter.value("open_model", "log10_p", colour="blue")


def test_the_mean_of_runs_needs_a_row() -> None:
    chapter = smoke()
    for p in (-2.0, -4.0):
        chapter.add("window", scheme="green list", k=1, log10_p_text=-15.0, log10_p=p)
    assert chapter.mean("window", "log10_p", k=1) == -3.0
    with pytest.raises(LookupError, match="no row of 'window'"):
        chapter.mean("window", "log10_p", k=2)


def test_the_key_comes_from_the_environment_and_stays_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError, match=r"ALICES_KEY.*not set"):
        smoke(key_env="ALICES_KEY")
    monkeypatch.setenv("ALICES_KEY", "")
    with pytest.raises(KeyError, match="not set"):
        smoke(key_env="ALICES_KEY")
    monkeypatch.setenv("ALICES_KEY", "very-secret-4711")
    chapter = smoke(key_env="ALICES_KEY")
    # the watermark under that key, without the tokenizer that would have to be trained
    wm, same = (chapter.preset.watermark.make(key, 500) for key in (chapter.world.key, "very-secret-4711"))
    assert wm.fingerprint == same.fingerprint
    assert smoke().preset.watermark.make(smoke().world.key, 500).fingerprint != wm.fingerprint
    chapter.add("quality", rho=0.0, task="t", metric="m", value=1.0, stderr=0.1)
    assert "very-secret-4711" not in chapter.record().read_text()
    for shown in (repr(chapter), repr(chapter.world), repr(wm), wm.fingerprint):
        assert "very-secret-4711" not in shown


def test_committed_records_are_of_the_sizes_that_the_presets_have() -> None:
    committed = sorted((Path(__file__).parents[1] / "results").glob("seed-*/*/*.json"))
    assert len(committed) >= 36
    for path in committed:
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["config_hash"] == chapter_module.config_hash(load_preset(record["preset"]), record["seed"]), path


def test_config_hash_changes_with_any_field() -> None:
    base = smoke().config_hash()
    assert base == smoke().config_hash()
    changes: list[dict[str, Any]] = [
        {"seed": 1}, {"minutes": 5}, {"watermark__delta": 2.0}, {"fine_tuning__epochs": 3}, {"mixtures__rhos": [0.0, 1.0]},
        {"alice__build__layers": 2}, {"suspect__sampling__top_p": 0.9}, {"corpus__packages": ["numpy"]}, {"audit_keys": 99},
    ]  # fmt: skip
    hashes = {smoke(**change).config_hash() for change in changes}
    assert len(hashes) == len(changes) and base not in hashes
    assert Chapter("06_closed_model", preset="smoke").config_hash() == base


def test_bad_parameters_are_named() -> None:
    with pytest.raises(PresetError, match="unknown preset 'tiny'"):
        Chapter("04_open_model", preset="tiny")
    with pytest.raises(PresetError, match="unknown field"):
        smoke(epochs=3)
    for seed in (-1, 1.5, True):
        with pytest.raises(ValueError, match="seed must be a whole number from 0 on"):
            smoke(seed=seed)


def test_a_gpu_preset_without_gpu_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.warns(UserWarning, match="meant for a GPU and none is here"):
        chapter = Chapter("04_open_model", preset="gpu")
    assert chapter.world.device == "cpu"


def test_numbers_in_prose() -> None:
    assert power_of_ten(-12.34) == "$10^{-12.3}$"
    assert power_of_ten(-3.0) == "$10^{-3.0}$"
    assert power_of_ten(-1.0) == "0.1" and power_of_ten(0.0) == "1"
    assert [percent(share) for share in (0, 0.01, 0.07, 0.5, 1)] == ["0 %", "1 %", "7 %", "50 %", "100 %"]


def test_say_and_show(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython.display

    shown: list[Any] = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    chapter = smoke()
    chapter.say("One line\n   and   another.")
    assert shown[0].data == "One line and another."
    chapter.add("null_audit", test="open", keys=1000, ks_p=0.42, min_log10_p=-3.21)
    page = chapter.show("null_audit", caption="Audit").to_html()
    assert "1,000" in page and "0.42" in page and "KS p" in page and "Audit" in page
