"""The world of one preset and seed: who wrote what, and who was trained on it.

Every object is an artifact of the store: asked for, it is read if it exists and made if it does not. Its key hashes its
whole configuration, the code that makes it and the keys of what it is made from.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import transformers

from radio_utils.artifacts import Artifact, Store, default_root
from radio_utils.files import atomic_write, write_json
from radio_utils.presets import Model, Preset
from radio_utils.provenance import code_version
from radio_utils.suspects import LocalSuspect, check_same_tokenizer, load_model, load_tokenizer
from radio_utils.suspects.memory import needs_memory
from radio_utils.watermarks import Watermark
from radio_utils.watermarks.prf import Key, derive_bytes
from radio_utils.world import adapters, corpus, installed, instructions, mixtures, models, redrawing, training
from radio_utils.world.instructions import Pair
from radio_utils.world.savepoints import Savepoint
from radio_utils.world.workers import make_all

logger = logging.getLogger(__name__)

PairSet = Literal["watermarked", "plain", "kept", "fresh", "outside"]
# watermarked: what Bob may train on, under Alice's key     plain: the same without a key, the fill of the mixtures
# kept: plain pairs that Alice kept and Bob did not use     fresh: watermarked pairs that nobody else saw
# outside: plain pairs that nobody else saw
_WATERMARKED: tuple[PairSet, ...] = ("watermarked", "fresh")
_HALVES = {"alice": 0, "base": 1}  # which half of the corpus each is pre-trained on
_Named = tuple[dict[str, Any], list[Artifact], str]  # what names an artifact: its configuration, inputs and code version
_DEMONSTRATION_TOKENS = 70  # longer documents make poor examples: they fill the context


@dataclass(frozen=True)
class _Tuned:
    """What a fine-tuned model is made from: its name in the store, and how to make it."""

    kind: str
    config: dict[str, Any]
    inputs: list[Artifact]
    version: str
    pairs: Callable[[], Sequence[Pair]]
    start: Callable[[], str | Path]  # the weights it starts from: a folder or hub name
    label: str
    stream: str = "fine-tuning"
    recipe: dict[str, Any] = field(default_factory=dict)  # where it differs from Bob's


class World:
    """Alice, Bob and their data at one preset and seed.

    A model that was fine-tuned has a name: a number is the Bob of that share ρ, ``"twin"`` his innocent twin,
    ``"purified/0.5"`` the Bob of ρ = 0.5 after clean fine-tuning, ``"redrawn/0.25"`` one for whom a quarter of the words of
    Dᴬ were drawn anew by his own base, ``"keys/2"`` one whose data carry two keys in equal parts. ``"alice"`` is A,
    ``"base"`` is B₀, and ``"pairs/fresh"`` a set of pairs.
    """

    def __init__(
        self,
        preset: Preset,
        *,
        seed: int = 0,
        run: int = 0,
        key: Key | None = None,
        store: Store | None = None,
        progress: bool = True,
        device: str | None = None,
    ) -> None:
        """``key`` is Alice's secret; without one a demonstration key is derived from the seed, which protects nothing.

        Another ``run`` draws Bob's data and the order of his training anew, from the same models and the same text.
        """
        self.preset, self.seed, self.run, self.progress = preset, seed, run, progress
        self.store = store or Store(default_root())
        self.key: Key = key if key is not None else f"demonstration key {seed}"
        self.device = device or (preset.device if preset.device == "cpu" or torch.cuda.is_available() else "cpu")

    def changed(self, *, run: int | None = None, key: Key | None = None, **changes: Any) -> World:
        """The same world but for another run, another key, or other fields of the preset (dots written as ``__``)."""
        return World(
            self.preset.changed(**changes),
            seed=self.seed,
            run=self.run if run is None else run,
            key=self.key if key is None else key,
            store=self.store,
            progress=self.progress,
            device=self.device,
        )

    # --- text -----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _corpus(self) -> Artifact:
        packages = installed.resolved(self.preset.corpus.packages)

        def build(folder: Path) -> None:
            documents = corpus.read_corpus(packages)
            atomic_write(folder / "documents.jsonl", "".join(json.dumps(asdict(d)) + "\n" for d in documents))

        return self.store.get("corpus", corpus.package_versions(packages), build, version=code_version("world.corpus"))

    @functools.cached_property
    def documents(self) -> list[corpus.Document]:
        """The docstring corpus, both halves."""
        lines = (self._corpus / "documents.jsonl").read_text(encoding="utf-8").splitlines()
        return [corpus.Document(**json.loads(line)) for line in lines]

    def half(self, which: int) -> list[Pair]:
        """The documents of one half: 0 is what Alice's model was pre-trained on, 1 is for Bob's base."""
        return [Pair(d.instruction, d.answer) for d in self.documents if corpus.half(d.topic) == which]

    @functools.cached_property
    def _tokenizer(self) -> Artifact:
        preset = self.preset

        def build(folder: Path) -> None:
            texts = (f"{instructions.OPENING} {d.instruction}\nAnswer: {d.answer}" for d in self.documents)
            models.train_tokenizer(texts, preset.tokenizer.vocab_size, folder)

        return self.store.get(
            "tokenizer",
            preset.tokenizer.model_dump(),
            build,
            inputs=[self._corpus],
            version=code_version("world.models"),
        )

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that Alice and Bob share."""
        if self.preset.alice.hub is None:
            return load_tokenizer(self._tokenizer.path)
        tokenizer = load_tokenizer(self.preset.alice.hub)
        if self.preset.base.hub is not None:
            check_same_tokenizer(tokenizer, load_tokenizer(self.preset.base.hub))
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @functools.cached_property
    def watermark(self) -> Watermark:
        """Alice's watermark under her key."""
        return self.preset.watermark.make(self.key, len(self.tokenizer))

    # --- models ---------------------------------------------------------------------------------------------------

    def alice(self) -> Any:
        """A: Alice's model."""
        return self._load("alice")

    def base(self) -> Any:
        """B₀: Bob's model before fine-tuning."""
        return self._load("base")

    def _load(self, name: str) -> Any:
        half_precision = name == "alice" and self.device.startswith("cuda") and self._model(name).hub is not None
        return load_model(self._source(name), device=self.device, dtype=torch.float16 if half_precision else None)

    def _model(self, name: str) -> Model:
        return self.preset.alice if name == "alice" else self.preset.base

    def _source(self, name: str) -> str | Path:
        hub = self._model(name).hub
        return hub if hub is not None else self._pretrained(name).path

    def _pretrained(self, name: str) -> Artifact:
        model = self._model(name)
        assert model.build is not None and model.pretraining is not None
        made, schedule = model.build, model.pretraining

        def build(folder: Path) -> None:
            generator = self._generator(f"pretraining/{name}")
            documents = instructions.text_ids(self.tokenizer, self.half(_HALVES[name]))
            generator.shuffle(documents)
            examples = training.pack(documents, schedule.length)
            network = models.new_model(made, len(self.tokenizer), self.tokenizer.eos_token_id, self.number(name))
            recipe = training.Recipe(
                epochs=schedule.tokens / (len(examples) * schedule.length),
                learning_rate=schedule.learning_rate,
                batch_size=schedule.batch_size,
                max_length=schedule.length,
            )
            with needs_memory(f"{name}.pretraining.batch_size", f"{name}.pretraining.length"):
                losses = training.train(
                    network.to(self.device),
                    examples,
                    recipe,
                    generator=generator,
                    progress=self._bar(f"pre-training {name}"),
                    steps=training.Steps(compiled=self.preset.compile),
                    savepoint=Savepoint(self.store.scratch(folder)),
                )
            self._save(network, folder)
            write_json(folder / "losses.json", losses)

        config, inputs, version = self._pretraining(name)
        return self.store.get(name, config, build, inputs=inputs, version=version)

    def _pretraining(self, name: str) -> _Named:
        config = {"model": self._model(name).model_dump(), "name": name, "seed": self.seed, **_versions()}
        version = code_version("world.training", "world.models", "world.instructions")
        return config, [self._corpus, self._tokenizer], version

    def bob(self, which: float | str, *, epoch: int | None = None) -> Any:
        """B: Bob's model, fine-tuned on the mixture with share ρ, or another of the fine-tuned models by its name.

        ``epoch`` (from 1) is the model after that epoch, where the recipe keeps checkpoints.
        """
        return load_model(self._weights(self.made(which), epoch), device=self.device)

    def twin(self) -> Any:
        """An innocent twin of Bob: his base, fine-tuned by Alice on plain text of hers that Bob never saw.

        It shows how such a base moves when it learns Alice's style without her mark.
        """
        return self.bob("twin")

    def make(self, *which: float | str) -> None:
        """Make those models and sets of pairs that the store lacks, several at once: see :func:`make_all`."""
        make_all([(self, one) for one in which])

    def has(self, which: float | str) -> bool:
        """Whether the store holds this model, or every shard of this set of pairs. A model from a hub is always there."""
        if which in _HALVES:
            if self._model(str(which)).hub is not None:
                return True
            config, inputs, version = self._pretraining(str(which))
            return self.store.has(str(which), config, inputs=inputs, version=version)
        if pairs := _set_of(which):
            names = [self._writing(pairs, shard) for shard in range(self.preset.shards)]
            return all(self.store.has("pairs", config, inputs=inputs, version=version) for config, inputs, version in names)
        made = self._tuned(which)
        return self.store.has(made.kind, made.config, inputs=made.inputs, version=made.version)

    def training_losses(self, which: float | str) -> list[float]:
        """Mean training loss (nats a token) in each epoch."""
        return list(json.loads((self.made(which) / "losses.json").read_text(encoding="utf-8")))

    @staticmethod
    def _weights(artifact: Artifact, epoch: int | None) -> Path:
        if epoch is None:
            return artifact.path
        if not (artifact / f"epoch-{epoch}").is_dir():
            raise ValueError(f"epoch={epoch} was not kept; set fine_tuning.checkpoints, and choose an epoch from 1 on")
        return artifact / f"epoch-{epoch}"

    def made(self, which: float | str, *, steps: training.Steps | None = None) -> Artifact:
        """The artifact of a model or a set of pairs, made now if the store lacks it.

        ``steps`` says on what a fine-tuned model is trained.
        """
        if which in _HALVES:
            return self._pretrained(str(which))
        if pairs := _set_of(which):
            return self.written(pairs)
        made = self._tuned(which)
        return self.store.get(
            made.kind,
            made.config,
            lambda folder: self._tune(made, steps or training.Steps(compiled=self.preset.compile), folder),
            inputs=made.inputs,
            version=made.version,
        )

    def take_part(self, which: float | str, steps: training.Steps) -> None:
        """Train together with another process, which keeps the result."""
        self._tune(self._tuned(which), steps, None)

    def _tune(self, made: _Tuned, steps: training.Steps, folder: Path | None) -> None:
        recipe = self.preset.fine_tuning.model_copy(update=made.recipe)
        savepoint = Savepoint(self.store.scratch(folder)) if folder is not None and steps.resumable else None

        def keep(place: Path | None) -> None:
            weights = steps.weights()  # of several processes all must ask, and one saves
            if place is not None:
                self._save(tuned.whole(weights), place, None if recipe.adapter is not None else weights)

        def after_epoch(epoch: int) -> None:
            # a training that goes on from its savepoint needs the epochs before it there too
            beside = folder if savepoint is None else savepoint.folder
            keep(None if beside is None else beside / f"epoch-{epoch}")

        with needs_memory("fine_tuning.batch_size", "fine_tuning.max_length"):
            tuned = adapters.Tunable(made.start(), recipe.adapter, device=self.device, seed=self.number("adapter"))
            losses = training.train(
                tuned.network,
                instructions.examples(self.tokenizer, made.pairs()),
                training.Recipe(**recipe.model_dump(exclude={"adapter", "checkpoints"})),
                generator=self._generator(made.stream, run=True),
                progress=self._bar(made.label),
                after_epoch=after_epoch if recipe.checkpoints else None,
                steps=steps,
                savepoint=savepoint,
            )
        keep(folder)
        if folder is not None:
            if savepoint is not None:
                for epoch in savepoint.folder.glob("epoch-*"):
                    shutil.copytree(epoch, folder / epoch.name)
            write_json(folder / "losses.json", losses)

    def _tuned(self, which: float | str) -> _Tuned:
        """What names this fine-tuned model in the store, and how it is made."""
        if not isinstance(which, str):
            return self._tuned_bob(which)
        kind, _, number = which.partition("/")
        if which == "twin":
            return self._tuned_twin()
        makers = {"purified": self._tuned_purified, "redrawn": self._tuned_redrawn, "keys": self._tuned_keys}
        try:
            maker, value = makers[kind], float(number)
            known = kind != "keys" or (value >= 1 and value.is_integer())
        except (KeyError, ValueError):
            known = False
        if not known:
            raise ValueError(
                f"unknown model {which!r}; give a share, 'twin', 'purified/SHARE', 'redrawn/SHARE' or 'keys/COUNT'"
            )
        return maker(value)

    def _tuned_bob(self, rho: float) -> _Tuned:
        mixtures.check_share("rho", rho)
        return _Tuned(
            kind="bob",
            config={"rho": rho, "mixtures": self.preset.mixtures.model_dump(include={"size"}), **self._recipe()},
            inputs=[self.written("watermarked"), self.written("plain"), *self.model_inputs("base")],
            version=self._tuning_code("world.training", "world.mixtures", "world.instructions"),
            pairs=lambda: self.mixture(rho).pairs,
            start=lambda: self._source("base"),
            label=f"fine-tuning Bob at rho = {rho:g}",
        )

    def _tuned_twin(self) -> _Tuned:
        return _Tuned(
            kind="twin",
            config={"size": self.preset.mixtures.size, **self._recipe()},
            inputs=[self.written("kept"), *self.model_inputs("base")],
            version=self._tuning_code("world.training", "world.instructions"),
            pairs=lambda: self.pairs("kept")[: self.preset.mixtures.size],
            start=lambda: self._source("base"),
            label="fine-tuning Bob's twin",
            stream="twin",
        )

    def _tuned_purified(self, rho: float) -> _Tuned:
        settings = self.preset.limits
        changes = {"epochs": float(settings.epochs), "learning_rate": settings.learning_rate, "checkpoints": True}
        return _Tuned(
            kind="purified",
            config={"changes": changes, "size": self.preset.mixtures.size, **self._recipe()},
            inputs=[self.made(rho), self.written("kept")],
            version=self._tuning_code("world.training", "world.instructions"),
            pairs=lambda: self.pairs("kept")[: self.preset.mixtures.size],
            start=lambda: self.made(rho).path,
            label=f"purifying Bob at rho = {rho:g}",
            stream="purification",
            recipe=changes,
        )

    def _tuned_redrawn(self, share: float) -> _Tuned:
        mixtures.check_share("share", share)
        return _Tuned(
            kind="redrawn",
            config={"size": self.preset.mixtures.size, **self._recipe()},
            inputs=[self._redrawn(share), *self.model_inputs("base")],
            version=self._tuning_code("world.training", "world.instructions"),
            pairs=lambda: instructions.load_pairs(self._redrawn(share) / "pairs.jsonl"),
            start=lambda: self._source("base"),
            label=f"fine-tuning Bob on text redrawn by {share:.0%}",
        )

    def _tuned_keys(self, count: float) -> _Tuned:
        worlds = self.with_keys(int(count))
        part = self.preset.mixtures.size // len(worlds)
        if part == 0:
            raise ValueError(f"{len(worlds)} keys cannot share {self.preset.mixtures.size} pairs; raise mixtures.size")
        return _Tuned(
            kind="keys",
            config={"part": part, **self._recipe()},
            inputs=[*(world.written("watermarked") for world in worlds), *self.model_inputs("base")],
            version=self._tuning_code("world.training", "world.instructions"),
            pairs=lambda: [pair for world in worlds for pair in world.alices(part)],
            start=lambda: self._source("base"),
            label=f"fine-tuning Bob on {len(worlds)} keys",
        )

    def alices(self, count: int) -> list[Pair]:
        """A random part of the watermarked pairs that were written for Bob."""
        pairs = self.pairs("watermarked")
        return [pairs[i] for i in self._generator("part", run=True).permutation(len(pairs))[:count]]

    def with_keys(self, count: int) -> list[World]:
        """Worlds with the same Alice and ``count`` keys; the first is this world's."""
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        others = [derive_bytes(self.key, f"mixed key {number}") for number in range(1, count)]
        return [self, *(self.changed(key=other) for other in others)]

    def _redrawn(self, share: float) -> Artifact:
        """Dᴬ after Bob let his base model draw a share of the words anew."""

        def build(folder: Path) -> None:
            pairs = self.alices(self.preset.mixtures.size)
            changed = redrawing.redraw(
                self.base(),
                self.tokenizer,
                pairs,
                share,
                sampling=self.preset.suspect.sampling.make(),
                generator=self._generator("redrawing"),
                batch_size=self.preset.reading.batch_size,
            )
            instructions.save_pairs(folder / "pairs.jsonl", changed)

        config = {
            "share": share,
            "size": self.preset.mixtures.size,
            "sampling": self.preset.suspect.sampling.model_dump(),
            "batch_size": self.preset.reading.batch_size,
            "run": self.run,
            "seed": self.seed,
        }
        inputs = [self.written("watermarked"), *self.model_inputs("base")]
        version = code_version("world.redrawing", "world.instructions")
        return self.store.get("redrawn-pairs", config, build, inputs=inputs, version=version)

    def _tuning_code(self, *files: str) -> str:
        adapter = ("world.adapters",) if self.preset.fine_tuning.adapter else ()
        return code_version(*files, *adapter)

    def _recipe(self) -> dict[str, Any]:
        """What a fine-tuned model depends on besides its data."""
        run = {"run": self.run} if self.run else {}
        return {
            "recipe": self.preset.fine_tuning.model_dump(exclude_defaults=True),
            "base": self.preset.base.model_dump(),
            "seed": self.seed,
            **run,
            **_versions(),
        }

    def model_inputs(self, name: str) -> list[Artifact]:
        """The artifacts behind "alice" or "base": none where the model comes from a hub."""
        return [] if self._model(name).hub is not None else [self._pretrained(name)]

    def suspect(self, which: float | str) -> LocalSuspect:
        """Bob's model behind a closed door: it only answers."""
        settings = self.preset.suspect
        return LocalSuspect(
            self.bob(which),
            stop_tokens=(self.tokenizer.eos_token_id,),
            sampling=settings.sampling.make(),
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            seed=self.number("answers"),
            progress=self._bar(f"Bob ({which}) answers"),
        )

    # --- instruction data -----------------------------------------------------------------------------------------

    def pairs(self, which: PairSet) -> list[Pair]:
        """A set of instruction–answer pairs that Alice's model wrote."""
        return instructions.load_pairs(self.written(which) / "pairs.jsonl")

    def mixture(self, rho: float) -> mixtures.Mixture:
        """D at share ρ."""
        return mixtures.mix(
            self.pairs("watermarked"),
            self.pairs("plain"),
            rho,
            self.preset.mixtures.size,
            generator=self._generator("mixture", run=True),
        )

    def kept_by_alice(self, rho: float) -> tuple[Pair, ...]:
        """D̃ᴬ at d = 1: the watermarked pairs that Bob used. An innocent Bob used none and is tested on :meth:`stand_in`'s.

        Raises ``ShareError`` where ρ of the mixture's size rounds to no pair.
        """
        kept = self.mixture(rho if rho > 0 else self.stand_in()).watermarked
        if not kept:
            raise mixtures.ShareError(
                f"rho={rho} of {self.preset.mixtures.size} pairs holds no watermarked pair; raise rho or mixtures.size"
            )
        return kept

    def data(self, which: float | str) -> list[Pair]:
        """Everything that a model was fine-tuned on."""
        return list(self._tuned(which).pairs())

    def used_by(self, which: float | str) -> Sequence[Pair]:
        """Dᴬ of a model, as Alice wrote it: for a share :meth:`kept_by_alice`, for several keys the part under this key."""
        if not isinstance(which, str):
            return self.kept_by_alice(which)
        kind, _, number = which.partition("/")
        if kind == "purified":
            return self.kept_by_alice(float(number))
        return self.alices(self.preset.mixtures.size // (int(number) if kind == "keys" else 1))

    def stand_in(self) -> float:
        """The share whose Dᴬ an innocent Bob (ρ = 0) is tested on: the smallest above 0 in the preset."""
        return min((rho for rho in self.preset.mixtures.rhos if rho > 0), default=1.0)

    def members_and_candidates(self, d: float) -> mixtures.Kept:
        """D̃ᴬ without a watermark at degree d, against Bob at ρ = 0, whose data are the plain pairs."""
        return mixtures.keep_with_degree(
            self.mixture(0.0).plain,
            self.pairs("kept"),
            d,
            self.preset.membership.candidates,
            generator=self._generator("candidates"),
        )

    def written(self, which: PairSet) -> Artifact:
        """The artifact of a set of pairs. In several shards, they are joined and pairs that occur twice dropped."""
        if self.preset.shards == 1:
            return self.written_shard(which, 0)
        parts = [self.written_shard(which, shard) for shard in range(self.preset.shards)]

        def build(folder: Path) -> None:
            pairs = dict.fromkeys(pair for part in parts for pair in instructions.load_pairs(part / "pairs.jsonl"))
            if len(pairs) < self._count(which):
                raise instructions.TooFewPairsError(
                    f"the shards hold {len(pairs)} distinct {which} pairs of {self._count(which)}; take fewer shards, "
                    "or raise the temperature at which Alice writes"
                )
            instructions.save_pairs(folder / "pairs.jsonl", list(pairs)[: self._count(which)])

        return self.store.get("joined-pairs", {"count": self._count(which)}, build, inputs=parts, version="1")

    def _count(self, which: PairSet) -> int:
        settings = self.preset.self_instruct
        counts: dict[str, int] = {
            "watermarked": settings.pairs,
            "plain": settings.pairs,
            "kept": settings.unused,
            "fresh": settings.fresh,
            "outside": self.preset.membership.fresh,
        }
        if which not in counts:
            raise ValueError(f"unknown set of pairs {which!r}; choose one of {', '.join(counts)}")
        return counts[which]

    def written_shard(self, which: PairSet, shard: int) -> Artifact:
        """The artifact of one of the preset's ``shards`` of a set of pairs."""
        config, inputs, version = self._writing(which, shard)
        settings, shards = self.preset.self_instruct, self.preset.shards
        stream = f"pairs/{which}" if shards == 1 else f"pairs/{which}/{shard} of {shards}"

        def build(folder: Path) -> None:
            with needs_memory("self_instruct.batch_size"):
                pairs = instructions.self_instruct(
                    self.alice(),
                    self.tokenizer,
                    self.demonstrations(),
                    config["count"],
                    shown=settings.shown,
                    sampling=settings.sampling.make(),
                    max_new_tokens=settings.max_new_tokens,
                    generator=self._generator(stream),
                    wm=self.watermark if which in _WATERMARKED else None,
                    batch_size=settings.batch_size,
                    progress=self._bar(f"Alice writes {which} pairs"),
                )
            instructions.save_pairs(folder / "pairs.jsonl", pairs)

        return self.store.get("pairs", config, build, inputs=inputs, version=version)

    def remarked(self, wms: Sequence[Watermark], count: int) -> list[list[Pair]]:
        """``count`` pairs under each of other watermarks, written as those of :meth:`pairs` were under Alice's own."""
        settings = self.preset.self_instruct
        wrote, inputs, version = self._writing("fresh", 0)
        keys = [wm.fingerprint for wm in wms]
        config = {**wrote, "set": "remarked", "count": count, "watermark": {**wrote["watermark"], "fingerprint": keys}}

        def build(folder: Path) -> None:
            with needs_memory("self_instruct.batch_size"):
                worlds = instructions.self_instruct_under(
                    self.alice(),
                    self.tokenizer,
                    self.demonstrations(),
                    count,
                    wms,
                    shown=settings.shown,
                    sampling=settings.sampling.make(),
                    max_new_tokens=settings.max_new_tokens,
                    generator=self._generator("pairs/remarked"),
                    batch_size=settings.batch_size,
                    progress=self._bar(f"Alice writes under {len(wms)} other keys"),
                )
            instructions.save_pairs(folder / "pairs.jsonl", [pair for pairs in worlds for pair in pairs])

        artifact = self.store.get("remarked-pairs", config, build, inputs=inputs, version=version)
        rows = instructions.load_pairs(artifact / "pairs.jsonl")
        return [rows[i * count : (i + 1) * count] for i in range(len(wms))]

    def _writing(self, which: PairSet, shard: int) -> _Named:
        count, shards = self._count(which), self.preset.shards
        if shards > 1:  # a fiftieth more, for what is written twice
            count = math.ceil(1.02 * count / shards)
        wm = self.watermark if which in _WATERMARKED else None
        config = {
            "set": which,
            "count": count,
            "self_instruct": self.preset.self_instruct.model_dump(exclude={"pairs", "unused", "fresh"}),
            "demonstration_tokens": _DEMONSTRATION_TOKENS,
            "alice": self.preset.alice.model_dump(),
            "watermark": None if wm is None else {"fingerprint": wm.fingerprint, "delta": self.preset.watermark.delta},
            "seed": self.seed,
        }
        if shards > 1:
            config |= {"shard": shard, "shards": shards}
        version = code_version("decoding", "watermarks", "world.instructions")
        return config, [self._corpus, *self.model_inputs("alice")], version

    def demonstrations(self) -> list[Pair]:
        """Short documents of Alice's own half, shown to her as examples."""
        pairs = self.half(0)
        ids = instructions.text_ids(self.tokenizer, pairs)
        return [pair for pair, tokens in zip(pairs, ids, strict=True) if tokens.size <= _DEMONSTRATION_TOKENS]

    def held_out(self, count: int) -> list[Pair]:
        """Real documents of Alice's half, which Bob's base has not seen."""
        pairs = self.half(0)
        chosen = self._generator("held out").permutation(len(pairs))[:count]
        return [pairs[i] for i in chosen]

    # --- helpers --------------------------------------------------------------------------------------------------

    def _save(self, network: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
        network.save_pretrained(str(folder), safe_serialization=True, state_dict=weights)
        self.tokenizer.save_pretrained(str(folder))

    def number(self, name: str) -> int:
        """A seed for one use of chance."""
        return int(self._generator(name).integers(1 << 31))

    def _generator(self, name: str, *, run: bool = False) -> np.random.Generator:
        """Each use of chance has its own stream, so that adding one leaves the others as they were.

        With ``run`` the stream is another one in another run.
        """
        stream = f"{name}/run {self.run}" if run and self.run else name
        return np.random.default_rng([self.seed, zlib.crc32(stream.encode())])

    def _bar(self, label: str) -> str | None:
        return label if self.progress else None


def _set_of(which: float | str) -> PairSet | None:
    """The set of pairs that a name means."""
    named = isinstance(which, str) and which.startswith("pairs/")
    return cast(PairSet, str(which).removeprefix("pairs/")) if named else None


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
