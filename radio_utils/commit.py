"""A commitment: what fixes a watermark before there is a suspect, and tells nobody its key.

Of 40,000 keys one finds "its" mark in any model. So a verdict is worth more where the key was fixed before the suspect
existed. A commitment is a small file with the scheme, all parameters and a salted slow hash of the key. It is published
where its date can be proved (a transparency log, a notary, a newspaper), and the audit opens it. The hash is scrypt
(RFC 7914) of 256 bits that HKDF derives from the key: it binds, as two keys of one hash would be a collision of SHA-256,
and it hides, as far as the key itself cannot be guessed. The watermark's own fingerprint is a fast hash of the key, by
which a weak one is found sooner; it is left out.

>>> from radio_utils.commit import commit
>>> commit(wm, key).write("commitment.json")

``python -m radio_utils.commit --key-env ALICE_KEY --window 1 --vocab-size 32000 --output commitment.json`` does it in a
shell. Several keys are several files; whoever publishes many and audits with the best must divide α by their number.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import hmac
import json
import os
import re
import secrets
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from radio_utils.files import read_json, sha256_of
from radio_utils.keys import SCHEMES, check_secret, make_watermark, name_of, read_key, scheme_named
from radio_utils.watermarks import Watermark
from radio_utils.watermarks.prf import Key, derive_bytes

FORMAT = "radio_utils commitment 1"
_COST = {"n": 1 << 16, "r": 8, "p": 1}  # 64 MiB and some tenths of a second a guess
_HASH = "scrypt, n=65536, r=8, p=1"
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Parameters:
    """What a scheme needs beside its key. ``gamma`` is None where the scheme has no green lists."""

    scheme: str
    window: int
    gamma: float | None
    vocab_size: int

    def __post_init__(self) -> None:
        named = scheme_named(self.scheme)
        for name in ("window", "vocab_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not named.green_lists:
            object.__setattr__(self, "gamma", None)
        elif isinstance(self.gamma, bool) or not isinstance(self.gamma, int | float) or not 0 < self.gamma < 1:
            raise ValueError(f"gamma must be a number between 0 and 1, both excluded, got {self.gamma!r}")

    @classmethod
    def of(cls, wm: Watermark) -> Parameters:
        """Those of a watermark."""
        # ⌊γV⌋ need not survive γ → ⌊γV⌋ / V, so of other people's lists the γ that was asked for is kept
        return cls(name_of(wm), int(wm.window), wm.asked_gamma, int(wm.vocab_size))

    def watermark(self, key: Key) -> Watermark:
        """The watermark under a key. Raises ``ValueError`` for parameters that are impossible together."""
        wm = make_watermark(self.scheme, key, self.vocab_size, self.window, self.gamma or 0.5)
        if wm.window != self.window:
            raise ValueError(f"scheme={self.scheme!r} has window {wm.window}, got window={self.window}; correct it")
        return wm

    def differences(self, other: Parameters) -> list[str]:
        """The names of the parameters that differ; two γ that no float tells apart are one."""
        if self.scheme != other.scheme:
            return ["scheme"]  # the others need not be comparable
        names = [one.name for one in dataclasses.fields(self) if one.name != "gamma"]
        found = [name for name in names if getattr(self, name) != getattr(other, name)]
        if abs((self.gamma or 0.0) - (other.gamma or 0.0)) > 2**-32:  # the resolution of lanes
            found.append("gamma")
        return found


@dataclass(frozen=True)
class Commitment:
    """A fingerprint of key and parameters that may be published. ``salt`` and ``digest`` are 64 hexadecimal digits each.

    ``date`` (UTC, ISO 8601) is what its maker's clock said: it is proved only by where and when the file was published.
    ``package`` is the version that made it.
    """

    scheme: str
    window: int
    gamma: float | None
    vocab_size: int
    salt: str
    digest: str
    date: str
    package: str
    hash: str = _HASH
    format: str = FORMAT

    def __post_init__(self) -> None:
        for name, only in (("format", FORMAT), ("hash", _HASH)):
            if getattr(self, name) != only:
                raise ValueError(
                    f"{name} must be {only!r}, got {getattr(self, name)!r}; use the package's version that made it"
                )
        Parameters(self.scheme, self.window, self.gamma, self.vocab_size)
        for name in ("salt", "digest"):
            if not isinstance(getattr(self, name), str) or not _HEX.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} must be 64 hexadecimal digits, got {getattr(self, name)!r}")
        if not isinstance(self.package, str):
            raise ValueError(f"package must be text, got {self.package!r}")
        if not isinstance(self.date, str) or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", self.date):
            raise ValueError(f"date must be written as 2026-01-31T23:59:59Z, got {self.date!r}")
        datetime.fromisoformat(self.date)

    @property
    def parameters(self) -> Parameters:
        """What is committed to beside the key."""
        return Parameters(self.scheme, self.window, self.gamma, self.vocab_size)

    def opens(self, key: Key, parameters: Parameters | Watermark) -> bool:
        """Whether it commits to this key with these parameters, or those of a watermark."""
        return not self.mismatch(key, parameters)

    def mismatch(self, key: Key, parameters: Parameters | Watermark) -> str:
        """In what it differs, in words; empty where it opens."""
        given = Parameters.of(parameters) if isinstance(parameters, Watermark) else parameters
        if other := self.parameters.differences(given):
            return " and ".join(f"{name}={getattr(self, name)!r} in place of {getattr(given, name)!r}" for name in other)
        return "" if hmac.compare_digest(_digest(key, self.salt), self.digest) else "another key"

    @classmethod
    def read(cls, path: Path | str) -> Commitment:
        """The commitment in a file. Raises ``ValueError`` for one that cannot be read or is none, saying what is wrong."""
        try:
            found = read_json(Path(path).expanduser())
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}); give the file that was published") from error
        names = {one.name for one in dataclasses.fields(cls)}
        if not isinstance(found, dict) or found.keys() != names:
            wrong = sorted(found.keys() ^ names) if isinstance(found, dict) else sorted(names)
            raise ValueError(
                f"{path} is no commitment: {', '.join(wrong)} missing or unknown; give the file that was published"
            )
        try:
            return cls(**found)
        except ValueError as error:
            raise ValueError(f"{path} is no commitment of this format: {error}") from error

    def write(self, path: Path | str) -> Path:
        """Write it to a new file. Raises ``ValueError`` where something has this name: nothing is written over."""
        target = Path(path).expanduser()
        text = json.dumps(dataclasses.asdict(self), allow_nan=False, ensure_ascii=False, indent=1) + "\n"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise _exists(target) from None
        return target


def commit(of: Watermark | Parameters, key: Key) -> Commitment:
    """Commit to a key and the parameters of a watermark, with a fresh salt, today.

    Parameters
    ----------
    of : Watermark or Parameters
        What is committed to beside the key.
    key : str, bytes or int
        The secret: at least 16 random bytes. Keys of different types are different keys.

    Returns
    -------
    Commitment
        Parameters, date, salt and a slow hash of the key.

    Raises
    ------
    ValueError
        For a key that others may know (:func:`radio_utils.keys.check_secret`), one that is not the watermark's, and
        impossible parameters.
    TypeError
        For a key of another type than text, bytes or a whole number.

    Notes
    -----
    scrypt: C. Percival, *Stronger key derivation via sequential memory-hard functions*, 2009.

    Examples
    --------
    >>> import radio_utils as ru
    >>> from radio_utils.commit import commit
    >>> key = "hex:" + "5b" * 7 + "c0ffee" * 3
    >>> wm = ru.GreenList(key, vocab_size=1000, window=1)
    >>> commit(wm, key).opens(key, wm)
    True
    """
    from radio_utils import __version__

    parameters = Parameters.of(of) if isinstance(of, Watermark) else of
    check_secret(key, parameters.scheme)
    made = parameters.watermark(key)
    if isinstance(of, Watermark) and of.fingerprint != made.fingerprint:
        raise ValueError(f"key is not the one of {of.fingerprint}; give the watermark's own key")
    salt = secrets.token_hex(32)
    return Commitment(
        **dataclasses.asdict(parameters),
        salt=salt,
        digest=_digest(key, salt),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        package=f"radio_utils {__version__}",
    )


def _exists(path: Path) -> ValueError:
    return ValueError(f"{path} exists, and a commitment is never written over; give another name")


def _digest(key: Key, salt: str) -> str:
    # scrypt pads and hashes its password as HMAC does, so that different ones may agree: it is given 32 derived bytes
    secret = derive_bytes(key, "commitment", 32)
    return hashlib.scrypt(secret, salt=bytes.fromhex(salt), dklen=32, maxmem=1 << 27, **_COST).hex()


def main(arguments: list[str] | None = None) -> int:
    """Write one commitment."""
    parser = argparse.ArgumentParser(
        prog="radio_utils.commit", description="Fix a watermark before there is a suspect, without telling its key."
    )
    parser.add_argument("--key-env", default="", help="environment variable that holds the key: text, hex:… or int:…")
    parser.add_argument("--key-file", default="", help="file that holds it")
    parser.add_argument("--scheme", default="green list", help=f"one of {', '.join(SCHEMES)}")
    parser.add_argument("--window", type=int, default=2)
    parser.add_argument("--gamma", type=float, default=0.25)
    parser.add_argument("--vocab-size", type=int, default=0, help="as the audit will be given it")
    parser.add_argument("--tokenizer", default="", help="folder or hub name of Alice's tokenizer, in place of --vocab-size")
    parser.add_argument("--output", type=Path, required=True, help="the file to write and publish")
    options = parser.parse_args(arguments)
    try:
        path = _written(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: sha256 {sha256_of(path)}; publish the file where its date can be proved, and keep it for the audit")
    return 0


def _written(options: Any) -> Path:
    if bool(options.key_env) == bool(options.key_file):
        raise ValueError("give either key_env, the environment variable that holds the key, or key_file, its file")
    if bool(options.vocab_size) == bool(options.tokenizer):
        raise ValueError("give either vocab_size or the tokenizer that it is counted from")
    size = options.vocab_size
    if options.tokenizer:
        from radio_utils.suspects import load_tokenizer  # needs torch

        size = max(load_tokenizer(options.tokenizer).get_vocab().values()) + 1  # as an audit counts it
    parameters = Parameters(options.scheme, options.window, options.gamma, size)
    if os.path.lexists(options.output.expanduser()):  # said before a key is read and hashed
        raise _exists(options.output)
    return commit(parameters, read_key(options.key_env, options.key_file, options.scheme)).write(options.output)


if __name__ == "__main__":
    sys.exit(main())
