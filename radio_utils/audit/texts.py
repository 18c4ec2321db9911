"""The texts of an audit: files that a stranger wrote, read into token ids and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radio_utils import evidence as ev
from radio_utils.audit.errors import AuditError, blamed
from radio_utils.evidence.files import CorpusError, CorpusFile
from radio_utils.files import sha256_of

Ids = NDArray[np.int64]
_TELLING = 2  # tokens beyond a window by which one of the texts is known


@dataclass(frozen=True)
class Texts:
    """Texts under Alice's tokenizer, with their prompts if they have any.

    ``ids`` and ``prompts`` hold one array for each text of more than ``window`` tokens; ``short`` counts the others, and
    ``empty`` those among them without a token. Prompts may hold gaps (:data:`radio_utils.evidence.GAP`). ``sha256`` is that
    of the file, ``columns`` says which of its columns were read. ``from_strings`` says that tokens were made from strings,
    at least some: they may be others than those that were drawn. ``window`` is that of the mark.
    """

    name: str
    path: str
    sha256: str
    short: int
    ids: list[Ids] = field(repr=False)
    prompts: list[Ids] | None = field(repr=False)
    from_strings: bool = False
    columns: str = ""
    window: int = 1
    empty: int = 0

    @property
    def contexts(self) -> list[Ids]:
        """Each text behind its prompt: all that a model is fed, and gaps."""
        if self.prompts is None:
            return self.ids
        return [np.concatenate(both) for both in zip(self.prompts, self.ids, strict=True)]

    def some(self, chosen: Sequence[int]) -> Texts:
        """These of the texts, by their number."""
        prompts = None if self.prompts is None else [self.prompts[i] for i in chosen]
        return replace(self, ids=[self.ids[i] for i in chosen], prompts=prompts)

    def within(self, prompt: Ids) -> list[int]:
        """Where in a prompt one of the texts begins.

        Its first token may be cut otherwise there, so the next ones tell: as many as texts do not share by chance.
        """
        size = _TELLING + self.window
        return [at - 1 for at in range(1, prompt.size - size + 1) if prompt[at : at + size].tobytes() in self._openings]

    @cached_property
    def _openings(self) -> set[bytes]:
        size = _TELLING + self.window
        return {text[1 : 1 + size].tobytes() for text in self.ids if text.size > size}

    def parted(self, prompt: Ids) -> Ids:
        """A prompt with gaps where one of these texts begins in it, as in a chat in one string.

        What stands before it there is not what it was drawn after.
        """
        return np.insert(prompt, [at for at in self.within(prompt) if at and prompt[at - 1] != ev.GAP], ev.GAP)

    def with_gaps_before(self, others: Texts) -> Texts:
        """The same with prompts that are parted where one of the other texts begins."""
        return self if self.prompts is None else replace(self, prompts=[others.parted(prompt) for prompt in self.prompts])

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids and prompts: what a model is fed, which the file alone does not decide."""
        return digest_of(self.ids, self.prompts)

    @property
    def tokens(self) -> int:
        """Tokens of the texts, prompts not counted."""
        return sum(text.size for text in self.ids)

    def described(self) -> dict[str, Any]:
        """What a report says of them."""
        return {
            "file": self.path,
            "columns": self.columns,
            "sha256": self.sha256,
            "texts": len(self.ids),
            "tokens": self.tokens,
            "prompts": self.prompts is not None,
            "from_strings": self.from_strings,
            "too_short": self.short,
        }


def digest_of(texts: Sequence[Ids], prompts: Sequence[Ids] | None) -> str:
    """SHA-256 of texts and their prompts."""
    found = hashlib.sha256()
    found.update(b"alone" if prompts is None else b"prompted")
    for ids in [*texts, *(prompts or [])]:
        found.update(ids.size.to_bytes(8, "little"))
        found.update(ids.astype("<i8").tobytes())
    return found.hexdigest()


def rows_of(prompts: Sequence[Ids], texts: Sequence[Ids]) -> str:
    """Texts and their prompts as the rows of a file that can be read as such."""
    rows = ({"prompt_ids": prompt.tolist(), "ids": ids.tolist()} for prompt, ids in zip(prompts, texts, strict=True))
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_texts(name: str, path: str, tokenizer: Any, vocab_size: int, window: int, *, last_turn: bool = False) -> Texts:
    """Read a file of texts (:mod:`radio_utils.evidence.files`). ``name`` is the parameter's, for errors.

    ``last_turn`` leaves out all but the assistant's last turn of a chat: others need not be the suspect's.

    Raises :class:`AuditError` for a file that is missing, empty, damaged or not in one of these formats, with the row at
    fault, for token ids outside the vocabulary, and where no text is longer than the window.
    """
    cut = None if tokenizer is None else _Cutter(tokenizer)
    file = CorpusFile(_path(name, path), cut, last_turn)
    with blamed(name, CorpusError):
        texts, given = list(file.texts()), file.prompts()
        asked = None if given is None else list(given)
        if not texts:
            raise AuditError(f"{name}: {path} holds no text; give a file with at least one")
        checked = _checked(file, texts, vocab_size)
        of = None if asked is None else _checked(file, asked, vocab_size, prompts=True)
    long = [i for i, text in enumerate(checked) if text.size > window]
    if not long:
        raise AuditError(f"{name}: no text of {path} is longer than window={window} tokens; give longer texts")
    prompts = None if of is None or not any(of[i].size for i in long) else [of[i] for i in long]
    unread = "" if prompts is not None or not file.unread else f"; not read: {', '.join(file.unread)}"
    return Texts(
        name=name,
        path=path,
        sha256=sha256_of(file.path),
        short=len(checked) - len(long),
        ids=[checked[i] for i in long],
        prompts=prompts,
        from_strings=cut is not None and cut.used,
        columns=file.columns + unread,
        window=window,
        empty=sum(not text.size for text in checked),
    )


def _path(name: str, path: str) -> Path:
    """The file of that name. Raises :class:`AuditError` for a folder, and for a home that is nobody's."""
    try:
        found = Path(path).expanduser()
        folder = found.is_dir()
    except (OSError, RuntimeError) as error:
        raise AuditError(f"{name}: {path} cannot be looked at ({error}); give the path of one file") from error
    if folder:
        raise AuditError(f"{name}: {path} is a folder; give one file")
    return found


class _Cutter:
    """A tokenizer that notes whether it was used."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.used = tokenizer, False

    def __call__(self, text: str, **options: Any) -> Any:
        self.used = True
        return self._tokenizer(text, **options)


def _checked(file: CorpusFile, sequences: list[Any], vocab_size: int, *, prompts: bool = False) -> list[Ids]:
    def check(name: str, ids: Any, is_prompt: bool) -> Ids:
        return (ev.checked_prompt if is_prompt else ev.checked_sequence)(name, ids, vocab_size, shortest=0)

    try:
        return [check("ids", one, prompts) for one in sequences]
    except ValueError as error:
        raise file.blame(error, check) from error


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of all that decides how a tokenizer cuts a text, what it sets before it, and its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    rest = [getattr(tokenizer, "chat_template", None), getattr(tokenizer, "special_tokens_map", None)]
    whole += json.dumps(rest, sort_keys=True, default=str)
    return hashlib.sha256(whole.encode("utf-8")).hexdigest()
