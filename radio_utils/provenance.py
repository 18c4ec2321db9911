"""Where a result comes from: versions, hardware, and the code that made it."""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import inspect
import os
import platform
import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
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


def code_version(*makers: Any) -> str:
    """Hash of the code that makes an artifact: when it changes, the artifact is made anew.

    A maker is the function that makes it, or an object whose class does part of the work without being named there, as a
    watermark does; None is nothing. Hashed are the syntax trees of the function and of all that it uses of this package:
    the modules whose functions and classes it names, and what these import, directly or not; whole definitions alone where
    they stand beside it, or are methods of its ``self``, of what it encloses or of an argument whose class is annotated.
    What returns an artifact is not followed: that is an input, and has a name of its own. Docstrings, comments, annotations
    of types and the imports themselves are left out and each statement counts by itself: so a comment renames nothing, nor
    does a definition that moves. Raises ``ValueError`` where no maker is of this package.
    """
    found = tuple(one for maker in makers if maker is not None and (one := _Maker.of(maker)) is not None)
    if not found:
        raise ValueError(f"makers holds {makers!r}, none of which is code of {_PACKAGE}")
    return _version(found)


def without_comments(source: str) -> str:
    """A module's syntax tree in words, which comments, docstrings and its layout leave as it is."""
    return ast.dump(_WithoutDocstrings().visit(ast.parse(source)))


@dataclass(frozen=True)
class _Maker:
    """A definition, or a whole module (line 0), and the classes of the names that it encloses."""

    module: str
    line: int = 0
    name: str = ""
    receivers: tuple[tuple[str, type], ...] = ()
    enclosed: tuple[_Maker, ...] = ()

    @classmethod
    def of(cls, maker: Any, owner: type | None = None) -> _Maker | None:
        """What stands for a function, a method, or an object; None for what is not of this package."""
        if isinstance(maker, functools.partial):
            maker = maker.func
        function = inspect.unwrap(maker) if callable(maker) else maker
        if isinstance(function, types.MethodType):
            function, owner = inspect.unwrap(function.__func__), type(function.__self__)
        if not isinstance(function, types.FunctionType):
            return cls(type(maker).__module__) if _is_ours(type(maker).__module__) else None
        if not _is_ours(function.__module__):
            return None
        receivers: dict[str, type] = {} if owner is None else {"self": owner}
        enclosed = []
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # not yet bound
                value = cell.cell_contents
                if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
                    if value is not function and (found := cls.of(value)) is not None:
                        enclosed.append(found)
                elif _is_ours(type(value).__module__):
                    receivers[name] = type(value)
        code = function.__code__
        return cls(function.__module__, code.co_firstlineno, code.co_name, tuple(receivers.items()), tuple(enclosed))


@functools.cache
def _version(makers: tuple[_Maker, ...]) -> str:
    statements = sorted(_statements(makers))
    return hashlib.sha256("\n".join(statements).encode()).hexdigest()[:16]


def _statements(makers: Iterable[_Maker]) -> set[str]:
    """The syntax trees of all that these use."""
    found: set[str] = set()
    waiting, seen, modules = list(makers), set[_Maker](), set[str]()
    while waiting:
        if (maker := waiting.pop()) in seen:
            continue
        seen.add(maker)
        if not maker.line:
            modules |= _closure(maker.module)
            continue
        module = _read(maker.module)
        waiting += maker.enclosed
        for node in module.at(maker.line, maker.name):
            found.add(ast.dump(_Plain().visit(copy.deepcopy(node))))
            waiting += module.used(node, dict(maker.receivers))
    for name in modules:
        found |= _read(name).statements
    return found


@functools.cache
def _closure(module: str) -> frozenset[str]:
    """A module and all that it imports from the package, directly or not."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen.add(name)
            waiting += _read(name).imports
    return frozenset(seen)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE and _file(module) is not None


def _file(module: str) -> Any:
    """The source of one of the package's modules, or None if it is none."""
    root = resources.files(_PACKAGE)
    path = root.joinpath(*module.split(".")[1:])
    for candidate in (path.joinpath("__init__.py"), root.joinpath(*module.split(".")[1:-1], module.split(".")[-1] + ".py")):
        if module != _PACKAGE and candidate.is_file():
            return candidate
    return None


@functools.cache
def _read(module: str) -> _Module:
    return _Module(module)


class _Module:
    """The source of a module: what it imports from the package, and what it defines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._tree = ast.parse(_file(name).read_text(encoding="utf-8"))
        self._names: dict[str, tuple[str, str]] = {}  # imported at the top: the module, and the name there
        self._defined: dict[str, ast.stmt] = {}
        for node in self._tree.body:
            if isinstance(node, ast.ImportFrom):
                self._names |= {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                self._defined[node.name] = node
            else:
                self._defined |= dict.fromkeys(_bound(node), node)

    @functools.cached_property
    def imports(self) -> set[str]:
        """The modules that its imports lead to, at its top or inside a function, and not for annotations only."""
        return {name for node in _without_annotations(self._tree) for name in _imported(node)}

    @functools.cached_property
    def statements(self) -> set[str]:
        """What does something at its top level: syntax trees without docstrings."""
        tree = _Plain().visit(copy.deepcopy(self._tree))
        return {ast.dump(node) for node in tree.body if not _is_import(node)}

    def at(self, line: int, name: str) -> list[ast.AST]:
        """The definition that begins at a line; of lambdas, all that do."""
        kinds = (ast.Lambda,) if name == "<lambda>" else (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
        return [one for one in ast.walk(self._tree) if isinstance(one, kinds) and _first_line(one) == line]

    def used(self, node: ast.AST, receivers: dict[str, type]) -> Iterator[_Maker]:
        """What a definition uses of this module and others, and the methods of those whose class is known."""
        namespace = vars(sys.modules[self.name]) if self.name in sys.modules else {}
        arguments = [one for one in ast.walk(node) if isinstance(one, ast.arg)]
        for argument in arguments:
            kind = namespace.get(argument.annotation.id) if isinstance(argument.annotation, ast.Name) else None
            if isinstance(kind, type) and _is_ours(kind.__module__):
                receivers = receivers | {argument.arg: kind}
        local = {one.arg for one in arguments} | _bound(node) if isinstance(node, ast.FunctionDef | ast.Lambda) else set()
        for one in _without_annotations(node):
            yield from map(_Maker, _imported(one))
            if isinstance(one, ast.Name) and one.id not in local:
                yield from self.named(one.id)
            elif isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id in receivers:
                kind = receivers[one.value.id]
                function = _function(inspect.getattr_static(kind, one.attr, None))
                if function is not None and "Artifact" not in str(function.__annotations__.get("return")):
                    found = _Maker.of(function, kind)
                    assert found is not None
                    yield found

    def named(self, name: str) -> Iterator[_Maker]:
        """What a name at the top of this module stands for: a definition here, or a module."""
        if name in self._defined:
            yield _Maker(self.name, _first_line(self._defined[name]), name)
        elif name in self._names:
            module, there = self._names[name]
            target = _home(module, there)
            if target is not None and isinstance(_read(target)._defined.get(there), ast.Assign | ast.AnnAssign):
                yield from _read(target).named(there)  # a constant
            elif target is not None:
                yield _Maker(target)


def _home(module: str, name: str) -> str | None:
    """The module of the package that an imported name leads to: itself one, or where it is defined."""
    if not module.startswith(_PACKAGE) or (module == _PACKAGE and _file(f"{module}.{name}") is None):
        return None
    if _file(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    there = _read(module)
    return _home(*there._names[name]) or module if name in there._names else module


def _imported(node: ast.AST) -> Iterator[str]:
    """The modules that a statement imports from the package."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if _is_ours(alias.name))
    elif isinstance(node, ast.ImportFrom):
        homes = (_home(node.module or "", alias.name) for alias in node.names)
        yield from (home for home in homes if home is not None)


def _function(value: Any) -> types.FunctionType | None:
    """The function behind what a class holds under a name."""
    value = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", None) or value
    function = inspect.unwrap(value) if callable(value) else value
    return function if isinstance(function, types.FunctionType) and _is_ours(function.__module__) else None


def _first_line(node: Any) -> int:
    return min(int(one.lineno) for one in (node, *getattr(node, "decorator_list", [])))


def _bound(node: ast.AST) -> set[str]:
    """The names that are assigned in it."""
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


def _without_annotations(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all in it, save annotations and what stands under ``if TYPE_CHECKING``."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            only_types = isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"
            if isinstance(child, ast.AST) and not only_types:
                yield from _without_annotations(child)


def _is_import(node: ast.stmt) -> bool:
    """Whether a statement only brings names into a module, or says which of them are public."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    return isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == "__all__" for one in node.targets)


class _WithoutDocstrings(ast.NodeTransformer):
    """Takes docstrings out."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = node.body[1:]
        return node


class _Plain(_WithoutDocstrings):
    """Takes docstrings and the package's own imports out."""

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        return None if any(alias.name.startswith(_PACKAGE) for alias in node.names) else node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if (node.module or "").startswith(_PACKAGE) else node
