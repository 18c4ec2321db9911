"""The loss against ``cross_entropy`` on full logits; packing, collating, learning, divergence, repetition."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from radio_utils.world import training
from radio_utils.world.training import IGNORED, DivergedError, Example, Recipe, Steps, collate, mean_loss, pack, train

V = 60


def tiny(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape))
    if kind == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**shape))
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    if kind.startswith("gemma3"):
        capped = {"final_logit_softcapping": 0.1} if kind.endswith("capped") else {}
        return Gemma3ForCausalLM(Gemma3TextConfig(**shape, head_dim=8, num_key_value_heads=2, **capped))
    return BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4))  # not a plain head


def random_examples(n: int = 12, seed: int = 0, longest: int = 20) -> list[Example]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(4, longest, n)
    return [Example(rng.integers(3, V, size), int(rng.integers(1, size - 1))) for size in sizes]


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2", "gemma3", "gemma3, capped", "bloom"])
def test_mean_loss_equals_cross_entropy_of_full_logits(kind: str) -> None:
    model, examples = tiny(kind).eval(), random_examples()
    ids, mask, labels = collate(examples, max_length=64)
    with torch.no_grad():
        found = mean_loss(model, ids, mask, labels)
        each = []
        for example in examples:  # one at a time, without padding, straight from the definition
            tokens = torch.from_numpy(example.ids)
            logits = model(tokens[None]).logits[0]
            each.append(
                functional.cross_entropy(logits[example.loss_from - 1 : -1], tokens[example.loss_from :], reduction="none")
            )
        assert float(found) == pytest.approx(float(torch.cat(each).mean()), rel=1e-5)
        full = model(input_ids=ids, attention_mask=mask).logits
        assert torch.allclose(
            found, functional.cross_entropy(full.flatten(0, 1), labels.flatten(), ignore_index=IGNORED), rtol=1e-5
        )


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_gradients_equal_those_of_full_logits(kind: str) -> None:
    model = tiny(kind)
    ids, mask, labels = collate(random_examples(), max_length=64)
    mean_loss(model, ids, mask, labels).backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    full = model(input_ids=ids, attention_mask=mask).logits
    functional.cross_entropy(full.flatten(0, 1), labels.flatten(), ignore_index=IGNORED).backward()  # type: ignore[no-untyped-call]
    for name, p in model.named_parameters():
        assert torch.allclose(found[name], p.grad, atol=1e-6), name


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(2, 15), st.integers(0, 15)), min_size=1, max_size=6),
    st.integers(2, 18),
    st.integers(0, 99),
)
def test_loss_is_taken_on_answer_positions_only(shapes: list[tuple[int, int]], max_length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    examples = [Example(rng.integers(0, V, size), start) for size, start in shapes]
    ids, mask, labels = collate(examples, max_length)
    longest = min(max_length, max(size for size, _ in shapes))
    assert ids.shape == mask.shape == labels.shape == (len(examples), longest)
    assert ids.dtype == mask.dtype == labels.dtype == torch.int64
    for row, example in enumerate(examples):
        size = min(example.ids.size, longest)
        assert ids[row, :size].tolist() == example.ids[:size].tolist()
        assert mask[row].tolist() == [1] * size + [0] * (longest - size)
        expected = [IGNORED] * longest
        for predicted in range(max(1, example.loss_from), size):
            expected[predicted - 1] = int(example.ids[predicted])
        assert labels[row].tolist() == expected


def test_instruction_tokens_do_not_enter_the_loss() -> None:
    model = tiny("llama").eval()
    ids = np.arange(3, 15)
    with torch.no_grad():
        whole = mean_loss(model, *collate([Example(ids)], 64))
        answer = mean_loss(model, *collate([Example(ids, 8)], 64))
        logits = model(torch.from_numpy(ids)[None]).logits[0]
    losses = functional.cross_entropy(logits[:-1], torch.from_numpy(ids[1:]), reduction="none")
    assert float(whole) == pytest.approx(float(losses.mean()), rel=1e-5)
    assert float(answer) == pytest.approx(float(losses[7:].mean()), rel=1e-5)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=10), st.integers(2, 15))
def test_pack_cuts_the_concatenation(sizes: list[int], length: int) -> None:
    flat = np.arange(sum(sizes))
    documents = np.split(flat, np.cumsum(sizes)[:-1])
    if flat.size < 2:
        with pytest.raises(ValueError, match="at least 2 tokens"):
            pack(documents, length)
        return
    examples = pack(documents, length)
    assert [e.loss_from for e in examples] == [1] * len(examples)
    joined = np.concatenate([e.ids for e in examples])
    if flat.size < length:
        assert joined.tolist() == flat.tolist()
        assert len(examples) == 1
    else:
        assert all(e.ids.size == length for e in examples)
        assert joined.tolist() == flat[: flat.size // length * length].tolist()


def test_pack_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="at least 2 tokens"):
        pack([], 8)
    with pytest.raises(ValueError, match="length=1"):
        pack([np.arange(9)], 1)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_training_learns_a_sequence(kind: str) -> None:
    model = tiny(kind)
    example = Example(np.random.default_rng(0).integers(3, V, 20), loss_from=6)
    recipe = Recipe(epochs=30, learning_rate=1e-2, batch_size=4, max_length=32)
    losses = train(model, [example] * 4, recipe, generator=np.random.default_rng(0))
    assert len(losses) == 30
    assert losses[0] == pytest.approx(math.log(V), rel=0.15)
    assert losses[-1] < 0.25
    assert not model.training
    ids = torch.from_numpy(example.ids)[None]
    with torch.no_grad():
        predicted = model(ids).logits[0, 5:-1].argmax(-1)
    assert predicted.tolist() == example.ids[6:].tolist()


def test_training_is_deterministic_given_the_generator() -> None:
    examples, recipe = random_examples(30), Recipe(epochs=2.5, batch_size=8)
    start = tiny("llama")

    def run(seed: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        model = copy.deepcopy(start)
        torch.manual_seed(np.random.default_rng().integers(2**31))  # the global state must not matter
        return train(model, examples, recipe, generator=np.random.default_rng(seed)), model.state_dict()

    (losses, weights), (again, same), (other, _) = run(0), run(0), run(1)
    assert losses == again
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert losses != other
    assert len(losses) == 3  # the last epoch is half a one


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 4), (2.0, 8), (0.5, 2), (0.01, 1), (1.75, 7)])
def test_number_of_steps_and_what_an_epoch_holds(epochs: float, steps: int) -> None:
    examples = random_examples(30)
    plan = list(training._epochs(examples, Recipe(epochs=epochs, batch_size=8), np.random.default_rng(0)))
    assert len(plan) == steps
    for epoch in range(int(epochs)):
        seen = [i for e, batch in plan if e == epoch for i in batch]
        assert sorted(seen) == list(range(30))
    lengths = [[examples[i].ids.size for i in batch] for _, batch in plan]
    assert max(max(sizes) - min(sizes) for sizes in lengths) <= 16


def test_learning_rate_rises_then_falls_to_a_tenth() -> None:
    rates = [training._rate(step, 200, 0.05) for step in range(200)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert int(np.argmax(rates)) in (9, 10)
    assert np.all(np.diff(rates[:10]) > 0)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert all(0 < training._rate(step, total, 0.05) <= 1 for total in (1, 2, 3) for step in range(total))


def test_divergence_is_an_error_and_keeps_the_last_finite_weights() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DivergedError, match=r"the loss is nan at learning_rate=0\.001; lower the learning rate"):
        train(model, random_examples(), Recipe(), generator=np.random.default_rng(0))
    assert all(torch.equal(before[name].nan_to_num(), p.nan_to_num()) for name, p in model.state_dict().items())


def test_absurd_learning_rate_diverges_or_says_so() -> None:
    with pytest.raises(DivergedError, match="learning_rate=1e\\+30"):
        train(tiny("llama"), random_examples(), Recipe(epochs=9, learning_rate=1e30), generator=np.random.default_rng(0))


def test_examples_whose_answer_is_cut_off_do_not_poison_training(caplog: pytest.LogCaptureFixture) -> None:
    """Alone in a batch, such an example has a mean over nothing, which is NaN."""
    long = [Example(np.arange(3, 33), loss_from=25) for _ in range(4)]
    recipe = Recipe(batch_size=4, max_length=20)
    with caplog.at_level(logging.WARNING):
        losses = train(tiny("llama"), [*random_examples(), *long], recipe, generator=np.random.default_rng(0))
    assert math.isfinite(losses[0])
    assert "4 of 16 examples have no token to learn within max_length=20" in caplog.text
    with pytest.raises(ValueError, match="none of the 4 examples has a token to learn within max_length=20"):
        train(tiny("llama"), long, recipe, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="examples is empty"):
        train(tiny("llama"), [], recipe, generator=np.random.default_rng(0))


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0}, {"epochs": math.nan}, {"learning_rate": 0.0}, {"learning_rate": -1.0}, {"batch_size": 0},
        {"max_length": 1}, {"warmup": 1.0}, {"warmup": -0.1},
    ],
)  # fmt: skip
def test_recipe_refuses_what_makes_no_sense(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Recipe(**bad)


@pytest.mark.parametrize(
    ("epochs", "expected"), [(3.0, [1, 2, 3]), (1.5, [1, 2]), (2.4, [1, 2, 3]), (2.1, [1, 2]), (0.4, [1]), (1.0, [1])]
)
def test_after_each_epoch(epochs: float, expected: list[int]) -> None:
    """Called once an epoch, when it is over, also for the last one that is only begun; the model is evaluated there."""
    model, calls, weights, modes = tiny("llama"), [], [], []

    def after_epoch(number: int) -> None:
        calls.append(number)
        modes.append(model.training)
        weights.append(copy.deepcopy(model.state_dict()))

    recipe = Recipe(epochs=epochs, batch_size=4)  # 12 examples: 3 steps an epoch
    modes_in_step: list[bool] = []
    watched = Watched(modes_in_step)
    losses = train(
        model, random_examples(), recipe, generator=np.random.default_rng(0), after_epoch=after_epoch, steps=watched
    )
    assert calls == expected and len(losses) == len(expected)
    assert not any(modes) and not model.training
    assert all(modes_in_step) and len(modes_in_step) == max(1, round(3 * epochs))
    final = model.state_dict()
    assert all(torch.equal(weights[-1][name], final[name]) for name in final), "the last one sees the model as it stays"
    for number, (first, second) in enumerate(itertools.pairwise(weights), 1):
        assert any(not torch.equal(first[name], second[name]) for name in first), number


class Watched(Steps):
    """Steps that note whether the model was being trained."""

    def __init__(self, modes: list[bool]) -> None:
        super().__init__()
        self.modes = modes

    def descend(self, loss: torch.Tensor) -> None:
        """One step, watched."""
        self.modes.append(self.model.training)
        super().descend(loss)


def test_looking_after_each_epoch_changes_nothing() -> None:
    start = tiny("gpt_neox")
    results = []
    for after_epoch in (None, lambda epoch: None):
        model = copy.deepcopy(start)
        losses = train(
            model, random_examples(), Recipe(epochs=2.5, batch_size=4), generator=np.random.default_rng(0),
            after_epoch=after_epoch,
        )  # fmt: skip
        results.append((losses, model.state_dict()))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(tensor, results[1][1][name]) for name, tensor in results[0][1].items())


def test_a_failure_after_an_epoch_is_seen() -> None:
    def after_epoch(number: int) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        train(tiny("llama"), random_examples(), Recipe(), generator=np.random.default_rng(0), after_epoch=after_epoch)


def test_steps_are_adamw_on_the_mean_loss() -> None:
    """Against the plain loop, written out: clip at 1, AdamW, the schedule of the recipe."""
    start, examples, recipe = tiny("llama"), random_examples(), Recipe(epochs=3, batch_size=4, learning_rate=3e-2)
    found = copy.deepcopy(start)
    train(found, examples, recipe, generator=np.random.default_rng(0), steps=Steps())
    expected = copy.deepcopy(start).train()
    plan = list(training._epochs(examples, recipe, np.random.default_rng(0)))
    optimiser = torch.optim.AdamW(expected.parameters(), lr=recipe.learning_rate, weight_decay=0.0, betas=(0.9, 0.95))
    for step, (_, batch) in enumerate(plan):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * training._rate(step, len(plan), recipe.warmup)
        ids, mask, labels = collate([examples[i] for i in batch], recipe.max_length)
        logits = expected(input_ids=ids, attention_mask=mask).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
        optimiser.step()
    for (name, ours), theirs in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)


def test_frozen_weights_stay_and_are_not_in_the_optimiser() -> None:
    model = tiny("llama")
    model.model.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    train(model, random_examples(), Recipe(weight_decay=0.1), generator=np.random.default_rng(0))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"lm_head.weight"}
    optimiser, _ = training.optimiser_of(model, Recipe(), 10)
    assert [parameter for group in optimiser.param_groups for parameter in group["params"]] == [model.lm_head.weight]


def test_compiled_steps_train_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers are traced as torch.compile does it, but run without a compiler, which would take a minute here."""
    compiled: list[str] = []
    compile_module = torch.nn.Module.compile

    def traced(self: torch.nn.Module) -> None:
        compiled.append(type(self).__name__)
        compile_module(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    start, examples, recipe = tiny("llama"), random_examples(8), Recipe(epochs=1, batch_size=4)
    results = []
    for steps in (Steps(), Steps(compiled=True)):
        model = copy.deepcopy(start)
        losses = train(model, examples, recipe, generator=np.random.default_rng(0), steps=steps)
        results.append((losses, model.state_dict()))
    assert compiled == ["LlamaModel"]
    (losses, weights), (traced_losses, traced_weights) = results
    assert traced_losses == pytest.approx(losses, rel=1e-5)
    assert weights.keys() == traced_weights.keys(), "what is saved has the same names"
    for name in weights:
        torch.testing.assert_close(traced_weights[name], weights[name], rtol=1e-4, atol=1e-6)
