"""Files of texts: JSONL, Parquet and plain text, read a row at a time.

A row holds the text as token ids (``ids``) or as a string (``text``, with a tokenizer), and perhaps the prompt that it
answers (``prompt_ids``, in which −1 stands where something may be missing, or ``prompt``), or is of one of the shapes of
:mod:`radio_utils.evidence.forms`, which is that of the first row. Either every row of a file has a prompt or none has: a
text whose prompt was lost would be scored where it copies that prompt. An empty list or string says that a row has none,
null that its prompt is not known. A column that looks like a prompt and is not read is an error too
(:mod:`radio_utils.evidence.columns`). A row that is not so is an error that names the file and the row. In plain text
(``.txt``) blank lines stand between texts, and no text has a prompt; a text is named by its first line's number.

Files are UTF-8 and JSON is strict where it matters: a name that stands twice in an object, half of a character, or NaN in
place of a text is an error, and so is a carriage return without a line feed. None of them is mended, because nobody can say
what was meant.
"""

from __future__ import annotations

import codecs
import gzip
import importlib
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from radio_utils.evidence.checks import GAP
from radio_utils.evidence.columns import is_prompt, may_be_prompt
from radio_utils.evidence.forms import FORMS, OWN_PROMPT, OWN_TEXT, Form, FormError, as_text, form_of

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".txt")
# what files of data are called; a string that ends so is a file's name, and no text
_NAMED = re.compile(
    r"\.(jsonl?|ndjson|parquet|pq|arrow|feather|csv|tsv|txt|npy|npz|pkl|zip|tar|gz|zst|bz2|xz)(\.(gz|zst|bz2|xz|zip|tar))?$",
    re.IGNORECASE,
)
_WHOLE = ("messages", "conversations")  # columns that hold a prompt and its answers
_LONGEST_LINE = 1 << 28  # bytes: a longer line is no text but a damaged file, and must not fill the memory


class CorpusError(ValueError):
    """A file of texts that cannot be read; the message names file, row and remedy."""


def is_path(value: object) -> bool:
    """Whether this names a file: a ``Path``, or a string that ends like the name of one, of whatever kind."""
    return isinstance(value, Path) or (isinstance(value, str) and bool(_NAMED.search(value)))


@dataclass(frozen=True)
class CorpusFile:
    """One JSONL (plain or gzip), Parquet or plain text file of texts."""

    path: Path
    tokenizer: Any = None
    last_turn: bool = False  # of a chat, read the assistant's last turn only: others may have another author

    def texts(self) -> Iterator[Any]:
        """Token ids of each row's text, in order."""
        first = None
        for number, row in self._rows(OWN_TEXT if self._prompted else OWN_TEXT + OWN_PROMPT):
            first = number if first is None else first
            if not self._prompted and any(row.get(name) is not None for name in OWN_PROMPT):
                raise CorpusError(
                    f"{self.path}, row {first}: no prompt, but row {number} has one; give every row one, an empty one "
                    "where there is none"
                )
            yield self._ids(row, number, *OWN_TEXT)

    def prompts(self) -> Iterator[Any] | None:
        """Token ids of each row's prompt, or None for a file of texts without prompts."""
        if not self._prompted:
            return None
        return (self._ids(row, number, *OWN_PROMPT) for number, row in self._rows(OWN_PROMPT))

    @property
    def columns(self) -> str:
        """Which columns were read, in words; to be asked after reading."""
        if self._kind == ".txt":
            return "text: the paragraphs"
        if self._form is not None:
            return self._form.words(self._there)
        text, prompt = (" or ".join(name for name in own if name in self._used) for own in (OWN_TEXT, OWN_PROMPT))
        return f"text: {text}" + (f"; prompt: {prompt}" if prompt else "")

    @property
    def unread(self) -> list[str]:
        """The columns that are there and are not read; to be asked after reading."""
        names = self._names if self._kind == ".parquet" else self._there
        return [name for name in names if name not in self._read]

    @property
    def _read(self) -> tuple[str, ...]:
        return OWN_TEXT + OWN_PROMPT if self._form is None else self._form.columns

    @cached_property
    def _there(self) -> dict[str, None]:
        """The columns that held something in a row so far."""
        return {}

    @cached_property
    def _used(self) -> set[str]:
        """Our own columns that something was taken from so far."""
        return set()

    @cached_property
    def _prompted(self) -> bool:
        """Whether the rows must have prompts: the first one has."""
        if self._kind == ".parquet" and self._form is None and not set(OWN_PROMPT) & set(self._names):
            return False
        first = next(self._rows(OWN_PROMPT), None)
        return first is not None and any(first[1].get(name) is not None for name in OWN_PROMPT)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """The columns: of a Parquet file those of its schema, else those of the first row."""
        if self._kind == ".parquet":
            with self._opened_parquet() as file:
                names = file.schema_arrow.names
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise CorpusError(
                    f"{self.path}: two columns are named {twice!r}, and which is meant cannot be told; delete one"
                )
            return tuple(names)
        return tuple(next(self._jsonl(), (0, {}))[1])

    @cached_property
    def _form(self) -> Form | None:
        """The shape of the rows, None for our own."""
        try:
            return form_of(self._names)
        except FormError as error:
            raise CorpusError(f"{self.path} has columns {error}") from error

    @property
    def _kind(self) -> str:
        """The ending that says how the file is read. Raises :class:`CorpusError` for a file that is not."""
        if self.path.is_dir():
            raise CorpusError(f"{self.path} is a folder; give a list of the files in it")
        kind = next((one for one in ENDINGS if self.path.name.lower().endswith(one)), "")
        if not kind:
            raise CorpusError(
                f"{self.path}: unknown kind of file; it must end in {', '.join(ENDINGS)}: write it as JSON lines, one "
                'object such as {"text": "…"} or {"ids": […]} a line'
            )
        if not self.path.is_file():
            raise CorpusError(f"{self.path} does not exist; give a file that ends in {', '.join(ENDINGS)}")
        return kind

    def blame(self, error: ValueError, check: Callable[[str, Any, bool], object]) -> CorpusError:
        """The error that names the row at which ``check`` fails, after ``error`` was raised by all of them together.

        ``check(name, ids, is_prompt)`` raises ``ValueError`` for ids that cannot be used. Rows are checked one by one only
        here, when something is known to be wrong.
        """
        for columns in (OWN_TEXT, *([OWN_PROMPT] if self._prompted else [])):
            for number, row in self._rows(columns):
                ids = self._ids(row, number, *columns)
                try:
                    check(f"{self.path}, row {number}: {columns[0]}", ids, columns is OWN_PROMPT)
                except ValueError as found:
                    return CorpusError(str(found))
        return CorpusError(f"{self.path}: {error}")

    def _ids(self, row: dict[str, Any], number: int, ids: str, text: str) -> Any:
        found = row.get(ids)
        if found is not None and not (isinstance(found, float) and math.isnan(found)):
            self._used.add(ids)
            return found
        ids_or_text = (ids, found) if found is not None else (text, row.get(text))
        found = ids_or_text[1]
        self._used.add(text)
        if isinstance(found, tuple):
            return self._joined(found, number)
        if found is None:
            remedy = "every row needs one of them"
            if ids == OWN_PROMPT[0]:
                remedy = "other rows have a prompt; give an empty one where there is none"
            elif row.keys() - {*OWN_TEXT, *OWN_PROMPT}:
                shapes = ", ".join(f"{form.name} ({', '.join(form.columns)})" for form in FORMS)
                remedy += f", or all rows the columns of {shapes}"
            raise CorpusError(f"{self.path}, row {number}: neither {ids!r} nor {text!r}; {remedy}")
        try:
            found = as_text(*ids_or_text)
        except FormError as error:
            raise CorpusError(f"{self.path}, row {number}: {error}") from error
        if not found and text == OWN_PROMPT[1]:
            return []
        if self.tokenizer is None:
            raise CorpusError(f"{self.path}, row {number}: {text!r} is text; give tokenizer=, or write {ids!r} instead")
        return self.tokenizer(found, add_special_tokens=False)["input_ids"]

    def _joined(self, pieces: tuple[str, ...], number: int) -> list[int]:
        """A prompt in several pieces, each cut into tokens by itself, with line breaks, and gaps, between them."""
        found: list[int] = []
        for piece in pieces:
            for words in ("\n", piece) if found and piece else (piece,):
                if not words or (found and found[-1] != GAP):
                    found.append(GAP)
                found += self._ids({OWN_PROMPT[1]: words}, number, *OWN_PROMPT)
        return found

    def _rows(self, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows of our own shape, each with the number of that from which it was made."""
        if self._kind == ".txt":
            yield from self._blocks()
            return
        form = self._form
        for number, row in self._parquet(self._read if form else columns) if self._kind == ".parquet" else self._jsonl():
            self._there.update(dict.fromkeys(name for name, value in row.items() if value is not None))
            if form is None:
                self._check_read(number, row, row)
                yield number, row
                continue
            if lost := [name for name in form.needed if row.get(name) is None]:
                raise CorpusError(
                    f"{self.path}, row {number}: no {lost[0]!r}, which rows of this form ({form.name}) have; mend it"
                )
            try:
                made = list(form.rows(row))
                self._check_read(number, row, made[0])
                yield from ((number, one) for one in (made[-1:] if self.last_turn else made))
            except FormError as error:
                raise CorpusError(f"{self.path}, row {number}: {error}") from error

    def _check_read(self, number: int, row: dict[str, Any], made: dict[str, Any]) -> None:
        """Raise :class:`CorpusError` for a column like a prompt that is not in what was ``made`` of its row."""
        if all(made.get(name) is None for name in OWN_TEXT):
            return
        ids, prompt = (made.get(name) for name in OWN_PROMPT)
        # ids are what was drawn, and the whole prompt in another shape is nothing new
        read = (*self._read, *_WHOLE) if isinstance(ids, list | np.ndarray) and len(ids) else self._read
        known = prompt if isinstance(prompt, tuple) else [prompt] if isinstance(prompt, str) else []
        for name, value in row.items():
            if name not in read and is_prompt(name, value, known):
                where = " or ".join(map(repr, OWN_PROMPT[1:] if self._form is None else self._form.prompts or self._read))
                raise CorpusError(
                    f"{self.path}, row {number}: {name!r} looks like a prompt, and rows of this form are read without it; "
                    f"put it into {where}, or, if the text's author did not see it, delete or rename the column"
                )

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Numbers, from 1, and texts of the lines."""
        read: Any = gzip.open if self._kind.endswith(".gz") else open
        with read(self.path, "rb") as file:
            number = 0
            while True:
                try:
                    line: bytes = file.readline(_LONGEST_LINE)
                except (OSError, EOFError, zlib.error) as error:
                    raise CorpusError(
                        f"{self.path}, row {number + 1}: the file is damaged or cut short ({error}); get it again"
                    ) from error
                if not line:
                    return
                number += 1
                line = line.removeprefix(codecs.BOM_UTF8)  # in the middle too, where files were put together
                if len(line) >= _LONGEST_LINE:
                    raise CorpusError(f"{self.path}, row {number}: over {_LONGEST_LINE:,} bytes; split the text")
                if b"\0" in line:  # as UTF-8 it would be read, and be something else
                    raise CorpusError(
                        f"{self.path}, row {number}: holds zero bytes, as UTF-16 does; write the file as UTF-8"
                    )
                if b"\r" in line.rstrip(b"\r\n"):  # nobody can say whether it ends a line
                    raise CorpusError(
                        f"{self.path}, row {number}: holds a carriage return that no line feed follows; end lines "
                        "with line feeds, and write one within a text of JSON as \\r"
                    )
                try:
                    yield number, line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise CorpusError(f"{self.path}, row {number}: not UTF-8 ({error}); write the file as UTF-8") from error

    def _jsonl(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in self._lines():
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_once)
            except FormError as error:
                raise CorpusError(f"{self.path}, row {number}: {error}") from error
            except (ValueError, RecursionError) as error:
                raise CorpusError(
                    f"{self.path}, row {number}: not JSON ({error}); each line is one object: mend or delete that line"
                ) from error
            if not isinstance(row, dict):
                raise CorpusError(f"{self.path}, row {number}: a row must be a JSON object, got {type(row).__name__}")
            yield number, row

    def _blocks(self) -> Iterator[tuple[int, dict[str, Any]]]:
        first, block, size = 0, list[str](), 0
        for number, line in self._lines():
            if line.strip():
                first = first or number
                block.append(line)
                size += len(line)
                if size >= _LONGEST_LINE:
                    raise CorpusError(f"{self.path}, row {first}: over {_LONGEST_LINE:,} characters; split the text")
            elif block:
                yield first, {"text": "".join(block).rstrip("\r\n")}
                first, block, size = 0, [], 0
        if block:
            yield first, {"text": "".join(block).rstrip("\r\n")}

    def _opened_parquet(self) -> Any:
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise CorpusError(
                f"{self.path}: reading Parquet needs pyarrow: pip install 'radio-utils[parquet]', or write JSONL"
            ) from error
        try:
            return parquet.ParquetFile(self.path)
        except Exception as error:  # pyarrow's errors have no common base that is public
            raise CorpusError(f"{self.path} is no Parquet file: {error}") from error

    def _parquet(self, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._opened_parquet() as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            if not present:
                wanted = " or ".join(map(repr, columns))
                raise CorpusError(f"{self.path}: no column {wanted}; it has {file.schema_arrow.names}")
            if asking := [name for name in self.unread if may_be_prompt(name)]:  # they are compared with what is read
                others = [name for name in OWN_PROMPT if name in file.schema_arrow.names]
                present = list(dict.fromkeys(present + others + asking))
            number, batches = 0, file.iter_batches(batch_size=1024, columns=present)
            while True:
                try:
                    batch = next(batches, None)
                except Exception as error:  # a damaged page is found only when it is reached
                    raise CorpusError(f"{self.path}, row {number + 1} or later: cannot be read ({error})") from error
                if batch is None:
                    return
                arrays = {name: batch.column(name) for name in present}
                for i in range(batch.num_rows):
                    number += 1
                    row = {}
                    for name, values in arrays.items():
                        one = values[i]
                        # lists of numbers: ids, which need no Python objects; a struct's values are a method
                        inner = getattr(getattr(one, "values", None), "type", None)
                        flat = one.is_valid and inner is not None and _numbers(inner)
                        try:
                            row[name] = one.values.to_numpy(zero_copy_only=False) if flat else one.as_py()
                        except ValueError as error:
                            raise CorpusError(
                                f"{self.path}, row {number}: {name!r} cannot be read ({error}); write the file as UTF-8"
                            ) from error
                    yield number, row


def _numbers(kind: Any) -> bool:
    """Whether a type of Arrow's is one of numbers."""
    types = importlib.import_module("pyarrow.types")
    return bool(types.is_integer(kind) or types.is_floating(kind))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises :class:`FormError` for a name that stands twice in it."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise FormError(f"{twice!r} stands twice in it, and which is meant cannot be told; delete one")
    return found
