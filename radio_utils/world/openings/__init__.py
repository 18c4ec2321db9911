"""Openings of encyclopedia articles in five languages, on the same subjects, written for this project.

Chapter 7 lets Alice continue them: text of another distribution than Bob's fine-tuning data. Each language has a JSONL file
with ``subject`` (in English, the same in every file), ``title`` and ``text``. Licence: LICENSE.md beside this file.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources

LANGUAGES = {"en": "English", "de": "German", "es": "Spanish", "fr": "French", "it": "Italian"}


def load(language: str) -> list[str]:
    """The openings of one language. Raises ``ValueError`` for a language that is not there."""
    return [str(json.loads(line)["text"]) for line in _source(language).decode().splitlines()]


def digest(language: str) -> str:
    """Hash of a language's file: what is made from it is made anew when it changes."""
    return hashlib.sha256(_source(language)).hexdigest()[:16]


def _source(language: str) -> bytes:
    if language not in LANGUAGES:
        raise ValueError(f"unknown language {language!r}; choose one of {', '.join(LANGUAGES)}")
    return resources.files("radio_utils.world.openings").joinpath(f"{language}.jsonl").read_bytes()
