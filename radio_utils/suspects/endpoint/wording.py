"""Token ids of a prompt as the text that a server is asked.

A server sets its own opening before a text, and a chat route its own template around a message. So a prompt that is written
in a chat template goes out whole, special tokens and all, to a route that continues texts, and as the bare message to one
that makes the template itself: the model then sees the same tokens either way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from radio_utils.suspects.feeding import opening

Ids = NDArray[np.int64]

_MARK = "\N{BLACK SQUARE}\N{BLACK SQUARE}"  # stands for a message, to see what the template sets around it


class Wording:
    """How prompts in a tokenizer's ids are worded for a route of ``kind`` "completions" or "chat"."""

    def __init__(self, tokenizer: Any, kind: str) -> None:
        self._tokenizer, self._chat, self._before = tokenizer, kind == "chat", opening(tokenizer)
        self._special = set(getattr(tokenizer, "all_special_ids", ()))
        self._edges = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
        self._signs = self._special - {getattr(tokenizer, "unk_token_id", None)}  # which stands for any word
        head, tail = _around(tokenizer) if self._chat else ("", "")
        self._head, self._tail = head.removeprefix(self._decoded(self._before)), tail

    def text(self, ids: Ids) -> str:
        """What is sent; empty for a prompt without text."""
        given = ids.tolist()
        if given[: len(self._before)] == self._before:
            given = given[len(self._before) :]
        if self._chat:
            whole, around = self._decoded(given), len(self._head) + len(self._tail)
            if around <= len(whole) and whole.startswith(self._head) and whole.endswith(self._tail) and around:
                return whole[len(self._head) : len(whole) - len(self._tail)]
        start, end = 0, len(given)
        while start < end and given[start] in self._edges:
            start += 1
        while start < end and given[end - 1] in self._edges:
            end -= 1
        if not self._chat and self._signs.intersection(given[start:end]):
            return self._decoded(given)
        return self._decoded([one for one in given[start:end] if one not in self._special])

    def _decoded(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def _around(tokenizer: Any) -> tuple[str, str]:
    """What a tokenizer's chat template sets before and after a user's message; nothing where it has none that shows it."""
    if not getattr(tokenizer, "chat_template", None):
        return "", ""
    try:
        said = [{"role": "user", "content": _MARK}]
        text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    except Exception:  # whatever a template of somebody else's raises; the server has its own
        return "", ""
    head, mark, tail = text.partition(_MARK)
    return (head, tail) if mark else ("", "")
