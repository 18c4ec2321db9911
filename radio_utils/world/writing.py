"""What Alice's model writes: sets of instruction–answer pairs, with and without her watermark, whole or in shards."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radio_utils.artifacts import Artifact
from radio_utils.provenance import code_version
from radio_utils.suspects.memory import needs_memory
from radio_utils.watermarks import Watermark
from radio_utils.world import chats, instructions
from radio_utils.world.instructions import Pair
from radio_utils.world.names import PairSet, Texts
from radio_utils.world.origins import DEMONSTRATION_TOKENS, Origins
from radio_utils.world.setting import Spec

_WATERMARKED: tuple[PairSet, ...] = ("watermarked", "fresh")
_QUESTIONS_OF: dict[PairSet, PairSet] = {"watermarked": "plain", "fresh": "outside"}  # where only answers are marked


class Writing(Origins):
    """Alice at work."""

    def pairs(self, which: PairSet) -> list[Pair]:
        """A set of instruction–answer pairs that Alice's model wrote."""
        return self._asked(instructions.load_pairs(self.written(which) / "pairs.jsonl"))

    def written(self, which: PairSet) -> Artifact:
        """The artifact of a set of pairs. In several shards, they are joined and pairs that occur twice dropped."""
        if self.preset.shards == 1:
            return self.written_shard(which, 0)
        parts = [self.written_shard(which, shard) for shard in range(self.preset.shards)]
        count = self._count(which)

        def build(folder: Path) -> None:
            pairs = dict.fromkeys(pair for part in parts for pair in instructions.load_pairs(part / "pairs.jsonl"))
            if len(pairs) < count:
                raise instructions.TooFewPairsError(
                    f"the shards hold {len(pairs)} distinct {which} pairs of {count}; take fewer shards, "
                    "or raise the temperature at which Alice writes"
                )
            instructions.save_pairs(folder / "pairs.jsonl", list(pairs)[:count])

        return self._get(Spec("joined-pairs", {"count": count}, parts, "1"), build)

    def written_shard(self, which: PairSet, shard: int) -> Artifact:
        """The artifact of one of the preset's ``shards`` of a set of pairs."""
        spec = self._shard(which, shard)
        return self._get(spec, functools.partial(self._write, which, shard, spec.config["count"]))

    def _write(self, which: PairSet, shard: int, count: int, folder: Path) -> None:
        shards = self.preset.shards
        stream = f"pairs/{which}" if shards == 1 else f"pairs/{which}/{shard} of {shards}"
        how = self._manner(stream, f"Alice writes {which} pairs")
        wm = self._mark(which)
        pairs: Sequence[Pair]
        with needs_memory("self_instruct.batch_size"):
            if self.chat is not None:
                (pairs,) = self._turns(count, [wm], how, folder)
            elif questions := self._questions(which):
                asked = self.pairs(questions)[shard::shards][:count]
                pairs = instructions.answer_under(*self._shown(), asked, wm=wm, **how)
            else:
                pairs = instructions.self_instruct(*self._shown(), count, wm=wm, **how)
        instructions.save_pairs(folder / "pairs.jsonl", pairs)

    def remarked(self, wms: Sequence[Watermark], count: int) -> list[list[Pair]]:
        """``count`` pairs under each of other watermarks, written as those of :meth:`pairs` were under Alice's own."""
        rows = self._asked(instructions.load_pairs(self._remarked(wms, count) / "pairs.jsonl"))
        return [rows[i * count : (i + 1) * count] for i in range(len(wms))]

    def _remarked(self, wms: Sequence[Watermark], count: int) -> Artifact:
        if self.preset.self_instruct.answers_only and self.chat is None:
            raise ValueError("self_instruct.answers_only is set; whole pairs are written anew, not answers alone")
        wrote = self._shard("fresh", 0)
        mark = {**wrote.config["watermark"], "fingerprint": [wm.fingerprint for wm in wms]}
        config = {**wrote.config, "set": "remarked", "count": count, "watermark": mark}

        def build(folder: Path) -> None:
            how = self._manner("pairs/remarked", f"Alice writes under {len(wms)} other keys")
            worlds: Sequence[Sequence[Pair]]
            with needs_memory("self_instruct.batch_size"):
                if self.chat is not None:
                    worlds = self._turns(count, wms, how, folder)
                else:
                    worlds = instructions.self_instruct_under(*self._shown(), count, wms, **how)
            instructions.save_pairs(folder / "pairs.jsonl", [pair for pairs in worlds for pair in pairs])

        return self._get(Spec("remarked-pairs", config, wrote.inputs, code_version(build, *wms[:1])), build)

    def _has_written(self, which: PairSet) -> bool:
        """Whether the store holds every shard of a set."""
        return all(self._has(self._shard(which, shard)) for shard in range(self.preset.shards))

    def _shown(self) -> tuple[Any, Any, list[Pair]]:
        """Who writes, and after what."""
        return self.alice(), self.tokenizer, self.demonstrations()

    def _turns(
        self, count: int, wms: Sequence[Watermark] | Sequence[Watermark | None], how: dict[str, Any], folder: Path
    ) -> list[list[chats.Turn]]:
        """What she writes in her chat template: each batch is kept until the set is whole."""
        manner = {name: value for name, value in how.items() if name != "shown"}
        kept = self.store.scratch(folder)
        return chats.write_turns(self.alice(), self.tokenizer, count, wms, kept=kept, **manner)

    def _manner(self, stream: str, label: str) -> dict[str, Any]:
        """How Alice writes, whatever the mark."""
        settings = self.preset.self_instruct
        return {
            "shown": settings.shown,
            "sampling": settings.sampling.make(),
            "max_new_tokens": settings.max_new_tokens,
            "generator": self._generator(stream),
            "batch_size": settings.batch_size,
            "progress": self._bar(label),
        }

    def _shard(self, which: PairSet, shard: int) -> Spec:
        count, shards = self._count(which), self.preset.shards
        if shards > 1:  # a fiftieth more, for what is written twice
            count = math.ceil(1.02 * count / shards)
        wm = self._mark(which)
        config = {
            "set": which,
            "count": count,
            "self_instruct": self.preset.self_instruct.model_dump(exclude={"pairs", "unused", "fresh", "answers_only"}),
            "demonstration_tokens": DEMONSTRATION_TOKENS,
            "alice": self.preset.alice.model_dump(),
            "watermark": None if wm is None else self.preset.watermark.named(wm),
            "seed": self.seed,
        }
        if shards > 1:
            config |= {"shard": shard, "shards": shards}
        version = code_version(self._write, wm)
        if self.chat is not None:
            return Spec("turns", config, self.model_inputs("alice"), version)
        inputs = [self._corpus, *self.model_inputs("alice")]
        if questions := self._questions(which):
            inputs.append(self.written(questions))
        return Spec("pairs", config, inputs, version)

    def _mark(self, which: PairSet) -> Watermark | None:
        return self.watermark if which in _WATERMARKED else None

    def _questions(self, which: PairSet) -> PairSet | None:
        """The plain set whose questions are answered in a marked one, where only answers are marked."""
        return _QUESTIONS_OF.get(which) if self.preset.self_instruct.answers_only else None

    def _count(self, which: PairSet) -> int:
        settings = self.preset.self_instruct
        counts: dict[PairSet, int] = {
            "watermarked": settings.pairs,
            "plain": settings.pairs,
            "kept": settings.unused,
            "fresh": settings.fresh,
            "outside": self.preset.membership.fresh,
        }
        return counts[Texts(which).which]
