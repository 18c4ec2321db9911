"""Keys and marks as a command line is given them: a key in an environment variable or a file, a scheme by its name.

An accusation rests on nobody else having used the key. :func:`check_secret` refuses keys that software has as a default or
that papers, manuals and this book print, and those that anyone would try first; :func:`short_key` tells which of the
others could be found by trying.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from radio_utils.watermarks import GreenList, GumbelMax, Watermark
from radio_utils.watermarks.prf import Key
from radio_utils.watermarks.published import ReleasedGreenList, ReleasedGumbelMax, TransformersGreenList


class Named(NamedTuple):
    """What the name of a scheme stands for, wherever one is given: in presets, requests, commitments, practice cases."""

    make: Callable[..., Watermark]  # from key, vocabulary and window; with green lists from gamma and delta, too
    green_lists: bool = True
    integer_keys: bool = False
    one_token: bool = False  # whether a window can only be 1
    rival: str = ""  # the scheme for which it is mistaken
    stored: str = ""  # its name in a preset's dump, on which the hashes of committed records depend


def _transformers(seeding: str, key: Key, vocab_size: int, window: int, gamma: float, delta: float = 2.0) -> Watermark:
    config = {"seeding_scheme": seeding, "hashing_key": key, "greenlist_ratio": gamma, "bias": delta}
    # transformers counts the candidate token as part of selfhash's context
    return TransformersGreenList(config | {"context_width": window + (seeding == "selfhash")}, vocab_size)


SCHEMES = {
    "green list": Named(GreenList, rival="gumbel max", stored="greenlist"),
    "gumbel max": Named(GumbelMax, green_lists=False, rival="green list", stored="gumbelmax"),
    "released green list": Named(ReleasedGreenList, integer_keys=True, rival="released gumbel max"),
    "released gumbel max": Named(ReleasedGumbelMax, green_lists=False, integer_keys=True, rival="released green list"),
    "transformers lefthash": Named(partial(_transformers, "lefthash"), integer_keys=True, one_token=True),
    "transformers selfhash": Named(partial(_transformers, "selfhash"), integer_keys=True),
}
INTEGER_KEYS = tuple(name for name, one in SCHEMES.items() if one.integer_keys)
ENGINE = "engine"  # of a key that stands for one in the configuration of an inference engine
_LONGEST_KEY = 1 << 16


def read_key(key_env: str = "", key_file: str = "", scheme: str = "green list") -> Key:
    """The key in an environment variable or a file: text, ``hex:…`` or ``int:…``, without the end of its line.

    Raises ``ValueError``, which does not quote it.
    """
    if key_env:
        text, where = os.environ.get(key_env, ""), f"the environment variable key_env={key_env!r}"
        if not text:
            raise ValueError(f"{where} is not set; export it, or give key_file")
    else:
        where = f"key_file={str(key_file)!r}"
        try:
            with Path(key_file).expanduser().open("rb") as file:
                raw = file.read(_LONGEST_KEY + 1)
            text = raw.decode("utf-8")
        except OSError as error:
            raise ValueError(f"{where} cannot be read ({error.strerror}); give a readable file") from error
        except UnicodeDecodeError:
            # not chained: its message quotes bytes of the key
            raise ValueError(f"{where} is not UTF-8 text; write the key's bytes as hex:…") from None
        if len(raw) > _LONGEST_KEY:
            raise ValueError(f"{where} is longer than {_LONGEST_KEY} bytes, so it is no key; give the file of the key")
    return parsed_key(text.removeprefix("\ufeff").strip("\r\n"), where, scheme)


def parsed_key(text: str, where: str, scheme: str) -> Key:
    """The key that is written so; ``where`` it stands is for errors. Raises ``ValueError``, which does not quote it."""
    prefix, colon, rest = text.partition(":")
    if colon and prefix == "hex":
        try:
            return bytes.fromhex(rest)
        except ValueError:
            raise ValueError(
                f"{where} begins with hex: and goes on with other signs than 0-9 and a-f; write whole bytes"
            ) from None
    if (colon and prefix == "int") or scheme in INTEGER_KEYS:
        number = rest if colon and prefix == "int" else text
        if not re.fullmatch(r"\s*-?\d{1,30}\s*", number):
            raise ValueError(f"{where} must hold a whole number for scheme={scheme!r}, as int:…")
        return int(number)
    if not text:
        raise ValueError(f"{where} is empty; put the key there")
    return _engine_key(text, where) if scheme == ENGINE else text


def _engine_key(text: str, where: str) -> Any:
    """A key as configurations of engines have it: a whole number, a JSON list of them, or hexadecimal digits."""
    bare = text.strip()
    if bare.startswith("["):
        try:
            return json.loads(bare)
        except ValueError:
            raise ValueError(f"{where} begins as a JSON list and is none; write whole numbers, as [123, 456]") from None
    return int(bare, 0) if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", bare) else bare


def scheme_named(name: Any) -> Named:
    """What a scheme's name stands for. Raises ``ValueError`` where it stands for nothing."""
    if not isinstance(name, str) or name not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(map(repr, SCHEMES))}, got {name!r}")
    return SCHEMES[name]


def name_of(wm: Watermark) -> str:
    """The name of a watermark's scheme: its own, save that transformers' green lists have two here."""
    return f"transformers {wm.seeding_scheme}" if isinstance(wm, TransformersGreenList) else wm.scheme


def make_watermark(
    scheme: str, key: Key, vocab_size: int, window: int, gamma: float, delta: float | None = None
) -> Watermark:
    """A watermark by the name of its scheme. The bias δ of green lists is for writing and plays no part in detection."""
    named = scheme_named(scheme)
    if named.integer_keys and not isinstance(key, int):
        raise ValueError(f"scheme={scheme!r} has whole numbers as keys; give the key as int:…")
    if not named.green_lists:
        return named.make(key, vocab_size, window)
    return named.make(key, vocab_size, window, gamma, **({} if delta is None else {"delta": delta}))


# ---------------------------------------------------------------------------------------------------------------------
# Keys that others know

_SMALL = 1 << 20  # whole numbers below are seeds, examples and years: what people type
_LIST_BITS = 32  # of a key that the schemes with whole numbers use
_TRIED = 64  # bits below which a key can be found by trying, by whoever has marked text

_PUBLISHED = {
    15485863: "the default key of transformers and of lm-watermarking",
    42: "the key of vLLM's documentation",
    3: "the default seed of the paper's release",
    35317: "the salt of the paper's release",
}
_SYNTHID = (654, 400, 836, 123, 340, 443, 597, 160, 57, 29, 590, 639, 13, 715, 468, 990, 966, 226, 324, 585)
_CONSTANTS = {  # numbers that programs and examples are full of
    32452843, 49979687, 86028121, 179424673,  # the primes number 2, 3, 5 and 10 million
    998244353, 1000000007, 1000000009, 0x9E3779B1, 0x9E3779B9, 0x9E3779B97F4A7C15, 0x9E3779B97F4A7C13,
    0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 6364136223846793005, 1442695040888963407, 0x5DEECE66D,
    0xCAFEBABE, 0xDEADBEEF, 0xBAADF00D, 0xC0FFEE, 0xFEEDFACE, 0xDEADC0DE, 0xBADC0FFE, 0xFACEFEED, 0xABCDEF, 0x1337C0DE,
    14159265, 31415926, 314159265, 3141592653, 27182818, 271828182, 2718281828, 16180339, 161803398, 1618033988,
}  # fmt: skip
_WORDS = re.compile(  # letters and digits only, in lower case
    "(an?|my|our|your|the|this|some|super|alices?)*(secret|key|password|passphrase|watermark(ing)?|seed|token|test(ing)?)*"
    "|demo|default|dummy|example|foo(bar)?|hello(world)?|null|none|true|false|todo|changeme|letmein|bob|carol|anothersecret"
    "|correcthorsebatterystaple|akeythatnobobevermet"
)
_BOOK = re.compile(r"demonstration\s*key\b.*", re.IGNORECASE | re.DOTALL)
_ORDERS = ("0123456789" * 4, "abcdefghijklmnopqrstuvwxyz", "qwertyuiopasdfghjklzxcvbnm", "0123456789abcdef")


def check_secret(key: Any, scheme: str = "green list") -> None:
    """Raise ``ValueError``, which quotes no secret, for a key that others may have used. ``scheme`` is its watermark's."""
    if why := known_key(key, scheme):
        whole = scheme in (*INTEGER_KEYS, ENGINE)
        good = "one random number of 18 digits, as int:…" if whole else "16 random bytes, as hex:…"
        raise ValueError(
            f"the key is {why}, and text that anybody marked with it would speak against the suspect; mark with a key that "
            f"nobody can guess ({good}), for texts under this one convict nobody"
        )


def known_key(key: Any, scheme: str = "green list") -> str:
    """In what way others may know this key, in words; empty where nothing says that they do."""
    if isinstance(key, list | tuple):
        return _known_list(key)
    if isinstance(key, int):
        return _known_number(key) or (_known_number(key % (1 << _LIST_BITS)) if scheme in INTEGER_KEYS else "")
    if isinstance(key, bytes):
        if len({(b - a) % 256 for a, b in pairwise(key)}) < 2 < len(key):  # bytes(16), b"\1\2\3…"
            return "a run of bytes"
        with suppress(UnicodeDecodeError):
            if found := _known_text(key.decode("utf-8")):
                return found
        numbers = sorted({int.from_bytes(key, "big"), int.from_bytes(key, "little")})
        return next(filter(None, map(_known_number, numbers)), "")
    return _known_text(key)


def _known_list(key: Sequence[Any]) -> str:
    """Of the numbers of a list each may be small: together they are many bits, if they are not an example's."""
    if tuple(key[: len(_SYNTHID)]) == _SYNTHID[: len(key)]:
        return "the list of keys in the documentation of transformers and of synthid-text"
    if len(set(key)) < 4 or len({b - a for a, b in pairwise(key)}) < 2:
        return "a run of numbers"
    return ""


def short_key(key: Any, scheme: str = "green list") -> str:
    """A sentence for a key that can be found by trying, by whoever has marked text; empty where it cannot."""
    if key is None:  # it is known to a watermark only
        return ""
    bits = _LIST_BITS if scheme in INTEGER_KEYS else _bits(key)
    if bits >= _TRIED:
        return ""
    whose = "Keys of this scheme have" if scheme in INTEGER_KEYS else "The key has"
    return (
        f"{whose} at most {bits:.0f} bits: whoever has enough marked text can find the key by trying, and write text "
        "under it."
    )


def _bits(key: Any) -> float:
    """A bound on the bits of a key that was drawn at random from its like; words have far fewer."""
    if isinstance(key, list | tuple):
        return sum(max(1, int(one).bit_length()) for one in key)
    if isinstance(key, int):
        return key.bit_length()
    if isinstance(key, bytes):
        return 8 * len(key)
    kinds = {r"\d": 10, r"[a-z]": 26, r"[A-Z]": 26, r"[ -/:-@\[-`{-~]": 33, r"[^ -~]": 1000}
    return len(key) * math.log2(max(2, sum(size for signs, size in kinds.items() if re.search(signs, key))))


def _known_text(text: str) -> str:
    bare = text.strip().casefold()
    if bare.startswith(("int:", "hex:")):
        bare = bare[4:].strip()
    if len(bare) < 2:
        return "empty" if not bare else "a single sign"
    if re.fullmatch(r"[+-]?(\d{1,40}|0x[0-9a-f]{1,32})", bare):
        return _known_number(int(bare, 16 if "x" in bare else 10))
    if _BOOK.match(bare):
        return "a demonstration key of this book"
    letters = re.sub(r"[\W_]", "", bare)
    if _is_run(letters if len(letters) > 2 else bare):
        return "a run of signs"
    return "a word that anyone would try" if letters and _WORDS.fullmatch(letters) else ""


def _known_number(number: int) -> str:
    number = abs(number)
    if number in _PUBLISHED:
        return f"{number}, {_PUBLISHED[number]}"
    if number < _SMALL:
        return "a small number, which others use as it is small"
    if number in _CONSTANTS:
        return "a number that is printed in many programs"
    if any(near & (near - 1) == 0 for near in (number - 1, number, number + 1)):
        return "a power of two or next to one"
    digits = str(number)
    if _is_run(digits) or re.fullmatch(r"\d0{4,}", digits):
        return "a run of digits"
    return "a date" if len(digits) == 8 and _is_date(digits) else ""


def _is_run(text: str) -> bool:
    """Whether the signs repeat one or two, or stand in the order of an alphabet or a keyboard, forwards or backwards."""
    period = next(size for size in range(1, len(text) + 1) if text == (text[:size] * len(text))[: len(text)])
    return period <= 2 < len(text) or any(text in order or text[::-1] in order for order in _ORDERS)


def _is_date(digits: str) -> bool:
    for form in ("%Y%m%d", "%d%m%Y", "%m%d%Y"):
        try:
            if 1900 <= datetime.datetime.strptime(digits, form).year < 2100:
                return True
        except ValueError:
            continue
    return False
