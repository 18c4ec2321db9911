"""Corpora in shards: the same verdict in one process, in several and on Ray, whatever dies on the way.

Worker processes import this module to find the work; what needs torch is imported by the tests that need it.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import wait_until

import radio_utils as ru
from radio_utils import contrast, detection, evidence, sharding
from radio_utils.sharding import ShardError, answer_shards, detect_shards, map_shards, read_shards

VOCABULARY = 40
WM = ru.GreenList("a key that never travels", VOCABULARY, 2, 0.25, 2.0)
NAMES = ["a", "b", "c", "d", "e"]
DRAWS = np.random.default_rng(5)
TEXTS = [DRAWS.integers(0, VOCABULARY, DRAWS.integers(3, 30)).tolist() for _ in range(60)]
PROMPTS = [DRAWS.integers(0, VOCABULARY, DRAWS.integers(1, 12)).tolist() for _ in TEXTS]


@pytest.fixture(scope="session")
def running_ray() -> Iterator[None]:
    """A Ray of this machine with two workers."""
    ray = pytest.importorskip("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = {
        "include_dashboard": False,
        "object_store_memory": 80 << 20,
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    for left in reversed(range(9)):  # Ray gives its own processes 30 s to start, which a busy machine may not
        try:
            ray.init(address="local", num_cpus=2, **options)
            break
        except Exception:
            ray.shutdown()
            if not left:
                raise
    yield
    assert ray.is_initialized(), "a run stopped a Ray that it had not started"
    ray.shutdown()


@pytest.fixture(params=["here", "processes", "ray"])
def how(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Every backend, with two workers where there can be two."""
    if request.param == "ray":
        request.getfixturevalue("running_ray")
    return {"backend": request.param, "workers": 1 if request.param == "here" else 2}


@pytest.fixture(params=["processes", "ray"])
def away(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The backends whose workers can die alone."""
    if request.param == "ray":
        request.getfixturevalue("running_ray")
    return {"backend": request.param, "workers": 2}


def shards_of(folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        (folder / name).write_text(f"content of {name}")
    return [folder / name for name in NAMES]


def shout(shard: Path, path: Path, *, log: Path) -> None:
    """The work of these tests: it remembers in ``log`` each shard that it was asked to do."""
    with log.open("a") as file:  # one short write in append mode: whole lines, whoever writes
        file.write(f"{shard.name}\n")
    path.write_text(shard.read_text().upper())


def tries(log: Path) -> Counter[str]:
    return Counter(log.read_text().split())


def dies(shard: Path, path: Path, *, log: Path, victim: str, times: int) -> None:
    shout(shard, path, log=log)
    if shard.name == victim and tries(log)[victim] <= times:
        os.kill(os.getpid(), signal.SIGKILL)


def fails(shard: Path, path: Path, *, log: Path, victim: str, mended: Path, noticed: Path) -> None:
    """Others than the victim are under way until it is noticed that it failed."""
    shout(shard, path, log=log)
    if shard.name == victim and not mended.exists():
        raise ValueError("row 7 is bad")
    wait_until(noticed.exists)


def nothing(shard: Path, path: Path) -> None:
    pass


def results(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.glob("*") if not path.name.startswith(".")}


# --- any work -----------------------------------------------------------------------------------------------------------


def test_results_are_the_same_wherever_they_are_made(how: dict[str, Any], tmp_path: Path) -> None:
    shards, log = shards_of(tmp_path / "shards"), tmp_path / "log"
    work = partial(shout, log=log)
    twice, *made = map_shards(work, [shards[0], *shards], tmp_path / "results", key="shout", suffix=".txt", **how)
    assert [path.read_text() for path in made] == [f"CONTENT OF {name.upper()}" for name in NAMES] and twice == made[0]
    assert tries(log) == Counter(NAMES)
    here = map_shards(partial(shout, log=tmp_path / "other"), shards, tmp_path / "here", key="shout", suffix=".txt")
    assert [path.name for path in here] == [path.name for path in made]
    assert set((tmp_path / "results").iterdir()) == set(made)  # and nothing unfinished

    # nothing is done twice, and what has changed is done anew
    shards[2].write_text("Content of c")
    again = map_shards(work, shards[::-1], tmp_path / "results", key="shout", suffix=".txt", **how)
    assert tries(log) == Counter([*NAMES, "c"])
    assert again[0] == made[4] and again[2] != made[2]


def test_what_a_result_is_named_by(tmp_path: Path) -> None:
    shards = shards_of(tmp_path / "one")
    work, folder = partial(shout, log=tmp_path / "log"), tmp_path / "results"
    (first,) = map_shards(work, shards[:1], folder, key="k")
    (copy,) = map_shards(work, shards_of(tmp_path / "two")[:1], folder, key="k")
    assert copy == first and tries(tmp_path / "log") == {"a": 1}  # another folder, another time
    (other,) = map_shards(work, shards[:1], folder, key="K")
    shards[0].rename(tmp_path / "one" / "z")
    (renamed,) = map_shards(work, [tmp_path / "one" / "z"], folder, key="k")
    assert len({first, other, renamed}) == 3 and tries(tmp_path / "log") == {"a": 2, "z": 1}


def test_a_worker_that_is_killed_loses_nothing(
    away: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards, log = shards_of(tmp_path / "shards"), tmp_path / "log"
    work = partial(dies, log=log, victim="b", times=2)
    with caplog.at_level("WARNING", "radio_utils.sharding"):
        made = map_shards(work, shards, tmp_path / "results", key="dies", **away)
    assert [path.read_text() for path in made] == [f"CONTENT OF {name.upper()}" for name in NAMES]
    assert tries(log) == {"a": 1, "b": 3, "c": 1, "d": 1, "e": 1}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and all(str(shards[1]) in one and "died" in one and "done again" in one for one in told)
    assert set((tmp_path / "results").iterdir()) == set(made)  # what the killed left is gone


def test_a_shard_that_kills_every_worker_is_given_up(away: dict[str, Any], tmp_path: Path) -> None:
    shards, log = shards_of(tmp_path / "shards"), tmp_path / "log"
    work = partial(dies, log=log, victim="b", times=99)
    with pytest.raises(ShardError, match=r"b: .*died.* tried 2 times; .*more memory") as raised:
        map_shards(work, shards, tmp_path / "results", key="dies", attempts=2, **away)
    assert raised.value.shard == shards[1] and tries(log)["b"] == 2
    assert "CONTENT OF A" in results(tmp_path / "results") and "CONTENT OF B" not in results(tmp_path / "results")


def test_an_error_names_its_shard_and_keeps_the_others(
    how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, log = shards_of(tmp_path / "shards"), tmp_path / "log"
    mended, noticed = tmp_path / "mended", tmp_path / "noticed"
    work = partial(fails, log=log, victim="b", mended=mended, noticed=noticed)
    looks: list[Any] = []

    def look(under_way: Any, **options: Any) -> Any:
        looks.append(under_way)
        if len(looks) > 1:  # so it has seen the first one end, which is the victim
            noticed.touch()
        return wait(under_way, **options)

    if how["workers"] == 1:  # none is under way with another
        noticed.touch()
    monkeypatch.setattr(sharding, "wait", look)
    with pytest.raises(ShardError, match=r"/b: row 7 is bad") as raised:
        map_shards(work, shards, tmp_path / "results", key="fails", **how)
    assert raised.value.shard == shards[1] and isinstance(raised.value.__cause__, ValueError)
    assert results(tmp_path / "results") == {"CONTENT OF A"}  # which was under way; the rest was not begun
    assert tries(log) == {"a": 1, "b": 1}  # an error is no death: it is not tried again
    mended.touch()
    made = map_shards(work, shards, tmp_path / "results", key="fails", **how)
    assert [path.read_text() for path in made] == [f"CONTENT OF {name.upper()}" for name in NAMES]
    assert tries(log) == {"a": 1, "b": 2, "c": 1, "d": 1, "e": 1}


CUT = """
import sys, time
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from radio_utils.sharding import map_shards
from test_sharding import shout

def stuck(shard, path, *, log):
    shout(shard, path, log=log)
    if shard.name in "cd":
        path.write_text("half")
        time.sleep(3000)

if __name__ == "__main__":
    folder = Path(sys.argv[2])
    shards = sorted((folder / "shards").iterdir())
    map_shards(partial(stuck, log=folder / "log"), shards, folder / "results", key="k", backend="processes", workers=2)
"""


def test_a_run_that_was_cut_goes_on_where_it_stopped(tmp_path: Path) -> None:
    shards, log = shards_of(tmp_path / "shards"), tmp_path / "log"
    (tmp_path / "cut.py").write_text(CUT)
    command = [sys.executable, str(tmp_path / "cut.py"), str(Path(__file__).parent), str(tmp_path)]
    run = subprocess.Popen(command, start_new_session=True)
    try:
        wait_until(lambda: (log.exists() and {"c", "d"} <= tries(log).keys()) or run.poll() is not None)
    finally:
        os.killpg(run.pid, signal.SIGKILL)  # with its workers, as when the machine goes down
        run.wait()
    assert tries(log) == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert results(tmp_path / "results") == {"CONTENT OF A", "CONTENT OF B"}  # and no half of c or d
    made = map_shards(partial(shout, log=log), shards, tmp_path / "results", key="k")
    assert [path.read_text() for path in made] == [f"CONTENT OF {name.upper()}" for name in NAMES]
    assert tries(log) == {"a": 1, "b": 1, "c": 2, "d": 2, "e": 1}


class Odd(Exception):
    """Cannot be read back by another process: its arguments are not its message."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__(f"row {row}, column {column}")


def raises(shard: Path, path: Path) -> None:
    raise Odd(3, 4) if shard.name == "b" else ValueError("bad")


@pytest.mark.parametrize(("name", "expected"), [("a", ValueError), ("b", RuntimeError)])
def test_errors_travel_between_processes(name: str, expected: type, tmp_path: Path) -> None:
    shard = shards_of(tmp_path / "shards")[NAMES.index(name)]
    with pytest.raises(ShardError, match="bad" if name == "a" else "Odd: row 3, column 4") as raised:
        map_shards(raises, [shard], tmp_path, key="k", backend="processes")
    assert type(raised.value.__cause__) is expected
    if name == "a":
        assert "in raises" in raised.value.__cause__.__notes__[0]  # where it was raised


class Recorded(Executor):
    """Keeps what is sent to a worker, and does it here."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.sent.append(pickle.dumps((fn, args, kwargs)))
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        raise AssertionError("an executor that was handed in belongs to the caller")


def test_any_executor_can_be_handed_in(tmp_path: Path) -> None:
    shards, log = shards_of(tmp_path / "shards"), tmp_path / "log"
    with ThreadPoolExecutor(2) as threads:
        for number, executor in enumerate([threads, Recorded()]):
            made = map_shards(partial(shout, log=log), shards, tmp_path / f"{number}", key="k", backend=executor)
            assert [path.read_text() for path in made] == [f"CONTENT OF {name.upper()}" for name in NAMES]
        with pytest.raises(ShardError, match="row 7 is bad"):
            work = partial(fails, log=log, victim="b", mended=tmp_path / "no", noticed=log)  # which is there
            map_shards(work, shards, tmp_path / "2", key="k", backend=threads)
        assert threads.submit(len, "ab").result() == 2  # it still runs


def test_a_pool_that_is_broken_as_a_whole_ends_the_run(tmp_path: Path) -> None:
    shards, log = shards_of(tmp_path / "shards"), tmp_path / "log"
    work = partial(dies, log=log, victim="a", times=1)
    with ProcessPoolExecutor(1) as pool, pytest.raises(ShardError, match=r"died .* tried 2 times"):
        map_shards(work, shards, tmp_path / "results", key="k", backend=pool, attempts=2)
    map_shards(work, shards, tmp_path / "results", key="k")
    assert tries(log) == {"a": 2, "b": 1, "c": 1, "d": 1, "e": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "threads"}, "backend must be one of .*'threads'"),
        ({"workers": 0}, "workers and attempts must be at least 1, got 0"),
        ({"attempts": 0}, "workers and attempts must be at least 1, got 1 and 0"),
        ({"workers": 2}, "'here' is one process, got workers=2"),
        ({"shards": []}, "shards is empty"),
        ({"shards": "a.jsonl"}, r"write \['a.jsonl'\]"),
        ({"shards": ["missing.jsonl"]}, r"shards\[0\] = .*missing.jsonl is no file"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_done(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"shards": shards_of(tmp_path / "shards")} | options
    with pytest.raises(ValueError, match=message):
        map_shards(partial(shout, log=tmp_path / "log"), folder=tmp_path / "results", key="k", **given)
    assert not (tmp_path / "results").exists()


def test_work_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="wrote no file"):
        map_shards(nothing, shards_of(tmp_path / "shards"), tmp_path / "results", key="k")
    assert not list((tmp_path / "results").iterdir())


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'radio-utils\[ray\]'"):
        map_shards(nothing, shards_of(tmp_path / "shards"), tmp_path / "results", key="k", backend="ray")


class PretendRay:
    """Remembers how it was started and stopped, and does tasks one by one in this process."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.wanted: list[dict[str, Any]] = []
        self.stopped = 0
        self.exceptions = SimpleNamespace(RayTaskError=OSError)

    def is_initialized(self) -> bool:
        return len(self.started) > self.stopped

    def init(self, **options: Any) -> None:
        self.started.append(options)

    def shutdown(self) -> None:
        self.stopped += 1

    def put(self, value: Any) -> Any:
        return pickle.loads(pickle.dumps(value))

    def remote(self, **options: Any) -> Any:
        self.wanted.append(options)
        return lambda function: SimpleNamespace(remote=partial(self.done, function))

    def done(self, function: Any, *args: Any) -> Any:
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return SimpleNamespace(future=lambda: future)


def test_ray_is_started_and_stopped_where_it_did_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend, shards = PretendRay(), shards_of(tmp_path / "shards")
    monkeypatch.setitem(sys.modules, "ray", pretend)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")

    shouting = partial(shout, log=tmp_path / "log")

    def run(work: Any = shouting, **options: Any) -> list[Path]:
        folder = tmp_path / str(len(pretend.wanted))
        return map_shards(work, shards, folder, key="k", backend="ray", workers=3, **options)

    assert [path.read_text() for path in run()] == [f"CONTENT OF {name.upper()}" for name in NAMES]
    assert pretend.started[0]["address"] == "local" and pretend.started[0]["num_cpus"] == 3
    assert pretend.started[0]["include_dashboard"] is False and pretend.stopped == 1
    run(address="ray://there:1", gpus=0.5)
    assert pretend.started[1]["address"] == "ray://there:1" and "num_cpus" not in pretend.started[1]
    assert pretend.wanted[1] == {"num_cpus": 1, "num_gpus": 0.5, "max_retries": 0} and pretend.stopped == 2
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere")
    with pytest.raises(AttributeError, match="pickle"):
        run(lambda shard, path: None)
    assert len(pretend.started) == 2
    run()
    assert pretend.started[2]["address"] == "elsewhere" and pretend.stopped == 3
    pretend.init()
    run()
    assert len(pretend.started) == 4 and pretend.stopped == 3


# --- detection ----------------------------------------------------------------------------------------------------------


def write(path: Path, texts: list[list[int]], prompts: list[list[int]] | None) -> Path:
    rows = [{"ids": text} for text in texts]
    if prompts is not None:
        rows = [{**row, "prompt_ids": prompt} for row, prompt in zip(rows, prompts, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    return [write(folder / f"{i}.jsonl", TEXTS[i::4], PROMPTS[i::4]) for i in range(4)]


def same(found: ru.Detection, expected: ru.Detection) -> None:
    """The verdict and the evidence, bit for bit."""
    assert found == expected and found.seen > 0
    assert np.array_equal(found.evidence.windows, expected.evidence.windows)
    assert np.array_equal(found.evidence.tokens, expected.evidence.tokens)


def test_shards_give_the_verdict_of_one_process(how: dict[str, Any], files: list[Path], tmp_path: Path) -> None:
    found = detect_shards(files, WM, tmp_path, **how)
    same(found, ru.detect(files, WM))
    pairs = set()
    for text, prompt in zip(TEXTS, PROMPTS, strict=True):
        copied = {tuple(prompt[i : i + 2]) for i in range(len(prompt) - 1)}
        pairs |= {tuple(text[i : i + 3]) for i in range(len(text) - 2) if tuple(text[i : i + 2]) not in copied}
    assert {(*w, t) for w, t in zip(found.evidence.windows.tolist(), found.evidence.tokens.tolist(), strict=True)} == pairs
    assert found.scored == len(pairs) and found.seen == sum(len(text) - 2 for text in TEXTS)


KEEP = [[i, j] for i in range(0, VOCABULARY, 2) for j in range(VOCABULARY)]


@given(
    cuts=st.lists(st.integers(1, len(TEXTS) - 1), max_size=5, unique=True).map(sorted),
    dedup=st.sampled_from(evidence.DEDUPS),
    keep=st.sampled_from([None, KEEP]),
    sample=st.sampled_from([1.0, 0.5]),
    prompted=st.booleans(),
)
@settings(max_examples=25)
def test_any_cut_gives_the_verdict_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], prompted: bool, **options: Any
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    parts = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, len(TEXTS)], strict=True)]
    shards = [
        write(folder / f"{i}.jsonl", TEXTS[part], PROMPTS[part] if prompted else None) for i, part in enumerate(parts)
    ]
    found = detect_shards(shards, WM, folder / "results", **options)
    same(found, ru.detect(TEXTS, WM, prompts=PROMPTS if prompted else None, **options))


class Words:
    """A tokenizer of numbers."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


def test_text_and_parquet(files: list[Path], tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    importlib.import_module("pyarrow.parquet")
    table = pyarrow.table({"ids": TEXTS[:20], "prompt_ids": PROMPTS[:20]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": " ".join(map(str, t))}) + "\n" for t in TEXTS[20:]))
    mixed = [tmp_path / "a.parquet", tmp_path / "b.jsonl"]
    same(detect_shards(mixed, WM, tmp_path / "results", tokenizer=Words()), ru.detect(mixed, WM, tokenizer=Words()))


def test_evidence_is_collected_once_for_all_keys(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect_shards(files, WM, tmp_path)
    others = [WM.with_decoy(0, 1), ru.GumbelMax("another", VOCABULARY, 2)]
    expected = [ru.detect(files, wm) for wm in others]
    calls: list[Path] = []
    collect_file = detection.collect_file

    @functools.wraps(collect_file)
    def counted(file: Path, shard: Path, **options: Any) -> Any:
        calls.append(file)
        return collect_file(file, shard, **options)

    monkeypatch.setattr(detection, "collect_file", counted)
    for wm, one in zip(others, expected, strict=True):
        same(detect_shards(files, wm, tmp_path), one)
    assert calls == []
    differing: list[dict[str, Any]] = [
        {"dedup": "window"}, {"keep": [[1, 2]]}, {"keep": [[1, 3]]}, {"sample": 0.5}, {"tokenizer": Words()},
    ]  # fmt: skip
    for number, options in enumerate(differing, 1):  # and other settings never read one another's results
        detect_shards(files, WM, tmp_path, **options)
        assert len(calls) == number * len(files)
    detect_shards(files, ru.GreenList("k", VOCABULARY, 1, 0.25, 2.0), tmp_path)
    detect_shards(files, ru.GreenList("k", VOCABULARY + 1, 2, 0.25, 2.0), tmp_path)
    assert len(calls) == 7 * len(files)


def test_the_key_stays_at_home(files: list[Path], bob: Path, tmp_path: Path) -> None:
    assert b"GreenList" in pickle.dumps(partial(nothing, wm=WM))  # a watermark on its way would be seen
    away = Recorded()
    detect_shards(files[:1], WM, tmp_path, keep=KEEP, backend=away)
    read_shards(bob, files[:1], WM, tmp_path, keep=KEEP, backend=away)
    read_shards(bob, files[:1], WM, tmp_path, reference=bob, keep=KEEP, backend=away)
    assert len(away.sent) == 4
    for sent in away.sent:
        assert not any(word in sent for word in (b"GreenList", b"never travels", b"PRF", WM.fingerprint.encode()))


def test_a_damaged_row_is_named(files: list[Path], tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", [[1, 2, 3], [4, 5, VOCABULARY]], [[1], [2]])
    with pytest.raises(ShardError, match=r"^[^:]*bad.jsonl, row 2: ids .*outside the watermark's vocabulary") as raised:
        detect_shards([files[0], bad], WM, tmp_path / "results")
    assert isinstance(raised.value.__cause__, ValueError) and len(list((tmp_path / "results").iterdir())) == 1
    with pytest.raises(ValueError, match="dedup must be one of"):  # no shard's fault
        detect_shards(files, WM, tmp_path / "results", dedup="token")  # type: ignore[arg-type]


# --- reading and answering ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bob(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of random weights, large enough that the context matters."""
    return saved(tmp_path_factory.mktemp("bob"), 3)


def saved(folder: Path, seed: int) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.5, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_reading_in_shards_is_reading_in_one_process(
    how: dict[str, Any], bob: Path, files: list[Path], tmp_path: Path
) -> None:
    from radio_utils import reading, suspects

    model = suspects.load_model(bob)
    options: dict[str, Any] = {"batch_size": 7, "dedup": "window", "keep": KEEP}
    if how["backend"] == "processes":
        how["workers"] = 1  # each takes seconds to import torch
    whole = reading.read_evidence(model, TEXTS, 2, VOCABULARY, prompts=PROMPTS, **options)
    found = read_shards(bob, files, WM, tmp_path, **options, **how)
    same(found, detection.judge(whole, WM))
    assert 50 < found.scored < found.seen


def test_each_process_loads_its_model_once_and_another_model_anew(
    bob: Path, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from radio_utils import suspects

    loads: list[Any] = []
    load_model = suspects.load_model

    def counted(name: Any, **options: Any) -> Any:
        loads.append(name)
        return load_model(name, **options)

    monkeypatch.setattr(suspects, "load_model", counted)
    first = read_shards(bob, files, WM, tmp_path)
    assert loads == [bob]
    same(read_shards(bob, files, WM, tmp_path), first)
    assert loads == [bob]
    other = read_shards(saved(tmp_path / "other", 4), files, WM, tmp_path)
    assert len(loads) == 2 and other.evidence.seen == first.evidence.seen and other != first
    assert sharding._loaded.cache_info().currsize == 0  # no model stays behind in the caller's memory
    with pytest.raises(ShardError, match="does not exist"):
        read_shards(tmp_path / "missing", files, WM, tmp_path)


def alike(found: Any, expected: Any) -> None:
    """The same contrastive verdict."""
    assert (found.seen, found.scored, found.total) == (expected.seen, expected.scored, expected.total) and found.scored
    assert np.array_equal(found.contrast.weights, expected.contrast.weights)
    assert np.array_equal(found.evidence.windows, expected.evidence.windows)
    # texts are batched within their shard, and the models' float32 depends on it
    assert found.contrast.explained == pytest.approx(expected.contrast.explained, abs=1e-5)
    assert found.log10_p == pytest.approx(expected.log10_p, abs=1e-9) and found.text_log10_p == expected.text_log10_p


def test_contrastive_reading_in_shards(
    how: dict[str, Any], bob: Path, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from radio_utils import reading, suspects

    if how["backend"] == "processes":
        how["workers"] = 1
    others = [saved(tmp_path / "base", 4), saved(tmp_path / "twin", 5)]
    options: dict[str, Any] = {"batch_size": 7, "keep": KEEP, "top": 9}
    models = [suspects.load_model(folder) for folder in (bob, *others)]
    expected = reading.read_open_model(models[0], TEXTS, WM, reference=models[1:], prompts=PROMPTS, **options)
    alike(read_shards(bob, files, WM, tmp_path / "r", reference=others, **options, **how), expected)

    # it goes on where it stopped, for another key too, and other settings do not read one another's results
    monkeypatch.delattr(suspects, "load_model")  # nothing is read
    other_key = WM.with_decoy(0, 1)
    expected = contrast.judge_contrast(expected.contrast, other_key)
    found = read_shards(bob, files[::-1], other_key, tmp_path / "r", reference=others, **options)
    assert (found.total, found.scored) == (expected.total, expected.scored)
    for changed in ({"top": 8}, {"keep": None}, {"skip_seen": False}, {"batch_size": 6}, {"reference": others[::-1]}):
        with pytest.raises(ShardError, match="load_model"):
            read_shards(bob, files, WM, tmp_path / "r", **{"reference": others, **options, **changed})


def test_marked_text_is_refused_before_any_model_is_loaded(files: list[Path], tmp_path: Path) -> None:
    marked = write(tmp_path / "marked.jsonl", [green(40, seed) for seed in range(20)], None)
    with pytest.raises(ValueError, match="carry the watermark"):
        read_shards(tmp_path / "none", [marked], WM, tmp_path, reference=tmp_path / "none")
    with pytest.raises(ValueError, match="reference is empty"):
        read_shards(tmp_path / "none", files, WM, tmp_path, reference=[])


def green(length: int, seed: int) -> list[int]:
    """A text of green tokens only."""
    draws = np.random.default_rng(seed)
    text = draws.integers(0, VOCABULARY, 2).tolist()
    while len(text) < length:
        tokens = draws.permutation(VOCABULARY)
        text.append(int(tokens[np.argmax(WM.scores(np.tile(text[-2:], (VOCABULARY, 1)), tokens))]))
    return text


def answered(paths: list[Path]) -> list[list[dict[str, list[int]]]]:
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]


@pytest.mark.usefixtures("running_ray")
def test_answers_depend_on_no_backend(bob: Path, files: list[Path], tmp_path: Path) -> None:
    from radio_utils.decoding import Sampling

    sampling = Sampling(temperature=1.0, top_k=20)
    options: dict[str, Any] = {"max_new_tokens": 9, "sampling": sampling, "stop_tokens": [0, 1], "seed": 7, "batch_size": 6}
    made = answer_shards(bob, files, tmp_path / "away", **options, backend="ray", workers=2)
    here = answer_shards(bob, files[::-1], tmp_path / "here", **options)[::-1]  # nor on the other shards
    assert [path.name for path in made] == [path.name for path in here]
    assert answered(made) == answered(here)
    assert [row["prompt_ids"] for rows in answered(made) for row in rows] == [p for i in range(4) for p in PROMPTS[i::4]]
    answers = [row["ids"] for rows in answered(made) for row in rows]
    assert all(len(answer) <= 9 and not {0, 1} & set(answer) for answer in answers)
    assert len({tuple(answer) for answer in answers}) > 40


def test_the_draws_follow_from_seed_and_name(bob: Path, tmp_path: Path) -> None:
    import torch

    from radio_utils import suspects
    from radio_utils.decoding import Sampling

    prompts = [[5, 6, 7]] * 8
    shards = [write(tmp_path / name, [[1]] * 8, prompts) for name in ("one.jsonl", "two.jsonl")]
    options: dict[str, Any] = {"max_new_tokens": 12, "sampling": Sampling(temperature=1.0, top_k=20)}
    one, two = answered(answer_shards(bob, shards, tmp_path / "r", seed=1, **options))
    (again,) = answered(answer_shards(bob, shards[:1], tmp_path / "r", seed=2, **options))
    assert len({json.dumps(rows) for rows in (one, two, again)}) == 3  # the same prompts, other draws
    greedy = answer_shards(bob, shards, tmp_path / "r", max_new_tokens=12, sampling=Sampling(temperature=0))
    expected = suspects.load_model(bob).generate(
        torch.tensor([prompts[0]]), do_sample=False, max_new_tokens=12, eos_token_id=-1
    )
    assert all(row["ids"] == expected[0, 3:].tolist() for rows in answered(greedy) for row in rows)

    (tmp_path / "sub").mkdir()
    twin = write(tmp_path / "sub" / "one.jsonl", [[1]], [[8, 9]])
    with pytest.raises(ValueError, match=r"2 files called one.jsonl, .*rename"):
        answer_shards(bob, [shards[0], twin], tmp_path / "r")
    with pytest.raises(ShardError, match="holds no prompts"):
        answer_shards(bob, [write(tmp_path / "bare.jsonl", [[1, 2, 3]], None)], tmp_path / "r")


def test_answers_can_be_scored(bob: Path, files: list[Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "stop_tokens": range(8), "seed": 3}
    everything = [row for rows in answered(answer_shards(bob, files, tmp_path, **options)) for row in rows]
    long_enough = answer_shards(bob, files, tmp_path, shortest=WM.window + 1, **options)
    assert sum(map(len, answered(long_enough))) < len(everything) == len(TEXTS)
    usable = [row for row in everything if len(row["ids"]) > WM.window]
    expected = detection.detect([row["ids"] for row in usable], WM, prompts=[row["prompt_ids"] for row in usable])
    same(detect_shards(long_enough, WM, tmp_path), expected)
