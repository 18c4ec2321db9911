"""The command line: ``python -m radio_utils.book COMMAND``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from radio_utils.book.project import BookError, Project


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 0 when it did what it says, else 1."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        return int(options.command(Project.find(options.root), options) or 0)
    except BookError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(project: Project, options: argparse.Namespace) -> None:
    from radio_utils.book.execute import literal, run

    parameters: dict[str, Any] = {name: literal(value) for name, value in options.parameter}
    parameters.update(dict(options.raw))
    if options.preset is not None:
        parameters["preset"] = options.preset
    run(project, options.name, parameters, output=options.output, results=options.results, timeout=options.timeout)


def _execute(project: Project, options: argparse.Namespace) -> None:
    from radio_utils.book.execute import execute

    execute(project, options.preset, options.name or None, timeout=options.timeout, force=options.force)


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


def _screenshots(project: Project, options: argparse.Namespace) -> None:
    from radio_utils.book.screens import screenshots

    files = screenshots(project, options.folder, options.preset)
    print(f"{len(files)} screenshots in {options.folder}")


def _figure(project: Project, options: argparse.Namespace) -> None:
    from radio_utils import figures
    from radio_utils.book.status import read_record

    record = read_record(project, options.preset, "06_closed_model")
    if record is None:
        raise BookError(f"chapter 06_closed_model has no record on {options.preset}; run `make book` first")
    figures.set_style()
    target = project.root / "book" / "_static" / "story.png"
    figures.story(record["tables"]["summary"]).savefig(target, dpi=150)
    print(f"drew {target.relative_to(project.root)} from seed {record['seed']}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m radio_utils.book", description="Run, check and render the book.")
    parser.add_argument("--root", type=Path, help="the checkout (default: the one around the working directory)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("run", help="run one chapter with your own parameters; the book's pages stay")
    command.add_argument("name", help="a chapter, as 05_open_model")
    command.add_argument("-p", dest="parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                         help="a parameter, read as a literal: 0.2, true, [1, 2]; anything else is text")  # fmt: skip
    command.add_argument(
        "-r", dest="raw", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter, as text"
    )
    command.add_argument("--preset", help="the same as -p preset NAME")
    command.add_argument("--output", type=Path, help="the executed notebook (default: book/_build/runs/NAME.ipynb)")
    command.add_argument("--results", type=Path, help="the folder of the record (default: book/_build/runs/results)")
    command.add_argument("--timeout", type=_seconds, help="seconds that the whole chapter may take")
    command.set_defaults(command=_run)

    command = commands.add_parser("execute", help="run the book's chapters, those whose inputs changed")
    command.add_argument("name", nargs="*", help="chapters (default: all)")
    command.add_argument("--preset", default="laptop")
    command.add_argument("--timeout", type=_seconds, help="seconds that each chapter may take")
    command.add_argument("--force", action="store_true", help="run them even if nothing changed")
    command.set_defaults(command=_execute)

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

    command = commands.add_parser("screenshots", help="save each page at the width of a desktop and of a phone")
    command.add_argument("folder", type=Path)
    command.add_argument("--preset", default="laptop")
    command.set_defaults(command=_screenshots)
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: a time limit is a positive number of seconds")
    return value


if __name__ == "__main__":
    sys.exit(main())
