"""Reading mode against a plain-Python reference, and the trap of copied windows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import radio_utils as ru
from radio_utils import evidence, reading

VOCABULARY = 24


@pytest.fixture(scope="module")
def model() -> Any:
    """Random weights, large enough that the context matters, and 8 padding logits beyond the vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY + 8, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def reference(
    model: Any, sequences: list[list[int]], window: int, prompts: list[list[int]] | None, keep: set[tuple[int, ...]] | None
) -> tuple[list[tuple[tuple[int, ...], int]], int]:
    """Distinct (window, prediction) pairs of every place, sorted: one forward pass for each prefix."""
    pairs: dict[tuple[tuple[int, ...], int], None] = {}
    seen = 0
    for i, sequence in enumerate(sequences):
        prompt = [] if prompts is None else prompts[i]
        context = prompt + sequence
        for t in range(max(len(prompt), 1), len(context) + 1):
            seen += 1
            here = tuple(context[t - window : t]) if t >= window else None
            if here is None or (keep is not None and here not in keep):
                continue
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([context[:t]])).logits[0, -1]
            pairs[here, int(logits[:VOCABULARY].argmax())] = None
    return sorted(pairs), seen


def as_pairs(found: evidence.Evidence) -> list[tuple[tuple[int, ...], int]]:
    return [(tuple(w), t) for w, t in zip(found.windows.tolist(), found.tokens.tolist(), strict=True)]


RNG = np.random.default_rng(5)
# few distinct tokens, so that windows repeat within a context
SEQUENCES = [RNG.integers(0, 6, size).tolist() for size in (12, 5, 30, 5, 17)]
PROMPTS = [RNG.integers(0, 6, size).tolist() for size in (4, 9, 0, 1, 6)]


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("prompts", [None, PROMPTS], ids=["plain", "prompts"])
def test_reading_is_the_slow_loop(model: Any, window: int, prompts: list[list[int]] | None) -> None:
    expected, seen = reference(model, SEQUENCES, window, prompts, None)
    for batch_size in (1, 2, 64):
        found = reading.read_evidence(
            model, SEQUENCES, window, VOCABULARY, prompts=prompts, skip_seen=False, full_context=True, batch_size=batch_size
        )
        assert as_pairs(found) == expected
        assert found.seen == seen
    sealed = reading.read_evidence(model, SEQUENCES, window, VOCABULARY, prompts=prompts, full_context=True)
    assert set(as_pairs(sealed)) < set(expected) and sealed.seen == seen


def test_predictions_stand_at_their_places(model: Any) -> None:
    found = reading.read_predictions(model, SEQUENCES, VOCABULARY, prompts=PROMPTS, batch_size=2)
    for context, start, tokens, sequence, prompt in zip(
        found.contexts, found.starts, found.tokens, SEQUENCES, PROMPTS, strict=True
    ):
        assert context.tolist() == prompt + sequence and start == len(prompt)
        for t, token in enumerate(tokens.tolist()):
            if t < max(1, start):
                assert token == -1
            else:
                with torch.inference_mode():
                    logits = model(input_ids=torch.tensor(context[None, :t])).logits[0, -1]
                assert token == int(logits[:VOCABULARY].argmax())


def test_the_filter_keeps_only_its_windows(model: Any) -> None:
    keep = [[0, 1], [2, 3], [4, 4], [5, 0]]
    expected, seen = reference(model, SEQUENCES, 2, PROMPTS, {tuple(window) for window in keep})
    options: dict[str, Any] = {"prompts": PROMPTS, "keep": np.array(keep), "skip_seen": False, "full_context": True}
    found = reading.read_evidence(model, SEQUENCES, 2, VOCABULARY, **options)
    assert as_pairs(found) == expected and found.seen == seen
    assert 0 < len(found) < seen


def test_one_array_and_lists_read_alike(model: Any) -> None:
    array = np.random.default_rng(0).integers(0, VOCABULARY, (6, 11))
    wm = ru.GreenList("alice", VOCABULARY, 2, 0.25, 2.0)
    verdicts = [
        ru.read_open_model(model, given, wm, batch_size=4)
        for given in (array, array.astype(np.int32), array.tolist(), [torch.from_numpy(row) for row in array])
    ]
    assert all(verdict == verdicts[0] for verdict in verdicts[1:])
    verdict = verdicts[0]
    assert verdict.total == wm.scores(verdict.evidence.windows, verdict.evidence.tokens).sum()
    assert verdict.seen == 6 * 11 >= verdict.scored > 0


def test_padding_logits_are_never_predicted(model: Any) -> None:
    class Padded(torch.nn.Module):
        """Would choose the padding logit everywhere, and token 7 among the real ones."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            logits = torch.zeros(*input_ids.shape, VOCABULARY + 8)
            logits[..., 7], logits[..., VOCABULARY + 2] = 5.0, 50.0
            return SimpleNamespace(logits=logits)

    found = reading.read_evidence(Padded(), SEQUENCES, 1, VOCABULARY)
    assert set(found.tokens.tolist()) == {7}


class Copier(torch.nn.Module):
    """Predicts what followed the last earlier occurrence of the current token, else a token fixed by the position."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=512)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        logits = torch.zeros(*input_ids.shape, 512)
        for row, ids in enumerate(input_ids.tolist()):
            followed: dict[int, int] = {}
            for t, token in enumerate(ids):
                logits[row, t, followed.get(token, (37 * t + 11 * token) % 512)] = 9.0
                if t + 1 < len(ids):
                    followed[token] = ids[t + 1]
        return SimpleNamespace(logits=logits)


def watermarked(wm: ru.GreenList, count: int, length: int, seed: int) -> np.ndarray[Any, Any]:
    """Random texts in which nearly every token is green."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, wm.vocab_size, (count, length))
    for t in range(wm.window, length):
        for _ in range(12):
            red = wm.scores(rows[:, t - wm.window : t], rows[:, t]) < 0.5
            rows[red, t] = rng.integers(0, wm.vocab_size, int(red.sum()))
    return rows


def test_a_copying_model_is_innocent_and_the_skip_shows_it() -> None:
    """The trap of reading mode: B copies the watermark from its own context. Skipping seen windows closes it."""
    wm = ru.GreenList("alice", 512, 1, 0.25, 2.0)
    texts = watermarked(wm, 12, 40, seed=2)
    doubled = np.concatenate([texts, texts], axis=1)
    trapped = ru.read_open_model(Copier(), doubled, wm, skip_seen=False)
    honest = ru.read_open_model(Copier(), doubled, wm)
    assert trapped.log10_p < -20
    assert honest.log10_p > -2
    assert honest.scored < trapped.scored
    # a prompt that holds the text is context just the same
    prompted = ru.read_open_model(Copier(), texts, wm, prompts=list(texts))
    assert prompted.scored == 0 or prompted.log10_p > -2
    assert ru.read_open_model(Copier(), texts, wm, prompts=list(texts), skip_seen=False).log10_p < -20


def test_reading_refuses_bad_input(model: Any) -> None:
    def fails(match: str, *args: Any, model: Any = model, window: int = 2, size: int = VOCABULARY, **options: Any) -> None:
        with pytest.raises(ValueError, match=match):
            reading.read_evidence(model, *args, window, size, **options)

    fails("sequences is empty", [])
    fails("sequences must be sequences of token ids, got a string", "text")
    fails(r"sequences\[1\]", [[1, 2, 3], [1, 2, VOCABULARY]])
    fails(r"sequences\[0\]", [[1, -2, 3]])
    fails(r"sequences\[0\] has 2 tokens with its prompt", [[1, 2]])
    fails(r"sequences\[1\]", [[1, 2, 3], []])
    fails("got 1 and 2", [[1, 2, 3], [1, 2, 3]], prompts=[[1]])
    fails(r"prompts\[0\]", [[1, 2, 3]], prompts=[[999]])
    fails("keep must be windows of shape", [[1, 2, 3]], keep=[[1, 2, 3]])
    fails("batch_size must be at least 1", [[1, 2, 3]], batch_size=0)
    fails("dedup must be one of", [[1, 2, 3]], dedup="pairs")
    fails("has 32 logits, fewer than the watermark's vocab_size=1000", [[1, 2, 3]], size=1000)

    class Constant(torch.nn.Module):
        def __init__(self, value: float, where: slice) -> None:
            super().__init__()
            self.weight, self.value, self.where = torch.nn.Parameter(torch.zeros(1)), value, where

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            logits = torch.zeros(*input_ids.shape, VOCABULARY)
            logits[..., self.where] = self.value
            return SimpleNamespace(logits=logits)

    for value in (torch.nan, torch.inf):
        for where in (slice(None), slice(3, 4)):
            fails("logits hold NaN or infinity", [[1, 2, 3]], model=Constant(value, where))
    fails("logits hold NaN or infinity", [[1, 2, 3]], model=Constant(-torch.inf, slice(None)))
    ruled_out = reading.read_evidence(Constant(-torch.inf, slice(0, 5)), [[1, 2, 3]], 2, VOCABULARY)
    assert set(ruled_out.tokens.tolist()) == {5}
