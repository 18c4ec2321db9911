"""A tiny book for the tests of the tooling: the real configuration and front matter, chapters that take a second."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from radio_utils.book import Project

REPOSITORY = Path(__file__).resolve().parent.parent
ADDRESS = "https://github.com/your_org/radioactive-watermarks"
SETUP = f'REPOSITORY = "{ADDRESS}"\nimport json, os, pathlib, sys'
PARAMETERS = 'preset = "laptop"\nseed = 0\nrho = 0.1\nquick = True\nnames = ["a", "b"]\nlabel = "x"'
RECORD = """\
class chapter:
    @staticmethod
    def record():
        results = pathlib.Path(os.environ.get("RADIO_UTILS_RESULTS", "results"))
        path = results / preset / "{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {{"chapter": "{name}", "preset": preset, "seed": seed}}
        record |= {{"seconds": 1.5, "date": "2026-01-02"}}
        record |= {{"tables": {{}}, "hardware": {{"machine": "toy"}}}}
        record |= {{"versions": {{"python": "3.11"}}}}
        path.write_text(json.dumps(record))"""


def chapter(name: str, *cells: Any, parameters: str | None = PARAMETERS) -> Any:
    """A notebook that follows the conventions; ``cells`` are code sources or ready cells for its middle."""
    badge = f"https://colab.research.google.com/github/your_org/radioactive-watermarks/blob/main/notebooks/{name}.ipynb"
    head = new_markdown_cell(f"# {name[3:].replace('_', ' ').title()}\n\nText about a watermark. [Open in Colab]({badge})")
    notebook = new_notebook(cells=[head, new_code_cell(SETUP, metadata={"tags": ["setup"]})])
    if parameters is not None:
        notebook.cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    notebook.cells.append(new_code_cell(RECORD.format(name=name)))
    notebook.cells += [new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    notebook.cells.append(new_code_cell("chapter.record()"))
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    # ids that stay the same make sources that stay the same
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return notebook


def write(project: Project, name: str, notebook: Any) -> Path:
    path = project.root / "notebooks" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def tiny_project(folder: Path, *chapters: tuple[str, Any]) -> Project:
    """A book in ``folder`` with the given chapters, this repository's configuration and its pages' style."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "radio_utils").mkdir()
    (folder / "radio_utils" / "core.py").write_text("VALUE = 42\n")
    (folder / "radio_utils" / "presets.yaml").write_text("smoke: {}\n")
    (folder / "requirements.txt").write_text("numpy==2.4.6\nnot-installed-anywhere==1\n")
    (folder / "README.md").write_text(f"# Tiny\n\nClone {ADDRESS}.git and open {ADDRESS}.\n\nNot {ADDRESS}-fork.\n")
    shutil.copy(REPOSITORY / "_config.yml", folder)
    (folder / "book").mkdir()
    shutil.copytree(REPOSITORY / "book" / "_static", folder / "book" / "_static")
    shutil.copy(REPOSITORY / "book" / "references.bib", folder / "book")
    shutil.copy(REPOSITORY / "book" / "bibliography.md", folder / "book")
    (folder / "book" / "introduction.md").write_text("# Introduction\n\nA watermark {cite}`sander2024radioactive`.\n")
    entries = "".join(f"      - file: notebooks/{name}\n" for name, _ in chapters)
    (folder / "book" / "_toc.yml").write_text(
        "format: jb-book\nroot: book/introduction\nparts:\n"
        f"  - caption: The argument\n    numbered: 1\n    chapters:\n{entries}"
        "  - caption: For reference\n    chapters:\n      - file: book/status\n      - file: book/bibliography\n"
    )
    project = Project(folder)
    for name, notebook in chapters:
        write(project, name, notebook)
    return project
