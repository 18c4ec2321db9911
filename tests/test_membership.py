"""Membership inference: losses and token statistics against the full logits, the scores, and the KS test against scipy."""

from __future__ import annotations

import copy
import math
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional

import radio_utils as ru
from radio_utils import membership
from radio_utils.stats import ks

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


WILD = "naïve Ćelije 漢字かな😀👩‍👩‍👧 ﷽ a\u0301 – 🇮🇹 "  # characters of one to eighteen tokens of one byte each


def byte_tokenizer(*merges: tuple[str, str]) -> Any:
    """A tokenizer of bytes, and of those merged."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = {sign: i for i, sign in enumerate([*signs, *(a + b for a, b in merges)])}
    plain = Tokenizer(BPE(names, list(merges)))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("length", [2, 3, 5, 8, 64])
def test_pieces_are_parts_of_the_text_whatever_its_characters(length: int, fast: bool) -> None:
    """Cut as tokens, most pieces of such a text held U+FFFD, which no text of the training data holds."""
    tokenizer = byte_tokenizer(("ð", "Ł"), ("n", "a"))
    if not fast:
        tokenizer = SlowTokenizer(tokenizer)
    texts = [WILD * 3, "plain", "", "😀" * 7]
    found, labels = membership.labelled_pieces(tokenizer, texts, length=length, shortest=1)
    for i, text in enumerate(texts):
        assert "".join(part for part, label in zip(found, labels, strict=True) if label == i) == text
    sizes = [len(tokenizer([part], add_special_tokens=False)["input_ids"][0]) for part in found]
    assert max(sizes) <= max(length, 4) and (len(found) == 5 if length == 64 else len(found) > 20)


class SlowTokenizer:
    """A tokenizer that does not say where its tokens stand."""

    def __init__(self, fast: Any) -> None:
        self._fast = fast

    def __call__(self, texts: list[str], add_special_tokens: bool) -> Any:
        return {"input_ids": self._fast(texts, add_special_tokens=add_special_tokens)["input_ids"]}

    def decode(self, ids: list[int]) -> str:
        return str(self._fast.decode(ids))


def test_labelled_pieces_say_where_each_comes_from() -> None:
    texts = ["abcdefghij" * 2 + "klm", "xyz", "", "0123456789"]
    for shortest in (1, 3, 4, 11):
        found, labels = membership.labelled_pieces(Characters(), texts, length=10, shortest=shortest)
        assert found == membership.pieces(Characters(), texts, length=10, shortest=shortest)
        assert labels.dtype == np.int64 and labels.shape == (len(found),)
        assert all(piece in texts[label] for piece, label in zip(found, labels, strict=True))
    assert membership.labelled_pieces(Characters(), texts, length=10, shortest=3)[1].tolist() == [0, 0, 0, 1, 3]


@pytest.mark.parametrize(("n", "m", "shift"), [(50, 50, 0.0), (200, 200, 0.5), (300, 120, 0.3), (1500, 1500, 0.4)])
def test_membership_test_is_scipys_one_sided(n: int, m: int, shift: float) -> None:
    rng = np.random.default_rng(n + m)
    candidates, fresh = rng.normal(-shift, 1, n), rng.normal(0, 1, m)
    expected = scipy.stats.ks_2samp(candidates, fresh, alternative="greater", method="exact")  # of distribution functions
    found = ru.membership_test(candidates, fresh)
    assert found.statistic == pytest.approx(expected.statistic, rel=1e-12)
    assert found.log10_p == pytest.approx(math.log10(expected.pvalue), abs=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-8)
    assert (found.candidates, found.fresh, found.candidate_pieces, found.fresh_pieces) == (n, m, n, m)
    assert f"{n} candidate documents and the {m} fresh ones are exchangeable" in found.hypothesis


def test_only_candidates_that_look_like_members_convict() -> None:
    """Two-sided, texts that B knows *less* than fresh ones convicted him as well."""
    rng = np.random.default_rng(0)
    low, high = rng.normal(0, 1, 300), rng.normal(1, 1, 300)
    assert ru.membership_test(low, high).log10_p < -10
    assert ru.membership_test(high, low).log10_p > -0.01
    assert ru.membership_test(high + 9, low).log10_p == 0.0 == ru.membership_test(high + 9, low).statistic
    assert ru.membership_test(low, low).log10_p == 0.0


@pytest.mark.parametrize(("n", "m"), [(2000, 2000), (2000, 3000)])
def test_membership_test_stays_finite_beyond_underflow(n: int, m: int) -> None:
    found = ru.membership_test(np.arange(n), np.arange(m) + 1e6)
    assert found.statistic == 1.0
    exact = (math.lgamma(n + 1) + math.lgamma(m + 1) - math.lgamma(n + m + 1)) / math.log(10)
    assert found.log10_p == pytest.approx(exact, rel=1e-9)  # two samples wholly apart: one of the C(n + m, n) orders
    assert found.log10_p < -300 and found.p_value == 0.0


def cut_documents(rng: np.random.Generator, count: int, lift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the pieces of ``count`` documents, and labels: pieces of one document are much alike."""
    labels = np.repeat(np.arange(count), rng.integers(3, 12, count))
    return rng.normal(0, 1, count)[labels] + rng.normal(0, 0.5, labels.size) - lift, labels


def test_the_unit_is_the_document() -> None:
    rng = np.random.default_rng(3)
    (candidates, own), (fresh, other) = cut_documents(rng, 20, 0.5), cut_documents(rng, 30)
    found = ru.membership_test(candidates, fresh, documents=own, fresh_documents=other)
    means = [np.array([s[d == one].mean() for one in np.unique(d)]) for s, d in ((candidates, own), (fresh, other))]
    expected = ru.membership_test(*means)
    assert (found.statistic, found.log10_p) == (expected.statistic, pytest.approx(expected.log10_p))
    sizes = (found.candidates, found.fresh, found.candidate_pieces, found.fresh_pieces)
    assert sizes == (20, 30, candidates.size, fresh.size)
    # neither the order of the pieces nor the kind of the labels matters
    order = rng.permutation(own.size)
    named = np.array([f"document {label % 7} of {label // 7}" for label in own[order]])
    assert ru.membership_test(candidates[order], fresh, documents=named, fresh_documents=other.tolist()) == found
    # documents of one piece each, and every piece repeated in its own document
    plain = ru.membership_test(candidates, fresh)
    singly = {"documents": np.arange(candidates.size), "fresh_documents": np.arange(fresh.size)}
    assert ru.membership_test(candidates, fresh, **singly) == plain
    thrice = {name: np.repeat(labels, 3) for name, labels in singly.items()}
    repeated = ru.membership_test(np.repeat(candidates, 3), np.repeat(fresh, 3), **thrice)
    assert (repeated.statistic, repeated.log10_p) == (plain.statistic, plain.log10_p)


def attainable(n: int, alpha: float) -> float:
    """The largest p-value of two samples of n without ties that is at most α: what the test rejects with at α."""
    return max(p for s in range(n + 1) if (p := math.comb(2 * n, n - s) / math.comb(2 * n, n)) <= alpha)


def test_nobody_trained_and_documents_of_many_pieces() -> None:
    """Fifteen documents a side: counted by piece innocents are convicted, by document as often as α says."""
    rng, runs = np.random.default_rng(5), 4000
    by_piece, by_document = [], []
    for _ in range(runs):
        (candidates, own), (fresh, other) = cut_documents(rng, 15), cut_documents(rng, 15)
        by_document.append(ru.membership_test(candidates, fresh, documents=own, fresh_documents=other).p_value)
        if len(by_piece) < 300:
            by_piece.append(ru.membership_test(candidates, fresh).p_value)
    assert np.mean(np.array(by_piece) <= 1e-3) > 0.1
    for alpha in (0.05, 0.01, 0.001):
        low, high = scipy.stats.binom.interval(0.99, runs, attainable(15, alpha))
        assert low <= np.sum(np.array(by_document) <= alpha) <= high, alpha


def test_members_are_found_by_document() -> None:
    rng = np.random.default_rng(6)
    found = []
    for _ in range(50):
        (candidates, own), (fresh, other) = cut_documents(rng, 60, 1.0), cut_documents(rng, 60)
        found.append(ru.membership_test(candidates, fresh, documents=own, fresh_documents=other).log10_p)
    assert np.median(found) < -4


def test_labels_that_do_not_fit_are_named() -> None:
    def fails(match: str, **labels: Any) -> None:
        with pytest.raises(ValueError, match=match):
            ru.membership_test([0.1, 0.2, 0.3], [0.1, 0.2], **labels)

    fails("fresh_documents is missing while documents is given", documents=[0, 0, 1])
    fails("documents is missing while fresh_documents is given", fresh_documents=[0, 1])
    fails(r"documents must hold one label for each of the 3 values", documents=[0, 1], fresh_documents=[0, 1])
    fails(r"documents must hold one label.*shape \[3, 1\]", documents=[[0], [1], [2]], fresh_documents=[0, 1])
    fails("fresh_documents names 1 document; at least 2", documents=[0, 1, 1], fresh_documents=[7, 7])


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

    def log10_p(count: int) -> float:  # the same limit of one sample, of which two of n count as n / 2
        return float(-2 * (count / 2) * (d * distance) ** 2 / math.log(10))

    assert log10_p(n) <= target + 1e-9 < log10_p(n - 1)
    # and of the exact law: so many steps ahead have about that p-value
    steps = d * distance * n
    exact = ks.ks_lower(np.arange(n, dtype=float), np.arange(n) + round(steps) - 0.5).log10_p
    assert exact == pytest.approx(target, rel=0.12)


def test_candidates_needed_agrees_with_simulation() -> None:
    """Half of the candidates uniform on [0, 0.6], so that D⁺ = 0.4 for members alone: the median reaches the target."""
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


# --- one pass over the texts -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def double(model: Any) -> Any:
    """The same model in float64."""
    return copy.deepcopy(model).double()


def statistics_by_hand(model: Any, prompt: str, text: str) -> list[dict[str, float]]:
    """Of each token what :class:`TokenScores` holds, from one unpadded forward pass and plain Python."""
    tokenizer = Characters()
    head, body = (tokenizer([part], add_special_tokens=False)["input_ids"][0] for part in (prompt, text))
    ids = head + body
    with torch.inference_mode():
        rows = model(input_ids=torch.tensor([ids])).logits[0].double().tolist()
    found = []
    for place in range(max(1, len(head)), len(ids)):
        logits = rows[place - 1]
        total = math.fsum(math.exp(logit) for logit in logits)
        log_p = [logit - math.log(total) for logit in logits]
        mean = math.fsum(math.exp(v) * v for v in log_p)
        variance = math.fsum(math.exp(v) * (v - mean) ** 2 for v in log_p)
        found.append({"log_p": log_p[ids[place]], "mean": mean, "std": math.sqrt(variance)})
    return found


def everything(model: Any, texts: list[str], prompts: list[str] | None = None, **options: Any) -> list[Any]:
    return membership.token_scores(model, Characters(), texts, prompts=prompts, **options)


def assert_same(left: Any, right: Any, rtol: float) -> None:
    assert left.text == right.text and left.first == right.first
    np.testing.assert_array_equal(left.context, right.context)
    for name in ("log_p", "mean", "std"):
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=rtol, err_msg=name)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("prompts", [None, PROMPTS], ids=["plain", "prompts"])
def test_token_scores_are_the_slow_loop(double: Any, prompts: list[str] | None, batch_size: int) -> None:
    chosen = [i for i, text in enumerate(TEXTS) if prompts is not None or len(text) > 1]
    texts, heads = [TEXTS[i] for i in chosen], [prompts[i] if prompts else "" for i in chosen]
    found = everything(double, texts, heads if prompts else None, batch_size=batch_size)
    for text, head, one in zip(texts, heads, found, strict=True):
        expected = statistics_by_hand(double, head, text)
        assert one.text == text
        assert Characters().decode(one.context.tolist()) == head + text
        assert one.first == max(1, len(head)) and one.log_p.size == one.context.size - one.first == len(expected)
        for name in ("log_p", "mean", "std"):
            np.testing.assert_allclose(getattr(one, name), [row[name] for row in expected], rtol=1e-10, err_msg=name)
        assert all(getattr(one, n).dtype == np.float64 for n in ("log_p", "mean", "std"))
        assert one.loss == pytest.approx(-sum(row["log_p"] for row in expected), rel=1e-10)


def test_token_scores_in_single_precision_agree_with_double(model: Any, double: Any) -> None:
    for single, exact in zip(everything(model, TEXTS, PROMPTS), everything(double, TEXTS, PROMPTS), strict=True):
        assert_same(single, exact, rtol=2e-5)


def test_neither_batches_nor_padding_nor_order_nor_slices_matter(double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = everything(double, TEXTS, PROMPTS)
    order = [3, 0, 4, 2, 1]
    shuffled = everything(double, [TEXTS[i] for i in order], [PROMPTS[i] for i in order], batch_size=2)
    alone = [everything(double, [text], [prompt])[0] for text, prompt in zip(TEXTS, PROMPTS, strict=True)]
    monkeypatch.setattr(membership, "_SLICE", {"cpu": 3 * VOCABULARY})
    sliced = everything(double, TEXTS, PROMPTS)
    for i, one in enumerate(expected):
        assert_same(shuffled[order.index(i)], one, rtol=1e-10)
        assert_same(alone[i], one, rtol=1e-10)
        assert_same(sliced[i], one, rtol=1e-10)


def test_losses_are_the_same_pass(model: Any) -> None:
    found = everything(model, TEXTS, PROMPTS, batch_size=2)
    np.testing.assert_allclose(
        membership.losses(model, Characters(), TEXTS, prompts=PROMPTS, batch_size=2), [one.loss for one in found], rtol=1e-6
    )
    np.testing.assert_allclose(
        ru.zlib_calibrated_losses(model, Characters(), TEXTS, prompts=PROMPTS, batch_size=2),
        membership.membership_scores(found, "zlib"),
        rtol=1e-6,
    )


def test_each_batch_is_fed_once_and_its_logits_go_in_slices(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    held: list[int] = []
    statistics = membership._statistics

    def watched(logits: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        held.append(logits.shape[0])
        return statistics(logits, *rest)

    monkeypatch.setattr(membership, "_statistics", watched)
    monkeypatch.setattr(membership, "_SLICE", {"cpu": 4 * VOCABULARY})
    handle = model.register_forward_pre_hook(lambda *call: fed.append(call[2]["input_ids"].shape[0]), with_kwargs=True)
    found = everything(model, TEXTS, PROMPTS, batch_size=2)
    handle.remove()
    assert fed[-3:] == [2, 2, 1], "after the texts that show whether the model reads forward, each batch once"
    assert max(held) == 4 and sum(held) == sum(one.log_p.size for one in found)


def test_token_scores_refuse_what_losses_refuse(model: Any) -> None:
    def fails(match: str, *args: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=match):
            everything(model, *args, **options)

    fails("texts is empty", [])
    fails(r"texts\[1\] is too short", ["fine", ""])
    fails("1 prompts for 2 texts", ["fine", "too"], ["one"])
    fails("batch_size must be at least 1", ["fine"], batch_size=0)
    fails("more than max_length=3", ["fine"], max_length=3)


class Fixed(torch.nn.Module):
    """A model that answers with the same logits everywhere."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.row = torch.tensor(logits)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.row.expand(*input_ids.shape, -1))


def test_nan_among_the_logits_is_named() -> None:
    with pytest.raises(ValueError, match=r"logits on texts\[0\] hold NaN"):
        everything(Fixed([0.0] * 38 + [math.nan]), ["hello"])


def test_tokens_that_the_model_rules_out_count_nothing_in_the_mean() -> None:
    """Logits of minus infinity: 0 times infinity must not become NaN."""
    (one,) = everything(Fixed([1.0, 0.0] + [-math.inf] * 37), ["aab"])
    p = 1 / (1 + math.exp(-1.0))
    mean = p * math.log(p) + (1 - p) * math.log(1 - p)
    std = math.sqrt(p * (1 - p)) * math.log(p / (1 - p))
    np.testing.assert_allclose(one.log_p, [math.log(p), math.log(1 - p)], rtol=1e-6)
    np.testing.assert_allclose(one.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(one.std, std, rtol=1e-6)


@pytest.mark.parametrize("logits", [[0.0] * 39, [5.0] * 39, [0.0] + [-math.inf] * 38, [500.0] + [0.0] * 38])
def test_a_distribution_without_spread_says_nothing(logits: list[float]) -> None:
    """Flat or certain: the standardised log-probability is 0, neither NaN nor large."""
    found = everything(Fixed(logits), ["aaa"])
    assert found[0].std.max() < 1e-6
    assert abs(membership.membership_scores(found, "min-k++")[0]) < 0.02


def test_a_token_that_a_certain_model_did_not_expect_stays_finite() -> None:
    found = everything(Fixed([500.0] + [0.0] * 38), ["ab"])
    assert math.isfinite(membership.membership_scores(found, "min-k++")[0])
    assert membership.membership_scores(found, "min-k++")[0] > 1e6


# --- the scores --------------------------------------------------------------------------------------------------------


def scores_by_hand(text: str, rows: list[dict[str, float]], method: str, k: float, reference: float) -> float:
    costs = sorted((-row["log_p"] for row in rows), reverse=True)
    rarities = sorted(((row["mean"] - row["log_p"]) / row["std"] for row in rows), reverse=True)
    worst = max(1, math.floor(k * len(rows) / 100))
    return {
        "zlib": sum(costs) / len(zlib.compress(text.encode(), 9)),
        "loss": sum(costs) / len(rows),
        "min-k": sum(costs[:worst]) / worst,
        "min-k++": sum(rarities[:worst]) / worst,
        "reference": (sum(costs) - reference) / len(rows),
    }[method]


@pytest.mark.parametrize("method", membership.METHODS)
@pytest.mark.parametrize("k", [5.0, 20, 33.3, 100])
def test_scores_are_their_definitions(double: Any, method: str, k: float) -> None:
    reference = [11.0, 2.0, 90.5, 3.0, 0.0]
    found = membership.membership_scores(everything(double, TEXTS, PROMPTS), method, reference=reference, k_percent=k)
    expected = [
        scores_by_hand(text, statistics_by_hand(double, prompt, text), method, k, other)
        for prompt, text, other in zip(PROMPTS, TEXTS, reference, strict=True)
    ]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_text_that_the_model_learned_scores_lower_by_every_method(model: Any) -> None:
    """A few steps of training on one text: what every method is for."""
    tokenizer, trained = Characters(), copy.deepcopy(model)
    text = "radioactive data leave a trace"
    ids = torch.tensor(tokenizer([text], add_special_tokens=False)["input_ids"])
    optimiser = torch.optim.Adam(trained.parameters(), 1e-2)
    for _ in range(15):
        optimiser.zero_grad()
        trained(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    base = membership.losses(model, tokenizer, [text])
    before, after = everything(model, [text]), everything(trained.eval(), [text])
    for method in membership.METHODS:
        assert membership.membership_scores(after, method, reference=base) < membership.membership_scores(
            before, method, reference=base
        ), method


TOKENS = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-30, 0))


def made(log_p: Any, mean: Any = -2.0, std: Any = 1.0) -> Any:
    """Statistics of a text that no model read."""
    log_p = np.asarray(log_p, float)
    context = np.zeros(log_p.size + 1, np.int64)
    wide = [np.broadcast_to(np.asarray(value, float), log_p.shape) for value in (mean, std)]
    return membership.TokenScores("x" * log_p.size, context, 1, log_p, *wide)


@given(TOKENS, st.randoms(use_true_random=False))
def test_the_order_of_the_tokens_is_of_no_matter(log_p: Any, random: Any) -> None:
    shuffled = log_p.tolist()
    random.shuffle(shuffled)
    for method in membership.METHODS:
        one, other = (membership.membership_scores([made(v)], method, reference=[1.0]) for v in (log_p, shuffled))
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@given(TOKENS, st.floats(0.1, 100), st.floats(0.1, 100))
def test_fewer_of_the_worst_tokens_never_look_better(log_p: Any, one: float, other: float) -> None:
    few, many = sorted((one, other))
    for method in ("min-k", "min-k++"):
        strict, lenient = (membership.membership_scores([made(log_p)], method, k_percent=k)[0] for k in (few, many))
        assert strict >= lenient - 1e-9
    everything_, loss = (membership.membership_scores([made(log_p)], m, k_percent=100)[0] for m in ("min-k", "loss"))
    assert everything_ == pytest.approx(loss, rel=1e-9, abs=1e-12)


@given(TOKENS, st.floats(-20, -0.1), st.floats(0.01, 5))
def test_min_k_plus_plus_is_min_k_where_the_standard_is_the_same_everywhere(log_p: Any, mean: float, std: float) -> None:
    plain = membership.membership_scores([made(log_p)], "min-k")[0]
    found = membership.membership_scores([made(log_p, mean, std)], "min-k++")[0]
    assert found == pytest.approx((plain + mean) / std, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("method", membership.METHODS)
def test_a_text_of_one_token_has_every_score(model: Any, method: str) -> None:
    found = everything(model, ["a"], ["b"])
    assert found[0].log_p.shape == (1,)
    scores = membership.membership_scores(found, method, reference=[2.0], k_percent=1)
    assert scores.shape == (1,) and np.isfinite(scores).all()


@pytest.mark.parametrize("k", [0, -1, 100.1, math.nan, math.inf])
def test_shares_of_tokens_that_make_no_sense_are_refused(k: float) -> None:
    with pytest.raises(ValueError, match=r"k_percent must lie in \(0, 100\]"):
        membership.membership_scores([made([-1.0])], "min-k", k_percent=k)


def test_scores_name_what_is_wrong() -> None:
    def fails(match: str, *args: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=match):
            membership.membership_scores(*args, **options)

    two = [made([-1.0, -2.0]), made([-3.0])]
    fails("unknown method 'mink'; choose one of zlib, loss, min-k, min-k\\+\\+, reference", two, "mink")
    fails("statistics is empty", [], "loss")
    fails("needs reference", two, "reference")
    fails(r"one loss for each of the 2 texts, got shape \[3\]", two, "reference", reference=[1.0, 2.0, 3.0])
    fails("reference holds NaN", two, "reference", reference=[1.0, math.nan])
