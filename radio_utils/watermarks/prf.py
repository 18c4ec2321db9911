"""A keyed pseudo-random function of (window, token), the same on every device.

Construction
------------
* The key, any ``str``, ``bytes`` or ``int``, goes through HKDF-SHA256 (RFC 5869) to 256 bits: four 64-bit round keys.
* A window (w₁ … w_k) is absorbed one id at a time, oldest first: h ← mix(h ⊕ (wᵢ + 1)·C). For a given h the step is a
  bijection of the id, so two windows that differ collide only by chance, at a rate of 2⁻⁶⁴ a pair.
* The *words* of a window are mix(h + (j + 1)·G), j = 0, 1, …: a counter-mode generator. A token finds its word, and its
  lane in the word, by division: one look-up is O(1), a row of V lanes of b bits costs V·b/64 words.

``mix`` is three xorshift–multiply rounds with the multipliers of Stafford's variant 13 (Steele et al., *Fast splittable
pseudorandom number generators*, OOPSLA 2014, section 4), keyed before each multiplication. It is a fast non-cryptographic
mixer: the texts do not reveal the key in practice, but no such claim is proved here.

All arithmetic is on 64-bit integers that wrap, so that numpy (uint64) and torch (int64) give the same bits. Nothing
depends on the batch, the vocabulary's padding, the ids' dtype or the device. Explained in the chapter "Decoding and
watermarking".
"""

from __future__ import annotations

import hashlib
import hmac
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import torch

Key = str | bytes | int
Words = NDArray[np.uint64]

if sys.byteorder != "little":  # lanes are views of words: their order is part of the construction
    raise ImportError("radio_utils needs a little-endian machine: watermark lanes are defined in that byte order")

_SALT = b"radio_utils/prf/1"
_ID_STEP = 0x9E3779B97F4A7C15  # odd, 2⁶⁴ divided by the golden ratio
_WORD_STEP = 0xD1B54A32D192ED03  # odd, 2⁶⁴ divided by the plastic number's square
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def derive_bytes(key: Key, purpose: str, length: int = 32) -> bytes:
    """HKDF-SHA256 of a key for one purpose. Keys of different types never coincide: the type is part of the input."""
    if isinstance(key, bool) or not isinstance(key, str | bytes | int):
        raise TypeError(f"key must be str, bytes or int, got {type(key).__name__}")
    if isinstance(key, str):
        material = b"str:" + key.encode()
    elif isinstance(key, bytes):
        material = b"bytes:" + key
    else:
        material = b"int:" + str(key).encode()
    if material in (b"str:", b"bytes:"):
        raise ValueError("key is empty; use a secret of at least 16 random bytes")
    pseudo_random_key = hmac.new(_SALT, material, hashlib.sha256).digest()
    blocks, block = b"", b""
    while len(blocks) < length:
        counter = bytes([len(blocks) // 32 + 1])
        block = hmac.new(pseudo_random_key, block + purpose.encode() + counter, hashlib.sha256).digest()
        blocks += block
    return blocks[:length]


class PRF:
    """Pseudo-random words of windows under one key. ``fingerprint`` names the key without revealing it."""

    def __init__(self, key: Key, *, domain: str = "") -> None:
        """``domain`` separates uses of one key (two schemes, say): their words are unrelated."""
        material = derive_bytes(key, "words/" + domain)
        self.round_keys: tuple[int, ...] = tuple(int.from_bytes(material[i : i + 8], "little") for i in range(0, 32, 8))
        self.fingerprint: str = derive_bytes(key, "fingerprint/" + domain, 8).hex()

    def hash_windows(self, windows: NDArray[Any]) -> Words:
        """State h of each window: ints [n, k] → uint64 [n]."""
        return self.absorb([id_steps(column) for column in np.asarray(windows).T], windows.shape[0])

    def absorb(self, steps: list[Words], count: int) -> Words:
        """State of ``count`` windows from the :func:`id_steps` of their columns, which serve any number of keys."""
        state = np.full(count, self._keys(1)[0], dtype=np.uint64)
        spare = np.empty_like(state)
        for step in steps:
            state ^= step
            self._mix_in_place(state, spare)
        return state

    def words(self, states: Words, indices: NDArray[Any]) -> Words:
        """Word number ``indices`` of each state, broadcast: uint64, int → uint64."""
        return self.words_at(states, word_steps(indices))

    def words_at(self, states: Words, steps: Words, *, into: tuple[Words, Words] | None = None) -> Words:
        """The words of states from the :func:`word_steps` of their numbers, which serve any number of keys.

        ``into`` are two arrays of the result's shape to work in; the first is returned.
        """
        if into is None:
            words = np.asarray(states + steps)
            spare = np.empty_like(words)
        else:
            words, spare = into
            np.add(states, steps, out=words)
        self._mix_in_place(words, spare)
        return words

    def _mix_in_place(self, x: Words, spare: Words) -> None:
        # in place and without fresh arrays: in blocks that fit the cache this is twice as fast
        for shift, key, multiplier in zip((30, 27, 31), self._keys(x.ndim)[1:], (_M1, _M2, _M1), strict=True):
            np.right_shift(x, np.uint64(shift), out=spare)
            np.bitwise_xor(x, spare, out=x)
            np.bitwise_xor(x, key, out=x)
            np.multiply(x, np.uint64(multiplier), out=x)
        np.right_shift(x, np.uint64(32), out=spare)
        np.bitwise_xor(x, spare, out=x)

    def hash_windows_torch(self, windows: torch.Tensor) -> torch.Tensor:
        """The torch twin of :meth:`hash_windows`: ints [n, k] → int64 [n] with the same bits, on the tensor's device."""
        import torch

        state = torch.zeros(windows.shape[:1], dtype=torch.int64, device=windows.device)
        state ^= self._torch_keys(state)[0]
        for column in windows.to(torch.int64).unbind(1):
            state = self._mix_torch(state ^ ((column + 1) * _signed(_ID_STEP)))
        return state

    def words_torch(self, states: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """The torch twin of :meth:`words`: int64, broadcast, with the same bits."""
        import torch

        return self._mix_torch(states + (indices.to(torch.int64) + 1) * _signed(_WORD_STEP))

    def _mix_torch(self, x: torch.Tensor) -> torch.Tensor:
        _, k1, k2, k3 = self._torch_keys(x)
        x = ((x ^ _shift_right(x, 30)) ^ k1) * _signed(_M1)
        x = ((x ^ _shift_right(x, 27)) ^ k2) * _signed(_M2)
        x = ((x ^ _shift_right(x, 31)) ^ k3) * _signed(_M1)
        return x ^ _shift_right(x, 32)

    def _keys(self, ndim: int) -> list[Any]:
        """The round keys as unsigned words that broadcast against an array of ``ndim`` axes."""
        return [np.uint64(key) for key in self.round_keys]

    def _torch_keys(self, like: torch.Tensor) -> list[Any]:
        """The round keys as signed words that broadcast against a tensor."""
        return [_signed(key) for key in self.round_keys]


class RowPRF(PRF):
    """Several PRFs side by side, for a batch under generation: row i of whatever is asked has the key of ``prfs[i]``."""

    def __init__(self, prfs: Sequence[PRF]) -> None:
        self._table = np.array([prf.round_keys for prf in prfs], np.uint64)

    def at(self, rows: NDArray[np.intp]) -> RowPRF:
        """The PRFs of some rows, in their order; a row may be asked for several times."""
        chosen = RowPRF([])
        chosen._table = self._table[rows]
        return chosen

    def _keys(self, ndim: int) -> list[Any]:
        return [column.reshape(-1, *[1] * (ndim - 1)) for column in self._table.T]

    def _torch_keys(self, like: torch.Tensor) -> list[Any]:
        import torch

        table = torch.from_numpy(self._table.view(np.int64)).to(like.device)
        return [column.reshape(-1, *[1] * (like.ndim - 1)) for column in table.T]


def id_steps(ids: NDArray[Any]) -> Words:
    """What a column of window ids adds to the state, before mixing; the same for every key."""
    return (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_ID_STEP)


def word_steps(indices: ArrayLike) -> Words:
    """What a word's number adds to the state, before mixing; the same for every key."""
    return (np.asarray(indices).astype(np.uint64) + np.uint64(1)) * np.uint64(_WORD_STEP)


def _signed(word: int) -> int:
    """The int64 with the same 64 bits."""
    word &= _MASK
    return word - (1 << 64) if word >> 63 else word


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift of int64: torch's own shift copies the sign bit, so the copies are masked away."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
