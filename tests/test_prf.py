"""The pseudo-random function: golden bits, twins, statistics, keys."""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from radio_utils.watermarks.prf import PRF, Key, RowPRF, derive_bytes

GOLDEN = Path(__file__).parent / "golden" / "prf.json"
MODULES = (
    "watermarks", "watermarks.prf", "compat", "evidence", "evidence.files", "stats.tails", "stats.ks", "stats.weighted",
    "detection", "eprocess", "contrast", "predictions", "remarking", "shown", "files", "provenance",
)  # fmt: skip
CORE = ("radio_utils", *(f"radio_utils.{name}" for name in MODULES))
MASK = (1 << 64) - 1


def hkdf(salt: bytes, material: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256, written from the RFC's own formulas."""
    prk = hmac.digest(salt, material, "sha256")
    t, okm, i = b"", b"", 1
    while len(okm) < length:
        t = hmac.digest(prk, t + info + i.to_bytes(1, "big"), "sha256")
        okm, i = okm + t, i + 1
    return okm[:length]


def plain_word(prf: PRF, window: list[int], index: int) -> int:
    """One word in plain Python integers, straight from the module's description."""

    def mix(x: int) -> int:
        _, k1, k2, k3 = prf.round_keys
        for shift, key, factor in (
            (30, k1, 0xBF58476D1CE4E5B9), (27, k2, 0x94D049BB133111EB), (31, k3, 0xBF58476D1CE4E5B9)
        ):  # fmt: skip
            x = ((x ^ (x >> shift) ^ key) * factor) & MASK
        return x ^ (x >> 32)

    state = prf.round_keys[0]
    for token in window:
        state = mix(state ^ ((token + 1) * 0x9E3779B97F4A7C15 & MASK))
    return mix((state + (index + 1) * 0xD1B54A32D192ED03) & MASK)


def word(prf: PRF, windows: Any, indices: Any) -> np.ndarray:
    return prf.words(prf.hash_windows(np.asarray(windows)), np.asarray(indices))


def test_reference_hkdf_passes_the_first_vector_of_rfc_5869() -> None:
    okm = hkdf(bytes(range(13)), b"\x0b" * 22, bytes(range(0xF0, 0xFA)), 42)
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"


@pytest.mark.parametrize(
    ("key", "material"),
    [("alice", b"str:alice"), (b"\x00\xff", b"bytes:\x00\xff"), (-7, b"int:-7"), ("ключ", "str:ключ".encode())],
)
@pytest.mark.parametrize("length", [1, 8, 32, 33, 100])
def test_derive_bytes_is_hkdf(key: Key, material: bytes, length: int) -> None:
    assert derive_bytes(key, "words/x", length) == hkdf(b"radio_utils/prf/1", material, b"words/x", length)


def test_round_keys_are_the_derived_bytes() -> None:
    material = derive_bytes("alice", "words/green list")
    assert PRF("alice", domain="green list").round_keys == tuple(np.frombuffer(material, "<u8").tolist())


def test_golden_vectors() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) >= 6
    for case in golden:
        key: Key = bytes.fromhex(case["key"]) if case["type"] == "bytes" else case["key"]
        prf = PRF(key, domain=case["domain"])
        assert prf.fingerprint == case["fingerprint"]
        states = prf.hash_windows(np.array(case["windows"], np.int64))
        assert [f"{x:016x}" for x in states.tolist()] == case["states"]
        words = prf.words(states[:, None], np.array(case["indices"]))
        assert [[f"{x:016x}" for x in row] for row in words.tolist()] == case["words"]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=5), st.integers(0, 2**40), st.text(min_size=1, max_size=9))
def test_words_equal_the_description_in_plain_python(window: list[int], index: int, key: str) -> None:
    prf = PRF(key)
    assert int(word(prf, [window], [index])[0]) == plain_word(prf, window, index)


@settings(max_examples=60)
@given(
    hnp.arrays(np.int64, st.tuples(st.integers(1, 20), st.integers(1, 5)), elements=st.integers(0, 2**62)),
    st.lists(st.integers(0, 2**62), min_size=1, max_size=20),
    st.binary(min_size=1, max_size=20),
)
def test_numpy_and_torch_give_the_same_bits(windows: np.ndarray, indices: list[int], key: bytes) -> None:
    prf = PRF(key)
    states, twins = prf.hash_windows(windows), prf.hash_windows_torch(torch.from_numpy(windows))
    assert np.array_equal(states, twins.numpy().view(np.uint64))
    words = prf.words(states[:, None], np.array(indices))
    assert np.array_equal(words, prf.words_torch(twins[:, None], torch.tensor(indices)).numpy().view(np.uint64))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
def test_bits_do_not_depend_on_the_ids_dtype(dtype: str) -> None:
    windows, indices = np.array([[1, 2], [127, 0], [3, 126]]), np.array([0, 1, 127])
    prf = PRF("alice")
    expected = word(prf, windows, indices)
    assert np.array_equal(word(prf, windows.astype(dtype), indices.astype(dtype)), expected)
    kind = getattr(torch, dtype)
    states = prf.hash_windows_torch(torch.from_numpy(windows).to(kind))
    found = prf.words_torch(states, torch.from_numpy(indices).to(kind))
    assert np.array_equal(found.numpy().view(np.uint64), expected)


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", ">i4"])
def test_numpy_dtypes_that_torch_lacks(dtype: str) -> None:
    windows = np.array([[1, 60000], [40000, 2]])
    assert np.array_equal(PRF(5).hash_windows(windows.astype(dtype)), PRF(5).hash_windows(windows))


def test_bits_do_not_depend_on_the_batch_or_the_memory_layout() -> None:
    windows = np.random.default_rng(0).integers(0, 50_000, (100, 3))
    prf = PRF("alice")
    whole = prf.hash_windows(windows)
    assert np.array_equal(whole, np.concatenate([prf.hash_windows(windows[i : i + 1]) for i in range(100)]))
    assert np.array_equal(whole, prf.hash_windows(np.asfortranarray(windows)))
    assert np.array_equal(whole[::-2], prf.hash_windows(windows[::-2]))
    assert np.array_equal(
        prf.hash_windows_torch(torch.from_numpy(windows).t().contiguous().t()).numpy().view(np.uint64), whole
    )


def uniform_bytes(words: np.ndarray) -> float:
    """p-value of the chi-square test that each of the eight byte lanes is uniform."""
    lanes = words.ravel().view(np.uint8).reshape(-1, 8)
    p = [stats.chisquare(np.bincount(lanes[:, i], minlength=256)).pvalue for i in range(8)]
    return float(min(p)) * 8


@pytest.mark.parametrize("k", [1, 2, 4])
def test_words_are_uniform_on_structured_input(k: int) -> None:
    """Consecutive ids, the least random input there is, under four keys."""
    base = np.arange(1 << 16)
    windows = np.stack([base if i == k - 1 else np.full_like(base, 7) for i in range(k)], axis=1)
    for key in range(4):
        words = word(PRF(key), windows, np.zeros(base.size, int))
        assert uniform_bytes(words) > 1e-6
        assert stats.kstest(words / 2.0**64, "uniform").pvalue > 1e-6
        row = PRF(key).words(PRF(key).hash_windows(windows[:1]), base)  # one window, consecutive word numbers
        assert uniform_bytes(row) > 1e-6
        assert stats.kstest(row / 2.0**64, "uniform").pvalue > 1e-6


def paired(first: np.ndarray, second: np.ndarray) -> float:
    """Smallest p-value, times the number of pairs, of tests that no two of 64 × 64 bits are correlated."""
    a = np.unpackbits(first.view(np.uint8).reshape(-1, 8), axis=1).astype(np.float32) * 2 - 1
    b = np.unpackbits(second.view(np.uint8).reshape(-1, 8), axis=1).astype(np.float32) * 2 - 1
    z = a.T @ b / np.sqrt(len(a))
    return float(2 * stats.norm.sf(float(np.abs(z).max())) * z.size)


def test_neighbours_are_independent() -> None:
    base = np.arange(20_000)
    prf, zero = PRF("alice"), np.zeros(base.size, int)
    windows = np.stack([base % 200, base // 200], axis=1)
    reference = word(prf, windows, zero)
    neighbours = {
        "next id": word(prf, windows + np.array([0, 1]), zero),
        "next id, older position": word(prf, windows + np.array([1, 0]), zero),
        "next word": word(prf, windows, zero + 1),
        "positions exchanged": word(prf, windows[:, ::-1] + np.array([0, 200]), zero),
        "next key": word(PRF("alicf"), windows, zero),
        "next integer key": word(PRF(1), windows, zero),
        "another domain": word(PRF("alice", domain="x"), windows, zero),
        "shorter window": word(prf, base[:, None], zero),
    }
    for name, other in neighbours.items():
        assert not np.any(reference == other), name
        assert paired(reference, other) > 1e-5, name


def test_every_input_bit_of_id_and_key_changes_half_of_the_output() -> None:
    rng = np.random.default_rng(1)
    windows, zero = rng.integers(0, 2**17, (4000, 2)), np.zeros(4000, int)
    prf = PRF(b"\x00" * 16)
    reference = word(prf, windows, zero)
    flips = [word(prf, windows ^ np.array(mask), zero) for b in range(17) for mask in ((1 << b, 0), (0, 1 << b))]
    flips += [word(prf, windows, zero ^ (1 << b)) for b in range(17)]
    for position in range(128):
        key = bytearray(16)
        key[position // 8] ^= 1 << position % 8
        flips.append(word(PRF(bytes(key)), windows, zero))
    for flipped in flips:
        changed = np.unpackbits((reference ^ flipped).view(np.uint8).reshape(-1, 8), axis=1)
        assert abs(changed.mean() - 0.5) < 6 * 0.5 / np.sqrt(changed.size)
        assert np.abs(changed.mean(0) - 0.5).max() < 6.5 * 0.5 / np.sqrt(len(changed))  # each output bit by itself


@pytest.mark.parametrize("k", [1, 2, 4])
def test_no_collision_in_ten_million_windows(k: int) -> None:
    base = np.arange(10_000_000)
    if k == 1:
        windows = base[:, None]
    else:  # small ids in all positions: the case in which a polynomial chain collides
        side = round(base.size ** (1 / k)) + 1
        windows = np.stack([base // side**i % side for i in range(k)], axis=1)
    states = np.sort(PRF("alice").hash_windows(windows))
    assert not np.any(states[1:] == states[:-1])


def test_keys_of_different_types_and_domains_are_unrelated() -> None:
    keys: list[Key] = ["1", b"1", 1, "int:1", b"int:1", "01", -1, b"\x01", "1 ", 0]
    prints = {PRF(key, domain=domain).fingerprint for key in keys for domain in ("", "a")}
    assert len(prints) == 2 * len(keys)
    assert len({PRF(key, domain=domain).round_keys for key in keys for domain in ("", "a")}) == 2 * len(keys)
    assert PRF("alice").fingerprint == PRF("alice").fingerprint


def test_fingerprint_does_not_hold_the_key_or_the_round_keys() -> None:
    prf = PRF("a secret of mine")
    assert "secret" not in prf.fingerprint
    assert all(f"{k:x}"[:8] not in prf.fingerprint for k in prf.round_keys)
    assert prf.fingerprint != hashlib.sha256(b"a secret of mine").hexdigest()[:16]


@pytest.mark.parametrize("key", ["", b""])
def test_empty_key_is_refused(key: Key) -> None:
    with pytest.raises(ValueError, match="key is empty"):
        PRF(key)


@pytest.mark.parametrize("key", [True, False, None, 1.0, ["a"], bytearray(b"x")])
def test_keys_of_other_types_are_refused(key: Any) -> None:
    with pytest.raises(TypeError, match="key must be str, bytes or int, got"):
        PRF(key)


BLOCK_TORCH = """
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocked())
"""
USE_THE_CORE = """
import numpy as np, radio_utils
from radio_utils import EProcess, GreenList, GumbelMax, compat, detect, null_audit, which_key
assert detect([[1, 2, 3, 4]], compat.ReleasedGreenList(3, 500, 2)).scored == 2
text = np.random.default_rng(0).integers(0, 500, (3, 40))
for wm in (GreenList("a", 500), GumbelMax("a", 500)):
    assert detect(text, wm).scored == 3 * 38
    null_audit(text, wm, keys=5)
    assert which_key(text, [wm.with_key(i) for i in range(3)]).scored == 3 * 38
    EProcess(wm).log10_e(3, 10)
"""
NO_TORCH = "\nassert not any(name.split('.')[0] in ('torch', 'transformers') for name in sys.modules)\n"


def test_importing_the_package_is_light() -> None:
    """Half a second is asked for; what would cost it is not imported before it is used."""
    code = "import sys, radio_utils; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "transformers", "scipy.stats", "pandas", "matplotlib", "pyarrow", "pydantic"):
        assert f"'{heavy}'" not in loaded, heavy


@pytest.mark.parametrize("blocked", [False, True])
def test_the_core_imports_and_works_without_torch(blocked: bool) -> None:
    imports = "".join(f"import {module}\n" for module in CORE)
    code = "import sys\n" + (BLOCK_TORCH if blocked else "") + imports + NO_TORCH + USE_THE_CORE + NO_TORCH
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 2**31))
def test_rows_of_different_keys_have_the_bits_of_their_own(keys: list[int], width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    windows, indices = rng.integers(0, 50_000, (len(keys), width)), rng.integers(0, 1000, 7)
    rows = RowPRF([PRF(key) for key in keys])
    states = rows.hash_windows(windows)
    words = rows.words(states[:, None], indices)
    for i, key in enumerate(keys):
        alone = PRF(key).hash_windows(windows[i : i + 1])
        assert states[i] == alone[0]
        assert np.array_equal(words[i], PRF(key).words(alone[:, None], indices)[0])
    twins = rows.hash_windows_torch(torch.from_numpy(windows))
    assert np.array_equal(twins.numpy().view(np.uint64), states)
    assert np.array_equal(rows.words_torch(twins[:, None], torch.from_numpy(indices)).numpy().view(np.uint64), words)
    chosen = rng.integers(0, len(keys), 9)
    again = rows.at(chosen)
    assert np.array_equal(again.hash_windows(windows[chosen]), states[chosen])
