"""Files of texts: the same verdict as the texts themselves, in any kind of file, shared out or not; damage is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from radio_utils import GreenList, detect, null_audit
from radio_utils.evidence import files as corpora

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
        ("a.jsonl", '{"ids": [1, 2, 900]}\n', r"a.jsonl, row 1: ids holds token id 900"),
        ("a.jsonl", "", "texts is empty"),
        ("a.jsonl", '{"ids": [1, 2, 3]}\n\n{"ids": [1, 2, 900]}\n', r"a.jsonl, row 3: ids holds token id 900"),
        ("a.jsonl", '{"ids": [1, 2, 3]}\n{"ids": [1]}\n', r"a.jsonl, row 2: ids has 1 tokens; at least 3"),
        ("a.jsonl", '{"ids": "abc"}\n', r"a.jsonl, row 1: ids must hold integer token ids"),
        ("a.jsonl", '{"ids": [1, 2, null]}\n', r"a.jsonl, row 1: ids must hold integer token ids"),
        ("a.jsonl", '{"ids": [1, 2, 3], "prompt_ids": 5}\n', r"a.jsonl, row 1: prompt_ids must be a flat sequence"),
        ("a.jsonl", '{"ids": [1, 2, 3], "prompt_ids": [900]}\n', r"a.jsonl, row 1: prompt_ids holds token id 900"),
        ("a.jsonl", '{"text": 5}\n', r"a.jsonl, row 1: 'text' must be a string, got int"),
        ("a.jsonl", b'{"ids": [1, 2, 3]}\n\xff\xfe\n', r"a.jsonl, row 2: not UTF-8"),
        ("a.jsonl.gz", b"hello", r"a.jsonl.gz, row 1: the file is damaged or cut short"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"ids": [1, 2, 3]}\n' * 99)[:-20],
            r"a.jsonl.gz, row \d+: the file is damaged or cut",
        ),
        ("a.parquet", "no parquet", "is no Parquet file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(corpora.CorpusError, match=words):
        detect(tmp_path / name, WM)


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize("row", [0, 7, 29])
def test_a_lost_prompt_is_named(tmp_path: Path, ending: str, row: int) -> None:
    """A first row without a prompt silently dropped the prompts of all: the copies of prompts were scored."""
    rows: list[dict[str, Any]] = [{"ids": t, "prompt_ids": p} for t, p in zip(TEXTS, PROMPTS, strict=True)]
    rows[row] = {"ids": TEXTS[row], "prompt_ids": None}
    with pytest.raises(
        corpora.CorpusError, match=rf"a{ending}, row {row + 1}: n(o prompt, but row 2|either 'prompt_ids' nor)"
    ):
        detect(write(tmp_path / f"a{ending}", rows), WM)
    if ending == ".jsonl":
        del rows[row]["prompt_ids"]
        with pytest.raises(corpora.CorpusError, match=rf"row {row + 1}: n"):
            detect(write(tmp_path / "b.jsonl", rows), WM)
    rows[row] = {"ids": TEXTS[row], "prompt_ids": []}  # said to have none
    prompts = [[] if i == row else p for i, p in enumerate(PROMPTS)]
    assert detect(write(tmp_path / f"c{ending}", rows), WM) == detect(TEXTS, WM, prompts=prompts)


def test_an_empty_string_is_no_prompt(tmp_path: Path) -> None:
    rows = [{"ids": t, "prompt": ""} for t in TEXTS]
    assert detect(write(tmp_path / "a.jsonl", rows), WM) == detect(TEXTS, WM)
    rows[3]["prompt"] = " ".join(map(str, PROMPTS[3]))
    prompts = [p if i == 3 else [] for i, p in enumerate(PROMPTS)]
    assert detect(write(tmp_path / "b.jsonl", rows), WM, tokenizer=Words()) == detect(TEXTS, WM, prompts=prompts)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_LONGEST_LINE", 100)
    (tmp_path / "a.jsonl").write_text('{"ids": [' + "1, " * 200 + "1]}", encoding="utf-8")
    with pytest.raises(corpora.CorpusError, match="row 1: over 100 bytes"):
        detect(tmp_path / "a.jsonl", WM)


def test_bad_calls_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"ids": t} for t in TEXTS])
    for call, words in (
        (lambda: detect(tmp_path / "b.jsonl", WM), "b.jsonl does not exist"),
        (lambda: detect(tmp_path, WM), "is a folder; give a list of the files in it"),
        (lambda: detect([path, [1, 2, 3]], WM), r"texts mixes paths with other things: texts\[1\] is .* but list"),
        (lambda: detect([[1, 2, 3], str(path)], WM), r"texts mixes paths with other things: texts\[0\]"),
        (lambda: detect(path, WM, dedup="both"), "^dedup must be one of"),
        (lambda: detect(Path(__file__), WM), "unknown kind of file; it must end in .jsonl"),
        (lambda: detect(path, WM, prompts=PROMPTS), "prompts must stand in the files"),
        (lambda: detect(path, WM, workers=0), "workers must be at least 1 process, got 0"),
        (lambda: detect(TEXTS, WM, workers=2), "tokenizer and workers are for files"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_plain_text_has_blank_lines_between_texts(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.txt"
    halves = [(" ".join(map(str, text[:20])), " ".join(map(str, text[20:]))) for text in TEXTS]
    path.write_bytes((end + end.join(f"{first}{end}{second}{end}{end}  {end}" for first, second in halves)).encode())
    assert detect(path, WM, tokenizer=Words()) == detect(TEXTS, WM)
    path.write_bytes(halves[0][0].encode())
    assert detect(path, WM, tokenizer=Words()) == detect([TEXTS[0][:20]], WM)


def test_plain_text_that_cannot_be_used_is_named_by_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1 2\n3\n\n\n4\n900\n5\n")
    with pytest.raises(corpora.CorpusError, match=r"a.txt, row 5: ids holds token id 900"):
        detect(path, WM, tokenizer=Words())
    monkeypatch.setattr(corpora, "_LONGEST_LINE", 12)
    path.write_text("1 2 3\n\n1 2 3\n4 5 6\n7 8 9\n")
    with pytest.raises(corpora.CorpusError, match=r"a.txt, row 3: over 12 characters; split the text"):
        detect(path, WM, tokenizer=Words())


def test_a_line_as_long_as_a_disk_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"ids": [1, 2, 3]}\n')
        file.truncate(10 * 2**30)  # a hole: it takes no room
    with pytest.raises(corpora.CorpusError, match=r"a.jsonl, row 2: over 268,435,456 bytes; split the text"):
        detect(path, WM)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    row = json.dumps({"ids": [1, 2, 3]}).encode()
    for name, content in (("a.jsonl", row), ("a.txt", b"one two")):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + content + b"\n")
        read = [text for _, text in corpora.CorpusFile(path)._lines()]
        assert read == [content.decode() + "\n"]
