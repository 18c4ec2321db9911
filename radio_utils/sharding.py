"""Corpora larger than a machine: each shard is worked on by itself, in this process, in several, or on Ray.

Evidence merges like a set, so the verdict on shards is that on the whole corpus. The result of a shard is a file; its name
is a hash of the work, the shard's name and the shard's content, and it appears by a rename. So a run that was cut goes on
where it stopped, a worker that is killed loses only the shard it had in hand, and that shard is done again.

The key stays at home: workers find pairs, which depend on a watermark's window and vocabulary only, and write text of B.
Scores and p-values are computed by the caller's process. With ``backend="processes"`` a script needs the usual
``if __name__ == "__main__":``; on several machines Ray's workers must see the same files and have this package.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import pickle
import secrets
import shutil
import sys
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import connection, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from radio_utils import detection
from radio_utils import evidence as ev
from radio_utils.evidence.files import CorpusFile
from radio_utils.files import sha256_of
from radio_utils.predictions import Predictions
from radio_utils.provenance import code_version
from radio_utils.watermarks import Watermark

if TYPE_CHECKING:
    import torch

    from radio_utils.decoding import Sampling

logger = logging.getLogger(__name__)
Backend = Literal["here", "processes", "ray"]
BACKENDS: tuple[Backend, ...] = ("here", "processes", "ray")
Work = Callable[[Path, Path], object]


class ShardError(RuntimeError):
    """A shard whose result could not be made, ``shard``. The results of the others are kept for the next run."""

    def __init__(self, shard: Path, reason: BaseException) -> None:
        text = str(reason) or type(reason).__name__
        super().__init__(text if str(shard) in text else f"{shard}: {text}")
        self.shard = shard


class How(TypedDict, total=False):
    """The options of :func:`map_shards` that say who does the work; no result depends on them."""

    workers: int
    backend: Backend
    attempts: int
    address: str | None
    gpus: float
    progress: str | None


def map_shards(
    work: Work,
    shards: Sequence[str | Path],
    folder: str | Path,
    *,
    key: str,
    suffix: str = "",
    workers: int = 1,
    backend: Backend = "here",
    attempts: int = 3,
    address: str | None = None,
    gpus: float = 0.0,
    progress: str | None = None,
) -> list[Path]:
    """Call ``work(shard, path)``, which writes one file to ``path``, for each shard: the results' paths, in order.

    Results lie in ``folder``, named by ``suffix`` and a hash of ``key`` (which says what the work is, with all its
    parameters), the shard's file name and its content; one that is there is not made again. ``work`` must be picklable,
    such as a :func:`functools.partial` of a module's function. "here" is this process, "processes" are ``workers``
    processes of this machine, "ray" as many tasks at once of the Ray that is running, of the cluster at ``address`` (or in
    ``RAY_ADDRESS``), or of a Ray that is started here and stopped at the end. ``gpus`` is what Ray sets aside for a task.

    A worker that dies is replaced and its shard done again, until it was tried ``attempts`` times. Raises
    :class:`ShardError` where that does not help or ``work`` raises, once the shards under way are done; ``ValueError`` for
    no shards, shards that are no files, an unknown backend, or numbers below 1; ``ImportError`` where Ray is wanted and
    missing. Where the caller itself is killed, a folder ``.unfinished-…`` is left, which no later run reads.
    """
    paths = _checked_shards(shards)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    if workers < 1 or attempts < 1:
        raise ValueError(f"workers and attempts must be at least 1, got {workers} and {attempts}")
    if backend == "here" and workers > 1:
        raise ValueError(f"backend='here' is one process, got workers={workers}; choose backend='processes' or 'ray'")
    if backend == "ray":
        _ray()
    results = Path(folder).expanduser().absolute()
    unfinished = results / f".unfinished-{secrets.token_hex(6)}"
    unfinished.mkdir(parents=True)
    task = _Task(work, results, unfinished, key, suffix)
    hands: _Hands | None = None
    try:
        if backend == "ray":
            hands = _Ray(task, workers, address, gpus)
        else:
            hands = _Here(task) if backend == "here" else _Processes(task, workers)
        made = _made(list(dict.fromkeys(paths)), hands, workers, attempts, progress)
    finally:
        if hands is not None:
            hands.stop()
        shutil.rmtree(unfinished, ignore_errors=True)
    return [made[path] for path in paths]


def detect_shards(
    files: Sequence[str | Path],
    wm: Watermark,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    keep: ArrayLike | None = None,
    dedup: ev.Dedup = "window+token",
    sample: float = 1.0,
    **how: Unpack[How],
) -> detection.Detection:
    """:func:`radio_utils.detect` on files of texts, each of them a shard; the verdict is the same, bit for bit.

    The shards' evidence is kept in ``folder``. It depends on no key, so that another key, or a null audit of the
    verdict's ``evidence``, reads no text again. Workers are given the window and the vocabulary's size, never the key.
    ``how`` are the options of :func:`map_shards`, which says what is raised; a damaged row is a :class:`ShardError`, and so
    are prompts where windows of the scheme share draws.

    Parameters
    ----------
    files : sequence of str or Path
        JSONL or Parquet files, each a shard.
    wm : Watermark
        The watermark whose key is asked about.
    folder : str or Path
        Where the shards' results are kept, to go on after a stop.
    tokenizer : transformers tokenizer, optional
        For files that hold strings.
    keep : array_like of int [m, k], optional
        The filter φ: the only windows that are scored. It must be chosen without the key.
    dedup : {'window+token', 'window', None}
        What counts once: a pair, a window, or nothing, and then p is no p-value.
    sample : float in (0, 1]
        Share of the windows that is scored, chosen by a public hash.
    **how
        Options of :func:`map_shards`: workers, backend, attempts.

    Returns
    -------
    Detection
        The verdict of all files together.

    Raises
    ------
    ShardError
        For a shard that fails, with its name.

    Notes
    -----
    Evidence merges like a set, whatever the sharding.
    """
    wanted = None if keep is None else ev.checked_filter(keep, wm.window, wm.vocab_size)
    options = {"keep": wanted, "dedup": dedup, "sample": sample}
    ev.Collector(ev.Packing(wm.window, wm.vocab_size), **options)  # type: ignore[arg-type]  # options at fault, said at once
    work = partial(
        detection.collect_file, window=wm.window, vocab_size=wm.vocab_size, tokenizer=tokenizer, options=options,
        prompts_refused=ev.shared_by(wm) is not None,
    )  # fmt: skip
    key = _key(
        "detect", ("detection",),
        window=wm.window, vocab_size=wm.vocab_size, tokenizer=_tokenizer_id(tokenizer), **options,
    )  # fmt: skip
    return _verdict(map_shards(work, files, folder, key=key, suffix=".npz", **how), wm, dedup)


def read_shards(
    model: str | Path,
    files: Sequence[str | Path],
    wm: Watermark,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    keep: ArrayLike | None = None,
    dedup: ev.Dedup = "window+token",
    skip_seen: bool = True,
    full_context: bool = False,
    batch_size: int = 64,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    **how: Unpack[How],
) -> detection.Detection:
    """:func:`radio_utils.read_open_model` on files of texts, each a shard, with B's ``model`` folder or hub name.

    Every process loads B once, with :func:`radio_utils.suspects.load_model`, and holds one shard's texts at a time. Texts
    are batched within their shard; B's rounding may depend on the batch and the number of threads, and a near tie between
    two tokens then falls otherwise than in one call of :func:`radio_utils.reading.read_predictions`. A model's folder is
    known by the content of its files, a hub name by the name alone: take another ``folder`` when the hub's model has
    changed.

    What B expects depends on no key, and workers are given none. On a CUDA ``device`` Ray sets one GPU aside for each
    worker. ``how`` are the options of :func:`map_shards`, which says what is raised.

    Parameters
    ----------
    model : str or Path
        Folder or hub name of B.
    files : sequence of str or Path
        JSONL or Parquet files, each a shard.
    wm : Watermark
        The watermark whose key is asked about.
    folder : str or Path
        Where the shards' results are kept, to go on after a stop.
    tokenizer : transformers tokenizer, optional
        For files that hold strings.
    keep : array_like of int [m, k], optional
        The filter φ: the only windows that are scored. It must be chosen without the key.
    dedup : {'window+token', 'window', None}
        What counts once: a pair, a window, or nothing, and then p is no p-value.
    skip_seen : bool
        Whether predictions after windows that the prompt holds are left out.
    full_context : bool
        Whether the prompts hold all that stood before the texts.
    batch_size : int
        Sequences a forward pass.
    device : str
        Where the model runs, as torch names it.
    dtype : torch.dtype, optional
        Precision of the weights; the stored one without it.
    **how
        Options of :func:`map_shards`: workers, backend, attempts.

    Returns
    -------
    Detection
        The verdict of all files together.

    Raises
    ------
    ShardError
        For a shard that fails, with its name.

    Notes
    -----
    See :func:`radio_utils.read_open_model`.
    """
    wanted = None if keep is None else ev.checked_filter(keep, wm.window, wm.vocab_size)
    ev.check_dedup(dedup)
    bob = _Bob.of(model, device, dtype)
    work = partial(_read, bob=bob, vocab_size=wm.vocab_size, tokenizer=tokenizer, batch_size=batch_size)
    key = _key(
        "read", ("reading", "suspects", "evidence"),
        vocab_size=wm.vocab_size, tokenizer=_tokenizer_id(tokenizer), bob=bob.key, batch_size=batch_size,
    )  # fmt: skip
    parts = [Predictions.load(part) for part in _with_bob(bob, work, files, folder, key, ".npz", how)]
    found = parts[0].merge(*parts[1:])
    pairs = found.evidence(
        wm.window, wm.vocab_size, shared=ev.shared_by(wm), keep=wanted, dedup=dedup, skip_seen=skip_seen,
        full_context=full_context,
    )  # fmt: skip
    return detection.judge(pairs, wm)


def answer_shards(
    model: str | Path,
    files: Sequence[str | Path],
    folder: str | Path,
    *,
    tokenizer: Any = None,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    stop_tokens: Sequence[int] = (),
    shortest: int = 0,
    seed: int = 0,
    batch_size: int = 128,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    **how: Unpack[How],
) -> list[Path]:
    """B's answers to files of prompts, each a shard: for each a JSONL file of {"prompt_ids": [...], "ids": [...]}.

    Rows hold ``prompt_ids`` (or ``prompt``, and a ``tokenizer`` is given). Answers of fewer than ``shortest`` tokens are
    left out; the watermark's window + 1 leaves what :func:`detect_shards` can score. A shard's draws follow from ``seed``
    and its file name, so that neither the backend, the number of workers nor the other shards change an answer; hence no
    two shards may have the same name.

    B answers without any key. B is loaded and known as in :func:`read_shards`; ``how`` are the options of
    :func:`map_shards`, which says what is raised.

    Parameters
    ----------
    model : str or Path
        Folder or hub name of B.
    files : sequence of str or Path
        JSONL or Parquet files, each a shard.
    folder : str or Path
        Where the shards' results are kept, to go on after a stop.
    tokenizer : transformers tokenizer, optional
        For files that hold strings.
    max_new_tokens : int
        The most tokens of an answer.
    sampling : Sampling, optional
        How B draws its tokens, if that is known.
    stop_tokens : sequence of int
        Token ids that end an answer.
    shortest : int
        Fewest tokens of an answer that is kept.
    seed : int
        Which draws.
    batch_size : int
        Sequences a forward pass.
    device : str
        Where the model runs, as torch names it.
    dtype : torch.dtype, optional
        Precision of the weights; the stored one without it.
    **how
        Options of :func:`map_shards`: workers, backend, attempts.

    Returns
    -------
    list of Path
        A JSONL file for each shard.

    Raises
    ------
    ValueError
        Besides, for shards of one name.

    Notes
    -----
    Draws follow from ``seed`` and the shard's name alone.
    """
    names = Counter(Path(file).name for file in _checked_shards(files))
    if twice := next((name for name, count in names.items() if count > 1), None):
        raise ValueError(f"files holds {names[twice]} files called {twice}, which would share their draws; rename them")
    bob = _Bob.of(model, device, dtype)
    options = {
        "max_new_tokens": max_new_tokens,
        "sampling": sampling,
        "stop_tokens": [int(token) for token in stop_tokens],
        "batch_size": batch_size,
    }
    work = partial(_answer, bob=bob, tokenizer=tokenizer, shortest=shortest, seed=seed, options=options)
    key = _key(
        "answer", ("suspects", "evidence"),
        tokenizer=_tokenizer_id(tokenizer), bob=bob.key, shortest=shortest, seed=seed, **options,
    )  # fmt: skip
    return _with_bob(bob, work, files, folder, key, ".jsonl", how)


# --- one shard --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """The work on one shard, with everything around it that keeps a reader from ever seeing half a result."""

    work: Work
    folder: Path
    unfinished: Path
    key: str
    suffix: str

    def __call__(self, shard: Path) -> Path | Exception:
        """The path of the shard's result, which is made unless it is there, or the error that prevents it."""
        try:
            result = self.folder / self._name(shard)
            if not result.exists():
                part = self.unfinished / f"{secrets.token_hex(8)}{self.suffix}"
                self.work(shard, part)
                if not part.is_file():
                    raise FileNotFoundError("the work wrote no file; it must write to the path that is its second argument")
                with part.open("rb+") as file:
                    os.fsync(file.fileno())  # a name must not outlive a power cut that its content does not
                part.replace(result)
        except Exception as error:
            return error
        return result

    def _name(self, shard: Path) -> str:
        # hashed by the workers, side by side: the caller reads nothing of a corpus larger than its machine
        return _hash(json.dumps([self.key, shard.name, sha256_of(shard)]).encode()) + self.suffix


def _read(shard: Path, path: Path, *, bob: _Bob, vocab_size: int, tokenizer: Any, batch_size: int) -> None:
    from radio_utils.reading import read_predictions

    corpus = CorpusFile(shard, tokenizer)
    texts, prompts = list(corpus.texts()), corpus.prompts()
    given = None if prompts is None else list(prompts)
    read_predictions(_loaded(bob), texts, vocab_size, prompts=given, batch_size=batch_size).save(path)


def _answer(
    shard: Path, path: Path, *, bob: _Bob, tokenizer: Any, shortest: int, seed: int, options: dict[str, Any]
) -> None:
    import torch

    from radio_utils.decoding import generate

    prompts = CorpusFile(shard, tokenizer).prompts()
    if prompts is None:
        raise ValueError("the file holds no prompts; give every row prompt_ids or prompt")
    asked = [np.asarray(prompt) for prompt in prompts]
    model = _loaded(bob)
    draws = int(_hash(json.dumps([seed, shard.name]).encode())[:15], 16)
    generator = torch.Generator(next(model.parameters()).device).manual_seed(draws)
    with path.open("w", encoding="utf-8") as file:
        for prompt, answer in zip(asked, generate(model, asked, generator=generator, **options), strict=True):
            if answer.size >= shortest:
                file.write(json.dumps({"prompt_ids": prompt.tolist(), "ids": answer.tolist()}) + "\n")


@dataclass(frozen=True)
class _Bob:
    """Where B is loaded from; ``key`` tells whether it is the same B."""

    name: str | Path
    device: str
    dtype: torch.dtype | None
    key: str

    @classmethod
    def of(cls, model: str | Path, device: str, dtype: torch.dtype | None) -> _Bob:
        folder = Path(model).expanduser()
        if not folder.is_dir():  # a hub name, or an error that load_model words
            return cls(model, device, dtype, f"{model} {dtype}")
        digest = hashlib.sha256()
        for path in sorted(path for path in folder.glob("*") if path.is_file()):
            digest.update(f"{path.name} {sha256_of(path)}\n".encode())
        return cls(folder.absolute(), device, dtype, f"{digest.hexdigest()} {dtype}")


@lru_cache(maxsize=1)
def _loaded(bob: _Bob) -> Any:
    """The model; a process that is given several shards in turn loads it once."""
    from radio_utils.suspects import load_model

    return load_model(bob.name, device=bob.device, dtype=bob.dtype)


def _with_bob(
    bob: _Bob, work: Work, files: Sequence[str | Path], folder: str | Path, key: str, suffix: str, how: How
) -> list[Path]:
    if bob.device.startswith("cuda"):
        how = {"gpus": 1.0, **how}
    try:
        return map_shards(work, files, folder, key=key, suffix=suffix, **how)
    finally:
        _loaded.cache_clear()  # where the work was done here, the model must not stay in the caller's memory


def _verdict(parts: Sequence[Path], wm: Watermark, dedup: ev.Dedup) -> detection.Detection:
    """The verdict on the evidence of all shards, of which one at a time is in memory beside their union."""
    collector = ev.Collector(ev.Packing(wm.window, wm.vocab_size), dedup=dedup)
    for part in parts:
        collector.take(ev.Evidence.load(part))
    return detection.judge(collector.evidence(), wm)


# --- what results are named by ------------------------------------------------------------------------------------------


def _key(work: str, modules: Sequence[str], **settings: object) -> str:
    """The work with all that decides its result, as canonical JSON; a changed module is other work."""
    return json.dumps(
        {"work": work, "code": code_version(*modules), **settings}, sort_keys=True, allow_nan=False, default=_plain
    )


def _plain(setting: Any) -> object:
    """What stands for a filter or a sampling in JSON."""
    return _hash(setting.tobytes()) if isinstance(setting, np.ndarray) else asdict(setting)


def _tokenizer_id(tokenizer: Any) -> str | None:
    if tokenizer is None:
        return None
    fast = getattr(tokenizer, "backend_tokenizer", None)
    return _hash(pickle.dumps(tokenizer) if fast is None else fast.to_str().encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _checked_shards(shards: Sequence[str | Path]) -> list[Path]:
    if isinstance(shards, str | Path):
        raise ValueError(f"shards must be a list of files, got {str(shards)!r}; write [{str(shards)!r}]")
    paths = [Path(shard).expanduser().absolute() for shard in shards]
    if not paths:
        raise ValueError("shards is empty; give at least one file")
    for i, path in enumerate(paths):
        if not path.is_file():
            raise ValueError(f"shards[{i}] = {path} is no file; give files that every worker can see")
    return paths


# --- who does it ----------------------------------------------------------------------------------------------------------


class _WorkerDied(Exception):
    """A worker was gone before its shard was done."""


class _Hands(Protocol):
    """Workers, each of which does one shard at a time."""

    def start(self, shard: Path) -> None:
        """Give a shard to a worker that has none."""
        ...

    def finished(self) -> tuple[Path, Path | Exception]:
        """Wait until a shard that was given out is done, or its worker dead: the shard and what became of it."""
        ...

    def stop(self) -> None:
        """Let the workers go, with whatever they have in hand."""
        ...


def _made(shards: list[Path], hands: _Hands, workers: int, attempts: int, progress: str | None) -> dict[Path, Path]:
    """The result of each shard. After an error nothing more is given out, and what is under way is waited for."""
    waiting, tries, busy = deque(shards), Counter[Path](), 0
    made: dict[Path, Path] = {}
    failed: tuple[Path, Exception] | None = None
    with tqdm(total=len(shards), desc=progress, disable=progress is None, unit="shard") as bar:
        while busy or (waiting and failed is None):
            while waiting and busy < workers and failed is None:
                shard = waiting.popleft()
                tries[shard] += 1
                busy += 1
                hands.start(shard)
            shard, outcome = hands.finished()
            busy -= 1
            if isinstance(outcome, Path):
                made[shard] = outcome
                bar.update()
            elif isinstance(outcome, _WorkerDied) and tries[shard] < attempts:
                logger.warning("%s: %s; it is done again", shard, outcome)
                waiting.append(shard)
            else:
                failed = failed or (shard, outcome)
    if failed is None:
        return made
    shard, reason = failed
    if isinstance(reason, _WorkerDied):
        reason = _WorkerDied(
            f"{reason}, and the shard was tried {attempts} times; look into the worker's own messages, give it more "
            "memory, or cut the shard in two; a script must call this under `if __name__ == '__main__':`"
        )
    raise ShardError(shard, reason) from reason


class _Here:
    """The caller's own process."""

    def __init__(self, task: _Task) -> None:
        self._task = task
        self._given: deque[Path] = deque()

    def start(self, shard: Path) -> None:
        self._given.append(shard)

    def finished(self) -> tuple[Path, Path | Exception]:
        shard = self._given.popleft()
        return shard, self._task(shard)

    def stop(self) -> None:
        pass


class _Processes:
    """Processes of this machine. A pool of the standard library is broken as a whole when one of its processes dies."""

    def __init__(self, task: _Task, workers: int) -> None:
        self._task, self._context = task, get_context("spawn")
        self._threads = max(1, (os.cpu_count() or 1) // workers)
        self._idle: list[tuple[Any, Any]] = []  # processes and this end of their pipes
        self._busy: dict[Any, tuple[Any, Path]] = {}  # by this end of their pipes: processes and shards

    def start(self, shard: Path) -> None:
        process, pipe = self._idle.pop() if self._idle else self._hired()
        self._busy[pipe] = process, shard
        with suppress(OSError):  # it died while it had nothing to do, which finished() will see
            pipe.send(shard)

    def finished(self) -> tuple[Path, Path | Exception]:
        ready = connection.wait([*self._busy, *(process.sentinel for process, _ in self._busy.values())])
        pipe = next(pipe for pipe, (process, _) in self._busy.items() if pipe in ready or process.sentinel in ready)
        process, shard = self._busy.pop(pipe)
        try:
            if not pipe.poll():
                raise EOFError
            outcome = pipe.recv()
        except (EOFError, OSError):
            process.join()
            pipe.close()
            return shard, _WorkerDied(f"its worker process died with exit code {process.exitcode}")
        self._idle.append((process, pipe))
        return shard, outcome

    def stop(self) -> None:
        for process, pipe in [*self._idle, *((process, pipe) for pipe, (process, _) in self._busy.items())]:
            process.kill()
            process.join()
            pipe.close()

    def _hired(self) -> tuple[Any, Any]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._threads, self._task), daemon=True)
        process.start()
        theirs.close()  # or the pipe would not end with the process
        return process, ours


def _serve(pipe: Any, threads: int, task: _Task) -> None:
    """What a worker process does: one shard after another, until the caller is gone."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # torch is imported later: the workers share the cores
    try:
        while True:
            pipe.send(_portable(task(pipe.recv())))
    except (EOFError, OSError):
        return


def _portable(outcome: Path | Exception) -> Path | Exception:
    """What became of a shard in another process, such that the caller's can read it."""
    if isinstance(outcome, Path):
        return outcome
    outcome.add_note("".join(traceback.format_exception(outcome)))  # the traceback itself does not travel
    try:
        pickle.loads(pickle.dumps(outcome))
    except Exception:
        return RuntimeError(f"{type(outcome).__name__}: {outcome}")
    return outcome


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError(
            "backend='ray' needs Ray: pip install 'radio-utils[ray]', or choose backend='processes'"
        ) from error


def _on_ray(packed: bytes, modules: list[str], shard: Path) -> Path | Exception:
    """One shard in a task of Ray, whose workers do not know by themselves where the caller's modules are."""
    sys.path.extend([path for path in modules if path not in sys.path])
    try:
        task: _Task = pickle.loads(packed)
    except Exception as error:
        return _portable(error)
    return _portable(task(shard))


class _Ray:
    """Tasks of Ray. It is started unless it runs, and stopped only where it was started."""

    def __init__(self, task: _Task, workers: int, address: str | None, gpus: float) -> None:
        self._ray = _ray()
        packed = pickle.dumps(task)  # before anything is started: work that cannot be pickled is refused here
        self._ours = not self._ray.is_initialized()
        if self._ours:
            where = address or os.environ.get("RAY_ADDRESS") or "local"
            local = {"num_cpus": workers, "include_dashboard": False} if where == "local" else {}
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a start calls home
            self._ray.init(address=where, logging_level=logging.ERROR, log_to_driver=False, **local)
        self._busy: dict[Any, Path] = {}
        # tries are counted by _made, the same way for all; Ray's own would be endless where memory runs out
        self._function = self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_on_ray)
        self._task = self._ray.put(packed)

    def start(self, shard: Path) -> None:
        modules = [str(Path(folder).absolute()) for folder in sys.path]
        self._busy[self._function.remote(self._task, modules, shard)] = shard

    def finished(self) -> tuple[Path, Path | Exception]:
        done, _ = self._ray.wait(list(self._busy), num_returns=1)
        shard = self._busy.pop(done[0])
        try:
            outcome: Path | Exception = self._ray.get(done[0])
        except self._ray.exceptions.RayTaskError as error:
            return shard, error  # the task could not even begin, and would not the next time
        except self._ray.exceptions.RayError as error:
            return shard, _WorkerDied(f"its Ray worker died ({type(error).__name__})")
        return shard, outcome

    def stop(self) -> None:
        for reference in self._busy:
            self._ray.cancel(reference, force=True)
        if self._ours:
            self._ray.shutdown()
