"""Membership inference: losses against torch on full logits, zlib, and the KS test against scipy."""

from __future__ import annotations

import math
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn import functional

import radio_utils as ru
from radio_utils import membership

VOCABULARY = 40


class Characters:
    """A tokenizer of characters: token id = place in the alphabet."""

    alphabet = "abcdefghijklmnopqrstuvwxyz .,0123456789"

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        assert isinstance(texts, list) and not add_special_tokens
        return {"input_ids": [[self.alphabet.index(letter) for letter in text] for text in texts]}

    def decode(self, ids: list[int]) -> str:
        return "".join(self.alphabet[i] for i in ids)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


TEXTS = ["to be or not", "a", "the quick brown fox jumps over the lazy dog", "aaaaaaaaaa", "no. 42"]
PROMPTS = ["hamlet ", "b", "", "count", "0123456789 "]


def by_hand(model: Any, prompt: str, text: str) -> float:
    """The total loss of one text from the logits of one unpadded forward pass."""
    tokenizer = Characters()
    head, body = (tokenizer([part], add_special_tokens=False)["input_ids"][0] for part in (prompt, text))
    ids = torch.tensor([head + body])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0]
    first = max(1, len(head))
    return float(functional.cross_entropy(logits[first - 1 : -1], ids[0, first:], reduction="sum"))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_losses_are_cross_entropy_on_the_full_logits(model: Any, batch_size: int) -> None:
    texts = [text for text in TEXTS if len(text) > 1]
    found = membership.losses(model, Characters(), texts, batch_size=batch_size)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [by_hand(model, "", text) for text in texts], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_losses_after_prompts_are_taken_on_the_text_only(model: Any, batch_size: int) -> None:
    found = membership.losses(model, Characters(), TEXTS, prompts=PROMPTS, batch_size=batch_size)
    expected = [by_hand(model, prompt, text) for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.allclose(found[[0, 3]], membership.losses(model, Characters(), [TEXTS[0], TEXTS[3]])), "prompts matter"


def test_losses_refuse_what_has_none(model: Any) -> None:
    def fails(match: str, *args: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=match):
            membership.losses(model, Characters(), *args, **options)

    fails("texts is empty", [])
    fails(r"texts\[1\] is too short", ["fine", ""])
    fails(r"texts\[0\] is too short", ["a"])
    fails(r"texts\[0\] is too short", [""], prompts=["a long prompt"])
    fails("1 prompts for 2 texts", ["fine", "too"], prompts=["one"])
    fails("batch_size must be at least 1", ["fine"], batch_size=0)
    fails("batch_size must be at least 1", ["fine"], batch_size=-4)
    fails("got one string", "fine")


def test_a_text_beyond_the_limit_is_refused_not_cut(model: Any) -> None:
    """Cut, its loss would be small and its zlib entropy whole: it would look like a member."""
    with pytest.raises(ValueError, match=r"texts\[1\] has 21 tokens with its prompt, more than max_length=20"):
        membership.losses(model, Characters(), ["fine", "x" * 11], prompts=["", "y" * 10], max_length=20)
    assert membership.losses(model, Characters(), ["x" * 10], prompts=["y" * 10], max_length=20)[0] > 0


def test_zlib_entropy_is_the_length_of_the_compression() -> None:
    for text in ("", "a", "abc" * 500, "naïve ρ", "to be or not to be"):
        packed = zlib.compress(text.encode(), 9)
        assert membership.zlib_entropy(text) == len(packed)
        assert zlib.decompress(packed).decode() == text
    assert membership.zlib_entropy("it returns. " * 20) < membership.zlib_entropy(str(list(range(70))))


def test_calibrated_losses_are_losses_over_entropy(model: Any) -> None:
    expected = [
        by_hand(model, prompt, text) / len(zlib.compress(text.encode(), 9))
        for prompt, text in zip(PROMPTS, TEXTS, strict=True)
    ]
    np.testing.assert_allclose(
        ru.zlib_calibrated_losses(model, Characters(), TEXTS, prompts=PROMPTS, batch_size=2), expected, rtol=1e-5
    )


def test_pieces_cut_texts_and_drop_scraps() -> None:
    texts = ["abcdefghij" * 2 + "klm", "xyz", "0123456789"]
    assert membership.pieces(Characters(), texts, length=10, shortest=4) == ["abcdefghij", "abcdefghij", "0123456789"]
    assert membership.pieces(Characters(), texts, length=10, shortest=3) == [
        "abcdefghij", "abcdefghij", "klm", "xyz", "0123456789"
    ]  # fmt: skip
    assert membership.pieces(Characters(), ["xyz"]) == []
    with pytest.raises(ValueError, match="length must be at least 2"):
        membership.pieces(Characters(), texts, length=1)


@pytest.mark.parametrize(("n", "m", "shift"), [(50, 50, 0.0), (200, 200, 0.5), (300, 120, 0.3), (1500, 1500, 0.4)])
def test_membership_test_is_scipys(n: int, m: int, shift: float) -> None:
    rng = np.random.default_rng(n + m)
    candidates, fresh = rng.normal(-shift, 1, n), rng.normal(0, 1, m)
    expected = scipy.stats.ks_2samp(candidates, fresh)
    found = ru.membership_test(candidates, fresh)
    assert found.statistic == pytest.approx(expected.statistic, rel=1e-12)
    assert found.log10_p == pytest.approx(math.log10(expected.pvalue), abs=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-8)
    assert (found.candidates, found.fresh) == (n, m)


def test_membership_test_is_two_sided() -> None:
    rng = np.random.default_rng(0)
    low, high = rng.normal(0, 1, 300), rng.normal(1, 1, 300)
    assert ru.membership_test(low, high).log10_p == pytest.approx(ru.membership_test(high, low).log10_p)
    assert ru.membership_test(low, high).log10_p < -10


@pytest.mark.parametrize(("n", "m"), [(2000, 2000), (2000, 3000)])
def test_membership_test_stays_finite_beyond_underflow(n: int, m: int) -> None:
    found = ru.membership_test(np.arange(n), np.arange(m) + 1e6)
    assert found.statistic == 1.0
    exact = (math.lgamma(n + 1) + math.lgamma(m + 1) - math.lgamma(n + m + 1) + math.log(2)) / math.log(10)
    assert math.isfinite(found.log10_p) and found.log10_p < -300
    assert found.p_value == 0.0
    if n == m:  # two samples wholly apart: 2 of the C(2n, n) orders
        assert found.log10_p == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("bad", [[], [1.0], [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0], [3.0, 4.0]]])
def test_membership_test_names_the_bad_sample(bad: Any) -> None:
    good = [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="candidate_scores"):
        ru.membership_test(bad, good)
    with pytest.raises(ValueError, match="fresh_scores"):
        ru.membership_test(good, bad)


@pytest.mark.parametrize(("distance", "d", "target"), [(0.3, 1.0, -5.0), (0.4, 0.2, -5.0), (0.8, 0.02, -3.0)])
def test_candidates_needed_inverts_smirnovs_limit(distance: float, d: float, target: float) -> None:
    n = membership.candidates_needed(distance, d, target)

    def log10_p(count: int) -> float:  # Kolmogorov's distribution, by scipy
        return float(math.log10(scipy.stats.kstwobign.sf(d * distance * math.sqrt(count / 2))))

    assert log10_p(n) <= target + 1e-6 < log10_p(n - 2)


def test_candidates_needed_agrees_with_simulation() -> None:
    """Half of the candidates uniform on [0, 0.6], so that D = 0.4 for members alone: the median test reaches the target."""
    n = membership.candidates_needed(0.4, 0.5, -4.0)
    rng = np.random.default_rng(1)
    reached = []
    for _ in range(60):
        candidates = np.where(rng.random(n) < 0.5, rng.uniform(0, 0.6, n), rng.random(n))
        reached.append(ru.membership_test(candidates, rng.random(n)).log10_p)
    assert -6.0 < np.median(reached) < -3.3


@pytest.mark.parametrize(
    "bad", [(0.0, 0.5, -5), (1.1, 0.5, -5), (0.5, 0.0, -5), (0.5, 1.5, -5), (0.5, 0.5, 0), (math.nan, 0.5, -5)]
)
def test_candidates_needed_refuses_nonsense(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        membership.candidates_needed(*bad)


def test_losses_take_half_precision_logits() -> None:
    """A model that answers in float16 is summed in double precision."""

    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)))

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=self.table[input_ids].half())

    model = Half()
    ids = Characters()(["hello there"], add_special_tokens=False)["input_ids"][0]
    logits = model.table.detach()[ids].half().double()
    expected = functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum")
    assert membership.losses(model, Characters(), ["hello there"])[0] == pytest.approx(float(expected), rel=1e-6)
