"""The world of one preset and seed: who wrote what, and who was trained on it.

Every object is an artifact of the store: asked for, it is read if it exists and made if it does not. Its key hashes its
whole configuration, the code that makes it and the keys of what it is made from.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers

from radio_utils.artifacts import Artifact, Store, atomic_write, default_root, write_json
from radio_utils.contrast import Contrast
from radio_utils.evidence import Evidence
from radio_utils.presets import Model, Preset
from radio_utils.prf import Key
from radio_utils.reading import read_contrast, read_evidence
from radio_utils.suspects import LocalSuspect, check_same_tokenizer, load_model, load_tokenizer
from radio_utils.watermarks import Watermark
from radio_utils.world import corpus, instructions, mixtures, models, training
from radio_utils.world.instructions import Pair
from radio_utils.world.workers import train_side_by_side

logger = logging.getLogger(__name__)

PairSet = Literal["watermarked", "plain", "kept", "fresh", "outside"]
# watermarked: what Bob may train on, under Alice's key     plain: the same without a key, the fill of the mixtures
# kept: plain pairs that Alice kept and Bob did not use     fresh: watermarked pairs that nobody else saw
# outside: plain pairs that nobody else saw
_WATERMARKED: tuple[PairSet, ...] = ("watermarked", "fresh")
_DEMONSTRATION_TOKENS = 70  # longer documents make poor examples: they fill the context


class World:
    """Alice, Bob and their data at one preset and seed."""

    def __init__(
        self, preset: Preset, *, seed: int = 0, key: Key | None = None, store: Store | None = None, progress: bool = True
    ) -> None:
        """``key`` is Alice's secret; without one a demonstration key is derived from the seed, which protects nothing."""
        self.preset, self.seed, self.progress = preset, seed, progress
        self.store = store or Store(default_root())
        self.key: Key = key if key is not None else f"demonstration key {seed}"
        self.device = preset.device if preset.device == "cpu" or torch.cuda.is_available() else "cpu"

    # --- text -----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _corpus(self) -> Artifact:
        packages = self.preset.corpus.packages

        def build(folder: Path) -> None:
            documents = corpus.read_corpus(packages)
            atomic_write(folder / "documents.jsonl", "".join(json.dumps(asdict(d)) + "\n" for d in documents))

        return self.store.get("corpus", corpus.package_versions(packages), build, version=_code("world/corpus.py"))

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
            "tokenizer", preset.tokenizer.model_dump(), build, inputs=[self._corpus], version=_code("world/models.py")
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
        return self._load(self.preset.alice, "alice", half=0)

    def base(self) -> Any:
        """B₀: Bob's model before fine-tuning."""
        return self._load(self.preset.base, "base", half=1)

    def _load(self, model: Model, name: str, half: int) -> Any:
        source = model.hub if model.hub is not None else self._pretrained(model, name, half).path
        return load_model(source, device=self.device, dtype=torch.float16 if self._half_precision(name) else None)

    def _half_precision(self, name: str) -> bool:
        return name == "alice" and self.device == "cuda" and self.preset.alice.hub is not None

    def _pretrained(self, model: Model, name: str, half: int) -> Artifact:
        assert model.build is not None and model.pretraining is not None
        made, schedule = model.build, model.pretraining

        def build(folder: Path) -> None:
            generator = self._generator(f"pretraining/{name}")
            documents = instructions.text_ids(self.tokenizer, self.half(half))
            generator.shuffle(documents)
            examples = training.pack(documents, schedule.length)
            network = models.new_model(made, len(self.tokenizer), self.tokenizer.eos_token_id, self._number(name))
            recipe = training.Recipe(
                epochs=schedule.tokens / (len(examples) * schedule.length),
                learning_rate=schedule.learning_rate,
                batch_size=schedule.batch_size,
                max_length=schedule.length,
            )
            label = self._bar(f"pre-training {name}")
            losses = training.train(network.to(self.device), examples, recipe, generator=generator, progress=label)
            self._save(network, folder, losses)

        config = {"model": model.model_dump(), "name": name, "seed": self.seed, **_versions()}
        version = _code("world/training.py", "world/models.py", "world/instructions.py")
        return self.store.get(name, config, build, inputs=[self._corpus, self._tokenizer], version=version)

    def bob(self, rho: float) -> Any:
        """B: Bob's model, fine-tuned on the mixture with share ρ."""
        return load_model(self._fine_tuned(rho).path, device=self.device)

    def twin(self) -> Any:
        """An innocent twin of Bob: his base, fine-tuned by Alice on plain text of hers that Bob never saw.

        It shows how such a base moves when it learns Alice's style without her mark.
        """
        return load_model(self._twin().path, device=self.device)

    def _twin(self) -> Artifact:
        def build(folder: Path) -> None:
            self._tune(self.pairs("kept")[: self.preset.mixtures.size], "twin", "fine-tuning Bob's twin", folder)

        config, inputs, version = self._twin_recipe()
        return self.store.get("twin", config, build, inputs=inputs, version=version)

    def _has_twin(self) -> bool:
        config, inputs, version = self._twin_recipe()
        return self.store.has("twin", config, inputs=inputs, version=version)

    def _twin_recipe(self) -> tuple[dict[str, Any], list[Artifact], str]:
        inputs = [self._pairs_artifact("kept"), *self._model_inputs("base")]
        config = {"size": self.preset.mixtures.size, **self._recipe()}
        return config, inputs, _code("world/training.py", "world/instructions.py")

    def train_bobs(self, rhos: Sequence[float], *, twin: bool = False, workers: int | None = None) -> None:
        """Train those Bobs (and with ``twin`` the innocent twin) that the store lacks.

        On a processor several are trained at once, by default one for each core.
        """
        self._model_inputs("base")
        for which in ("watermarked", "plain", *(("kept",) if twin else ())):
            self._pairs_artifact(which)
        missing: list[float | Literal["twin"]] = [rho for rho in rhos if not self._has_bob(rho)]
        if twin and not self._has_twin():
            missing.append("twin")
        count = workers if workers is not None else torch.get_num_threads() if self.device == "cpu" else 1
        if count > 1 and len(missing) > 1:
            train_side_by_side(self, missing, count)
        for one in missing:
            self.fine_tune(one)

    def fine_tune(self, which: float | Literal["twin"]) -> None:
        """Make the Bob of this share ρ, or the twin, if the store lacks it."""
        if which == "twin":
            self._twin()
        else:
            self._fine_tuned(which)

    def training_losses(self, rho: float) -> list[float]:
        """Bob's mean training loss (nats a token) in each epoch."""
        return list(json.loads((self._fine_tuned(rho) / "losses.json").read_text(encoding="utf-8")))

    def _has_bob(self, rho: float) -> bool:
        config, inputs, version = self._bob_recipe(rho)
        return self.store.has("bob", config, inputs=inputs, version=version)

    def _fine_tuned(self, rho: float) -> Artifact:
        def build(folder: Path) -> None:
            self._tune(self.mixture(rho).pairs, "fine-tuning", f"fine-tuning Bob at rho = {rho:g}", folder)

        config, inputs, version = self._bob_recipe(rho)
        return self.store.get("bob", config, build, inputs=inputs, version=version)

    def _tune(self, pairs: Sequence[Pair], stream: str, label: str, folder: Path) -> None:
        """Fine-tune Bob's base on these pairs by his recipe, and save it."""
        network = self.base()
        losses = training.train(
            network,
            instructions.examples(self.tokenizer, pairs),
            training.Recipe(**self.preset.fine_tuning.model_dump()),
            generator=self._generator(stream),
            progress=self._bar(label),
        )
        self._save(network, folder, losses)

    def _recipe(self) -> dict[str, Any]:
        """What a fine-tuned model depends on besides its data."""
        return {
            "recipe": self.preset.fine_tuning.model_dump(),
            "base": self.preset.base.model_dump(),
            "seed": self.seed,
            **_versions(),
        }

    def _bob_recipe(self, rho: float) -> tuple[dict[str, Any], list[Artifact], str]:
        """Configuration, inputs and code version: what names a Bob in the store."""
        mixtures.check_share("rho", rho)
        inputs = [self._pairs_artifact("watermarked"), self._pairs_artifact("plain"), *self._model_inputs("base")]
        config = {
            "rho": rho,
            "mixtures": self.preset.mixtures.model_dump(include={"size"}),
            **self._recipe(),
        }
        return config, inputs, _code("world/training.py", "world/mixtures.py", "world/instructions.py")

    def _model_inputs(self, name: str) -> list[Artifact]:
        model, half = (self.preset.alice, 0) if name == "alice" else (self.preset.base, 1)
        return [] if model.hub is not None else [self._pretrained(model, name, half)]

    def suspect(self, rho: float) -> LocalSuspect:
        """Bob's model behind a closed door: it only answers."""
        settings = self.preset.suspect
        return LocalSuspect(
            self.bob(rho),
            stop_tokens=(self.tokenizer.eos_token_id,),
            sampling=settings.sampling.make(),
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            seed=self._number("answers"),
            progress=self._bar(f"Bob at rho = {rho:g} answers"),
        )

    def answers(self, rho: float, prompts_of: PairSet, count: int) -> tuple[list[Any], list[Any]]:
        """Bob's answers to ``count`` prompts of a set, from the store: (prompts, answers) as token ids.

        For "watermarked" the prompts are those of :meth:`kept_by_alice`, asked again and again until ``count``.
        """
        pairs = self.kept_by_alice(rho) if prompts_of == "watermarked" else self.pairs(prompts_of)
        asked = instructions.prompt_ids(self.tokenizer, [pairs[i % len(pairs)] for i in range(count)])

        def build(folder: Path) -> None:
            given = self.suspect(rho).answer(asked)
            write_json(folder / "answers.json", [answer.tolist() for answer in given])

        config = {
            "suspect": self.preset.suspect.model_dump(),
            "prompts": prompts_of,
            "count": count,
            "seed": self.seed,
            "stand_in": self.stand_in(),
        }
        artifact = self.store.get(
            "answers", config, build,
            inputs=[self._fine_tuned(rho), self._pairs_artifact(prompts_of)],
            version=_code("decoding.py", "suspects.py", "world/instructions.py", "world/mixtures.py"),
        )  # fmt: skip
        rows = json.loads((artifact / "answers.json").read_text(encoding="utf-8"))
        return asked, [np.array(row, np.int64) for row in rows]

    def reading(self, rho: float, setting: Literal["supervised", "unsupervised", "plain"]) -> Evidence:
        """What Bob expects along Alice's texts (reading mode), from the store: it depends on no key, so audits rescore it.

        Supervised, the texts are Dᴬ; unsupervised, fresh watermarked text that Bob never saw; plain, fresh text of hers
        without the watermark.
        """
        if setting not in ("supervised", "unsupervised", "plain"):
            raise ValueError(f"setting must be 'supervised', 'unsupervised' or 'plain', got {setting!r}")
        fresh: PairSet = "outside" if setting == "plain" else "fresh"
        texts = self.kept_by_alice(rho) if setting == "supervised" else self.pairs(fresh)

        def build(folder: Path) -> None:
            pairs = texts[: self.preset.reading.texts]
            found = read_evidence(
                self.bob(rho),
                instructions.answer_ids(self.tokenizer, pairs),
                self.watermark.window,
                self.watermark.vocab_size,
                prompts=instructions.prompt_ids(self.tokenizer, pairs),
                batch_size=self.preset.reading.batch_size,
                progress=self._bar(f"reading with Bob at rho = {rho:g}, {setting}"),
            )
            found.save(folder / "evidence.npz")

        config = {
            "setting": setting,
            "texts": self.preset.reading.texts,
            "window": self.watermark.window,
            "seed": self.seed,
            "stand_in": self.stand_in(),
        }
        artifact = self.store.get(
            "reading",
            config,
            build,
            inputs=[self._fine_tuned(rho), self._pairs_artifact(fresh)],
            version=_code("reading.py", "evidence.py", "world/instructions.py", "world/mixtures.py"),
        )
        return Evidence.load(artifact / "evidence.npz")

    def contrast(self, rho: float, *, twin: bool = True) -> Contrast:
        """What Bob expects along plain text of Alice's and his base does not (contrastive reading), from the store.

        The text is un-watermarked and nobody was trained on it; with ``twin`` Alice's innocent twin is a reference too.
        """

        def build(folder: Path) -> None:
            pairs = self.pairs("outside")[: self.preset.reading.texts]
            found = read_contrast(
                self.bob(rho),
                [self.base(), self.twin()] if twin else self.base(),
                instructions.answer_ids(self.tokenizer, pairs),
                self.watermark.window,
                self.watermark.vocab_size,
                prompts=instructions.prompt_ids(self.tokenizer, pairs),
                batch_size=self.preset.reading.batch_size,
                progress=self._bar(f"contrastive reading with Bob at rho = {rho:g}"),
            )
            found.save(folder)

        config = {"texts": self.preset.reading.texts, "window": self.watermark.window, "twin": twin}
        artifact = self.store.get(
            "contrast",
            config,
            build,
            inputs=[self._fine_tuned(rho), self._pairs_artifact("outside"), *([self._twin()] if twin else [])],
            version=_code("reading.py", "contrast.py", "evidence.py", "world/instructions.py"),
        )
        return Contrast.load(artifact.path)

    # --- instruction data -----------------------------------------------------------------------------------------

    def pairs(self, which: PairSet) -> list[Pair]:
        """A set of instruction–answer pairs that Alice's model wrote."""
        return instructions.load_pairs(self._pairs_artifact(which) / "pairs.jsonl")

    def mixture(self, rho: float) -> mixtures.Mixture:
        """D at share ρ."""
        return mixtures.mix(
            self.pairs("watermarked"),
            self.pairs("plain"),
            rho,
            self.preset.mixtures.size,
            generator=self._generator("mixture"),
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

    def _pairs_artifact(self, which: PairSet) -> Artifact:
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
        wm = self.watermark if which in _WATERMARKED else None

        def build(folder: Path) -> None:
            pairs = instructions.self_instruct(
                self.alice(),
                self.tokenizer,
                self.demonstrations(),
                counts[which],
                shown=settings.shown,
                sampling=settings.sampling.make(),
                max_new_tokens=settings.max_new_tokens,
                generator=self._generator(f"pairs/{which}"),
                wm=wm,
                batch_size=settings.batch_size,
                progress=self._bar(f"Alice writes {which} pairs"),
            )
            instructions.save_pairs(folder / "pairs.jsonl", pairs)

        config = {
            "set": which,
            "count": counts[which],
            "self_instruct": settings.model_dump(exclude={"pairs", "unused", "fresh"}),
            "demonstration_tokens": _DEMONSTRATION_TOKENS,
            "alice": self.preset.alice.model_dump(),
            "watermark": None if wm is None else {"fingerprint": wm.fingerprint, "delta": self.preset.watermark.delta},
            "seed": self.seed,
        }
        version = _code("decoding.py", "watermarks.py", "prf.py", "world/instructions.py")
        return self.store.get("pairs", config, build, inputs=[self._corpus, *self._model_inputs("alice")], version=version)

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

    def _save(self, network: Any, folder: Path, losses: list[float]) -> None:
        network.save_pretrained(str(folder), safe_serialization=True)
        self.tokenizer.save_pretrained(str(folder))
        write_json(folder / "losses.json", losses)

    def _number(self, name: str) -> int:
        return int(self._generator(name).integers(1 << 31))

    def _generator(self, name: str) -> np.random.Generator:
        """Each use of chance has its own stream, so that adding one leaves the others as they were."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def _bar(self, label: str) -> str | None:
        return label if self.progress else None


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}


@functools.cache
def _code(*files: str) -> str:
    """Hash of the modules that make an artifact: when they change it is made anew."""
    root = resources.files("radio_utils")
    digest = hashlib.sha256()
    for file in files:
        digest.update(root.joinpath(*file.split("/")).read_bytes())
    return digest.hexdigest()[:16]
