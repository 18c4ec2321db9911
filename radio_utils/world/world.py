"""The world of one preset and seed: who wrote what, and who was trained on it.

Every object is an artifact of the store: asked for, it is read if it exists and made if it does not. Its key hashes its
whole configuration, the code that makes it and the keys of what it is made from. The classes stand on each other along the
flow of the data, and each knows those before it only: ``setting → origins → writing → choosing → tuning → world``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from radio_utils.artifacts import Artifact
from radio_utils.suspects import LocalSuspect, load_model
from radio_utils.world import training
from radio_utils.world.names import Pretrained, Texts, Which, named
from radio_utils.world.tuning import Tuning
from radio_utils.world.workers import make_all


class World(Tuning):
    """Alice, Bob and their data at one preset and seed.

    What it makes has a name (:mod:`radio_utils.world.names`): a number is the Bob of that share ρ, ``"twin"`` his innocent
    twin, ``"purified/0.5"`` the Bob of ρ = 0.5 after clean fine-tuning, ``"redrawn/0.25"`` one for whom a quarter of the
    words of Dᴬ were drawn anew by his own base, ``"keys/2"`` one whose data carry two keys in equal parts. ``"alice"`` is
    A, ``"base"`` is B₀, and ``"pairs/fresh"`` a set of pairs.
    """

    @property
    def memory_gb(self) -> float:
        """GB that one process needs to make anything here."""
        return self.preset.memory_gb

    def made(self, which: Which, *, steps: training.Steps | None = None) -> Artifact:
        """The artifact of a model or a set of pairs, made now if the store lacks it.

        ``steps`` says on what a fine-tuned model is trained.
        """
        match named(which):
            case Pretrained(who):
                return self._pretrained(who)
            case Texts(pairs):
                return self.written(pairs)
            case name:
                return self._fine_tuned(name, steps)

    def has(self, which: Which) -> bool:
        """Whether the store holds this model, or every shard of this set of pairs. A model from a hub is always there."""
        match named(which):
            case Pretrained(who):
                return self._model(who).hub is not None or self._has(self._pretraining(who))
            case Texts(pairs):
                return self._has_written(pairs)
            case name:
                return self._has(self._tuned(name).spec)

    def make(self, *which: Which) -> None:
        """Make those models and sets of pairs that the store lacks, several at once: see :func:`make_all`."""
        make_all([(self, one) for one in which])

    def bob(self, which: Which, *, epoch: int | None = None) -> Any:
        """B: Bob's model, fine-tuned on the mixture with share ρ, or another of the fine-tuned models by its name.

        ``epoch`` (from 1) is the model after that epoch, where the recipe keeps checkpoints.
        """
        return load_model(_weights(self.made(which), epoch), device=self.device, dtype=self.precision)

    def twin(self) -> Any:
        """An innocent twin of Bob: his base, fine-tuned by Alice on plain text of hers that Bob never saw.

        It shows how such a base moves when it learns Alice's style without her mark.
        """
        return self.bob("twin")

    def suspect(self, which: Which) -> LocalSuspect:
        """Bob's model behind a closed door: it only answers."""
        label = f"Bob ({which}) answers"
        return LocalSuspect(self.bob(which), stop_tokens=(self.tokenizer.eos_token_id,), **self.answering(label))

    def answering(self, label: str) -> dict[str, Any]:
        """How every suspect here answers: the options of a ``LocalSuspect`` but for its model and stop tokens."""
        settings = self.preset.suspect
        return {
            "sampling": settings.sampling.make(),
            "max_new_tokens": settings.max_new_tokens,
            "batch_size": settings.batch_size,
            "seed": self.number("answers"),
            "progress": self._bar(label),
        }

    def training_losses(self, which: Which) -> list[float]:
        """Mean training loss (nats a token) in each epoch."""
        return list(json.loads((self.made(which) / "losses.json").read_text(encoding="utf-8")))


def _weights(artifact: Artifact, epoch: int | None) -> Path:
    if epoch is None:
        return artifact.path
    if not (artifact / f"epoch-{epoch}").is_dir():
        raise ValueError(f"epoch={epoch} was not kept; set fine_tuning.checkpoints, and choose an epoch from 1 on")
    return artifact / f"epoch-{epoch}"
