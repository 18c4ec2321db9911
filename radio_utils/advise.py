"""What a mark will be worth, on the command line: ``python -m radio_utils.advise --engine-config FILE --vocab-size V``.

``--entropy`` (nats a token) or ``--texts`` (JSONL or Parquet files of plain texts' ids), ``--tokens`` of Alice's that a
distiller trains on and their share ``--rho`` of his data; ``--plot FILE`` saves the figure. The key in the configuration is
never printed and of no matter; it may be left out. The exit status is 2, with one sentence, for what is wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from radio_utils import engines, planning
from radio_utils.evidence.files import CorpusFile, is_path
from radio_utils.planning import Advice
from radio_utils.watermarks import Watermark


def main(arguments: list[str] | None = None) -> int:
    """Print the advice."""
    parser = argparse.ArgumentParser(prog="radio_utils.advise", description="What will my mark be worth?")
    parser.add_argument(
        "--engine-config", required=True, help="The engine's configuration, a JSON file; its key may be missing."
    )
    parser.add_argument("--vocab-size", type=int, required=True, help="The number of the model's logits.")
    parser.add_argument("--engine", help="vllm, sglang, transformers, …; by default the fields tell.")
    parser.add_argument("--window", type=int, help="Another context width than the configuration's.")
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument("--entropy", type=float, help="Mean entropy of a token in nats.")
    measured.add_argument("--texts", help="Plain texts to measure it from: a JSONL or Parquet file with ids.")
    parser.add_argument("--tokens", type=float, required=True, help="Marked tokens that the distiller trains on.")
    parser.add_argument("--rho", type=float, required=True, help="Their share of his data.")
    for name, default, explained in (
        ("log10-p", -6.0, "The log10 p to be reached."),
        ("power", 0.9, "Probability of reaching it."),
        ("epochs", 3.0, "Passes of his training."),
        ("inertia", 10.0, "Meetings of a window after which half of it is learned."),
    ):
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{explained} Default: {default:g}.")
    parser.add_argument("--plot", help="Where to save the figure.")
    options = vars(parser.parse_args(arguments))
    where = options.pop("plot")
    config, size, engine, window = (options.pop(name) for name in ("engine_config", "vocab_size", "engine", "window"))
    try:
        texts = options.pop("texts")
        if texts is not None and not is_path(texts):
            raise ValueError(f"--texts must be a JSONL or Parquet file, got {texts}")
        read: Any = None if texts is None else CorpusFile(Path(texts)).texts()
        wm = mark_of(config, size, engine=engine, window=window)
        advice = planning.advise(wm, texts=read, **options)
        sys.stdout.write(as_text(advice) + "\n")
        if where:
            advice.plot().figure.savefig(where, bbox_inches="tight", metadata=_alt(where, advice))  # type: ignore[union-attr]
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0


def mark_of(config: Any, vocab_size: int, **options: Any) -> Watermark:
    """The configuration's mark, under any key where it has none: what a mark is worth does not depend on it."""
    try:
        return engines.from_config(config, vocab_size, **options)
    except ValueError as error:
        for key in (1, list(range(1, 31))):
            try:
                return engines.from_config(config, vocab_size, key, **options)
            except ValueError:
                continue
        raise error from None


def as_text(advice: Advice) -> str:
    """The table, in columns, and what it rests on."""
    head = ("setting", "logs", "learned", "effect", "pairs", "tokens")
    lines = [head]
    for row in advice.table:
        numbers = [f"{row[name]:.3g}" for name in ("learned", "effect")]
        counts = ["out of reach" if row[name] is None else f"{row[name]:,}" for name in ("pairs", "tokens")]
        lines.append((row["setting"], row["logs"], *numbers, *counts))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    title = (
        f"{advice.scheme}, k = {advice.window}: {advice.entropy:.3g} nats a token, {advice.tokens:.3g} tokens at "
        f"rho = {advice.rho:g}; log10 p = {advice.log10_p:g} with power {advice.power:g}"
    )
    return "\n".join(
        [
            title,
            *("  ".join(word.ljust(w) for word, w in zip(line, widths, strict=True)).rstrip() for line in lines),
            "A model's rows rest on --inertia, the meetings that teach half of a window's mark: a guess until measured.",
        ]
    )


def _alt(path: str, advice: Advice) -> dict[str, str] | None:
    """What the figure shows, in words, where the format has room for it."""
    if path.endswith((".png", ".svg")):
        return {"Description": advice.alt}
    return {"Subject": advice.alt} if path.endswith(".pdf") else None


if __name__ == "__main__":
    sys.exit(main())
