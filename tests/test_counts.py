"""The closed test by counts: weights by a slow loop, exact laws, honest false alarms, marked prompts, and power."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import radio_utils as ru
from radio_utils import contrast, counts, querying
from radio_utils.decoding import Sampling
from radio_utils.shown import Shown
from radio_utils.stats.weighted import WeightedSum

V = 40
ALPHAS = (0.05, 0.01, 0.001)


class Table(torch.nn.Module):
    """A model that knows the last token only: logits [V, V]."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.from_numpy(logits))
        self.runs = 0

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, use_cache: bool = False) -> Any:
        self.runs += 1
        return type("Output", (), {"logits": self.table[input_ids]})()


def logits_of(seed: int, spread: float = 1.0, vocab_size: int = V) -> np.ndarray:
    return spread * np.random.default_rng(seed).normal(size=(vocab_size, vocab_size))


def write(logits: np.ndarray, starts: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Texts of a table, [n, length] behind their starts [n]."""
    chances = np.exp(logits)
    cumulated = (chances / chances.sum(1, keepdims=True)).cumsum(1)
    texts = np.empty((starts.size, length), np.int64)
    last = starts
    for t in range(length):
        last = np.minimum((rng.random((starts.size, 1)) > cumulated[last]).sum(1), logits.shape[0] - 1)
        texts[:, t] = last
    return texts


def green(wm: ru.GreenList) -> np.ndarray:
    return wm.green_rows(np.arange(wm.vocab_size)[:, None]).astype(float)


def rates_are_honest(log10_p: np.ndarray, *, exact: bool) -> None:
    """Rates of false alarms inside their 99 % interval; below its upper end where p is a bound."""
    for alpha in ALPHAS:
        alarms = int(np.count_nonzero(log10_p <= np.log10(alpha)))
        low, high = stats.binom.interval(0.99, log10_p.size, alpha)
        assert alarms <= high, (alpha, alarms)
        assert not exact or alarms >= low, (alpha, alarms)


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.7)])
@pytest.mark.parametrize("filtered", [False, True])
def test_counts_equal_the_definition(window: int, sampling: Sampling | None, filtered: bool) -> None:
    rng = np.random.default_rng(4)
    table, top = logits_of(1, vocab_size=9), 3
    prompts = [rng.integers(0, 9, n) for n in (0, 1, 4, 2)]
    answers = [rng.integers(0, 9, n) for n in (7, 0, window, 12)]
    keep = rng.integers(0, 9, (20, window)) if filtered else None
    found = counts.collect(
        [(p, a) for p, a in zip(prompts, answers, strict=True) if a.size > window], Table(table), window, 9,
        keep=keep, sampling=sampling, batch_size=2, top=top,
    )  # fmt: skip
    chances = np.exp(table / (1.0 if sampling is None else 0.7))
    chances /= chances.sum(1, keepdims=True)
    said: dict[tuple[int, ...], float] = {}
    expected: dict[tuple[int, ...], float] = {}
    for answer in answers:
        for t in range(window, answer.size):
            w = tuple(answer[t - window : t].tolist())
            if keep is not None and w not in set(map(tuple, keep.tolist())):
                continue
            row = chances[w[-1]]
            said[(*w, int(answer[t]))] = said.get((*w, int(answer[t])), 0) + 1
            # the token that was said comes first, then the likeliest
            for v in np.argsort(-(row + (np.arange(9) == answer[t])))[:top]:
                expected[(*w, int(v))] = expected.get((*w, int(v)), 0.0) + row[v]
    keys, sums, _ = found.sums()
    windows, tokens = found.packing.unpack(keys)
    rows = [(*w, v) for w, v in zip(windows.tolist(), tokens.tolist(), strict=True)]
    assert set(rows) == set(expected)
    assert sums[:, 0] == pytest.approx([said.get(row, 0.0) for row in rows])
    assert sums[:, 1] == pytest.approx([expected[row] for row in rows], rel=1e-5)
    assert found.seen == sum(max(0, a.size - window) for a in answers)
    c, e = sums.T
    weighed = counts.weigh(found, None, 0.5)
    exact = (c - e) / (1 + 0.25 * e)
    unit = 0.3 * np.sqrt(np.mean(exact**2))
    q = dict(zip(rows, np.rint(exact / unit).astype(int), strict=True))
    got = zip(weighed.pairs.windows.tolist(), weighed.pairs.tokens.tolist(), weighed.weights.tolist(), strict=True)
    assert {(*w, v): weight for w, v, weight in got} == {row: weight for row, weight in q.items() if weight}
    assert (exact < 0).any() and (exact > 0).any()


@pytest.mark.parametrize("make", [ru.GreenList, ru.GumbelMax])
def test_plain_prompts_are_exact_whatever_the_suspect_does(make: Any) -> None:
    """Fixed answers, many keys: a suspect that repeats itself and its prompt, and a reference far from it."""
    rng = np.random.default_rng(0)
    prompts = write(logits_of(1), np.zeros(30, int), 6, rng)
    answers = [np.concatenate([p, p[::-1], write(logits_of(2, 3.0), p[-1:], 15, rng)[0]]) for p in prompts]
    found = querying.count_answers(prompts, answers, Table(logits_of(3)), 1, V, prompts_marked=False)
    assert (found.weights < 0).any() and (found.weights > 0).any()
    wm = make("alice", V, 1)
    keys = [wm.with_key(f"key {i}") for i in range(2000)]
    totals = np.rint(contrast._totals(found, wm, keys)).astype(np.int64)
    null = WeightedSum.of(found.weights, *wm.law.mark_distribution)
    log10_p, above = null.log10_many(totals), null.log10_many(totals + 1)
    direct = [contrast.judge_contrast(found, key).log10_p for key in keys[:5]]
    assert log10_p[:5] == pytest.approx(direct, rel=1e-6)
    uniform = 10.0**above + rng.random(2000) * (10.0**log10_p - 10.0**above)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    rates_are_honest(np.log10(uniform), exact=True)
    rates_are_honest(log10_p, exact=False)


def test_the_tail_is_that_of_all_colourings() -> None:
    rng = np.random.default_rng(2)
    answers = [rng.integers(0, 3, 9) for _ in range(4)]
    found = querying.count_answers([[0]] * 4, answers, Table(logits_of(3, 1.0, 3)), 1, 3, prompts_marked=False)
    gamma, q = 0.375, found.weights
    colours = np.array(list(itertools.product([0, 1], repeat=q.size)))
    chances = np.prod(np.where(colours == 1, gamma, 1 - gamma), axis=1)
    totals, null = colours @ q, WeightedSum.of(q, [0, 1], [1 - gamma, gamma])
    for total in np.unique(totals):
        assert 10 ** null.log10_exact(int(total)) == pytest.approx(chances[totals >= total].sum(), rel=1e-9)


@pytest.mark.parametrize("known", [False, True])
def test_marked_prompts_by_enumeration(known: bool) -> None:
    """Every prompt, every colouring, an innocent that does whatever it likes with its prompt: P(p ≤ α | prompt) ≤ α."""
    size, gamma, bias, length, hidden = 3, 0.3, 2.0, 3, 0
    chances = np.exp(logits_of(7, 1.0, size))
    colourings = np.array(list(itertools.product([0, 1], repeat=size * size))).reshape(-1, size, size)
    prior = np.prod(np.where(colourings == 1, gamma, 1 - gamma), axis=(1, 2))
    raised = chances * np.exp(bias * colourings)
    steps = raised / raised.sum(2, keepdims=True)  # [colouring, last, next]
    rng = np.random.default_rng(0)
    for prompt in itertools.product(range(size), repeat=length):
        context = [hidden, *prompt]
        likely = np.prod([steps[:, a, b] for a, b in itertools.pairwise(context)], axis=0)
        posterior = prior * likely / (prior @ likely)
        shown = Shown([context] if known else [prompt], 1, size, whole=known)
        for _ in range(2):  # counts that owe the prompt what they like
            told = np.zeros((size, size))
            for a, b in itertools.pairwise(context):
                told[a, b] += rng.integers(0, 4)
            said = told + rng.integers(0, 3, (size, size))
            expected = rng.dirichlet(np.ones(size), size) * said.sum(1, keepdims=True)
            collector = contrast.ContrastCollector(1, size, 2)
            for a in range(size):
                collector.add(np.array([[a]]), [torch.from_numpy(said[a : a + 1]), torch.from_numpy(expected[a : a + 1])])
            found = counts.weigh(collector, shown)
            null = WeightedSum.of(found.weights, [0, 1], [1 - gamma, gamma])
            totals = colourings[:, found.pairs.windows[:, 0], found.pairs.tokens] @ found.weights
            for total in np.unique(totals):
                assert posterior[totals >= total].sum() <= 10 ** null.log10_exact(int(total)) + 1e-9


FEW = 16  # tokens of the small vocabulary in which thousands of keys are tried


def recombine(prompts: np.ndarray, hidden: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Answers that go on with what followed the last token anywhere in the prompts, their hidden beginnings included."""
    followed: list[list[int]] = [[] for _ in range(FEW)]
    for row in prompts.tolist():
        for a, b in itertools.pairwise([hidden, *row]):
            followed[a].append(b)
    answers = np.empty((len(prompts), length), np.int64)
    for i, row in enumerate(prompts.tolist()):
        last = hidden if i % 2 else row[-1]
        for t, chance in enumerate(rng.random(length).tolist()):
            options = followed[last] if chance < 0.9 else []
            last = options[int(chance * 1000) % len(options)] if options else int(chance * 7919) % FEW
            answers[i, t] = last
    return answers


def marked_prompts(wm: Any, table: np.ndarray, hidden: int, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Prompts that Alice wrote under the key, each after the hidden token."""
    if isinstance(wm, ru.GreenList):
        return write(table + 3.0 * green(wm), np.full(shape[0], hidden), shape[1], rng)
    race = np.log(wm.uniform_rows_torch(torch.arange(FEW)[:, None]).numpy())
    prompts, last = np.empty(shape, np.int64), np.full(shape[0], hidden)
    for t in range(shape[1]):
        # other probabilities at each place, as after other contexts: otherwise all prompts would be one
        last = (race[last] / np.exp(table[last] + rng.normal(size=(shape[0], FEW)))).argmax(1)
        prompts[:, t] = last
    return prompts


@pytest.mark.parametrize("make", [ru.GreenList, ru.GumbelMax])
def test_marked_prompts_convict_no_innocent_who_recombines_them(make: Any) -> None:
    """The keys are drawn anew, and the prompts with them. Without the rule almost every innocent is convicted."""
    table, hidden = logits_of(1, 1.0, FEW), 3
    reference, rng = Table(table), np.random.default_rng(5)
    hidden_start, known_start, careless = [], [], []
    for i in range(2000):
        wm = make(f"key {i}", FEW, 1)
        prompts = marked_prompts(wm, table, hidden, (8, 4), rng)
        summed = counts.collect(list(zip(prompts, recombine(prompts, hidden, 12, rng), strict=True)), reference, 1, FEW)
        contexts = np.column_stack([np.full(len(prompts), hidden), prompts])
        hidden_start.append(log10_p(counts.weigh(summed, Shown(prompts, 1, FEW, whole=False)), wm))
        known_start.append(log10_p(counts.weigh(summed, Shown(contexts, 1, FEW, whole=True)), wm))
        if i < 30:
            careless.append(log10_p(counts.weigh(summed, None), wm))
    rates_are_honest(np.array(hidden_start), exact=False)
    rates_are_honest(np.array(known_start), exact=False)
    assert np.median(careless) < -3


def log10_p(found: contrast.Contrast, wm: Any) -> float:
    total, null = (
        round(float(contrast._totals(found, wm, [wm])[0])),
        WeightedSum.of(found.weights, *wm.law.mark_distribution),
    )
    # within a standard deviation there is no alarm at any level here, and the tail is not worth its time
    return null.log10_exact(total) if total > null.mean + np.sqrt(null.variance) else 0.0


def test_a_window_that_the_prompts_hide_has_spoken() -> None:
    """Prompts of one token after a hidden one: what was drawn there is green; what was likely and not drawn is red."""
    table, hidden = logits_of(1), 3
    found: dict[str, list[float]] = {"rule": [], "hidden window ignored": [], "drawn tokens left out only": []}
    for i in range(40):
        wm, rng = ru.GreenList(f"key {i}", V, 1), np.random.default_rng(i)
        prompts = write(table + 3.0 * green(wm), np.full(300, hidden), 1, rng)
        answers = [np.array([hidden, *row]) for row in prompts]
        summed = counts.collect(list(zip(prompts, answers, strict=True)), Table(table), 1, V)
        shown = Shown(prompts, 1, V, whole=False)
        found["rule"].append(log10_p(counts.weigh(summed, shown), wm))
        found["hidden window ignored"].append(log10_p(counts.weigh(summed, Shown(prompts, 1, V, whole=True)), wm))
        keys, sums, _ = summed.sums()
        y = counts.weights(sums[:, 0], sums[:, 1])
        left = summed.weighted(keys, np.where(shown.told(keys), 0.0, y))
        found["drawn tokens left out only"].append(log10_p(left, wm))
    assert min(found["rule"]) == 0.0
    assert np.median(found["hidden window ignored"]) < -3
    assert np.mean(np.array(found["drawn tokens left out only"]) < -1.0) > 0.3


def suspect_of(table: np.ndarray, length: int, seed: int = 0) -> Any:
    class Written:
        def answer(self, prompts: Sequence[Any]) -> list[np.ndarray]:
            starts = np.array([int(prompt[-1]) for prompt in prompts])
            return list(write(table, starts, length, np.random.default_rng(seed)))

    return Written()


def test_counts_see_what_scored_answers_do_not() -> None:
    wm = ru.GreenList("alice", V, 1)
    base, noise = logits_of(1), logits_of(9, 0.3)
    guilty, innocent = base + noise + 0.4 * green(wm), base + noise
    prompts = np.repeat(write(base, np.zeros(60, int), 5, np.random.default_rng(3)), 5, axis=0)  # each asked five times
    options: dict[str, Any] = {"reference": Table(base), "prompts_marked": False}
    found = ru.query_closed_model(suspect_of(guilty, 30), prompts, wm, **options)
    assert isinstance(found, ru.ContrastiveReading)
    scored = ru.query_closed_model(suspect_of(guilty, 30), prompts, wm)
    assert found.log10_p < 2 * scored.log10_p - 10
    assert found.log10_p <= found.log10_chernoff
    assert found.seen == 300 * 29
    assert found.text_log10_p is not None
    assert ru.query_closed_model(suspect_of(innocent, 30), prompts, wm, **options).log10_p > -4
    assert ru.query_closed_model(suspect_of(guilty, 30), prompts, wm.with_key("bob"), **options).log10_p > -4
    marked = write(base + 3.0 * green(wm), np.zeros(60, int), 5, np.random.default_rng(3))
    asked = np.repeat(marked, 5, axis=0)
    assert ru.query_closed_model(suspect_of(guilty, 30), asked, wm, reference=Table(base)).log10_p < -3


def test_a_contrast_of_counts_survives_the_disk(tmp_path: Any) -> None:
    found = querying.count_answers([[1, 2]], [np.arange(10)], Table(logits_of(1)), 1, V)
    found.save(tmp_path)
    again = contrast.Contrast.load(tmp_path)
    assert np.array_equal(again.weights, found.weights)
    assert np.array_equal(again.pairs.tokens, found.pairs.tokens)


def test_a_filter_that_leaves_nothing_is_no_evidence() -> None:
    wm = ru.GreenList("alice", V, 1)
    found = ru.query_closed_model(
        suspect_of(logits_of(2), 5), [[1, 2]] * 3, wm, reference=Table(logits_of(1)), keep=np.zeros((0, 1), int)
    )
    assert (found.seen, found.scored, found.log10_p) == (12, 0, 0.0)


def test_what_can_be_refused_is_refused_before_anything_is_asked() -> None:
    class Untouched:
        def answer(self, prompts: Sequence[Any]) -> list[np.ndarray]:
            raise AssertionError("the suspect was asked")

    wm, model = ru.GreenList("alice", V, 1), Table(logits_of(1))
    marked = write(logits_of(1) + 4.0 * green(wm), np.zeros(40, int), 20, np.random.default_rng(0))
    cases: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
        (marked, wm, {"prompts_marked": False}, ValueError, r"prompts carry the watermark \(log10 p = -"),
        ([[1, 2]], wm, {"prompts_marked": False, "drawn": [[1, 2]]}, ValueError, "drawn is given"),
        ([[1, 2]], wm, {"drawn": [[1, V]]}, ValueError, r"drawn\[0\] holds token id 40"),
        ([[1, 2]], wm, {"reference": "base"}, TypeError, "^reference must be a causal model, got str"),
        ([[1, 2]], wm, {"keep": [[1, 2]]}, ValueError, "keep must be windows of shape"),
    ]
    for prompts, scheme, options, error, words in cases:
        with pytest.raises(error, match=words):
            ru.query_closed_model(Untouched(), prompts, scheme, **({"reference": model} | options))
    assert model.runs == 0


def test_bad_input_is_named() -> None:
    model = Table(logits_of(1))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tau": -1.0}, "tau must be finite and not negative, got -1.0"),
        ({"top": 0}, "top must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"answers": [np.array([1])]}, "no answer is longer than the watermark's window=1"),
        ({"answers": []}, "equal in number, got 1 and 0"),
        ({"answers": [np.array([1, V])]}, r"answers\[0\] holds token id 40"),
        ({"reference": Table(logits_of(1, 1.0, 30))}, "the model has 30 logits, fewer than vocab_size=40"),
        ({"reference": Table(np.full((V, V), np.nan))}, "NaN or infinity"),
    ]
    for options, words in cases:
        given = {"answers": [np.arange(5)], "reference": model} | options
        with pytest.raises(ValueError, match=words):
            querying.count_answers([[1, 2]], given.pop("answers"), given.pop("reference"), 1, V, **given)
    with pytest.raises(querying.QueryError, match="the model has 30 logits") as caught:
        ru.query_closed_model(
            suspect_of(logits_of(2), 5), [[1, 2]], ru.GreenList("a", V, 1), reference=Table(logits_of(1)[:, :30])
        )
    assert len(caught.value.answers) == 1
