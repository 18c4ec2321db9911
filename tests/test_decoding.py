"""Warpers against transformers' own, draws against softmax, batched generation against ``model.generate``."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from radio_utils import GreenList, GumbelMax, compat, detect
from radio_utils.decoding import Sampling, apply_temperature, draw, generate, keep_nucleus, keep_top_k, warp

V = 96
ARCHITECTURES = ("llama", "gpt_neox", "gpt2")


@cache
def tiny(kind: str) -> Any:
    torch.manual_seed(7)
    config: Any
    model_class: Any
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=128))
    else:
        config, model_class = (LlamaConfig, LlamaForCausalLM) if kind == "llama" else (GPTNeoXConfig, GPTNeoXForCausalLM)
        model = model_class(
            config(
                vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=128, bos_token_id=1, eos_token_id=None, pad_token_id=0,
            )
        )  # fmt: skip
    for parameter in model.parameters():  # livelier than a fresh model, whose greedy text is one token repeated
        parameter.data.mul_(3.0)
    return model.eval()


def mixed_prompts(n: int = 9, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, V, size) for size in rng.integers(1, 12, n)]


@cache
def reference_greedy(kind: str, prompt: tuple[int, ...], new: int) -> list[int]:
    ids = torch.tensor(prompt)[None]
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": new, "pad_token_id": 0}
    return list(tiny(kind).generate(ids, eos_token_id=None, **options)[0, len(prompt) :].tolist())


@settings(max_examples=80)
@given(
    st.integers(0, 2**31), st.integers(1, 5), st.integers(2, 60), st.sampled_from([0.3, 1.0, 8.0]), st.booleans(),
    st.floats(0.05, 4.0), st.integers(1, 70), st.floats(0.01, 0.999),
)  # fmt: skip
def test_warpers_equal_transformers(
    seed: int, rows: int, width: int, scale: float, ties: bool, temperature: float, top_k: int, top_p: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, width, generator=generator)
    if ties:
        logits = logits.round()
    none = torch.zeros(rows, 1, dtype=torch.long)
    assert torch.equal(apply_temperature(logits, temperature), TemperatureLogitsWarper(temperature)(none, logits))
    assert torch.equal(keep_top_k(logits, top_k), TopKLogitsWarper(top_k)(none, logits))
    assert torch.equal(keep_nucleus(logits, top_p), TopPLogitsWarper(top_p)(none, logits))
    expected = TopPLogitsWarper(top_p)(
        none, TopKLogitsWarper(top_k)(none, TemperatureLogitsWarper(temperature)(none, logits))
    )
    assert torch.equal(warp(logits, Sampling(temperature, top_k, top_p)), expected)


def test_neutral_settings_change_nothing() -> None:
    logits = torch.randn(3, 20)
    assert torch.equal(warp(logits, Sampling(temperature=1.0)), logits)
    assert torch.equal(keep_top_k(logits, 20), logits)
    assert torch.equal(keep_nucleus(logits, 1.0), logits)
    greedy = warp(logits, Sampling(temperature=0.0))
    assert torch.equal(greedy.argmax(1), logits.argmax(1))
    assert torch.equal(torch.isfinite(greedy).sum(1), torch.ones(3, dtype=torch.long))
    level = torch.zeros(1, 4)  # probabilities of exactly ¼: two of them reach one half
    assert torch.isfinite(keep_nucleus(level, 0.5)).sum() == 2
    assert torch.equal(keep_nucleus(level, 0.5), TopPLogitsWarper(0.5)(torch.zeros(1, 1, dtype=torch.long), level))
    assert torch.isfinite(keep_nucleus(logits, 1e-9)).sum() == 3  # the most likely token always stays


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_k": -1}, {"top_p": 0.0},
        {"top_p": 1.1}, {"top_p": math.nan},
    ],
)  # fmt: skip
def test_sampling_refuses_what_makes_no_sense(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)


def test_draw_is_distributed_as_softmax() -> None:
    row = torch.tensor([2.0, 0.5, 0.0, -1.0, -torch.inf, -4.0, 1.0])
    n = 100_000
    tokens = draw(row.expand(n, -1), torch.Generator().manual_seed(0))
    counts, p = np.bincount(tokens.numpy(), minlength=7), row.double().softmax(0).numpy()
    assert counts[4] == 0
    allowed = p > 0
    assert stats.chisquare(counts[allowed], n * p[allowed] / p[allowed].sum()).pvalue > 1e-5


def test_draw_does_not_mind_extremes_and_can_be_repeated() -> None:
    one_hot = torch.full((5000, 300), -torch.inf)
    one_hot[:, 11] = 0.0
    assert torch.equal(draw(one_hot, None), torch.full((5000,), 11))
    logits = torch.randn(50, 40)
    first, second = (draw(logits, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, draw(logits, torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 128])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_greedy_equals_model_generate(kind: str, batch_size: int) -> None:
    model, prompts = tiny(kind), mixed_prompts()
    found = generate(model, prompts, max_new_tokens=10, sampling=Sampling(0.0), batch_size=batch_size)
    for prompt, tokens in zip(prompts, found, strict=True):
        assert tokens.tolist() == reference_greedy(kind, tuple(prompt.tolist()), 10)
        assert tokens.dtype == np.int64
    assert len({tuple(tokens) for tokens in found}) > 3  # the comparison is not one of constant texts


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_stop_tokens_end_a_row_and_rows_that_leave_do_not_disturb_the_others(kind: str) -> None:
    model, prompts = tiny(kind), mixed_prompts(14, seed=3)
    whole = [reference_greedy(kind, tuple(prompt.tolist()), 16) for prompt in prompts]
    stops = sorted({text[i % 7 + 1] for i, text in enumerate(whole)})[:6]
    found = generate(model, prompts, max_new_tokens=16, sampling=Sampling(0.0), stop_tokens=stops)
    expected = [text[: next((i for i, t in enumerate(text) if t in stops), 16)] for text in whole]
    assert [tokens.tolist() for tokens in found] == expected
    assert min(map(len, expected)) < 8 < max(map(len, expected))


def test_sampling_follows_the_model() -> None:
    model, prompt = tiny("llama"), np.array([5, 9, 2])
    n = 6000
    first = generate(
        model, [prompt] * n, max_new_tokens=1, sampling=Sampling(2.0, top_k=8), batch_size=1000,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    with torch.inference_mode():
        logits = model(torch.from_numpy(prompt)[None]).logits[:, -1]
    p = warp(logits, Sampling(2.0, top_k=8)).double().softmax(-1)[0].numpy()
    counts = np.bincount(np.concatenate(first), minlength=V)
    assert counts[p == 0].sum() == 0
    likely = n * p >= 5  # chi-square wants five expected; the rest makes one cell
    observed, expected = np.append(counts[likely], counts[~likely].sum()), np.append(n * p[likely], n * p[~likely].sum())
    keep = expected > 0
    assert stats.chisquare(observed[keep], expected[keep] * n / expected[keep].sum()).pvalue > 1e-5


def test_generation_is_reproducible_with_a_generator() -> None:
    model, prompts = tiny("gpt_neox"), mixed_prompts()

    def run(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        texts = generate(model, prompts, max_new_tokens=8, sampling=Sampling(1.0), generator=generator, batch_size=4)
        return [text.tolist() for text in texts]

    assert run(0) == run(0)
    assert run(0) != run(1)


@pytest.mark.parametrize(
    "wm", [GreenList("alice", V, 2, delta=4.0), GumbelMax("alice", V, 2), GumbelMax("alice", V - 6, 1)]
)
def test_watermarked_generation_is_found(wm: Any) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, V, 3 + i % 5) for i in range(60)]
    sampling = Sampling(3.0)  # these little models are too sure of themselves to be marked at a lower temperature
    generator = torch.Generator().manual_seed(0)
    texts = generate(tiny("llama"), prompts, max_new_tokens=24, sampling=sampling, wm=wm, generator=generator)
    assert detect(texts, wm).log10_p < -10
    assert detect(texts, wm.with_decoy(0, 0)).log10_p > -4


def test_gumbel_max_text_does_not_depend_on_the_batch_or_on_chance() -> None:
    wm, prompts = GumbelMax("alice", V, 2), [p for p in mixed_prompts(12) if p.size >= 2]
    options: dict[str, Any] = {"max_new_tokens": 12, "sampling": Sampling(1.0), "wm": wm}
    alone = [generate(tiny("llama"), [p], **options)[0].tolist() for p in prompts]
    assert [t.tolist() for t in generate(tiny("llama"), prompts, **options)] == alone


def test_short_prompt_is_refused_whatever_its_batch() -> None:
    """Padded in a batch, it would be marked with a window of padding, which no detector sees."""
    wm = GreenList("alice", V, 3)
    for prompts in ([[1, 2]], [[1, 2], [3, 4, 5, 6]]):
        with pytest.raises(ValueError, match=r"prompts\[0\] has shape \[2\]; it must be a flat sequence of at least 3"):
            generate(tiny("llama"), prompts, max_new_tokens=2, wm=wm)


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([[1], []], {}, r"prompts\[1\] has shape \[0\]"),
        ([[[1, 2]]], {}, r"prompts\[0\] has shape \[1, 2\]"),
        ([[1.5, 2.0]], {}, r"prompts\[0\] must hold integer token ids, got dtype float64"),
        (["text"], {}, r"prompts\[0\] has shape \[\]"),
        ([[1, V]], {}, rf"prompts\[0\] holds ids from 1 to {V}, outside the model's vocabulary"),
        ([[-1, 2]], {}, r"prompts\[0\] holds ids from -1 to 2"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens and batch_size must be at least 1"),
        ([[1]], {"batch_size": 0}, "max_new_tokens and batch_size must be at least 1"),
        ([[1, 2]], {"wm": GreenList("a", V + 1, 2)}, "fewer than the watermark's vocab_size"),
    ],
)
def test_bad_input_is_named(prompts: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        generate(tiny("llama"), prompts, **{"max_new_tokens": 3, **options})


def with_head_bias(first: int, after: int, added: float) -> Any:
    """A model in which the logits of the tokens from ``first`` to before ``after`` have so much added, at every place."""
    model = deepcopy(tiny("llama"))
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(V))
    model.lm_head.bias.data[first:after] = added
    return model


@pytest.mark.parametrize(
    "wm",
    [None, GreenList("alice", V, 2), GumbelMax("alice", V, 2), GreenList("alice", V - 6, 2), "rows"],
    ids=["plain", "green", "gumbel", "fewer tokens", "rows"],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "bias",
    [(30, 31, math.nan), (0, V, math.nan), (V - 1, V, math.inf), (0, V, -math.inf)],
    ids=["one NaN", "all NaN", "infinity", "nothing can come"],
)
def test_a_model_that_gives_no_numbers_is_refused(bias: tuple[int, int, float], temperature: float, wm: Any) -> None:
    """As in reading; what a draw makes of NaN, greedy or by a key, is an answer that nobody gave."""
    wms = [GreenList("alice", V, 2), GreenList("bob", V, 1)] if wm == "rows" else wm
    with pytest.raises(ValueError, match="the model's logits hold NaN or infinity"):
        generate(with_head_bias(*bias), [[5, 9, 2]] * 2, max_new_tokens=3, sampling=Sampling(temperature), wm=wms)


def test_numbers_that_end_in_mid_text_are_refused() -> None:
    """Only behind token 7, which every text comes to, is there NaN; who stopped before it is not asked any more."""
    model = with_head_bias(7, 8, 1e6)
    model.get_input_embeddings().weight.data[7] = math.nan
    assert [one.tolist() for one in generate(model, [[5, 9]], max_new_tokens=1)] == [[7]]
    assert [one.size for one in generate(model, [[5, 9]] * 3, max_new_tokens=4, stop_tokens=[7])] == [0, 0, 0]
    with pytest.raises(ValueError, match="the model's logits hold NaN or infinity"):
        generate(model, [[5, 9]], max_new_tokens=2)


@pytest.mark.parametrize("wm", [None, GreenList("alice", V, 2), GumbelMax("alice", V - 6, 1)])
def test_tokens_that_are_ruled_out_are_no_error(wm: Any) -> None:
    """By the model, and by a processor, as GumbelMax rules out all but the token that it draws."""
    model = with_head_bias(40, V, -math.inf)
    texts = generate(model, [[5, 9, 2]] * 40, max_new_tokens=8, sampling=Sampling(1.0), wm=wm)
    assert max(int(text.max()) for text in texts) < 40 and {text.size for text in texts} == {8}


def test_no_prompts_give_no_texts() -> None:
    assert generate(tiny("llama"), [], max_new_tokens=3) == []


def own_keys(kind: str, count: int) -> list[Any]:
    makers: dict[str, Any] = {
        "green": lambda key: GreenList(key, V, 2),
        "gumbel": lambda key: GumbelMax(key, V, 2),
        "released green": lambda key: compat.ReleasedGreenList(key, V, 2),
        "released gumbel": lambda key: compat.ReleasedGumbelMax(key, V, 2),
        "selfhash": lambda key: compat.TransformersGreenList(
            {"hashing_key": 2 * key + 1, "seeding_scheme": "selfhash", "context_width": 2}, V
        ),
        "different": lambda key: GreenList(key, V, 1 + key % 2, gamma=(0.25, 0.5, 0.3)[key % 3], delta=1.0 + key),
    }
    return [makers[kind](key) for key in range(1, count + 1)]


@pytest.mark.parametrize("kind", ["green", "gumbel", "released green", "released gumbel", "selfhash", "different"])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_rows_of_different_keys_are_those_of_each_key_alone(kind: str, batch_size: int) -> None:
    """Greedy, or drawn by the key: no text depends on chance, so each must be the same token by token."""
    prompts, wms = [prompt for prompt in mixed_prompts(24, seed=2) if prompt.size > 1], own_keys(kind, 5)
    options: dict[str, Any] = {
        "max_new_tokens": 16, "sampling": Sampling(1.0 if "gumbel" in kind else 0.0), "stop_tokens": range(20),
        "batch_size": batch_size,
    }  # fmt: skip
    owner = [wms[i % 5] for i in range(len(prompts))]
    together = generate(tiny("llama"), prompts, wm=owner, **options)
    alone = {wm: generate(tiny("llama"), prompts, wm=wm, **options) for wm in wms}
    for i, (text, wm) in enumerate(zip(together, owner, strict=True)):
        assert np.array_equal(text, alone[wm][i])
    assert len({text.size for text in together}) > 4  # rows left the batch at different steps


def test_rows_of_different_keys_are_drawn_by_the_law_of_their_own() -> None:
    wms, prompt, repeats = own_keys("green", 3), np.array([7, 30, 11]), 4000
    generator = torch.Generator().manual_seed(2)
    owner = [wms[i % 3] for i in range(3 * repeats)]
    options: dict[str, Any] = {"max_new_tokens": 1, "sampling": Sampling(0.9), "batch_size": 999}
    texts = generate(tiny("llama"), [prompt] * len(owner), wm=owner, generator=generator, **options)
    with torch.no_grad():
        logits = tiny("llama")(torch.from_numpy(prompt)[None]).logits[0, -1]
    for k, wm in enumerate(wms):
        green = torch.from_numpy(wm.green_rows(prompt[None, -2:])[0])
        expected = repeats * ((logits + wm.delta * green) / 0.9).softmax(-1).double().numpy()
        observed = np.bincount([int(text[0]) for text in texts[k::3]], minlength=V)
        often = expected >= 5
        rest = [observed[~often].sum()], [expected[~often].sum()]
        observed, expected = np.append(observed[often], rest[0]), np.append(expected[often], rest[1])
        assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


def test_one_watermark_a_prompt_or_one_for_all() -> None:
    wms = own_keys("green", 3)
    with pytest.raises(ValueError, match="one for each of the 2 prompts, got 3"):
        generate(tiny("llama"), [[1, 2], [3, 4]], wm=wms, max_new_tokens=2)
    with pytest.raises(ValueError, match="mixes schemes that draw the token"):
        generate(tiny("llama"), [[1, 2], [3, 4]], wm=[wms[0], GumbelMax(1, V, 2)], max_new_tokens=2)
    with pytest.raises(ValueError, match="at least 2 token ids"):
        generate(tiny("llama"), [[1, 2], [3]], wm=wms[:2], max_new_tokens=2)
