"""Innocents read text that was marked anew under many keys, in every mode: are their p-values uniform?

::

    python tests/bench/remarked.py --preset laptop --keys 20 --texts 300
    python tests/bench/remarked.py --preset pocket --decoys 25     # the worlds of chapter 4's re-marking control

The suspects are the Bob of ρ = 0, who met no key, and Alice's own model without its mark. Each key marks as many new texts
as are read, by the same pipeline; each is judged under the key that marked it. For each mode stand the Kolmogorov–Smirnov
p of the keys' p-values (randomised where they are discrete) and the pooled z of all their scores; with ``--decoys`` also
that of keys that marked nothing. "strings" are the same texts cut into tokens again, with and without the allowance for
re-spelt tokens.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from radio_utils import detection, experiments, querying
from radio_utils import evidence as ev
from radio_utils.artifacts import Store, default_root
from radio_utils.predictions import Predictions
from radio_utils.presets import load_preset
from radio_utils.reading import read_predictions
from radio_utils.remarking import other_keys
from radio_utils.stats.ks import randomised
from radio_utils.suspects import LocalSuspect
from radio_utils.watermarks import Watermark
from radio_utils.world import instructions
from radio_utils.world.world import World

Judge = Callable[[int, Any], detection.Detection]


def say(line: str) -> None:
    """One line of the table."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def respelt_share(world: World, pairs: list[Any]) -> float:
    """The share of drawn tokens whose span of characters is no token's after the text is tokenised again."""
    lost = drawn = 0
    for pair in pairs:
        ids = list(pair.drawn)
        text = world.tokenizer.decode(ids)
        ends = {len(world.tokenizer.decode(ids[:i])) for i in range(1, len(ids) + 1)}
        again = world.tokenizer(text, add_special_tokens=False)["input_ids"]
        kept = {len(world.tokenizer.decode(again[:i])) for i in range(1, len(again) + 1)}
        lost += len(ends - kept)
        drawn += len(ids)
    return lost / drawn


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keys", type=int, help="how many keys mark texts (default: the preset's worlds)")
    parser.add_argument("--texts", type=int, help="how many each (default: as many as the preset's control reads)")
    parser.add_argument("--decoys", type=int, default=0, help="so many keys that marked nothing for each that did")
    options = parser.parse_args()
    preset = load_preset(options.preset)
    world = World(preset, seed=options.seed, store=Store(default_root()))
    tokenizer, wm = world.tokenizer, world.watermark
    wms = other_keys(wm, options.keys or preset.reading.worlds, experiments.control_seed(world))
    decoys = other_keys(wm, options.decoys * len(wms), 1)
    copies = world.remarked(wms, options.texts or preset.reading.control_texts)
    share = respelt_share(world, copies[0])
    say(f"{len(wms)} keys, {len(copies[0])} texts each; of the first's tokens {100 * share:.2f} % are re-spelt as strings")
    chance = np.random.default_rng(0)

    def uniform(verdicts: list[detection.Detection], keys: Sequence[Watermark]) -> float:
        above = [float(w.law.log10_above(v.total, v.scored)) for w, v in zip(keys, verdicts, strict=True)]
        p = randomised(np.array([v.log10_p for v in verdicts]), np.array(above), chance)
        return float(stats.kstest(p, "uniform").pvalue)

    def shown(name: str, judge: Judge) -> None:
        """``judge`` of (number of the copy, key)."""
        verdicts = [judge(i, w) for i, w in enumerate(wms)]
        total, scored = (sum(getattr(v, part) for v in verdicts) for part in ("total", "scored"))
        z = (total - wm.gamma * scored) / math.sqrt(scored * wm.gamma * (1 - wm.gamma))
        line = f"{name:52s} {scored / len(verdicts):9,.0f} pairs a key, KS p {uniform(verdicts, wms):7.3f}, z {z:+6.2f}"
        if decoys:
            other = uniform([judge(j % len(wms), key) for j, key in enumerate(decoys)], decoys)
            line += f"; {len(decoys)} decoys, KS p {other:.3f}"
        say(line)

    ids = [instructions.written_ids(tokenizer, pairs) for pairs in copies]
    strings = [(instructions.prompt_ids(tokenizer, pairs), instructions.answer_ids(tokenizer, pairs)) for pairs in copies]
    for who, model in (("Bob of ρ = 0", world.bob(0.0)), ("Alice, unmarked", world.alice())):

        def reading(rows: list[Any], model: Any = model) -> list[Predictions]:
            size = preset.reading.batch_size
            return [
                read_predictions(model, texts, wm.vocab_size, prompts=prompts, batch_size=size) for prompts, texts in rows
            ]

        drawn, cut = reading(ids), reading(strings)
        for name, found, how in (
            ("reading, ids, full context", drawn, {"full_context": True}),
            ("reading, ids, hidden context", drawn, {}),
            ("reading, strings", cut, {"full_context": True}),
            ("every place scored (unsound)", drawn, {"full_context": True, "skip_seen": False}),
        ):
            read = [one.evidence(wm.window, wm.vocab_size, **how) for one in found]
            shown(f"{who}: {name}", lambda i, key, read=read: detection.judge(read[i], key))
        of_strings = [one.evidence(wm.window, wm.vocab_size, full_context=True) for one in cut]
        log10_p = [detection.judge(e, w, respelt=share).log10_p for e, w in zip(of_strings, wms, strict=True)]
        say(f"{who}: reading, strings, with the allowance: smallest log10 p {min(log10_p):.2f} of {len(wms)}")
        settings = preset.suspect
        suspect = LocalSuspect(
            model, (tokenizer.eos_token_id,), settings.sampling.make(), settings.max_new_tokens,
            batch_size=settings.batch_size, seed=1,
        )  # fmt: skip
        asked = [prompt for prompts, _ in strings for prompt in prompts]
        given = suspect.answer(asked)
        answers = [given[i * len(copies[0]) : (i + 1) * len(copies[0])] for i in range(len(wms))]
        keep = [
            ev.frequent_windows(texts, wm.window, wm.vocab_size, at_least=preset.querying.frequent) for _, texts in strings
        ]
        for name, phi in (("answers to marked prompts", False), ("the same with φ", True)):
            shown(
                f"{who}: {name}",
                lambda i, key, keep=keep, phi=phi, answers=answers: querying.score_answers(
                    strings[i][0], answers[i], key, keep=keep[i] if phi else None
                ),
            )


if __name__ == "__main__":
    main()
