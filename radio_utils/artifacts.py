"""A content-addressed store of artifacts on disk: whole or absent, built once, safe to kill at any moment.

An artifact is a folder of files that one function makes from one configuration: a tokenizer, a model, a set of pairs.
Its name is a hash of everything that decides its content, so a changed setting is another artifact and an unchanged one
is read back. What keeps a reader from ever seeing half of one:

* files are written in a private folder of the store, flushed to the disk, listed in ``manifest.json`` with their sizes
  and hashes, and appear under their name by a single rename;
* whoever builds holds a lock of the operating system, which a killed process gives back; a second process waits and reads;
* what a killed process left is removed by the next one that holds the same lock, but for what the build has put into its
  scratch folder to go on from.

Layout of the root: ``kind-key/`` (artifacts), ``.tmp/`` (being built), ``.scratch/kind-key/``, ``.locks/``, ``.damaged/``
(set aside).
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

from filelock import FileLock, Timeout

from radio_utils.files import read_json, sha256_of, sync, write_json

logger = logging.getLogger(__name__)

STORE_FORMAT = 1  # part of every key: a store written under other rules is not read
MANIFEST = "manifest.json"
_KIND = re.compile(r"[a-z0-9_-]{1,100}")
_ARTIFACT_NAME = re.compile(r"([a-z0-9_-]{1,100})-([0-9a-f]{20})")
_FULL_ERRORS = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
# a missing or unreadable file is damage; any other failure (permissions, too many open files) is the caller's to see
_DAMAGE_ERRORS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO}


class StoreFullError(OSError):
    """The disk that holds the store has no room for the artifact; nothing of it was kept."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished folder of the store. ``artifact / "name"`` is the path of one of its files."""

    kind: str
    key: str
    path: Path

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        return self.path / name


def default_root() -> Path:
    """The folder of the store: ``RADIO_UTILS_STORE``, or ``.cache/radio_utils`` in the repository or the current folder.

    The repository is the one that holds this package, or else the nearest parent of the current folder that does.
    """
    if chosen := os.environ.get("RADIO_UTILS_STORE"):
        return Path(chosen).expanduser().absolute()
    here = Path.cwd()
    for folder in (Path(__file__).resolve().parent.parent, here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "radio_utils" / "__init__.py").is_file():
            return folder / ".cache" / "radio_utils"
    return here / ".cache" / "radio_utils"


class Store:
    """Artifacts under ``root``, which is created by the first build. Processes and threads may share it freely.

    Raises ``NotADirectoryError`` if ``root`` exists and is not a folder.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).expanduser().absolute()  # a later change of folder must not move the store
        if self.root.exists() and not self.root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "root must be a folder; name another or remove the file", str(root))

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    @staticmethod
    def key_of(kind: str, config: Mapping[str, object], *, inputs: Sequence[Artifact] = (), version: str = "1") -> str:
        """The key (20 hexadecimal digits) of the artifact that these arguments describe.

        It does not depend on the order of ``config``; equal numbers (1 and 1.0) are equal, and the order of ``inputs``
        counts. Raises ``ValueError`` for a kind that is not a plain name, ``TypeError`` for a config that has no
        canonical form: NaN, a function, a set, an array, a key that is no string.
        """
        return _key(_recipe(kind, config, inputs, version))

    def has(self, kind: str, config: Mapping[str, object], *, inputs: Sequence[Artifact] = (), version: str = "1") -> bool:
        """Whether the artifact is there and passes the check that ``get`` makes. Builds and changes nothing."""
        key = self.key_of(kind, config, inputs=inputs, version=version)
        return _problem(self._artifact(kind, key)) is None

    def get(
        self,
        kind: str,
        config: Mapping[str, object],
        build: Callable[[Path], None],
        *,
        inputs: Sequence[Artifact] = (),
        version: str = "1",
    ) -> Artifact:
        """The artifact, read if it is there and otherwise built by ``build(folder)``.

        ``config`` holds everything that decides the content and is stored in clear: put a watermark's fingerprint there,
        never its key. ``inputs`` are the artifacts that the build reads, ``version`` names the code that builds; raise it
        when that code changes what it writes. ``build`` writes its files into the folder it is given, and only there. If it
        raises, nothing stays and the error propagates, but a full disk becomes ``StoreFullError``. If another process is
        building the same artifact, this one waits for it. Raises ``ValueError`` if the build wrote no file, a link or a
        ``manifest.json``, ``RuntimeError`` if it asks for the artifact that it builds.
        """
        recipe = _recipe(kind, config, inputs, version)
        artifact = self._artifact(kind, _key(recipe))
        if _problem(artifact) is None:  # the common case takes no lock and writes nothing: a read-only store will do
            return artifact
        try:
            with self._locked(artifact.path.name):
                problem = _problem(artifact)
                if problem is None:  # built by another process while this one waited
                    return artifact
                if os.path.lexists(artifact.path):
                    logger.warning("%s is damaged (%s); it is set aside and rebuilt", artifact.path.name, problem)
                    self._set_aside(artifact.path)
                for left_over in self._left_overs(artifact.path.name):
                    _remove(left_over)
                self._build(artifact, recipe, build)
        except StoreFullError:  # from an artifact that the build asked for: it says already what is wrong
            raise
        except Exception as error:
            if _is_full(error):
                raise self._full(artifact.path.name, error) from error
            raise
        return artifact

    def scratch(self, folder: Path) -> Path:
        """Where the build that writes into ``folder`` may keep how far it has come; it is not created here.

        Unlike ``folder`` it outlives a build that is killed or fails, and the next build of the same artifact finds it. It
        goes when the artifact is there. Raises ``ValueError`` for a folder that no build of this store was given.
        """
        name = folder.name.rpartition(".")[0]
        if folder.parent != self.root / ".tmp" or not _ARTIFACT_NAME.fullmatch(name):
            raise ValueError(f"folder must be the one that build was called with by {self!r}, got {folder}")
        return self.root / ".scratch" / name

    def _artifact(self, kind: str, key: str) -> Artifact:
        return Artifact(kind, key, self.root / f"{kind}-{key}")

    def _left_overs(self, name: str) -> list[Path]:
        return sorted((self.root / ".tmp").glob(f"{name}.*"))

    def _build(self, artifact: Artifact, recipe: dict[str, Any], build: Callable[[Path], None]) -> None:
        """Build into a private folder and rename it into place. The caller holds the lock."""
        name = artifact.path.name
        folder = self.root / ".tmp" / f"{name}.{secrets.token_hex(6)}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        logger.info("building %s", name)
        try:
            folder.mkdir()
            start = time.monotonic()
            build(folder)
            manifest = {
                **recipe,
                "key": artifact.key,
                "files": _sealed(folder, name),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - start, 3),
            }
            write_json(folder / MANIFEST, manifest)
            for inner in [path for path in folder.rglob("*") if path.is_dir()]:
                sync(inner)
            sync(folder)
            try:
                folder.rename(artifact.path)
            except OSError:
                # Only where locks do not work (some network disks) can another builder have been first. Its artifact is
                # as good as this one.
                if _problem(artifact) is not None:
                    raise
                _remove(folder)
            sync(self.root)
            for scratch in (self.root / ".scratch").glob("*"):  # also of one that was killed just here
                if (self.root / scratch.name / MANIFEST).exists():
                    _remove(scratch)
        except BaseException:  # KeyboardInterrupt too: an interrupted chapter leaves nothing behind
            _remove(folder)
            raise
        logger.info("built %s in %.1f s", name, manifest["seconds"])

    def _set_aside(self, path: Path) -> None:
        aside = self.root / ".damaged" / f"{path.name}.{secrets.token_hex(6)}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        path.rename(aside)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold the lock of one artifact.

        The lock file stays: removing one that another process has open would let two of them hold "the" lock.
        """
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("waiting for %s, which another process or thread is building", name)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _full(self, name: str, error: BaseException) -> StoreFullError:
        message = (
            f"no room for the artifact {name}: {_free(self.root) / 2**20:.1f} MiB are free in the store ({error}); "
            "free some space there or set RADIO_UTILS_STORE to a folder on a larger disk"
        )
        return StoreFullError(errno.ENOSPC, message, str(self.root))


def _recipe(kind: str, config: Mapping[str, object], inputs: Sequence[Artifact], version: str) -> dict[str, Any]:
    """Everything that the key is a hash of, as plain JSON values."""
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise ValueError(f"kind must be 1 to 100 characters of a-z, 0-9, '_' and '-', got {kind!r}; rename it")
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping, got {type(config).__name__}; use dataclasses.asdict for a dataclass")
    if not isinstance(version, str):
        raise TypeError(f"version must be a string, got {version!r}; write str(version)")
    for i, item in enumerate(inputs):
        if not isinstance(item, Artifact):
            raise TypeError(f"inputs[{i}] must be an Artifact, got {type(item).__name__}; pass what Store.get returned")
    try:
        canonical = _canonical(config, "config")
    except RecursionError as error:
        raise TypeError("config is nested too deeply, or contains itself; pass plain settings") from error
    return {
        "format": STORE_FORMAT,
        "kind": kind,
        "version": version,
        "config": canonical,
        "inputs": [f"{item.kind}-{item.key}" for item in inputs],
    }


def _key(recipe: Mapping[str, Any]) -> str:
    text = json.dumps(recipe, sort_keys=True, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:20]


def _canonical(value: object, where: str) -> Any:
    """``value`` as plain JSON values that are equal exactly when the settings are. ``where`` names the field in errors."""
    match value:
        case None | bool():
            return value
        case int():
            return int(value)  # an IntEnum too
        case float():
            if not math.isfinite(value):
                raise TypeError(f"{where} is {value}, which has no canonical JSON; use None or a finite number")
            # 1 and 1.0 are one number, and a setting typed either way must not train a model twice
            return int(value) if value.is_integer() else float(value)
        case str():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise TypeError(f"{where} = {value!r} is not valid Unicode; write it as a list of numbers") from error
            return str.__str__(value)
        case PurePath():
            return _canonical(value.as_posix(), where)
        case list() | tuple():
            return [_canonical(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
        case Mapping():
            for name in value:
                if not isinstance(name, str):
                    raise TypeError(f"{where} has the key {name!r}, which is no string; write str({name!r})")
            return {_canonical(name, where): _canonical(entry, f"{where}.{name}") for name, entry in value.items()}
        case Artifact():  # its path depends on the machine; its key belongs among the inputs
            raise TypeError(f"{where} is an Artifact; pass it in inputs= instead")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _canonical(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
        # with its name: two schemes with the same parameters are not the same setting
        return {"dataclass": type(value).__qualname__, "fields": fields}
    raise TypeError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which has no canonical JSON; "
        "use None, bool, int, float, str, Path, list, tuple, dict or a dataclass of these"
    )


def _sealed(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """Flush every file of a build and describe it: size and hash by relative path."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise ValueError(f"the build of {name} made {relative}, which is no plain file; copy what it points to")
        if relative == MANIFEST:
            raise ValueError(f"the build of {name} wrote {MANIFEST}, a name that the store needs; choose another")
        sync(path)
        files[relative] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    if not files:
        raise ValueError(f"the build of {name} wrote no file; write into the folder that build is called with")
    return files


def _problem(artifact: Artifact) -> str | None:
    """What is wrong with a stored artifact, or ``None``: manifest and sizes, which is cheap. The content is not read."""
    try:
        manifest = read_json(artifact / MANIFEST)
        recipe = {name: manifest[name] for name in ("format", "kind", "version", "config", "inputs")}
        if (manifest["key"], manifest["kind"], _key(recipe)) != (artifact.key, artifact.kind, artifact.key):
            return f"{MANIFEST} describes another artifact"
        files = manifest["files"]
        if not files:
            return f"{MANIFEST} lists no file"
        for name, expected in files.items():
            status = (artifact / name).lstat()
            if not stat.S_ISREG(status.st_mode):
                return f"{name} is no plain file"
            if status.st_size != expected["size"]:
                return f"{name} has {status.st_size} bytes instead of {expected['size']}"
    except OSError as error:
        if error.errno not in _DAMAGE_ERRORS:
            raise
        missing = Path(error.filename).name if error.filename else "a file"
        return f"{missing}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return f"{MANIFEST} is unreadable: {error}"
    return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _free(folder: Path) -> int:
    """Bytes free for this user on the disk of ``folder``, which may not exist yet."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _is_full(error: BaseException | None) -> bool:
    """Whether an error, or the one that it was raised from, says that the disk is full.

    Writers in compiled code (safetensors, tokenizers) raise their own types, in which only the text tells.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL_ERRORS:
            return True
        if os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__
    return False
