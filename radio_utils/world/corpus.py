"""A corpus of real English that every machine of this book already holds: the docstrings of its packages.

The source files of the installed packages are parsed with :mod:`ast`, never imported. Each docstring becomes one or
more question–answer documents: what an object is, what one of its parameters does, what it returns. The corpus is
split into two halves that share no object, so that Alice's model and Bob's base model have different
pre-training data (section "Alice's data, Bob's model").
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STANDARD_LIBRARY = "stdlib"
_SKIPPED_FOLDERS = {"tests", "test", "testing", "_vendor", "vendor", "site-packages", "__pycache__", "idlelib", "lib2to3"}
_UNDERLINE = re.compile(r"^\s*[-=~^]{3,}\s*$")
_PARAMETER = re.compile(r"^(\*{0,2}[A-Za-z_]\w*)(\s*,\s*\*{0,2}\w+)*\s*(:\s*(?P<type>.*))?$")
_DIRECTIVE = re.compile(r"^\s*(\.\.|:\w+:|>>>|\.\.\.)")
_ROLE = re.compile(r":[a-zA-Z:]+:`~?([^`<]*?)\s*(<[^`]*>)?`")


@dataclass(frozen=True, slots=True)
class Document:
    """One instruction and its answer. ``topic`` is the dotted name of the documented object."""

    topic: str
    instruction: str
    answer: str


class EmptyCorpusError(ValueError):
    """No usable docstring was found in the named packages."""


def source_files(packages: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yield (dotted module name, path) of every Python source file of the packages, sorted, without importing them.

    Raises ``ModuleNotFoundError`` naming the package when one is not installed.
    """
    for package in packages:
        if package == STANDARD_LIBRARY:
            root, prefix = Path(sysconfig.get_paths()["stdlib"]), ""
        else:
            spec = importlib.util.find_spec(package)
            if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
                raise ModuleNotFoundError(
                    f"corpus.packages names {package!r}, which is not installed as Python source; "
                    "install it or drop it from the preset"
                )
            if spec.submodule_search_locations is None:  # one file, not a folder: its neighbours are other packages
                yield package, Path(spec.origin)
                continue
            root, prefix = Path(spec.origin).parent, package
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if not path.is_file() or _SKIPPED_FOLDERS.intersection(parts) or any(p.startswith("test_") for p in parts):
                continue
            module = ".".join(part for part in (prefix, *parts) if part and part != "__init__")
            yield module, path


def docstrings(module: str, source: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, cleaned docstring) of a module's source and of its public classes and functions."""
    with warnings.catch_warnings():
        for category in (SyntaxWarning, DeprecationWarning):  # old escapes; under -W error they would drop the module
            warnings.simplefilter("ignore", category)
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return
    stack: list[tuple[str, ast.AST]] = [(module, tree)]
    while stack:
        name, node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield name, inspect.cleandoc(text)
        if isinstance(node, ast.Module | ast.ClassDef):
            definitions = (c for c in node.body if isinstance(c, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef))
            stack.extend((f"{name}.{child.name}", child) for child in definitions if not child.name.startswith("_"))


def _plain(lines: Sequence[str]) -> str:
    """Running text: markup roles unwrapped, white space folded, plain ASCII."""
    text = re.sub(r"\s+", " ", " ".join(lines)).strip()
    text = _ROLE.sub(r"\1", text).replace("`~", "").replace("``", "").replace("`", "").replace("**", "")
    return text.encode("ascii", "ignore").decode()


def _paragraphs(lines: Sequence[str], limit: int) -> str:
    """The first paragraphs of prose, up to about ``limit`` characters, ending at a paragraph or sentence."""
    kept: list[str] = []
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            if _DIRECTIVE.match(line):
                break
            paragraph.append(line)
        elif paragraph:
            kept.append(_plain(paragraph))
            paragraph = []
            if sum(map(len, kept)) > limit:
                break
    text = " ".join(kept)
    if len(text) > limit:
        cut = text.rfind(". ", 0, limit)
        text = text[: cut + 1] if cut > 0 else text[:limit].rsplit(" ", 1)[0]
    return text


def _sections(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """Split a docstring in the NumPy layout into its opening lines and its underlined sections."""
    lines = text.splitlines()
    opening: list[str] = []
    sections: dict[str, list[str]] = {}
    current = opening
    for i, line in enumerate(lines):
        if i + 1 < len(lines) and _UNDERLINE.match(lines[i + 1]) and line.strip():
            current = sections.setdefault(line.strip(), [])
        elif not _UNDERLINE.match(line):
            current.append(line)
    return opening, sections


def _entries(lines: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (name, type, description lines) of a NumPy-style Parameters or Returns section."""
    header: re.Match[str] | None = None
    body: list[str] = []
    for line in [*lines, "end"]:
        if line and not line[0].isspace():
            if header is not None and body:
                yield header.group(1), (header.group("type") or "").strip(), body
            header, body = _PARAMETER.match(line.strip()), []
        elif header is not None and line.strip():
            body.append(line.strip())


def documents(name: str, text: str, *, limit: int = 420) -> Iterator[Document]:
    """Turn one docstring into question–answer documents of at most about ``limit`` characters."""
    short = ".".join(name.split(".")[-2:])
    opening, sections = _sections(text)
    answer = _paragraphs(opening, limit)
    if len(answer) >= 40:
        yield Document(name, f"What is {short}?", answer)
    for parameter, kind, body in _entries(sections.get("Parameters", [])):
        described = _paragraphs(body, limit)
        if len(described) >= 30:
            answer = f"{parameter} is {kind}. {described}" if kind else described
            yield Document(name, f"What is the parameter {parameter} of {short}?", _plain([answer])[: limit + 80])
    for value, kind, body in _entries(sections.get("Returns", [])):
        described = _paragraphs(body, limit)
        if len(described) >= 30:
            answer = f"It returns {value}, {kind}. {described}" if kind else f"It returns {value}. {described}"
            yield Document(name, f"What does {short} return?", _plain([answer]))
            break


def half(topic: str) -> int:
    """0 or 1: the half of the corpus an object belongs to, fixed by a hash of its name, whatever the seed."""
    return hashlib.sha256(topic.encode()).digest()[0] & 1


def read_file(module: str, path: Path) -> list[Document]:
    """All documents of one source file, in the file's order."""
    source = path.read_text(encoding="utf-8", errors="ignore")
    return [document for name, text in docstrings(module, source) for document in documents(name, text)]


def read_corpus(packages: Sequence[str]) -> list[Document]:
    """All distinct documents of the packages, in a fixed order.

    Raises :class:`EmptyCorpusError` when nothing usable is found.
    """
    parsed = (read_file(module, path) for module, path in source_files(packages))
    found: dict[str, Document] = {}
    for document in itertools.chain.from_iterable(parsed):
        found.setdefault(document.answer, document)
    if not found:
        raise EmptyCorpusError(
            f"corpus.packages={list(packages)!r} holds no docstring to learn from; name packages with documented code"
        )
    return list(found.values())


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """The version of each package, part of the corpus's identity in the artifact store.

    A package may be distributed under another name than it is imported by; one that no distribution claims (a folder on
    the path) is "unversioned". The standard library counts with its patch level: its docstrings change with it.
    """
    distributions = importlib.metadata.packages_distributions()
    versions = {}
    for package in packages:
        if package == STANDARD_LIBRARY:
            versions[package] = platform.python_version()
        else:
            names = [package] if package in distributions.get(package, []) else distributions.get(package, [])
            versions[package] = importlib.metadata.version(names[0]) if names else "unversioned"
    return versions
