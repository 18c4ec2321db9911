"""Files: written whole or not at all, strict JSON, and hashes of content."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def written(path: Path | str) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` when it is whole: a reader sees the old content or the new.

    Missing folders are created. If it fails, the old file is untouched and the ``OSError`` names ``path``.
    """
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")  # the same folder: a rename does not cross disks
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync(target.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(target), None  # not the name of a file that is gone
        raise


def atomic_write(path: Path | str, content: str | bytes) -> None:
    """Write a whole file, as :func:`written` does. Text is written as UTF-8."""
    with written(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path | str, obj: object) -> None:
    """Write strict JSON, atomically. Raises ``ValueError`` naming the field that is NaN or infinite."""
    try:
        text = json.dumps(obj, allow_nan=False, ensure_ascii=False, indent=1)
    except ValueError as error:
        where = _not_finite(obj, "") or str(error)
        raise ValueError(f"cannot write {path} as strict JSON: {where}; write None for a missing number") from error
    except TypeError as error:
        raise TypeError(f"cannot write {path} as strict JSON: {error}") from error
    atomic_write(path, text + "\n")


def read_json(path: Path | str) -> Any:
    """Read strict JSON. Raises ``ValueError`` naming the file if it is torn, no UTF-8 or holds NaN or infinity."""
    data = Path(path).read_bytes()
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not strict JSON: {error}; delete it or write it again") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _not_finite(value: object, where: str) -> str | None:
    """The first NaN or infinity in ``value`` as "field = nan", or ``None``."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{where.lstrip('.') or 'the value'} = {value}"
    items: list[tuple[str, object]] = []
    if isinstance(value, Mapping):
        items = [(f"{where}.{name}", entry) for name, entry in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{where}[{i}]", entry) for i, entry in enumerate(value)]
    return next((found for name, entry in items if (found := _not_finite(entry, name))), None)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's content or a folder's entries are on the disk."""
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        # some file systems cannot flush a folder; the order of writes is then theirs
        if not folder or error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}:
            raise


def sha256_of_folder(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a model's folder, by its name."""
    return {one.name: sha256_of(one) for one in sorted(folder.iterdir()) if one.is_file()}
