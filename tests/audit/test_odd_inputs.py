"""Whatever a stranger gives, an audit ends with a verdict or with one sentence: files, parameters, replies and configs."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import Server, serving
from trials import GAMMA, KEY, World

from radio_utils import suspects
from radio_utils.audit import AuditError, Request, audit_suspect
from radio_utils.audit.__main__ import main
from radio_utils.audit.texts import Texts, read_texts
from radio_utils.suspects import endpoint
from radio_utils.suspects.endpoint.address import Address
from radio_utils.suspects.endpoint.protocol import Answer, Failure, answer_in, models_in, refused_setting

UNFORESEEN = "in a way that it does not know"
often = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

# ----------------------------------------------------------------------------------------------------------------------
# What strangers give

WHOLE = [-(10**30), -1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**30]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(WHOLE),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["\ud83d", "w1 w2 w3"]),
)
NAMES = st.sampled_from(
    ["ids", "text", "prompt_ids", "prompt", "instruction", "input", "output", "messages", "conversations", "completion",
     "role", "content", "from", "value", "type", "assistant", "user"]
)  # fmt: skip
JSONS = st.recursive(
    ODD | NAMES | st.lists(st.integers(-2, 200), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
SPEAKERS = st.sampled_from(["user", "assistant", "gpt"])
TURNS = st.lists(st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), SPEAKERS | JSONS), max_size=3)
ROWS = st.dictionaries(NAMES, JSONS | TURNS, max_size=4)
GOOD = [
    {"ids": [1, 2, 3, 4], "prompt_ids": [5]}, {"text": "w1 w2 w3", "prompt": "w4"},
    {"instruction": "w1", "input": "", "output": "w2 w3 w4"},
    {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3 w4"}]},
]  # fmt: skip
BYTES = st.sampled_from(
    [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b'"', b"{", b"}", b"[", b",", b"NaN", b"1e999", b"null", b"\\ud83d",
     b'"text": 5, ', b'"ids": [[1]], ', b"\\u0000", b"\xc3", b"9" * 5000, b"[" * 3000]
) | st.binary(max_size=5)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file with a few bytes replaced, doubled or lost."""
    row = draw(st.sampled_from(GOOD))
    data = "".join(json.dumps(row) + "\n" for _ in range(3)).encode(
        draw(st.sampled_from(["utf-8"] * 6 + ["utf-16-le", "utf-16"]))
    )
    for _ in range(draw(st.integers(0, 3))):
        first, last = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        last = draw(st.sampled_from([first, min(len(data), first + 3), last]))
        data = data[:first] + draw(BYTES) + data[last:]
    return data


# ----------------------------------------------------------------------------------------------------------------------
# Where they are read


@pytest.fixture(scope="module")
def tokenizer(world: World) -> Any:
    return suspects.load_tokenizer(world.base)


def read(path: Path, tokenizer: Any) -> None:
    try:
        assert isinstance(read_texts("suspect", str(path), tokenizer, 128, 1), Texts)
    except AuditError as error:
        assert str(error).startswith("suspect: ") and "\n" not in str(error).strip() and len(str(error)) < 1500


@often
@given(damaged(), st.sampled_from([".jsonl", ".JSONL", ".jsonl.gz", ".txt", ".json", ".parquet"]), st.booleans())
def test_damaged_files(tmp_path: Path, tokenizer: Any, data: bytes, ending: str, packed: bool) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(data)[: -9 if len(data) % 5 == 0 else None] if packed else data)
    read(path, tokenizer)


@often
@given(st.lists(ROWS | st.sampled_from(GOOD), max_size=4), st.booleans())
def test_rows_of_any_values(tmp_path: Path, tokenizer: Any, rows: list[dict[str, Any]], as_parquet: bool) -> None:
    path = tmp_path / "a.jsonl"
    if as_parquet:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "a.parquet"
        try:
            pq.write_table(pa.Table.from_pylist(rows), path)
        except (pa.ArrowException, OverflowError, UnicodeError, ValueError):  # what no such file can hold
            return
    else:
        path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    read(path, tokenizer)


PARAMETERS = st.dictionaries(
    st.sampled_from(sorted(Request.explained())),
    ODD | st.lists(ODD, max_size=2) | st.binary(max_size=3)
    | st.sampled_from(["http://[", "https://u:p@h", "~nobody/a.jsonl", "a.jsonl", "a.json", "x" * 5000, "int:x", "chat"]),
    max_size=4,
)  # fmt: skip


@often
@given(PARAMETERS)
def test_parameters_of_any_values(changes: dict[str, Any]) -> None:
    given_ = {"suspect": "bob", "watermarked_texts": "a.jsonl", "key": "k"} | changes
    try:
        request = Request(**given_)
        assert request.kind in ("model", "answers", "endpoint") and request.public() and request.shown_suspect
        request.watermark(100)
    except AuditError as error:
        assert str(error)


FIELDS = st.sampled_from(
    ["choices", "message", "content", "text", "error", "code", "param", "finish_reason", "usage", "data", "id", "type",
     "prompt_tokens"]
)  # fmt: skip
REPLIES = st.recursive(
    ODD | st.sampled_from(["stop", "length"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=10,
)


@often
@given(REPLIES | st.lists(REPLIES, max_size=1).map(lambda choices: {"choices": choices}), st.booleans())
def test_replies_of_any_shape(said: Any, chat: bool) -> None:
    with contextlib.suppress(Failure):
        assert isinstance(answer_in(said, chat, lambda text: text[:200]), Answer)
    with contextlib.suppress(Failure):
        names, _ = models_in(said)
        assert all(isinstance(name, str) for name in names)
    assert isinstance(refused_setting(json.dumps(said), said), str)


@often
@given(st.text(max_size=12) | st.sampled_from(["h:99999", "[::1", "h/openai/deployments/d", "h\ud83d", "%ff%00@h", ""]))
def test_addresses_of_any_letters(rest: str) -> None:
    with contextlib.suppress(ValueError):
        assert Address(f"https://{rest}").public.startswith("https://")


# ----------------------------------------------------------------------------------------------------------------------
# The whole way


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALICE_KEY", KEY)
    monkeypatch.setattr(endpoint.Clock, "sleep", lambda self, seconds, woken: None)


def ended(arguments: dict[str, Any], *, foreseen: bool = True) -> str:
    """What the command said; it must end well or with one sentence."""
    out = tempfile.mkdtemp()
    given_ = {"key_env": "ALICE_KEY", "window": 1, "gamma": GAMMA, "decoys": 99, "output_dir": f"{out}/out"} | arguments
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            status = main([f"--{name.replace('_', '-')}={value}" for name, value in given_.items()])
    except SystemExit as stopped:  # by the parser of the command line
        status = int(stopped.code or 0)
    finally:
        shutil.rmtree(out)
    text = said.getvalue()
    assert "Traceback" not in text, text
    assert not foreseen or UNFORESEEN not in text, text
    if status:
        last = text.strip().splitlines()[-1]
        assert status == 2 and "error: " in last, text
    return text


OPTIONS = st.sampled_from(
    ["window", "gamma", "alpha", "vocab_size", "scheme", "decoys", "tokenizer", "key_file", "suspect", "watermarked_texts",
     "commitment", "output_dir", "temperature", "delta", "worlds", "full_context"]
)  # fmt: skip
VALUES = st.sampled_from(
    ["0", "1", "2", "-1", "7", "nan", "inf", "1e-300", "1e300", "999999999999", "x", "", "gumbel max", "/dev/null", "/",
     "~nobody/x", "yes", "\ud83d", "used", "base"]
)  # fmt: skip


@settings(often, max_examples=60)
@given(st.dictionaries(OPTIONS, VALUES, max_size=3))
def test_commands_of_any_words(world: World, changes: dict[str, str]) -> None:
    if "output_dir" in changes:
        changes["output_dir"] = "/dev/null"
    changes = {name: {"used": world.used, "base": world.base}.get(value, value) for name, value in changes.items()}
    for name in {"tokenizer", "suspect"} & changes.keys():
        if "/" not in changes[name]:  # nobody asks a hub
            changes[name] = f"/nowhere/{changes[name]}"
    ended({"suspect": world.fresh, "watermarked_texts": world.used, "tokenizer": world.base} | changes)


@settings(often, max_examples=20)
@given(damaged(), st.sampled_from(["suspect", "watermarked_texts", "fresh_texts", "plain_texts"]))
def test_commands_with_damaged_files(world: World, tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(Path(world.used).read_bytes()[:3000].rpartition(b"\n")[0] + b"\n" + data)
    given_ = {"suspect": world.fresh, "watermarked_texts": world.used, "tokenizer": world.base}
    ended(given_ | {name: str(tmp_path / "a.jsonl")})


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("openai")
    with serving(Server(guilty=True)) as one:
        yield one


@settings(often, max_examples=8)
@given(REPLIES, st.sampled_from([200, 200, 200, 400, 403, 422, 500]), st.integers(1, 3), st.integers(0, 4))
def test_commands_with_odd_servers(world: World, server: Server, said: Any, status: int, every: int, models: int) -> None:
    before = len(server.asked)
    server.trouble = lambda number: (
        (status, said) if (number < 0 and models == 0) or (number > 0 and (number - before) % every == 0) else None
    )
    ended({
        "suspect": server.address, "suspect_model": "bob", "watermarked_texts": world.used, "tokenizer": world.base,
        "max_queries": 16, "max_tokens": 48, "max_requests": 40, "concurrency": 2, "alpha": 0.4,
    })  # fmt: skip


@settings(often, max_examples=10)
@given(st.data())
def test_commands_with_odd_configs(world: World, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Of a model's folder: what fails in there must be named by whoever loads it, and is one sentence at the worst."""
    folder = tmp_path_factory.mktemp("odd") / "bob"
    shutil.copytree(world.guilty, folder)
    name = data.draw(st.sampled_from(["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]))
    whole = json.loads((folder / name).read_text())
    field = data.draw(st.sampled_from(sorted(whole)))
    small = st.none() | st.booleans() | st.sampled_from([-1, 0, 1, 3, 0.5, "x", [], {}, [1], {"a": 1}])
    whole[field] = data.draw(small)
    (folder / name).write_text(json.dumps(whole))
    access = data.draw(st.sampled_from(["open", "closed"]))
    ended({"suspect": str(folder), "watermarked_texts": world.used, "access": access, "max_queries": 8}, foreseen=False)
    shutil.rmtree(folder.parent)


def test_python_takes_no_unknown_parameter() -> None:
    with pytest.raises(AuditError, match="unknown parameter gama"):
        audit_suspect("bob", watermarked_texts="a.jsonl", gama=0.5)
