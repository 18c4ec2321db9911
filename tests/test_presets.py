"""The presets: all of them hold, and what is wrong in one is named."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from radio_utils import GreenList, GumbelMax, decoding, presets
from radio_utils.presets import Adapter, PresetError, load_preset
from radio_utils.world import pretrained


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_valid(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name and preset.description
    assert preset.memory_estimate_gb() <= preset.memory_gb
    rhos = list(preset.mixtures.rhos)
    assert rhos == sorted(set(rhos)) and rhos[0] == 0.0 and rhos[-1] == 1.0
    assert {0.0, 1.0} <= set(preset.membership.degrees)
    smallest = min(rho for rho in rhos if rho > 0)
    assert round(smallest * preset.mixtures.size) >= 1, "the innocent Bob is read on the smallest mixture's texts"
    assert preset.self_instruct.max_new_tokens > 0


def test_the_six_tiers_are_there() -> None:
    assert set(presets.names()) == {"smoke", "laptop", "pocket", "gpu", "colab", "paper"}
    assert load_preset("laptop").device == load_preset("smoke").device == "cpu"
    assert load_preset("gpu").watermark.window == 2


def test_colab_fits_a_free_t4_with_open_models() -> None:
    preset = load_preset("colab")
    assert preset.memory_gb <= 14 and preset.devices == 1 and preset.device == "cuda"
    # 1.71e9 parameters at 2 bytes, against 0.362e9 at 16, and a quarter for activations
    assert preset.memory_estimate_gb() == pytest.approx(1.25 * max(1.71e9 * 2, 0.362e9 * 16) / 1e9)
    assert preset.alice.hub != preset.base.hub
    for model in (preset.alice, preset.base):
        assert model.hub and "/" in model.hub and "llama" not in model.hub.lower()  # ungated
        assert model.hub.startswith("HuggingFaceTB/SmolLM2-")  # one tokenizer


def test_pocket_is_the_papers_window_on_a_real_model_within_8_gib() -> None:
    preset = load_preset("pocket")
    assert preset.alice.hub == preset.base.hub == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert pretrained.in_wheel(preset.alice.hub), "where no hub is reached"
    paper = load_preset("paper").watermark
    assert (preset.watermark.window, preset.watermark.gamma, preset.watermark.delta) == (2, paper.gamma, paper.delta)
    assert (preset.device, len(preset.mixtures.rhos), preset.memory_gb) == ("cpu", 6, 8)
    # Two trainings side by side: weights, gradients and Adam's moments, and of each token some 17 numbers of each layer's
    # width, kept for the way back, and the logits three times. A text has at most an instruction, an answer and a template.
    parameters, tuning = preset.base.parameters, preset.fine_tuning
    tokens = tuning.batch_size * (48 + preset.self_instruct.max_new_tokens + 40)
    assert parameters and 48 + preset.self_instruct.max_new_tokens + 40 <= tuning.max_length, "no answer is cut"
    assert 2 * (16 * parameters + 4 * tokens * (17 * 30 * 576 + 3 * 49_152)) < 8e9
    models = len(("Bob", "base", "twin"))
    assert models * 4 * (parameters + preset.reading.batch_size * tuning.max_length * 49_152) < 8e9


def test_paper_names_the_papers_models() -> None:
    preset = load_preset("paper")
    assert preset.alice.hub == "meta-llama/Llama-2-7b-chat-hf" and preset.base.hub == "huggyllama/llama-7b"
    assert preset.mixtures.size == 100_000
    with pytest.raises(PresetError, match="memory_gb=80; take smaller models or more devices"):
        load_preset("paper", devices=1)


def test_unknown_names() -> None:
    with pytest.raises(PresetError, match=r"unknown preset 'laptpo'; choose one of .*laptop"):
        load_preset("laptpo")


@pytest.mark.parametrize(
    "field",
    ["minuts", "corpus__package", "alice__build__wdth", "suspect__sampling__top_q", "brand__new__section", "minutes__a__b",
     "mixtures__rhos__0"],
)  # fmt: skip
def test_unknown_fields_at_every_depth(field: str) -> None:
    with pytest.raises(PresetError, match="unknown field") as caught:
        load_preset("smoke", **{field: 3})
    assert field.split("__")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("minutes", 0), ("minutes", math.inf), ("minutes", math.nan), ("device", "tpu"), ("memory_gb", -1),
        ("mixtures__rhos", [0.0, 1.2]), ("mixtures__rhos", [-0.1]), ("mixtures__rhos", []), ("mixtures__rhos", [math.nan]),
        ("mixtures__size", 0), ("mixtures__size", 2.5), ("membership__degrees", [2.0]), ("watermark__gamma", 1.0),
        ("watermark__gamma", 0.0), ("watermark__delta", -1.0), ("watermark__delta", math.nan), ("watermark__window", 0),
        ("watermark__scheme", "redlist"), ("tokenizer__vocab_size", 100), ("self_instruct__sampling__temperature", -1.0),
        ("self_instruct__sampling__top_p", 0.0), ("fine_tuning__learning_rate", math.inf), ("audit_keys", 4),
        ("alice__build__architecture", "rnn"), ("alice__build__heads", 5), ("alice__build__key_value_heads", 3),
        ("corpus__packages", []), ("reading__texts", "many"), ("seedling", None),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(field: str, value: Any) -> None:
    with pytest.raises(PresetError) as caught:
        load_preset("smoke", **{field: value})
    message = str(caught.value)
    assert message.startswith("presets: smoke.") and field.split("__")[1 if "__" in field else 0] in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"mixtures__size": 61}, r"mixtures\.size=61 exceeds self_instruct\.pairs=60"),
        ({"membership__candidates": 41}, r"exceeds self_instruct\.unused"),
        ({"membership__candidates": 30, "mixtures__size": 20}, r"membership\.candidates exceeds mixtures\.size"),
        ({"membership__fresh": 61}, r"membership\.fresh exceeds"),
    ],
)
def test_more_data_than_there_is(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(PresetError, match=match) as caught:
        load_preset("smoke", **changes)
    assert len(str(caught.value)) < 200  # and not the whole preset


BUILD = {"architecture": "llama", "width": 8, "layers": 1, "heads": 1, "key_value_heads": 1}
PRETRAINING = {"tokens": 10, "learning_rate": 0.1, "batch_size": 1, "length": 8}


@pytest.mark.parametrize(
    "model",
    [
        {"hub": "a/b", "parameters": 1e6, "build": BUILD, "pretraining": PRETRAINING},
        {"hub": "a/b", "parameters": 1e6, "build": BUILD},
        {"hub": "a/b", "parameters": 1e6, "pretraining": PRETRAINING},
        {"build": BUILD},
        {"pretraining": PRETRAINING},
        {},
    ],
)
def test_a_model_has_one_source(model: dict[str, Any]) -> None:
    with pytest.raises(PresetError, match="give either build with pretraining, or hub"):
        load_preset("smoke", alice=model)


def test_hub_models_come_together_and_are_weighed() -> None:
    hub = {"hub": "a/b", "parameters": 1e6}
    assert load_preset("smoke", alice=hub, base=hub).base.hub == "a/b"
    with pytest.raises(PresetError, match="share one tokenizer"):
        load_preset("smoke", alice=hub)
    with pytest.raises(PresetError, match="share one tokenizer"):
        load_preset("smoke", base=hub)
    with pytest.raises(PresetError, match="needs parameters"):
        load_preset("smoke", alice={"hub": "a/b"}, base=hub)
    with pytest.raises(PresetError, match=r"need about 20\.0 GB a device, .*memory_gb=4"):
        load_preset("smoke", alice=hub, base=hub | {"parameters": 1e9})
    with pytest.raises(PresetError, match=r"need about 10\.0 GB"):
        load_preset("smoke", alice=hub, base=hub | {"parameters": 1e9}, devices=2)


def test_extends_merges_branch_by_branch() -> None:
    laptop, smoke, gpu = (load_preset(name) for name in ("laptop", "smoke", "gpu"))
    assert smoke.mixtures.rhos == laptop.mixtures.rhos and smoke.mixtures.size != laptop.mixtures.size
    assert smoke.watermark == laptop.watermark
    assert gpu.watermark.window == 2 and gpu.watermark.gamma == laptop.watermark.gamma
    colab = load_preset("colab")  # a grandchild, whose models replace the built ones whole
    assert colab.alice.build is None and colab.watermark == gpu.watermark
    assert presets._merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}}) == {"a": {"b": 9, "c": 2}, "d": 3}
    assert presets._merged({"alice": {"build": 1}}, {"alice": {"hub": 2}}) == {"alice": {"hub": 2}}


def test_changes_touch_nothing_else() -> None:
    changed = load_preset("smoke", fine_tuning__epochs=1.5, watermark__scheme="gumbel max")
    assert changed.fine_tuning.epochs == 1.5
    assert load_preset("smoke").fine_tuning.epochs != 1.5
    untouched = changed.model_dump(exclude={"fine_tuning", "watermark"})
    assert untouched == load_preset("smoke").model_dump(exclude={"fine_tuning", "watermark"})
    with pytest.raises(Exception, match="frozen"):
        changed.minutes = 3  # type: ignore[misc]


def test_sections_make_what_they_describe() -> None:
    preset = load_preset("smoke")
    wm = preset.watermark.make("key", 500)
    assert isinstance(wm, GreenList) and (wm.vocab_size, wm.window, wm.gamma, wm.delta) == (500, 1, 0.25, 3.0)
    other = load_preset("smoke", watermark__scheme="gumbel max", watermark__window=3).watermark.make("key", 500)
    assert isinstance(other, GumbelMax) and other.window == 3
    assert preset.suspect.sampling.make() == decoding.Sampling(0.7, 0, 1.0)


@pytest.mark.parametrize(("name", "stored"), [("green list", "greenlist"), ("gumbel max", "gumbelmax")])
def test_a_scheme_has_one_name_and_records_keep_the_stored_one(name: str, stored: str) -> None:
    """The hashes of committed records are over dumps with the stored name."""
    preset, same = (load_preset("smoke", watermark__scheme=one) for one in (name, stored))
    assert preset == same and preset.watermark.scheme == name == preset.watermark.make("key", 500).scheme
    assert (
        preset.model_dump()["watermark"]["scheme"] == json.loads(preset.model_dump_json())["watermark"]["scheme"] == stored
    )


def test_changed_is_load_preset_again() -> None:
    preset = load_preset("smoke", fine_tuning__epochs=1.5)
    assert preset.changed() == preset
    changed = preset.changed(watermark__window=2, shards=3, compile=True)
    assert (changed.name, changed.watermark.window, changed.shards, changed.compile) == ("smoke", 2, 3, True)
    assert changed.fine_tuning.epochs == 1.5, "earlier changes stay"
    assert changed.changed(watermark__window=1, shards=1, compile=False) == preset
    assert (preset.watermark.window, preset.shards, preset.compile) == (1, 1, False)
    with pytest.raises(PresetError, match=r"presets: smoke\.fine_tuning\.epoch: unknown field"):
        preset.changed(fine_tuning__epoch=3)
    with pytest.raises(PresetError, match=r"presets: smoke\.shards: .*greater than 0"):
        preset.changed(shards=0)
    with pytest.raises(PresetError, match=r"mixtures\.size=61 exceeds"):
        preset.changed(mixtures__size=61)


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_survives_a_change_that_is_none(name: str) -> None:
    preset = load_preset(name)
    assert preset.changed() == preset
    assert preset.changed(minutes=preset.minutes + 1) != preset


def test_an_adapter_is_given_whole_and_taken_away() -> None:
    preset = load_preset("smoke")
    assert preset.fine_tuning.adapter is None and not preset.fine_tuning.checkpoints
    adapter = Adapter(rank=4, alpha=8)
    assert (adapter.targets, adapter.quantised) == (("all-linear",), False)
    for given in (adapter, {"rank": 4, "alpha": 8}, adapter.model_dump()):
        assert preset.changed(fine_tuning__adapter=given).fine_tuning.adapter == adapter
    adapted = preset.changed(fine_tuning__adapter=adapter)
    higher = adapted.changed(fine_tuning__adapter__rank=16)
    assert higher.fine_tuning.adapter == Adapter(rank=16, alpha=8)
    assert adapted.changed(fine_tuning__adapter=None) == preset
    with pytest.raises(PresetError, match=r"fine_tuning\.adapter\.alpha: Field required"):
        preset.changed(fine_tuning__adapter__rank=4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0), ("rank", 1.5), ("alpha", -1), ("targets", []), ("targets", "q_proj"), ("quantised", "perhaps"),
        ("dropout", 0.1),
    ],
)  # fmt: skip
def test_adapters_out_of_range_are_named(field: str, value: Any) -> None:
    with pytest.raises(PresetError, match=rf"^presets: smoke\.fine_tuning\.adapter\.{field}: "):
        load_preset("smoke", fine_tuning__adapter={"rank": 4, "alpha": 8} | {field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ablations__size", 0), ("ablations__runs", 0), ("ablations__learning_rates", [1e-3]), ("ablations__windows", [1]),
        ("ablations__deltas", []), ("ablations__deltas", [0.0]), ("ablations__gammas", [1.0]), ("ablations__rival", [0.5]),
        ("ablations__rival__gamma", 1.5), ("ablations__languages", []), ("ablations__languages", ["pt"]),
        ("ablations__adapters", [{"rank": 8}]), ("ablations__models", [{}]), ("ablations__continuations", 0),
        ("limits__rho", 1.5), ("limits__epochs", 1), ("limits__shares", []), ("limits__shares", [2.0]),
        ("limits__keys", [0]), ("limits__temperatures", [0.0]), ("limits__repeats", 0), ("compile", "perhaps"),
        ("shards", 1.5),
    ],
)  # fmt: skip
def test_settings_of_the_last_chapters_are_checked(field: str, value: Any) -> None:
    with pytest.raises(PresetError, match=rf"^presets: smoke\.{field.replace('__', '[.]')}"):
        load_preset("smoke", **{field: value})


@pytest.mark.parametrize("name", presets.names())
def test_the_last_chapters_fit_each_preset(name: str) -> None:
    preset = load_preset(name)
    ablations, limits = preset.ablations, preset.limits
    assert ablations.texts <= ablations.size, "supervised tests read what Bob was trained on"
    assert ablations.longest >= ablations.epochs
    assert list(ablations.learning_rates) == sorted(set(ablations.learning_rates))
    assert preset.watermark.gamma not in ablations.gammas and preset.watermark.delta not in ablations.deltas
    assert all(preset.mixtures.size // count >= 10 for count in limits.keys), "each key has a part of the data"
    assert all(0 < share <= 1 for share in limits.shares) and limits.rho > 0
    for model in ablations.models:
        assert (model.hub is None) == (preset.base.hub is None), "it must share the tokenizer"
        assert preset.changed(base=model.model_dump(exclude_none=True)).base == model
