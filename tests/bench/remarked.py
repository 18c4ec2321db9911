"""Innocents read text that was marked anew under many keys, in every mode: are their p-values uniform?

::

    python tests/bench/remarked.py --preset laptop --keys 20 --texts 300

The suspects are the Bob of ρ = 0, who met no key, and Alice's own model without its mark. Each key marks as many new texts
as are read, by the same pipeline; each is judged under the key that marked it. For each mode stand the Kolmogorov–Smirnov
p of the keys' p-values (randomised where they are discrete) and the pooled z of all their scores. "strings" are the same
texts cut into tokens again, with and without the allowance for re-spelt tokens.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from radio_utils import detection, querying
from radio_utils import evidence as ev
from radio_utils.artifacts import Store, default_root
from radio_utils.presets import load_preset
from radio_utils.reading import read_predictions
from radio_utils.remarking import other_keys
from radio_utils.stats.tails import randomised
from radio_utils.suspects import LocalSuspect
from radio_utils.world import instructions
from radio_utils.world.world import World

Judge = Callable[[list[Any], Any], detection.Detection]


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
    parser.add_argument("--keys", type=int, default=20)
    parser.add_argument("--texts", type=int, default=300)
    options = parser.parse_args()
    world = World(load_preset(options.preset), seed=options.seed, store=Store(default_root()))
    wms = other_keys(world.watermark, options.keys, 1)
    copies = world.remarked(wms, options.texts)
    tokenizer, wm = world.tokenizer, world.watermark
    share = respelt_share(world, copies[0])
    say(f"re-spelt tokens: {100 * share:.2f} % of those drawn under the first key")
    chance = np.random.default_rng(0)

    def shown(name: str, verdicts: list[detection.Detection]) -> None:
        gamma = wm.gamma
        above = [float(w.law.log10_above(v.total, v.scored)) for w, v in zip(wms, verdicts, strict=True)]
        p = randomised(np.array([v.log10_p for v in verdicts]), np.array(above), chance)
        total, scored = (sum(getattr(v, part) for v in verdicts) for part in ("total", "scored"))
        z = (total - gamma * scored) / math.sqrt(scored * gamma * (1 - gamma))
        say(
            f"{name:52s} {scored / len(verdicts):9,.0f} pairs a key, "
            f"KS p {stats.kstest(p, 'uniform').pvalue:7.3f}, z {z:+6.2f}"
        )

    for who, model in (("Bob of rho = 0", world.bob(0.0)), ("Alice, unmarked", world.alice())):

        def reading(prompts: list[Any], texts: list[Any], model: Any = model, **how: Any) -> ev.Evidence:
            found = read_predictions(model, texts, wm.vocab_size, prompts=prompts, batch_size=128)
            return found.evidence(wm.window, wm.vocab_size, **how)

        def spelt(pairs: list[Any]) -> tuple[list[Any], list[Any]]:
            return instructions.prompt_ids(tokenizer, pairs), instructions.answer_ids(tokenizer, pairs)

        ids = [instructions.written_ids(tokenizer, pairs) for pairs in copies]
        strings = [spelt(pairs) for pairs in copies]
        for name, given, how in (
            ("reading, ids, full context", ids, {"full_context": True}),
            ("reading, ids, hidden context", ids, {}),
            ("reading, strings", strings, {"full_context": True}),
            ("every place scored (unsound)", ids, {"full_context": True, "skip_seen": False}),
        ):
            shown(f"{who}: {name}", [detection.judge(reading(*g, **how), w) for g, w in zip(given, wms, strict=True)])
        found = [reading(*g, full_context=True) for g in strings]
        log10_p = [detection.judge(e, w, respelt=share).log10_p for e, w in zip(found, wms, strict=True)]
        say(f"{who}: reading, strings, with the allowance: smallest log10 p {min(log10_p):.2f} of {len(wms)}")
        suspect = LocalSuspect(model, (tokenizer.eos_token_id,), world.preset.suspect.sampling.make(), 80, seed=1)
        answers = [suspect.answer(prompts) for prompts, _ in strings]
        for name, keep in (("answers to marked prompts", False), ("the same with φ", True)):
            shown(f"{who}: {name}", [
                querying.score_answers(
                    p, a, w, keep=ev.frequent_windows(texts, wm.window, wm.vocab_size, at_least=5) if keep else None
                )
                for (p, texts), a, w in zip(strings, answers, wms, strict=True)
            ])  # fmt: skip


if __name__ == "__main__":
    main()
