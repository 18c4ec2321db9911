"""Bobs of the book's world whose Alice writes with an engine's mark: is each convicted by configuration and texts alone?

::

    python tests/bench/engine_audits.py --preset laptop --out engine-audits

Chapter 8 trains these Bobs, and all that the audit is given is what :func:`radio_utils.marks.write_case` writes: the
engine's configuration and Alice's texts. The innocent is a twin from the same base, trained on plain text of hers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from radio_utils import marks
from radio_utils.artifacts import Store, default_root
from radio_utils.audit import Request, run
from radio_utils.presets import load_preset
from radio_utils.world.workers import make_all
from radio_utils.world.world import World

CONFIGS: dict[str, dict[str, Any]] = {
    "vllm-gumbel-1": {"algorithm": "gumbel", "context_width": 1},
    "vllm-gumbel-4": {"algorithm": "gumbel", "context_width": 4},
    "vllm-dual-key-4": {"algorithm": "dual_key_gumbel"},
    "vllm-synthid-1": {"algorithm": "synthid", "context_width": 1},
    "vllm-sbw-4": {"algorithm": "sbw"},
}


def main() -> None:
    """Audit each and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="one of " + ", ".join(CONFIGS))
    parser.add_argument("--out", type=Path, default=Path("engine-audits"))
    options = parser.parse_args()
    world = World(load_preset(options.preset), seed=options.seed, store=Store(default_root()))
    for name, config in CONFIGS.items():
        if options.only in ("", name):
            audit(name, marks.marked(world, config), options.out / f"seed-{options.seed}" / name)


def audit(name: str, world: World, folder: Path) -> None:
    """Both suspects of one mark."""
    make_all([(world, "pairs/watermarked"), (world, "pairs/fresh"), (world, "pairs/kept")])
    make_all([(world, marks.BOB), (world, "twin")])
    given = marks.write_case(world, folder)
    for who in (marks.BOB, "twin"):
        suspect = str(world.made(who).path)
        found = run(Request(suspect=suspect, full_context=True, output_dir=str(folder / who.replace("/", "-")), **given))
        tests = ", ".join(f"{one.name} {one.log10_p:.1f}" for one in found.tests if one.log10_p is not None)
        sys.stdout.write(f"{name:16s} {who:7s} {found.outcome:14s} text {found.texts_log10_p:.0f}; {tests}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
