"""The world on a very small preset: everything is made once, composed exactly, and read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from worlds import again, small

from radio_utils import detect, evidence
from radio_utils.artifacts import Artifact, Store
from radio_utils.presets import PresetError
from radio_utils.suspects import ModelFolderError
from radio_utils.world import instructions, origins, training
from radio_utils.world.adapters import AdapterError
from radio_utils.world.corpus import EmptyCorpusError
from radio_utils.world.mixtures import ShareError
from radio_utils.world.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(written_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(shutil.copytree(written_store, tmp_path_factory.mktemp("store") / "store"))


@pytest.fixture(scope="module")
def world(store: Store) -> World:
    return World(small(), store=store, progress=False)


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
        assert all(pair.instruction and pair.answer and pair.drawn for pair in pairs)
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
    assert again(world, seed=1).number("alice") != world.number("alice")
    assert again(world).number("alice") == world.number("alice")


def test_held_out_documents_are_of_alices_half(world: World) -> None:
    chosen = world.held_out(30)
    assert len(chosen) == len(set(chosen)) == 30 and set(chosen) <= set(world.half(0))
    assert chosen == again(world).held_out(30)


def test_demonstrations_are_the_short_documents_of_alices_half(world: World) -> None:
    pairs = world.half(0)
    sizes = [ids.size for ids in instructions.text_ids(world.tokenizer, pairs)]
    short = [pair for pair, size in zip(pairs, sizes, strict=True) if size <= 70]
    assert 0 < len(short) < len(pairs)
    assert world.demonstrations() == again(world).demonstrations() == short


def test_a_torn_model_is_made_again(world: World, trainings: list[str]) -> None:
    world.training_losses(1.0)
    trainings.clear()
    artifact = world.made(1.0)
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
    with pytest.raises(ShareError, match=r"rho=0.01 of 20 pairs holds no watermarked pair; raise rho or mixtures\.size"):
        world.used_by(0.01)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def same(first: Any, second: Any) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_names_of_models_in_the_store(world: World) -> None:
    """The same world asked again means the same artifact; whatever decides the weights means another."""
    found = world.made(0.5)
    assert again(world).made(0.5) == world.changed().made(0.5) == found
    assert again(world, run=0).made(0.5) == world.changed(run=0).made(0.5) == found, "run 0 is no run at all"
    assert world.changed(fine_tuning__checkpoints=False, fine_tuning__adapter=None).made(0.5) == found
    others = [
        world.changed(run=1),
        world.changed(fine_tuning__learning_rate=1e-3),
        world.changed(fine_tuning__checkpoints=True),
        world.changed(fine_tuning__adapter={"rank": 2, "alpha": 4}),
        world.changed(fine_tuning__adapter={"rank": 4, "alpha": 4}),
        world.changed(mixtures__size=19),
    ]
    assert not any(other.has(0.5) for other in others)
    keys = [other.made(0.5).key for other in others]
    assert len({*keys, found.key}) == len(others) + 1
    assert all(other.has(0.5) for other in others)
    assert all(other.written("watermarked") == world.written("watermarked") for other in others), "Alice writes once"


def test_another_run_draws_bobs_data_and_order_anew_from_the_same_text(world: World) -> None:
    other = world.changed(run=1)
    assert (other.seed, other.run, other.key, other.store, other.device) == (0, 1, world.key, world.store, world.device)
    assert other.pairs("watermarked") == world.pairs("watermarked")
    assert set(other.mixture(0.5).watermarked) != set(world.mixture(0.5).watermarked)
    assert other.alices(5) != world.alices(5)
    assert not same(other.bob(0.5), world.bob(0.5))
    assert set(other.mixture(1.0).pairs) == set(world.mixture(1.0).pairs), "all of it, whatever the run"
    assert not same(other.bob(1.0), world.bob(1.0)), "but in another order"
    assert other.changed().run == 1 and other.changed(run=0).run == 0


def test_changed_keeps_what_it_is_not_asked_to_change(world: World) -> None:
    other = world.changed(key=b"other", watermark__delta=1.0)
    assert (other.key, other.preset.watermark.delta, other.preset.watermark.window) == (b"other", 1.0, 1)
    assert world.preset.watermark.delta == 3.0
    assert other.preset.model_dump(exclude={"watermark"}) == world.preset.model_dump(exclude={"watermark"})
    with pytest.raises(PresetError, match="unknown field"):
        world.changed(watermark__sigma=1.0)


def test_a_model_is_there_once_it_is_made(world: World, trainings: list[str]) -> None:
    assert not world.has("redrawn/0.3")
    assert trainings == [], "asking does not train it"
    world.made("redrawn/0.3")
    assert again(world).has("redrawn/0.3") and not again(world).has("redrawn/0.4")
    assert trainings == ["gpt_neox"]


def test_texts_and_pretrained_models_have_names_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for which in ("watermarked", "plain", "kept", "fresh", "outside"):
        assert world.has(f"pairs/{which}") and world.made(f"pairs/{which}") == world.written(which)  # type: ignore[arg-type]
    for name in ("alice", "base"):
        assert world.has(name) and [world.made(name)] == world.model_inputs(name)
    other = again(world, key="a third key")
    with monkeypatch.context() as without:
        without.setattr(instructions, "self_instruct", lambda *args, **options: pytest.fail("asking does not write"))
        assert other.has("pairs/plain") and not other.has("pairs/fresh")
        assert not again(world, seed=3).has("base")
    other.made("pairs/fresh")
    assert other.has("pairs/fresh") and not other.has("pairs/watermarked")
    with pytest.raises(ValueError, match="unknown set of pairs 'stale'"):
        world.has("pairs/stale")


@pytest.mark.parametrize(
    "which", ["twins", "0.5", "pairs/", "purified", "purified/", "purified/half", "keys/0", "keys/two"]
)
def test_unknown_models_are_named(world: World, which: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown model '{which}'; give a share, 'twin', 'purified/SHARE'"):
        world.bob(which)


@pytest.mark.parametrize("which", ["purified/1.5", "redrawn/-0.1", "purified/nan"])
def test_shares_in_names_are_checked(world: World, which: str) -> None:
    with pytest.raises(ShareError, match="must be a share"):
        world.made(which)


def test_checkpoints_are_the_model_after_each_epoch(world: World) -> None:
    kept = world.changed(fine_tuning__epochs=2.5, fine_tuning__checkpoints=True)
    epochs = [kept.bob(0.5, epoch=epoch) for epoch in (1, 2, 3)]
    assert not same(epochs[0], epochs[1]) and not same(epochs[1], epochs[2])
    assert same(epochs[2], kept.bob(0.5)), "the last one is the model itself"
    assert len(kept.training_losses(0.5)) == 3
    without = world.changed(fine_tuning__epochs=2.5)
    assert same(without.bob(0.5), epochs[2]), "looking does not change the training"
    for epoch in (0, 4, -1):
        with pytest.raises(ValueError, match=rf"epoch={epoch} was not kept; set fine_tuning\.checkpoints"):
            kept.bob(0.5, epoch=epoch)
    with pytest.raises(ValueError, match="epoch=1 was not kept"):
        without.bob(0.5, epoch=1)


def test_purification_goes_on_from_bobs_weights(world: World) -> None:
    stronger = world.changed(fine_tuning__epochs=3.0, limits__epochs=2)
    losses = stronger.training_losses("purified/0.5")
    assert len(losses) == 2
    from_base = stronger.changed(fine_tuning__epochs=2.0).training_losses("twin")  # the same clean pairs, from his base
    assert losses[0] < from_base[0]
    assert stronger.data("purified/0.5") == stronger.data("twin") == stronger.pairs("kept")[:20]
    epochs = [stronger.bob("purified/0.5", epoch=epoch) for epoch in (1, 2)]
    assert not same(*epochs) and same(epochs[1], stronger.bob("purified/0.5"))
    assert not same(epochs[0], stronger.bob(0.5))
    assert stronger.used_by("purified/0.5") == stronger.used_by(0.5)
    more = stronger.changed(limits__epochs=3)
    assert not more.has("purified/0.5") and more.made(0.5) == stronger.made(0.5)


def test_purification_starts_from_exactly_those_weights(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[Any] = []

    def untrained(model: Any, *args: Any, **options: Any) -> list[float]:
        starts.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return [0.0]

    bob = weights(world.bob(1.0))
    monkeypatch.setattr(training, "train", untrained)
    world.made("purified/1.0")
    assert len(starts) == 1 and all(torch.equal(starts[0][name], bob[name]) for name in bob)


def test_mixed_keys_have_equal_parts_of_the_data(world: World) -> None:
    worlds = world.with_keys(2)
    assert worlds[0] is world
    data = world.data("keys/2")
    assert len(data) == len(set(data)) == 20
    assert data[:10] == list(worlds[0].used_by("keys/2")) and data[10:] == list(worlds[1].used_by("keys/2"))
    assert set(data[:10]) <= set(world.pairs("watermarked")) and set(data[10:]) <= set(worlds[1].pairs("watermarked"))
    for part, owner, other in ((data[:10], *worlds), (data[10:], *reversed(worlds))):
        texts = instructions.answer_ids(world.tokenizer, part)
        own, others = detect(texts, owner.watermark), detect(texts, other.watermark)
        assert own.log10_p < -5 < others.log10_p
    assert world.data("keys/1") == world.alices(20) and set(world.data("keys/1")) == set(world.pairs("watermarked"))
    assert again(world).data("keys/2") == data
    assert not same(world.bob("keys/2"), world.bob("keys/1"))


def test_further_keys_follow_from_the_first(world: World) -> None:
    found = [other.watermark.fingerprint for other in world.with_keys(4)]
    assert len(set(found)) == 4 and found[0] == world.watermark.fingerprint
    assert [other.watermark.fingerprint for other in again(world).with_keys(4)] == found
    assert [other.watermark.fingerprint for other in world.with_keys(2)] == found[:2]
    theirs = [other.watermark.fingerprint for other in again(world, key="another").with_keys(4)]
    assert not set(found) & set(theirs)
    assert [other.preset for other in world.with_keys(2)] == [world.preset] * 2
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        world.with_keys(0)


def test_bob_may_redraw_what_he_trains_on(world: World) -> None:
    for share in (0.0, 0.5):
        name = f"redrawn/{share}"
        given, used = world.used_by(name), world.data(name)
        assert [pair.instruction for pair in given] == [pair.instruction for pair in used]
        assert (list(given) == used) == (share == 0.0)
        assert set(given) <= set(world.pairs("watermarked")), "Alice tests what she wrote"
    marked, plain = (detect(instructions.answer_ids(world.tokenizer, world.data(f"redrawn/{s}")), world.watermark)
                     for s in (0.0, 0.9))  # fmt: skip
    assert marked.score > plain.score + 0.1
    assert world.data("redrawn/0.5") != world.changed(run=1).data("redrawn/0.5")


def test_an_adapted_bob_is_saved_whole(world: World) -> None:
    adapted = world.changed(fine_tuning__adapter={"rank": 4, "alpha": 8}, fine_tuning__learning_rate=0.05)
    base, bob = weights(world.base()), weights(adapted.bob(1.0))
    assert base.keys() == bob.keys()
    changed = {name for name in base if not torch.equal(base[name], bob[name])}
    assert changed and all(name.endswith(".weight") and base[name].ndim == 2 for name in changed)
    assert not any("embed" in name for name in changed)
    assert adapted.suspect(1.0).answer(instructions.prompt_ids(world.tokenizer, world.pairs("fresh")[:2]))


def test_written_in_shards(world: World) -> None:
    """Whole sets, without repetition, from shards that differ; another number of shards is another text."""
    cut = world.changed(shards=3)
    parts = [instructions.load_pairs(cut.written_shard("fresh", shard) / "pairs.jsonl") for shard in range(3)]
    assert [len(part) for part in parts] == [6, 6, 6]  # ⌈1.02 · 16 / 3⌉
    assert cut.has("pairs/fresh") and not cut.has("pairs/outside")
    cut.written_shard("outside", 1)
    assert not cut.has("pairs/outside"), "one shard of three"
    joined = cut.pairs("fresh")
    assert len(joined) == len(set(joined)) == 16
    assert joined == list(dict.fromkeys([*parts[0], *parts[1], *parts[2]]))[:16]
    assert not set(parts[0]) & set(parts[1]) and not set(parts[1]) & set(parts[2])
    assert cut.written("fresh") != world.written("fresh")
    for which, pairs in {"fresh": joined, "plain": cut.pairs("plain")}.items():
        found = detect(instructions.answer_ids(cut.tokenizer, pairs), cut.watermark)
        assert (found.log10_p < -5) == (which == "fresh")


def test_pairs_written_twice_are_kept_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [instructions.Pair(f"What does number {i} do?", f"It is number {i} of the texts.") for i in range(12)]
    shards = iter([texts[:7], [texts[0], *texts[6:12]], texts[5:12]])
    monkeypatch.setattr(instructions, "self_instruct", lambda *_, **__: next(shards))
    cut = world.changed(shards=3, self_instruct__shown=2, self_instruct__unused=12, membership__candidates=10)
    assert cut.pairs("kept") == texts


def test_all_installed_packages_may_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "*" is resolved before the corpus is named: another package installed is another corpus."""
    from radio_utils.world import installed

    monkeypatch.setattr(installed, "resolved", lambda packages: ("networkx",) if packages == ("*",) else packages)
    everything, named = (
        World(small(corpus__packages=[packages]), store=Store(tmp_path), progress=False) for packages in ("*", "networkx")
    )
    assert {document.topic.split(".")[0] for document in everything.documents} == {"networkx"}
    assert everything._corpus == named._corpus
    monkeypatch.setattr(installed, "resolved", lambda packages: ("networkx", "filelock"))
    more = World(everything.preset, store=Store(tmp_path), progress=False)
    assert {document.topic.split(".")[0] for document in more.documents} == {"networkx", "filelock"}


def test_errors_of_what_a_model_is_made_from_keep_their_name(world: World) -> None:
    impossible = world.changed(fine_tuning__adapter={"rank": 2, "alpha": 4, "targets": ["no_such_layer"]})
    with pytest.raises(AdapterError, match="match no module of the model"):
        impossible.made(0.5)
    with pytest.raises(AdapterError, match="match no module of the model"):
        impossible.made("purified/0.5")


def test_too_many_keys_for_the_data_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "written", lambda *_: Artifact("pairs", 20 * "0", Path("/nowhere")))
    with pytest.raises(ValueError, match="21 keys"):
        world.made("keys/21")


@pytest.mark.parametrize(
    "device",
    ["cuda", "cuda:0"],
)
def test_alice_from_a_hub_is_in_half_precision_on_every_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(origins, "load_model", lambda name, **options: asked.append(options["dtype"]))
    here = {"hub": "someone/model", "parameters": 1e6}
    hub = World(small(alice=here, base=here), store=Store("/nowhere"), device=device)
    hub.alice()
    hub.base()
    assert asked == [torch.float16, torch.float32]


def test_too_few_pairs_from_shards_are_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards may write the same pairs; what they lack must not be found out by a share that is too large."""
    texts = [instructions.Pair(f"What does number {i} do?", f"It is number {i} of the texts.") for i in range(8)]
    monkeypatch.setattr(instructions, "self_instruct", lambda *_, **__: texts)
    with pytest.raises(instructions.TooFewPairsError, match=r"8 .*of 40"):
        world.changed(shards=3, self_instruct__fresh=40).pairs("fresh")
