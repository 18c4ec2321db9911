"""Files of texts: JSONL and Parquet, read a row at a time.

A row holds the text as token ids (``ids``) or as a string (``text``, with a tokenizer), and perhaps the prompt that it
answers (``prompt_ids`` or ``prompt``). A row that is not so is an error that names the file and the row.
"""

from __future__ import annotations

import gzip
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
_LONGEST_LINE = 1 << 28  # characters: a longer line is no text but a damaged file, and must not fill the memory


class CorpusError(ValueError):
    """A file of texts that cannot be read; the message names file, row and remedy."""


def is_path(value: object) -> bool:
    """Whether this names a file of texts: a ``Path``, or a string that ends like one."""
    return isinstance(value, Path) or (isinstance(value, str) and value.endswith(ENDINGS))


@dataclass(frozen=True)
class CorpusFile:
    """One JSONL (plain or gzip) or Parquet file of texts."""

    path: Path
    tokenizer: Any = None

    def texts(self) -> Iterator[Any]:
        """Token ids of each row's text, in order."""
        return (self._ids(row, number, "ids", "text") for number, row in self._rows(("ids", "text")))

    def prompts(self) -> Iterator[Any] | None:
        """Token ids of each row's prompt, or None where the first row has none."""
        first = next(self._rows(("prompt_ids", "prompt")), None)
        if first is None or not any(first[1].get(name) is not None for name in ("prompt_ids", "prompt")):
            return None
        return (self._ids(row, number, "prompt_ids", "prompt") for number, row in self._rows(("prompt_ids", "prompt")))

    def _ids(self, row: dict[str, Any], number: int, ids: str, text: str) -> Any:
        if row.get(ids) is not None:
            return row[ids]
        if row.get(text) is None:
            raise CorpusError(f"{self.path}, row {number}: neither {ids!r} nor {text!r}; every row needs one of them")
        if self.tokenizer is None:
            raise CorpusError(f"{self.path}, row {number}: {text!r} is text; give tokenizer=, or write {ids!r} instead")
        return self.tokenizer(row[text], add_special_tokens=False)["input_ids"]

    def _rows(self, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
        if not self.path.is_file():
            raise CorpusError(f"{self.path} does not exist; give a file that ends in {', '.join(ENDINGS)}")
        if self.path.suffix == ".parquet":
            return self._parquet(columns)
        if self.path.name.endswith(ENDINGS):
            return self._jsonl()
        raise CorpusError(f"{self.path}: unknown kind of file; it must end in {', '.join(ENDINGS)}")

    def _jsonl(self) -> Iterator[tuple[int, dict[str, Any]]]:
        read = gzip.open if self.path.suffix == ".gz" else open
        with read(self.path, "rt", encoding="utf-8") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if len(line) >= _LONGEST_LINE:
                    raise CorpusError(f"{self.path}, row {number}: over {_LONGEST_LINE:,} characters; split the text")
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise CorpusError(f"{self.path}, row {number}: not JSON ({error}); mend or delete that line") from error
                if not isinstance(row, dict):
                    raise CorpusError(f"{self.path}, row {number}: a row must be a JSON object, got {type(row).__name__}")
                yield number, row

    def _parquet(self, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise CorpusError(f"{self.path}: reading Parquet needs pyarrow; pip install pyarrow, or write JSONL") from error
        try:
            file = parquet.ParquetFile(self.path)
        except Exception as error:  # pyarrow's errors have no common base that is public
            raise CorpusError(f"{self.path} is no Parquet file: {error}") from error
        with file:
            present = [name for name in columns if name in file.schema_arrow.names]
            if not present and "text" in columns:
                wanted = " or ".join(map(repr, columns))
                raise CorpusError(f"{self.path}: no column {wanted}; it has {file.schema_arrow.names}")
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=present) if present else ():
                arrays = {name: batch.column(name) for name in present}
                for i in range(batch.num_rows):
                    number += 1
                    row = {}
                    for name, values in arrays.items():
                        one = values[i]
                        lists = name.endswith("ids") and one.is_valid
                        row[name] = one.values.to_numpy(zero_copy_only=False) if lists else one.as_py()
                    yield number, row
