"""Assemble the staging tree and build the html: nothing is executed, and any warning is an error."""

from __future__ import annotations

import json
import logging
import pprint
import re
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import yaml

from radio_utils.book.benchmarks import benchmarks_figure, benchmarks_page
from radio_utils.book.execute import fresh, versions
from radio_utils.book.project import BookError, NotebookNode, Project, digest, notebook_text, read_notebook
from radio_utils.book.reference import FOLDER, reference_pages, section_titles, source_digest
from radio_utils.book.status import status_page
from radio_utils.files import atomic_write

logger = logging.getLogger(__name__)

_FORMAT = "1"  # raise it when this module builds other pages from the same inputs
# A bar of tqdm, and the warning that it writes when it finds no widgets: noise on a page
_BAR = re.compile(r"\d+%\|.*\||\d+(\.\d+)?[kM]?(it|\w*) \[\d+:\d\d|TqdmWarning|from \.autonotebook import tqdm|^\s*$")
_HIDDEN = ("papermill", "radio_utils_book", "widgets")  # metadata that names paths or breaks viewers
# MathJax's parts that no page asks for: other languages, the speech engine
_MATHJAX_UNUSED = shutil.ignore_patterns("a11y", "localization")
_REDIRECT = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<meta http-equiv="refresh" content="0; url={page}">
<a href="{page}">{title}</a>
"""


def render(project: Project, preset: str = "laptop", *, force: bool = False) -> Path:
    """Build the pages from the executed chapters; returns the folder of the html. It is left alone when no input changed.

    The pages are built beside the old ones and change places with them only when the whole build succeeded.

    Raises:
        BookError: a chapter isn't executed from the present sources, or the build gave a warning or an error.
    """
    html = project.html(preset)
    source = project.build / "source" / preset
    with filelock.FileLock(_made(project.build) / f".render-{preset}.lock"):
        files = _staged(project, preset)
        stamp = html / ".stamp"
        installed = json.dumps(versions(project), sort_keys=True)
        key = digest(_FORMAT, installed, *(part for item in sorted(files.items()) for part in item))
        if not force and stamp.is_file() and stamp.read_text(encoding="utf-8") == key:
            logger.info("%s is up to date", html)
            return html
        shutil.rmtree(source, ignore_errors=True)
        for name, data in files.items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        new = html.with_name(f".{html.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        _sphinx(source, new)
        _finish(project, new)
        (new / ".stamp").write_text(key, encoding="utf-8")
        shutil.rmtree(html, ignore_errors=True)
        new.replace(html)
    logger.info("rendered %s", html / "index.html")
    return html


def pages(project: Project) -> list[str]:
    """The docnames of all pages in the order of the table of contents, the root first."""
    toc = yaml.safe_load((project.root / "book" / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [entry for part in toc.get("parts", [toc]) for entry in part.get("chapters", [])]
    return [str(toc["root"]), *(str(entry["file"]) for entry in chapters)]


def for_page(notebook: NotebookNode) -> NotebookNode:
    """The executed ``notebook`` as a page shows it: no progress bars, no widget metadata, no paths of this machine."""
    for key in _HIDDEN:
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # what the last line of a figure's cell returned is the name of an object, and would get the caption too
            figure = "figure" in cell.metadata.get("mystnb", {})
            cell.outputs = [one for one in cell.outputs if not _only_bars(one) and not (figure and _only_repr(one))]
    return notebook


def _only_bars(output: NotebookNode) -> bool:
    """Whether ``output`` is a stderr stream of nothing but progress bars; bars are cut out of a stream that holds more."""
    if output.output_type != "stream" or output.name != "stderr":
        return False
    kept = [line for line in re.split(r"[\r\n]", output.text) if not _BAR.search(re.sub(r"\x1b\[\w", "", line))]
    output.text = "\n".join(kept) + "\n"
    return not kept


def _only_repr(output: NotebookNode) -> bool:
    return output.output_type == "execute_result" and set(output.data) == {"text/plain"}


def _staged(project: Project, preset: str) -> dict[str, bytes]:
    """Every file of the staging tree by its path, which is that of its source: docnames and Colab links follow it."""
    files = {}
    book = project.root / "book"
    for path in sorted(book.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(book).parts)
        if path.is_file() and project.build not in path.parents and not hidden:
            files[path.relative_to(project.root).as_posix()] = path.read_bytes()
    files["book/status.md"] = status_page(project, preset).encode()
    files["book/benchmarks.md"] = benchmarks_page(project).encode()
    if (figure := benchmarks_figure(project)) is not None:
        files["book/benchmarks.svg"] = figure
    for name in project.chapters():
        if fresh(project, preset, name) is None:
            raise BookError(
                f"chapter {name} isn't executed from the present sources on preset {preset}; "
                f"run `python -m radio_utils.book execute --preset {preset}` first"
            )
        notebook = for_page(read_notebook(project.executed(preset) / f"{name}.ipynb"))
        files[f"notebooks/{name}.ipynb"] = notebook_text(notebook).encode()
    files["conf.py"] = _conf(project).encode()
    if any(page.startswith(f"{FOLDER}/") for page in pages(project)):
        files |= reference_pages(section_titles(files))
        files[f"{FOLDER}/.source"] = source_digest().encode()  # what autodoc reads is among the inputs of the pages
    return files


def _conf(project: Project) -> str:
    """Sphinx's configuration: what `jupyter-book config sphinx` makes of _config.yml."""
    from jupyter_book.config import get_final_config

    cli = {"latex_individualpages": False}
    config, _ = get_final_config(user_yaml=project.config, cli_config=cli, raise_on_invalid=True)
    config["external_toc_path"] = "book/_toc.yml"
    if not project.address().startswith("https://github.com/"):
        config["html_theme_options"].pop("launch_buttons", None)  # Colab opens notebooks from github.com only
        config["html_theme_options"]["repository_provider"] = "github"  # the theme refuses a host it can't guess it from
    lines = [f"{key} = {pprint.pformat(value, width=120)}" for key, value in sorted(config.items())]
    return "# generated from _config.yml by radio_utils.book\n" + "\n".join(lines) + "\n"


def _sphinx(source: Path, output: Path) -> None:
    # A fresh environment each time: Sphinx doesn't repeat the warnings of unchanged pages, so -W would pass the second time
    doctrees = source.with_name(f"{source.name}.doctrees")
    shutil.rmtree(doctrees, ignore_errors=True)
    strict = ["-b", "html", "-n", "-W", "--keep-going", "-q"]
    command = [sys.executable, "-m", "sphinx", *strict, "-d", str(doctrees), str(source), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    log = (done.stdout + done.stderr).strip()
    atomic_write(source.with_name(f"{source.name}.log"), log + "\n")
    # a build has been seen to end with status 0 and errors in its log
    if done.returncode or re.search(r"\b(ERROR|CRITICAL|WARNING)\b", log):
        raise BookError(f"sphinx ended with status {done.returncode}; each warning is an error:\n{log}")
    shutil.rmtree(doctrees, ignore_errors=True)


def _finish(project: Project, output: Path) -> None:
    """Add what Sphinx doesn't: MathJax itself, and an index page that leads to the root."""
    import jupyter_server_mathjax

    mathjax = Path(jupyter_server_mathjax.__file__).parent / "static"
    shutil.copytree(mathjax, output / "_static" / "mathjax", ignore=_MATHJAX_UNUSED)
    index = _REDIRECT.format(title="Radioactive Watermarks", page=f"{pages(project)[0]}.html")
    (output / "index.html").write_text(index, encoding="utf-8")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
