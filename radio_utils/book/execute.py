"""Run chapters through papermill: parameters checked, ended for silence only, whole outputs only, nothing stale.

An executed chapter carries in its metadata the digest of everything that it was made from. It is used again only while
that digest is what the sources, the package, the preset and the installed versions give today, and its record is unchanged.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.metadata
import json
import logging
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

import filelock
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from radio_utils.book.check import literals, parameter_problems
from radio_utils.book.kernels import ENGINE, Together, Watch
from radio_utils.book.progress import Progress
from radio_utils.book.project import (
    SILENCE,
    BookError,
    NotebookNode,
    Project,
    digest,
    notebook_text,
    read_notebook,
    tags,
)
from radio_utils.files import atomic_write
from radio_utils.processes import environment
from radio_utils.provenance import without_comments

logger = logging.getLogger(__name__)

_FORMAT = "2"  # raise it when an executed chapter of an older version of this module mustn't be used again
_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # a thread that waits leaves its core to others
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class ChapterFailed(BookError):
    """A cell of a chapter failed; the message holds its number, source and traceback."""


def literal(text: str) -> Any:
    """A parameter as typed on a command line: 0.2 → float, true → bool, [1, 2] → list, anything else → the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in ("none", "null"):
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _as_cell(name: str, value: Any) -> Any:
    """A parameter as papermill writes it into a cell: it makes text of what is not one of JSON's types."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_as_cell(name, one) for one in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _as_cell(name, one) for key, one in value.items()}
    raise BookError(
        f"parameter {name} holds {value!r}, which a cell cannot be given; give numbers, text, lists, or dicts with names "
        "(-r for text as it stands)"
    )


def defaults(path: Path) -> dict[str, Any]:
    """The parameters of a chapter and their default values.

    Raises:
        BookError: the chapter has no ``parameters`` cell, or that cell holds more than literals.
    """
    cells = [cell for cell in read_notebook(path).cells if cell.cell_type == "code" and "parameters" in tags(cell)]
    if len(cells) != 1:
        raise BookError(
            f"{path}: {len(cells)} cells are tagged `parameters`; a chapter needs exactly one to be given parameters"
        )
    if problems := parameter_problems(cells[0].source):
        raise BookError(f"{path}: {'; '.join(problems)}")
    return literals(cells[0].source)


def run(
    project: Project,
    name: str,
    parameters: Mapping[str, Any],
    *,
    output: Path | None = None,
    results: Path | None = None,
    silence: float | None = SILENCE,
    timeout: float | None = None,
) -> Path:
    """Run one chapter with the reader's own parameters; returns the executed notebook's path.

    The book's executed tree and records stay as they are: the output goes to ``output`` (default
    ``book/_build/runs/NAME.ipynb``), the record to ``results`` (default RADIO_UTILS_RESULTS, else
    ``book/_build/runs/results``).

    Raises:
        BookError: unknown chapter or parameter, a value that no cell can be given, no ``parameters`` cell, an output inside
            the book's executed tree.
        ChapterFailed: a cell failed, the kernel died or gave no sign of life for ``silence`` seconds, or the chapter took
            longer than ``timeout`` seconds, where that is given.
    """
    source = project.chapter(name)
    known = defaults(source)
    for parameter in parameters:
        if parameter not in known:
            raise BookError(f"chapter {name} has no parameter {parameter!r}; it has {', '.join(known)}")
    given = {parameter: _as_cell(parameter, value) for parameter, value in parameters.items()}
    target = (output or project.build / "runs" / f"{name}.ipynb").resolve()
    for taken in (project.build / "executed", project.root / "notebooks"):
        if target.is_relative_to(taken.resolve()):
            raise BookError(f"output {target}: {taken} belongs to the book; choose another place")
    records = results or Path(os.environ.get("RADIO_UTILS_RESULTS") or project.build / "runs" / "results")
    preset = str(parameters.get("preset", known.get("preset", "laptop")))
    with environment(RADIO_UTILS_RESULTS=_from_root(project, records)):
        progress = Progress(project, preset, [name])
        notebook, seconds = _papermill(project, name, given, target, silence, timeout, progress, Together())
    atomic_write(target, notebook_text(notebook))
    logger.info("%-24s %7.1f s  → %s", name, seconds, target)
    return target


def execute(
    project: Project,
    preset: str,
    names: list[str] | None = None,
    *,
    silence: float | None = SILENCE,
    timeout: float | None = None,
    force: bool = False,
    at_once: int = 1,
) -> dict[str, float]:
    """Run the chapters ``names`` (default: all) in order on ``preset``; those whose inputs didn't change are kept.

    ``at_once`` run side by side: a core that one leaves idle is another's. They share what they make through the store,
    where one waits for what another is making, so nothing is made twice and no number depends on it. Logs the seconds of
    each chapter and the total, and once a minute what is done and how much is left. Returns the seconds of each chapter
    that ran.

    Raises:
        BookError, ChapterFailed: see ``run``. Chapters that run beside one that fails are ended.
    """
    ordered = [name for name in project.chapters() if names is None or name in names]
    for name in names or []:
        project.chapter(name)
    ran: dict[str, float] = {}
    folder = project.executed(preset)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.parent / ".lock"):
        start, together = time.monotonic(), Together()
        progress = Progress(project, preset, ordered, at_once=at_once)

        def one(name: str) -> None:
            if not force and (seconds := fresh(project, preset, name)) is not None:
                logger.info("%-24s unchanged (it took %.1f s)", name, seconds)
                progress.took(name, seconds)
                return
            ran[name] = _execute_one(project, preset, name, silence, timeout, progress, together)
            progress.took(name, ran[name])
            logger.info("%-24s %7.1f s", name, ran[name])

        if at_once > 1:
            _side_by_side(project, preset, progress.order(), one, at_once, together)
        else:
            for name in ordered:
                one(name)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        told = f"{len(ran)} of {len(ordered)} chapters ran on {preset}" + (
            f", largest kernel {peak:.2f} GiB" if ran else ""
        )
        logger.info("%-24s %7.1f s  (%s)", "total", time.monotonic() - start, told)
    return {name: ran[name] for name in ordered if name in ran}


def _side_by_side(
    project: Project, preset: str, names: list[str], one: Callable[[str], None], at_once: int, together: Together
) -> None:
    """Run ``one`` of each name, ``at_once`` at a time and begun in this order. What ends this ends the kernels."""
    waiting = {name: threading.Event() for name in names}

    def run_one(name: str) -> None:
        try:
            for other in _earlier(project, name, read_notebook(project.chapter(name))):
                if other in waiting:
                    waiting[other].wait()
            if not together.over:
                one(name)
        finally:
            waiting[name].set()
            with suppress(RuntimeError):  # a thread's own, and nobody else closes it; none where the chapter was kept
                asyncio.get_event_loop().close()

    # threads share the folder and the environment: papermill, which changes both for each chapter, finds them so already
    results = _from_root(project, project.results(preset).parent)
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="chapter")
    with environment(RADIO_UTILS_RESULTS=results, **_variables()), chdir(project.root):
        try:
            for done in as_completed([pool.submit(run_one, name) for name in names]):
                done.result()
        finally:
            together.end()
            pool.shutdown(cancel_futures=True)


def fresh(project: Project, preset: str, name: str) -> float | None:
    """The seconds that the executed chapter took when it can still be used, else None."""
    path = project.executed(preset) / f"{name}.ipynb"
    if not path.is_file():
        return None
    try:
        stamp = read_notebook(path).metadata["radio_utils_book"]
        same = stamp["inputs"] == inputs(project, preset, name) and stamp["record"] == _record(project, preset, name)
        return float(stamp["seconds"]) if same else None
    except (BookError, KeyError, TypeError, ValueError):
        return None


def inputs(project: Project, preset: str, name: str) -> str:
    """The digest of all that an executed chapter depends on, but for its record.

    These are its source, the sources of earlier chapters that its code names (it may read their records), its records of
    other seeds, the package's code (comments aside) and presets, the preset, Python's version and the installed versions of
    the packages in requirements.txt.
    """
    notebook = read_notebook(project.chapter(name))
    earlier = _earlier(project, name, notebook)
    installed = json.dumps(versions(project), sort_keys=True)
    parts: list[str | bytes] = [_FORMAT, preset, sys.version, installed, notebook_text(notebook)]
    parts += [inputs(project, preset, other) for other in earlier]
    parts += [path.read_bytes() for path in sorted(project.root.glob(f"results/seed-*/{preset}/{name}.json"))]
    package = project.root / "radio_utils"
    for path in sorted(package.rglob("*")):
        # the tooling itself decides nothing of what a chapter computes
        if path.suffix in (".py", ".yaml") and package / "book" not in path.parents:
            text = path.read_text(encoding="utf-8")
            parts += [path.relative_to(package).as_posix(), without_comments(text) if path.suffix == ".py" else text]
    return digest(*parts)


def _earlier(project: Project, name: str, notebook: NotebookNode) -> list[str]:
    """The chapters before this one that its code names."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return [other for other in project.chapters() if other < name and other in code]


def versions(project: Project) -> dict[str, str]:
    """The installed version of each package in requirements.txt, "missing" when it isn't installed."""
    found = {}
    requirements = project.root / "requirements.txt"
    lines = requirements.read_text(encoding="utf-8").splitlines() if requirements.is_file() else []
    for line in lines:
        if match := re.match(r"[A-Za-z0-9][\w.-]*", line.strip()):
            try:
                found[match[0]] = importlib.metadata.version(match[0])
            except importlib.metadata.PackageNotFoundError:
                found[match[0]] = "missing"
    return found


def _from_root(project: Project, folder: Path) -> str:
    # chapters run in the root; a page that shows a path shall not show where this machine keeps the checkout
    whole, root = folder.resolve(), project.root.resolve()
    return str(whole.relative_to(root) if whole.is_relative_to(root) else whole)


def _record(project: Project, preset: str, name: str) -> str:
    path = project.results(preset) / f"{name}.json"
    return digest(path.read_bytes()) if path.is_file() else ""


def _execute_one(
    project: Project,
    preset: str,
    name: str,
    silence: float | None,
    timeout: float | None,
    progress: Progress,
    together: Together,
) -> float:
    known = defaults(project.chapter(name))
    if "preset" not in known:
        raise BookError(f"chapter {name} has no parameter 'preset'; the book can't run it on {preset}")
    before = inputs(project, preset, name)
    target = project.executed(preset) / f"{name}.ipynb"
    target.unlink(missing_ok=True)  # what it held is stale; nobody shall meet it if this run dies
    # a notebook whose default it is shows no injected cell
    parameters = {} if known["preset"] == preset else {"preset": preset}
    with environment(RADIO_UTILS_RESULTS=_from_root(project, project.results(preset).parent)):
        notebook, seconds = _papermill(project, name, parameters, target, silence, timeout, progress, together)
    record = _record(project, preset, name)
    if not record:
        path = project.results(preset) / f"{name}.json"
        raise ChapterFailed(f"chapter {name} ended without its record {path}; its last cell must call chapter.record()")
    notebook.metadata["radio_utils_book"] = {"inputs": before, "record": record, "seconds": round(seconds, 3)}
    atomic_write(target, notebook_text(notebook))
    return seconds


def _papermill(
    project: Project,
    name: str,
    parameters: dict[str, Any],
    target: Path,
    silence: float | None,
    timeout: float | None,
    progress: Progress,
    together: Together,
) -> tuple[NotebookNode, float]:
    """Run chapter ``name``; the executed notebook and the seconds it took. A failed one is left beside ``target``."""
    source = project.chapter(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial.ipynb")
    failed = target.with_name(f"{target.stem}.failed.ipynb")
    failed.unlink(missing_ok=True)
    start = time.monotonic()
    running: list[str] = [""]
    watches: list[Watch] = []

    def left(cell: NotebookNode) -> float | None:
        if together.over:
            raise DeadKernelError("it was ended with the others")
        # nbclient limits each cell; what is left of the whole is a limit for the chapter
        running[0] = cell.source
        return None if timeout is None else max(0.5, timeout - (time.monotonic() - start))

    def failure(what: str, trace: str = "") -> ChapterFailed:
        return _failure(source, what, running[0], trace, start, _keep(partial, failed))

    try:
        with environment(**_variables()), progress.of(name, lambda: watches[-1].doing if watches else ""):
            notebook = papermill.execute_notebook(
                str(source),
                str(partial),
                parameters=parameters,
                engine_name=ENGINE,
                kernel_name="python3",
                language="python",
                progress_bar=sys.stderr.isatty(),
                cwd=str(project.root),
                silence=silence,
                timeout_func=left,
                watching=watches.append,
                together=together,
                extra_arguments=["--IPKernelApp.log_level=ERROR"],  # the kernel talks on loopback, and warns of it
            )
        return notebook, time.monotonic() - start
    except PapermillExecutionError as error:
        running[0] = error.source
        trace = "\n".join(error.traceback) if error.traceback else f"{error.ename}: {error.evalue}"
        raise failure("failed", trace) from None
    except CellTimeoutError:
        raise failure(f"took longer than the chapter's time limit of {timeout:g} s (--timeout changes it)") from None
    except (DeadKernelError, RuntimeError) as error:
        if together.over:  # not this chapter's failure
            raise
        if watches and watches[-1].silent:
            raise failure(
                f"gave no sign of life for {silence:g} s (--silence): no output, and no work of its processes"
            ) from None
        if not isinstance(error, DeadKernelError) and "kernel" not in str(error).lower():
            raise
        raise failure("lost its kernel; it was killed, perhaps for want of memory", str(error)) from None
    finally:
        partial.unlink(missing_ok=True)


def _variables() -> dict[str, str]:
    """The environment of every kernel."""
    return {"PYTHONHASHSEED": "0", **{one: os.environ.get(one, value) for one, value in _THREADS.items()}}


def _keep(partial: Path, failed: Path) -> Path | None:
    if not partial.exists():
        return None
    partial.replace(failed)
    return failed


def _failure(source: Path, what: str, cell: str, trace: str, start: float, kept: Path | None) -> ChapterFailed:
    cells = read_notebook(source).cells
    numbers = (str(number) for number, one in enumerate(cells, start=1) if one.source == cell)
    number = next(numbers, "of the injected parameters")
    lines = [
        f"chapter {source.stem}: cell {number} of {len(cells)} {what}, {time.monotonic() - start:.1f} s after the start",
        *_framed("source of the cell", cell),
        *(_framed("traceback", _COLOURS.sub("", trace)) if trace else []),
        *([f"the chapter as far as it got: {kept}"] if kept else []),
    ]
    return ChapterFailed("\n".join(lines))


def _framed(title: str, text: str) -> list[str]:
    return [f"---- {title} ".ljust(76, "-"), text.rstrip("\n"), "-" * 76]
