"""Token ids as they are given: one sequence, many; each error names the argument and the place."""

from __future__ import annotations

import array
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from radio_utils.watermarks import as_ids

Ids = NDArray[np.int64]
Dedup = Literal["window+token", "window"] | None
GAP = -1  # in a prompt: something may have stood here that is not known, as a chat's template between two turns
DEDUPS: tuple[Dedup, ...] = ("window+token", "window", None)


def checked_texts(name: str, texts: Any, vocab_size: int, *, shortest: int, first: int = 0) -> list[Ids]:
    """Token sequences as int arrays, or a ``ValueError`` that names the text at fault."""
    refuse_strings(name, texts)
    sequences = [
        checked_sequence(f"{name}[{i}]", text, vocab_size, shortest=shortest) for i, text in enumerate(texts, first)
    ]
    if not sequences and name == "texts":
        raise ValueError("texts is empty; there is nothing to score")
    return sequences


def checked_prompts(prompts: Any, vocab_size: int, *, shortest: int, first: int = 0) -> list[Ids]:
    """Prompts as int arrays, which may hold :data:`GAP`, or a ``ValueError``; ``shortest`` counts tokens."""
    refuse_strings("prompts", prompts)
    return [checked_prompt(f"prompts[{i}]", one, vocab_size, shortest=shortest) for i, one in enumerate(prompts, first)]


def checked_prompt(name: str, prompt: Any, vocab_size: int, *, shortest: int) -> Ids:
    """One prompt as an int array [n], which may hold :data:`GAP`, or a ``ValueError`` that begins with ``name``."""
    if not _has_gap(prompt):
        return checked_sequence(name, prompt, vocab_size, shortest=shortest)
    tokens = iter(checked_sequence(name, [one for one in prompt if one != GAP], vocab_size, shortest=shortest))
    return np.array([one if one == GAP else next(tokens) for one in prompt], np.int64)


def _has_gap(prompt: Any) -> bool:
    if isinstance(prompt, np.ndarray):
        return prompt.ndim == 1 and GAP in prompt
    with suppress(ValueError):  # a list of arrays, of which another function says that it is no prompt
        return isinstance(prompt, list | tuple) and GAP in prompt
    return False


def between_gaps(prompt: Ids) -> list[Ids]:
    """The pieces of a prompt, of which some may be empty; the first is what no gap precedes."""
    first, *others = np.split(prompt, np.flatnonzero(prompt == GAP))
    return [first, *(piece[1:] for piece in others)]


def long_pieces(contexts: Iterable[Ids], window: int) -> list[Ids]:
    """The pieces between gaps, of prompts or whole contexts, that hold a pair: those of more than ``window`` tokens."""
    return [piece for context in contexts for piece in between_gaps(context) if piece.size > window]


def without_gaps(prompt: Ids) -> Ids:
    """The tokens of a prompt: what a model is fed."""
    found: Ids = prompt[prompt != GAP]
    return found


def checked_sequence(name: str, text: Any, vocab_size: int, *, shortest: int) -> Ids:
    """One token sequence as an int array [n], or a ``ValueError`` that begins with ``name``."""
    sequence = as_sequence(name, text, vocab_size)
    if sequence.ndim != 1:
        raise ValueError(f"{name} must be a flat sequence of token ids, got shape {list(sequence.shape)}")
    if sequence.size < shortest:
        if shortest == 1:
            raise ValueError(f"{name} is empty; give it at least one token, or drop it")
        raise ValueError(too_short(name, sequence.size, shortest))
    return sequence


def joined_lists(texts: Any, shortest: int, vocab_size: int) -> tuple[Ids, NDArray[np.int64]] | None:
    """Lists of plain ints as one array, and their lengths; None where anything is not so, which the slow way will name."""
    if type(texts) is not list or not all(type(text) is list and len(text) >= shortest for text in texts):
        return None
    if not texts or any(type(text[0]) is not int for text in texts):
        return None
    together = array.array("q")
    try:
        for text in texts:
            together.fromlist(text)
        ids, sizes = as_ids("texts", np.frombuffer(together, np.int64), vocab_size), np.array(list(map(len, texts)))
        low = np.unique(np.searchsorted(np.cumsum(sizes), np.flatnonzero(ids <= 1), side="right"))
        return None if any(_holds_bool(texts[i]) for i in low) else (ids, sizes)
    except (TypeError, OverflowError, ValueError):
        return None


def refuse_strings(name: str, texts: Any) -> None:
    """Raise ``ValueError`` for a string where token ids are wanted."""
    if isinstance(texts, str | bytes):
        raise ValueError(f"{name} must be sequences of token ids, got a string; tokenise it first")


def as_sequence(name: str, text: Any, vocab_size: int) -> Ids:
    """One text as ids. A list of plain ints takes a short cut, twice as fast as numpy's own conversion."""
    ids: Ids | None = None
    if type(text) is list and text and type(text[0]) is int:
        with suppress(TypeError, OverflowError):  # something else is in the list: let the general way say what
            ids = as_ids(name, np.frombuffer(array.array("q", text), np.int64), vocab_size)
    if ids is None:
        ids = as_ids(name, text, vocab_size)
    if ids.size and ids.min() <= 1 and _holds_bool(text):  # both short cut and numpy read true as 1
        raise ValueError(f"{name} must hold integer token ids, got true or false among them; tokenise the text first")
    return ids


def _holds_bool(text: Any) -> bool:
    return isinstance(text, list | tuple) and not {bool, np.bool_}.isdisjoint(map(type, text))


def too_short(name: str, size: int, shortest: int) -> str:
    """What to say of a text that holds no pair."""
    needed = f"at least {shortest} are needed to fill a window and score one token"
    return f"{name} has {size} tokens; {needed}: drop such texts first"


def check_dedup(dedup: Dedup) -> None:
    """Raise ``ValueError`` unless ``dedup`` is one of :data:`DEDUPS`."""
    if dedup not in DEDUPS:
        raise ValueError(f"dedup must be one of {DEDUPS}, got {dedup!r}")
