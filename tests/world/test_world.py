"""The world on a very small preset: everything is made once, composed exactly, and read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from radio_utils import evidence, reading
from radio_utils.artifacts import Store
from radio_utils.presets import Preset, load_preset
from radio_utils.suspects import ModelFolderError
from radio_utils.world import instructions, training
from radio_utils.world.corpus import EmptyCorpusError
from radio_utils.world.mixtures import ShareError
from radio_utils.world.world import World

SMALLER: dict[str, Any] = {
    "corpus__packages": ["networkx"], "tokenizer__vocab_size": 600, "alice__pretraining__tokens": 90_000,
    "base__pretraining__tokens": 4_000, "self_instruct__pairs": 20, "self_instruct__unused": 12, "self_instruct__fresh": 16,
    "mixtures__size": 20, "mixtures__rhos": [0.0, 0.1, 0.5, 1.0], "fine_tuning__epochs": 1.0, "suspect__max_new_tokens": 12,
    "reading__texts": 16, "querying__prompts": 10, "membership__candidates": 12, "membership__fresh": 14,
}  # fmt: skip


def small(**changes: Any) -> Preset:
    return load_preset("smoke", **(SMALLER | changes))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small models only lose time to more
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def world(store: Store) -> World:
    return World(small(), store=store, progress=False)


def again(world: World, **options: Any) -> World:
    """A new world over the same store: nothing cached in memory."""
    preset = options.pop("preset", world.preset)
    return World(preset, store=world.store, progress=False, **options)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The label of every training run; none shows a bar, so labels are the architectures."""
    runs: list[str] = []
    train = training.train

    def counted(model: Any, *args: Any, **options: Any) -> list[float]:
        runs.append(model.config.model_type)
        return train(model, *args, **options)

    monkeypatch.setattr(training, "train", counted)
    return runs


def test_the_two_halves_share_no_object(world: World) -> None:
    assert len(world.half(0)) > 50 and len(world.half(1)) > 50
    assert len(world.half(0)) + len(world.half(1)) == len(world.documents)
    assert not {pair.text for pair in world.half(0)} & {pair.text for pair in world.half(1)}


def test_models_share_the_tokenizer(world: World) -> None:
    alice, base = world.alice(), world.base()
    assert (alice.config.model_type, base.config.model_type) == ("llama", "gpt_neox")
    assert alice.config.vocab_size == base.config.vocab_size == len(world.tokenizer) == world.watermark.vocab_size == 600


def test_every_set_of_pairs_is_whole(world: World) -> None:
    counts = {"watermarked": 20, "plain": 20, "kept": 12, "fresh": 16, "outside": 14}
    sets = {which: world.pairs(which) for which in counts}  # type: ignore[arg-type]
    for which, pairs in sets.items():
        assert len(pairs) == len(set(pairs)) == counts[which]
        assert all(pair.instruction and len(pair.answer) >= 20 for pair in pairs)
    assert sets["watermarked"] != sets["plain"] != sets["kept"] != sets["outside"]
    with pytest.raises(ValueError, match="unknown set of pairs 'stale'; choose one of watermarked"):
        world.pairs("stale")  # type: ignore[arg-type]


def test_only_watermarked_sets_carry_the_watermark(world: World) -> None:
    wm, decoy = world.watermark, world.watermark.with_decoy(0, 0)

    def green(which: Any, mark: Any) -> float:
        found = evidence.collect(instructions.answer_ids(world.tokenizer, world.pairs(which)), wm.window, wm.vocab_size)
        return float(mark.scores(found.windows, found.tokens).mean())

    for which in ("watermarked", "fresh"):
        assert green(which, wm) > 0.45 > green(which, decoy)
    for which in ("plain", "kept", "outside"):
        assert green(which, wm) < 0.4


def test_mixtures_are_composed_exactly(world: World) -> None:
    marked, plain = world.pairs("watermarked"), world.pairs("plain")
    for rho, count in ((0.0, 0), (0.1, 2), (0.5, 10), (1.0, 20)):
        found = world.mixture(rho)
        assert (len(found.watermarked), len(found.plain)) == (count, 20 - count)
        assert set(found.watermarked) <= set(marked) and set(found.plain) <= set(plain)
    assert set(world.mixture(0.1).watermarked) <= set(world.mixture(0.5).watermarked)
    assert world.kept_by_alice(0.5) == world.mixture(0.5).watermarked
    # an innocent Bob is tested on what the least guilty one used
    assert world.kept_by_alice(0.0) == world.mixture(0.1).watermarked
    for rho in (-0.1, 1.5, float("nan")):
        with pytest.raises(ShareError, match="rho must be a share"):
            world.bob(rho)


def test_membership_candidates_come_from_bobs_own_plain_data(world: World) -> None:
    bobs = set(world.mixture(0.0).pairs)
    for d, used in ((1.0, 12), (0.5, 6), (0.0, 0)):
        kept = world.members_and_candidates(d)
        assert len(kept.used) == used and len(kept.pairs) == 12
        assert set(kept.used) <= bobs and set(kept.unused) <= set(world.pairs("kept"))


def test_bob_is_trained_once_and_read_afterwards(world: World, trainings: list[str]) -> None:
    losses = world.training_losses(0.5)
    assert len(losses) == 1 and all(np.isfinite(losses))
    assert trainings.count("gpt_neox") <= 2  # the base, perhaps, and Bob
    trainings.clear()
    other = again(world)
    first, second = world.bob(0.5).state_dict(), other.bob(0.5).state_dict()
    assert trainings == []
    assert all(torch.equal(first[name], second[name]) for name in first)
    base = world.base().state_dict()
    assert any(not torch.equal(first[name], base[name]) for name in base), "fine-tuning changes the base"
    assert other.training_losses(0.5) == losses


def test_answers_come_from_the_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answers = world.answers(0.5, "fresh", 10)
    assert len(asked) == len(answers) == 10
    assert all(a.ndim == 1 and a.size <= 12 and world.tokenizer.eos_token_id not in a for a in answers)
    expected = instructions.prompt_ids(world.tokenizer, world.pairs("fresh")[:10])
    assert all(np.array_equal(a, b) for a, b in zip(asked, expected, strict=True))
    monkeypatch.setattr(World, "suspect", lambda *_: pytest.fail("asked again"))
    same = again(world).answers(0.5, "fresh", 10)
    assert all(np.array_equal(a, b) for a, b in zip(answers, same[1], strict=True))


def test_supervised_prompts_are_those_bob_used_again_and_again(world: World) -> None:
    kept = instructions.prompt_ids(world.tokenizer, world.kept_by_alice(0.5))
    asked, answers = world.answers(0.5, "watermarked", 13)
    assert len(kept) == 10 and len(answers) == 13
    assert all(np.array_equal(asked[i], kept[i % 10]) for i in range(13))


def test_reading_is_read_evidence_from_the_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "supervised": world.kept_by_alice(0.5), "plain": world.pairs("outside"), "unsupervised": world.pairs("fresh")
    }  # fmt: skip
    for setting, pairs in settings.items():
        found = world.reading(0.5, setting)  # type: ignore[arg-type]
        direct = reading.read_evidence(
            world.bob(0.5), instructions.answer_ids(world.tokenizer, pairs), 1, 600,
            prompts=instructions.prompt_ids(world.tokenizer, pairs), batch_size=3,
        )  # fmt: skip
        assert np.array_equal(found.windows, direct.windows) and found.seen == direct.seen
        assert np.mean(found.tokens == direct.tokens) > 0.99  # another batch size may break a tie otherwise
    monkeypatch.setattr(World, "bob", lambda *_: pytest.fail("read again"))
    assert np.array_equal(again(world).reading(0.5, "unsupervised").tokens, found.tokens)
    with pytest.raises(ValueError, match="setting must be 'supervised', 'unsupervised' or 'plain', got 'open'"):
        world.reading(0.5, "open")  # type: ignore[arg-type]


def test_the_twin_learns_plain_text_that_bob_never_saw(world: World, trainings: list[str]) -> None:
    twin = world.twin()
    assert trainings == ["gpt_neox"]
    base, bob = world.base(), world.bob(0.0)
    for other in (base, bob):
        pairs = zip(twin.parameters(), other.parameters(), strict=True)
        assert not all(torch.equal(a, b) for a, b in pairs)
    assert not set(world.pairs("kept")) & set(world.pairs("plain"))
    trainings.clear()
    again(world).twin()
    assert trainings == []


@pytest.mark.parametrize("twin", [False, True])
def test_contrast_is_read_contrast_from_the_store(world: World, twin: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = world.contrast(0.5, twin=twin)
    pairs = world.pairs("outside")
    direct = reading.read_contrast(
        world.bob(0.5), [world.base(), world.twin()] if twin else world.base(),
        instructions.answer_ids(world.tokenizer, pairs), 1, 600, prompts=instructions.prompt_ids(world.tokenizer, pairs),
    )  # fmt: skip
    assert len(found.explained) == int(twin)
    assert len(found.pairs) == pytest.approx(len(direct.pairs), rel=0.01)
    assert found.pairs.seen == direct.pairs.seen
    monkeypatch.setattr(World, "bob", lambda *_: pytest.fail("read again"))
    assert np.array_equal(again(world).contrast(0.5, twin=twin).weights, found.weights)


def test_a_new_recipe_trains_only_bob(world: World, trainings: list[str]) -> None:
    world.bob(0.5)
    trainings.clear()
    changed = again(world, preset=small(fine_tuning__epochs=0.5))
    assert changed.training_losses(0.5) != world.training_losses(0.5)
    assert trainings == ["gpt_neox"]
    assert changed.pairs("plain") == world.pairs("plain")
    changed.bob(0.5)
    assert trainings == ["gpt_neox"]


def test_another_key_is_another_watermark_but_the_same_plain_text(world: World, trainings: list[str]) -> None:
    world.pairs("plain")
    trainings.clear()
    other = again(world, key="another key")
    assert other.watermark.fingerprint != world.watermark.fingerprint
    assert other.pairs("plain") == world.pairs("plain")
    assert other.pairs("fresh") != world.pairs("fresh")
    assert trainings == []
    text = "".join(path.read_text() for path in world.store.root.glob("*/manifest.json"))
    assert world.watermark.fingerprint in text
    assert "another key" not in text and "demonstration key" not in text


def test_seeds_name_other_models(world: World) -> None:
    assert again(world, seed=1).watermark.fingerprint != world.watermark.fingerprint
    assert again(world, seed=1)._number("alice") != world._number("alice")
    assert again(world)._number("alice") == world._number("alice")


def test_held_out_documents_are_of_alices_half(world: World) -> None:
    chosen = world.held_out(30)
    assert len(chosen) == len(set(chosen)) == 30 and set(chosen) <= set(world.half(0))
    assert chosen == again(world).held_out(30)
    sizes = [ids.size for ids in instructions.text_ids(world.tokenizer, world.demonstrations())]
    assert max(sizes) <= 70


def test_a_torn_model_is_made_again(world: World, trainings: list[str]) -> None:
    world.training_losses(1.0)
    trainings.clear()
    artifact = world._fine_tuned(1.0)
    weights = artifact / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    again(world).bob(1.0)
    assert trainings == ["gpt_neox"]


def test_an_empty_corpus_is_named(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "silent_package"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    empty = World(small(corpus__packages=["silent_package"]), store=Store(tmp_path / "store"), progress=False)
    with pytest.raises(EmptyCorpusError, match=r"corpus\.packages=.*silent_package.* holds no docstring"):
        _ = empty.documents
    assert list((tmp_path / "store").glob("corpus-*")) == [], "nothing half-made stays"
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        _ = again(world, preset=small(corpus__packages=["no_such_package"])).documents


def folder_models(world: World, folder: Path) -> tuple[Path, Path]:
    """Alice and the base as a user would have them: folders in the hub's format."""
    places = folder / "alice", folder / "base"
    for place, model in zip(places, (world.alice(), world.base()), strict=True):
        model.save_pretrained(place, safe_serialization=True)
        world.tokenizer.save_pretrained(str(place))
    return places


def hub(place: Path) -> dict[str, Any]:
    return {"hub": str(place), "parameters": 1e5}


def test_models_from_folders_stand_in_for_built_ones(world: World, tmp_path: Path, trainings: list[str]) -> None:
    alice, base = folder_models(world, tmp_path)
    trainings.clear()
    taken = World(small(alice=hub(alice), base=hub(base)), store=world.store, progress=False)
    assert len(taken.tokenizer) == 600
    assert taken.pairs("plain") == world.pairs("plain"), "the same weights and the same chance write the same"
    assert taken.training_losses(0.5) == pytest.approx(world.training_losses(0.5))
    assert trainings == ["gpt_neox"]

    shutil.copytree(base, tmp_path / "other")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 600, "content": "<|more|>"})
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="the two tokenizers differ in 1 of 601 tokens"):
        _ = World(small(alice=hub(alice), base=hub(tmp_path / "other")), store=world.store).tokenizer
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (alice / name).unlink()
    with pytest.raises(ModelFolderError, match="holds no tokenizer"):
        _ = World(small(alice=hub(alice), base=hub(base)), store=world.store).tokenizer


def test_a_share_too_small_for_one_pair_is_refused(world: World) -> None:
    with pytest.raises(ShareError, match=r"rho=0.01 of 20 pairs holds no watermarked pair"):
        world.reading(0.01, "supervised")
    with pytest.raises(ShareError, match=r"raise rho or mixtures\.size"):
        world.answers(0.01, "watermarked", 5)


def test_the_innocents_stand_in_is_part_of_the_key(world: World) -> None:
    """Another smallest share means other texts: the innocent's evidence must be read anew."""
    other = again(world, preset=small(mixtures__rhos=[0.0, 1.0]))
    assert other.stand_in() == 1.0
    assert other.reading(0.0, "supervised").seen > world.reading(0.0, "supervised").seen


def test_bobs_trained_side_by_side_are_those_trained_alone(world: World, tmp_path: Path, trainings: list[str]) -> None:
    """Worker processes fill the same store under the same keys, also with a key of bytes, and this process trains none."""
    key = b"\x00secret"
    beside = again(world, key=key)
    beside.train_bobs([0.1, 0.5, 1.0], workers=2)
    assert trainings == []
    assert [beside.training_losses(rho)[0] for rho in (0.1, 0.5, 1.0)] and trainings == []
    alone = World(world.preset, key=key, store=Store(tmp_path), progress=False)
    assert alone.training_losses(0.5) == pytest.approx(beside.training_losses(0.5), abs=1e-4)


def test_a_failing_worker_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from radio_utils.world import workers

    monkeypatch.setattr(workers, "_request", lambda world, rhos: "{}")
    with pytest.raises(workers.WorkerError, match=r"(?s)ended with status 1.*KeyError"):
        workers.train_side_by_side(world, [0.1, 0.5], 2)
