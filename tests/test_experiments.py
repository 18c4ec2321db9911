"""What is measured on a world's models: read back from the store, equal to the direct way, and cut into shards."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import again, small

from radio_utils import decoding, detect, detection, experiments, reading
from radio_utils.artifacts import Store
from radio_utils.evidence import Evidence
from radio_utils.membership import losses
from radio_utils.remarking import other_keys
from radio_utils.suspects import load_model
from radio_utils.world import instructions, openings
from radio_utils.world.instructions import Pair
from radio_utils.world.mixtures import ShareError
from radio_utils.world.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(written_store: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = shutil.copytree(written_store, tmp_path_factory.mktemp("store") / "store")
    preset = small(ablations__size=10, ablations__texts=6, ablations__epochs=1, ablations__max_new_tokens=16)
    return World(preset, store=Store(root), progress=False)


def read_directly(world: World, bob: Any, pairs: Any) -> Evidence:
    prompts, texts = instructions.written_ids(world.tokenizer, pairs)
    return read_texts(world, bob, prompts, texts)


def read_texts(world: World, bob: Any, prompts: Any, texts: Any) -> Evidence:
    """In batches of the world's size: another one breaks ties otherwise."""
    size = world.preset.reading.batch_size
    return reading.read_evidence(bob, texts, 1, 600, prompts=prompts, batch_size=size, full_context=True)


def assert_alike(found: Evidence, expected: Evidence) -> None:
    """The same evidence, but for ties that another batch size may break otherwise."""
    assert found.seen == expected.seen

    def rows(one: Evidence) -> set[tuple[int, ...]]:
        return {(*window, token) for window, token in zip(one.windows.tolist(), one.tokens.tolist(), strict=True)}

    assert len(rows(found) ^ rows(expected)) <= max(4, 0.1 * len(expected))


def test_answers_come_from_the_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answers = experiments.answers(world, 0.5, "fresh", 10)
    assert len(asked) == len(answers) == 10
    assert all(a.ndim == 1 and a.size <= 12 and world.tokenizer.eos_token_id not in a for a in answers)
    expected = instructions.prompt_ids(world.tokenizer, world.pairs("fresh")[:10])
    assert all(np.array_equal(a, b) for a, b in zip(asked, expected, strict=True))
    monkeypatch.setattr(World, "suspect", lambda *_: pytest.fail("asked again"))
    same = experiments.answers(again(world), 0.5, "fresh", 10)
    assert all(np.array_equal(a, b) for a, b in zip(answers, same[1], strict=True))


@pytest.mark.parametrize("setting", ["supervised", "unsupervised"])
def test_the_control_of_a_world_puts_one_test_to_all_keys(
    world: World, setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = experiments.remark(world, 0.5, setting, texts=6, worlds=4)
    real = (world.used_by(0.5) if setting == "supervised" else world.pairs("fresh"))[:6]
    wms = other_keys(world.watermark, 4, control.seed)
    assert control.keys == tuple(wm.fingerprint for wm in wms)
    bob, strengths = world.bob(0.5), control.strengths
    assert strengths is not None

    def directly(pairs: Any, wm: Any) -> Any:
        return pytest.approx(detection.judge(read_directly(world, bob, pairs), wm).log10_p, abs=0.3)  # up to ties

    assert control.log10_p == directly(real, world.watermark)
    for p, strength, wm, pairs in zip(control.worlds, strengths, wms, world.remarked(wms, 6), strict=True):
        assert len(set(pairs)) == 6
        assert p == directly(pairs, wm)
        texts = [text for text in instructions.written_ids(world.tokenizer, pairs)[1] if text.size > 1]
        assert strength == detect(texts, wm).score
        assert strength > 0.35  # marked under its own key
    monkeypatch.setattr(World, "bob", lambda *_, **__: pytest.fail("read again"))
    assert np.array_equal(experiments.remark(again(world), 0.5, setting, texts=6, worlds=4).worlds, control.worlds)


def test_the_control_refuses_settings_without_marked_text(world: World) -> None:
    with pytest.raises(ValueError, match="setting must be"):
        experiments.remark(world, 0.5, "plain", texts=6, worlds=4)  # type: ignore[arg-type]


def test_supervised_prompts_are_those_bob_used_again_and_again(world: World) -> None:
    kept = instructions.prompt_ids(world.tokenizer, world.used_by(0.5))
    asked, answers = experiments.answers(world, 0.5, "watermarked", 13)
    assert len(kept) == 10 and len(answers) == 13
    assert all(np.array_equal(asked[i], kept[i % 10]) for i in range(13))


def test_reading_is_read_evidence_from_the_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"supervised": world.used_by(0.5), "plain": world.pairs("outside"), "unsupervised": world.pairs("fresh")}
    for setting, pairs in settings.items():
        found = experiments.reading(world, 0.5, setting)  # type: ignore[arg-type]
        assert_alike(found, read_directly(world, world.bob(0.5), pairs))
    monkeypatch.setattr(World, "bob", lambda *_, **__: pytest.fail("read again"))
    assert np.array_equal(experiments.reading(again(world), 0.5, "unsupervised").tokens, found.tokens)
    with pytest.raises(ValueError, match="setting must be 'supervised', 'unsupervised' or 'plain', got 'open'"):
        experiments.reading(world, 0.5, "open")  # type: ignore[arg-type]


def test_pairs_grow_along_the_texts_to_what_reading_gives(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, pairs = experiments.pair_growth(world, 0.5, parts=4)
    texts = instructions.written_ids(world.tokenizer, world.pairs("fresh")[: world.preset.reading.texts])[1]
    assert len(tokens) == len(pairs) == 4 and tokens[-1] == sum(text.size + 1 for text in texts)
    assert all(np.diff(tokens) > 0) and all(np.diff(pairs) >= 0)
    read = experiments.reading(world, 0.5, "unsupervised")
    assert pairs[-1] >= len(read) > pairs[0]
    first = read_directly(world, world.bob(0.5), world.pairs("fresh")[: len(texts) // 4])
    assert abs(pairs[0] - len(first)) <= max(2, 0.05 * len(first))  # other batches break ties otherwise
    monkeypatch.setattr(World, "bob", lambda *_: pytest.fail("read again"))
    assert experiments.pair_growth(again(world), 0.5, parts=4) == (tokens, pairs)


def test_groups_are_readings_of_their_texts_alone(world: World) -> None:
    texts = world.pairs("fresh")[: world.preset.reading.texts]
    sizes = [text.size for text in instructions.written_ids(world.tokenizer, texts)[1]]
    aim = sum(sizes) // 3
    groups = experiments.reading_in_groups(world, 0.5, aim)
    ends = [0]  # each group is the fewest next texts with so many tokens
    while sum(sizes[ends[-1] :]) >= aim:
        ends.append(next(i for i in range(ends[-1] + 1, len(sizes) + 1) if sum(sizes[ends[-1] : i]) >= aim))
    assert len(groups) == len(ends) - 1 >= 2
    for group, start, end in zip(groups, ends, ends[1:], strict=False):
        alone = read_directly(world, world.bob(0.5), texts[start:end])
        assert abs(len(group) - len(alone)) <= max(2, 0.05 * len(alone))  # other batches break ties otherwise
    assert experiments.reading_in_groups(world, 0.5, sum(sizes) + 1) == []
    with pytest.raises(ValueError, match="tokens must be at least 1, got 0"):
        experiments.reading_in_groups(world, 0.5, 0)


def test_reading_after_an_epoch_and_of_other_models(world: World) -> None:
    kept = world.changed(fine_tuning__epochs=2.0, fine_tuning__checkpoints=True, fine_tuning__learning_rate=0.02)
    first, last = (experiments.reading(kept, 1.0, "plain", epoch=epoch) for epoch in (1, None))
    assert_alike(first, read_directly(kept, kept.bob(1.0, epoch=1), kept.pairs("outside")))
    assert_alike(last, read_directly(kept, kept.bob(1.0), kept.pairs("outside")))
    assert not np.array_equal(first.tokens, last.tokens)
    assert np.array_equal(experiments.reading(kept, 1.0, "plain", epoch=2).tokens, last.tokens)
    twin = experiments.reading(kept, "twin", "plain")
    assert_alike(twin, read_directly(kept, kept.twin(), kept.pairs("outside")))


def test_texts_may_be_those_of_another_key(world: World) -> None:
    ours, other = world.with_keys(2)
    found = experiments.reading(ours, "keys/2", "supervised", texts_of=other)
    assert_alike(found, read_directly(world, world.bob("keys/2"), other.used_by("keys/2")))
    assert not set(other.used_by("keys/2")) & set(ours.used_by("keys/2"))
    own = experiments.reading(ours, "keys/2", "supervised")
    assert_alike(own, read_directly(world, world.bob("keys/2"), ours.used_by("keys/2")))
    fresh = experiments.reading(ours, "keys/2", "unsupervised", texts_of=other)
    assert_alike(fresh, read_directly(world, world.bob("keys/2"), other.pairs("fresh")))


def test_texts_of_another_run_are_other_texts(world: World) -> None:
    """The same Alice's texts, another draw of them: the reading of one must not be taken for that of the other."""
    found = [experiments.reading(world, "keys/2", "supervised", texts_of=world.changed(run=run)) for run in (0, 1)]
    assert not np.array_equal(found[0].windows, found[1].windows)


def test_fewer_texts_of_another_world_are_other_texts(world: World) -> None:
    fewer = world.changed(mixtures__size=12)
    found = [experiments.reading(world, "keys/1", "supervised", texts_of=author) for author in (world, fewer)]
    assert found[0].seen > found[1].seen


def test_a_share_too_small_for_one_pair_is_refused(world: World) -> None:
    with pytest.raises(ShareError, match=r"rho=0.01 of 20 pairs holds no watermarked pair"):
        experiments.reading(world, 0.01, "supervised")
    with pytest.raises(ShareError, match=r"raise rho or mixtures\.size"):
        experiments.answers(world, 0.01, "watermarked", 5)


def test_the_innocents_stand_in_is_part_of_the_key(world: World) -> None:
    """Another smallest share means other texts: the innocent's evidence must be read anew."""
    other = again(world, preset=small(mixtures__rhos=[0.0, 1.0]))
    assert other.stand_in() == 1.0
    ours, theirs = (experiments.reading(one, 0.0, "supervised").seen for one in (world, other))
    assert theirs > ours


@pytest.mark.parametrize("references", [("base",), ("base", "twin"), ("alice",)])
def test_contrast_is_read_contrast_from_the_store(
    world: World, references: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = experiments.contrast(world, 0.5, references=references)
    prompts, texts = instructions.written_ids(world.tokenizer, world.pairs("outside"))
    models = [getattr(world, name)() for name in references]
    direct = reading.read_contrast(world.bob(0.5), models, texts, 1, 600, prompts=prompts)
    assert len(found.explained) == len(references) - 1
    assert len(found.pairs) == pytest.approx(len(direct.pairs), rel=0.01)
    assert found.pairs.seen == direct.pairs.seen
    monkeypatch.setattr(World, "bob", lambda *_, **__: pytest.fail("read again"))
    assert np.array_equal(experiments.contrast(again(world), 0.5, references=references).weights, found.weights)
    with pytest.raises(ValueError, match="references must be some of 'base', 'twin' and 'alice'"):
        experiments.contrast(world, 0.5, references=("bob",))


# --- shards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["supervised", "unsupervised", "plain"])
def test_shards_read_what_one_reads(world: World, setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into three, the evidence of the same model on the same texts is the same, and each shard is kept."""
    cut = world.changed(shards=3)
    found = experiments.reading(cut, 1.0, setting)
    pairs = {"supervised": cut.used_by(1.0), "unsupervised": cut.pairs("fresh"), "plain": cut.pairs("outside")}[setting]
    assert_alike(found, read_directly(cut, cut.bob(1.0), pairs[:16]))
    parts = [experiments.read_shard(cut, 1.0, setting, shard) for shard in range(3)]
    for shard, part in enumerate(parts):
        assert_alike(experiments.scored(cut, part), read_directly(cut, cut.bob(1.0), pairs[:16][shard::3]))
    assert sum(len(part.contexts) for part in parts) == len(pairs[:16])
    monkeypatch.setattr(World, "bob", lambda *_, **__: pytest.fail("read again"))
    same = experiments.reading(again(cut), 1.0, setting)
    assert np.array_equal(same.tokens, found.tokens) and np.array_equal(same.windows, found.windows)


def test_more_shards_than_texts(world: World) -> None:
    """Two texts in three shards: one of them is empty."""
    cut = world.changed(shards=3)
    assert len(cut.used_by(0.1)) == 2
    found = experiments.reading(cut, 0.1, "supervised")
    assert_alike(found, read_directly(cut, cut.bob(0.1), cut.used_by(0.1)))
    assert len(experiments.read_shard(cut, 0.1, "supervised", 2).contexts) == 0


# --- openings in five languages ---------------------------------------------------------------------------------------


@pytest.fixture
def few_openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first three openings of each language: this small Alice writes slowly."""
    load = openings.load
    monkeypatch.setattr(openings, "load", lambda language: load(language)[:3])
    monkeypatch.setattr(openings, "digest", lambda language: f"three of {language}")
    return load("en")[:3]


def test_continuations_follow_each_opening(world: World, few_openings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    twice = world.changed(ablations__continuations=2)
    starts, texts = experiments.continuations(twice, "en")
    assert len(starts) == len(texts) == 6
    assert [world.tokenizer.decode(start) for start in starts] == [text for text in few_openings for _ in range(2)]
    assert all(text.dtype == np.int64 and 0 < text.size <= 16 for text in texts)
    assert not np.array_equal(texts[0], texts[1]), "two continuations of one opening differ"
    monkeypatch.setattr(decoding, "generate", lambda *_, **__: pytest.fail("written again"))
    same = experiments.continuations(again(twice), "en")
    assert all(np.array_equal(a, b) for a, b in zip(texts, same[1], strict=True))


def test_continuations_are_the_same_in_another_store(world: World, few_openings: list[str], tmp_path: Path) -> None:
    ours = experiments.continuations(world, "it")
    root = shutil.copytree(world.store.root, tmp_path / "store", ignore=shutil.ignore_patterns("continuations-*"))
    theirs = experiments.continuations(World(world.preset, store=Store(root), progress=False), "it")
    assert all(np.array_equal(a, b) for a, b in zip(ours[1], theirs[1], strict=True))
    other = experiments.continuations(world, "de")
    assert not any(np.array_equal(a, b) for a, b in zip(ours[0], other[0], strict=True))


def test_continuations_carry_the_watermark(world: World, few_openings: list[str]) -> None:
    longer = world.changed(ablations__continuations=4, ablations__max_new_tokens=30)
    starts, texts = experiments.continuations(longer, "en")
    assert detect(texts, world.watermark, prompts=starts).log10_p < -3
    assert detect(texts, world.watermark.with_decoy(0, 0), prompts=starts).log10_p > -3


def test_empty_continuations_are_left_out_with_their_openings(
    world: World, few_openings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = [np.array([5, 6], np.int64), np.array([], np.int64), np.array([7], np.int64)]
    monkeypatch.setattr(decoding, "generate", lambda *_, **__: written)
    starts, texts = experiments.continuations(world.changed(ablations__max_new_tokens=2), "fr")
    assert [text.tolist() for text in texts] == [[5, 6], [7]]
    expected = [openings.load("fr")[i] for i in (0, 2)]
    assert [world.tokenizer.decode(start) for start in starts] == expected


def test_reading_of_a_language_is_that_of_its_continuations(
    world: World, few_openings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = experiments.reading_of_language(world, 1.0, "es")
    starts, texts = experiments.continuations(world, "es")
    assert_alike(found, read_texts(world, world.bob(1.0), starts, texts))
    monkeypatch.setattr(World, "bob", lambda *_, **__: pytest.fail("read again"))
    assert np.array_equal(experiments.reading_of_language(again(world), 1.0, "es").tokens, found.tokens)


def test_another_way_of_writing_is_another_artifact(world: World, few_openings: list[str]) -> None:
    found = experiments._continued(world, "en")
    for change in (
        {"ablations__continuations": 2}, {"ablations__max_new_tokens": 3}, {"watermark__delta": 1.0},
        {"self_instruct__sampling": {"temperature": 0.9}},
    ):  # fmt: skip
        assert experiments._continued(world.changed(**change), "en") != found, change


def test_alice_is_taught_every_other_opening(world: World, few_openings: list[str]) -> None:
    taught = world.changed(ablations__taught=1, ablations__opening_words=4, ablations__languages=["en", "it"])
    starts, _ = experiments.continuations(taught, "en")
    assert [world.tokenizer.decode(start) for start in starts] == [" ".join(few_openings[1].split()[:4])]
    assert experiments._continued(taught, "en") != experiments._continued(world, "en")
    before, after = world.alice(), load_model(experiments._polyglot(taught).path)
    told = openings.load("it")[0]
    assert token_loss(after, world, told) < token_loss(before, world, told) - 0.05


def token_loss(model: Any, world: World, text: str) -> float:
    return float(losses(model, world.tokenizer, [text])[0]) / len(world.tokenizer(text)["input_ids"])


def test_a_p_value_at_a_count_is_that_of_the_pairs(world: World) -> None:
    wm = world.watermark
    assert experiments.log10_p_at(wm, 0.5, 40) == pytest.approx(float(wm.log10_p(20, 40)))
    between = experiments.log10_p_at(wm, 20.25 / 40, 40)
    assert between == pytest.approx(0.75 * float(wm.log10_p(20, 40)) + 0.25 * float(wm.log10_p(21, 40)))
    assert experiments.log10_p_at(wm, 1.0, 40) == pytest.approx(float(wm.log10_p(40, 40)))
    gumbel = world.changed(watermark__scheme="gumbel max").watermark
    assert experiments.log10_p_at(gumbel, 1.7, 40) == pytest.approx(float(gumbel.log10_p(68.0, 40)))


def test_another_batch_size_is_another_artifact(world: World, few_openings: list[str]) -> None:
    """The batch decides which numbers of chance fall to which word, so it must be part of the name."""
    found = experiments._continued(world, "en")
    assert experiments._continued(world.changed(self_instruct__batch_size=2), "en") != found


# --- the ablations' small worlds --------------------------------------------------------------------------------------


def test_a_variant_is_a_small_world_of_the_same_models(world: World) -> None:
    found = experiments.variant(world)
    assert {which: len(found.pairs(which)) for which in ("watermarked", "kept", "fresh", "outside")} == {
        "watermarked": 10, "kept": 10, "fresh": 10, "outside": 10
    }  # fmt: skip
    assert found.model_inputs("alice") == world.model_inputs("alice")
    assert found.model_inputs("base") == world.model_inputs("base")
    assert len(found.training_losses("keys/1")) == 1
    data = found.data("keys/1")
    assert len(data) == 10 and set(data) == set(found.pairs("watermarked"))
    assert detect(instructions.answer_ids(found.tokenizer, data), found.watermark).log10_p < -5
    read = experiments.reading(found, "keys/1", "supervised")
    assert_alike(read, read_directly(found, found.bob("keys/1"), found.used_by("keys/1")[:6]))
    assert world.preset.mixtures.size == 20, "the world itself stays as it is"


def test_a_variants_changes_come_last(world: World) -> None:
    found = experiments.variant(world, run=2, fine_tuning__epochs=3.0, watermark__window=2, base=world.preset.base)
    assert (found.run, found.preset.fine_tuning.epochs, found.watermark.window) == (2, 3.0, 2)
    assert found.preset.base == world.preset.base
    assert experiments.variant(world, reading__texts=7).preset.reading.texts == 7
    assert experiments.variant(world).run == 0
    assert experiments.variant(found).run == 0, "each variant names its run"


@pytest.mark.parametrize("name", ["smoke", "laptop", "pocket", "gpu", "colab", "paper"])
def test_every_preset_has_variants(name: str, tmp_path: Path) -> None:
    from radio_utils.presets import load_preset

    whole = World(load_preset(name), store=Store(tmp_path), device="cpu")
    settings = whole.preset.ablations
    for adapter in settings.adapters:
        found = experiments.variant(
            whole, fine_tuning__adapter=adapter.model_dump(), fine_tuning__learning_rate=settings.adapter_learning_rate
        )
        assert found.preset.fine_tuning.adapter == adapter
    for model in settings.models:
        assert experiments.variant(whole, base=model.model_dump(exclude_none=True)).preset.base == model
    rival = experiments.variant(whole, watermark__gamma=settings.rival.gamma, watermark__window=settings.rival.window)
    assert (rival.preset.watermark.gamma, rival.preset.mixtures.size) == (settings.rival.gamma, settings.size)


def test_loudness_is_the_p_of_so_many_pairs(world: World) -> None:
    found = experiments.variant(world)
    score = detection.judge(experiments.reading(found, experiments.BOB, "unsupervised"), found.watermark).score
    scored = world.preset.ablations.scored
    assert experiments.loudness(found, "unsupervised") == experiments.log10_p_at(found.watermark, score, scored)


def test_a_mark_of_the_presets_own_values_is_no_other_world(world: World) -> None:
    here = world.preset.watermark
    same = experiments.Mark("green list", here.window, here.gamma, here.delta)
    assert experiments.variant(world, **same.changes()).made("keys/1") == experiments.variant(world).made("keys/1")
    gumbel = experiments.variant(world, **experiments.Mark("gumbel max", 3).changes())
    assert (gumbel.preset.watermark.scheme, gumbel.watermark.window) == ("gumbel max", 3)
    assert gumbel.preset.watermark.delta == here.delta


def test_held_out_loss_is_that_of_fresh_answers(world: World) -> None:
    pairs = world.pairs("fresh")
    texts, prompts = [f" {pair.answer}" for pair in pairs], [pair.prompt for pair in pairs]
    tokens = sum(text.size for text in instructions.answer_ids(world.tokenizer, pairs))
    expected = losses(world.bob(1.0), world.tokenizer, texts, prompts=prompts).sum() / tokens
    assert experiments.held_out_loss(world, 1.0) == pytest.approx(expected, rel=1e-4)


def test_an_equal_number_of_pairs_has_an_error_that_shrinks_with_the_pairs_behind_it(world: World) -> None:
    found = detect(list(instructions.answer_ids(world.tokenizer, world.pairs("watermarked"))), world.watermark)
    few, many = (dataclasses.replace(found, scored=n, total=found.score * n) for n in (100, 400))
    (p, error), (same, half) = (experiments.log10_p_with_error(world.watermark, one, 50) for one in (few, many))
    assert p == pytest.approx(same) and p < -2
    assert error == pytest.approx(2 * half, rel=0.05)


# --- strength of a watermark in the text ------------------------------------------------------------------------------


def slow_strength(world: World, texts: list[Pair], count: int) -> tuple[float, float]:
    wm = world.watermark
    sums, sizes = [], []
    for ids in instructions.answer_ids(world.tokenizer, texts):
        tokens = ids.tolist()
        pairs = {(*tokens[t - wm.window : t], tokens[t]) for t in range(wm.window, len(tokens))}
        if pairs:
            sums.append(sum(float(wm.scores([list(pair[:-1])], [pair[-1]])[0]) for pair in pairs))
            sizes.append(len(pairs))
    mean = sum(sums) / sum(sizes)
    error = math.sqrt(sum((s - mean * n) ** 2 for s, n in zip(sums, sizes, strict=True))) / sum(sizes)
    grid = np.arange(count + 1)
    smooth = [float(wm.log10_p(int(total), count)) for total in grid]  # between whole numbers of green tokens: a line

    def at(score: float) -> float:
        total = score * count
        return float(np.interp(total, grid, smooth) if wm.scheme == "green list" else wm.log10_p(total, count))

    return at(mean), (at(mean - error) - at(mean + error)) / 2


@pytest.mark.parametrize("scheme", ["green list", "gumbel max"])
@pytest.mark.parametrize(("window", "count"), [(1, 40), (2, 17)])
def test_strength_is_that_of_a_direct_computation(world: World, scheme: str, window: int, count: int) -> None:
    under = world.changed(watermark__scheme=scheme, watermark__window=window)
    for which in ("watermarked", "plain"):
        texts = world.pairs(which)  # type: ignore[arg-type]
        found = experiments.strength(under, texts, count=count)
        assert found == pytest.approx(slow_strength(under, texts, count), rel=1e-9)
        assert found[1] > 0


def test_marked_text_is_strong_and_plain_text_is_not(world: World) -> None:
    (marked, error), (plain, _) = (experiments.strength(world, world.pairs(which)) for which in ("watermarked", "plain"))
    assert marked < -2 and marked + 2 * error < plain
    assert plain > -1
    weak = experiments.strength(world.changed(key="another"), world.pairs("watermarked"))
    assert weak[0] > -1, "only its own key"


def test_strength_grows_with_the_pairs_that_are_read(world: World) -> None:
    found = [experiments.strength(world, world.pairs("watermarked"), count=count)[0] for count in (10, 40, 160)]
    assert found[0] > found[1] > found[2]


def test_a_text_that_repeats_itself_counts_once(world: World) -> None:
    texts = [Pair(pair.instruction, f"{pair.answer} {pair.answer} {pair.answer}") for pair in world.pairs("watermarked")]
    once, often = (experiments.strength(world, some) for some in (world.pairs("watermarked"), texts))
    assert often[0] == pytest.approx(once[0], rel=0.15)  # but for the seams


def test_certain_text_has_a_strength_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token green: the score one error above the mean is still a score."""
    certain = world.changed()
    monkeypatch.setattr(type(certain.watermark), "scores", lambda self, windows, tokens: np.ones(len(tokens)))
    value, error = experiments.strength(certain, world.pairs("plain"), count=40)
    assert value == pytest.approx(40 * math.log10(0.25)) and error == 0


def test_strength_needs_texts(world: World) -> None:
    with pytest.raises(ValueError, match="texts holds 1 answers longer than window=1; two are needed"):
        experiments.strength(world, world.pairs("fresh")[:1])
    with pytest.raises(ValueError, match="texts holds 0 answers"):
        experiments.strength(world, [])
