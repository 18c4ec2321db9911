"""SynthID: transformers' own bits, the true law, what the usual law does to long texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slow
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers import SynthIDTextWatermarkingConfig
from transformers.generation.logits_process import SynthIDTextWatermarkLogitsProcessor

import radio_utils as ru
from radio_utils import detection, engines
from radio_utils import evidence as ev

V = 1 << 18
KEYS = [654, 400, 836, 123, 340, 443, 597, 160, 57, 29, 590, 639, 13, 715, 468, 990, 966, 226, 324, 585, 118, 504, 421, 521,
        129, 669, 732, 225, 90, 960]  # fmt: skip
Ints = NDArray[np.int64]


def own(wm: ru.SynthID, **options: Any) -> SynthIDTextWatermarkLogitsProcessor:
    return SynthIDTextWatermarkLogitsProcessor(
        ngram_len=wm.window + 1, keys=list(wm._keys), sampling_table_size=wm.table_size,
        sampling_table_seed=wm.table_seed, context_history_size=wm.context_history_size, device="cpu", **options,
    )  # fmt: skip


def own_bits(wm: ru.SynthID, windows: Ints, tokens: Ints) -> Ints:
    ngrams = torch.from_numpy(np.column_stack([np.maximum(windows, 0), tokens]))
    processor = own(wm)
    bits: Ints = processor.sample_g_values(processor.compute_ngram_keys(ngrams[None]))[0].numpy()
    return bits


@pytest.mark.parametrize(
    ("window", "size", "seed"),
    [(1, 65536, 0), (2, 65536, 1), (4, 65536, 2), (4, 1 << 10, 3), (8, 1000, 4), (16, 65537, 2**40 + 1), (3, 2, 10)],
)
def test_bits_are_transformers_own(window: int, size: int, seed: int) -> None:
    """10,000 pairs in all, keys of 64 bits with either sign, −1 before the start, tables of any size and seed."""
    rng = np.random.default_rng(window)
    keys = [*rng.integers(-(2**63), 2**63 - 1, 7).tolist(), 0, 2**63 - 1, -(2**63)]
    windows, tokens = rng.integers(0, V, (1500, window)), rng.integers(0, V, 1500)
    windows[:100, 0] = -1
    wm = ru.SynthID(keys, V, window, table_seed=seed, table_size=size)
    bits = own_bits(wm, windows, tokens)
    assert np.array_equal(wm.g_values(windows, tokens), bits)
    assert np.array_equal(wm.scores(windows, tokens), bits.sum(axis=1))
    few = zip(windows[:99].tolist(), tokens[:99].tolist(), strict=True)
    assert np.array_equal([slow.synthid_bits(keys, wm.table, *one) for one in few], bits[:99])
    weights = np.linspace(10.0, 1.0, len(keys))
    weighted = ru.SynthID(keys, V, window, table_seed=seed, table_size=size, weighted=True)
    assert np.allclose(weighted.scores(windows, tokens), bits @ weights * len(keys) / weights.sum(), rtol=1e-12)


def test_a_sequences_bits_are_compute_g_values() -> None:
    wm = ru.SynthID(KEYS, V)
    text = np.random.default_rng(0).integers(0, V, 300)
    expected = own(wm).compute_g_values(torch.from_numpy(text)[None])[0].numpy()
    windows = np.lib.stride_tricks.sliding_window_view(text, 4)[:-1]
    assert np.array_equal(wm.g_values(windows, text[4:]), expected)


@pytest.mark.parametrize("size", [1 << 8, 100, 257])
def test_the_law_is_the_histogram_of_all_evidence(size: int) -> None:
    """Every H counted, for words of few bits: the same construction with 2⁶⁴ replaced is not needed, hashes are drawn."""
    keys = [5, -(2**62), 2**63 - 1, 77]
    wm = ru.SynthID(keys, V, 1, table_size=size, table_seed=3)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, 400_000, dtype=np.uint64) << np.uint64(1) | rng.integers(
        0, 2, 400_000, dtype=np.uint64
    )
    words = (hashes[:, None] + np.array([key % 2**64 for key in keys], np.uint64)) * np.uint64(slow.A) + np.uint64(1)
    scores = wm.table[words.view(np.int64) % size].sum(axis=1)
    counts = np.array([np.count_nonzero(scores == value) for value in wm.law.values])
    assert counts.sum() == scores.size
    expected = np.array(wm.law.chances) * scores.size
    common = expected > 5
    assert stats.chi2.sf((((counts - expected) ** 2 / expected)[common]).sum(), common.sum() - 1) > 1e-4


def test_equal_evidence_means_equal_bits() -> None:
    for size in (1 << 8, 300):
        wm = ru.SynthID(KEYS[:6], V, 2, table_size=size)
        rng = np.random.default_rng(1)
        windows, tokens = rng.integers(0, V, (5000, 2)), rng.integers(0, V, 5000)
        ids, bits = wm.colour_ids(windows, tokens), wm.g_values(windows, tokens)
        _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        assert np.array_equal(bits[first][inverse], bits)
        assert first.size <= 256 if size == 256 else first.size <= 300 * 13


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_million_plain_tokens_fail_the_usual_law_and_not_ours(seed: int) -> None:
    """Bin(mn, ½) has z of −4, +3 and −24 for table seeds 0, 1 and 2; the histogram and the test by counts do not."""
    rng = np.random.default_rng(seed)
    wm = ru.SynthID(KEYS, V, table_seed=seed)
    n = 1_000_000
    windows, tokens = rng.integers(0, V, (n, 4)), rng.integers(0, V, n)
    total = float(wm.scores(windows, tokens).sum())
    usual = (total - 15.0 * n) / np.sqrt(7.5 * n)
    expected = (-4.2, 2.8, -23.7)[seed]
    assert (wm.law.mean - 15.0) * n / np.sqrt(7.5 * n) == pytest.approx(expected, abs=0.1)
    assert abs(usual - expected) < 3.5
    # keys and table are fixed, the text is random
    assert abs((total - wm.law.mean * n) / np.sqrt(wm.law.variance * n)) < 3.5
    assert -3 < float(wm.log10_p(total, n)) <= 0
    assert -3 < detection.judge(ev.from_pairs(windows, tokens, V), wm).log10_p <= 0


def test_texts_of_a_million_tokens_have_uniform_p_values() -> None:
    """The law that the total of a random text has: its evidence is uniform, so texts are drawn as counts of u."""
    rng = np.random.default_rng(5)
    wm = ru.SynthID(KEYS, V, table_seed=2)
    values = wm._by_residue[0].astype(np.float64)
    totals = [float(rng.multinomial(1_000_000, np.full(65536, 1 / 65536)) @ values) for _ in range(150)]
    p = 10.0 ** np.asarray(wm.log10_p(totals, 1_000_000))
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    usual = stats.norm.sf((np.array(totals) - 15e6) / np.sqrt(7.5e6))
    assert usual.min() > 0.99  # overlooks any mark


def test_the_test_by_counts_is_exact_for_every_text() -> None:
    """Given the pairs, be they what they may, p over random keys is uniform; here all keys of a tiny table are tried."""
    size, depth = 16, 2
    text = np.random.default_rng(0).integers(0, 5, 200)
    wms = [ru.SynthID([a, b], 8, 1, table_size=size, table_seed=4) for a in range(size) for b in range(size)]
    found = ev.collect([text], 1, 8)
    totals = np.array([wm.scores(found.windows, found.tokens).sum() for wm in wms])
    for wm, total in zip(wms[1::18], totals[1::18], strict=True):
        verdict = ru.detect([text], wm)
        assert verdict.total == total and verdict.scored == len(found) > size
        expected = np.count_nonzero(totals >= total) / size**depth
        assert 10**verdict.log10_p == pytest.approx(expected, rel=1e-9)
        assert detection.curve(found, wm, points=5)[1][-1] == verdict.log10_p
    for other in (ru.SynthID([1, 2], 8, 1, table_size=10), ru.SynthID([1, 17], 8, 1, table_size=16)):
        assert other.colours is None, "bits that wrap, layers that are equal"
        with pytest.raises(ValueError, match="layers that all differ"):
            other.judged_by_counts(np.ones(other.table_size, np.int64), [other])
        assert ru.detect([text], other).scored < len(found)


def test_a_mark_is_found_in_a_text_that_shows_every_evidence() -> None:
    """Counting each u once sees nothing there. Decoys are judged as the key is."""
    rng = np.random.default_rng(1)
    wm = ru.SynthID(KEYS, V, 2, table_size=1 << 12)
    windows, tokens = rng.integers(0, V, (60_000, 2)), rng.integers(0, V, (60_000, 2))
    # of two candidates the one with the higher score, in one position of twenty
    scores = np.stack([wm.scores(windows, column) for column in tokens.T], axis=1)
    chosen = np.where(rng.random(60_000) < 0.05, scores.argmax(axis=1), 0)
    found = ev.from_pairs(windows, tokens[np.arange(60_000), chosen], V)
    once = ev.first_appearances(wm.colour_ids(found.windows, found.tokens))
    assert once.sum() == 1 << 12
    assert wm.log10_p(wm.scores(found.windows[once], found.tokens[once]).sum(), 1 << 12) > -0.5
    verdict = detection.judge(found, wm)
    n = len(found)
    z = (verdict.total - wm.law.mean * n) / np.sqrt(wm.law.variance * n)
    assert z > 5 and verdict.log10_p == pytest.approx(stats.norm.logsf(z) / np.log(10), rel=0.1)
    audit = detection.audit_evidence(found, wm, keys=1000)
    assert stats.kstest(audit.uniform_p, "uniform").pvalue > 1e-3 and audit.min_log10_p > -6


def test_the_references_bits_and_its_law_that_is_no_sum_of_fair_bits() -> None:
    keys = [*KEYS[:4], -(2**63), 2**63 - 1]
    wm = engines.SynthIDReference(keys, V, 4)
    rng = np.random.default_rng(2)
    windows, tokens = rng.integers(0, V, (1500, 4)), rng.integers(0, V, 1500)
    windows[:50, :2] = -1
    expected = [slow.reference_bits(keys, *one) for one in zip(windows.tolist(), tokens.tolist(), strict=True)]
    assert np.array_equal(wm.g_values(windows, tokens), expected)
    many = rng.integers(0, V, (300_000, 5))
    for chosen in (keys, np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 30).tolist()):
        wm = engines.SynthIDReference(chosen, V, 4)
        scores, fair = wm.scores(many[:, :4], many[:, 4]), len(chosen) / 4
        assert wm.law.mean == pytest.approx(2 * fair)
        assert abs(scores.mean() - wm.law.mean) < 4 * np.sqrt(wm.law.variance / scores.size)
        assert abs(scores.var() / fair - 1) > 0.03  # layers depend on one another
        assert scores.var() == pytest.approx(wm.law.variance, rel=0.015)


def test_a_table_of_a_gpu_can_be_given() -> None:
    table = np.random.default_rng(0).integers(0, 2, 4096)
    wm = ru.SynthID([1, 2, 3], V, 2, table=torch.from_numpy(table))
    same = ru.SynthID([1, 2, 3], V, 2, table_size=4096)
    assert wm.table_size == 4096 and wm.fingerprint != same.fingerprint and wm.parameters != same.parameters
    processor = own(same)
    processor.sampling_table = torch.from_numpy(table)
    text = torch.arange(50)[None] * 7
    bits = processor.compute_g_values(text)[0].numpy()
    windows = np.lib.stride_tricks.sliding_window_view(text[0].numpy(), 2)[:-1]
    assert np.array_equal(wm.g_values(windows, text[0, 2:].numpy()), bits)
    for wrong in (np.full(8, 2), np.zeros((2, 4)), np.zeros(1)):
        with pytest.raises(ValueError, match="table must be a row"):
            ru.SynthID([1], V, table=wrong)


def test_writing_is_transformers_own_step_by_step() -> None:
    """The same logits in, the same probabilities out: at the start, at repeated contexts, with skipped calls."""
    for skip in (False, True):
        wm = ru.SynthID(KEYS[:5], 6, 2, skip_first_ngram_calls=skip)
        ours, theirs = wm.logits_processor(), own(wm, skip_first_ngram_calls=skip)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, 6, (4, 3), generator=generator)
        repeated = 0
        for _ in range(30):
            logits = torch.randn(4, 6, generator=generator)
            mine, other = ours(ids, logits), theirs(ids, logits)
            assert torch.allclose(mine.softmax(-1), other.softmax(-1), atol=1e-5)
            repeated += int((mine == logits).all(dim=1).sum())
            ids = torch.cat([ids, torch.randint(1, 6, (4, 1), generator=generator)], dim=1)
        assert repeated > 8


def test_the_configuration_is_transformers_own() -> None:
    config = SynthIDTextWatermarkingConfig(ngram_len=3, keys=KEYS[:4], sampling_table_size=512, sampling_table_seed=9)
    wm = engines.from_config(config, V)
    assert isinstance(wm, ru.SynthID)
    assert wm.fingerprint == ru.SynthID(KEYS[:4], V, 2, table_size=512, table_seed=9).fingerprint
    text = np.random.default_rng(0).integers(0, V, 100)
    processor = config.construct_processor(V, "cpu")
    bits = processor.compute_g_values(torch.from_numpy(text)[None])[0].numpy()
    windows = np.lib.stride_tricks.sliding_window_view(text, 2)[:-1]
    assert np.array_equal(wm.scores(windows, text[2:]), bits.sum(axis=1))


def test_which_of_many_keys_wrote_a_text_is_told_by_each_keys_own_law() -> None:
    rng = np.random.default_rng(3)
    wms = [ru.SynthID(rng.integers(-(2**63), 2**63 - 1, 30).tolist(), 4096, 2) for _ in range(4)]
    text, generator = [1, 2], torch.Generator().manual_seed(0)
    processor = wms[2].logits_processor()
    processor.start(2)
    for _ in range(200):
        logits = processor(torch.tensor([text]), torch.zeros(1, 4096))
        text.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
    found = ru.which_key([text], wms)
    assert found.best == 2 and found.found(1e-6) == [2]
    alone = ru.detect([text], wms[2])
    assert found.log10_p[2] == pytest.approx(alone.log10_p)
