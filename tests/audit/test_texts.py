"""Files of strangers: each format read, each kind of damage named, none of it taking the memory."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trials import save_tokenizer

from radio_utils import suspects
from radio_utils.audit import AuditError
from radio_utils.audit.texts import Texts, read_texts, rows_of
from radio_utils.files import sha256_of, sha256_of_folder

WORDS = 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    return suspects.load_tokenizer(save_tokenizer(folder, {f"w{i}": i for i in range(WORDS)}))


def read(path: Path, tokenizer: Any, window: int = 2) -> Texts:
    return read_texts("watermarked_texts", str(path), tokenizer, WORDS, window)


ROWS = [{"text": "w1 w2 w3 w4"}, {"text": "w5 w6"}, {"ids": [7, 8, 9]}]


def test_every_format_holds_the_same_texts(tmp_path: Path, tokenizer: Any) -> None:
    lines = "\n".join(json.dumps(row) for row in ROWS)
    plain, packed, text = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz", tmp_path / "a.txt"
    plain.write_text(lines)
    packed.write_bytes(gzip.compress(lines.encode()))
    text.write_text("w1 w2\nw3 w4\n\n\nw5 w6\n\nw7 w8 w9")
    for file in (plain, packed, text):
        found = read(file, tokenizer)
        assert [one.tolist() for one in found.ids] == [[1, 2, 3, 4], [7, 8, 9]]
        assert (found.prompts, found.short, found.tokens) == (None, 1, 7)
        assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest() == sha256_of(file)
        assert found.described()["texts"] == 2 and found.described()["too_short"] == 1
        assert found.digest == read(plain, tokenizer).digest


def test_prompts_stay_with_their_texts(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"prompt": "w1", "text": "w2"}, {"prompt": "w3 w4", "text": "w5 w6 w7"}, {"prompt": "", "text": "w8 w9 w1"}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    found = read(file, tokenizer)
    assert found.prompts is not None
    assert [one.tolist() for one in found.prompts] == [[3, 4], []] and len(found.ids) == 2
    file.write_text("\n".join(json.dumps(row) for row in rows[::2]))  # the only prompt was that of a text too short
    assert read(file, tokenizer).prompts is None


@given(
    st.lists(st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=4), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_the_digest_tells_texts_apart(first: list[list[int]], second: list[list[int]], one: bool, two: bool) -> None:
    def texts(rows: list[list[int]], prompted: bool) -> Texts:
        ids = [np.array(row, np.int64) for row in rows]
        return Texts("t", "p", "s", 0, ids, ids[::-1] if prompted else None)

    same = (first, one) == (second, two)
    assert (texts(first, one).digest == texts(second, two).digest) == same


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "holds no text; give a file with at least one"),
        ("a.txt", b"\n \n", "holds no text"),
        ("a.jsonl", b'{"text": "w1 w2 w3"}\n{"text": "w1 w2', "row 2: not JSON"),
        ("a.jsonl", b'{"text": "w1 w2 w3"}\n\n\n[1]\n', "row 4: a row must be a JSON object, got list"),
        ("a.jsonl", b'{"text": "w1 w2 w3"}\n{"txt": "w1"}\n', "row 2: neither 'ids' nor 'text'"),
        ("a.jsonl", b'{"text": 5}\n', "row 1: 'text' must be a string, got int"),
        ("a.jsonl", b'{"ids": [1, 2, 3]}\n{"ids": [1, 20, 3]}', "row 2: ids holds token id 20"),
        ("a.jsonl", b'{"ids": [1, -2, 3]}', "row 1: ids holds token id -2"),
        ("a.jsonl", b'{"ids": [1, 2.5, 3]}', "row 1"),
        ("a.jsonl", b'{"ids": [[1], [2]]}', "row 1"),
        ("a.jsonl", b'{"ids": [1, 2, 1e999]}', "row 1"),
        ("a.jsonl", b'{"ids": [1, 2, 99999999999999999999999]}', "row 1"),
        ("a.jsonl", b'{"ids": "w1 w2 w3"}', "row 1"),
        (
            "a.jsonl",
            b'{"text": "w1 w2 w3", "prompt": "w1"}\n{"text": "w1 w2 w3"}',
            "row 2: neither 'prompt_ids'",
        ),
        ("a.jsonl", b'{"text": "w1 w2 w3"}\n{"text": "w1 w2 w3", "prompt": "w1"}', "no prompt, but row 2 has one"),
        ("a.jsonl", b'{"text": "w1 \xff"}', "row 1: not UTF-8"),
        ("a.jsonl", b"[" * 100_000, "row 1: not JSON"),
        ("a.jsonl", b'{"text": "w1 w2"}', "no text of .* is longer than window=2 tokens"),
        ("a.jsonl.gz", b"no gzip", "row 1: the file is damaged"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "w1 w2 w3"}\n' * 100)[:-12], "row .*: the file is damaged or cut short"),
        ("a.parquet", b"PAR1 no", "is no Parquet file|needs pyarrow"),
        ("a.csv", b"w1,w2", "unknown kind of file"),
    ],
)
def test_damage_is_named_with_its_row(tmp_path: Path, tokenizer: Any, name: str, content: bytes, words: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(AuditError, match=words) as error:
        read(file, tokenizer)
    assert str(error.value).startswith("watermarked_texts: ") and len(str(error.value)) < 1000


def test_files_that_are_none(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(AuditError, match="does not exist"):
        read(tmp_path / "none.jsonl", tokenizer)
    with pytest.raises(AuditError, match="is a folder"):
        read(tmp_path, tokenizer)
    os.mkfifo(tmp_path / "pipe.jsonl")  # reading one would wait for ever
    with pytest.raises(AuditError, match="does not exist"):
        read(tmp_path / "pipe.jsonl", tokenizer)


def test_a_line_of_10_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    script = """
import resource, sys
from radio_utils.audit.texts import read_texts
from radio_utils.audit import AuditError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sys.argv[1:]:
    try:
        read_texts("watermarked_texts", file, None, 20, 2)
    except AuditError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    files = [tmp_path / "a.jsonl", tmp_path / "a.txt"]
    for file in files:
        file.write_bytes(b'{"ids": [1, 2, 3')
        os.truncate(file, 10 << 30)  # a hole: it takes no room on the disk
    found = subprocess.run([sys.executable, "-c", script, *map(str, files)], capture_output=True, text=True, check=False)
    *errors, kilobytes = found.stdout.splitlines()
    assert len(errors) == 2, found.stderr
    assert all("row 1: over 268,435,456 bytes; split the text" in error for error in errors), errors
    assert int(kilobytes) < 700_000


def test_the_files_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"2")
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "inner").mkdir()
    assert sha256_of_folder(tmp_path) == {
        name: hashlib.sha256(text).hexdigest() for name, text in (("a", b"1"), ("b", b"2"))
    }


def test_a_chat_in_one_string_is_cut_where_a_text_begins(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "a.jsonl"
    rows = [
        {"prompt": "w1 w2", "text": "w3 w4 w5 w6 w7"},
        {"prompt": "w1 w2 w3 w4 w5 w6 w7 w8", "text": "w9 w10 w11 w12"},
        {"prompt": "w3 w4 w5 w6 w7", "text": "w13 w14 w15"},
        {"prompt": "w3 w4 w5 w6", "text": "w13 w14 w16"},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    found = read(file, tokenizer)
    assert found.prompts is not None
    assert [found.within(prompt) for prompt in found.prompts] == [[], [2], [0], []]
    cut = found.with_gaps_before(found)
    assert cut.prompts is not None
    expected = [[1, 2], [1, 2, -1, 3, 4, 5, 6, 7, 8], [3, 4, 5, 6, 7], [3, 4, 5, 6]]
    assert [one.tolist() for one in cut.prompts] == expected
    again = cut.with_gaps_before(found)
    assert again.digest == cut.digest != found.digest, "a text behind a gap needs none"
    assert [one.tolist() for one in cut.some([1]).prompts or []] == expected[1:2]
    file.write_text(rows_of(cut.prompts, cut.ids))
    assert read(file, tokenizer).digest == cut.digest
