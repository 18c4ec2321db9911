"""A Bob of another family, at toy size: his base is a GGUF file with a tokenizer of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from worlds import small

from radio_utils.artifacts import Store
from radio_utils.strangers import TESTS, Stranger
from radio_utils.suspects import ModelFolderError, load_tokenizer
from radio_utils.suspects.exporting import write_gguf
from radio_utils.world import models, training
from radio_utils.world.world import World

pytest.importorskip("gguf")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(written_store: Path) -> World:
    return World(small(), store=Store(written_store), progress=False)


@pytest.fixture
def own(world: World, tmp_path: Path) -> World:
    """The same world with a store of its own, where models may be added."""
    shutil.copytree(world.store.root, tmp_path / "store")
    return World(world.preset, store=Store(tmp_path / "store"), progress=False)


@pytest.fixture(scope="module")
def base(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a LLaMA model with random weights, and fewer tokens than Alice has."""
    folder = tmp_path_factory.mktemp("stranger")
    models.train_tokenizer((pair.text for pair in world.pairs("plain")), 350, folder)
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) < len(world.tokenizer)
    build = world.preset.alice.build
    assert build is not None and build.architecture == "llama"
    models.new_model(build, len(tokenizer), tokenizer.eos_token_id, 5).save_pretrained(str(folder))
    return write_gguf(folder, folder / "other.gguf")


def test_he_learns_alices_answers_as_text_in_his_own_tokens(
    own: World, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[training.Example] = []

    def train(model: Any, examples: Any, *_: Any, **__: Any) -> list[float]:
        seen.extend(examples)
        return [1.0]

    monkeypatch.setattr(training, "train", train)
    his = Stranger.of(own, base, trained=True).tokenizer
    given = own.kept_by_alice(1.0)
    assert {his.decode(one.ids[one.loss_from : -1]) for one in seen} == {f" {pair.answer}" for pair in given}
    assert {his.decode(one.ids[: one.loss_from]) for one in seen} == {pair.prompt for pair in given}
    assert all(one.ids[-1] == his.eos_token_id for one in seen)


def test_every_test_is_made_before_and_after_and_training_once(own: World, base: Path, trainings: list[str]) -> None:
    for trained in (False, True, True):
        bob = Stranger.of(own, base, trained=trained)
        for test in TESTS:
            found = bob.verdict(test)
            assert found.scored > 0 and -300 < found.log10_p <= 0, test
    assert len(trainings) == 1
    with pytest.raises(ValueError, match="test must be one of 'reading, supervised'"):
        bob.verdict("reading")


def test_a_stranger_who_knows_the_texts_by_heart_is_convicted(own: World, base: Path) -> None:
    """Many epochs on few texts: what is carried over to Alice's tokens is what he learned."""
    preset = own.preset.model_copy(
        update={"fine_tuning": own.preset.fine_tuning.model_copy(update={"epochs": 60.0, "learning_rate": 5e-3})}
    )
    loud = World(preset, store=own.store, progress=False)
    heard, unheard = (Stranger.of(loud, base, trained=trained).verdict(TESTS[0]) for trained in (True, False))
    assert heard.log10_p < -3 < unheard.log10_p
    said = Stranger.of(loud, base, trained=True).verdict(TESTS[1])
    assert said.score > own.watermark.law.mean


def test_a_file_that_is_none_is_refused(own: World, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="is no GGUF file"):
        Stranger.of(own, tmp_path, trained=True)
