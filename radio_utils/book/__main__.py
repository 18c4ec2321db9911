"""The command line: ``python -m radio_utils.book COMMAND``."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from radio_utils.book.project import SILENCE, BookError, Project

_KEPT = "Every artifact that was there is kept in the store, and how far a training had come, up to its last minute."
PARENT = "RADIO_UTILS_PARENT"  # the process with which this one ends: the Makefile names itself


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 0 when it did what it says, else 1, and 128 + N when signal N ended it."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        with _ended_by_signals(), _lines_beside_bars():
            return int(options.command(Project.find(options.root), options) or 0)
    except BookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        number = error.args[0] if isinstance(error, Stopped) else signal.SIGINT
        print(
            f"stopped by {signal.Signals(number).name}. {getattr(options, 'kept', '').format(**vars(options))}",
            file=sys.stderr,
        )
        return 128 + int(number)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a signal end what runs here in order, so that it ends its children; also when ``make`` ends however it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)  # one is enough: the way out is short
        raise Stopped(number)

    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    # nohup and a shell's & have signals ignored, and mean it
    before = {one: signal.getsignal(one) for one in numbers if signal.getsignal(one) is not signal.SIG_IGN}
    for one in before:
        signal.signal(one, stop)
    if (parent := os.environ.get(PARENT, "")).isdigit() and os.name == "posix":
        threading.Thread(target=_end_after, args=(int(parent),), daemon=True).start()
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _end_after(parent: int) -> None:
    while True:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        except OSError:
            return
        time.sleep(1.0)


def _lines_beside_bars() -> Any:
    """On a terminal, lines of the log above the bars instead of through them."""
    if not sys.stderr.isatty():
        return nullcontext()
    from tqdm.contrib.logging import logging_redirect_tqdm

    return logging_redirect_tqdm()


def _run(project: Project, options: argparse.Namespace) -> None:
    from radio_utils.book.execute import literal, run

    parameters: dict[str, Any] = {name: literal(value) for name, value in options.parameter}
    parameters.update(dict(options.raw))
    if options.preset is not None:
        parameters["preset"] = options.preset
    run(
        project, options.name, parameters, output=options.output, results=options.results,
        silence=options.silence or None, timeout=options.timeout,
    )  # fmt: skip


def _execute(project: Project, options: argparse.Namespace) -> None:
    from radio_utils.book.execute import execute

    execute(
        project, options.preset, options.name or None,
        silence=options.silence or None, timeout=options.timeout, force=options.force, at_once=options.at_once,
    )  # fmt: skip


def _render(project: Project, options: argparse.Namespace) -> None:
    from radio_utils.book.render import render

    render(project, options.preset, force=options.force)


def _check(project: Project, options: argparse.Namespace) -> int:
    from radio_utils.book.check import check

    problems = check(project)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{len(project.chapters())} chapters follow the conventions")
    return 1 if problems else 0


def _repository(project: Project, options: argparse.Namespace) -> None:
    from radio_utils.book.check import set_address

    if options.url is None:
        print(project.address())
        return
    for path in set_address(project, options.url):
        print(f"changed {path.relative_to(project.root)}")
    print(project.address())


def _figure(project: Project, options: argparse.Namespace) -> None:
    from radio_utils import figures
    from radio_utils.book.status import read_record, read_seeds
    from radio_utils.presets import REAL, REAL_NAME

    record = read_record(project, options.preset, "06_closed_model")
    if record is None:
        raise BookError(f"chapter 06_closed_model has no record on {options.preset}; run `make book` first")
    figures.set_style()
    target = project.root / "book" / "_static" / "story.png"
    seeds = read_seeds(project, options.preset)
    found = [records["06_closed_model"] for seed, records in seeds.items() if seed != record["seed"]]
    small = f"models trained here ({options.preset})"
    runs = {small: [one["tables"]["summary"] for one in (record, *found)]}
    if options.preset != REAL:
        real = [
            records["06_closed_model"] for records in read_seeds(project, REAL).values() if "06_closed_model" in records
        ]
        runs |= {REAL_NAME: [one["tables"]["summary"] for one in real]} if real else {}
    figures.story(runs).savefig(target, dpi=150)
    print(f"drew {target.relative_to(project.root)} from seed {record['seed']}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m radio_utils.book", description="Run, check and render the book.")
    parser.add_argument("--root", type=Path, help="the checkout (default: the one around the working directory)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("run", help="run one chapter with your own parameters; the book's pages stay")
    command.add_argument("name", help="a chapter, as 04_open_model")
    command.add_argument("-p", dest="parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                         help="a parameter, read as a literal: 0.2, true, [1, 2]; anything else is text")  # fmt: skip
    command.add_argument(
        "-r", dest="raw", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter, as text"
    )
    command.add_argument("--preset", help="the same as -p preset NAME")
    command.add_argument("--output", type=Path, help="the executed notebook (default: book/_build/runs/NAME.ipynb)")
    command.add_argument("--results", type=Path, help="the folder of the record (default: book/_build/runs/results)")
    _add_limits(command)
    command.set_defaults(command=_run, kept=f"{_KEPT} The same command goes on from there.")

    command = commands.add_parser("execute", help="run the book's chapters, those whose inputs changed")
    command.add_argument("name", nargs="*", help="chapters (default: all)")
    command.add_argument("--preset", default="laptop")
    _add_limits(command)
    command.add_argument("--force", action="store_true", help="run them even if nothing changed")
    command.add_argument("--at-once", type=int, default=1, metavar="N", help="chapters that run side by side (default: 1)")
    command.set_defaults(
        command=_execute,
        kept=f"Chapters that had ended are kept. {_KEPT} `make book PRESET={{preset}}` goes on from there.",
    )

    command = commands.add_parser("render", help="build the pages from the executed chapters")
    command.add_argument("--preset", default="laptop")
    command.add_argument("--force", action="store_true", help="build them even if nothing changed")
    command.set_defaults(command=_render)

    command = commands.add_parser("check", help="check the chapters' sources against the book's conventions")
    command.set_defaults(command=_check)

    command = commands.add_parser("repository", help="print the repository's address, or set it everywhere")
    command.add_argument("url", nargs="?", help="https://host/owner/name")
    command.set_defaults(command=_repository)

    command = commands.add_parser("figure", help="draw the introduction's figure from the last run's record")
    command.add_argument("--preset", default="laptop")
    command.set_defaults(command=_figure)
    return parser


def _add_limits(command: argparse.ArgumentParser) -> None:
    command.add_argument("--silence", type=_seconds_or_none, default=SILENCE, metavar="SECONDS",
        help="end a chapter that says and does nothing for so long (default: an hour; 0: never)")  # fmt: skip
    command.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="end a chapter that takes longer (default: none)"
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: a time limit is a positive number of seconds")
    return value


def _seconds_or_none(text: str) -> float:
    return 0.0 if float(text) == 0 else _seconds(text)


if __name__ == "__main__":
    sys.exit(main())
