"""The shapes in which people keep texts and their prompts, as rows with ``text`` and ``prompt``.

Our own rows hold ``ids`` or ``text``, and perhaps ``prompt_ids`` or ``prompt``. Read as well are those of Alpaca (Taori et
al. 2023: ``instruction``, ``input``, ``output``), of ShareGPT (``conversations`` of turns with ``from`` and ``value``), of
OpenAI's chats (``messages`` of turns with ``role`` and ``content``) and of TRL (``prompt`` and ``completion``, strings or
lists of turns; or ``prompt_ids``). Each of the assistant's turns is one text, and all turns before it are its prompt.

Pieces of a prompt are kept apart. Between two turns Alice's model had a template that the rows do not hold, and between two
parts of one perhaps an image. So the first tokens of each were drawn after windows that nobody knows, whoever wrote them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

OWN_TEXT, OWN_PROMPT = ("ids", "text"), ("prompt_ids", "prompt")
_ASSISTANT = {"assistant", "gpt", "model", "bot", "chatgpt"}
_OTHERS = {"system", "developer", "user", "human", "tool", "function", "function_call", "observation", "ipython"}
_CALLS, _THOUGHTS = ("tool_calls", "function_call"), ("reasoning_content", "reasoning", "thinking")
_MEDIA = ("image", "audio", "video", "file")  # parts of turns without words
_NO_WORDS = {"role", "from", "type", "id", "tool_call_id", "tool_use_id", "index"}  # what only sorts words
_SIGNS = (("role", "content"), ("from", "value"))  # how a turn says who speaks, and what


class FormError(ValueError):
    """A row that is not of its form; the message names the column and the remedy."""


@dataclass(frozen=True)
class Form:
    """One shape of rows: it is that of a row with all ``needed`` columns; ``text`` says in words what the texts are.

    ``prompts`` are the columns that hold prompts, none for chats, in which what precedes a text is its prompt.
    """

    name: str
    needed: tuple[str, ...]
    prompts: tuple[str, ...]
    text: str
    rows: Callable[[dict[str, Any]], Iterator[dict[str, Any]]]

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        return tuple(dict.fromkeys(self.needed + self.prompts))

    def words(self, there: Collection[str]) -> str:
        """What is read of rows in which these columns are there."""
        before = ", ".join(name for name in self.prompts if name in there) if self.prompts else "what precedes"
        return f"text: {self.text}" + (f"; prompt: {before}" if before else "")


def form_of(columns: Collection[str]) -> Form | None:
    """The form of rows with these columns, None for our own. Raises :class:`FormError` where two would do.

    Ids are what was drawn, so nothing stands in for them; which of two strings is the text, a person must say.
    """
    if "ids" in columns:
        return None
    found = [form for form in FORMS if all(name in columns for name in form.needed)]
    given = [f"{'text'!r}"] if "text" in columns else []
    given += [" and ".join(map(repr, form.needed)) for form in found]
    if len(given) > 1:
        raise FormError(f"{' beside '.join(given)}: which of them is the text cannot be told; delete one")
    return found[0] if found else None


def as_text(name: str, value: Any) -> str:
    """A string that a tokenizer can read. Raises :class:`FormError` for anything else."""
    if isinstance(value, float) and math.isnan(value):
        raise FormError(f"{name!r} is NaN, which is how tables say that nothing is there; write null or a string")
    if not isinstance(value, str):
        raise FormError(f"{name!r} must be a string, got {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise FormError(
            f"{name!r} holds {half} at character {error.start}, half of a character, which is no text; write the whole one"
        ) from error
    return value


def _alpaca(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    parts = [as_text("instruction", row["instruction"])]
    if row.get("input") is not None:
        parts.append(as_text("input", row["input"]))
    yield {"prompt": tuple(part for part in parts if part), "text": as_text("output", row["output"])}


def _completion(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    prompt, completion, ids = row.get("prompt"), row["completion"], row.get("prompt_ids")
    if isinstance(completion, str) and (ids is not None or isinstance(prompt, str | None)):
        yield {"prompt_ids": ids, "prompt": prompt, "text": as_text("completion", completion)}
        return
    after = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
    if ids is None:
        turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        before = list(_turns("prompt", turns))
        yield from _answers("completion", before, _turns("completion", after))
        return
    first, *others = _answers("completion", [], _turns("completion", after))
    if first["prompt"] or others:
        raise FormError("'completion' has several pieces beside 'prompt_ids'; give all but the last in 'prompt_ids'")
    yield {"prompt_ids": ids, "text": first["text"]}


def _chat(name: str) -> Callable[[dict[str, Any]], Iterator[dict[str, Any]]]:
    return lambda row: _answers(name, [], _turns(name, row[name]))


@dataclass(frozen=True)
class _Piece:
    """Words that were written in one go; ``text``: by the assistant, ``opens``: nothing of its turn stood before."""

    words: str
    text: bool
    opens: bool


def _turns(name: str, turns: Any) -> Iterator[_Piece]:
    """What is said in turn."""
    if not isinstance(turns, list):
        raise FormError(f"{name!r} must be a list of turns, got {type(turns).__name__}")
    for number, turn in enumerate(turns):
        where = f"{name}[{number}]"
        if isinstance(turn, dict) and "role" in turn and not turn.keys().isdisjoint(_CALLS):
            turn = {"content": None, **turn}  # a turn that only calls a tool may leave its content out
        signs = [(who, what) for who, what in _SIGNS if isinstance(turn, dict) and who in turn and what in turn]
        if not signs:
            raise FormError(f"{where!r} must be an object with 'role' and 'content', or 'from' and 'value'")
        who, what = signs[0]
        speaker, said = turn[who], turn[what]
        if not isinstance(speaker, str) or speaker.lower() not in _ASSISTANT | _OTHERS:
            raise FormError(f"{where!r}: {who} is {speaker!r}, and it must be one such as 'user' or 'assistant'")
        for number, (words, is_said) in enumerate(_pieces(f"{where}.{what}", turn, said)):
            yield _Piece(words, is_said and speaker.lower() in _ASSISTANT, not number)


def _pieces(where: str, turn: dict[str, Any], said: Any) -> Iterator[tuple[str, bool]]:
    """The pieces of one turn, in order, and whether each is what was said: no thought, no call of a tool, no image."""
    for name in _THOUGHTS:
        yield from ((as_text(where, words), False) for words in strings_in(turn.get(name)))
    for part in said if isinstance(said, list) else [said]:
        if isinstance(part, dict) and part.get("text") is None:
            yield from ((as_text(where, words), False) for words in ["", *strings_in(part)])
        elif part is not None:
            yield as_text(where, part["text"] if isinstance(part, dict) else part), True
    for name in _CALLS:
        yield from ((as_text(where, words), False) for words in strings_in(turn.get(name)))


def strings_in(value: Any) -> Iterator[str]:
    """The words in what is nested, as the call of a tool is; none of an image or another file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from strings_in(one)
    elif isinstance(value, dict) and not any(kind in str(value.get("type")) for kind in _MEDIA):
        for name, one in value.items():
            if name not in _NO_WORDS:
                yield from strings_in(one)


def _answers(name: str, before: list[_Piece], turns: Iterator[_Piece]) -> Iterator[dict[str, Any]]:
    said, of_assistant, count = [piece.words for piece in before], False, 0
    for piece in turns:
        if piece.text and piece.words:
            count += 1
            # an empty piece at the end: something stands between the prompt and the text, which is no whole answer
            cut = [] if piece.opens and not of_assistant else [""]
            yield {"prompt": (*filter(None, said), *cut), "text": piece.words}
        said.append(piece.words)
        of_assistant = piece.text and bool(piece.words)
    if not count:
        raise FormError(f"{name!r} holds no turn of the assistant, so there is no text; delete the row")


FORMS = (
    Form("Alpaca", ("instruction", "output"), ("instruction", "input"), "output", _alpaca),
    Form("ShareGPT", ("conversations",), (), "assistant's turns in conversations", _chat("conversations")),
    Form("chat", ("messages",), (), "assistant's turns in messages", _chat("messages")),
    Form("TRL", ("completion",), OWN_PROMPT, "completion", _completion),
)
