"""A case to practise audits on, made from the book's world: suspects, texts and a key, as a stranger would bring them.

``python -m radio_utils.practice FOLDER`` writes

* ``guilty``, ``innocent``, ``base``: folders of the Bob at share ρ, of the one at 0, and of the model both were made from;
  ``alice``: Alice's own model, which marks nothing by itself;
* ``marked.jsonl``: what Alice's marked model wrote and the guilty Bob used; ``fresh.jsonl``: more of it, which nobody used;
  ``plain.jsonl``: what she wrote without the mark; ``other.jsonl``: texts under another key, which no Bob met;
* ``answers.jsonl``: answers of the guilty Bob; ``key.txt`` and ``other.txt``: the keys.

What a model of Alice's wrote stands there as text and as the token ids that it drew, and an audit reads the ids.

The demonstration key of the book's world would be refused by an audit, as everybody knows it. So a case has a random key of
its own, under which Alice writes and her Bobs are trained anew; run again, the command takes the key that its folder holds.
"""

from __future__ import annotations

import argparse
import json
import logging
import secrets
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radio_utils import experiments
from radio_utils.artifacts import Store, default_root
from radio_utils.audit import Request
from radio_utils.files import atomic_write
from radio_utils.keys import known_key, read_key
from radio_utils.presets import PresetError, load_preset
from radio_utils.watermarks.prf import Key, derive_bytes
from radio_utils.world.instructions import Pair, written_ids
from radio_utils.world.world import World

logger = logging.getLogger(__name__)

_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Case:
    """Where the files of a practice case are, its keys, and what an audit is told of Alice's mark beside the key."""

    folder: Path
    key: Key
    other_key: Key
    scheme: str
    window: int
    gamma: float
    delta: float

    def __truediv__(self, name: str) -> str:
        return str(self.folder / name)


def make_case(world: World, rho: float, folder: Path, *, fresh: int = 800, rehearsal: bool = False) -> Case:
    """Write a practice case: Bob at share ``rho`` is guilty, and at most ``fresh`` texts of each other kind are given.

    A world whose key is a demonstration gets the folder's key or a random one in its place; in a ``rehearsal`` it keeps its
    own, and audits must be told so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if known_key(world.key) and not rehearsal:
        before = read_key(key_file=str(folder / "key.txt")) if (folder / "key.txt").exists() else ""
        world = world.changed(key=secrets.token_hex(16) if known_key(before) else before)
    world.make("pairs/watermarked", "pairs/plain", "pairs/fresh", "pairs/kept")
    world.make(rho, 0.0)
    kept = world.kept_by_alice(rho)
    other = experiments.variant(world).changed(key=derive_bytes(world.key, "another's key", 16).hex())
    _write_pairs(folder / "marked.jsonl", world.tokenizer, kept)
    used = {pair.answer for pair in kept}
    for file, pairs in (("fresh.jsonl", world.pairs("fresh")), ("plain.jsonl", world.pairs("kept"))):
        # a small model writes a short answer twice, and a text that the guilty Bob used is not fresh
        _write_pairs(folder / file, world.tokenizer, [pair for pair in pairs if pair.answer not in used][:fresh])
    _write_pairs(folder / "other.jsonl", world.tokenizer, other.pairs("watermarked")[: len(kept)])
    prompts, answers = experiments.answers(world, rho, "watermarked", world.preset.querying.prompts)
    decode = world.tokenizer.batch_decode
    rows = zip(decode(prompts), decode(answers, skip_special_tokens=True), strict=True)
    _write_rows(folder / "answers.jsonl", ({"prompt": prompt, "text": text} for prompt, text in rows))
    models = {name: world.source(name) for name in ("base", "alice")}
    models |= {name: world.made(which).path for name, which in (("guilty", rho), ("innocent", 0.0))}
    for name, made in models.items():
        if not isinstance(made, Path):
            continue  # the preset's own folder or hub name
        (folder / name).mkdir(exist_ok=True)
        for file in _MODEL_FILES:
            if (made / file).exists():
                shutil.copyfile(made / file, folder / name / file)
    for name, key in (("key.txt", world.key), ("other.txt", other.key)):
        atomic_write(folder / name, f"hex:{key.hex()}" if isinstance(key, bytes) else str(key))
    mark = world.preset.watermark
    return Case(folder, world.key, other.key, mark.scheme, mark.window, mark.gamma, mark.delta)


def requests(world: World, case: Case, *, alpha: float, seed: int) -> dict[str, Request]:
    """The audits of a practice case, by name: the guilty and the innocent Bob, by weights and by answers, and the trap.

    The trap is the guilty Bob accused by somebody else, under whose key he never met a text. A suspect's weights come with
    his base, plain texts, and Alice's own model for the re-marking control.
    """
    preset = world.preset
    common: dict[str, Any] = {
        "scheme": case.scheme, "window": case.window, "gamma": case.gamma, "alpha": alpha, "seed": seed,
        "max_tokens": preset.suspect.max_new_tokens, "decoys": preset.audit_keys, "device": world.device,
        "rehearsal": bool(known_key(case.key)),
    }  # fmt: skip
    taken = {
        name: case / name if isinstance(world.source(name), Path) else world.source(name) for name in ("base", "alice")
    }
    read = {"reference": taken["base"], "fresh_texts": case / "plain.jsonl"}
    control = {
        "alice": taken["alice"], "delta": case.delta,
        "alice_temperature": preset.self_instruct.sampling.temperature,
        "worlds": min(19, preset.reading.worlds), "control_texts": preset.reading.control_texts,
    }  # fmt: skip
    ask = {"access": "closed", "max_queries": preset.querying.prompts // 2}
    mine = {"watermarked_texts": case / "marked.jsonl", "key": case.key}
    hers = {"watermarked_texts": case / "other.jsonl", "key": case.other_key}
    wanted: dict[str, dict[str, Any]] = {
        "guilty, weights": {"suspect": case / "guilty", **mine, **read, **control},
        "guilty, answers": {"suspect": case / "guilty", **mine, **ask},
        "innocent, weights": {"suspect": case / "innocent", **mine, **read, **control},
        "innocent, answers": {"suspect": case / "innocent", **mine, **ask},
        "another's key, weights": {"suspect": case / "guilty", **hers, **read},
    }
    audits = case.folder / "audits"
    return {
        name: Request(**one, output_dir=str(audits / str(number)), **common)
        for number, (name, one) in enumerate(wanted.items(), start=1)
    }


def _write_pairs(path: Path, tokenizer: Any, pairs: Sequence[Pair]) -> None:
    """A row for each pair: its text, and its tokens where a model drew them."""
    rows = []
    for pair, prompt, answer in zip(pairs, *written_ids(tokenizer, pairs), strict=True):
        drawn = {"prompt_ids": prompt.tolist(), "ids": answer.tolist()} if pair.drawn else {}
        rows.append({"prompt": pair.prompt, "text": pair.text.removeprefix(pair.prompt)} | drawn)
    _write_rows(path, rows)


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def main(arguments: list[str] | None = None) -> int:
    """Write one practice case."""
    parser = argparse.ArgumentParser(prog="radio_utils.practice", description="Write a case to practise audits on.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--rho", type=float, default=0.1, help="share of the guilty Bob's data that Alice wrote")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        world = World(load_preset(options.preset), seed=options.seed, store=Store(default_root()))
    except PresetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    case = make_case(world, options.rho, options.folder)
    print(f"{case.folder}: {', '.join(sorted(one.name for one in case.folder.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
