"""Openings of encyclopedia articles: what Alice continues when she does not know the language of Bob's data (chapter 8).

Seventy in each of five languages, on the same subjects, were written for this project: one JSONL file a language, with
``subject`` (in English, the same in every file), ``title`` and ``text``. Licence: LICENSE.md beside this file. Larger tiers
read the openings of Wikipedia's articles through ``datasets``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from importlib import resources

LANGUAGES = {"en": "English", "de": "German", "es": "Spanish", "fr": "French", "it": "Italian"}
WIKIPEDIA = "wikimedia/wikipedia"
_SNAPSHOT = "20231101"
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class OpeningsError(RuntimeError):
    """The data set of openings could not be read, or what reads it is not installed."""


def load(language: str) -> list[str]:
    """The openings of one language that come with the package. Raises ``ValueError`` for a language that is not there."""
    return [str(json.loads(line)["text"]) for line in _source(language).decode().splitlines()]


def from_wikipedia(language: str, count: int, *, dataset: str = WIKIPEDIA) -> list[str]:
    """The first sentences, 40 words or a little more, of ``count`` articles of a language.

    ``dataset`` is a hub name or a local folder in the hub's format with one configuration a language, as
    ``20231101.en``, and a column ``text``. It is streamed, so that nothing but what is used is downloaded. Raises
    :class:`OpeningsError` without ``datasets``, or where the data set cannot be read or has too few articles.
    """
    _check(language)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise OpeningsError("reading Wikipedia needs datasets: pip install 'radio-utils[wikipedia]'") from error
    try:
        rows = load_dataset(dataset, f"{_SNAPSHOT}.{language}", split="train", streaming=True)
        articles = (opening for row in rows if (opening := _opening(str(row["text"]))))
        found = list(itertools.islice(articles, count))
    except (OSError, ValueError, KeyError) as error:
        raise OpeningsError(f"openings of {language!r} cannot be read from {dataset!r}: {error}") from error
    if len(found) < count:
        raise OpeningsError(
            f"{dataset!r} has {len(found)} usable articles in {language!r}, fewer than the {count} asked for"
        )
    return found


def digest(language: str) -> str:
    """Hash of a language's file: what is made from it is made anew when it changes."""
    return hashlib.sha256(_source(language)).hexdigest()[:16]


def _opening(article: str, words: int = 40) -> str:
    """The first sentences of the first paragraph, at least ``words`` words of it; nothing of a shorter one."""
    sentences, taken = _SENTENCE.split(article.strip().split("\n")[0]), ""
    for sentence in sentences:
        taken = f"{taken} {sentence}".strip()
        if len(taken.split()) >= words:
            return taken
    return ""


def _source(language: str) -> bytes:
    _check(language)
    return resources.files("radio_utils.world.openings").joinpath(f"{language}.jsonl").read_bytes()


def _check(language: str) -> None:
    if language not in LANGUAGES:
        raise ValueError(f"unknown language {language!r}; choose one of {', '.join(LANGUAGES)}")
