"""Corpora larger than a machine: each shard is worked on by itself, in this process, in several, or on many machines.

Evidence merges like a set, so the verdict on shards is that on the whole corpus. The result of a shard is a file; its name
is a hash of the work, the shard's name and the shard's content, and it appears by a rename. So a run that was cut goes on
where it stopped, a worker that is killed loses only the shard it had in hand, and that shard is done again.

The key stays at home: workers find pairs, which depend on a watermark's window and vocabulary only, and write text of B.
Scores and p-values are computed by the caller's process. With ``backend="processes"`` a script needs the usual
``if __name__ == "__main__":``; on several machines the workers must see the same files and have this package. Any
:class:`concurrent.futures.Executor` can be the backend, such as that of a Dask cluster (``client.get_executor()``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import secrets
import shutil
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from radio_utils import contrast, detection, executors
from radio_utils import evidence as ev
from radio_utils.evidence.files import CorpusFile
from radio_utils.files import sha256_of, sha256_of_folder
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

    workers: int | None
    backend: Backend | Executor
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
    workers: int | None = None,
    backend: Backend | Executor = "here",
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
    ``RAY_ADDRESS``), or of a Ray that is started here and stopped at the end. A cluster may ask
    for a token: set ``RAY_AUTH_MODE=token`` and the same ``RAY_AUTH_TOKEN`` on each of its machines and here. ``gpus`` is
    what Ray sets aside for a task. An executor that is handed in is left running; it is given ``workers`` shards at once,
    by default all.

    A worker that dies is replaced and its shard done again, until it was tried ``attempts`` times. Raises
    :class:`ShardError` where that does not help or ``work`` raises, once the shards under way are done; ``ValueError`` for
    no shards, shards that are no files, an unknown backend, or numbers below 1; ``ImportError`` where Ray is wanted and
    missing. Where the caller itself is killed, a folder ``.unfinished-…`` is left, which no later run reads.
    """
    paths = _checked_shards(shards)
    if backend not in BACKENDS and not isinstance(backend, Executor):
        raise ValueError(f"backend must be one of {BACKENDS} or a concurrent.futures.Executor, got {backend!r}")
    most = workers if workers is not None else len(paths) if isinstance(backend, Executor) else 1
    if most < 1 or attempts < 1:
        raise ValueError(f"workers and attempts must be at least 1, got {most} and {attempts}")
    if backend == "here" and most > 1:
        raise ValueError(f"backend='here' is one process, got workers={most}; choose backend='processes' or 'ray'")
    if backend == "ray":
        executors.ray()
    results = Path(folder).expanduser().absolute()
    unfinished = results / f".unfinished-{secrets.token_hex(6)}"
    unfinished.mkdir(parents=True)
    task = _Task(work, results, unfinished, key, suffix)
    executor: Executor | None = None
    try:
        if backend in ("processes", "ray"):
            pickle.dumps(task)  # work that cannot travel is refused before any worker starts
        executor = _executor(backend, most, address, gpus)
        made = _made(list(dict.fromkeys(paths)), task, executor, most, attempts, progress)
    finally:
        if executor is not None and executor is not backend:
            executor.shutdown()
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
    verdict's ``evidence``, reads no text again. A damaged row is a :class:`ShardError`, and so are prompts where windows of
    the scheme share draws.

    Parameters
    ----------
    files : sequence of str or Path
        JSONL or Parquet files, each a shard.
    wm : Watermark
        The watermark whose key is asked about.
    folder : str or Path
        Where the shards' results are kept, to go on after a stop.
    tokenizer, keep, dedup, sample
        As in :func:`radio_utils.detection.detect`.
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
    options = {"keep": wanted, "dedup": dedup, "sample": sample, "from_start": wm.marks_start}
    ev.Collector(ev.Packing(wm.window, wm.vocab_size), **options)  # type: ignore[arg-type]  # options at fault, said at once
    work = partial(
        detection.collect_file, window=wm.window, vocab_size=wm.vocab_size, tokenizer=tokenizer, options=options,
        prompts_refused=ev.shared_by(wm) is not None,
    )  # fmt: skip
    key = _key(
        "detect", detection.collect_file,
        window=wm.window, vocab_size=wm.vocab_size, tokenizer=_tokenizer_id(tokenizer), **options,
    )  # fmt: skip
    return _verdict(map_shards(work, files, folder, key=key, suffix=".npz", **how), wm, dedup)


def read_shards(
    model: str | Path,
    files: Sequence[str | Path],
    wm: Watermark,
    folder: str | Path,
    *,
    reference: str | Path | Sequence[str | Path] | None = None,
    tokenizer: Any = None,
    keep: ArrayLike | None = None,
    dedup: ev.Dedup = "window+token",
    skip_seen: bool = True,
    full_context: bool = False,
    batch_size: int = 64,
    top: int = 128,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    **how: Unpack[How],
) -> detection.Detection | contrast.ContrastiveReading:
    """:func:`radio_utils.read_open_model` on files of texts, each a shard, with B's ``model`` folder or hub name.

    Every process loads the models once, with :func:`radio_utils.suspects.load_model`, and holds one shard's texts at a
    time. Texts are batched within their shard; rounding may depend on the batch and the number of threads, and a near tie
    between two tokens then falls otherwise than in one call of :func:`radio_utils.reading.read_predictions`. A model's
    folder is known by the content of its files, a hub name by the name alone: take another ``folder`` when the hub's model
    has changed. On a CUDA ``device`` Ray sets one GPU aside for each worker.

    With ``reference`` the reading is contrastive: the texts are looked at first, and none is read where they carry the
    mark. The sums of all shards are those of the whole up to the order in which they are added.

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
    reference : str, Path or sequence of them, optional
        Folders or hub names of models that never met the key, such as the one that B was made from.
    tokenizer : transformers tokenizer, optional
        For files that hold strings.
    keep, dedup, skip_seen, full_context, batch_size
        As in :func:`radio_utils.reading.read_open_model`.
    top : int
        How many of the likeliest tokens are kept at each place of contrastive reading.
    device : str
        Where the model runs, as torch names it.
    dtype : torch.dtype, optional
        Precision of the weights; the stored one without it.
    **how
        Options of :func:`map_shards`: workers, backend, attempts.

    Returns
    -------
    Detection or ContrastiveReading
        The verdict of all files together; with ``reference`` that of contrastive reading.

    Raises
    ------
    ShardError
        For a shard that fails, with its name.
    ValueError
        With a reference, for texts or a twin that carry the watermark.

    Notes
    -----
    See :func:`radio_utils.read_open_model`.
    """
    wanted = None if keep is None else ev.checked_filter(keep, wm.window, wm.vocab_size)
    ev.check_dedup(dedup)
    names = [reference] if isinstance(reference, str | Path) else list(reference or [])
    if reference is not None and not names:
        raise ValueError("reference is empty; give B's base model or Alice's own, or leave it out for plain reading")
    models = tuple(_Model.of(name, device, dtype) for name in [model, *names])
    settings = {"vocab_size": wm.vocab_size, "tokenizer": tokenizer, "batch_size": batch_size}
    if names:
        return _read_contrast(models, files, wm, folder, settings, how, keep=wanted, skip_seen=skip_seen, top=top)
    parts = _with_models("read", _read, models, files, folder, ".npz", how, **settings)
    predictions = [Predictions.load(part) for part in parts]
    found = predictions[0].merge(*predictions[1:])
    pairs = found.evidence(
        wm.window, wm.vocab_size, shared=ev.shared_by(wm), keep=wanted, dedup=dedup, skip_seen=skip_seen,
        full_context=full_context, from_start=wm.marks_start and bool(np.any(found.starts)),
    )  # fmt: skip
    return detection.judge(pairs, wm)


def _read_contrast(
    models: tuple[_Model, ...], files: Sequence[str | Path], wm: Watermark, folder: str | Path, settings: dict[str, Any],
    how: How, **options: Any,
) -> contrast.ContrastiveReading:  # fmt: skip
    from radio_utils.reading import check_plain

    fed = {"window": wm.window, "vocab_size": wm.vocab_size, "tokenizer": settings["tokenizer"]}
    key = _key("contexts", _contexts, **fed | {"tokenizer": _tokenizer_id(fed["tokenizer"])})
    of_texts = _verdict(
        map_shards(partial(_contexts, **fed), files, folder, key=key, suffix=".npz", **how), wm, "window+token"
    )
    check_plain(of_texts.log10_p)
    collector = contrast.ContrastCollector(wm.window, wm.vocab_size, len(models), top=options["top"])
    settings = settings | options | {"window": wm.window, "from_start": wm.marks_start}
    for part in _with_models("contrast", _contrast, models, files, folder, ".npz", how, **settings):
        collector.take(part)
    return contrast.judge_contrast(collector.contrast(), wm, text_log10_p=of_texts.log10_p)


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

    B is loaded and known as in :func:`read_shards`.

    Parameters
    ----------
    model, files, folder, tokenizer
        As in :func:`read_shards`.
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
    device, dtype, **how
        As in :func:`read_shards`.

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
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling, "batch_size": batch_size}
    options["stop_tokens"] = [int(token) for token in stop_tokens]
    return _with_models(
        "answer", _answer, (_Model.of(model, device, dtype),), files, folder, ".jsonl", how,
        tokenizer=tokenizer, shortest=shortest, seed=seed, options=options,
    )  # fmt: skip


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

    def away(self, shard: Path) -> Path | Exception:
        """The same in another process."""
        outcome = self(shard)
        return outcome if isinstance(outcome, Path) else _portable(outcome)

    def _name(self, shard: Path) -> str:
        # hashed by the workers, side by side: the caller reads nothing of a corpus larger than its machine
        return _hash(json.dumps([self.key, shard.name, sha256_of(shard)]).encode()) + self.suffix


def _texts(shard: Path, tokenizer: Any) -> tuple[list[Any], list[Any] | None]:
    """Texts of a file, and their prompts if it has any."""
    corpus = CorpusFile(shard, tokenizer)
    texts, prompts = list(corpus.texts()), corpus.prompts()
    return texts, None if prompts is None else list(prompts)


def _read(shard: Path, path: Path, *, models: tuple[_Model, ...], tokenizer: Any, **options: Any) -> None:
    from radio_utils.reading import read_predictions

    texts, prompts = _texts(shard, tokenizer)
    (bob,) = _loaded(models)
    read_predictions(bob, texts, prompts=prompts, **options).save(path)


def _contexts(shard: Path, path: Path, *, window: int, vocab_size: int, tokenizer: Any) -> None:
    """The pairs of all that contrastive reading feeds to a model, prompts included."""
    texts, prompts = _texts(shard, tokenizer)
    fed = texts if prompts is None else [np.concatenate(pair) for pair in zip(prompts, texts, strict=True)]
    if prompts is not None and any(ev.GAP in ids for ids in fed):
        fed = ev.long_pieces(fed, window)
    ev.collect(fed, window, vocab_size).save(path)


def _contrast(shard: Path, path: Path, *, models: tuple[_Model, ...], tokenizer: Any, **options: Any) -> None:
    from radio_utils.reading import collect_contrast

    texts, prompts = _texts(shard, tokenizer)
    bob, *references = _loaded(models)
    collect_contrast(bob, references, texts, prompts=prompts, **options).save(path)


def _answer(
    shard: Path, path: Path, *, models: tuple[_Model, ...], tokenizer: Any, shortest: int, seed: int,
    options: dict[str, Any],
) -> None:  # fmt: skip
    import torch

    from radio_utils.decoding import generate

    prompts = CorpusFile(shard, tokenizer).prompts()
    if prompts is None:
        raise ValueError("the file holds no prompts; give every row prompt_ids or prompt")
    asked = [np.asarray(prompt) for prompt in prompts]
    (model,) = _loaded(models)
    draws = int(_hash(json.dumps([seed, shard.name]).encode())[:15], 16)
    generator = torch.Generator(next(model.parameters()).device).manual_seed(draws)
    with path.open("w", encoding="utf-8") as file:
        fed = [ev.without_gaps(prompt) for prompt in asked]
        for prompt, answer in zip(asked, generate(model, fed, generator=generator, **options), strict=True):
            if answer.size >= shortest:
                file.write(json.dumps({"prompt_ids": prompt.tolist(), "ids": answer.tolist()}) + "\n")


def _portable(error: Exception) -> Exception:
    """An error such that another process can read it, with its traceback, which does not travel by itself."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@dataclass(frozen=True)
class _Model:
    """Where a model is loaded from; ``key`` tells whether it is the same one."""

    name: str | Path
    device: str
    dtype: torch.dtype | None
    key: str

    @classmethod
    def of(cls, model: str | Path, device: str, dtype: torch.dtype | None) -> _Model:
        folder = Path(model).expanduser()
        if not folder.is_dir():  # a hub name, or an error that load_model words
            return cls(model, device, dtype, f"{model} {dtype}")
        return cls(folder.absolute(), device, dtype, f"{json.dumps(sha256_of_folder(folder))} {dtype}")


@lru_cache(maxsize=1)
def _loaded(models: tuple[_Model, ...]) -> list[Any]:
    """The models; a process that is given several shards in turn loads them once."""
    from radio_utils.suspects import load_model

    return [load_model(one.name, device=one.device, dtype=one.dtype) for one in models]


def _with_models(
    what: str, work: Callable[..., object], models: tuple[_Model, ...], files: Sequence[str | Path], folder: str | Path,
    suffix: str, how: How, **options: Any,
) -> list[Path]:  # fmt: skip
    """The results of ``work`` with these models and options, all of which are part of what the results are named by."""
    named = options | {"tokenizer": _tokenizer_id(options["tokenizer"])}
    key = _key(what, work, models=[one.key for one in models], **named)
    if models[0].device.startswith("cuda"):
        how = {"gpus": 1.0, **how}
    try:
        return map_shards(partial(work, models=models, **options), files, folder, key=key, suffix=suffix, **how)
    finally:
        _loaded.cache_clear()  # where the work was done here, the models must not stay in the caller's memory


def _verdict(parts: Sequence[Path], wm: Watermark, dedup: ev.Dedup) -> detection.Detection:
    """The verdict on the evidence of all shards, of which one at a time is in memory beside their union."""
    collector = ev.Collector(ev.Packing(wm.window, wm.vocab_size), dedup=dedup)
    for part in parts:
        collector.take(ev.Evidence.load(part))
    return detection.judge(collector.evidence(), wm)


# --- what results are named by ------------------------------------------------------------------------------------------


def _key(name: str, work: Callable[..., object], **settings: object) -> str:
    """The work with all that decides its result, as canonical JSON; changed code is other work."""
    whole = {"work": name, "code": code_version(work), **settings}
    return json.dumps(whole, sort_keys=True, allow_nan=False, default=_plain)


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


def _executor(backend: Backend | Executor, workers: int, address: str | None, gpus: float) -> Executor:
    if isinstance(backend, Executor):
        return backend
    if backend == "ray":
        return executors.RayTasks(workers, address, gpus)
    return executors.Here() if backend == "here" else executors.Processes(workers)


def _made(
    shards: list[Path], task: _Task, executor: Executor, most: int, attempts: int, progress: str | None
) -> dict[Path, Path]:
    """The result of each shard. After an error nothing more is given out, and what is under way is waited for."""
    waiting, tries = deque(shards), Counter[Path]()
    call = task if isinstance(executor, executors.Here) else task.away
    under_way: dict[Future[Path | Exception], Path] = {}
    made: dict[Path, Path] = {}
    failed: tuple[Path, BaseException] | None = None
    with tqdm(total=len(shards), desc=progress, disable=progress is None, unit="shard") as bar:
        while under_way or (waiting and failed is None):
            while waiting and failed is None and len(under_way) < most:
                shard = waiting.popleft()
                tries[shard] += 1
                under_way[_given(executor, call, shard)] = shard
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                shard = under_way.pop(future)
                if future.cancelled():
                    continue
                outcome = future.exception() or future.result()
                if isinstance(outcome, Path):
                    made[shard] = outcome
                    bar.update()
                elif isinstance(outcome, BrokenExecutor) and tries[shard] < attempts:
                    logger.warning("%s: its worker died (%s); it is done again", shard, outcome)
                    waiting.append(shard)
                elif failed is None:
                    failed = shard, outcome
                    for other in under_way:
                        other.cancel()
    if failed is None:
        return made
    shard, reason = failed
    if isinstance(reason, BrokenExecutor):
        reason = RuntimeError(
            f"its worker died ({reason}), and the shard was tried {attempts} times; look into the worker's own messages, "
            "give it more memory, or cut the shard in two; a script must call this under `if __name__ == '__main__':`"
        )
    raise ShardError(shard, reason) from reason


def _given(executor: Executor, call: Callable[[Path], Path | Exception], shard: Path) -> Future[Path | Exception]:
    try:
        return executor.submit(call, shard)
    except BrokenExecutor as error:  # all its workers are gone, and it has no others
        broken: Future[Path | Exception] = Future()
        broken.set_exception(error)
        return broken
