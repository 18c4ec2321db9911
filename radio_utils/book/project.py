"""Where the parts of the book are, and the one place that knows the repository's address."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import yaml

SILENCE = 3600.0  # seconds without a sign of life after which a chapter is ended; how long it takes doesn't matter
NotebookNode = Any  # nbformat carries no types

_CHAPTER = re.compile(r"\d\d_[a-z0-9_]+")


class BookError(Exception):
    """Something a person can mend: the message names it, its value and the remedy."""


@dataclass(frozen=True)
class Project:
    """The folders of one checkout. ``root`` is the folder that holds ``_config.yml`` and ``notebooks/``."""

    root: Path

    @classmethod
    def find(cls, start: Path | None = None) -> Project:
        """The project around ``start`` (default: the working directory), else the checkout this file lies in.

        Raises:
            BookError: no folder above has a ``_config.yml``.
        """
        here = (start or Path.cwd()).resolve()
        for folder in (here, *here.parents, *Path(__file__).resolve().parents):
            if (folder / "_config.yml").is_file() and (folder / "notebooks").is_dir():
                return cls(folder)
        raise BookError(f"no _config.yml beside a notebooks/ folder in {here} or above; run this inside a checkout")

    @property
    def config(self) -> Path:
        """The book's configuration, ``_config.yml``."""
        return self.root / "_config.yml"

    @property
    def build(self) -> Path:
        """The generated tree, ``book/_build``."""
        return self.root / "book" / "_build"

    def results(self, preset: str) -> Path:
        """The folder of a tier's records; RADIO_UTILS_RESULTS moves all of them."""
        return Path(os.environ.get("RADIO_UTILS_RESULTS") or self.root / "results") / preset

    def executed(self, preset: str) -> Path:
        """The tree of executed chapters that the book is rendered from."""
        return self.build / "executed" / preset / "notebooks"

    def html(self, preset: str) -> Path:
        """The folder of the rendered pages: ``html`` for the laptop preset, ``html-<preset>`` for others."""
        return self.build / ("html" if preset == "laptop" else f"html-{preset}")

    def chapters(self) -> list[str]:
        """The names of all chapters, in order.

        Raises:
            BookError: there are none, or a notebook's name isn't of the form NN_name.
        """
        names = sorted(path.stem for path in (self.root / "notebooks").glob("*.ipynb"))
        for name in names:
            if not _CHAPTER.fullmatch(name):
                raise BookError(
                    f"notebooks/{name}.ipynb: a chapter's name is two digits, _ and a-z0-9_, as 01_watermarking"
                )
        if not names:
            raise BookError(f"no chapters: {self.root / 'notebooks'} holds no .ipynb file")
        return names

    def chapter(self, name: str) -> Path:
        """The source notebook of chapter ``name``.

        Raises:
            BookError: there is no such chapter.
        """
        names = self.chapters()
        if name not in names:
            raise BookError(f"unknown chapter {name!r}; the chapters are {', '.join(names)}")
        return self.root / "notebooks" / f"{name}.ipynb"

    def address(self) -> str:
        """The repository's address, as ``_config.yml`` has it."""
        try:
            url = yaml.safe_load(self.config.read_text(encoding="utf-8"))["repository"]["url"]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise BookError(f"{self.config}: no repository.url can be read ({error!r}); write the address there") from error
        return checked_address(url)


def checked_address(url: object) -> str:
    """``url`` without a closing slash, when it has the form https://host/owner/name.

    Raises:
        BookError: it has another form.
    """
    text = str(url).removesuffix("/")
    parts = urlsplit(text)
    host = re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d+)?", parts.netloc)
    path = re.fullmatch(r"/[\w.-]+/[\w.-]+", parts.path)
    if parts.scheme != "https" or not host or not path or parts.query or parts.fragment:
        raise BookError(f"repository address {url!r}: it must be an https URL of the form https://host/owner/name")
    return text.removesuffix(".git")


def owner_and_name(address: str) -> str:
    """The ``owner/name`` part of a checked address."""
    return urlsplit(address).path.strip("/")


def read_notebook(path: Path) -> NotebookNode:
    """The notebook at ``path``.

    Raises:
        BookError: the file isn't a notebook of format 4.
    """
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.reader.NotJSONError) as error:
        raise BookError(f"{path}: this isn't a readable notebook ({error})") from error


def notebook_text(notebook: NotebookNode) -> str:
    """The JSON of a notebook, formatted as the sources are: indent 1, one closing newline."""
    return str(nbformat.writes(notebook, indent=1)).rstrip("\n") + "\n"


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return list(cell.get("metadata", {}).get("tags", []))


def digest(*parts: bytes | str) -> str:
    """A sha256 over ``parts``, each with its length, so that no two lists of parts run together."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "big"))
        sha.update(data)
    return sha.hexdigest()
