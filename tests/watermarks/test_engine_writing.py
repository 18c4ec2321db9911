"""Writing the marks of engines: the engines' own draws, contexts from the answer's start, repeats unmarked."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import slow
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import radio_utils as ru
from radio_utils import engines
from radio_utils.decoding import Sampling, generate, warp

V = 96
MARKS: dict[str, Callable[[int], Any]] = {
    "gumbel": lambda k: engines.VLLMGumbel(7, V, k),
    "dual key": lambda k: engines.VLLMDualKey(7, V, k, 0.2),
    "synthid": lambda k: engines.VLLMSynthID(7, V, k),
    "green list": lambda k: engines.VLLMGreenList(7, V, k, 0.3, 4.0),
    "lefthash": lambda k: engines.SBW(7, V, k, "lefthash", delta=4.0),
    "selfhash": lambda k: engines.SBW(7, V, k, "selfhash", delta=4.0),
    "sglang": lambda k: engines.SGLangGumbel(7, V, k),
    "sglang, two keys": lambda k: engines.SGLangGumbel(7, V, k, key_b=8),
    "transformers": lambda k: ru.SynthID(list(range(30)), V, k),
    "reference": lambda k: engines.SynthIDReference(list(range(20)), V, k),
    "unigram": lambda k: engines.Unigram(7, V, delta=4.0),
}


@cache
def model() -> Any:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def pairs_of(wm: Any, prompt: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that the engine marked: contexts from the start (or the prompt), those that came before left out."""
    before = list(prompt) if wm.reaches_prompt else [-1] * wm.window
    windows, tokens, seen = [], [], set()
    for token in answer.tolist():
        context = tuple(before[-wm.window :])
        if context not in seen or wm.repeats == "none":
            windows.append(context)
            tokens.append(token)
        seen.add(context)
        before.append(token)
    return np.array(windows), np.array(tokens)


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("name", MARKS)
def test_generated_text_carries_the_mark_from_its_first_token(name: str, window: int, one_thread: None) -> None:
    wm = MARKS[name](window)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, V, size) for size in rng.integers(max(2, window), 9, 12)]
    sampling = Sampling(temperature=1.0, top_k=60)
    answers = generate(
        model(), prompts, max_new_tokens=30, sampling=sampling, wm=wm, generator=torch.Generator().manual_seed(1),
        stop_tokens=[3], batch_size=7,
    )  # fmt: skip
    pairs = [pairs_of(wm, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if len(answer)]
    windows, tokens = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    first = np.array([pair[1][0] for pair in pairs]), np.concatenate([pair[0][:1] for pair in pairs])
    assert wm.scores(first[1], first[0]).mean() > wm.law.mean
    distinct = np.unique(np.column_stack([windows[:, :window], tokens]), axis=0)
    if name == "unigram":
        assert wm.scores(distinct[:, :1], distinct[:, -1]).mean() > 0.6
    else:
        scores = wm.scores(distinct[:, :-1], distinct[:, -1])
        assert float(wm.law.log10_tail(scores.sum(), scores.size)) < -6


def test_the_draw_is_the_engines_argmax_and_repeats_are_left_alone() -> None:
    """Gumbel, step by step, against the formula in Python's integers."""
    wm = engines.VLLMGumbel(99, 11, 2)
    processor = wm.logits_processor()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 11, (3, 4), generator=generator)
    processor.start(4)
    answers: list[list[int]] = [[], [], []]
    seen: list[set[tuple[int, ...]]] = [set(), set(), set()]
    repeats = 0
    for _ in range(40):
        logits = 2 * torch.randn(3, 11, generator=generator)
        out = processor(ids, logits)
        tokens = torch.multinomial(out.softmax(-1), 1, generator=generator)
        for row in range(3):
            context = tuple([-1, -1, *answers[row]][-2:])
            if context in seen[row]:
                repeats += 1
                assert torch.allclose(out[row], logits[row])
            else:
                u = np.array([slow.vllm_uniform(slow.vllm_word(99, context, v)) for v in range(11)])
                assert int(out[row].argmax()) == int(np.argmax(logits[row].numpy() - np.log(-np.log(u))))
                assert torch.isfinite(out[row]).sum() == 1
            seen[row].add(context)
            answers[row].append(int(tokens[row, 0]))
        ids = torch.cat([ids, tokens], dim=1)
    assert repeats > 10


def test_two_keys_share_the_draws_by_alpha_and_the_mean_draw_is_the_models() -> None:
    """Over keys, what is drawn is distributed as the model says (of all but green lists)."""
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    for make in (
        lambda key: engines.VLLMDualKey(key, 4, 1, 0.3),
        lambda key: engines.VLLMSynthID(key, 4, 1),
        lambda key: engines.SGLangGumbel(key, 4, 1, key_b=key + 1),
    ):
        total = torch.zeros(4)
        for key in range(600):
            out = make(key).logits_processor()(torch.zeros(1, 1, dtype=torch.long), logits)
            total += out.softmax(-1)[0]
        assert torch.allclose(total / 600, logits.exp()[0], atol=0.07)
    out = engines.VLLMDualKey(5, 300, 1, 0.3).logits_processor()(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 300))
    assert sorted(out.softmax(-1)[0].topk(2).values.tolist()) == pytest.approx([0.3, 0.7])


def test_green_logits_get_delta_where_the_engine_adds_it() -> None:
    logits = torch.randn(2, V, generator=torch.Generator().manual_seed(0))
    ids = torch.ones(2, 3, dtype=torch.long)
    sampling = Sampling(temperature=0.5, top_k=10)
    for name in ("lefthash", "green list"):
        wm = MARKS[name](2)
        processor = wm.logits_processor()
        processor.sampling = sampling
        green = torch.from_numpy(wm.green_rows([[-1, -1]])[0])
        before = warp(logits / 0.5 + 4.0 * green, Sampling(1.0, 10))
        after = warp(logits, sampling) + 4.0 * green
        expected = before if wm.before_truncation else after
        assert torch.allclose(processor(ids, logits).softmax(-1), expected.softmax(-1), atol=1e-5)


def test_history_and_prompts_are_searched_as_the_engine_does() -> None:
    prompt = [5, 6, 7, 8]
    answer = [5, 6, 9, 5, 6]
    ids = np.array([prompt + answer])

    def unmarked(**options: Any) -> bool:
        processor = engines.VLLMGumbel(1, 20, 2, **options).logits_processor()
        processor.start(4)
        context, skipped = processor.contexts(ids)
        assert context.tolist() == [[5, 6]]
        return bool(skipped[0])

    assert unmarked() and unmarked(repeats="all") and unmarked(history=3)
    assert not unmarked(repeats="none") and not unmarked(history=2)
    processor = engines.VLLMGumbel(1, 20, 2, repeats="all").logits_processor()
    processor.start(4)
    assert processor.contexts(np.array([[*prompt, 5, 6]]))[1][0]  # the prompt had it
    assert processor.contexts(np.array([[*prompt, 5]]))[1][0]  # not full
    assert not processor.contexts(np.array([[*prompt, 9, 9]]))[1][0]


def test_a_gate_and_a_budget_leave_positions_unmarked() -> None:
    sure, open_ = torch.tensor([[9.0, 0.0, 0.0]]), torch.zeros(1, 3)
    processor = engines.SGLangGumbel(1, 3, 1, max_probability=0.9).logits_processor()
    ids = torch.ones(1, 1, dtype=torch.long)
    assert torch.isfinite(processor(ids, sure)).all() and torch.isfinite(processor(ids, open_)).sum() == 1


def test_rows_under_different_marks_share_a_batch(one_thread: None) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, V, 5) for _ in range(4)]
    wms = [engines.VLLMGumbel(key, V, 2) for key in (1, 2)] * 2
    together = generate(model(), prompts, max_new_tokens=20, wm=wms, generator=torch.Generator().manual_seed(0))
    for wm, prompt, answer in zip(wms, prompts, together, strict=True):
        windows, tokens = pairs_of(wm, prompt, answer)
        assert float(wm.log10_p(wm.scores(windows, tokens).sum(), tokens.size)) < -6


def test_bad_logits_are_refused() -> None:
    processor = engines.VLLMGumbel(1, 10, 2).logits_processor()
    for logits, says in ((torch.zeros(1, 9), "fewer"), (torch.full((1, 10), torch.nan), "NaN")):
        with pytest.raises(ValueError, match=says):
            processor(torch.ones(1, 3, dtype=torch.long), logits)
