"""Columns that look like a prompt. None is left unread: an answer that copies a marked prompt which nobody sees convicts.

What a column holds counts beside its name, so that numbers, identifiers and settings are nobody's business.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from radio_utils.evidence.forms import strings_in

_ASKS = ("prompt", "instruction", "question", "query", "input")  # whatever words they hold
_MAY_ASK = (
    "context", "system", "history", "conversation", "dialogue", "dialog", "message", "chat", "turn", "request", "problem",
    "article", "document", "passage", "human", "user",
)  # fmt: skip
_OTHERS = {"content", "contents", "contest", "story"}  # spelt like some of these
_ABOUT = {
    "category", "count", "date", "domain", "format", "hash", "id", "index", "label", "lang", "language", "length", "model",
    "name", "role", "score", "source", "style", "time", "timestamp", "topic", "type", "url", "version",
}  # fmt: skip
_FEW = 3  # words that a setting may have


def is_prompt(name: str, value: Any, known: Iterable[str] = ()) -> bool:
    """Whether a column holds words, or token ids, that may be a prompt, and others than the ``known`` prompts hold."""
    kind = _kind(name)
    if not kind or value is None:
        return False
    words = list(strings_in(value))
    if not words:
        return isinstance(value, list | np.ndarray) and len(value) > 0 and not isinstance(value[0], float | np.floating)
    text, known = " ".join(words), tuple(known)
    if not text.strip() or (kind == "may ask" and text.isascii() and len(text.split()) <= _FEW):
        return False
    return not all(any(one.strip() in prompt for prompt in known) for one in words)


def may_be_prompt(name: str) -> bool:
    """Whether a column of this name may be a prompt."""
    return bool(_kind(name))


@cache
def _kind(name: str) -> str:
    """What a name says: "asks", "may ask", or nothing; in any case, number and spelling, and with slips of the pen."""
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).casefold())
    if not words or words[-1] in _ABOUT:
        return ""
    near = {found for word in words if word not in _OTHERS for found in _near(word)}
    if near & {*_ASKS}:
        return "asks"
    return "may ask" if near or any(one in "".join(words) for one in _ASKS) else ""


def _near(word: str) -> list[str]:
    least = 0.8 if len(word) > 4 else 1.0
    return difflib.get_close_matches(re.sub("ies$", "y", word).removesuffix("s"), _ASKS + _MAY_ASK, 1, least)
