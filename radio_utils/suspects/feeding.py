"""How a model is fed: with the tokens that its tokenizer sets before a text, and prompts in its chat template.

A model that learned with a beginning-of-text token, or that answers within a template, is another one without them: what it
knows shows faintly. So it is fed as its own tokenizer says. Nothing here looks at a key, and what stands before a text
depends on its prompt alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radio_utils import evidence as ev
from radio_utils.suspects.errors import first_line

Ids = NDArray[np.int64]

_TRIED = 512  # tokens of which one should be text: bytes come first in many vocabularies
_MARK = "\N{BLACK SQUARE}\N{BLACK SQUARE}"  # stands for a prompt, to see what a template sets around it


class TemplateError(ValueError):
    """A chat template that cannot be used."""


def opening(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer sets before a text by itself, as a beginning-of-text token."""
    if not hasattr(tokenizer, "all_special_ids"):  # any function from texts to ids may stand for a tokenizer
        return []
    text = next((one for one in ("a", *_words_of(tokenizer)) if _known(tokenizer, one)), "a")
    whole = list(tokenizer([text])["input_ids"][0])
    plain = list(tokenizer([text], add_special_tokens=False)["input_ids"][0])
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []


def _words_of(tokenizer: Any) -> Iterator[str]:
    """What some of its tokens are in text, for a tokenizer that does not know the letter a."""
    special = set(tokenizer.all_special_ids)
    for number in islice((one for one in sorted(tokenizer.get_vocab().values()) if one not in special), _TRIED):
        yield tokenizer.decode([number]).strip()


def _known(tokenizer: Any, text: str) -> bool:
    """Whether a tokenizer makes tokens of a text; one without a token for what is unknown drops it, or raises."""
    try:
        return bool(tokenizer([text], add_special_tokens=False)["input_ids"][0])
    except Exception:  # the library below has an error of no class of its own
        return False


@dataclass(frozen=True)
class Feeding:
    """How texts and prompts are given to a model with this tokenizer.

    ``before`` are the tokens that stand before every text. ``template`` is the Jinja source of the chat template in which a
    prompt is the user's turn, None for prompts that stand bare.
    """

    tokenizer: Any
    before: tuple[int, ...] = ()
    template: str | None = None

    @classmethod
    def of(cls, tokenizer: Any, chat_template: str = "none") -> Feeding:
        """As the tokenizer says: ``chat_template`` is "auto" (its own, if it has one), "none", or a file of Jinja source.

        Raises :class:`TemplateError` for a file that cannot be read, or a template that cannot be filled in.
        """
        before = tuple(opening(tokenizer))
        if chat_template == "none":
            return cls(tokenizer, before)
        if chat_template == "auto":
            try:
                template = tokenizer.get_chat_template() if getattr(tokenizer, "chat_template", None) else None
            except ValueError as error:
                raise TemplateError(f"the chat template to take is not clear ({error}); give a file, or 'none'") from error
        else:
            try:
                template = Path(chat_template).expanduser().read_text("utf-8")
            except (OSError, UnicodeError) as error:
                raise TemplateError(
                    f"chat_template={chat_template!r} cannot be read ({error}); give 'auto', 'none' or a Jinja file"
                ) from error
        found = cls(tokenizer, before, template)
        if template is not None and _MARK not in found._rendered(_MARK):
            raise TemplateError("the chat template does not show the prompt; give another file, or chat_template 'none'")
        return found

    def prompt(self, ids: Ids, text: str | None = None) -> Ids:
        """What is fed where a prompt stands before a text: int64 [n]. ``text`` is the prompt, if ``ids`` are not its own.

        A prompt that is written in the template already is left as it is, and so is an empty one. Gaps are left out.
        """
        ids = ev.without_gaps(ids)
        bare = np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], np.int64) if text is not None else ids
        special = set(getattr(self.tokenizer, "all_special_ids", ()))
        if self.template is None or set(ids.tolist()) <= special:  # an opening token alone is no turn of a chat
            return self.text(bare)
        if text is None:
            text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if self._in_template(bare, text):
            return self.text(bare)
        return np.array(self.tokenizer(self._rendered(text), add_special_tokens=False)["input_ids"], np.int64)

    def text(self, ids: Ids) -> Ids:
        """Tokens with those that the tokenizer sets before a text, unless they are there."""
        if not self.before or tuple(ids[: len(self.before)].tolist()) == self.before:
            return ids
        return np.concatenate([np.array(self.before, np.int64), ids])

    def without_template(self) -> Feeding:
        """The same, with prompts that stand bare."""
        return replace(self, template=None)

    @property
    def digest(self) -> str:
        """SHA-256 of what is set before texts and around prompts."""
        return hashlib.sha256(json.dumps([self.before, self.template]).encode()).hexdigest()

    @property
    def bare(self) -> bool:
        """Whether nothing is added to what is given."""
        return not self.before and self.template is None

    @property
    def words(self) -> str:
        """One sentence for a report."""
        tokens = " ".join(self.tokenizer.convert_ids_to_tokens(list(self.before)))
        first = f"behind {tokens}, as its tokenizer sets it" if self.before else "as they are"
        if self.template is None:
            return f"Texts are fed {first}; prompts stand bare, in no chat template."
        return f"Prompts are fed in the chat template, as the user's turn; texts without a prompt {first}."

    def _rendered(self, text: str) -> str:
        try:
            found: str = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], chat_template=self.template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # whatever a template of somebody else's raises
            raise TemplateError(
                f"the chat template cannot be filled in ({first_line(error)}); give another file, or chat_template 'none'"
            ) from error
        return found

    def _in_template(self, ids: Ids, text: str) -> bool:
        """Whether a prompt holds the template's own special tokens, or ends as the template does."""
        head, _, tail = self._rendered(_MARK).rpartition(_MARK)
        around = self.tokenizer(head, add_special_tokens=False)["input_ids"]
        around += self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        special = set(self.tokenizer.all_special_ids) | set(getattr(self.tokenizer, "added_tokens_decoder", {}))
        unknown = getattr(self.tokenizer, "unk_token_id", None)  # stands for any word, and is no sign of a template
        signs = (set(around) & special) - {*self.before, unknown}
        return bool(signs & set(ids.tolist())) or bool(tail.strip() and text.rstrip().endswith(tail.strip()))
