"""The formulas of the engines in Python's integers, one pair at a time: what the schemes are compared with."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
A = 6364136223846793005


def signed(word: int, bits: int) -> int:
    """The signed integer with the same low bits."""
    word &= (1 << bits) - 1
    return word - (1 << bits) if word >> (bits - 1) else word


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [second >> 32 ^ c[1] ^ k[0], second & M32, first >> 32 ^ c[3] ^ k[1], first & M32]
        k = [k[0] + 0x9E3779B9 & M32, k[1] + 0xBB67AE85 & M32]
    return c


def vllm_word(key: int, context: Sequence[int], token: int) -> int:
    """The 32 bits that vLLM has for a pair."""
    low, high = key & M32, key >> 32
    state = [0x574D4358, len(context), 0, 0]
    for offset in range(0, len(context), 4):
        ids = [one & M32 for one in context[offset : offset + 4]]
        ids += [M32 - slot for slot in range(len(ids), 4)]
        state = philox([s ^ i for s, i in zip(state, ids, strict=True)], [low ^ offset, high])
    return philox([token >> 2, *state[:3]], [low ^ state[3], high ^ 0x574D544B])[token & 3]


def vllm_uniform(word: int) -> float:
    """U in float32."""
    u: float = struct.unpack("f", struct.pack("f", ((word >> 8) + 1) / (2**24 + 1)))[0]
    return u


def exponential(u: float) -> float:
    """−ln(1 − U)."""
    return -math.log1p(-u)


def dual(key: int, name: bytes) -> int:
    """vLLM's keys a and b."""
    return int.from_bytes(hashlib.sha256(name + key.to_bytes(8, "big")).digest()[:8], "big")


def jenkins(token: int) -> int:
    """SBW's hash of a token."""
    i = signed(token + 1, 32)
    for step in ((-1, 6), (0, -17), (-1, 9), (0, 4), (-1, 3), (0, 10), (0, -15)):
        shifted = i >> -step[1] if step[1] < 0 else signed(i << step[1], 32)
        i = signed(i - shifted, 32) if step[0] else signed(i ^ shifted, 32)
    return i


def sbw_green(key: int, context: Sequence[int], token: int, seeding: str, gamma: float) -> bool:
    """SBW's colour."""
    if seeding == "lefthash":
        seed = signed(key * sum(context), 64)
    else:
        own = jenkins(token)
        seed = min(signed(key * h * own, 64) for h in [own, *map(jenkins, context[1:])])
    word = philox([token >> 2, 0, 0, 0], [seed & M32, seed >> 32 & M32])[token & 3]
    return (word & 0x7FFFFFFF) < int(gamma * 0x7FFFFFFF)


def murmur(words: Sequence[int]) -> int:
    """MurmurHash3 of 32-bit words."""
    state = 0
    for word in words:
        value = word * 0xCC9E2D51 & M32
        value = (value << 15 | value >> 17) * 0x1B873593 & M32
        state ^= value
        state = (state << 13 | state >> 19) * 5 + 0xE6546B64 & M32
    state ^= 4 * len(words)
    state = (state ^ state >> 16) * 0x85EBCA6B & M32
    state = (state ^ state >> 13) * 0xC2B2AE35 & M32
    return state ^ state >> 16


def sglang_uniform(keys: Sequence[int], share: float, context: Sequence[int], token: int) -> float:
    """SGLang's U, under the key that the context's coin names."""
    ids = murmur([one for one in context if one >= 0])
    halves = [[key & M32, key >> 32] for key in keys]
    first = len(keys) == 1 or murmur([*halves[0], *halves[1], ids]) < int(share * 2**32)
    return (murmur([*halves[0 if first else 1], ids, token]) + 0.5) / 2**32


def synthid_bits(keys: Sequence[int], table: Sequence[int], context: Sequence[int], token: int) -> list[int]:
    """The bits of transformers' SynthID."""
    h = 1
    for one in [*context, token]:
        h = signed((h + max(one, 0)) * A + 1, 64)
    return [int(table[signed((h + key) * A + 1, 64) % len(table)]) for key in keys]


def reference_bits(keys: Sequence[int], context: Sequence[int], token: int) -> list[int]:
    """The bits of SynthID's authors' reference."""
    h = int.from_bytes(hashlib.sha256(struct.pack(f"<{len(keys)}q", *keys)).digest(), "big") % ((1 << 63) - 1)
    for one in [*context, token]:
        h = signed((h + max(one, 0)) * A + 1, 64)
    bits = []
    for key in keys:
        x = signed((h + key) * A + 1, 64)
        for _ in range(12):
            x = signed((x + 1) * A + 1, 64) >> 5
        bits.append(x >> 30 & 1)
    return bits
