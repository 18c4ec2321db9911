"""What Bob makes of his data: models fine-tuned from his base, each an artifact that its name describes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from radio_utils.artifacts import Artifact
from radio_utils.files import write_json
from radio_utils.provenance import code_version
from radio_utils.suspects.memory import needs_memory
from radio_utils.world import adapters, instructions, training
from radio_utils.world.choosing import Choosing
from radio_utils.world.instructions import Pair
from radio_utils.world.names import Bob, FineTuned, ManyKeys, Purified, Redrawn, Twin, Which, fine_tuned
from radio_utils.world.savepoints import Savepoint
from radio_utils.world.setting import Spec, library_versions


@dataclass(frozen=True)
class _Tuned:
    """A fine-tuned model: what names it, and how to make it."""

    spec: Spec
    pairs: Callable[[], Sequence[Pair]]
    start: Callable[[], str | Path]  # the weights it starts from: a folder or hub name
    label: str
    stream: str = "fine-tuning"
    recipe: dict[str, Any] = field(default_factory=dict)  # where it differs from Bob's


class Tuning(Choosing):
    """Bob's fine-tuning, and its variants."""

    def data(self, which: Which) -> list[Pair]:
        """Everything that a model was fine-tuned on."""
        return list(self._tuned(fine_tuned(which)).pairs())

    def take_part(self, which: Which, steps: training.Steps) -> None:
        """Train together with another process, which keeps the result."""
        self._tune(self._tuned(fine_tuned(which)), steps, None)

    def _fine_tuned(self, name: FineTuned, steps: training.Steps | None = None) -> Artifact:
        """The artifact of a fine-tuned model, trained by ``steps`` if the store lacks it."""
        made = self._tuned(name)
        taken = steps or training.Steps(compiled=self.preset.compile, precision=self.precision)
        return self._get(made.spec, lambda folder: self._tune(made, taken, folder))

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
                self._examples(made.pairs()),
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

    def _tuned(self, name: FineTuned) -> _Tuned:
        """What names this fine-tuned model in the store, and how it is made."""
        match name:
            case Bob(rho):
                return self._tuned_bob(rho)
            case Twin():
                return self._tuned_twin()
            case Purified(rho):
                return self._tuned_purified(rho)
            case Redrawn(share):
                return self._tuned_redrawn(share)
            case ManyKeys(count):
                return self._tuned_keys(count)

    def _tuned_bob(self, rho: float) -> _Tuned:
        config = {"rho": rho, "mixtures": self.preset.mixtures.model_dump(include={"size"})}
        inputs = [self.written("watermarked"), self.written("plain")]
        return self._from_base("bob", config, inputs, lambda: self.mixture(rho).pairs, f"fine-tuning Bob at rho = {rho:g}")

    def _tuned_twin(self) -> _Tuned:
        made = self._from_base("twin", self._size(), [self.written("kept")], self._clean, "fine-tuning Bob's twin")
        return replace(made, stream="twin")

    def _tuned_purified(self, rho: float) -> _Tuned:
        settings = self.preset.limits
        changes = {"epochs": float(settings.epochs), "learning_rate": settings.learning_rate, "checkpoints": True}
        guilty = self._fine_tuned(Bob(rho))
        config, inputs = {"changes": changes, **self._size()}, [guilty, self.written("kept")]
        return _Tuned(
            self._spec("purified", config, inputs, self._clean),
            pairs=self._clean,
            start=lambda: guilty.path,
            label=f"purifying Bob at rho = {rho:g}",
            stream="purification",
            recipe=changes,
        )

    def _tuned_redrawn(self, share: float) -> _Tuned:
        redrawn = self._redrawn(share)

        def pairs() -> list[Pair]:
            return self._asked(instructions.load_pairs(redrawn / "pairs.jsonl"))

        return self._from_base("redrawn", self._size(), [redrawn], pairs, f"fine-tuning Bob on text redrawn by {share:.0%}")

    def _tuned_keys(self, count: int) -> _Tuned:
        worlds = self.with_keys(count)
        part = self.preset.mixtures.size // count
        if part == 0:
            raise ValueError(f"{count} keys cannot share {self.preset.mixtures.size} pairs; raise mixtures.size")

        def pairs() -> list[Pair]:
            return [pair for world in worlds for pair in world.alices(part)]

        inputs = [world.written("watermarked") for world in worlds]
        return self._from_base("keys", {"part": part}, inputs, pairs, f"fine-tuning Bob on {count} keys")

    def _from_base(
        self, kind: str, config: dict[str, Any], inputs: list[Artifact], pairs: Callable[[], Sequence[Pair]], label: str
    ) -> _Tuned:
        """One who began with Bob's base."""
        spec = self._spec(kind, config, [*inputs, *self.model_inputs("base")], pairs)
        return _Tuned(spec, pairs, start=lambda: self.source("base"), label=label)

    def _examples(self, pairs: Sequence[Pair]) -> list[training.Example]:
        """What a model learns of pairs: the answer, behind the prompt that everybody is asked with."""
        return instructions.examples(self.tokenizer, pairs) if self.chat is None else self.chat.examples(pairs)

    def _clean(self) -> Sequence[Pair]:
        """Plain pairs that no Bob has met."""
        return self.pairs("kept")[: self.preset.mixtures.size]

    def _size(self) -> dict[str, Any]:
        return {"size": self.preset.mixtures.size}

    def _spec(self, kind: str, config: dict[str, Any], inputs: list[Artifact], pairs: Callable[[], Sequence[Pair]]) -> Spec:
        """What names a fine-tuned model: besides ``config`` and its data, the recipe and the base."""
        common = {
            "recipe": self.preset.fine_tuning.model_dump(exclude_defaults=True),
            "base": self.preset.base.model_dump(),
            "seed": self.seed,
            **({"run": self.run} if self.run else {}),
            **library_versions(),
        }
        return Spec(kind, config | common, inputs, code_version(self._tune, pairs))
