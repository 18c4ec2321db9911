"""The artifact store, tried with real processes, real kills and a disk that is really full."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import PATIENCE, wait_until

from radio_utils import artifacts
from radio_utils.artifacts import MANIFEST, Artifact, Store, StoreFullError, default_root
from radio_utils.files import atomic_write, read_json, write_json

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = {"vocabulary": 512, "rho": 0.05, "name": "bob"}
posix_only = pytest.mark.skipif(os.name != "posix", reason="kills and forks processes")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def build_two(folder: Path) -> None:
    """A build with a nested folder and binary content."""
    (folder / "weights").mkdir()
    (folder / "weights" / "part.bin").write_bytes(bytes(range(256)) * 64)
    (folder / "notes.txt").write_text("ρ = 5 %\n", encoding="utf-8")


def refuse(folder: Path) -> None:
    raise AssertionError(f"{folder.name} is in the store and must not be built again")


def visible(store: Store) -> list[str]:
    """Names of the artifacts, whole or not, that a reader could find."""
    return sorted(p.name for p in store.root.glob("*") if not p.name.startswith("."))


def left_overs(store: Store) -> list[str]:
    return sorted(p.name for p in (store.root / ".tmp").glob("*"))


def assert_whole(artifact: Artifact) -> None:
    """Check an artifact of ``build_two`` without the help of the module under test."""
    assert (artifact / "weights/part.bin").read_bytes() == bytes(range(256)) * 64
    assert (artifact / "notes.txt").read_text(encoding="utf-8") == "ρ = 5 %\n"
    manifest = json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))
    assert set(manifest["files"]) == {"weights/part.bin", "notes.txt"}
    for name, entry in manifest["files"].items():
        data = (artifact.path / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def changed(store: Store) -> list[str]:
    """The files of all artifacts whose content is not what their manifest says."""
    return [
        f"{artifact}/{name}"
        for artifact in visible(store)
        for name, entry in json.loads((store.root / artifact / MANIFEST).read_text(encoding="utf-8"))["files"].items()
        if hashlib.sha256((store.root / artifact / name).read_bytes()).hexdigest() != entry["sha256"]
    ]


def _asks_for(
    store: Store, kind: str, config: Mapping[str, object], build: Callable[[Path], None]
) -> Callable[[Path], None]:
    """A build that needs another artifact."""

    def outer(folder: Path) -> None:
        shutil.copy(store.get(kind, config, build) / "notes.txt", folder / "notes.txt")

    return outer


# ---------------------------------------------------------------------------------------------------------- one process


def test_builds_once_then_reads(store: Store) -> None:
    assert not store.root.exists(), "the root is created lazily"
    assert not store.has("model", CONFIG)
    first = store.get("model", CONFIG, build_two)
    assert_whole(first)
    assert store.has("model", CONFIG)
    assert first.path.name == f"model-{store.key_of('model', CONFIG)}"
    assert store.get("model", CONFIG, refuse) == first
    assert Store(str(store.root)).get("model", CONFIG, refuse) == first
    assert visible(store) == [first.path.name]
    assert left_overs(store) == [] and changed(store) == []


def test_manifest_tells_where_an_artifact_came_from(store: Store) -> None:
    corpus = store.get("corpus", {"seed": 1}, build_two)
    model = store.get("model", {"path": Path("a/b"), "sizes": (1, 2)}, build_two, inputs=[corpus], version="7")
    manifest = read_json(model / MANIFEST)
    assert manifest["kind"] == "model" and manifest["key"] == model.key and manifest["version"] == "7"
    assert manifest["config"] == {"path": "a/b", "sizes": [1, 2]}
    assert manifest["inputs"] == [corpus.path.name]
    assert manifest["seconds"] >= 0 and manifest["created"].endswith("+00:00")


def test_a_read_only_store_can_be_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    built = store.get("model", CONFIG, build_two)

    def no_write(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr(os, "mkdir", no_write)
    monkeypatch.setattr(os, "rename", no_write)
    monkeypatch.setattr(artifacts, "FileLock", no_write)
    assert store.get("model", CONFIG, refuse) == built


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), OSError(errno.EACCES, "denied")])
def test_a_failing_build_leaves_nothing_and_its_error_propagates(store: Store, error: BaseException) -> None:
    def build(folder: Path) -> None:
        build_two(folder)
        raise error

    with pytest.raises(type(error)) as caught:
        store.get("model", CONFIG, build)
    assert caught.value is error
    assert visible(store) == [] and left_overs(store) == []
    assert_whole(store.get("model", CONFIG, build_two))  # the lock was given back


def test_builds_that_break_the_contract(store: Store, tmp_path: Path) -> None:
    builds: dict[str, Callable[[Path], object]] = {
        "wrote no file": lambda folder: (folder / "empty").mkdir(),
        "no plain file": lambda folder: (folder / "link").symlink_to(tmp_path),
        "a name that the store needs": lambda folder: (folder / MANIFEST).write_text("{}"),
    }
    for message, build in builds.items():
        with pytest.raises(ValueError, match=message):
            store.get("model", CONFIG, build)  # type: ignore[arg-type]
    assert visible(store) == [] and left_overs(store) == []


def test_a_build_that_asks_for_itself_is_an_error_not_a_deadlock(store: Store) -> None:
    with pytest.raises(RuntimeError, match="already held"):
        store.get("model", CONFIG, _asks_for(store, "model", CONFIG, build_two))


def test_a_build_may_ask_for_another_artifact(store: Store) -> None:
    def build(folder: Path) -> None:
        atomic_write(folder / "copy", (store.get("corpus", {}, build_two) / "notes.txt").read_bytes())

    assert (store.get("model", CONFIG, build) / "copy").read_text(encoding="utf-8") == "ρ = 5 %\n"
    assert len(visible(store)) == 2


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="must be a folder"):
        Store(tmp_path / "file")


def test_root_does_not_move_with_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("store")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.get("model", CONFIG, build_two)
    assert visible(Store(tmp_path / "store"))


def test_default_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADIO_UTILS_STORE", str(tmp_path / "chosen"))
    assert default_root() == tmp_path / "chosen"
    monkeypatch.delenv("RADIO_UTILS_STORE")
    # an installed package is in no repository: then the repository of the current folder, then the folder itself
    monkeypatch.setattr(artifacts, "__file__", str(tmp_path / "site-packages" / "radio_utils" / "artifacts.py"))
    (tmp_path / "clone" / "radio_utils").mkdir(parents=True)
    (tmp_path / "clone" / "notebooks").mkdir()
    (tmp_path / "clone" / "pyproject.toml").touch()
    (tmp_path / "clone" / "radio_utils" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path / "clone" / "notebooks")
    assert default_root() == tmp_path / "clone" / ".cache" / "radio_utils"
    monkeypatch.chdir(tmp_path)
    assert default_root() == tmp_path / ".cache" / "radio_utils"


# ----------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("kind", ["", "Model", "a/b", "..", "a b", "modèle", "model\n", "x" * 101, None])
def test_kind_must_be_a_plain_name(store: Store, kind: Any) -> None:
    with pytest.raises(ValueError, match="kind must be"):
        store.get(kind, CONFIG, refuse)
    assert not store.root.exists()


def test_key_changes_with_everything_that_decides_the_content() -> None:
    one, two = Artifact("corpus", "0" * 20, Path("a")), Artifact("corpus", "1" * 20, Path("a"))
    keys = [
        Store.key_of("model", CONFIG),
        Store.key_of("models", CONFIG),
        Store.key_of("model", {**CONFIG, "rho": 0.06}),
        Store.key_of("model", {**CONFIG, "more": None}),
        Store.key_of("model", CONFIG, version="2"),
        Store.key_of("model", CONFIG, inputs=[one]),
        Store.key_of("model", CONFIG, inputs=[two]),
        Store.key_of("model", CONFIG, inputs=[one, two]),
        Store.key_of("model", CONFIG, inputs=[two, one]),
        Store.key_of("model", CONFIG, inputs=[Artifact("pairs", "0" * 20, Path("a"))]),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 20 and set(key) <= set("0123456789abcdef") for key in keys)


def test_key_of_an_input_does_not_depend_on_where_the_store_is() -> None:
    here, there = Artifact("corpus", "0" * 20, Path("/a")), Artifact("corpus", "0" * 20, Path("/b"))
    assert Store.key_of("model", {}, inputs=[here]) == Store.key_of("model", {}, inputs=[there])


def test_key_is_the_documented_hash() -> None:
    """Golden: a changed key makes every reader train everything anew, so it must not change by accident."""
    text = '{"config":{"a":[1,2.5,"\\u03c1"],"b":null},"format":1,"inputs":[],"kind":"model","version":"1"}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:20]
    assert Store.key_of("model", {"b": None, "a": (1.0, 2.5, "ρ")}) == expected


def test_key_changes_with_the_format_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Store.key_of("model", CONFIG)
    monkeypatch.setattr(artifacts, "STORE_FORMAT", artifacts.STORE_FORMAT + 1)
    assert Store.key_of("model", CONFIG) != before


class Colour(Enum):
    GREEN = 1


class Size(IntEnum):
    SMALL = 3


@dataclass(frozen=True)
class Scheme:
    window: int
    inner: object = None


@dataclass(frozen=True)
class OtherScheme:
    window: int
    inner: object = None


def test_accepted_settings() -> None:
    def key(value: object) -> str:
        return Store.key_of("model", {"value": value})

    assert key((1, 2)) == key([1, 2])
    assert key(Path("a") / "b") == key("a/b")
    assert key(1) == key(1.0) == key(np.float64(1.0)) and key(-0.0) == key(0)
    assert key(Size.SMALL) == key(3)
    assert key(Scheme(2)) == key(Scheme(2)) != key(Scheme(3))
    assert key(Scheme(2)) != key(OtherScheme(2)), "two schemes with the same parameters are two settings"
    different = [True, 1, "1", [1], {"1": 1}, None, "None", 0, False, "", [], {}, 2**53 + 1, float(2**53), [[1]]]
    assert len({key(value) for value in different}) == len(different)


def _cycle() -> dict[str, object]:
    cycle: dict[str, object] = {}
    cycle["self"] = cycle
    return cycle


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"a": {"b": [0, float("nan")]}}, r"config\.a\.b\[1\] is nan"),
        ({"rate": float("-inf")}, r"config\.rate is -inf"),
        ({"f": lambda: None}, r"config\.f is a builtins\.function"),
        ({"s": {1, 2}}, r"config\.s is a builtins\.set"),
        ({"b": b"key"}, r"config\.b is a builtins\.bytes"),
        ({"n": np.arange(2)}, r"config\.n is a numpy\.ndarray"),
        ({"n": np.int64(2)}, r"config\.n is a numpy\.int64"),
        ({"c": Colour.GREEN}, r"config\.c is a .*Colour"),
        ({"t": Scheme}, r"config\.t is a builtins\.type"),
        ({"d": Scheme(2, {"x": float("nan")})}, r"config\.d\.inner\.x is nan"),
        ({"m": {1: 2}}, r"config\.m has the key 1"),
        ({"u": "\ud83d\ude00"}, r"config\.u .* not valid Unicode"),
        ({"i": Artifact("a", "0", Path())}, r"config\.i is an Artifact; pass it in inputs"),
        (_cycle(), "contains itself"),
        (Scheme(2), "config must be a mapping"),
    ],
)
def test_settings_without_a_canonical_form(config: Any, field: str) -> None:
    with pytest.raises(TypeError, match=field):
        Store.key_of("model", config)


def test_wrong_inputs_and_version() -> None:
    with pytest.raises(TypeError, match=r"inputs\[0\] must be an Artifact"):
        Store.key_of("model", {}, inputs=["model-1"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="version must be a string"):
        Store.key_of("model", {}, version=2)  # type: ignore[arg-type]


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
configs = st.dictionaries(st.text(), values, max_size=4)


def _same(a: object, b: object) -> bool:
    """The equality that keys stand for: Python's, but a truth value is no number."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


@settings(max_examples=200)
@given(configs, configs)
def test_keys_are_equal_exactly_when_the_settings_are(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert (Store.key_of("model", a) == Store.key_of("model", b)) == _same(a, b)


@settings(max_examples=200)
@given(configs, st.randoms(use_true_random=False))
def test_key_ignores_order_and_survives_json(config: dict[str, Any], rng: random.Random) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            names = list(value)
            rng.shuffle(names)
            return {name: shuffled(value[name]) for name in names}
        return tuple(map(shuffled, value)) if isinstance(value, list) else value

    key = Store.key_of("model", config)
    assert Store.key_of("model", shuffled(config)) == key
    assert Store.key_of("model", json.loads(json.dumps(config))) == key


# --------------------------------------------------------------------------------------------------------------- damage


def _break_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        change(manifest)
        (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")

    return apply


def _cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def _replaced(name: str, put: Callable[[Path], object]) -> Callable[[Path], None]:
    """Remove a file, or the whole artifact if ``name`` is ".", and put something else in its place."""

    def apply(path: Path) -> None:
        place = path / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        put(place)

    return apply


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing file": lambda path: (path / "notes.txt").unlink(),
    "short file": lambda path: _cut(path / "weights/part.bin", 100),
    "long file": lambda path: (path / "notes.txt").write_text("much longer than it was before"),
    "folder for a file": _replaced("notes.txt", Path.mkdir),
    "link for a file": _replaced("notes.txt", lambda place: place.symlink_to("/dev/null")),
    "no manifest": lambda path: (path / MANIFEST).unlink(),
    "truncated manifest": lambda path: _cut(path / MANIFEST, 100),
    "empty manifest": lambda path: _cut(path / MANIFEST, 0),
    "manifest of binary": lambda path: (path / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "manifest that is a list": lambda path: (path / MANIFEST).write_text("[]"),
    "manifest that is null": lambda path: (path / MANIFEST).write_text("null"),
    "manifest of another setting": _break_manifest(lambda manifest: manifest["config"].update(rho=0.1)),
    "manifest without files": _break_manifest(lambda manifest: manifest.update(files={})),
    "manifest with odd files": _break_manifest(lambda manifest: manifest.update(files=["notes.txt"])),
    "manifest with NaN": _break_manifest(lambda manifest: manifest["config"].update(rho=float("nan"))),
    "empty folder": _replaced(".", Path.mkdir),
    "file for the folder": _replaced(".", lambda place: place.write_text("x")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_artifact_is_set_aside_and_rebuilt(store: Store, name: str, caplog: pytest.LogCaptureFixture) -> None:
    artifact = store.get("model", CONFIG, build_two)
    DAMAGE[name](artifact.path)
    assert not store.has("model", CONFIG)
    caplog.clear()
    with caplog.at_level("WARNING", logger="radio_utils"):
        assert store.get("model", CONFIG, build_two) == artifact
    assert_whole(artifact)
    assert len(caplog.records) == 1 and "is set aside and rebuilt" in caplog.text
    assert len(list((store.root / ".damaged").iterdir())) == 1, "what was damaged is kept for a look"
    assert store.get("model", CONFIG, refuse) == artifact


def test_an_error_that_is_no_damage_is_not_repaired(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = store.get("model", CONFIG, build_two)

    def too_many(self: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", too_many)
        with pytest.raises(OSError, match="Too many open files"):
            store.get("model", CONFIG, build_two)
    assert store.get("model", CONFIG, refuse) == artifact


# ------------------------------------------------------------------------------------------------------- many processes

CHILD = """
import itertools, logging, os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from radio_utils.artifacts import Store
from waiting import wait_until

root, mode = Path(sys.argv[2]), sys.argv[3]

class Log(logging.Handler):
    def emit(self, record):
        with (root.parent / "log").open("a") as file:  # one short write: whole lines, whoever writes
            file.write(record.getMessage() + "\\n")

logging.basicConfig(level=logging.INFO, handlers=[Log()])
print("ready", flush=True)
wait_until((root.parent / "go").exists)
"""


def start(store: Store, body: str, *arguments: str) -> subprocess.Popen[str]:
    """A child process that is past its imports and waits for the file ``go`` beside the store."""
    code, tests = CHILD + textwrap.dedent(body), str(Path(__file__).parent)
    child = subprocess.Popen(
        [sys.executable, "-c", code, tests, str(store.root), *(arguments or ("",))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert child.stdout is not None
    if child.stdout.readline() != "ready\n":
        child.kill()
        pytest.fail(child.communicate()[1])
    return child


def go(store: Store) -> None:
    (store.root.parent / "go").touch()


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_want_the_same_artifact_build_it_once(store: Store, processes: int) -> None:
    body = """
        def build(folder):
            (folder / "who").write_text(str(os.getpid()))
            wait_until(lambda: len((root.parent / "log").read_text().splitlines()) >= int(mode))  # all build or wait
            (folder / "done").write_text("yes")

        artifact = Store(root).get("model", {"a": 1}, build)
        print((artifact / "who").read_text(), (artifact / "done").read_text())
    """
    children = [start(store, body, str(processes)) for _ in range(processes)]
    go(store)
    ends = [child.communicate(timeout=PATIENCE) for child in children]
    assert [child.returncode for child in children] == [0] * processes, ends
    lines = (store.root.parent / "log").read_text().splitlines()
    assert Counter(line.split()[0] for line in lines) == {"building": 1, "waiting": processes - 1, "built": 1}
    (said,) = {end[0] for end in ends}
    assert said in {f"{child.pid} yes\n" for child in children}, "every process read the one artifact"
    assert left_overs(store) == [] and changed(store) == []


def test_threads_that_want_the_same_artifact_build_it_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="radio_utils.artifacts")
    built: list[int] = []

    def build(folder: Path) -> None:
        built.append(threading.get_ident())
        wait_until(lambda: len(caplog.records) >= 3)  # each has said that it builds or waits
        build_two(folder)

    found: list[Artifact] = []
    threads = [threading.Thread(target=lambda: found.append(store.get("model", CONFIG, build))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(built) == 1 and len(found) == 3 and len(set(found)) == 1


def test_different_artifacts_are_built_at_the_same_time(store: Store) -> None:
    # each build ends only when the other has begun: one lock for both would time out
    body = """
        def build(folder):
            (root.parent / mode).touch()
            wait_until((root.parent / ("b" if mode == "a" else "a")).exists)
            (folder / "x").write_text(mode)

        Store(root).get("model", {"which": mode}, build)
    """
    children = [start(store, body, which) for which in "ab"]
    go(store)
    ends = [child.communicate(timeout=PATIENCE) for child in children]
    assert [child.returncode for child in children] == [0, 0], ends
    assert len(visible(store)) == 2


HALF = """
    import signal

    def build(folder):
        with open(folder / "notes.txt", "w") as file:
            file.write("ρ = ")
            file.flush()
            os.fsync(file.fileno())
            print("half", flush=True)
            time.sleep(3000)

    Store(root).get("model", {"vocabulary": 512, "rho": 0.05, "name": "bob"}, build)
"""


@posix_only
def test_killed_in_the_middle_of_a_build(store: Store) -> None:
    child = start(store, HALF)
    go(store)
    assert child.stdout is not None and child.stdout.readline() == "half\n"
    assert len(left_overs(store)) == 1 and visible(store) == []
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert len(left_overs(store)) == 1, "the test must really have left half a build"
    assert_whole(store.get("model", CONFIG, build_two))
    assert left_overs(store) == []


@posix_only
def test_a_waiting_process_takes_over_when_the_builder_is_killed(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="radio_utils.artifacts")
    builder = start(store, HALF)
    go(store)
    assert builder.stdout is not None and builder.stdout.readline() == "half\n"
    found: list[Artifact] = []
    waiter = threading.Thread(target=lambda: found.append(store.get("model", CONFIG, build_two)))
    waiter.start()
    wait_until(lambda: caplog.records)
    assert "waiting for model-" in caplog.text and not found
    builder.kill()
    builder.communicate()
    waiter.join(PATIENCE)
    assert_whole(found[0])
    assert left_overs(store) == []


@posix_only
def test_a_forked_worker_that_outlives_its_killed_builder_does_not_keep_the_lock(store: Store) -> None:
    body = """
        def build(folder):
            worker = os.fork()
            if worker == 0:
                os.close(1), os.close(2)
                time.sleep(3000)
                os._exit(0)
            print(worker, flush=True)
            time.sleep(3000)

        Store(root).get("model", {"vocabulary": 512, "rho": 0.05, "name": "bob"}, build)
    """
    child = start(store, body)
    go(store)
    assert child.stdout is not None
    worker = int(child.stdout.readline())
    child.kill()
    child.communicate()
    try:
        assert_whole(store.get("model", CONFIG, build_two))
        os.kill(worker, 0)  # it lives still: nothing waited for its end
    finally:
        os.kill(worker, signal.SIGKILL)


def _in_fork(action: Callable[[], object]) -> int:
    """Run ``action`` in a forked process; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(3)
    return os.waitpid(child, 0)[1]


def _kill_at_event(number: int) -> None:
    """Kill this process just before its ``number``-th call to the file system."""
    seen = 0

    def hook(event: str, _: object) -> None:
        nonlocal seen
        if event == "open" or event.startswith(("os.", "shutil.", "fcntl.")):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _sweep(action: Callable[[], object], check: Callable[[], None]) -> int:
    """Repeat ``action`` in a process that is killed at its first, second, … call; how many kills until it survived."""
    for number in range(1, 500):

        def killed(at: int = number) -> None:
            _kill_at_event(at)
            action()

        status = _in_fork(killed)
        check()
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            return number - 1
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError("the action never ended")


@posix_only
def test_killed_at_every_single_call_of_a_build(store: Store) -> None:
    """Each step of opening, writing, flushing and renaming is a process' last; the next one always gets it right."""
    whole_after_kill = 0

    def check() -> None:
        nonlocal whole_after_kill
        for name in visible(store):  # before any repair: what a reader can see is whole
            assert_whole(Artifact("model", name.removeprefix("model-"), store.root / name))
            whole_after_kill += 1
        assert_whole(store.get("model", CONFIG, build_two))
        assert left_overs(store) == []
        shutil.rmtree(store.root)

    kills = _sweep(lambda: store.get("model", CONFIG, build_two), check)
    assert kills > 20
    assert 2 <= whole_after_kill < kills, "some kills must fall before the rename and some after it"


@posix_only
def test_killed_at_every_single_call_of_a_repair(store: Store) -> None:
    def damage() -> None:
        _cut(store.get("model", CONFIG, build_two) / MANIFEST, 50)

    def check() -> None:
        assert_whole(store.get("model", CONFIG, build_two))
        assert left_overs(store) == []
        shutil.rmtree(store.root)
        damage()

    damage()
    assert _sweep(lambda: store.get("model", CONFIG, build_two), check) > 20


@posix_only
def test_killed_at_random_moments(store: Store) -> None:
    body = """
        store = Store(root)
        for i in itertools.count():
            def build(folder):
                for part in range(3):
                    (folder / f"part{part}").write_text(f"{i}-{part}" * 2000)
            store.get("model", {"i": i, "round": mode}, build)
    """
    rng = random.Random(2)
    go(store)
    seen = 0
    for round_ in range(6):
        child = start(store, body, str(round_))
        wait_until(lambda seen=seen: len(visible(store)) > seen + 1)  # type: ignore[misc]
        time.sleep(rng.uniform(0.0, 0.1))  # any moment will do: it never ends by itself
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        seen = len(visible(store))
        assert changed(store) == []
        assert len(left_overs(store)) <= round_ + 1
    assert seen > 6
    for name in visible(store):
        config = read_json(store.root / name / MANIFEST)["config"]
        store.get("model", config, refuse)


# ------------------------------------------------------------------------------------------------------------ full disk


def _wrapped_full(_: Path) -> None:
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise RuntimeError("could not save the model") from error


def _plain_full(_: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _text_full(_: Path) -> None:  # what safetensors and tokenizers raise
    raise Exception("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("full", [_plain_full, _wrapped_full, _text_full])
def test_full_disk_in_a_build(store: Store, full: Callable[[Path], None]) -> None:
    def build(folder: Path) -> None:
        build_two(folder)
        full(folder)

    with pytest.raises(StoreFullError) as caught:
        store.get("model", CONFIG, build)
    message = str(caught.value)
    assert caught.value.errno == errno.ENOSPC and isinstance(caught.value, OSError)
    assert str(store.root) in message and "MiB are free" in message and "RADIO_UTILS_STORE" in message
    assert caught.value.__cause__ is not None
    assert visible(store) == [] and left_overs(store) == []


@pytest.mark.parametrize("call", ["fsync", "mkdir", "rename", "replace"])
def test_full_disk_in_the_store_itself(store: Store, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StoreFullError, match="MiB are free"):
            store.get("model", CONFIG, build_two)
    assert visible(store) == [] and left_overs(store) == []
    assert_whole(store.get("model", CONFIG, build_two))


def test_full_disk_of_an_artifact_inside_a_build_is_told_once(store: Store) -> None:
    with pytest.raises(StoreFullError) as caught:
        store.get("model", CONFIG, _asks_for(store, "corpus", {}, _plain_full))
    assert str(caught.value).count("MiB are free") == 1 and "corpus-" in str(caught.value)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a tmpfs with the given options and returns its folder."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command here")
        if done.returncode:
            pytest.skip(f"mounting a small disk needs root: {done.stderr.strip().splitlines()[0]}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("limit", ["size", "nr_inodes"])
def test_a_disk_that_fills_at_any_point(small_disk: Callable[[str], Path], limit: str) -> None:
    """Disks of growing size, in pages or in files: always either a whole artifact or one clear error and nothing."""
    outcomes: list[bool] = []
    for amount in range(1, 13):
        option = f"size={4 * amount}k" if limit == "size" else f"nr_inodes={amount + 1}"
        store = Store(small_disk(option))
        try:
            artifact = store.get("model", CONFIG, build_two)
        except StoreFullError as error:
            outcomes.append(False)
            assert str(store.root) in str(error) and "RADIO_UTILS_STORE" in str(error)
            assert visible(store) == [] and left_overs(store) == []
        else:
            outcomes.append(True)
            assert_whole(artifact)
    assert outcomes == sorted(outcomes) and {True, False} == set(outcomes), "the disks must span the artifact's size"


def test_models_that_do_not_fit(small_disk: Callable[[str], Path]) -> None:
    """The writers in compiled code report a full disk in their own ways."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    tokenizers = pytest.importorskip("tokenizers")
    store = Store(small_disk("size=200k"))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(50_000)}, "0"))
    builds: dict[str, Callable[[Path], None]] = {
        "model": lambda folder: safetensors.save_file({"w": torch.zeros(10**6)}, folder / "model.safetensors"),
        "tokenizer": lambda folder: words.save(str(folder / "tokenizer.json")),
    }
    for kind, build in builds.items():
        with pytest.raises(StoreFullError, match="larger disk"):
            store.get(kind, {}, build)
        assert visible(store) == [] and left_overs(store) == []


def test_atomic_write_on_a_full_disk_keeps_the_old_file(small_disk: Callable[[str], Path]) -> None:
    path = small_disk("size=16k") / "file"
    atomic_write(path, "old")
    with pytest.raises(OSError) as caught:
        atomic_write(path, b"x" * 100_000)
    assert caught.value.errno == errno.ENOSPC and str(path) in str(caught.value)
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


# ---------------------------------------------------------------------------------------------------------- small files


@pytest.mark.parametrize("content", ["ρ\r\n\n", b"\x00\xff", ""])
def test_atomic_write(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "new" / "file"
    atomic_write(path, "before")
    atomic_write(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(path.parent.iterdir()) == [path]


def test_atomic_write_follows_the_umask(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_atomic_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "file"
    atomic_write(path, "old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match=r"Input/output error: .*file"):
            atomic_write(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@posix_only
def test_atomic_write_killed_at_every_call(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    seen: set[str] = set()

    def check() -> None:
        seen.add(path.read_text())
        path.write_text("old")

    _sweep(lambda: atomic_write(path, "new"), check)
    assert seen == {"old", "new"}


@settings(max_examples=50)
@given(configs)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "round.json"
    write_json(path, config)
    assert read_json(path) == config


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ({"tables": {"detection": [{"p": 0.5}, {"p": float("nan")}]}}, r"tables\.detection\[1\]\.p = nan"),
        (float("inf"), "the value = inf"),
        ([1.0, float("-inf")], r"\[1\] = -inf"),
    ],
)
def test_write_json_refuses_nan(tmp_path: Path, obj: object, message: str) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match=message):
        write_json(path, obj)
    assert read_json(path) == {"old": 1}


def test_write_json_refuses_objects(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"record\.json.*ndarray"):
        write_json(tmp_path / "record.json", {"a": np.zeros(2)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ['{"a": NaN}', "[Infinity]", '{"a": ', "", "\xff", "[" * 100_000])
def test_read_json_refuses_what_is_not_strict_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"bad\.json is not strict JSON"):
        read_json(tmp_path / "bad.json")


def test_read_json_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_json(tmp_path / "none.json")


def test_the_library_prints_nothing(
    store: Store, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="radio_utils.artifacts"):
        store.get("model", CONFIG, build_two)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["building", "built"]
    assert capfd.readouterr().out == ""


# --- what a build goes on from ------------------------------------------------------------------------------------------


def test_scratch_outlives_a_failed_build_and_goes_with_the_artifact(store: Store) -> None:
    found: list[list[str]] = []

    def build(folder: Path) -> None:
        scratch = store.scratch(folder)
        found.append(sorted(path.name for path in scratch.glob("*")))
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / f"part-{len(found)}").touch()
        if len(found) < 3:
            raise RuntimeError("again")
        build_two(folder)

    for _ in range(2):
        with pytest.raises(RuntimeError, match="again"):
            store.get("model", CONFIG, build)
        with pytest.raises(ZeroDivisionError):
            store.get("other", CONFIG, lambda folder: found.append([store.scratch(folder).name]) or 1 / 0)  # type: ignore[arg-type, func-returns-value]
        assert found.pop()[0].startswith("other-"), "one for each artifact"
    assert_whole(store.get("model", CONFIG, build))
    assert found == [[], ["part-1"], ["part-1", "part-2"]]
    assert list((store.root / ".scratch").iterdir()) == [] and len(visible(store)) == 1


@pytest.mark.parametrize("place", ["elsewhere", ".tmp", ".tmp/other", ".tmp/other.1", "model-0123456789abcdef0123.1"])
def test_scratch_is_for_the_folder_of_a_build(store: Store, place: str) -> None:
    with pytest.raises(ValueError, match="folder must be the one that build was called with"):
        store.scratch(store.root / place)


@posix_only
def test_scratch_of_a_killed_build_is_there_for_the_next(store: Store) -> None:
    body = """
        def build(folder):
            scratch = Store(root).scratch(folder)
            scratch.mkdir(parents=True)
            (scratch / "half").touch()
            print("half", flush=True)
            time.sleep(3000)

        Store(root).get("model", {"vocabulary": 512, "rho": 0.05, "name": "bob"}, build)
    """

    def killed() -> None:
        child = start(store, body)
        go(store)
        assert child.stdout is not None and child.stdout.readline() == "half\n"
        child.kill()
        child.communicate()

    def build(folder: Path) -> None:
        assert [path.name for path in store.scratch(folder).iterdir()] == ["half"]
        build_two(folder)

    killed()
    assert_whole(store.get("model", CONFIG, build))
    assert list((store.root / ".scratch").iterdir()) == []


def test_scratch_that_a_kill_left_beside_its_artifact_goes_with_the_next_build(store: Store) -> None:
    artifact = store.get("model", CONFIG, build_two)
    left, living = (store.root / ".scratch" / name for name in (artifact.path.name, "model-0123456789abcdef0123"))
    for path in (left, living):
        path.mkdir(parents=True)
    store.get("other", CONFIG, build_two)
    assert not left.exists() and living.exists()
