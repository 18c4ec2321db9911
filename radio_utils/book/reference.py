"""The reference pages: every public name, from its docstring, linked to the section that explains it and back.

``reference.yaml`` says which module stands on which page and which section explains what. The pages are generated where
the book is staged; Sphinx's autosummary and autodoc fill them, and as an extension of Sphinx this module ends each of those
sections with links to the names that it explains.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from radio_utils.book.project import BookError, digest

FOLDER = "book/reference"
_PACKAGE = Path(__file__).resolve().parent.parent
_OVERVIEW = """\
# Reference

Every public name of the package, with the section of the book that explains it. `import radio_utils as ru` has the ones
that most readers call; the others are reached by their module.

| name | what it is |
|---|---|
{rows}

The pages: {pages}.
"""
_PAGE = """\
# {title}

```{{eval-rst}}
{parts}
```
"""
_MODULE = """\
radio_utils.{module}
--------------------------------------------------------------------------------

.. currentmodule:: radio_utils.{module}

.. autosummary::
   :nosignatures:

{names}
"""
_ENTRY = """\
.. {directive}:: {name}{options}

   Explained in `{section} <{link}>`__.
"""


@dataclass(frozen=True, slots=True)
class Name:
    """A public name: its module, what it is to Sphinx, its value or what it does, its page and its section."""

    module: str
    name: str
    kind: str
    summary: str
    page: str
    section: str

    @property
    def target(self) -> str:
        """The name that Sphinx knows it by."""
        return f"radio_utils.{self.module}.{self.name}"


def configuration() -> dict[str, Any]:
    """What ``reference.yaml`` says, but for modules that this version of the package lacks."""
    read: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("reference.yaml").read_text(encoding="utf-8"))
    for page in read.values():
        page["modules"] = {name: entry for name, entry in page["modules"].items() if _file(name) is not None}
    return read


@functools.cache
def names() -> tuple[Name, ...]:
    """Every public name, page by page.

    Raises:
        BookError: ``reference.yaml`` explains a name that its module doesn't have.
    """
    found: list[Name] = []
    for page, contents in configuration().items():
        for module, entry in contents["modules"].items():
            special = dict(entry.get("names", {}))
            for name, node in _public(module):
                section = special.pop(name, entry["explained"])
                found.append(Name(module, name, _kind(node), _summary(node), page, section))
            if special:
                raise BookError(f"reference.yaml explains {', '.join(special)}, which radio_utils.{module} doesn't have")
    return tuple(found)


def reference_pages(titles: dict[str, str]) -> dict[str, bytes]:
    """The generated pages by their path in the staging tree; ``titles`` are those of the sections, by page and id."""
    files = {}
    contents = configuration()
    for page, entry in contents.items():
        parts = []
        for module in entry["modules"]:
            own = [one for one in names() if (one.page, one.module) == (page, module)]
            listed = "\n".join(f"   {one.name}" for one in own if one.kind != "data")
            parts.append(_MODULE.format(module=module, names=listed))
            parts += [_entry(one, titles) for one in own]
        text = _PAGE.format(title=entry["title"], parts="\n".join(parts))
        files[f"{FOLDER}/{page}.md"] = text.encode()
    rows = "\n".join(_row(exported, one) for exported, one in _exported())
    links = ", ".join(f"[{entry['title']}]({page}.md)" for page, entry in contents.items())
    files[f"{FOLDER}/overview.md"] = _OVERVIEW.format(rows=rows, pages=links).encode()
    return files


def section_titles(files: dict[str, bytes]) -> dict[str, str]:
    """The titles of all sections of staged pages, by ``page#id``: the ids are those that docutils gives them."""
    from docutils.nodes import make_id

    titles = {}
    for path, data in files.items():
        page, _, ending = path.rpartition(".")
        if ending == "ipynb":
            cells = json.loads(data)["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        elif ending == "md":
            text = data.decode()
        else:
            continue
        for title in re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", text)):
            titles[f"{page}#{make_id(title)}"] = title
    return titles


def source_digest() -> str:
    """Hash of what the pages are made of beside the book: the package's source."""
    return digest(*(path.read_bytes() for path in sorted(_PACKAGE.rglob("*.py"))))


def _entry(one: Name, titles: dict[str, str]) -> str:
    # autodoc would describe an alias by what it stands for, such as all of numpy's arrays
    directive = "py:data" if one.kind == "data" else f"auto{one.kind}"
    options = {"class": "\n   :members:", "data": f"\n   :value: {one.summary}"}.get(one.kind, "")
    if one.section not in titles:
        raise BookError(
            f"reference.yaml says that {one.target} is explained in {one.section}, and there is no such section"
        )
    link = "../../{}.html#{}".format(*one.section.split("#"))
    return _ENTRY.format(directive=directive, name=one.name, options=options, section=titles[one.section], link=link)


def _exported() -> Iterator[tuple[str, Name | str]]:
    """The names of ``radio_utils.__all__``, each with where it is documented: a name, or a module's page."""
    by_name = {one.name: one for one in reversed(names())}
    modules = {one.module: one.page for one in names()}
    for name in _all_of(_tree("")) or ():
        yield name, by_name[name] if name in by_name else modules[name]


def _row(name: str, one: Name | str) -> str:
    if isinstance(one, str):
        return f"| [`ru.{name}`]({one}.md) | the module `radio_utils.{name}` |"
    return f"| {{py:obj}}`ru.{name} <{one.target}>` | {one.summary} |"


# ------------------------------------------------------------------------------------------ names, without importing them


def _file(module: str) -> Path | None:
    path = _PACKAGE.joinpath(*module.split(".")) if module else _PACKAGE
    return next((one for one in (path / "__init__.py", path.with_suffix(".py")) if one.is_file()), None)


@functools.cache
def _tree(module: str) -> ast.Module:
    path = _file(module)
    if path is None:
        raise BookError(f"radio_utils.{module} is no module of the package")
    return ast.parse(path.read_text(encoding="utf-8"))


def _all_of(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == "__all__" for one in node.targets):
            listed: list[str] = ast.literal_eval(node.value)
            return listed
    return None


def _public(module: str) -> Iterator[tuple[str, ast.stmt]]:
    """The public names of a module, as ``__all__`` lists them or else as it defines them, each with its definition."""
    tree = _tree(module)
    listed = _all_of(tree)
    if listed is None:
        defined = (ast.ClassDef, ast.FunctionDef)
        own = [node for node in tree.body if isinstance(node, defined) and not node.name.startswith("_")]
        yield from {node.name: node for node in own}.items()  # of overloads the last, which has the docstring
        return
    for name in listed:
        yield name, _definition(module, name)


def _definition(module: str, name: str) -> ast.stmt:
    """Where a module, or one that it takes the name from, defines it."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(one, ast.Name) and one.id == name for one in targets):
                return node
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("radio_utils."):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _definition(str(node.module).removeprefix("radio_utils."), alias.name)
    raise BookError(f"radio_utils.{module} lists {name!r} and doesn't define it")


def _kind(node: ast.stmt) -> str:
    return {"ClassDef": "class", "FunctionDef": "function"}.get(type(node).__name__, "data")


def _summary(node: ast.stmt) -> str:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return ast.unparse(node.value) if node.value else ""
    text = ast.get_docstring(node) if isinstance(node, ast.ClassDef | ast.FunctionDef) else None
    first = " ".join((text or "").partition("\n\n")[0].split()).partition(". ")[0].rstrip(".:")
    return re.sub(r":\w+:(?=`)", "", first).replace("``", "`").replace("|", r"\|")


# ---------------------------------------------------------------------------------------------------- the way back: Sphinx


def _linked_back(app: Any, doctree: Any) -> None:
    """End each section that explains names with links to them."""
    from docutils import nodes
    from sphinx.addnodes import pending_xref

    page = app.env.docname
    if f"{FOLDER}/overview" not in app.env.found_docs:
        return
    wanted: dict[str, list[Name]] = {}
    for one in names():
        if one.section.partition("#")[0] == page:
            wanted.setdefault(one.section.partition("#")[2], []).append(one)
    for section in doctree.findall(nodes.section):
        found = [one for anchor in section["ids"] for one in wanted.pop(anchor, [])]
        if not found:
            continue
        line = nodes.paragraph("", "", nodes.Text("In the package: "), classes=["reference-names"])
        for i, one in enumerate(found):
            if i:
                line += nodes.Text(", ")
            link = pending_xref(
                "", nodes.literal("", one.name), refdomain="py", reftype="obj", reftarget=one.target, refexplicit=True
            )
            link["refdoc"] = page
            line += link
        # before its subsections: there it would be read as the last one's
        inner = next((i for i, child in enumerate(section.children) if isinstance(child, nodes.section)), len(section))
        section.insert(inner, line)
    if wanted:
        raise BookError(f"{page} has no section {', '.join(wanted)}; mend radio_utils/book/reference.yaml")


def _plain_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings write |A| for a size, which reStructuredText takes for a substitution."""
    for number, line in enumerate(lines):
        parts = line.split("``")
        lines[number] = "``".join(part if i % 2 else part.replace("|", r"\|") for i, part in enumerate(parts))


def _as_written(app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None) -> Any:
    """Signatures with the annotations of the source: ``ArrayLike``, not the union that it stands for."""
    from sphinx.util.inspect import stringify_signature

    if signature is None:
        return None
    try:
        found = inspect.signature(obj)
    except (TypeError, ValueError):  # a property, a built-in base
        return None
    parameters = [one for one in found.parameters.values() if what != "method" or one.name not in {"self", "cls"}]
    returns = found.return_annotation if what != "class" and found.return_annotation is not found.empty else None
    return stringify_signature(found.replace(parameters=parameters, return_annotation=found.empty)), returns


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("autodoc-process-docstring", _plain_bars)
    app.connect("autodoc-process-signature", _as_written)
    app.connect("doctree-read", _linked_back)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
