"""A Bob of another family: his base is somebody else's model, with a tokenizer of its own.

He learns Alice's answers as text, cut into his own tokens. Asked, what he says is cut into hers again; read, his
predictions are carried over to her tokens (:mod:`radio_utils.retokenising`). His base, as it was published, is the innocent
beside him.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radio_utils import experiments, querying
from radio_utils.detection import Detection, judge
from radio_utils.evidence import frequent_windows
from radio_utils.provenance import code_version
from radio_utils.retokenising import Retokenised, read_across
from radio_utils.suspects import load_model, load_tokenizer
from radio_utils.suspects.feeding import Feeding
from radio_utils.suspects.memory import needs_memory
from radio_utils.world import instructions, pretrained, training
from radio_utils.world.instructions import Pair
from radio_utils.world.names import PairSet
from radio_utils.world.savepoints import Savepoint
from radio_utils.world.setting import library_versions
from radio_utils.world.world import World

# how far Alice may look into him, and whether she asks or reads what he was given or fresh text
TESTS = ("reading, supervised", "answers, supervised", "answers, unsupervised")


@dataclass(frozen=True)
class Stranger:
    """A model of another family with its tokenizer, and the world whose Alice tests it."""

    world: World
    model: Any
    tokenizer: Any

    @classmethod
    def of(cls, world: World, base: str | Path, *, trained: bool) -> Stranger:
        """The model of a GGUF file, as it is or fine-tuned on all the marked pairs that the Bob of ρ = 1 was given.

        Raises :class:`radio_utils.suspects.ModelFolderError` where there is no such file, or it cannot be read.
        """
        source = _fine_tuned(world, base) if trained else base
        model = load_model(source, device=world.device, dtype=world.precision)
        return cls(world, model, load_tokenizer(source))

    def verdict(self, test: str) -> Detection:
        """One of :data:`TESTS`. Supervised answers are filtered by the windows of what he was given (the filter φ)."""
        if test not in TESTS:
            raise ValueError(f"test must be one of {', '.join(map(repr, TESTS))}, got {test!r}")
        world, wm = self.world, self.world.watermark
        given = _given(world)
        if test == TESTS[0]:
            pairs = given[: world.preset.reading.texts]
            asked, texts = instructions.written_ids(world.tokenizer, pairs)
            if world.chat is not None:  # he is trained without Alice's template, whose questions hold no mark
                asked = instructions.prompt_ids(world.tokenizer, _plain(pairs))
            with needs_memory("reading.batch_size"):
                found = read_across(
                    self.model, self.tokenizer, world.tokenizer, texts,
                    prompts=asked, batch_size=world.preset.reading.batch_size,
                )  # fmt: skip
            return judge(experiments.scored(world, found), wm)
        which: PairSet = "watermarked" if test == TESTS[1] else "fresh"
        pairs = given if which == "watermarked" else world.pairs(which)
        count = world.preset.querying.prompts
        asked = instructions.prompt_ids(world.tokenizer, _plain([pairs[i % len(pairs)] for i in range(count)]))
        suspect = Retokenised(
            self.model,
            its_tokenizer=self.tokenizer,
            tokenizer=world.tokenizer,
            stop_tokens=(self.tokenizer.eos_token_id,),
            **world.answering("a stranger answers"),
        )
        with needs_memory("suspect.batch_size"):
            answers = suspect.answer(asked)
        keep = None
        if which == "watermarked":
            texts = instructions.written_ids(world.tokenizer, given)[1]
            keep = frequent_windows(texts, wm.window, wm.vocab_size)
        return querying.score_answers(asked, answers, wm, keep=keep)


def _given(world: World) -> list[Pair]:
    return list(world.kept_by_alice(1.0))


def _plain(pairs: Sequence[Pair]) -> list[Pair]:
    """Without what one family's chat template sets around them."""
    return [Pair(pair.instruction, pair.answer) for pair in pairs]


def _fine_tuned(world: World, base: str | Path) -> Path:
    """The folder of the model of a GGUF file after training on Alice's pairs, and of its tokenizer."""
    settings, pairs = world.preset.fine_tuning, _plain(_given(world))
    recipe = training.Recipe(**settings.model_dump(exclude={"adapter", "checkpoints"}))

    def build(folder: Path) -> None:
        tokenizer = load_tokenizer(base)
        model = pretrained.as_saved(load_model(base)).to(world.device)
        before = np.array(Feeding.of(tokenizer).before, np.int64)
        examples = [
            training.Example(np.concatenate([before, one.ids]), before.size + one.loss_from)
            for one in instructions.examples(tokenizer, pairs)
        ]
        with needs_memory("fine_tuning.batch_size", "fine_tuning.max_length"):
            training.train(
                model, examples, recipe,
                generator=np.random.default_rng(world.number("stranger")),
                progress="fine-tuning a stranger" if world.progress else None,
                steps=training.Steps(compiled=world.preset.compile, precision=world.precision),
                savepoint=Savepoint(world.store.scratch(folder)),
            )  # fmt: skip
        model.save_pretrained(str(folder), safe_serialization=True)
        tokenizer.save_pretrained(str(folder))

    config = {
        "base": pretrained.facts_of(base), "recipe": settings.model_dump(exclude_defaults=True), "size": len(pairs),
        "seed": world.seed, **library_versions(),
    }  # fmt: skip
    artifact = world.store.get(
        "stranger", config, build, inputs=[world.written("watermarked")], version=code_version(build, _given)
    )
    return artifact.path
