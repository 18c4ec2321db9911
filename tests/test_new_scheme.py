"""A new watermark is one class and one law: every test then works for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

import radio_utils as ru
from radio_utils import contrast, detection, planning, querying, reading
from radio_utils import evidence as ev
from radio_utils.stats.laws import fair_bits
from radio_utils.watermarks.prf import PRF, Key
from radio_utils.watermarks.strength import Tournaments

V = 40


class TwoBits(ru.Watermark):
    """A token's score is the number of ones among two pseudo-random bits."""

    scheme, law = "two bits", fair_bits(2)

    def __init__(self, key: Key, vocab_size: int, window: int = 1) -> None:
        self.vocab_size, self.window, self._prf = vocab_size, window, PRF(key, domain=self.scheme)

    @property
    def fingerprint(self) -> str:
        return f"twobits-k{self.window}-{self._prf.fingerprint}"

    def with_key(self, key: Key) -> TwoBits:
        return TwoBits(key, self.vocab_size, self.window)

    def scores(self, windows: Any, tokens: Any) -> np.ndarray:
        w, t = self.checked(windows, tokens)
        bits = self._prf.words(self._prf.hash_windows(w), t) & np.uint64(3)
        return (bits % 2 + bits // 2).astype(np.float64)


WM = TwoBits("alice", V)


def llama(seed: int) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, **sizes))


def texts(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, (number, 30))


def marked(number: int) -> list[np.ndarray]:
    """Each token is the best of three."""
    rng, rows = np.random.default_rng(1), []
    for _ in range(number):
        row = [int(rng.integers(V))]
        for _ in range(30):
            among = rng.integers(0, V, 3)
            row.append(int(among[np.argmax(WM.scores([[row[-1]]] * 3, among))]))
        rows.append(np.array(row))
    return rows


def test_detection_and_its_null() -> None:
    assert ru.detect(marked(20), WM).log10_p < -20
    audit = ru.null_audit(marked(20), WM, keys=2000)
    assert stats.kstest(audit.uniform_p, "uniform").pvalue > 1e-3
    assert 2 <= np.count_nonzero(audit.log10_p <= -2) <= 40
    found = ru.which_key(marked(20), [WM, *(WM.with_key(f"other {i}") for i in range(9))])
    assert found.best == 0 and found.found() == [0]


def test_reading_and_contrastive_reading_of_innocents() -> None:
    verdict = ru.read_open_model(llama(1), texts(20), WM)
    assert verdict.log10_p > -3
    assert stats.kstest(detection.audit_evidence(verdict.evidence, WM, keys=2000).uniform_p, "uniform").pvalue > 1e-3
    found = reading.read_contrast(llama(1), llama(2), texts(20), 1, V)
    assert contrast.judge_contrast(found, WM).log10_p > -3
    assert stats.kstest(contrast.audit_contrast(found, WM, keys=2000).uniform_p, "uniform").pvalue > 1e-3


def test_a_suspect_that_learned_is_convicted_early_and_an_innocent_is_not() -> None:
    class Suspect:
        def __init__(self, answers: Sequence[np.ndarray]) -> None:
            self.answers, self.asked = answers, 0

        def answer(self, prompts: Sequence[Any]) -> list[np.ndarray]:
            self.asked += len(prompts)
            return list(self.answers[self.asked - len(prompts) : self.asked])

    prompts = [[i % V] for i in range(60)]
    guilty = ru.query_until(Suspect(marked(60)), prompts, WM, alpha=1e-3)
    assert guilty.convicted and guilty.asked < 60
    assert not ru.query_until(Suspect(list(texts(60, 2))), prompts, WM, alpha=1e-3).convicted


@pytest.mark.parametrize("effect", [0.1, 0.4])
def test_planned_power_is_what_is_simulated(effect: float) -> None:
    plan = planning.pairs_needed(WM, effect, log10_p=-3, power=0.9)
    reached = planning.simulate_power(WM, effect, plan.scored, log10_p=-3, repeats=1000, generator=np.random.default_rng(5))
    assert reached == pytest.approx(0.9, abs=0.04)
    assert planning.effect_seen(WM, plan.scored, log10_p=-3, power=0.9) == pytest.approx(effect, rel=0.02)


def test_what_it_will_be_worth_is_known_once_it_says_how_it_marks() -> None:
    class Played(Tournaments, TwoBits):
        depth = 2

    given: Any = {"tokens": 1e6, "rho": 0.1, "entropy": 1.0}
    with pytest.raises(ValueError, match="how strongly the scheme 'two bits' marks is not known here"):
        planning.advise(WM, **given)
    told = planning.advise(Played("alice", V), **given)
    assert told.ways == planning.advise(ru.engines.VLLMSynthID(1, V, 1, depth=2), **given).ways, "the same law and draw"
    assert told.scheme == "two bits" and told.text_tokens and 0 < told.text_effect < 1


def test_published_lists_can_be_read_against_a_reference() -> None:
    """Lists with a fixed number of greens: their bound never overstates, and decoys do not pile up at small p."""
    wm = ru.compat.ReleasedGreenList(12345, V, 1)
    found = reading.read_contrast(llama(1), llama(2), texts(20), 1, V)
    verdict = contrast.judge_contrast(found, wm)
    assert verdict.log10_p > -3
    bounds = [contrast.judge_contrast(found, wm.with_decoy(0, i)).log10_p for i in range(200)]
    assert np.mean(np.array(bounds) <= -1) <= 0.1 + 3 * np.sqrt(0.09 / 200)
    assert contrast.audit_contrast(found, wm, keys=500).ks_p > 1e-3
    shared = ru.compat.TransformersGreenList({"seeding_scheme": "selfhash", "context_width": 2, "hashing_key": 98765}, V)
    assert contrast.judge_contrast(found, shared).log10_p > -3


def test_that_pairs_share_draws_is_said_by_one_method() -> None:
    """A scheme with ``colour_ids`` is scored, watched and weighed once for each of its draws."""

    class Few(TwoBits):
        """Of windows and of tokens only the remainders matter."""

        def colour_ids(self, windows: Any, tokens: Any) -> np.ndarray:
            return (4 * (np.asarray(windows)[:, 0] % 2) + np.asarray(tokens) % 4).astype(np.uint64)

        def scores(self, windows: Any, tokens: Any) -> np.ndarray:
            return super().scores(np.asarray(windows) % 2, np.asarray(tokens) % 4)

    few = Few("alice", V)
    draws = few.scores(np.repeat([[0], [1]], 4, axis=0), np.tile(np.arange(4), 2))
    assert few.shares_colours and not WM.shares_colours
    found, watch = ru.detect(texts(20), few), querying.Watch(few)
    assert found.scored == 8 < len(found.evidence) and found.total == draws.sum()
    watch.add([[1]] * 20, list(texts(20)))  # the prompts have drawn after an odd window
    verdict = watch.verdict(1e-3, 20)
    assert verdict.scored == 4 and verdict.total == draws[:4].sum()
    weighted = contrast.Contrast(found.evidence, np.ones(len(found.evidence), np.int64))
    null, raw = contrast.null_of(weighted, few)
    counts = np.bincount(few.colour_ids(found.evidence.windows, found.evidence.tokens).astype(int))
    assert raw == counts @ draws and null.variance == pytest.approx(float(counts @ counts) * few.law.variance)
    with pytest.raises(NotImplementedError, match="ask shares_colours first"):
        WM.colour_ids(found.evidence.windows, found.evidence.tokens)


class Leaky(TwoBits):
    """After token 0 every key scores alike, as where a seed is key times the last token."""

    def with_key(self, key: Key) -> Leaky:
        return Leaky(key, self.vocab_size, self.window)

    def keyless(self, windows: Any, tokens: Any) -> np.ndarray:
        return np.asarray(windows)[:, -1] == 0

    def scores(self, windows: Any, tokens: Any) -> np.ndarray:
        w, t = self.checked(windows, tokens)
        return np.where(self.keyless(w, t), t % 2 * 2.0, super().scores(w, t))


def test_pairs_that_no_key_decides_are_counted_by_no_test() -> None:
    """Text of another key's model: after token 0 it writes what every key likes."""
    wm, rng = Leaky("alice", V), np.random.default_rng(2)
    rows = rng.integers(1, V, (200, 30))
    rows[:, ::3], rows[:, 1::3] = 0, 2 * rng.integers(1, V // 2, (200, 10)) - 1
    found = ev.collect(rows, 1, V)
    keyless = wm.keyless(found.windows, found.tokens)
    assert 10 < keyless.sum() < len(found)
    verdict = ru.detect(rows, wm)
    assert verdict.scored == len(found) - keyless.sum() and verdict.log10_p > -3
    assert ru.null_audit(rows, wm, keys=200).ks_p > 1e-3
    assert detection.curve(found, wm)[0][-1] == verdict.scored
    assert ru.which_key(rows, [wm.with_key(f"key {i}") for i in range(5)]).log10_p.min() > -3
    weighted = contrast.Contrast(found, np.where(found.tokens % 2, 3, -2))
    assert contrast.judge_contrast(weighted, wm).log10_p > -3
    assert contrast.audit_contrast(weighted, wm, keys=200).ks_p > 1e-3
    prompts = [np.arange(1, 5)] * 50
    watch = querying.Watch(wm, keep=None, dedup="window+token")
    watch.add(prompts, [row[:25] for row in rows[:50]])
    assert watch.verdict(0.001, 50).log10_p > -3
    highest = querying.audit_watch(prompts, [row[:25] for row in rows[:50]], wm, keys=200)
    assert np.mean(highest >= 1) < 0.2
