"""Files of texts: the same verdict as the texts themselves, in any kind of file, shared out or not; damage is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radio_utils import GreenList, corpora, detect, null_audit

WM = GreenList("alice", 500, 2)
TEXTS = np.random.default_rng(0).integers(0, 500, (30, 40)).tolist()
PROMPTS = [text[:10] for text in TEXTS]


class Words:
    """A tokenizer of numbers."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [int(word) for word in text.split()]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    data = "".join(json.dumps(row) + "\n" for row in rows) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data.encode()))
    else:
        path.write_text(data, encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_file_gives_the_verdict_of_its_texts(tmp_path: Path, ending: str, as_text: bool) -> None:
    if as_text:
        both = zip(TEXTS, PROMPTS, strict=True)
        rows = [{"text": " ".join(map(str, t)), "prompt": " ".join(map(str, p))} for t, p in both]
    else:
        rows = [{"ids": t, "prompt_ids": p, "other": "x"} for t, p in zip(TEXTS, PROMPTS, strict=True)]
    path = write(tmp_path / f"a{ending}", rows)
    tokenizer = Words() if as_text else None
    assert detect(path, WM, tokenizer=tokenizer) == detect(TEXTS, WM, prompts=PROMPTS)
    assert detect(str(path), WM, tokenizer=tokenizer, dedup="window") == detect(TEXTS, WM, prompts=PROMPTS, dedup="window")
    plain = write(tmp_path / f"b{ending}", [{k: v for k, v in row.items() if not k.startswith("prompt")} for row in rows])
    assert detect(plain, WM, tokenizer=tokenizer) == detect(TEXTS, WM)
    assert null_audit(plain, WM, keys=5, tokenizer=tokenizer).log10_p.shape == (5,)


@pytest.mark.parametrize("workers", [1, 2])
def test_files_shared_out_give_the_verdict_of_the_whole(tmp_path: Path, workers: int) -> None:
    paths = [write(tmp_path / f"{i}.jsonl", [{"ids": t} for t in TEXTS[i::3]]) for i in (2, 0, 1)]
    found = detect(paths, WM, workers=workers)
    assert found == detect(TEXTS, WM)
    assert np.array_equal(found.evidence.windows, detect(TEXTS, WM).evidence.windows)


def test_texts_may_be_an_endless_looking_stream() -> None:
    once = iter(TEXTS)
    assert detect(once, WM) == detect(TEXTS, WM)
    assert next(once, None) is None
    assert detect(iter(TEXTS), WM, prompts=iter(PROMPTS)) == detect(TEXTS, WM, prompts=PROMPTS)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"ids": [1, 2, 3]}\n{"ids": [1, 2\n', r"a.jsonl, row 2: not JSON"),
        ("a.jsonl", "[1, 2, 3]\n", "row 1: a row must be a JSON object, got list"),
        ("a.jsonl", '{"x": 1}\n', "row 1: neither 'ids' nor 'text'"),
        ("a.jsonl", '{"text": "a b"}\n', "row 1: 'text' is text; give tokenizer="),
        ("a.jsonl", '{"ids": [1, 2, 900]}\n', r"texts\[0\] holds token id 900"),
        ("a.jsonl", "", "texts is empty"),
        ("a.parquet", "no parquet", "is no Parquet file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        detect(tmp_path / name, WM)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_LONGEST_LINE", 100)
    (tmp_path / "a.jsonl").write_text('{"ids": [' + "1, " * 200 + "1]}", encoding="utf-8")
    with pytest.raises(corpora.CorpusError, match="row 1: over 100 characters"):
        detect(tmp_path / "a.jsonl", WM)


def test_bad_calls_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"ids": t} for t in TEXTS])
    for call, words in (
        (lambda: detect(tmp_path / "b.jsonl", WM), "b.jsonl does not exist"),
        (lambda: detect(Path(__file__), WM), "unknown kind of file; it must end in .jsonl"),
        (lambda: detect(path, WM, prompts=PROMPTS), "prompts must stand in the files"),
        (lambda: detect(path, WM, workers=0), "workers must be at least 1 process, got 0"),
        (lambda: detect(TEXTS, WM, workers=2), "tokenizer and workers are for files"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
