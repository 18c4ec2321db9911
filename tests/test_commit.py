"""Commitments: they open with their key and parameters and nothing else, hide the key, and are never written over."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio_utils import GreenList, GumbelMax, Watermark, commit, compat
from radio_utils.commit import Commitment, Parameters, main
from radio_utils.keys import SCHEMES, known_key
from radio_utils.watermarks.prf import Key, derive_bytes

KEY, NUMBER = "a key of the tests: 90b1", 4_611_712_345_678_901
GIVEN = Parameters("green list", 2, 0.25, 500)


@pytest.fixture(scope="module")
def made() -> Commitment:
    return commit.commit(GIVEN, KEY)


def test_it_opens_with_its_key_and_parameters_only(made: Commitment) -> None:
    assert made.opens(KEY, GIVEN) and made.opens(KEY, GreenList(KEY, 500, 2, 0.25, delta=7.0))
    for changes, words in (
        ({"window": 1}, "window=2 in place of 1"),
        ({"gamma": 0.5}, "gamma=0.25 in place of 0.5"),
        ({"vocab_size": 501}, "vocab_size=500 in place of 501"),
        ({"scheme": "gumbel max"}, "scheme='green list' in place of 'gumbel max'"),
    ):
        other = dataclasses.replace(GIVEN, **changes)
        assert made.mismatch(KEY, other) == words and not made.opens(KEY, other)
    for key in (KEY + "\0", KEY.encode(), derive_bytes(KEY, "commitment", 32)):
        assert made.mismatch(key, GIVEN) == "another key"


def test_long_keys_do_not_open_like_their_hashes() -> None:
    """HMAC, which scrypt begins with, replaces keys of over 64 bytes by their SHA-256."""
    long = "0123 a long key of the tests " * 4
    found = commit.commit(GIVEN, long)
    assert found.opens(long, GIVEN)
    assert not found.opens(hashlib.sha256(long.encode()).digest(), GIVEN)
    assert not found.opens(hashlib.sha256(b"str:" + long.encode()).digest(), GIVEN)


def test_the_hash_is_scrypt_as_the_file_says(made: Commitment) -> None:
    secret = derive_bytes(KEY, "commitment", 32)
    expected = hashlib.scrypt(secret, salt=bytes.fromhex(made.salt), n=65536, r=8, p=1, maxmem=1 << 27, dklen=32)
    assert made.hash == "scrypt, n=65536, r=8, p=1" and made.digest == expected.hex()
    again = commit.commit(GIVEN, KEY)
    assert again.salt != made.salt and again.digest != made.digest and again.opens(KEY, GIVEN)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme(scheme: str) -> None:
    size, key = 997, NUMBER
    wm: Any = {
        "green list": lambda: GreenList(key, size, 2, 1 / 3),
        "gumbel max": lambda: GumbelMax(key, size, 3),
        "released green list": lambda: compat.ReleasedGreenList(key, size, 2, 0.3),
        "released gumbel max": lambda: compat.ReleasedGumbelMax(key, size, 4),
        "transformers lefthash": lambda: compat.TransformersGreenList({"hashing_key": key}, size),
        "transformers selfhash": lambda: compat.TransformersGreenList(
            {"hashing_key": key, "seeding_scheme": "selfhash", "context_width": 4, "greenlist_ratio": 1 / 3}, size
        ),
    }[scheme]()
    found = commit.commit(wm, key)
    assert found.scheme == scheme and found.window == wm.window and found.vocab_size == size
    assert found.parameters.watermark(key).fingerprint == wm.fingerprint
    assert found.opens(key, found.parameters) and not found.parameters.differences(Parameters.of(wm))
    assert (found.gamma is None) == scheme.endswith("gumbel max")
    with pytest.raises(ValueError, match="key is not the one of"):
        commit.commit(wm, key + 2)


@settings(max_examples=3)
@given(st.one_of(st.text(min_size=9), st.binary(min_size=9), st.integers(1 << 50, 1 << 90)))
def test_any_key_that_nobody_knows(key: Key) -> None:
    try:
        found = commit.commit(GIVEN, key)
    except ValueError:
        assert known_key(key)
        return
    assert found.opens(key, GIVEN)


def test_neither_key_nor_fingerprint_is_in_the_file(made: Commitment, tmp_path: Path) -> None:
    written = made.write(tmp_path / "c.json").read_text()
    wm: Watermark = GIVEN.watermark(KEY)
    for secret in (KEY, KEY.encode().hex(), wm.fingerprint.rpartition("-")[2]):
        assert secret not in written and secret not in repr(made)
    assert Commitment.read(tmp_path / "c.json") == made
    assert json.loads(written)["scheme"] == "green list"


def test_it_is_never_written_over(made: Commitment, tmp_path: Path) -> None:
    made.write(tmp_path / "c.json")
    before = (tmp_path / "c.json").read_bytes()
    with pytest.raises(ValueError, match="never written over; give another name"):
        dataclasses.replace(made, salt="0" * 64).write(tmp_path / "c.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "c.json")
    with pytest.raises(ValueError, match="never written over"):
        made.write(tmp_path / "link.json")
    assert (tmp_path / "c.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"salt": "00"}, "salt must be 64 hexadecimal digits"),
        ({"digest": None}, "digest must be"),
        ({"hash": "md5"}, "hash must be 'scrypt"),
        ({"format": "radio_utils commitment 2"}, "use the package's version that made it"),
        ({"window": 0}, "window must be a whole number"),
        ({"window": True}, "window must be a whole number"),
        ({"gamma": 1.5}, "gamma must be a number between 0 and 1"),
        ({"gamma": None}, "gamma must be a number"),
        ({"vocab_size": 2.5}, "vocab_size must be"),
        ({"scheme": "red list"}, "scheme must be one of"),
        ({"date": "yesterday"}, "date must be written as"),
        ({"date": "2026-13-01T00:00:00Z"}, "no commitment of this format"),
        ({"package": 1}, "package must be text"),
        ({"key": "x"}, "key missing or unknown"),
    ],
)
def test_what_is_no_commitment_is_told(made: Commitment, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(dataclasses.asdict(made) | changes))
    with pytest.raises(ValueError, match=words):
        Commitment.read(path)


def test_files_that_hold_none(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    for text, words in (("", "not strict JSON"), ("[]", "is no commitment"), ('{"salt": NaN}', "not strict JSON")):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            Commitment.read(path)
    with pytest.raises(ValueError, match="cannot be read"):
        Commitment.read(tmp_path / "none.json")


@pytest.mark.parametrize("key", [15485863, "42", "", "k", "demonstration key 0", b"\0" * 16])
def test_known_keys_are_refused(key: Key) -> None:
    with pytest.raises(ValueError, match="mark with a key that nobody can guess"):
        commit.commit(GIVEN, key)


def test_impossible_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="no green or no red token"):
        commit.commit(Parameters("green list", 1, 0.1, 5), KEY)
    with pytest.raises(ValueError, match="has window 1, got window=2"):
        commit.commit(Parameters("transformers lefthash", 2, 0.25, 50), NUMBER)
    with pytest.raises(ValueError, match="whole numbers as keys"):
        commit.commit(Parameters("released green list", 2, 0.25, 50), KEY)


# ----------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ALICE_KEY", KEY)
    out = tmp_path / "new" / "c.json"
    arguments = ["--key-env=ALICE_KEY", "--window=1", "--gamma=0.5", "--vocab-size=300", f"--output={out}"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert hashlib.sha256(out.read_bytes()).hexdigest() in said.out and KEY not in said.out
    assert Commitment.read(out).opens(KEY, GreenList(KEY, 300, 1, 0.5))
    before = out.read_bytes()
    assert main(arguments) == 2 and "never written over" in capsys.readouterr().err and out.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--key-env=KNOWN", "--vocab-size=300"], "default key of transformers"),
        (["--key-env=NONE", "--vocab-size=300"], "is not set"),
        (["--vocab-size=300"], "give either key_env"),
        (["--key-env=GOOD"], "give either vocab_size or the tokenizer"),
        (["--key-env=GOOD", "--vocab-size=300", "--scheme=red list"], "scheme must be one of"),
        (["--key-env=GOOD", "--vocab-size=300", "--gamma=2"], "gamma must be"),
        (["--key-env=GOOD", "--tokenizer=no/such/folder"], "no/such/folder"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    monkeypatch.setenv("KNOWN", "int:15485863")
    monkeypatch.setenv("GOOD", KEY)
    monkeypatch.delenv("NONE", raising=False)
    assert main([*arguments, f"--output={tmp_path / 'c.json'}"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and words in said.err and KEY not in said.err and said.out == ""
    assert not list(tmp_path.iterdir())


def test_it_needs_no_torch(tmp_path: Path) -> None:
    script = "import sys, radio_utils.commit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 0
