"""What Bob takes of what Alice wrote: mixtures at a share, parts, redrawn text, and what Alice keeps of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from radio_utils.artifacts import Artifact
from radio_utils.provenance import code_version
from radio_utils.world import instructions, mixtures, redrawing
from radio_utils.world.instructions import Pair
from radio_utils.world.names import Bob, ManyKeys, Purified, Which, named
from radio_utils.world.setting import Spec
from radio_utils.world.writing import Writing


class Choosing(Writing):
    """The data of every Bob."""

    def mixture(self, rho: float) -> mixtures.Mixture:
        """D at share ρ."""
        return mixtures.mix(
            self.pairs("watermarked"),
            self.pairs("plain"),
            rho,
            self.preset.mixtures.size,
            generator=self._generator("mixture", run=True),
        )

    def stand_in(self) -> float:
        """The share whose Dᴬ an innocent Bob (ρ = 0) is tested on: the smallest above 0 in the preset."""
        return min((rho for rho in self.preset.mixtures.rhos if rho > 0), default=1.0)

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

    def used_by(self, which: Which) -> Sequence[Pair]:
        """Dᴬ of a model, as Alice wrote it: for a share :meth:`kept_by_alice`, for several keys the part under this key."""
        match named(which):
            case Bob(rho) | Purified(rho):
                return self.kept_by_alice(rho)
            case ManyKeys(count):
                return self.alices(self.preset.mixtures.size // count)
        return self.alices(self.preset.mixtures.size)

    def alices(self, count: int) -> list[Pair]:
        """A random part of the watermarked pairs that were written for Bob."""
        pairs = self.pairs("watermarked")
        return [pairs[i] for i in self._generator("part", run=True).permutation(len(pairs))[:count]]

    def members_and_candidates(self, d: float) -> mixtures.Kept:
        """D̃ᴬ without a watermark at degree d, against Bob at ρ = 0, whose data are the plain pairs."""
        return mixtures.keep_with_degree(
            self.mixture(0.0).plain,
            self.pairs("kept"),
            d,
            self.preset.membership.candidates,
            generator=self._generator("candidates"),
        )

    def _redrawn(self, share: float) -> Artifact:
        """Dᴬ after Bob let his base model draw a share of the words anew."""
        sampling, size, batch_size = self.preset.suspect.sampling, self.preset.mixtures.size, self.preset.reading.batch_size

        def build(folder: Path) -> None:
            changed = redrawing.redraw(
                self.base(),
                self.tokenizer,
                self.alices(size),
                share,
                sampling=sampling.make(),
                generator=self._generator("redrawing"),
                batch_size=batch_size,
            )
            instructions.save_pairs(folder / "pairs.jsonl", changed)

        config = {
            "share": share,
            "size": size,
            "sampling": sampling.model_dump(),
            "batch_size": batch_size,
            "run": self.run,
            "seed": self.seed,
        }
        inputs = [self.written("watermarked"), *self.model_inputs("base")]
        return self._get(Spec("redrawn-pairs", config, inputs, code_version(build)), build)
