"""Keys that others may have used are refused, whatever form they are written in, and no other key is."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radio_utils import compat
from radio_utils.keys import INTEGER_KEYS, SCHEMES, check_secret, known_key, short_key
from radio_utils.watermarks.prf import Key


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (15485863, "default key of transformers and of lm-watermarking"),
        ("15485863", "default key of transformers"),
        (b"15485863", "default key of transformers"),
        (" int:15485863 ", "default key of transformers"),
        ((15485863).to_bytes(4, "little"), "default key of transformers"),
        ((15485863).to_bytes(32, "big"), "default key of transformers"),
        ("0xec4ba7", "default key of transformers"),
        (3, "default seed of the paper's release"),
        (42, "vLLM's documentation"),
        ("42", "vLLM's documentation"),
        (0, "small number"),
        (1, "small number"),
        (-7, "small number"),
        (2024, "small number"),
        (1 << 31, "power of two"),
        ((1 << 63) - 1, "power of two"),
        (19991231, "a date"),
        ("24122025", "a date"),
        (123456789, "run of digits"),
        (98765432, "run of digits"),
        (77777777, "run of digits"),
        (12121212, "run of digits"),
        (50000000, "run of digits"),
        (0xDEADBEEF, "printed in many programs"),
        (1_000_000_007, "printed in many programs"),
        ("", "empty"),
        (b"", "empty"),
        (" \n", "empty"),
        ("k", "single sign"),
        (b"\n", "empty"),
        ("aaaaaaaa", "run of signs"),
        ("!?!?!?", "run of signs"),
        ("abcdef", "run of signs"),
        ("asdfgh", "run of signs"),
        ("secret", "word that anyone would try"),
        ("My Secret Key!", "word that anyone would try"),
        ("alice's secret", "word that anyone would try"),
        ("another secret", "word that anyone would try"),
        ("watermark_key", "word that anyone would try"),
        (b"password", "word that anyone would try"),
        ("demonstration key 0", "demonstration key of this book"),
        ("Demonstration Key 17", "demonstration key of this book"),
        (b"demonstration key 0", "demonstration key of this book"),
        (bytes(16), "run of bytes"),
        (b"\xff" * 32, "run of bytes"),
        (bytes(range(16)), "run of bytes"),
    ],
)
def test_a_key_that_others_know_is_refused(key: Key, words: str) -> None:
    assert words in known_key(key)
    with pytest.raises(ValueError, match=r"mark with a key that nobody can guess .16 random bytes, as hex:…"):
        check_secret(key)


@pytest.mark.parametrize("scheme", INTEGER_KEYS)
def test_a_number_with_the_lists_of_a_known_one_is_refused_too(scheme: str) -> None:
    """Their lists are named by 32 bits: a key with the same low bits as the default has the default's lists."""
    alias = 15485863 + (5 << 32)
    if "lefthash" in scheme:
        windows, tokens = np.arange(50)[:, None], np.arange(50) % 7
        lists = [
            compat.TransformersGreenList({"hashing_key": one}, 50).scores(windows, tokens) for one in (15485863, alias)
        ]
        np.testing.assert_array_equal(*lists)
    assert "default key" in known_key(alias, scheme) and not known_key(alias, "green list")
    with pytest.raises(ValueError, match="one random number of 18 digits, as int:…"):
        check_secret(alias, scheme)


@given(st.binary(min_size=16, max_size=16), st.integers(1 << 62, (1 << 63) - 1))
def test_random_keys_pass(_: bytes, __: int) -> None:
    raw, number = secrets.token_bytes(16), secrets.randbits(62) | 1 << 62
    for key in (raw, raw.hex(), number):
        check_secret(key)


def test_what_people_have_marked_with_passes() -> None:
    for key in (
        "carol's key",
        "key 17",
        "$#9!%^(*&)",
        "alice's key 4711 of the tests",
        "hunter2",
        b"\x00\xff\x10\xde\xad\xbe\xef\x5a",
        918273645546372819,
    ):
        check_secret(key)


def test_no_secret_is_quoted() -> None:
    for key in ("My Secret Key!", 19991231, 77777777, "demonstration key 17"):
        with pytest.raises(ValueError) as error:
            check_secret(key)
        assert str(key) not in str(error.value)


def test_keys_that_can_be_found_by_trying_are_told() -> None:
    for key in ("hunter2", 918273645546372819, b"1234567"):
        assert "can find the key by trying" in short_key(key)
    for key in (secrets.token_hex(16), secrets.token_bytes(8), 1 << 63, "alice's key 4711 of the tests"):
        assert short_key(key) == ""
    for scheme in SCHEMES:
        assert ("at most 32 bits" in short_key(1 << 62 | 12345, scheme)) == (scheme in INTEGER_KEYS)


def test_a_scheme_and_its_rival_take_the_same_keys() -> None:
    for name, one in SCHEMES.items():
        if one.rival:
            rival = SCHEMES[one.rival]
            assert rival.rival == name and rival.integer_keys == one.integer_keys
