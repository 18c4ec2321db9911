"""What a chapter's source must look like, and the repository's address in every file that names it."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path
from typing import Any

from radio_utils.book.project import (
    BookError,
    NotebookNode,
    Project,
    checked_address,
    notebook_text,
    owner_and_name,
    read_notebook,
    tags,
)
from radio_utils.book.prose import glossary_terms, prose_problems
from radio_utils.files import atomic_write

logger = logging.getLogger(__name__)

_COLAB = re.compile(r"https://colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/([\w.-]+)/([^\s)\"'>\]]+)")
_BRANCH = "main"
_NAMING = ("*.md", "*.cff", "pyproject.toml", "book/*.md", ".github/**/*.yml")
_WIDTH = 88  # characters of code that a page 1,280 pixels wide shows without scrolling


def check(project: Project) -> list[str]:
    """Every way in which a chapter's source breaks the book's conventions, as ``file: what; remedy``."""
    address = project.address()
    problems: list[str] = []
    setups: dict[str, str] = {}
    glossary = project.root / "book" / "glossary.md"
    terms = glossary_terms(glossary.read_text(encoding="utf-8")) if glossary.is_file() else []
    for name in project.chapters():
        path = project.chapter(name)
        notebook = read_notebook(path)
        found = _structure(notebook) + _address(notebook, f"notebooks/{name}.ipynb", address)
        found += prose_problems(notebook, terms)
        setup = _tagged(notebook, "setup")
        if len(setup) == 1:
            setups[name] = setup[0].source
        problems += [f"notebooks/{name}.ipynb: {problem}" for problem in found]
    for name, source in list(setups.items())[1:]:
        first = next(iter(setups))
        if source != setups[first]:
            problems.append(f"notebooks/{name}.ipynb: its setup cell differs from that of {first}; make them identical")
    for path in _naming(project):
        found = _links(path.read_text(encoding="utf-8"), None, address)
        problems += [f"{path.relative_to(project.root).as_posix()}: {problem}" for problem in found]
    return problems


def parameter_problems(source: str) -> list[str]:
    """Why ``source`` isn't a cell of literal assignments to plain names; empty when it is one."""
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        return [f"the parameters cell isn't Python ({error})"]
    problems = [] if body else ["the parameters cell is empty"]
    for node in body:
        line = f"line {node.lineno} of the parameters cell"
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if len(targets) != 1 or not isinstance(targets[0], ast.Name) or value is None:
            problems.append(f"{line} isn't an assignment to one name; derive other things in the next cell")
            continue
        try:
            ast.literal_eval(value)
        except (ValueError, TypeError):
            problems.append(f"{line}: {targets[0].id} isn't a literal; derive it in the next cell")
    return problems


def literals(source: str) -> dict[str, Any]:
    """The values that a cell without :func:`parameter_problems` assigns, by name."""
    values = {}
    for node in ast.parse(source).body:
        assert isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        values[ast.unparse(target)] = ast.literal_eval(node.value)
    return values


def set_address(project: Project, url: str) -> list[Path]:
    """Set the repository's address in all files that name it, ``_config.yml`` last; returns the files that changed.

    Raises:
        BookError: ``url`` isn't of the form https://host/owner/name.
    """
    old, new = project.address(), checked_address(url)
    texts: dict[Path, str] = {}
    for name in project.chapters():
        path = project.chapter(name)
        notebook = read_notebook(path)
        for cell in notebook.cells:
            cell.source = _replaced(cell.source, old, new)
        texts[path] = notebook_text(notebook)
    for path in _naming(project):
        texts[path] = _replaced(path.read_text(encoding="utf-8"), old, new)
    # the configuration comes last: whoever is killed before it runs this again and gets the same result
    config = project.config.read_text(encoding="utf-8")
    line = r"(?m)^(\s+url\s*:\s*)[\"']?" + re.escape(old) + r"(?:\.git)?/?[\"']?(?=\s|$)"
    texts[project.config], number = re.subn(line, lambda match: match[1] + new, config)
    if number != 1:
        raise BookError(f"{project.config}: expected one line `url: {old}` under repository, found {number}")
    changed = [path for path, text in texts.items() if text != path.read_text(encoding="utf-8")]
    for path in changed:
        atomic_write(path, texts[path])
    if not new.startswith("https://github.com/"):
        logger.warning("Colab opens notebooks from github.com only: its links lead nowhere while the address is %s", new)
    return changed


def _naming(project: Project) -> list[Path]:
    """The files that name the repository beside its configuration and the notebooks."""
    found = [path for pattern in _NAMING for path in project.root.glob(pattern)]
    return sorted(path for path in found if project.build not in path.parents)


def _replaced(text: str, old: str, new: str) -> str:
    # `.git` may follow; another name character may not: name must not match name-of-a-fork
    text = re.sub(re.escape(old) + r"(?=\.git\b|[^\w.-]|\.(?:\W|$)|$)", lambda _: new, text)

    def moved(match: re.Match[str]) -> str:
        slug, branch, path = match.groups()
        slug = owner_and_name(new) if slug == owner_and_name(old) else slug
        return f"https://colab.research.google.com/github/{slug}/blob/{branch}/{path}"

    return _COLAB.sub(moved, text)


def _tagged(notebook: NotebookNode, tag: str) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and tag in tags(cell)]


def _structure(notebook: NotebookNode) -> list[str]:
    problems = []
    code = [(number, cell) for number, cell in enumerate(notebook.cells, start=1) if cell.cell_type == "code"]
    for number, cell in code:
        if cell.get("outputs"):
            problems.append(f"cell {number} has outputs; sources are committed without (clear all outputs)")
        if cell.get("execution_count") is not None:
            problems.append(f"cell {number} has an execution count; sources are committed without (clear all outputs)")
        widest = max(map(len, cell.source.splitlines()), default=0)
        if widest > _WIDTH and "hide-input" not in tags(cell):
            problems.append(f"cell {number} has a line of {widest} characters, which a page cuts; break it before {_WIDTH}")
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
        problems.append("the first cell must be markdown that starts with the title, `# …`")
    for tag in ("setup", "parameters"):
        number = len(_tagged(notebook, tag))
        if number != 1:
            problems.append(f"{number} code cells are tagged {tag!r}; there must be exactly one")
    setup, parameters = _tagged(notebook, "setup"), _tagged(notebook, "parameters")
    if setup and parameters and notebook.cells.index(setup[0]) > notebook.cells.index(parameters[0]):
        problems.append("the setup cell must come before the parameters cell")
    for cell in parameters:
        problems += parameter_problems(cell.source)
    if not code or not re.search(r"(?m)^chapter\.record\(", code[-1][1].source):
        problems.append("the last code cell must call chapter.record()")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        problems.append("metadata.kernelspec.name must be python3: papermill starts that kernel")
    if notebook.metadata.get("language_info", {}).get("name") != "python":
        problems.append("metadata.language_info.name must be python: papermill reads the language there")
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for image in re.findall(r"!\[[^\]]*\]\((https?://[^)\s]+)|<img[^>]+src=[\"'](https?://[^\"']+)", prose):
        problems.append(f"an image is fetched from another host, {''.join(image)}; pages must do without the network")
    if "widgets" in notebook.metadata:
        problems.append("metadata.widgets makes viewers refuse the notebook; remove it and use plain-text progress bars")
    return problems


def _address(notebook: NotebookNode, path: str, address: str) -> list[str]:
    problems = []
    for cell in _tagged(notebook, "setup"):
        if address not in cell.source:
            problems.append(f"the setup cell doesn't name the repository {address}; run `make repository URL={address}`")
    text = "\n".join(cell.source for cell in notebook.cells)
    if not _COLAB.search(text):
        badge = f"https://colab.research.google.com/github/{owner_and_name(address)}/blob/{_BRANCH}/{path}"
        problems.append(f"no Colab link; the head links to {badge}")
    return problems + _links(text, path, address)


def _links(text: str, path: str | None, address: str) -> list[str]:
    """What is wrong with the Colab links in ``text``; those of a notebook must lead to ``path`` itself."""
    problems = []
    for slug, branch, target in _COLAB.findall(text):
        if (slug, branch) != (owner_and_name(address), _BRANCH):
            remedy = "run `make repository URL=…`"
            problems.append(f"a Colab link leads to {slug}, branch {branch}, but _config.yml has {address}; {remedy}")
        if path is not None and target != path:
            problems.append(f"a Colab link leads to {target}, not to {path}")
    return problems
