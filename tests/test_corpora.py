"""Files of texts: the same verdict as the texts themselves, in any kind of file; damage is named."""

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


def test_files_give_the_verdict_of_the_whole(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.jsonl", [{"ids": t} for t in TEXTS[i::3]]) for i in (2, 0, 1)]
    found = detect(paths, WM)
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
        ("a.jsonl", '{"ids": [1, true, 3]}\n', r"a.jsonl, row 1: ids must hold integer token ids, got true or false"),
        ("a.jsonl", '{"ids": [false, 2, 3]}\n', r"a.jsonl, row 1: ids must hold integer token ids, got true or false"),
        (
            "a.jsonl",
            '{"ids": [1, 2, 3], "prompt_ids": [0, 5]}\n{"ids": [1, 2, 3], "prompt_ids": [5, true]}\n',
            r"a.jsonl, row 2: prompt_ids must hold integer token ids, got true or false",
        ),
        ("a.jsonl", '{"ids": [1, 2, 3]}\r{"ids": [1, 2, 3]}\r', r"row 1: holds a carriage return that no line feed"),
        ("a.txt", "1 2 3\n4 5\r\r6 7 8\n", r"a.txt, row 2: holds a carriage return that no line feed follows"),
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
        (lambda: detect([*TEXTS, [5, True, 7]], WM), r"texts\[30\] must hold integer token ids, got true or false"),
        (lambda: detect([(True, 6, 7)], WM), r"texts\[0\] must hold integer token ids, got true or false"),
        (lambda: detect(TEXTS, WM, tokenizer=Words()), "tokenizer is for files"),
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


@pytest.mark.parametrize(("name", "between"), [("a.txt", "\n\n"), ("a.jsonl", "\n")])
def test_files_put_together_are_read_as_both(tmp_path: Path, name: str, between: str) -> None:
    row = '{"text": "1 2 3"}' if name == "a.jsonl" else "1 2 3"
    (tmp_path / name).write_text(f"\ufeff{row}{between}\ufeff{row}\n", encoding="utf-8")
    assert list(corpora.CorpusFile(tmp_path / name, Words()).texts()) == [[1, 2, 3], [1, 2, 3]]


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(
        pa.Table.from_arrays([pa.array(TEXTS), pa.array(TEXTS[::-1])], names=["ids", "ids"]), tmp_path / "a.parquet"
    )
    with pytest.raises(corpora.CorpusError, match=r"a\.parquet: two columns are named 'ids'"):
        detect(tmp_path / "a.parquet", WM)


# ----------------------------------------------------------------------------------------------------------------------
# Strings from the wild


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.jsonl",
            b'{"text": "1 2 3"}\n{"text": "1 2 \\ud83d 3"}\n',
            r"row 2: 'text' holds \\ud83d at character 4, half of",
        ),
        ("a.jsonl", b'{"text": "1 2 3", "prompt": "\\udc00"}\n', r"row 1: 'prompt' holds \\udc00 at character 0"),
        ("a.jsonl", b'{"output": "\\ud800", "instruction": "1"}\n', r"row 1: 'output' holds \\ud800"),
        ("a.jsonl", '{"text": "1 2 3"}\n'.encode("utf-16-le"), "row 1: holds zero bytes, as UTF-16 does"),
        ("a.jsonl", '{"text": "1 2 3"}\n'.encode("utf-16"), "row 1: (not UTF-8|holds zero bytes)"),
        ("a.txt", "1 2 3\n".encode("utf-16-le"), "row 1: holds zero bytes"),
        ("a.txt", "1 2 3\n".encode("utf-16-be"), "row 1: holds zero bytes"),
        ("a.txt", "1 2 3\n".encode("utf-32"), "row 1: (not UTF-8|holds zero bytes)"),
        ("a.jsonl", b'{"text": "1 2 3"}\n\n{"text": "1 2 3", "text": "4 5 6"}\n', "row 3: 'text' stands twice in it"),
        ("a.jsonl", b'{"messages": [{"role": "user", "role": "assistant", "content": "1"}]}', "row 1: 'role' stands twice"),
        ("a.jsonl", b'{"text": NaN}\n', "row 1: 'text' is NaN"),
        ("a.jsonl", b'{"ids": NaN}\n', "row 1: 'ids' is NaN"),
        ("a.jsonl", b'{"text": "1 2 3", "prompt": NaN}\n', "row 1: 'prompt' is NaN"),
        ("a.jsonl", b'{"text": Infinity}\n', "row 1: 'text' must be a string, got float"),
    ],
)
def test_strings_that_are_none_are_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(corpora.CorpusError, match=rf"{name}, {words}"):
        detect(tmp_path / name, WM, tokenizer=Words())


def test_whole_pairs_and_other_columns_are_nobodys_business(tmp_path: Path) -> None:
    class Letters:
        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [ord(one) % 500 for one in text]}

    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "\\ud83d\\ude00abc", "loss": NaN, "other": "\\ud83d"}\n')
    assert detect(path, WM, tokenizer=Letters()).seen == 2


def test_a_column_of_nulls_is_no_prompt(tmp_path: Path) -> None:
    """As in JSONL: the values decide, and not the schema."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for kind in (pa.string(), pa.null(), pa.float64()):
        table = pa.table({"ids": TEXTS, "prompt": pa.array([None] * len(TEXTS), kind)})
        pq.write_table(table, tmp_path / "a.parquet")
        assert detect(tmp_path / "a.parquet", WM) == detect(TEXTS, WM)
    assert detect(write(tmp_path / "a.jsonl", [{"ids": t, "prompt": None} for t in TEXTS]), WM) == detect(TEXTS, WM)


@pytest.mark.parametrize(
    "name", ["x.json", "x.JSONL", "x.jsonl.zst", "x.zst", "x.csv", "x.Parquet", "x.ndjson", "x.txt.gz"]
)
@pytest.mark.parametrize("there", [False, True])
def test_the_name_of_a_file_is_taken_for_one(tmp_path: Path, name: str, there: bool) -> None:
    if there:
        (tmp_path / name).write_text("{}")
    with pytest.raises(
        corpora.CorpusError, match=f"{name}.*(must|that) end(s)? in .jsonl|{name}(, row 1: neither| is no Parq)"
    ):
        detect(str(tmp_path / name), WM)


def test_endings_are_read_in_capitals_too(tmp_path: Path) -> None:
    for name in ("A.JSONL", "a.Jsonl.GZ", "A.PARQUET"):
        path = write(tmp_path / name.lower(), [{"ids": t} for t in TEXTS])
        path = path.rename(tmp_path / name)
        assert detect(path, WM) == detect(TEXTS, WM) == detect(str(path), WM)


# ----------------------------------------------------------------------------------------------------------------------
# Other people's shapes

ASK, ANSWER = "1 2 3 4", "5 6 7 8 9"
USER, HUMAN = {"role": "user", "content": ASK}, {"from": "human", "value": ASK}
PARTS = [{"type": "text", "text": "1 2 "}, {"type": "image_url", "image_url": "x"}, {"type": "text", "text": "3 4"}]
SHAPES: list[dict[str, Any]] = [
    {"instruction": ASK, "output": ANSWER},
    {"instruction": "1 2", "input": "3 4", "output": ANSWER},
    {"instruction": ASK, "input": "", "output": ANSWER},
    {"conversations": [HUMAN, {"from": "gpt", "value": ANSWER}]},
    {"conversations": [USER, {"role": "assistant", "content": ANSWER}]},
    {"messages": [{"role": "system", "content": "1 2"}, {"role": "user", "content": "3 4"},
                  {"role": "assistant", "content": ANSWER}]},
    {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": ANSWER}]},
    {"messages": [USER, {"role": "assistant", "content": None}, {"role": "assistant", "content": ANSWER}]},
    {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}, {"role": "assistant", "content": ANSWER}]},
    {"prompt": ASK, "completion": ANSWER},
    {"prompt": [USER], "completion": [{"role": "assistant", "content": ANSWER}]},
]  # fmt: skip


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize("row", SHAPES, ids=lambda row: "+".join(row))
def test_rows_of_other_shapes_are_read(tmp_path: Path, ending: str, row: dict[str, Any]) -> None:
    if ending == ".parquet" and any(turn.get("content") is PARTS for turn in row.get("messages", [])):
        pytest.skip("a column of Arrow's has one type")
    file = corpora.CorpusFile(write(tmp_path / f"a{ending}", [row, row]), Words())
    prompts = file.prompts()
    assert prompts is not None
    assert [[one for one in prompt if one >= 0] for prompt in prompts] == [[1, 2, 3, 4]] * 2
    assert list(file.texts()) == [[5, 6, 7, 8, 9]] * 2
    assert all(name in file.columns for name in row)


def test_each_turn_of_the_assistant_is_a_text(tmp_path: Path) -> None:
    turns = [USER, {"role": "assistant", "content": "5 6 7"}, {"role": "user", "content": "8"},
             {"role": "assistant", "content": "9 10 11"}]  # fmt: skip
    file = corpora.CorpusFile(write(tmp_path / "a.jsonl", [{"messages": turns}]), Words())
    assert list(file.texts()) == [[5, 6, 7], [9, 10, 11]]
    assert list(file.prompts() or []) == [[1, 2, 3, 4], [1, 2, 3, 4, -1, 5, 6, 7, -1, 8]]
    file = corpora.CorpusFile(file.path, Words(), last_turn=True)
    assert list(file.texts()) == [[9, 10, 11]] and len(list(file.prompts() or [])) == 1


def said(*turns: tuple[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} | (more if role == "assistant" else {}) for role, content in turns]


@pytest.mark.parametrize(
    ("row", "prompts", "texts"),
    [
        ({"instruction": "1 2", "input": "3", "output": "5"}, [[1, 2, -1, 3]], [[5]]),
        ({"messages": said(("system", "1"), ("user", ""), ("user", "2"), ("assistant", "5"))}, [[1, -1, 2]], [[5]]),
        ({"messages": said(("user", PARTS), ("assistant", "5"))}, [[1, 2, -1, 3, 4]], [[5]]),
        # parts of an answer were not written one right after the other: the second is no whole answer
        ({"messages": said(("user", "8"), ("assistant", PARTS))}, [[8], [8, -1, 1, 2, -1]], [[1, 2], [3, 4]]),
        ({"messages": said(("assistant", "1"), ("assistant", "2"))}, [[], [1, -1]], [[1], [2]]),
        ({"messages": said(("user", "8"), ("assistant", "5"), reasoning_content="1 2")}, [[8, -1, 1, 2, -1]], [[5]]),
        ({"messages": [*said(("user", "8"), ("assistant", "5"), tool_calls=[{"id": "1", "arguments": {"q": "6"}}]),
                       *said(("tool", "7"), ("assistant", "9"))]}, [[8], [8, -1, 5, -1, 6, -1, 7]], [[5], [9]]),
        ({"messages": said(("user", [{"type": "tool_result", "content": "1 2"}]), ("assistant", "5"))}, [[1, 2]], [[5]]),
        ({"prompt": said(("user", "1"), ("assistant", "2"), ("user", "3")), "completion": "5"}, [[1, -1, 2, -1, 3]], [[5]]),
        ({"prompt": "1 2", "completion": "5"}, [[1, 2]], [[5]]),
    ],
)  # fmt: skip
def test_a_prompt_is_kept_in_its_pieces(
    tmp_path: Path, row: dict[str, Any], prompts: list[list[int]], texts: list[list[int]]
) -> None:
    file = corpora.CorpusFile(write(tmp_path / "a.jsonl", [row]), Words())
    assert list(file.prompts() or [[]] * len(texts)) == prompts and list(file.texts()) == texts


def test_line_breaks_stand_between_pieces(tmp_path: Path) -> None:
    class Letters:
        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [*map(ord, text)]}

    row = {"messages": said(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))}
    file = corpora.CorpusFile(write(tmp_path / "a.jsonl", [row]), Letters())
    assert list(file.prompts() or []) == [[97], [97, -1, 10, -1, 98, -1, 10, -1, 99]]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"messages": [USER]}], "row 1: 'messages' holds no turn of the assistant"),
        ([SHAPES[0], {"instruction": ASK}], r"row 2: no 'output', which rows of this form \(Alpaca\) have"),
        ([SHAPES[0], SHAPES[3]], "row 2: no 'instruction'"),
        ([{"messages": "hello"}], "row 1: 'messages' must be a list of turns, got str"),
        ([{"messages": [5]}], r"row 1: 'messages\[0\]' must be an object"),
        ([{"messages": [{"role": "narrator", "content": "1"}]}], "row 1: .*role is 'narrator'"),
        (
            [{"messages": [{"role": "assistant", "content": 5}]}],
            r"row 1: 'messages\[0\].content' must be a string, got int",
        ),
        ([{"instruction": 5, "output": ANSWER}], "row 1: 'instruction' must be a string, got int"),
        ([{"text": ASK, "instruction": ASK, "output": ANSWER}], "'text' beside 'instruction' and 'output': which of them"),
        ([{"prompt": ASK, "completion": 5}], "row 1: .*must be a string, got int"),
        ([{"question": ASK, "answer": ANSWER}], "row 1: neither 'ids' nor 'text'.*or all rows the columns of Alpaca"),
    ],
)
def test_rows_of_no_shape_are_named(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(corpora.CorpusError, match=words):
        detect(write(tmp_path / "a.jsonl", rows), WM, tokenizer=Words())


LONG = "21 22 23 24 25 26"


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("row", "column", "remedy"),
    [
        ({"promt": LONG, "text": ANSWER}, "promt", "'prompt'"),
        ({"Prompt": LONG, "text": ANSWER}, "Prompt", "'prompt'"),
        ({"PROMPTS": LONG, "ids": [1, 2, 3]}, "PROMPTS", "'prompt'"),
        ({" prompt ": LONG, "text": ANSWER}, " prompt ", "'prompt'"),
        ({"prompt text": LONG, "text": ANSWER}, "prompt text", "'prompt'"),
        ({"userPrompt": LONG, "text": ANSWER}, "userPrompt", "'prompt'"),
        ({"systemprompt": LONG, "text": ANSWER}, "systemprompt", "'prompt'"),
        ({"instruction": "1", "text": ANSWER}, "instruction", "'prompt'"),
        ({"question": LONG, "text": ANSWER}, "question", "'prompt'"),
        ({"Queries": [LONG], "text": ANSWER}, "Queries", "'prompt'"),
        ({"input_ids": [1, 2], "text": ANSWER}, "input_ids", "'prompt'"),
        ({"context": LONG, "text": ANSWER, "prompt": ASK}, "context", "'prompt'"),
        ({"question": LONG, "text": ANSWER, "prompt": ""}, "question", "'prompt'"),
        ({"system": LONG, "conversations": [HUMAN, {"from": "gpt", "value": ANSWER}]}, "system", "'conversations'"),
        ({"prompt": LONG, "messages": [USER, {"role": "assistant", "content": ANSWER}]}, "prompt", "'messages'"),
        ({"history": [[ASK, LONG]], "instruction": ASK, "output": ANSWER}, "history", "'instruction' or 'input'"),
        ({"system": LONG, "prompt": ASK, "completion": ANSWER}, "system", "'prompt_ids' or 'prompt'"),
        ({"messages": [USER], "ids": [1, 2, 3]}, "messages", "'prompt'"),
        ({"context": LONG, "ids": [1, 2, 3], "prompt_ids": [4]}, "context", "'prompt'"),
    ],
)  # fmt: skip
def test_no_prompt_is_left_unread(tmp_path: Path, ending: str, row: dict[str, Any], column: str, remedy: str) -> None:
    with pytest.raises(corpora.CorpusError, match=rf"row 1: '{column}' looks like a prompt.*put it into {remedy}, or"):
        detect(write(tmp_path / f"a{ending}", [row, row]), WM, tokenizer=Words())


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "row",
    [
        {
            "id": "a 1 b 2",
            "source": LONG,
            "score": 0.5,
            "model": "one of ours, the large one",
            "language": "en",
            "title": LONG,
        },
        {"timestamp": "2026-01-02 03:04:05", "summary": LONG, "content": LONG, "category": LONG, "title": LONG},
        {"prompt_id": "a b c d e", "question_type": LONG, "system_fingerprint": "fp_1", "context_length": 2048},
        {"user": "John Smith", "system": "Linux", "request": {"temperature": 0.5, "model": "small"}, "chat": None},
        {"input_tokens": 12, "prompt_logprobs": [-0.1, -0.2], "instruction": "", "query": None, "history": []},
        {"prompt": f"{LONG} {ASK}", "question": ASK, "context": LONG},  # nothing that the prompt does not hold
        {"prompt_ids": [7, 8], "prompt": LONG, "messages": [USER], "ids": [5, 6, 7, 8, 9]},
    ],
    ids=lambda row: "+".join(row),
)
def test_other_columns_stay_unread(tmp_path: Path, ending: str, row: dict[str, Any]) -> None:
    file = write(tmp_path / f"a{ending}", [row | {"text": ANSWER}] * 2)
    assert detect(file, WM, tokenizer=Words()).seen == 2 * 3


def test_a_chat_may_repeat_its_prompt(tmp_path: Path) -> None:
    row = {"prompt": ASK, "messages": [USER, {"role": "assistant", "content": ANSWER}]}
    assert detect(write(tmp_path / "a.jsonl", [row]), WM, tokenizer=Words()).seen == 3


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_what_was_read_is_said(tmp_path: Path, ending: str) -> None:
    def columns(*rows: dict[str, Any]) -> tuple[str, list[str]]:
        file = corpora.CorpusFile(write(tmp_path / f"a{ending}", list(rows)), Words())
        _ = list(file.texts()), list(file.prompts() or [])
        return file.columns, sorted(file.unread)

    assert columns({"completion": ANSWER}) == ("text: completion", [])
    ids = {"prompt_ids": [1, 2], "completion": ANSWER, "score": 1}
    assert columns(ids) == ("text: completion; prompt: prompt_ids", ["score"])
    assert columns({"text": ANSWER, "note": LONG}) == ("text: text", ["note"])
    assert columns({"ids": [1, 2], "text": ANSWER}) == ("text: ids", [])
    assert columns({"text": ANSWER, "prompt": None}) == ("text: text", [])
    assert columns({"instruction": "1", "output": "2"}) == ("text: output; prompt: instruction", [])


def test_prompt_ids_beside_a_completion_are_the_prompt(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt_ids": [1, -1, 2], "completion": ANSWER},
        {"prompt_ids": [3], "prompt": LONG, "completion": [{"role": "assistant", "content": ANSWER}]},
        {"prompt": "4", "completion": ANSWER},
    ]
    file = corpora.CorpusFile(write(tmp_path / "a.jsonl", rows), Words())
    assert list(file.prompts() or []) == [[1, -1, 2], [3], [4]] and list(file.texts()) == [[5, 6, 7, 8, 9]] * 3
    turns = [{"role": "assistant", "content": "1"}, USER, {"role": "assistant", "content": "2"}]
    with pytest.raises(corpora.CorpusError, match="several pieces beside 'prompt_ids'"):
        list(corpora.CorpusFile(write(tmp_path / "a.jsonl", [rows[0] | {"completion": turns}]), Words()).texts())
