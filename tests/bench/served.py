"""A Bob behind llama.cpp's own server: his folder is exported, served on one thread and audited over HTTP.

::

    python tests/bench/served.py --model BOB --prompts marked.jsonl --queries 400 --out served

``--prompts`` are files of Alice's marked texts with their prompts: those that an audit reads, or a world's ``pairs.jsonl``.
The audit stops as soon as its answers suffice. Then all prompts are asked, and the answers are scored with φ, the windows
that stand in the marked texts at least so often, and without it. What was answered is kept in ``--out``, and a run that
was cut goes on there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama_server import ALIAS, serving

from radio_utils import evidence as ev
from radio_utils import querying
from radio_utils.audit import Request, run
from radio_utils.evidence.files import CorpusFile
from radio_utils.keys import known_key
from radio_utils.suspects import load_tokenizer
from radio_utils.suspects.endpoint import EndpointSuspect
from radio_utils.suspects.exporting import write_gguf
from radio_utils.world.instructions import load_pairs

Ids = NDArray[np.int64]


def say(line: str) -> None:
    """One line of the report."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def read(tokenizer: Any, files: Sequence[Path]) -> Iterator[tuple[Ids, Ids]]:
    """Each prompt and text, in tokens."""
    for file in files:
        if '"drawn"' in file.open(encoding="utf-8").readline():
            for pair in load_pairs(file):
                yield np.array(pair.drawn[: pair.answer_from]), np.array(pair.drawn[pair.answer_from :])
            continue
        corpus = CorpusFile(file, tokenizer)
        prompts = corpus.prompts()
        if prompts is None:
            raise SystemExit(f"{file} holds texts without prompts; give texts with the prompts that they answer")
        yield from ((np.array(a), np.array(b)) for a, b in zip(prompts, corpus.texts(), strict=True))


def main() -> None:
    """Export, serve, audit, ask on, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the suspect's folder, or a GGUF file of it")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--tokenizer", default="", help="Alice's, if the model is a GGUF file")
    parser.add_argument("--key", default="demonstration key 0")
    parser.add_argument("--scheme", default="green list")
    parser.add_argument("--window", type=int, default=2)
    parser.add_argument("--gamma", type=float, default=0.25)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--frequent", type=int, default=3, help="how often a window of φ stands in the texts")
    parser.add_argument("--api", default="completions", choices=("completions", "chat"))
    parser.add_argument("--precision", default="F16", choices=("F32", "F16"))
    parser.add_argument("--slots", type=int, default=4, help="answers at a time")
    parser.add_argument("--port", type=int, default=8377, help="always the same, or what was answered is asked again")
    parser.add_argument("--out", type=Path, default=Path("served"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer, file = load_tokenizer(options.tokenizer or options.model), Path(options.model)
    if file.suffix != ".gguf":
        file, started = options.out / f"bob.{options.precision}.gguf", time.perf_counter()
        if not file.exists():
            write_gguf(options.model, file, precision=options.precision)
            say(f"exported in {time.perf_counter() - started:.0f} s: {file}, {file.stat().st_size / 1e6:,.0f} MB")
    pairs = list(read(tokenizer, options.prompts))
    rows = [json.dumps({"prompt_ids": prompt.tolist(), "ids": text.tolist()}) for prompt, text in pairs]
    (options.out / "marked.jsonl").write_text("".join(row + "\n" for row in rows))
    longest = max(prompt.size for prompt, _ in pairs) + options.max_tokens + 16
    with serving(file, slots=options.slots, context=longest, port=options.port) as address:
        ask(options, tokenizer, pairs, address)


def ask(options: argparse.Namespace, tokenizer: Any, pairs: Sequence[tuple[Ids, Ids]], address: str) -> None:
    """The audit, and then all answers."""
    started = time.perf_counter()
    common: dict[str, Any] = {"temperature": options.temperature, "max_tokens": options.max_tokens}
    asked = Request(
        address, str(options.out / "marked.jsonl"), suspect_model=ALIAS, tokenizer=options.tokenizer or options.model,
        scheme=options.scheme, window=options.window, gamma=options.gamma, key=options.key, api=options.api,
        rehearsal=bool(known_key(options.key)), max_queries=options.queries, concurrency=options.slots,
        output_dir=str(options.out / "audit"), **common,
    )  # fmt: skip
    verdict = run(asked, progress=True)
    say(f"audit: {verdict.outcome}, log10 p {verdict.log10_p:.1f}, {time.perf_counter() - started:.0f} s")
    for test in verdict.tests:
        if test.log10_p is not None:
            say(f"  {test.name}: {test.scored:,} pairs, score {test.score}, log10 p {test.log10_p:.1f}; {test.note}")
    suspect = EndpointSuspect(
        address, ALIAS, tokenizer, options.out / "audit" / "answers.jsonl", kind=options.api, concurrency=options.slots,
        progress="all answers", **common,
    )  # fmt: skip
    distinct = list({prompt.tobytes(): prompt for prompt, _ in pairs}.values())
    prompts = [distinct[i % len(distinct)] for i in range(options.queries)]
    answers, wm = suspect.answer(prompts), asked.watermark(max(tokenizer.get_vocab().values()) + 1)
    usage, seconds = suspect.usage, time.perf_counter() - started
    say(f"{usage.answers} answers of {sum(map(len, answers)) / len(answers):.0f} tokens in {seconds:.0f} s; {usage}")
    for at_least in dict.fromkeys((1, options.frequent, 0)):
        kept = None
        if at_least:
            kept = ev.frequent_windows([text for _, text in pairs], wm.window, wm.vocab_size, at_least=at_least)
        found = querying.score_answers(prompts, answers, wm, keep=kept)
        phi = f"φ: windows that stand {at_least} times or more" if kept is not None else "without φ"
        say(f"  {phi}: {found.scored:,} pairs, score {found.score:.4f}, log10 p {found.log10_p:.2f}")


if __name__ == "__main__":
    main()
