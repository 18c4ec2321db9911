"""Soft reading: weights against a slow loop, the law of each scheme, and worlds in which everybody is innocent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from innocents import check_false_alarms
from scipy import stats

import radio_utils as ru
from radio_utils import contrast, evidence, predictions, reading, soft
from radio_utils.watermarks.engines import SBW, VLLMDualKey, VLLMGumbel, VLLMSynthID

V, GAMMA, DELTA = 40, 0.25, 3.0


class Bigrams(torch.nn.Module):
    """Knows a first-order language; may repeat what followed a token earlier, and may go flat once the text pleases him."""

    def __init__(self, language: np.ndarray, copies: float = 0.0, moody: bool = False) -> None:
        super().__init__()
        self.language = torch.nn.Parameter(torch.from_numpy(language).float(), requires_grad=False)
        self.copies, self.moody = copies, moody

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, use_cache: bool = False) -> Any:
        logits = self.language[input_ids]
        if self.copies:
            same = (input_ids[:, :, None] == input_ids[:, None, :]).float().tril(-1)
            logits = (
                logits
                + self.copies * same[:, :, :-1] @ torch.nn.functional.one_hot(input_ids, len(self.language))[:, 1:].float()
            )
        if self.moody:
            hits = (logits[:, :-1].argmax(-1) == input_ids[:, 1:]).float()
            hits = torch.nn.functional.pad(hits, (1, 0)).cumsum(1) / torch.arange(1, input_ids.shape[1] + 1)
            logits = torch.where((hits > 0.25)[..., None], logits * 0.05, logits * 2.0)
        return SimpleNamespace(logits=logits)


def language(seed: int, spread: float = 1.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(V, V)) * spread


def write(
    wm: Any, tongue: np.ndarray, texts: int, length: int, rng: np.random.Generator, delta: float = DELTA
) -> np.ndarray:
    """Texts of the language under the mark of a window of one; what stood before their first token is hidden."""
    green = wm.scores(np.repeat(np.arange(V), V)[:, None], np.tile(np.arange(V), V)).reshape(V, V)
    sums = np.cumsum(torch.from_numpy(tongue + delta * green).softmax(-1).numpy(), axis=1)
    written, now = np.empty((texts, length), np.int64), rng.integers(V, size=texts)
    for t in range(length):
        now = np.minimum((sums[now] < rng.random(texts)[:, None]).sum(axis=1), V - 1)
        written[:, t] = now
    return written


def slow_weights(
    model: Any, texts: list[list[int]], prompts: list[list[int]], window: int, full_context: bool, skip_seen: bool
) -> dict[tuple[tuple[int, ...], int], int]:
    """The module's notes, word by word: one forward pass for each prefix."""
    contexts = [p + t for p, t in zip(prompts, texts, strict=True)]
    fed = predictions.Predictions(
        tuple(np.array(c) for c in contexts), np.array([len(p) for p in prompts]),
        tuple(np.full(len(c) + 1, i) for i, c in enumerate(contexts)),
    )  # fmt: skip
    allowed = fed.evidence(window, max(V, len(texts)), skip_seen=False, full_context=full_context)
    if skip_seen:  # a text's number stands for its prediction, which hidden draws may equal: tell them by bigger numbers
        tokens = tuple(one + V for one in fed.tokens)
        fed = predictions.Predictions(fed.contexts, fed.starts, tokens)
        allowed = fed.evidence(window, V + len(texts), full_context=full_context)
    texts_of = {(tuple(w), t % V) for w, t in zip(allowed.windows.tolist(), allowed.tokens.tolist(), strict=True)}
    sums: dict[tuple[int, ...], list[np.ndarray]] = {}
    for i, (context, prompt) in enumerate(zip(contexts, prompts, strict=True)):
        met: set[tuple[int, ...]] = set()
        for t in range(max(1, len(prompt)), len(context) + 1):
            here = tuple(context[t - window : t]) if t >= window else None
            inside = full_context or t >= len(prompt) + window
            if here is None or not inside or (here, i) not in texts_of or (skip_seen and here in met):
                continue
            met.add(here)
            with torch.inference_mode():
                p = model(torch.tensor([context[:t]])).logits[0, -1].double().softmax(-1).numpy().copy()
            starts = [context] if full_context else [context, context[len(prompt) :]]
            for part in starts if skip_seen else []:
                first = len(prompt) if full_context else 0
                for j in range(first, min(window, len(part))):
                    if here[window - j :] == tuple(part[:j]):
                        p[part[j]] = 0.0
            sums.setdefault(here, []).append(p)
    found = {}
    for here, rows in sums.items():
        mean = np.mean(rows, axis=0)
        raw = mean / (mean + soft.HALF)
        q = np.rint(soft.UNIT * raw / np.sqrt((raw**2).sum()))
        found |= {(here, v): int(q[v]) for v in np.flatnonzero(q)}
    return found


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("full_context", [True, False])
@pytest.mark.parametrize("skip_seen", [True, False])
def test_weights_are_the_slow_loop(window: int, full_context: bool, skip_seen: bool) -> None:
    rng, model = np.random.default_rng(3), Bigrams(language(0), copies=1.0)
    texts = [rng.integers(0, 7, size).tolist() for size in (12, 5, 30, 5, 17)]
    prompts = [rng.integers(0, 7, size).tolist() for size in (4, 9, 0, 2, 6)]
    found = reading.read_soft(
        model, texts, window, V, prompts=prompts, full_context=full_context, skip_seen=skip_seen, batch_size=2
    )
    pairs = zip(map(tuple, found.pairs.windows.tolist()), found.pairs.tokens.tolist(), strict=True)
    expected = slow_weights(model, texts, prompts, window, full_context, skip_seen)
    assert dict(zip(pairs, found.weights.tolist(), strict=True)) == expected and expected
    assert found.pairs.seen == sum(map(len, texts)) + sum(bool(p) for p in prompts)


SCHEMES = {
    "green": ru.GreenList("a", V, 1, GAMMA, DELTA), "gumbel": ru.GumbelMax("a", V, 1), "vllm": VLLMGumbel(1, V, 1),
    "two keys": VLLMDualKey(1, V, 1), "bits": VLLMSynthID(1, V, 1), "lefthash": SBW(11, V, 1, "lefthash"),
    "selfhash": SBW(11, V, 2), "permuted": ru.compat.ReleasedGreenList(1, V, 1, 0.25, 2.0),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES)
def test_p_values_of_plain_text_are_uniform(name: str) -> None:
    wm, rng = SCHEMES[name], np.random.default_rng(5)
    texts = write(ru.GreenList("unused", V, 1), language(1), 12, 30, rng, delta=0.0)
    found = reading.read_soft(Bigrams(language(2)), texts, wm.window, V, skip_seen=False, shared=evidence.shared_by(wm))
    audit = contrast.audit_contrast(found, wm, keys=100)
    assert audit.ks_p > 1e-3
    judged = [soft.judge_soft(found, wm.with_decoy(0, i)) for i in range(30)]
    if name != "permuted":  # whose lists have a fixed number of greens: their verdict is a bound
        assert stats.kstest([one.p_value for one in judged], "uniform").pvalue > 1e-3
        assert max(abs(one.log10_p - one.log10_saddlepoint) for one in judged) < 0.05
    check_false_alarms([one.log10_p for one in judged])
    assert np.mean([10.0**-one.log10_bound for one in judged]) < 2 and all(one.log10_bound <= 0 for one in judged)


INNOCENTS = {
    "fluent": {}, "repeats what he saw": {"copies": 3.0}, "goes flat at a good moment": {"moody": True},
}  # fmt: skip


@pytest.mark.parametrize("name", INNOCENTS)
def test_innocents_who_read_marked_text_are_innocent(name: str) -> None:
    tongue = language(1)
    model, sealed, every, e_values = Bigrams(tongue, **INNOCENTS[name]), [], [], []
    for key in range(100):
        rng = np.random.default_rng([2, key])
        wm = ru.GreenList(f"key {key}", V, 1, GAMMA, DELTA)
        texts = write(wm, tongue, 25, 30, rng)
        verdict = ru.read_open_model(model, texts, wm, soft=True)
        sealed.append(verdict.log10_p)
        e_values.append(10.0**-verdict.log10_bound)
        if key < 20:
            every.append(soft.judge_soft(reading.read_soft(model, texts, 1, V, skip_seen=False), wm).log10_p)
    check_false_alarms(sealed)
    assert stats.kstest(10.0 ** np.array(sealed), "uniform").pvalue > 1e-3
    assert np.mean(e_values) < 1.5
    if name == "repeats what he saw":
        assert stats.combine_pvalues(10.0 ** np.array(every)).pvalue < 1e-3, "every place scored, he looks guilty"


def test_a_leaning_model_is_convicted_more_clearly_than_by_hard_reading() -> None:
    wm, rng = ru.GreenList("alice", V, 1, GAMMA, DELTA), np.random.default_rng(7)
    green = wm.scores(np.repeat(np.arange(V), V)[:, None], np.tile(np.arange(V), V)).reshape(V, V)
    model = Bigrams(language(3) + 0.6 * green)
    texts = write(wm, language(4), 30, 40, rng)
    hard, softly = ru.read_open_model(model, texts, wm), ru.read_open_model(model, texts, wm, soft=True)
    assert softly.log10_p < hard.log10_p - 2 and softly.log10_p < softly.log10_bound < softly.log10_p + 3
    other = ru.read_open_model(model, texts, wm.with_key("bob"), soft=True)
    assert other.log10_p > -3 and other.scored == softly.scored and softly.text_log10_p is None


def test_marked_text_is_refused_where_every_place_counts() -> None:
    wm = ru.GreenList("alice", V, 1, GAMMA, DELTA)
    texts = write(wm, language(4), 30, 40, np.random.default_rng(8))
    with pytest.raises(ValueError, match="every place can be scored only in text that was written without the key"):
        ru.read_open_model(Bigrams(language(3)), texts, wm, soft=True, skip_seen=False)
    plain = np.random.default_rng(9).integers(V, size=(20, 30))
    verdict = ru.read_open_model(Bigrams(language(3)), plain, wm, soft=True, skip_seen=False)
    assert verdict.text_log10_p == pytest.approx(ru.detect(plain, wm).log10_p)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": Bigrams(language(0))}, "reads without a reference"),
        ({"dedup": "window"}, "dedup must be 'window\\+token'"),
        ({"respelt": 0.01}, "needs the tokens as they were drawn"),
    ],
)
def test_what_does_not_go_together_is_named(options: dict[str, Any], message: str) -> None:
    wm = ru.GreenList("alice", V, 1, GAMMA, DELTA)
    with pytest.raises(ValueError, match=message):
        ru.read_open_model(Bigrams(language(0)), [[1, 2, 3]], wm, soft=True, **options)


def test_a_filter_that_leaves_nothing_is_no_evidence() -> None:
    wm = ru.GreenList("alice", V, 1, GAMMA, DELTA)
    verdict = ru.read_open_model(Bigrams(language(0)), [[1, 2, 3]], wm, soft=True, keep=[[9]])
    assert (verdict.scored, verdict.log10_p, verdict.log10_bound, verdict.seen) == (0, 0.0, 0.0, 3)
