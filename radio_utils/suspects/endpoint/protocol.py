"""What servers say, and what it means when they do not say what was asked for."""

from __future__ import annotations

import email.utils
import importlib
import math
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from radio_utils.suspects.endpoint.errors import EndpointError


class Failure(Exception):
    """An attempt that failed; ``final`` if others would fail as well. ``wait`` is what the server asks for, in seconds."""

    def __init__(
        self,
        what: str,
        remedy: str,
        *,
        final: bool = True,
        status: int | None = None,
        wait: float | None = None,
        error: type[EndpointError] = EndpointError,
    ) -> None:
        super().__init__(what)
        self.what, self.remedy, self.final, self.status, self.wait, self.error = what, remedy, final, status, wait, error


class Stopped(Failure):
    """A request that was not sent because another failed."""

    def __init__(self) -> None:
        super().__init__("was not asked", "run this again")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server wrote, and the tokens that it says it counted."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


def garbage(what: str) -> Failure:
    """The failure of a server that answers what the protocol does not know."""
    return Failure(f"answers garbage: {what}", "check that url is a server of OpenAI's protocol", final=False)


def models_in(said: Any) -> tuple[tuple[str, ...], bool]:
    """The ids that a list of models holds, and whether it is all of it."""
    # some servers send the bare list, some null where there is none
    listed = said.get("data", said) if isinstance(said, dict) else said
    listed = [] if listed is None else listed
    if not isinstance(listed, list) or not all(isinstance(one, dict) and isinstance(one.get("id"), str) for one in listed):
        raise garbage("JSON that is no list of models")
    return tuple(one["id"] for one in listed), not (isinstance(said, dict) and said.get("has_more"))


def is_path(model: str) -> bool:
    """Whether a model's name is a folder of the server's, which no list holds."""
    return model.startswith((".", "/", "~")) or "\\" in model


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date. None if it asks for nothing that makes sense."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return seconds if 0 < seconds < math.inf else None


def storable(text: str) -> str:
    """Text that UTF-8 can hold: JSON may bring halves of characters, which no tokenizer reads."""
    return text.encode("utf-8", "replace").decode("utf-8")


def hidden(text: str, secrets: Iterable[str]) -> str:
    """Text without the secrets."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "[hidden]")
    return text


def transport_errors() -> tuple[type[Exception], ...]:
    """The errors of the library below openai, whose name depends on its version."""
    found: list[type[Exception]] = []
    for name in ("httpx2", "httpx"):
        with suppress(ImportError):
            found.append(importlib.import_module(name).HTTPError)
    return tuple(found)
