"""What is measured, and how: the benchmarks under pytest and the record of `make bench` take the same cases from here.

``python tests/bench/measure.py results/benchmarks.json`` measures everything at full size and writes the record.

Texts are either *natural-like* or *uniform*. Natural-like: ids are drawn by Zipf's law, and three runs of 16 tokens in ten
are copied from a stock of phrases, so that windows and whole pairs come again. Uniform: every id is equally likely, so
that for k = 2 and a real vocabulary practically every pair is distinct, which is the worst case.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radio_utils.detection import detect, which_key
from radio_utils.files import write_json
from radio_utils.parallel import side_by_side
from radio_utils.watermarks import GreenList, GumbelMax, Watermark

V, K, GAMMA = 32_000, 2, 0.25
LENGTH = 1000  # tokens of a text
KINDS = ("natural-like", "uniform")
PHRASE, STOCK, COPIED = 16, 4096, 0.3  # natural-like text: length of a phrase, how many there are, share of copies
SECRET = "the key of the benchmarks"
Row = dict[str, Any]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    """One piece of work: ``prepare`` makes what is not timed and returns what is. ``facts`` are columns of its row."""

    table: str
    facts: Mapping[str, Any]
    prepare: Callable[[], Callable[[], Any]]
    tell: Callable[[Any], Mapping[str, Any]] = field(default=lambda result: {})

    @property
    def name(self) -> str:
        """The facts in words, for a test's id."""
        return ", ".join(str(value) for value in self.facts.values())

    def row(self, seconds: float, rounds: int, result: Any) -> Row:
        """The row of the record."""
        return {**self.facts, "seconds": seconds, "rounds": rounds, **self.tell(result)}


def best_of(cases: Sequence[Case], rounds: int) -> list[Row]:
    """The least time of each case. The rounds of the cases take turns, so that load from outside meets all alike."""
    works = [case.prepare() for case in cases]
    times: list[list[float]] = [[] for _ in cases]
    results: list[Any] = [None] * len(cases)
    for turn in range(rounds + 1):
        for number, work in enumerate(works):
            if turn == 0 and times[number]:
                continue
            start = time.perf_counter()
            results[number] = work()
            seconds = time.perf_counter() - start
            if turn or seconds > 1.0:  # the first turn warms up, but for long work it counts
                times[number].append(seconds)
    return [case.row(min(t), len(t), r) for case, t, r in zip(cases, times, results, strict=True)]


# --- texts ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _zipf_table(vocab_size: int) -> Ints:
    """2²⁰ ids in the proportions of Zipf's law; which id has which rank is random."""
    cumulative = np.cumsum(1.0 / np.arange(1, vocab_size + 1))
    points = (np.arange(1 << 20) + 0.5) / (1 << 20) * cumulative[-1]
    table: Ints = np.random.default_rng(0).permutation(vocab_size)[np.searchsorted(cumulative, points)]
    return table


def _zipf(rng: np.random.Generator, shape: tuple[int, ...], vocab_size: int) -> Ints:
    ids: Ints = _zipf_table(vocab_size)[rng.integers(0, 1 << 20, shape, dtype=np.uint32)]
    return ids


def rows_of(kind: str, rng: np.random.Generator, rows: int, vocab_size: int = V) -> Ints:
    """``rows`` texts of :data:`LENGTH` tokens."""
    if kind == "uniform":
        return rng.integers(0, vocab_size, (rows, LENGTH))
    runs = -(-rows * LENGTH // PHRASE)
    ids = _zipf(rng, (runs, PHRASE), vocab_size)
    stock = _zipf(np.random.default_rng(1), (STOCK, PHRASE), vocab_size)
    copied = rng.random(runs) < COPIED
    ids[copied] = stock[_zipf(rng, (int(copied.sum()),), STOCK)]
    return ids.reshape(-1)[: rows * LENGTH].reshape(rows, LENGTH)


@lru_cache(maxsize=4)
def texts(kind: str, rows: int, vocab_size: int = V) -> Ints:
    """The same texts for every program; fewer rows are the first of more."""
    return rows_of(kind, np.random.default_rng(2), rows, vocab_size)


# --- detection, side by side ------------------------------------------------------------------------------------------


def transformers_detector(vocab_size: int = V, width: int = K) -> Callable[[Ints], Any]:
    """transformers' own detector, each n-gram of a text counted once."""
    import torch
    from transformers import WatermarkDetector, WatermarkingConfig

    config = WatermarkingConfig(greenlist_ratio=GAMMA, seeding_scheme="lefthash", context_width=width)
    # what the detector asks of a model's configuration; no text starts with a beginning-of-text token
    model: Any = SimpleNamespace(vocab_size=vocab_size, bos_token_id=-1, is_encoder_decoder=False)
    detector = WatermarkDetector(model, "cpu", config, ignore_repeated_ngrams=True)
    return lambda rows: detector(torch.from_numpy(rows), return_dict=True)  # type: ignore[arg-type]


def _scored(result: Any) -> Mapping[str, Any]:
    return {"scored": int(result.scored)}


def _scored_by_transformers(result: Any) -> Mapping[str, Any]:
    return {"scored": int(result.num_tokens_scored.sum())}


def _scored_plainly(result: Any) -> Mapping[str, Any]:
    return {"scored": int(result.values.size)}


def peer_cases(*, listed: int, arrayed: int, others: int) -> list[Case]:
    """Detection on ``listed`` texts as lists of ints, ``arrayed`` as one array, ``others`` by the other programs."""
    wm = GreenList(SECRET, V, K, GAMMA)
    cases = []
    for kind in KINDS:
        # default arguments bind what the loop gives
        def ours_lists(kind: str = kind) -> Callable[[], Any]:
            given = texts(kind, arrayed)[:listed].tolist()
            return lambda: detect(given, wm)

        def ours_array(kind: str = kind) -> Callable[[], Any]:
            given = texts(kind, arrayed)
            return lambda: detect(given, wm)

        def transformers(kind: str = kind) -> Callable[[], Any]:
            given, detector = texts(kind, arrayed)[:others], transformers_detector()
            return lambda: detector(given)

        def plainly(kind: str = kind) -> Callable[[], Any]:
            import plain

            given = texts(kind, arrayed)[:others].tolist()
            return lambda: plain.green_list(given, V, K, GAMMA, 3)

        for program, tokens, prepare, tell in (
            ("ours, one array", arrayed * LENGTH, ours_array, _scored),
            ("ours, lists of ints", listed * LENGTH, ours_lists, _scored),
            ("transformers", others * LENGTH, transformers, _scored_by_transformers),
            ("plain", others * LENGTH, plainly, _scored_plainly),
        ):
            facts = {"program": program, "text": kind, "vocab_size": V, "window": K, "tokens": tokens}
            cases.append(Case("peers", facts, prepare, tell))
    return cases


def compat_cases(*, rows: int, others: int) -> list[Case]:
    """Detection of the published schemes on ``rows`` texts, and by plain code or their own on ``others`` of them."""
    import plain

    from radio_utils.compat import ReleasedGreenList, ReleasedGumbelMax, TransformersGreenList

    plain_code: dict[str, Callable[[Any], Any]] = {
        "released green list": lambda given: plain.green_list(given.tolist(), V, K, GAMMA, 3),
        "released Gumbel-max": lambda given: plain.gumbel_max(given.tolist(), V, K, 3),
    }
    schemes: tuple[Watermark, ...] = (
        ReleasedGreenList(3, V, K, GAMMA),
        ReleasedGumbelMax(3, V, K),
        TransformersGreenList({"greenlist_ratio": GAMMA}, V),
    )
    cases = []
    for scheme, wm in zip((*plain_code, "transformers green list"), schemes, strict=True):
        for kind in KINDS:

            def ours(count: int, wm: Watermark = wm, kind: str = kind) -> Callable[[], Any]:
                given = texts(kind, rows)[:count].tolist()
                return lambda: detect(given, wm)

            def other(scheme: str = scheme, kind: str = kind) -> Callable[[], Any]:
                given = texts(kind, rows)[:others]
                work = plain_code.get(scheme) or transformers_detector(width=1)
                return lambda: work(given)

            facts = {"scheme": scheme, "text": kind, "vocab_size": V, "window": wm.window}
            for count in (rows, others):
                ours_here = {**facts, "program": "ours", "tokens": count * LENGTH}
                cases.append(Case("compat", ours_here, partial(ours, count), _scored))
            name, tell = ("plain", _scored_plainly) if scheme in plain_code else ("transformers", _scored_by_transformers)
            cases.append(Case("compat", {**facts, "program": name, "tokens": others * LENGTH}, other, tell))
    return cases


# --- marks of engines -------------------------------------------------------------------------------------------------


def engine_cases(*, rows: int, others: int) -> list[Case]:
    """Detection of engines' marks on one array of ``rows`` texts; the engines' own way on ``others`` of them."""
    import plain

    from radio_utils import engines

    width, keys = 4, list(range(30))

    def layers(given: Any) -> Any:
        import torch
        from transformers.generation.logits_process import SynthIDTextWatermarkLogitsProcessor as Own

        own = Own(width + 1, keys, 1 << 16, 0, 1024, torch.device("cpu"))
        return lambda: own.compute_g_values(torch.from_numpy(given)).numpy().mean(axis=2)

    def gumbel(given: Any) -> Any:
        listed = given.tolist()
        return lambda: plain.vllm_gumbel(listed, width, 42)

    schemes: dict[str, tuple[Watermark, tuple[str, Callable[[Any], Any], Callable[[Any], Mapping[str, Any]]] | None]] = {
        "vLLM Gumbel": (engines.VLLMGumbel(42, V, width), ("as vLLM", gumbel, _scored_plainly)),
        "vLLM dual key": (engines.VLLMDualKey(42, V, width), None),
        "vLLM SynthID": (engines.VLLMSynthID(42, V, width), None),
        "SBW": (engines.SBW(42, V, width), None),
        "SGLang Gumbel": (engines.SGLangGumbel(42, V, width), None),
        "SynthID": (engines.SynthID(keys, V, width), ("transformers", layers, lambda found: {"scored": int(found.size)})),
    }
    cases = []
    for scheme, (wm, other) in schemes.items():
        facts = {"scheme": scheme, "text": "uniform", "vocab_size": V, "window": width}

        def ours(wm: Watermark = wm) -> Callable[[], Any]:
            given = texts("uniform", rows)
            return lambda: detect(given, wm)

        def scoring(wm: Watermark = wm) -> Callable[[], Any]:
            given = texts("uniform", rows).ravel().astype(np.int64)
            windows = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(given, width)[:-1])
            halves = [slice(0, windows.shape[0] // 2), slice(windows.shape[0] // 2, None)]
            return lambda: list(side_by_side(lambda part: wm.scores(windows[part], given[width:][part]), halves))

        cases.append(Case("engines", {**facts, "program": "ours", "tokens": rows * LENGTH}, ours, _scored))
        cases.append(Case("engines", {**facts, "program": "ours, scores alone", "tokens": rows * LENGTH}, scoring))
        if other is not None:
            name, work, tell = other
            theirs = {**facts, "program": name, "tokens": others * LENGTH}
            cases.append(Case("engines", theirs, partial(work, texts("uniform", rows)[:others].astype(np.int64)), tell))
    return cases


# --- logits processors ------------------------------------------------------------------------------------------------

BATCH, STEPS = 16, 8  # answers at a time; steps that are timed together, each with other windows
VOCABULARIES = (32_000, 128_256)
PROCESSORS = ("ours, green list", "ours, Gumbel-max", "transformers")


@lru_cache(maxsize=2)
def step_input(vocab_size: int) -> tuple[Any, Any]:
    """Contexts [steps, batch, 8] and logits [batch, V] ~ N(0, 2²)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    contexts = torch.randint(0, vocab_size, (STEPS, BATCH, 8), generator=generator)
    return contexts, 2.0 * torch.randn(BATCH, vocab_size, generator=generator)


def processor(program: str, vocab_size: int) -> Callable[[Any, Any], Any]:
    """A logits processor by name."""
    if program == "ours, green list":
        return GreenList(SECRET, vocab_size, K, GAMMA, delta=2.0).logits_processor()  # type: ignore[no-any-return]
    if program == "ours, Gumbel-max":
        return GumbelMax(SECRET, vocab_size, K).logits_processor()  # type: ignore[no-any-return]
    from transformers import WatermarkLogitsProcessor

    return WatermarkLogitsProcessor(
        vocab_size, "cpu", greenlist_ratio=GAMMA, bias=2.0, seeding_scheme="lefthash", context_width=K
    )


def processor_cases(*threads_of: int) -> list[Case]:
    """:data:`STEPS` steps of each processor at each vocabulary, on these numbers of threads."""
    import torch

    cases = []
    for threads in threads_of:
        for vocab_size in VOCABULARIES:
            for program in PROCESSORS:

                def steps(
                    program: str = program, vocab_size: int = vocab_size, threads: int = threads
                ) -> Callable[[], Any]:
                    (contexts, logits), one = step_input(vocab_size), processor(program, vocab_size)

                    def work() -> Any:
                        before = torch.get_num_threads()
                        torch.set_num_threads(threads)
                        last = [one(context, logits) for context in contexts][-1]
                        torch.set_num_threads(before)
                        return last

                    return work

                facts = {"program": program, "vocab_size": vocab_size, "threads": threads, "batch": BATCH, "steps": STEPS}
                cases.append(Case("processors", facts, steps))
    return cases


# --- many keys --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def distinct_texts(pairs: int) -> Ints:
    """Uniform texts with ``pairs`` positions to score, or a few fewer distinct ones."""
    length = LENGTH + K
    return np.random.default_rng(3).integers(0, V, (-(-pairs // LENGTH), length))


def key_cases(keys: Sequence[int], *, pairs: int, gumbel_up_to: int) -> list[Case]:
    """Which of many keys wrote the texts."""
    cases = []
    schemes: tuple[tuple[str, GreenList | GumbelMax], ...] = (
        ("green list", GreenList(SECRET, V, K, GAMMA)),
        ("Gumbel-max", GumbelMax(SECRET, V, K)),
    )
    for scheme, wm in schemes:
        for number in keys:
            if scheme == "Gumbel-max" and number > gumbel_up_to:
                continue

            def search(wm: GreenList | GumbelMax = wm, number: int = number) -> Callable[[], Any]:
                given, candidates = distinct_texts(pairs), [wm.with_key(f"key {i}") for i in range(number)]
                return lambda: which_key(given, candidates)

            facts = {"scheme": scheme, "keys": number}
            cases.append(Case("keys", facts, search, lambda found: {"pairs": int(found.scored)}))
    return cases


# --- growth -----------------------------------------------------------------------------------------------------------


def growth_cases(table: str, values: Sequence[int], *, rows: int) -> list[Case]:
    """Detection at several sizes of the vocabulary (table "vocabulary") or windows ("window")."""
    cases = []
    for scheme in ("green list", "Gumbel-max"):
        for value in values:
            vocab_size, window = (value, K) if table == "vocabulary" else (V, value)

            def ours(scheme: str = scheme, vocab_size: int = vocab_size, window: int = window) -> Callable[[], Any]:
                wm: Watermark = GumbelMax(SECRET, vocab_size, window)
                if scheme == "green list":
                    wm = GreenList(SECRET, vocab_size, window, GAMMA)
                given = texts("natural-like", rows, vocab_size)
                return lambda: detect(given, wm)

            name = "vocab_size" if table == "vocabulary" else "window"
            facts = {"scheme": scheme, name: value, "tokens": rows * LENGTH}
            cases.append(Case(table, facts, ours, _scored))
    return cases


class Stream:
    """A text at a time, never held together; ``seconds`` is what making them took."""

    def __init__(self, kind: str, tokens: int) -> None:
        self.kind, self.tokens, self.seconds = kind, tokens, 0.0

    def __iter__(self) -> Iterator[Ints]:
        rng = np.random.default_rng(4)
        left = self.tokens // LENGTH
        while left:
            start = time.perf_counter()
            block = rows_of(self.kind, rng, min(left, 1000))
            self.seconds += time.perf_counter() - start
            left -= len(block)
            yield from block


def streamed(kind: str, tokens: int) -> Row:
    """Detection on a stream in this process: time without the making of the texts, and the process's peak memory."""
    wm = GreenList(SECRET, V, K, GAMMA)
    detect(Stream(kind, 10_000), wm)
    before = _peak()
    stream = Stream(kind, tokens)
    start = time.perf_counter()
    verdict = detect(stream, wm)
    seconds = time.perf_counter() - start - stream.seconds
    return {
        "text": kind, "tokens": tokens, "scored": verdict.scored, "seconds": seconds, "rounds": 1,
        "peak_bytes": _peak(), "start_bytes": before,
    }  # fmt: skip


def stream_case(kind: str, tokens: int) -> Case:
    """:func:`streamed` as a case: its row holds its own time, and no memory, which is that of all that ran before."""
    facts = {"text": kind, "tokens": tokens}

    def tell(row: Row) -> Mapping[str, Any]:
        return {"scored": row["scored"], "seconds": row["seconds"]}

    return Case("tokens", facts, lambda: lambda: streamed(kind, tokens), tell)


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def streamed_alone(kind: str, tokens: int) -> Row:
    """:func:`streamed` in a process of its own. A child inherits its parent's peak, so call it before all else."""
    command = [sys.executable, str(Path(__file__).resolve()), "--stream", kind, str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row: Row = json.loads(done.stdout)
    return row


# --- the record -------------------------------------------------------------------------------------------------------


def record() -> Row:
    """Everything at full size, as the page of the book reads it."""
    # the streams come first: this process is still small, and so is what its children inherit
    tokens = []
    for kind in KINDS:
        for power in range(4, 9):
            turns = [streamed_alone(kind, 10**power) for _ in range(3 if power < 7 else 1)]
            tokens.append({**min(turns, key=lambda row: float(row["seconds"])), "rounds": len(turns)})
    tables: dict[str, list[Row]] = {
        "peers": best_of(peer_cases(listed=200, arrayed=1000, others=4), 5),
        "processors": best_of(processor_cases(*dict.fromkeys((1, os.cpu_count() or 1))), 15),
        "compat": best_of(compat_cases(rows=64, others=4), 5),
        "engines": best_of(engine_cases(rows=1000, others=40), 3),
        "keys": best_of(key_cases((10, 100, 1000, 10_000), pairs=100_000, gumbel_up_to=1000), 1),
        "tokens": tokens,
        "vocabulary": best_of(growth_cases("vocabulary", (2000, 8000, 32_000, 64_000, 128_256, 256_000), rows=1000), 3),
        "window": best_of(growth_cases("window", (1, 2, 4), rows=1000), 3),
    }
    from radio_utils.provenance import hardware, versions

    date = time.strftime("%Y-%m-%d", time.gmtime())
    return {"date": date, "versions": versions(), "hardware": hardware(), "tables": tables}


def main(arguments: Sequence[str]) -> None:
    """Write the record, or, for the streams' own processes, print one row as JSON."""
    if arguments[:1] == ["--stream"]:
        sys.stdout.write(json.dumps(streamed(arguments[1], int(arguments[2]))))
        return
    if len(arguments) != 1:
        raise SystemExit("usage: measure.py PATH_OF_THE_RECORD")
    write_json(arguments[0], record())


if __name__ == "__main__":
    main(sys.argv[1:])
