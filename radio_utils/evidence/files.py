"""Files of texts: JSONL, Parquet and plain text, read a row at a time.

A row holds the text as token ids (``ids``) or as a string (``text``, with a tokenizer), and perhaps the prompt that it
answers (``prompt_ids`` or ``prompt``). Either every row of a file has a prompt or none has: a text whose prompt was lost
would be scored where it copies that prompt. An empty list or string says that a row has none. A row that is not so is an
error that names the file and the row. In plain text (``.txt``) blank lines stand between texts, and no text has a prompt; a
text is named by its first line's number.
"""

from __future__ import annotations

import codecs
import gzip
import importlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".txt")
_TEXT, _PROMPT = ("ids", "text"), ("prompt_ids", "prompt")
_LONGEST_LINE = 1 << 28  # bytes: a longer line is no text but a damaged file, and must not fill the memory


class CorpusError(ValueError):
    """A file of texts that cannot be read; the message names file, row and remedy."""


def is_path(value: object) -> bool:
    """Whether this names a file of texts: a ``Path``, or a string that ends like one."""
    return isinstance(value, Path) or (isinstance(value, str) and value.endswith(ENDINGS))


@dataclass(frozen=True)
class CorpusFile:
    """One JSONL (plain or gzip), Parquet or plain text file of texts."""

    path: Path
    tokenizer: Any = None

    def texts(self) -> Iterator[Any]:
        """Token ids of each row's text, in order."""
        first = None
        for number, row in self._rows(_TEXT):
            first = number if first is None else first
            # a Parquet row holds the wanted columns only, but there the schema has told already
            if not self._prompted and any(row.get(name) is not None for name in _PROMPT):
                raise CorpusError(
                    f"{self.path}, row {first}: no prompt, but row {number} has one; give every row one, an empty one "
                    "where there is none"
                )
            yield self._ids(row, number, *_TEXT)

    def prompts(self) -> Iterator[Any] | None:
        """Token ids of each row's prompt, or None for a file of texts without prompts."""
        if not self._prompted:
            return None
        return (self._ids(row, number, *_PROMPT) for number, row in self._rows(_PROMPT))

    @cached_property
    def _prompted(self) -> bool:
        """Whether the rows must have prompts: a Parquet file's columns say so, or the first row of a JSONL file."""
        if self.path.suffix == ".parquet" and self.path.is_file():
            with self._opened_parquet() as file:
                return any(name in file.schema_arrow.names for name in _PROMPT)
        first = next(self._rows(_PROMPT), None)
        return first is not None and any(first[1].get(name) is not None for name in _PROMPT)

    def blame(self, error: ValueError, check: Callable[[str, Any, bool], object]) -> CorpusError:
        """The error that names the row at which ``check`` fails, after ``error`` was raised by all of them together.

        ``check(name, ids, is_prompt)`` raises ``ValueError`` for ids that cannot be used. Rows are checked one by one only
        here, when something is known to be wrong.
        """
        for columns in (_TEXT, *([_PROMPT] if self._prompted else [])):
            for number, row in self._rows(columns):
                ids = self._ids(row, number, *columns)
                try:
                    check(f"{self.path}, row {number}: {columns[0]}", ids, columns is _PROMPT)
                except ValueError as found:
                    return CorpusError(str(found))
        return CorpusError(f"{self.path}: {error}")

    def _ids(self, row: dict[str, Any], number: int, ids: str, text: str) -> Any:
        if row.get(ids) is not None:
            return row[ids]
        found = row.get(text)
        if found is None:
            remedy = "every row needs one of them"
            if ids == _PROMPT[0]:
                remedy = "other rows have a prompt; give an empty one where there is none"
            raise CorpusError(f"{self.path}, row {number}: neither {ids!r} nor {text!r}; {remedy}")
        if not isinstance(found, str):
            raise CorpusError(f"{self.path}, row {number}: {text!r} must be a string, got {type(found).__name__}")
        if not found and text == _PROMPT[1]:
            return []
        if self.tokenizer is None:
            raise CorpusError(f"{self.path}, row {number}: {text!r} is text; give tokenizer=, or write {ids!r} instead")
        return self.tokenizer(found, add_special_tokens=False)["input_ids"]

    def _rows(self, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
        if self.path.is_dir():
            raise CorpusError(f"{self.path} is a folder; give a list of the files in it")
        if not self.path.is_file():
            raise CorpusError(f"{self.path} does not exist; give a file that ends in {', '.join(ENDINGS)}")
        if self.path.suffix == ".parquet":
            return self._parquet(columns)
        if self.path.suffix == ".txt":
            return self._blocks()
        if self.path.name.endswith(ENDINGS):
            return self._jsonl()
        raise CorpusError(f"{self.path}: unknown kind of file; it must end in {', '.join(ENDINGS)}")

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Numbers, from 1, and texts of the lines."""
        read: Any = gzip.open if self.path.suffix == ".gz" else open
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
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if len(line) >= _LONGEST_LINE:
                    raise CorpusError(f"{self.path}, row {number}: over {_LONGEST_LINE:,} bytes; split the text")
                try:
                    yield number, line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise CorpusError(f"{self.path}, row {number}: not UTF-8 ({error}); write the file as UTF-8") from error

    def _jsonl(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in self._lines():
            if not line.strip():
                continue
            try:
                row = json.loads(line)
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
            raise CorpusError(f"{self.path}: reading Parquet needs pyarrow; pip install pyarrow, or write JSONL") from error
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
                        lists = one.is_valid and hasattr(one, "values")
                        row[name] = one.values.to_numpy(zero_copy_only=False) if lists else one.as_py()
                    yield number, row
