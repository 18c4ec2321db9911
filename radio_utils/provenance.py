"""Where a result comes from: versions, hardware, and the code that made it."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
from collections.abc import Iterator
from importlib import metadata, resources, util
from typing import Any

_PACKAGES = ("radio_utils", "torch", "transformers", "tokenizers", "numpy", "scipy")
_PACKAGE = "radio_utils"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The machine in words: processor cores and, where there is one, the GPU."""
    found: dict[str, Any] = {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}
    found["gpu"] = None
    if util.find_spec("torch"):
        import torch

        found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found


@functools.cache
def code_version(*makers: str) -> str:
    """Hash of the code that makes an artifact: when it changes, the artifact is made anew.

    ``makers`` are modules of this package, by dotted name without the package's ("world.training"). Hashed are the syntax
    trees of these and of all that they import from the package, directly or not, without docstrings, comments and the
    imports themselves, each statement by itself: so a comment renames nothing, nor does a definition that moves to
    another of the modules. Raises ``ValueError`` for a name that is no module of the package.
    """
    seen: set[str] = set()
    waiting = [f"{_PACKAGE}.{maker}" for maker in makers]
    for name in waiting:
        if _file(name) is None:
            raise ValueError(f"makers holds {name.partition('.')[2]!r}, which is no module of {_PACKAGE}")
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen.add(name)
            waiting += _read(name)[0]
    statements = sorted({statement for name in seen for statement in _read(name)[1]})
    return hashlib.sha256("\n".join(statements).encode()).hexdigest()[:16]


def _file(module: str) -> Any:
    """The source of one of the package's modules, or None if it is none."""
    root = resources.files(_PACKAGE)
    path = root.joinpath(*module.split(".")[1:])
    for candidate in (path.joinpath("__init__.py"), root.joinpath(*module.split(".")[1:-1], module.split(".")[-1] + ".py")):
        if module != _PACKAGE and candidate.is_file():
            return candidate
    return None


@functools.cache
def _read(module: str) -> tuple[list[str], list[str]]:
    """What a module imports from the package, at its top or inside a function, and not for annotations only; statements.

    The statements are those at the top level that do something, each as its syntax tree without docstrings.
    """
    tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    found = []
    for node in _without_annotations(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    named = {*found, *(name.rpartition(".")[0] for name in found)}
    imports = [name for name in named if name.startswith(_PACKAGE + ".") and _file(name) is not None]
    return imports, [ast.dump(node) for node in _Plain().visit(tree).body if not _is_import(node)]


def _without_annotations(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, save what stands under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield child
            yield from _without_annotations(child)


def _is_import(node: ast.stmt) -> bool:
    """Whether a statement only brings names into a module, or says which of them are public."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    return isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == "__all__" for one in node.targets)


class _Plain(ast.NodeTransformer):
    """Takes docstrings and the package's own imports out."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = node.body[1:]
        return node

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        return None if any(alias.name.startswith(_PACKAGE) for alias in node.names) else node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if (node.module or "").startswith(_PACKAGE) else node
