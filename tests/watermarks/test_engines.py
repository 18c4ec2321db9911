"""Marks of inference engines: the engines' own numbers, laws, writing, configurations."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slow
import torch
from numpy.typing import NDArray
from scipy import stats

import radio_utils as ru
from radio_utils import engines
from radio_utils.watermarks.philox import philox4x32

GOLDEN = Path(__file__).parents[1] / "golden" / "engines.json"
V = 1 << 18
KEY = 0xFEDCBA9876543210
Ints = NDArray[np.int64]


def pairs(window: int, count: int, seed: int = 0, size: int = V) -> tuple[Ints, Ints]:
    """Random pairs; a third of the windows begin before the start of the text."""
    rng = np.random.default_rng(seed)
    windows, tokens = rng.integers(0, size, (count, window)), rng.integers(0, size, count)
    missing = rng.integers(0, window + 1, count) * (rng.random(count) < 1 / 3)
    windows[np.arange(window) < missing[:, None]] = -1
    return windows, tokens


def test_philox_gives_the_known_answers() -> None:
    known = {
        (0, 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        (slow.M32, slow.M32): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    }
    for (counter, key), answer in known.items():
        assert tuple(int(word) for word in philox4x32([counter] * 4, [key] * 2)) == answer
        assert tuple(slow.philox([counter] * 4, [key] * 2)) == answer
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    assert [int(word) for word in philox4x32(*pi)] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_golden_vectors() -> None:
    """Scores that the engines' own files gave, with their versions."""
    golden = json.loads(GOLDEN.read_text())
    assert {case["scheme"] for case in golden} == {
        "VLLMGumbel", "VLLMDualKey", "VLLMSynthID", "VLLMGreenList", "SBW", "SGLangGumbel", "SynthID", "SynthIDReference",
        "KirchenbauerGreenList", "Unigram",
    }  # fmt: skip
    for case in golden:
        wm = getattr(engines, case["scheme"])(vocab_size=case["vocab_size"], **case["params"])
        found = wm.scores(np.array(case["windows"]), np.array(case["tokens"]))
        assert np.allclose(found, case["scores"], rtol=1e-13, atol=0), (case["scheme"], case["source"], case["params"])


def _vllm(context: list[int], token: int) -> float:
    return slow.vllm_uniform(slow.vllm_word(KEY, context, token))


def _dual(context: list[int], token: int) -> float:
    words = (slow.vllm_word(slow.dual(KEY, name), context, token) for name in (b"key_a", b"key_b"))
    a, b = (slow.exponential(slow.vllm_uniform(word)) for word in words)
    return 0.9 * a + 0.1 * b


REFERENCES: dict[str, tuple[Callable[[int], Any], Callable[[list[int], int], float]]] = {
    "gumbel": (lambda k: engines.VLLMGumbel(KEY, V, k), lambda c, t: slow.exponential(_vllm(c, t))),
    "dual key": (lambda k: engines.VLLMDualKey(KEY, V, k), _dual),
    "synthid": (
        lambda k: engines.VLLMSynthID(KEY, V, k, 20),
        lambda c, t: (slow.vllm_word(KEY, c, t) & (1 << 20) - 1).bit_count(),
    ),
    "green list": (lambda k: engines.VLLMGreenList(KEY, V, k, 0.3), lambda c, t: _vllm(c, t) < np.float32(0.3)),
    "lefthash": (
        lambda k: engines.SBW(KEY >> 1, V, k, "lefthash", 0.3),
        lambda c, t: slow.sbw_green(KEY >> 1, c, t, "lefthash", 0.3),
    ),
    "selfhash": (
        lambda k: engines.SBW(KEY >> 1, V, k, "selfhash", 0.3),
        lambda c, t: slow.sbw_green(KEY >> 1, c, t, "selfhash", 0.3),
    ),
    "sglang": (
        lambda k: engines.SGLangGumbel("0xFEDCBA9876543210", V, k),
        lambda c, t: slow.exponential(slow.sglang_uniform([KEY], 1.0, c, t)),
    ),
    "sglang, two keys": (
        lambda k: engines.SGLangGumbel(KEY, V, k, key_b="2a", mixing_probability=0.3),
        lambda c, t: slow.exponential(slow.sglang_uniform([KEY, 42], 0.3, c, t)),
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 8, 16])
def test_scores_are_the_engines_own(name: str, window: int) -> None:
    """10,000 pairs a scheme, −1 among them, tokens up to 2¹⁸."""
    make, reference = REFERENCES[name]
    windows, tokens = pairs(window, 1500, seed=window)
    expected = [float(reference(c, t)) for c, t in zip(windows.tolist(), tokens.tolist(), strict=True)]
    assert np.allclose(make(window).scores(windows, tokens), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", REFERENCES)
def test_rows_hold_the_scores_of_all_tokens(name: str) -> None:
    """What writes and what reads is one thing."""
    wm = REFERENCES[name][0](3)
    wm.vocab_size = size = 41  # not a multiple of four
    windows = np.array([[-1, -1, 5], [1, 2, 3], [-1, -1, -1]])
    scores = wm.scores(np.repeat(windows, size, axis=0), np.tile(np.arange(size), 3)).reshape(3, size)
    if isinstance(wm, engines.VLLMSynthID):
        rows = sum(layer.astype(float) for layer in wm.bit_rows(windows))
    elif hasattr(wm, "green_rows"):
        rows = wm.green_rows(windows).astype(float)
    else:
        rows = sum(share * -np.log1p(-uniforms) for share, uniforms in wm.uniform_rows(windows))
    assert np.allclose(rows, scores, rtol=1e-12)


SCHEMES = {
    "gumbel": lambda: engines.VLLMGumbel(1, 5000, 2),
    "dual key": lambda: engines.VLLMDualKey(1, 5000, 2),
    "synthid": lambda: engines.VLLMSynthID(1, 5000, 2),
    "green list": lambda: engines.VLLMGreenList(1, 5000, 2),
    "lefthash": lambda: engines.SBW(1, 5000, 2, "lefthash"),
    "selfhash": lambda: engines.SBW(1, 5000, 2, "selfhash"),
    "sglang": lambda: engines.SGLangGumbel(1, 5000, 2),
    "sglang, two keys": lambda: engines.SGLangGumbel(1, 5000, 2, key_b=2),
    "transformers": lambda: engines.SynthID(list(range(8)), 5000, 2),
    "transformers, weighted": lambda: engines.SynthID(list(range(8)), 5000, 2, weighted=True),
    "transformers, odd table": lambda: engines.SynthID(list(range(8)), 5000, 2, table_size=1009),
    "reference": lambda: engines.SynthIDReference(list(range(8)), 5000, 2),
    "unigram": lambda: engines.Unigram(1, 5000),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_null_keys_give_uniform_p_values(name: str) -> None:
    """Decoy keys on one text; the randomised p-values of a discrete statistic are uniform."""
    text = np.random.default_rng(7).zipf(1.3, 700) % 5000
    audit = ru.null_audit([text], SCHEMES[name](), keys=1000)
    assert stats.kstest(audit.uniform_p, "uniform").pvalue > 1e-3
    assert np.count_nonzero(audit.log10_p <= -2) <= 22  # in its 99.9 % interval


def test_laws_are_those_of_brute_force() -> None:
    """Sums of few scores: all cases counted."""
    bits = engines.VLLMSynthID(1, 100, 1, 3).law
    cases = [sum(case) for case in itertools.product((0, 1), repeat=6)]
    for total in range(7):
        expected = sum(case >= total for case in cases) / 64
        assert 10 ** float(bits.log10_tail(total, 2)) == pytest.approx(expected, rel=1e-9)
    sbw = engines.SBW(1, 100, gamma=0.3)
    assert sbw.gamma == int(0.3 * (2**31 - 1)) / 2**31
    assert 10 ** float(sbw.log10_p(2, 2)) == pytest.approx(sbw.gamma**2)
    one = engines.VLLMGreenList(1, 100, gamma=0.25)
    greens = sum(slow.vllm_uniform(word << 8) < 0.25 for word in range(2**22 - 50, 2**22 + 50)) + 2**22 - 50
    assert one.gamma == greens / 2**24


def test_the_dual_key_law_is_exact_and_the_engines_fit_is_not() -> None:
    """Two exponentials of scales 0.9 and 0.1, against the mixture; the engine's matched Gamma is off by decades."""
    from scipy import special

    wm = engines.VLLMDualKey(1, 100, alpha=0.1)
    for total in (0.5, 3.0, 12.0):
        expected = (0.9 * math.exp(-total / 0.9) - 0.1 * math.exp(-total / 0.1)) / 0.8
        assert 10 ** float(wm.log10_p(total, 1)) == pytest.approx(expected, rel=1e-9)
    assert engines.VLLMDualKey(1, 100, alpha=0.0).log10_p(3.0, 2) == engines.VLLMGumbel(1, 100).log10_p(3.0, 2)
    total, variance = 500.0, 0.9**2 + 0.1**2
    fitted = math.log10(special.gammaincc(200 / variance, total / variance))
    assert abs(float(wm.log10_p(total, 200)) - fitted) > 1.0


def test_unigrams_law_is_hypergeometric() -> None:
    from scipy import stats

    wm = engines.Unigram(5, 20, gamma=0.3)
    for count, total in itertools.product((0, 3, 10, 20), range(7)):
        if total <= count:
            expected = stats.hypergeom.sf(total - 1, 20, 6, count)
            assert 10 ** float(wm.log10_p(total, count)) == pytest.approx(expected, rel=1e-9)
            above = stats.hypergeom.sf(total, 20, 6, count)
            assert 10 ** float(wm.law.log10_above(total, count)) == pytest.approx(above, rel=1e-9, abs=1e-12)
    found = ru.detect([np.tile(np.arange(20), 3)], wm)
    assert (found.scored, found.total) == (20, 6) and found.log10_p == 0.0


@pytest.mark.parametrize("name", ["lefthash", "selfhash", "sglang"])
def test_pairs_of_one_colour_are_one_trial(name: str) -> None:
    """Where two pairs have equal numbers, their scores are equal under every key that keeps them equal."""
    wm = SCHEMES[name]()
    rng = np.random.default_rng(3)
    windows, tokens = rng.integers(0, 12, (4000, 2)), rng.integers(0, 12, 4000)
    ids, scores = wm.colour_ids(windows, tokens), wm.scores(windows, tokens)
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    assert np.array_equal(scores[first][inverse], scores)
    distinct = len(np.unique(np.column_stack([windows, tokens]), axis=0))
    assert len(first) < distinct if name != "sglang" else len(first) == distinct


def test_bad_input_is_said_in_one_sentence() -> None:
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: engines.VLLMGumbel(1 << 64, 100), "65 bits"),
        (lambda: engines.VLLMGumbel(-1, 100), "negative"),
        (lambda: engines.VLLMGumbel("42", 100), "got str"),  # type: ignore[arg-type]
        (lambda: engines.SBW(1 << 63, 100), "signed 64-bit"),
        (lambda: engines.VLLMSynthID(1, 100, depth=33), "depth must be"),
        (lambda: engines.VLLMGumbel(1, 100, repeats="often"), "repeats must be"),  # type: ignore[arg-type]
        (lambda: engines.SGLangGumbel("xyz", 100), "hexadecimal"),
        (lambda: engines.SGLangGumbel(1, 100, 65), "at most 64"),
        (lambda: engines.VLLMDualKey(1, 100, alpha=2.0), "alpha must lie"),
        (lambda: engines.VLLMGumbel(1, 100, 2).scores([[3, -1]], [4]), "after a token id"),
        (lambda: engines.VLLMGumbel(1, 100, 2).scores([[-2, 1]], [4]), "token id -2"),
        (lambda: engines.VLLMGumbel(1, 100, 2).scores([[-1, 1]], [-1]), "tokens holds token id -1"),
        (lambda: engines.VLLMGumbel(1, 100, 2).scores([[1, 2, 3]], [4]), r"shape \[n, 2\]"),
        (lambda: engines.SynthID([1 << 64], 100), "keys"),
        (lambda: engines.SynthID([1], 100, table=torch.zeros(8, device="meta")), "table lies on meta"),
        (lambda: engines.KirchenbauerGreenList(100, "markov"), "seeding_scheme is unknown"),
    ]
    for make, says in cases:
        with pytest.raises(ValueError, match=says) as error:
            make()
        assert "\n" not in str(error.value) and len(str(error.value)) < 420
