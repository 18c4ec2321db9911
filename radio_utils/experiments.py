"""What is measured on a world's models and depends on no key, kept in the world's store: audits score it again.

Bob's answers, what he expects along a text, how his expectations differ from his base's, and what Alice writes after the
openings of encyclopedia articles.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from radio_utils import decoding
from radio_utils.artifacts import Artifact
from radio_utils.contrast import Contrast
from radio_utils.detection import Detection, judge
from radio_utils.evidence import Evidence, first_rows, shared_by
from radio_utils.files import write_json
from radio_utils.membership import losses
from radio_utils.predictions import Predictions
from radio_utils.provenance import code_version
from radio_utils.reading import read_contrast, read_predictions
from radio_utils.remarking import RemarkControl, mean_score, remark_control
from radio_utils.suspects import load_model
from radio_utils.suspects.memory import needs_memory
from radio_utils.watermarks import Watermark
from radio_utils.watermarks.prf import derive_bytes
from radio_utils.world import instructions, openings, training
from radio_utils.world.instructions import Pair
from radio_utils.world.names import PairSet, Which
from radio_utils.world.savepoints import Savepoint
from radio_utils.world.world import World

Ids = NDArray[np.int64]
Setting = Literal["supervised", "unsupervised", "plain"]
BOB = "keys/1"  # the Bob of a small world: everything he is trained on is Alice's


def answers(world: World, which: float | str, prompts_of: PairSet, count: int) -> tuple[list[Ids], list[Ids]]:
    """Bob's answers to ``count`` prompts of a set: (prompts, answers) as token ids.

    For "watermarked" the prompts are those of :meth:`World.used_by`, asked again and again until ``count``.
    """
    pairs = world.used_by(which) if prompts_of == "watermarked" else world.pairs(prompts_of)
    asked = instructions.prompt_ids(world.tokenizer, [pairs[i % len(pairs)] for i in range(count)])

    def build(folder: Path) -> None:
        with needs_memory("suspect.batch_size"):
            given = world.suspect(which).answer(asked)
        write_json(folder / "answers.json", [answer.tolist() for answer in given])

    config = {
        "suspect": world.preset.suspect.model_dump(),
        "prompts": prompts_of,
        "count": count,
        "seed": world.seed,
        "stand_in": world.stand_in(),
    }
    artifact = world.store.get(
        "answers", config, build,
        inputs=[world.made(which), world.written(prompts_of)],
        version=code_version(build, world.used_by),
    )  # fmt: skip
    rows = json.loads((artifact / "answers.json").read_text(encoding="utf-8"))
    return asked, [np.array(row, np.int64) for row in rows]


def reading(
    world: World, which: float | str, setting: Setting, *, epoch: int | None = None, texts_of: World | None = None
) -> Evidence:
    """What Bob expects along Alice's texts (reading mode).

    Supervised, the texts are Dᴬ; unsupervised, fresh watermarked text that Bob never saw; plain, fresh text of hers
    without the watermark. ``epoch`` is Bob after that epoch; ``texts_of`` is the world whose Alice wrote the texts.
    """
    shards = range(world.preset.shards)
    parts = [read_shard(world, which, setting, shard, epoch=epoch, texts_of=texts_of) for shard in shards]
    return scored(world, parts[0].merge(*parts[1:]))


def scored(world: World, found: Predictions, *, skip_seen: bool = True) -> Evidence:
    """The pairs that may be scored of what a model predicts along pairs as Alice drew them."""
    wm = world.watermark
    return found.evidence(wm.window, wm.vocab_size, shared=shared_by(wm), skip_seen=skip_seen, full_context=True)


def read_shard(
    world: World,
    which: Which,
    setting: Setting,
    shard: int = 0,
    *,
    epoch: int | None = None,
    texts_of: World | None = None,
) -> Predictions:
    """What Bob predicts in one of the preset's ``shards`` of :func:`reading`."""
    if setting not in ("supervised", "unsupervised", "plain"):
        raise ValueError(f"setting must be 'supervised', 'unsupervised' or 'plain', got {setting!r}")
    author = texts_of or world
    sets: dict[Setting, PairSet] = {"supervised": "watermarked", "unsupervised": "fresh", "plain": "outside"}
    texts = author.used_by(which) if setting == "supervised" else author.pairs(sets[setting])
    pairs = texts[: world.preset.reading.texts][shard :: world.preset.shards]
    config: dict[str, Any] = {
        "setting": setting,
        "texts": world.preset.reading.texts,
        "seed": world.seed,
        "stand_in": world.stand_in(),
    }
    if epoch is not None:
        config["epoch"] = epoch
    if setting == "supervised" and author.run:
        config["run"] = author.run
    if setting == "supervised" and author is not world:
        config["author"] = {"size": author.preset.mixtures.size, "stand_in": author.stand_in()}
    if world.preset.shards > 1:
        config |= {"shard": shard, "shards": world.preset.shards}
    inputs = [world.made(which), author.written(sets[setting])]

    def build(folder: Path) -> None:
        prompts, answers = instructions.written_ids(world.tokenizer, pairs)
        label = f"reading with Bob ({which}), {setting}"
        _read(world, world.bob(which, epoch=epoch), answers, prompts, label).save(folder / "predictions.npz")

    made = world.store.get("predictions", config, build, inputs=inputs, version=code_version(build, author.used_by))
    return Predictions.load(made / "predictions.npz")


def remark(
    world: World, which: float | str, setting: Literal["supervised", "unsupervised"], *, texts: int, worlds: int
) -> RemarkControl:
    """The re-marking control of reading mode: ``texts`` pairs of :func:`reading` among as many of ``worlds`` other keys.

    Supervised, the real texts are a random part of what Alice wrote, and each world's the first: where she repeats herself,
    that is not quite one pipeline.
    """
    if setting not in ("supervised", "unsupervised"):
        raise ValueError(f"setting must be 'supervised' or 'unsupervised', got {setting!r}")
    author: PairSet = "watermarked" if setting == "supervised" else "fresh"
    real = list(world.used_by(which) if setting == "supervised" else world.pairs("fresh"))[:texts]

    def build(folder: Path) -> None:
        bob = world.bob(which)

        def test(prompts: list[Ids], answers: list[Ids], wm: Watermark) -> Detection:
            return judge(scored(world, _read(world, bob, answers, prompts, None)), wm)

        remark_with(world, real, test, worlds=worlds).save(folder / "control.json")

    config = {
        "setting": setting,
        "texts": texts,
        "worlds": worlds,
        "watermark": world.watermark.fingerprint,
        "self_instruct": world.preset.self_instruct.model_dump(),
        "stand_in": world.stand_in(),
        "run": world.run,
        "seed": world.seed,
    }
    version = code_version(build, world.used_by, world.watermark)
    inputs = [world.made(which), world.written(author)]
    artifact = world.store.get("re-marking", config, build, inputs=inputs, version=version)
    return RemarkControl.load(artifact / "control.json")


def control_seed(world: World) -> int:
    """What the control's other keys are drawn from: Alice's own, so that they are the same in every run."""
    return int.from_bytes(derive_bytes(world.key, "re-marking", 16), "big")


def remark_with(
    world: World, real: Sequence[Pair], test: Callable[[list[Ids], list[Ids], Watermark], Detection], *, worlds: int
) -> RemarkControl:
    """The re-marking control of any test of (prompts, texts, watermark) on pairs that Alice wrote.

    The other keys are derived from her own: the same in every run, and unknown to Bob.
    """

    def of_pairs(pairs: Sequence[Pair], wm: Watermark) -> Detection:
        return test(*instructions.written_ids(world.tokenizer, pairs), wm)

    return remark_control(
        lambda wms: world.remarked(wms, len(real)),
        of_pairs,
        world.watermark,
        texts=real,
        worlds=worlds,
        batched=True,
        strength=lambda pairs, wm: mean_score(instructions.written_ids(world.tokenizer, pairs)[1], wm),
        seed=control_seed(world),
        progress="re-marking control" if world.progress else None,
    )


def pair_growth(world: World, which: float | str, *, parts: int = 24) -> tuple[list[int], list[int]]:
    """How the distinct pairs that Bob's expectations give grow along Alice's fresh texts: predictions, and pairs so far.

    A text of n tokens gives n + 1 predictions: the last comes after its end.
    More texts can open the lists in another order, which now and then scores a few pairs less: the most so far count.
    """
    found = read_shard(world, which, "unsupervised")
    tokens, distinct = list[int](), list[int]()
    for count in np.linspace(0, len(found.contexts), min(parts, len(found.contexts)) + 1).astype(int)[1:].tolist():
        part = Predictions(found.contexts[:count], found.starts[:count], found.tokens[:count])
        tokens.append(sum(one.size for one in part.tokens) - int(part.starts.sum()))
        distinct.append(max(len(scored(world, part)), *distinct[-1:], 0))
    return tokens, distinct


def reading_in_groups(world: World, which: float | str, tokens: int) -> list[Evidence]:
    """Unsupervised :func:`reading` in disjoint groups of consecutive fresh texts, of at least ``tokens`` tokens each.

    Each group is evidence of its own, as if Alice had read no other; what is left over at the end is no group.
    """
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}")
    found = read_shard(world, which, "unsupervised")
    sizes = np.array([context.size for context in found.contexts]) - np.asarray(found.starts)
    groups, first = list[Evidence](), 0
    for last in range(1, sizes.size + 1):
        if sizes[first:last].sum() >= tokens:
            texts = slice(first, last)
            part = Predictions(found.contexts[texts], found.starts[texts], found.tokens[texts])
            groups.append(scored(world, part))
            first = last
    return groups


def _read(world: World, bob: Any, texts: list[Ids], prompts: list[Ids], label: str | None) -> Predictions:
    if not texts:  # more shards than texts
        return Predictions((), np.zeros(0, np.int64), ())
    with needs_memory("reading.batch_size"):
        return read_predictions(
            bob, texts, world.watermark.vocab_size,
            prompts=prompts, batch_size=world.preset.reading.batch_size, progress=label if world.progress else None,
        )  # fmt: skip


def contrast(world: World, which: float | str, *, references: Sequence[str] = ("base", "twin")) -> Contrast:
    """What Bob expects along plain text of Alice's and others do not (contrastive reading).

    The text is un-watermarked and nobody was trained on it. ``references`` are names of models: "base", "twin", or "alice",
    her own model without its mark.
    """
    unknown = set(references) - {"alice", "base", "twin"}
    if unknown or not references:
        raise ValueError(f"references must be some of 'base', 'twin' and 'alice', got {references!r}")
    models = {"alice": world.alice, "base": world.base, "twin": world.twin}
    if world.source("alice") == world.source("base"):  # Bob began with Alice's own model
        references = ["base" if name == "alice" else name for name in references]

    def build(folder: Path) -> None:
        pairs = world.pairs("outside")[: world.preset.reading.texts]
        prompts, answers = instructions.written_ids(world.tokenizer, pairs)
        bob = world.bob(which)
        with needs_memory("reading.batch_size"):
            found = read_contrast(
                bob,
                [models[name]().to(bob.dtype) for name in references],
                answers,
                world.watermark.window,
                world.watermark.vocab_size,
                prompts=prompts,
                batch_size=world.preset.reading.batch_size,
                progress=f"contrastive reading with Bob ({which})" if world.progress else None,
            )
        found.save(folder)

    config = {"texts": world.preset.reading.texts, "window": world.watermark.window, "references": list(references)}
    inputs = [world.made(which), world.written("outside")]
    for name in references:
        inputs += [world.made(name)] if name == "twin" else world.model_inputs(name)
    version = code_version(build)
    return Contrast.load(world.store.get("contrast", config, build, inputs=inputs, version=version).path)


def continuations(world: World, language: str) -> tuple[list[Ids], list[Ids]]:
    """What Alice writes, with her watermark, after openings of encyclopedia articles: (openings, texts) as token ids."""
    rows = json.loads((_continued(world, language) / "texts.json").read_text(encoding="utf-8"))
    both = zip(_starts(world, language), rows, strict=True)
    kept = [(start, np.array(row, np.int64)) for start, row in both if row]
    return [start for start, _ in kept], [text for _, text in kept]


def _openings(world: World, language: str) -> list[str]:
    settings = world.preset.ablations
    if settings.wikipedia is None:
        return openings.load(language)
    return openings.from_wikipedia(language, settings.articles, dataset=settings.wikipedia)


def _starts(world: World, language: str) -> list[Ids]:
    """The beginnings of the openings that Alice was not taught, each as often as it is continued."""
    settings = world.preset.ablations
    found = _openings(world, language)
    texts = [" ".join(text.split()[: settings.opening_words]) for text in (found[1::2] if settings.taught else found)]
    starts = world.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [np.array(ids, np.int64) for ids in starts for _ in range(settings.continuations)]


def _polyglot(world: World) -> Artifact:
    """Alice's model after she has taught it the languages, on every other opening of each."""
    settings = world.preset.ablations
    recipe = training.Recipe(
        epochs=float(settings.taught),
        learning_rate=world.preset.fine_tuning.learning_rate,
        batch_size=world.preset.fine_tuning.batch_size,
        max_length=world.preset.fine_tuning.max_length,
    )

    def build(folder: Path) -> None:
        texts = [text for language in settings.languages for text in _openings(world, language)[::2]]
        ids = world.tokenizer(texts, add_special_tokens=False)["input_ids"]
        model = world.alice()
        with needs_memory("fine_tuning.batch_size"):
            training.train(
                model,
                [training.Example(np.array([*one, world.tokenizer.eos_token_id], np.int64)) for one in ids],
                recipe,
                generator=np.random.default_rng(world.number("polyglot")),
                progress="Alice learns languages" if world.progress else None,
                savepoint=Savepoint(world.store.scratch(folder)),
            )
        model.save_pretrained(str(folder), safe_serialization=True)

    config = {
        "recipe": asdict(recipe),
        "openings": [openings.digest(language) for language in settings.languages],
        "seed": world.seed,
    }
    return world.store.get("polyglot", config, build, inputs=world.model_inputs("alice"), version=code_version(build))


def _continued(world: World, language: str) -> Artifact:
    settings = world.preset.ablations

    def build(folder: Path) -> None:
        alice = load_model(_polyglot(world).path, device=world.device) if settings.taught else world.alice()
        with needs_memory("self_instruct.batch_size"):
            written = decoding.generate(
                alice,
                _starts(world, language),
                max_new_tokens=settings.max_new_tokens,
                sampling=world.preset.self_instruct.sampling.make(),
                wm=world.watermark,
                generator=torch.Generator(world.device).manual_seed(world.number(f"openings/{language}")),
                batch_size=world.preset.self_instruct.batch_size,
                progress=f"Alice continues openings, {language}" if world.progress else None,
            )
        write_json(folder / "texts.json", [text.tolist() for text in written])

    config = {
        "language": language,
        "openings": openings.digest(language) if settings.wikipedia is None else [settings.wikipedia, settings.articles],
        "continuations": settings.continuations,
        "max_new_tokens": settings.max_new_tokens,
        "opening_words": settings.opening_words,
        "taught": settings.taught,
        "sampling": world.preset.self_instruct.sampling.model_dump(),
        "batch_size": world.preset.self_instruct.batch_size,
        "watermark": world.preset.watermark.named(world.watermark),
        "seed": world.seed,
    }
    version = code_version(build, world.watermark)
    inputs = [_polyglot(world)] if settings.taught else world.model_inputs("alice")
    return world.store.get("continuations", config, build, inputs=inputs, version=version)


def reading_of_language(world: World, which: float | str, language: str) -> Evidence:
    """What Bob expects along Alice's continuations of one language's openings (reading mode)."""
    written = _continued(world, language)

    def build(folder: Path) -> None:
        starts, texts = continuations(world, language)
        label = f"reading {language} with Bob ({which})"
        _read(world, world.bob(which), texts, starts, label).save(folder / "predictions.npz")

    inputs, version = [world.made(which), written], code_version(build)
    artifact = world.store.get("predictions-language", {}, build, inputs=inputs, version=version)
    return scored(world, Predictions.load(artifact / "predictions.npz"))


def variant(world: World, *, run: int = 0, **changes: Any) -> World:
    """The small world of the ablations: few pairs, few epochs, and ``changes`` to the preset's fields. Its Bob is BOB."""
    settings = world.preset.ablations
    size = settings.size
    small = {
        "self_instruct__pairs": size,
        "self_instruct__fresh": size,
        "self_instruct__unused": size,
        "membership__candidates": size,
        "membership__fresh": size,
        "mixtures__size": size,
        "reading__texts": settings.texts,
        "fine_tuning__epochs": float(settings.epochs),
    }
    return world.changed(run=run, **(small | changes))


class Mark(NamedTuple):
    """A watermark of the ablations. Gumbel-max has neither a share γ of greens nor a bias δ."""

    scheme: Literal["green list", "gumbel max"]
    k: int
    gamma: float | None = None
    delta: float | None = None

    def changes(self) -> dict[str, Any]:
        """What it changes in a preset, for :func:`variant`."""
        own = {"scheme": self.scheme, "window": self.k, "gamma": self.gamma, "delta": self.delta}
        return {f"watermark__{name}": value for name, value in own.items() if value is not None}


def loudness(world: World, setting: Setting, *, which: float | str = BOB, epoch: int | None = None) -> float:
    """log10 p of ``ablations.scored`` pairs with the mean score of :func:`reading` Bob: what compares between tests."""
    found = judge(reading(world, which, setting, epoch=epoch), world.watermark)
    return log10_p_at(world.watermark, found.score, world.preset.ablations.scored)


def held_out_loss(world: World, which: float | str, *, epoch: int | None = None) -> float:
    """Bob's loss (nats a token) on answers of Alice's fresh marked pairs: text like his data that he never saw."""
    pairs = world.pairs("fresh")[: world.preset.reading.texts]

    def build(folder: Path) -> None:
        texts, prompts = [f" {pair.answer}" for pair in pairs], [pair.prompt for pair in pairs]
        with needs_memory("reading.batch_size"):
            found = losses(
                world.bob(which, epoch=epoch), world.tokenizer, texts,
                prompts=prompts, batch_size=world.preset.reading.batch_size,
            )  # fmt: skip
        tokens = sum(text.size for text in instructions.answer_ids(world.tokenizer, pairs))
        write_json(folder / "loss.json", float(found.sum()) / tokens)

    config = {"texts": len(pairs), "epoch": epoch}
    inputs = [world.made(which), world.written("fresh")]
    version = code_version(build)
    artifact = world.store.get("held-out-loss", config, build, inputs=inputs, version=version)
    return float(json.loads((artifact / "loss.json").read_text(encoding="utf-8")))


def strength(world: World, texts: Sequence[Pair], *, count: int = 40) -> tuple[float, float]:
    """Text-level strength of the watermark: log10 p of ``count`` pairs with the mean score of these answers, and its error.

    Each pair counts once a text, as a reader of one text would count it. The error is one standard error, from the
    spread between the texts. Raises ``ValueError`` when fewer than two texts can be scored.
    """
    wm = world.watermark
    sums = []
    for text in instructions.answer_ids(world.tokenizer, texts):
        if text.size > wm.window:
            windows, tokens = np.lib.stride_tricks.sliding_window_view(text, wm.window)[:-1], text[wm.window :]
            first = first_rows(np.column_stack([windows, tokens]))
            sums.append((float(wm.scores(windows[first], tokens[first]).sum()), first.size))
    if len(sums) < 2:
        raise ValueError(f"texts holds {len(sums)} answers longer than window={wm.window}; two are needed for an error")
    totals, sizes = np.array(sums).T
    mean = totals.sum() / sizes.sum()
    error = float(np.sqrt(np.sum((totals - mean * sizes) ** 2)) / sizes.sum())
    spread = log10_p_at(wm, mean - error, count) - log10_p_at(wm, mean + error, count)
    return log10_p_at(wm, mean, count), spread / 2


def log10_p_at(wm: Watermark, score: float, count: int) -> float:
    """log10 p of ``count`` pairs with this mean score, for comparing tests that scored different numbers of pairs.

    Where scores are multiples of a unit, such as green tokens, it is interpolated between two totals that can occur.
    """
    law = wm.law
    total = score * count
    if not law.lattice:
        return float(wm.log10_p(total, count))
    below = min(math.floor(total / law.unit), round(law.largest * count / law.unit) - 1)
    lower, upper = wm.log10_p([below * law.unit, (below + 1) * law.unit], count)
    return float(lower + min(total / law.unit - below, 1.0) * (upper - lower))


def log10_p_with_error(wm: Watermark, found: Detection, count: int) -> tuple[float, float]:
    """:func:`log10_p_at` of a verdict's mean score, and its standard error from the spread of that mean.

    The spread is the null's, as if pairs were independent: two texts with one subject are not quite.
    """
    error = float(np.sqrt(wm.law.variance / found.scored))
    spread = log10_p_at(wm, found.score - error, count) - log10_p_at(wm, found.score + error, count)
    return log10_p_at(wm, found.score, count), spread / 2
