"""The parameters of an audit: what is refused, in which words, and that no word holds the key."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radio_utils import GreenList, GumbelMax, compat
from radio_utils.audit import AuditError, Request, read_key
from radio_utils.keys import SCHEMES, make_watermark, parsed_key

GIVEN: dict[str, Any] = {"suspect": "bob", "watermarked_texts": "marked.jsonl", "key": "k"}


def made(**changes: Any) -> Request:
    return Request(**(GIVEN | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suspect": ""}, "suspect is empty; give a folder"),
        ({"watermarked_texts": ""}, "watermarked_texts is empty"),
        ({"output_dir": ""}, "output_dir is empty"),
        ({"scheme": "red list"}, "scheme must be one of 'green list', .*got 'red list'"),
        ({"api": "soap"}, "api must be one of 'completions', 'chat', got 'soap'"),
        ({"access": "half"}, "access must be one of 'open', 'closed', 'both', got 'half'"),
        ({"window": 0}, "window must be a whole number of at least 1, got 0"),
        ({"window": 1001}, "window must be at most 1,000, got 1,001"),
        ({"decoys": 10**12}, "decoys must be at most 1,000,000, got 1,000,000,000,000"),
        ({"seed": 2**63}, "seed must be at most"),
        ({"window": True}, "window must be a whole number"),
        ({"window": "2"}, "window must be a whole number"),
        ({"full_context": "perhaps"}, "full_context must be True or False, 1 or 0, 'yes' or 'no', got 'perhaps'"),
        ({"rehearsal": 2}, "rehearsal must be True or False"),
        ({"worlds": -1}, "worlds must be a whole number of at least 0"),
        ({"control_texts": 0}, "control_texts must be a whole number of at least 1"),
        ({"delta": -1.0}, "delta must be a number that is not negative"),
        ({"alice_temperature": math.inf}, "alice_temperature must be"),
        ({"suspect": "a.jsonl", "tokenizer": "t", "alice": "b"}, "alice is compared by its weights"),
        ({"decoys": 98}, "decoys must be a whole number of at least 99"),
        ({"max_requests": -1}, "max_requests must be a whole number of at least 0"),
        ({"gamma": 1.0}, "gamma must be a number between 0 and 1, both excluded, got 1.0"),
        ({"gamma": math.nan}, "gamma must be"),
        ({"alpha": 0.0}, "alpha must be a number between 0 and 0.5"),
        ({"alpha": 0.5}, "alpha must be"),
        ({"temperature": -0.1}, "temperature must be a number that is not negative"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"price_in": "cheap"}, "price_in must be"),
        ({"suspect": "http://localhost:1", "tokenizer": "t"}, "suspect_model is empty"),
        ({"suspect": "https://x", "suspect_model": "m"}, "tokenizer is empty, and this suspect brings none"),
        ({"suspect": "a.jsonl"}, "tokenizer is empty"),
        ({"suspect": "a.jsonl", "tokenizer": "t", "access": "open"}, "access='open' needs the suspect's weights"),
        ({"suspect": "a.parquet", "tokenizer": "t", "access": "both"}, "access='both' needs"),
        ({"suspect": "http://me:pass@[broken", "access": "open"}, "suspect is no address of a server"),
        ({"dtype": "int8"}, "dtype must be one of 'float32', 'bfloat16', 'float16', got 'int8'"),
        ({"suspect": "a.jsonl", "tokenizer": "t", "reference": "b"}, "reference is compared by its weights"),
        ({"scheme": "transformers lefthash", "window": 2}, "looks at one token only, so window must be 1, got 2"),
        ({"key": None}, "give either key_env.* or key_file"),
        ({"key": None, "key_env": "A", "key_file": "b"}, "give either key_env.* or key_file"),
        ({"key_env": "A"}, "key is given twice"),
        ({"suspect": "b\0b"}, "suspect holds signs that are no text"),
        ({"suspect": 5}, "suspect must be text or a path, got 5"),
        ({"watermarked_texts": ["a"]}, r"watermarked_texts must be text or a path, got \['a'\]"),
        ({"key_env": 5}, "key_env must be text"),
        ({"temperature": True}, "temperature must be"),
        ({"suspect": "answers.txt"}, "suspect='answers.txt' is a file; answers are read from .jsonl"),
        ({"suspect": "localhost:8723/v1"}, "looks like a server's address; begin it with http://"),
        ({"watermarked_texts": "caf\udce9.jsonl"}, "watermarked_texts holds signs that are no text"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(AuditError, match=words) as error:
        made(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["full_context", "rehearsal"])
def test_yes_and_no_in_every_spelling(name: str) -> None:
    for yes, no in ((True, False), (1, 0), ("yes", "no"), ("True", "False"), ("1", "")):
        assert getattr(made(**{name: yes}), name) is True and getattr(made(**{name: no}), name) is False


def test_kinds_and_modes() -> None:
    assert (made().kind, made().modes) == ("model", ("open",))
    assert made(access="both").modes == ("open", "closed") and made(access="closed").modes == ("closed",)
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        assert (made(suspect=name, tokenizer="t").kind, made(suspect=name, tokenizer="t").modes) == ("answers", ("closed",))
    for name in ("http://h", "HTTPS://h/v1"):
        found = made(suspect=name, suspect_model="m", tokenizer="t")
        assert found.is_endpoint and (found.kind, found.modes) == ("endpoint", ("closed",))


@given(st.text("abcXYZ019-_", min_size=1), st.text("abcXYZ019-_", min_size=8))
def test_an_address_is_shown_without_its_credentials(user: str, password: str) -> None:
    where = f"https://{user}:{password}@host.example:8000/v1?token={password}#{password}"
    found = made(suspect=where, suspect_model="m", tokenizer="t")
    assert found.shown_suspect == "https://host.example:8000/v1"
    assert found.public()["suspect"] == found.shown_suspect and password not in str(found.public())


def test_keys_come_from_the_environment_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "key"
    monkeypatch.setenv("THE_KEY", "hex:00ff")
    assert made(key=None, key_env="THE_KEY").secret() == b"\x00\xff"
    for written, expected in (
        (b" a key \n", " a key "),
        (b"int:-12\r\n", -12),
        (b"hex:0a 0b\n", b"\n\x0b"),
        (b"x:y", "x:y"),
        (b"\xef\xbb\xbfa key\n", "a key"),
    ):
        file.write_bytes(written)
        assert made(key=None, key_file=file).secret() == expected == read_key(key_file=str(file))
        monkeypatch.setenv("THE_KEY", written.decode())
        assert made(key=None, key_env="THE_KEY").secret() == expected
    assert made(key=b"raw").secret() == b"raw"


@given(st.binary(min_size=1), st.integers(-(10**29), 10**29), st.text(min_size=1).filter(lambda text: ":" not in text))
def test_every_key_can_be_written_down(raw: bytes, number: int, text: str) -> None:
    assert parsed_key(f"hex:{raw.hex()}", "there", "green list") == raw
    assert parsed_key(f"int:{number}", "there", "green list") == number
    assert parsed_key(text, "there", "gumbel max") == text
    assert parsed_key(str(number), "there", "released green list") == number


@pytest.mark.parametrize(
    ("written", "scheme", "words"),
    [
        (b"", "green list", "is empty; put the key there"),
        (b"\n", "green list", "is empty"),
        (b"hex:SECRET99", "green list", "begins with hex: and goes on with other signs"),
        (b"int:SECRET99", "green list", "must hold a whole number"),
        (b"SECRET99", "released green list", "must hold a whole number for scheme='released green list'"),
        (b"hex:99", "transformers selfhash", "whole numbers as keys"),
        (b"\xff\xfeSECRET99", "green list", "is not UTF-8 text; write the key's bytes as hex:"),
        (b"SECRET99" * 10_000, "green list", "longer than 65536 bytes"),
        (b"hex:", "green list", "key is empty"),
    ],
)
def test_bad_keys_are_not_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bytes, scheme: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)  # whose name may hold any digits
    Path("key").write_bytes(written)
    with pytest.raises(AuditError, match=words) as error:
        made(key=None, key_file="key", scheme=scheme).watermark(50)
    assert "SECRET99" not in str(error.value) and "99" not in str(error.value).replace("99 ", "")


def test_keys_that_are_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THE_KEY", raising=False)
    for changes, words in (
        ({"key_env": "THE_KEY"}, "key_env='THE_KEY' is not set; export it"),
        ({"key_file": str(tmp_path / "none")}, "cannot be read .No such file"),
        ({"key_file": str(tmp_path)}, "cannot be read .Is a directory"),
        ({"key_file": "/dev/zero"}, "is longer than 65536 bytes"),
    ):
        with pytest.raises(AuditError, match=words):
            made(key=None, **changes).secret()


def test_a_request_can_be_shown() -> None:
    found = made(key="SECRET99", seed=3)
    assert "SECRET99" not in repr(found) and "SECRET99" not in str(found.public())
    assert "key" not in found.public() and found.public()["seed"] == 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_are_those_of_the_package(scheme: str) -> None:
    key, size, window = 15485863, 64, 1 if scheme == "transformers lefthash" else 2
    lefthash = {"greenlist_ratio": 0.5, "hashing_key": key, "seeding_scheme": "lefthash", "context_width": 1}
    expected: Any = {
        "green list": lambda: GreenList(key, size, 2, 0.5),
        "gumbel max": lambda: GumbelMax(key, size, 2),
        "released green list": lambda: compat.ReleasedGreenList(key, size, 2, 0.5),
        "released gumbel max": lambda: compat.ReleasedGumbelMax(key, size, 2),
        "transformers lefthash": lambda: compat.TransformersGreenList(lefthash, size),
        "transformers selfhash": lambda: compat.TransformersGreenList(
            lefthash | {"seeding_scheme": "selfhash", "context_width": 3}, size
        ),
    }[scheme]()
    found = make_watermark(scheme, key, size, window, 0.5)
    assert (found.fingerprint, found.window) == (expected.fingerprint, window)
    draw = np.random.default_rng(0)
    windows, tokens = draw.integers(0, size, (200, window)), draw.integers(0, size, 200)
    np.testing.assert_array_equal(found.scores(windows, tokens), expected.scores(windows, tokens))
    assert 0 < found.scores(windows, tokens).mean() < 2


def test_the_vocabulary_is_the_tokenizers_unless_another_is_given() -> None:
    assert made().watermark(50).vocab_size == 50 and made(vocab_size=64).watermark(50).vocab_size == 64


@pytest.mark.parametrize("mark", [False, "green list", 0])
def test_a_mark_that_is_no_watermark_is_refused(mark: Any) -> None:
    with pytest.raises(AuditError, match=f"mark must be a radio_utils.Watermark, got {type(mark).__name__}"):
        Request(suspect="bob", watermarked_texts="a.jsonl", mark=mark)
