"""What servers say, and what it means when they do not say what was asked for."""

from __future__ import annotations

import email.utils
import importlib
import json
import math
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from radio_utils.suspects.endpoint.errors import EndpointError
from radio_utils.suspects.endpoint.log import is_count

LONGEST_ANSWER = 1_000_000  # characters


class Failure(Exception):
    """An attempt that failed; ``final`` if others would fail as well. ``wait`` is what the server asks for, in seconds.

    ``of_prompt`` failures may be about the one prompt, ``refused`` is the setting that the server did not want.
    """

    def __init__(
        self,
        what: str,
        remedy: str,
        *,
        final: bool = True,
        status: int | None = None,
        wait: float | None = None,
        of_prompt: bool = False,
        refused: str = "",
        error: type[EndpointError] = EndpointError,
    ) -> None:
        super().__init__(what)
        self.what, self.remedy, self.final, self.status, self.wait, self.error = what, remedy, final, status, wait, error
        self.of_prompt, self.refused, self.garbled = of_prompt, refused, False


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


GARBAGE = "answers garbage"


def garbage(what: str) -> Failure:
    """The failure of a server that answers what the protocol does not know, perhaps to this prompt only."""
    remedy = "check that url is a server of OpenAI's protocol"
    found = Failure(f"{GARBAGE}: {what}", remedy, final=False, of_prompt=True)
    found.garbled = True
    return found


SETTINGS = ("top_p", "seed", "temperature", "max_tokens")  # in the order in which they are given up
_UNWANTED = re.compile(
    r"support|recogni[sz]|unknown|unexpected|permitted|allowed|forbid|extra|deprecat|both|only one|invalid|instead",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(r"context|too (long|large|many)|exceed", re.IGNORECASE)  # where max_tokens is named for its size


def refused_setting(said: str, body: Any) -> str:
    """The setting that a refusal names as such, empty if none; ``said`` is all of it, ``body`` its error object."""
    if _TOO_LONG.search(said):
        return ""
    named = body.get("param") if isinstance(body, dict) else None
    told = [named] if named in SETTINGS else []
    if _UNWANTED.search(said):
        told += [name for name in SETTINGS if re.search(rf"(?<!\w){name}(?!\w)", said)]
    if "max_completion_tokens" not in said:  # without a limit an answer could cost anything
        told = [name for name in told if name != "max_tokens"]
    return str(told[0]) if told else ""


def answer_in(said: Any, chat: bool, quoted: Callable[[str], str]) -> Answer:
    """The answer in what a route returned, or a :class:`Failure`; ``quoted`` is how words of it may be shown.

    A reply without text is an empty answer where it says why it ended, as a filter or a limit of tokens makes it.
    """
    shown = quoted(json.dumps(said))
    if not isinstance(said, dict) or not ("choices" in said or said.get("error")):
        raise garbage(f"no {_place(chat)} in {shown}")
    choices = said.get("choices")
    if said.get("error") and not choices:
        error = said["error"]
        of_server = isinstance(error, dict) and error.get("code") in (401, 402, 403, 404)
        what = f"answers an error, no {_place(chat)} in {shown}"
        raise Failure(what, _AGAIN, final=of_server, of_prompt=not of_server)
    if not isinstance(choices, list | None):
        raise garbage(f"no {_place(chat)} in {shown}")
    choice = choices[0] if choices else None
    holder = choice.get("message") if chat and isinstance(choice, dict) else choice
    if not isinstance(holder, dict | None):
        raise garbage(f"no {_place(chat)} in {shown}")
    text = None if holder is None else holder.get("content" if chat else "text")
    if chat and isinstance(text, list) and all(isinstance(part, dict) for part in text):  # in parts, of which some are text
        text = "".join(part["text"] for part in text if isinstance(part.get("text"), str))
    if text is None and isinstance(choice, dict) and choice.get("finish_reason"):
        text = ""
    if text is None:
        raise Failure(f"answers without text, no {_place(chat)} in {shown}", _AGAIN, final=False, of_prompt=True)
    if not isinstance(text, str):
        raise garbage(f"{_place(chat)} is {quoted(json.dumps(text))} and no string")
    if len(text) > LONGEST_ANSWER:
        raise garbage(f"an answer of {len(text):,} characters")
    usage = said.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, completion_tokens = (count if is_count(count) else None for count in counts)
    return Answer(storable(text), prompt_tokens, completion_tokens)


_AGAIN = "run this again once it works"


def _place(chat: bool) -> str:
    return "choices[0].message.content" if chat else "choices[0].text"


def models_in(said: Any) -> tuple[tuple[str, ...], bool]:
    """The ids that a list of models holds, and whether it is all of it."""
    # some servers send the bare list, some null where there is none
    listed = said.get("data", said) if isinstance(said, dict) else said
    listed = [] if listed is None else listed
    if not isinstance(listed, list) or not all(isinstance(one, dict) and isinstance(one.get("id"), str) for one in listed):
        raise garbage("JSON that is no list of models")
    return tuple(one["id"] for one in listed), not (isinstance(said, dict) and said.get("has_more"))


def is_listed(model: str, offered: Iterable[str]) -> bool:
    """Whether a list names a model: as it is, as Ollama and Gemini's servers list it, or by a proxy's wildcard."""
    names = {name.removeprefix("models/") for name in offered}
    asked = model.removeprefix("models/")
    return not {asked, f"{asked}:latest"}.isdisjoint(names) or any("*" in one and fnmatchcase(asked, one) for one in names)


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
