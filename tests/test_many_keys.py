"""Many keys: one pass equals one test each, the family-wise error holds, and p-values stay true on difficult texts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from radio_utils import GreenList, GumbelMax, compat, detect, null_audit, which_key
from radio_utils.contrast import audit_contrast
from radio_utils.detection import audit_evidence
from radio_utils.querying import score_answers
from radio_utils.reading import read_contrast, read_evidence
from radio_utils.stats import ks
from radio_utils.suspects import LocalSuspect
from radio_utils.watermarks import Watermark

V = 2000
SCHEMES: list[Watermark] = [GreenList("alice", V), GumbelMax("alice", V)]


def marked(wm: Watermark, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    texts = rng.integers(0, V, (n, 40))
    for t in range(2, 40):
        options = rng.integers(0, V, (n, 3))
        scores = wm.scores(np.repeat(texts[:, t - 2 : t], 3, axis=0), options.ravel()).reshape(n, 3)
        texts[:, t] = options[np.arange(n), scores.argmax(1)]
    return texts


@pytest.mark.parametrize("wm", SCHEMES)
def test_one_pass_equals_one_test_each(wm: Watermark) -> None:
    texts = marked(wm, 10)
    candidates = [wm.with_key(i) for i in range(40)]  # type: ignore[attr-defined]
    found = which_key(texts, candidates)
    assert found.log10_p == pytest.approx([detect(texts, one).log10_p for one in candidates], rel=1e-9)
    assert found.totals == pytest.approx([detect(texts, one).total for one in candidates])
    assert found.scored == detect(texts, wm).scored


@pytest.mark.parametrize("wm", SCHEMES)
def test_the_right_key_among_two_thousand_is_found_alone(wm: Watermark) -> None:
    candidates = [wm.with_key(i) for i in range(2000)]  # type: ignore[attr-defined]
    found = which_key(marked(candidates[1234], 12), candidates)
    assert found.best == 1234
    assert found.found(1e-3) == [1234]
    assert found.log10_family[1234] == pytest.approx(found.log10_p[1234] + math.log10(2000))
    assert which_key(marked(wm, 12), candidates).found(1e-3) == []


def test_family_wise_is_holm() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.9])
    expected = np.array([0.04, 0.09, 0.09, 0.025, 0.9])
    assert 10 ** ks.family_wise(np.log10(p)) == pytest.approx(expected)
    assert ks.family_wise([-5000.0, -3.0]) == pytest.approx([-5000 + math.log10(2), -3.0])
    assert ks.family_wise(-0.5).tolist() == [-0.5]
    for bad in ([], [0.5], [math.nan]):
        with pytest.raises(ValueError, match="log10_p must be one or more"):
            ks.family_wise(bad)


def test_the_family_wise_error_holds() -> None:
    rng = np.random.default_rng(1)
    families = np.log10(rng.random((4000, 30)))
    any_rejected = np.mean([np.any(ks.family_wise(family) <= math.log10(0.05)) for family in families])
    assert any_rejected <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


def test_bad_candidates_are_named() -> None:
    texts = marked(SCHEMES[0], 2)
    with pytest.raises(ValueError, match="candidates is empty"):
        which_key(texts, [])
    released, zero = compat.ReleasedGreenList(3, V), {"hashing_key": 5}
    transformers = compat.TransformersGreenList(zero, V)
    selfhash = compat.TransformersGreenList({"seeding_scheme": "selfhash", "context_width": 2}, V)
    for one, other, words in (
        (GreenList("a", V), GreenList("a", V, gamma=0.5), r"candidates\[1\] has gamma 0.5 and candidates\[0\] has 0.25"),
        (GreenList("a", V), GumbelMax("a", V), r"candidates\[1\] has class 'GumbelMax'"),
        (GreenList("a", V), GreenList("a", V, 3), r"candidates\[1\] has window 3"),
        (released, compat.ReleasedGreenList(4, V, gamma=0.5), r"candidates\[1\] has gamma 0.5"),
        (released, compat.ReleasedGreenList(4, 2 * V), r"candidates\[1\] has vocab_size 4000"),
        (released, compat.ReleasedGumbelMax(3, V), r"candidates\[1\] has class 'ReleasedGumbelMax'"),
        (compat.ReleasedGumbelMax(3, V), GumbelMax("a", V), r"candidates\[1\] has class 'GumbelMax'"),
        (transformers, compat.TransformersGreenList({**zero, "greenlist_ratio": 0.5}, V), r"candidates\[1\] has gamma 0.5"),
        (transformers, selfhash, r"candidates\[1\] has seeding_scheme 'selfhash'"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            which_key(texts, [one, other])
        assert "with_key" not in str(caught.value)
    assert which_key(texts, [released, compat.ReleasedGreenList(4, V)]).log10_p.shape == (2,)
    with pytest.raises(ValueError, match="alpha must lie strictly between"):
        which_key(texts, [GreenList("a", V)]).found(0)


def lefthash(key: int, vocab_size: int = V) -> compat.TransformersGreenList:
    return compat.TransformersGreenList({"hashing_key": key}, vocab_size)


def selfhash(key: int) -> compat.TransformersGreenList:
    return compat.TransformersGreenList({"hashing_key": key, "seeding_scheme": "selfhash", "context_width": 4}, 300)


@pytest.mark.parametrize(
    ("candidates", "pair"),
    [
        ([GreenList(k, V) for k in ("a", "b", "a")], (0, 2)),
        ([GumbelMax(k, V) for k in ("b", "a", "c", "b")], (0, 3)),
        ([GreenList(k, V, 1, 0.01) for k in (*range(300), 7)], (7, 300)),
        ([lefthash(k) for k in (5, 15485863, 15485863 + 2**32)], (1, 2)),
        ([lefthash(k) for k in (15485863, 3, 15485863 + 77 * 2**32)], (0, 2)),
        ([lefthash(k) for k in (0, 2**32, 7)], (0, 1)),
        ([selfhash(k) for k in (5, 9, 5)], (0, 2)),
        ([compat.ReleasedGreenList(k, V) for k in (3, 4, 3)], (0, 2)),
        ([compat.ReleasedGreenList(k, V) for k in (3, 4, 2**64 + 3)], (1, 2)),
        ([compat.ReleasedGumbelMax(k, V) for k in (8, 3, 3)], (1, 2)),
        ([compat.ReleasedGumbelMax(k, V) for k in (3, 3 + 2**32)], (0, 1)),
    ],
    ids=str,
)
def test_two_candidates_that_are_one_key_are_refused(candidates: list[Watermark], pair: tuple[int, int]) -> None:
    """Both would be found, whichever of them wrote the texts, and each of them has another owner."""
    texts = np.random.default_rng(0).integers(0, candidates[0].vocab_size, (3, 20))
    with pytest.raises(ValueError, match=rf"candidates\[{pair[0]}\] and candidates\[{pair[1]}\] are one key in effect"):
        which_key(texts, candidates)
    different = [one for i, one in enumerate(candidates) if i != pair[1]]
    assert which_key(texts, different).log10_p.size == len(different)


def test_two_keys_that_share_many_colours_are_not_both_found() -> None:
    """Beyond 2⁶⁴ lefthash's products wrap: keys that agree on small ids and not on large ones; selfhash's least product."""
    rng = np.random.default_rng(1)
    for one, other, largest in ((lefthash(15485863, 20_000), lefthash(15485863 + 2**52, 20_000), 8000),
                                (selfhash(15485863), selfhash(15485863 + 2**32), 300)):  # fmt: skip
        texts = rng.integers(0, largest, (40, 50))
        for t in range(one.window, 50):
            options = rng.integers(0, largest, (40, 6))
            scores = one.scores(np.repeat(texts[:, t - one.window : t], 6, axis=0), options.ravel()).reshape(40, 6)
            texts[:, t] = options[np.arange(40), scores.argmax(1)]
        with pytest.raises(ValueError, match=r"candidates\[0\] and candidates\[1\] share \d+% of their colours"):
            which_key(texts, [other, one])
        unrelated = type(one)({**one.config, "hashing_key": 12345677}, one.vocab_size)
        assert which_key(texts, [unrelated, one]).found() == [1]
        assert which_key(texts, [unrelated, other]).log10_p.size == 2


def test_unrelated_keys_are_never_refused() -> None:
    """Ten thousand keys, rare colours, small vocabularies, and texts that leave nothing to compare."""
    texts = np.random.default_rng(0).integers(0, 30, (3, 20))
    assert which_key(texts, [GreenList(i, V) for i in range(10_000)]).log10_p.size == 10_000
    for gamma in (0.04, 0.25, 0.96):
        assert which_key(texts, [GreenList(i, 30, 1, gamma) for i in range(1000)]).log10_p.size == 1000
    assert which_key([[1, 2, 3]], [GreenList(i, V) for i in range(50)], prompts=[[1, 2, 3]]).found() == []
    marked_by = GreenList(3, V)
    assert which_key(marked(marked_by, 3), [GreenList(i, V) for i in range(100)]).found() == [3]


HEADERS = ["### Instruction:", "What is the name of", "### Response:", "The function returns", "Parameters", "See also"]
SENTENCES = {
    "repetitive": ["the same words again and again, the same words again"] * 60,
    "templated": [f"{h} item {i}: {h} value {i % 7}" for i in range(40) for h in HEADERS],
    "multilingual": [
        "La pluie tombe sur la ville et personne ne sort.", "Der Regen fällt auf die Stadt, und niemand geht hinaus.",
        "La pioggia cade sulla città e nessuno esce.", "La lluvia cae sobre la ciudad y nadie sale.",
        "Дождь идёт над городом, и никто не выходит.", "雨が町に降り、誰も外に出ない。",
        "المطر ينزل على المدينة ولا يخرج أحد.",
    ] * 8,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", SENTENCES)
@pytest.mark.parametrize("make", [GreenList, GumbelMax])
def test_false_alarms_on_difficult_texts_under_ten_thousand_keys(kind: str, make: type) -> None:
    """Bytes as tokens: p-values uniform, and the rate at α = 1/1000 inside its 99 % binomial interval."""
    texts = [list(sentence.encode()) for sentence in SENTENCES[kind]]
    wm = make("alice", 256, 2)
    audit = null_audit(texts, wm, keys=10_000, seed=5)
    assert audit.ks_p > 1e-3
    alarms = int(np.sum(audit.uniform_p <= 1e-3))
    low, high = stats.binom.interval(0.99, 10_000, 1e-3)
    assert low <= alarms <= high
    assert np.sum(audit.log10_p <= -3) <= high  # as a verdict quotes them, never more


@pytest.mark.slow
@pytest.mark.parametrize("test", ["reading", "contrastive", "querying"])
def test_false_alarms_of_an_innocent_model_under_ten_thousand_keys(test: str) -> None:
    """The three tests of a model, on one that nobody marked: uniform, and no more alarms than α promises."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def model(seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
                max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=None,
            )
        ).eval()  # fmt: skip

    rng = np.random.default_rng(7)
    wm = GreenList("alice", 300, 1)
    texts, prompts = rng.integers(2, 300, (60, 60)), rng.integers(2, 300, (60, 5))
    if test == "reading":
        audit = audit_evidence(read_evidence(model(1), texts, 1, 300, prompts=prompts), wm, keys=10_000, seed=8)
    elif test == "contrastive":
        found = read_contrast(model(1), [model(2), model(3)], texts, 1, 300, prompts=prompts)
        audit = audit_contrast(found, wm, keys=10_000, seed=8)
    else:
        answers = LocalSuspect(model(1), (), max_new_tokens=40).answer(prompts)
        audit = audit_evidence(score_answers(prompts, answers, wm).evidence, wm, keys=10_000, seed=8)
    assert audit.ks_p > 1e-3
    low, high = stats.binom.interval(0.99, 10_000, 1e-3)
    assert low <= int(np.sum(audit.uniform_p <= 1e-3)) <= high
    assert np.sum(audit.log10_p <= -3) <= high
