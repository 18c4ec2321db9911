"""Which predictions may be scored: against a slow follower of texts, and in worlds in which everybody is innocent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from innocents import check_false_alarms
from scipy import stats

import radio_utils as ru
from radio_utils import detection, evidence
from radio_utils.predictions import Predictions

Ids = np.ndarray[Any, np.dtype[np.int64]]


def predictions(contexts: list[list[int]], starts: list[int], tokens: list[list[int]]) -> Predictions:
    return Predictions(
        tuple(np.array(c, np.int64) for c in contexts), np.array(starts, np.int64),
        tuple(np.array(t, np.int64) for t in tokens),
    )  # fmt: skip


def followed(found: Predictions, window: int) -> set[tuple[tuple[int, ...], int]]:
    """The rule of the module's notes, word by word, with the full context known."""
    names = sorted({tuple(c[t - window : t].tolist()) for c in found.contexts for t in range(window, c.size + 1)})
    at = [window] * len(found.contexts)
    opened: set[tuple[int, ...]] = set()
    pairs: set[tuple[tuple[int, ...], int]] = set()

    def predicted(i: int, place: int) -> int:
        return int(found.tokens[i][place]) if place >= max(int(found.starts[i]), 1) else -1

    while True:
        standing: dict[tuple[int, ...], list[int]] = {}
        for i, context in enumerate(found.contexts):
            while at[i] <= context.size and tuple(context[at[i] - window : at[i]].tolist()) in opened:
                at[i] += 1
            if at[i] <= context.size:
                standing.setdefault(tuple(context[at[i] - window : at[i]].tolist()), []).append(i)
        if not standing:
            return pairs
        before = {one: {predicted(i, at[i]) for i in texts} - {-1} for one, texts in standing.items()}
        name = min(standing, key=lambda one: (-len(before[one]), names.index(one)))
        pairs |= {(name, token) for token in before[name]}
        opened.add(name)


@st.composite
def corpora(draw: st.DrawFn) -> Predictions:
    contexts = draw(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=14), min_size=1, max_size=6))
    starts = [draw(st.integers(0, len(context))) for context in contexts]
    tokens = [[draw(st.integers(-1, 4)) for _ in range(len(context) + 1)] for context in contexts]
    return predictions(contexts, starts, tokens)


@given(corpora(), st.integers(1, 3))
@settings(max_examples=200)
def test_lists_are_opened_as_the_rule_says(found: Predictions, window: int) -> None:
    # nothing hidden: with the full context only tokens that were drawn before the first whole window are
    hidden = {int(c[t]) for c, s in zip(found.contexts, found.starts, strict=True) for t in range(s, min(window, c.size))}
    expected = {pair for pair in followed(found, window) if pair[1] not in hidden}
    pairs = found.evidence(window, 5, full_context=True)
    got = {(tuple(w), t) for w, t in zip(pairs.windows.tolist(), pairs.tokens.tolist(), strict=True)}
    assert expected <= got <= followed(found, window)
    assert set(zip(map(tuple, pairs.windows.tolist()), pairs.tokens.tolist(), strict=True)) <= {
        (tuple(w), t)
        for every in [found.evidence(window, 5, full_context=True, skip_seen=False)]
        for w, t in zip(every.windows.tolist(), every.tokens.tolist(), strict=True)
    }


@given(corpora())
@settings(max_examples=50)
def test_kept_on_disk(tmp_path_factory: pytest.TempPathFactory, found: Predictions) -> None:
    path = tmp_path_factory.mktemp("predictions") / "p.npz"
    found.save(path)
    again = Predictions.load(path)
    for one, other in ((found.contexts, again.contexts), (found.tokens, again.tokens)):
        assert [a.tolist() for a in one] == [a.tolist() for a in other]
    assert found.starts.tolist() == again.starts.tolist()
    twice = found.merge(again)
    assert len(twice.contexts) == 2 * len(found.contexts)


# --- worlds in which nobody was trained on anything ---------------------------------------------------------------------

GAMMA, DELTA = 0.25, 3.0


def write(wm: Any, language: Ids, begin: Ids, length: int, rng: np.random.Generator, eos: int | None = None) -> list[Ids]:
    """Texts of a first-order language under the mark of a window of one; ``eos`` ends a text and is stripped."""
    rows = wm.green_rows(np.arange(len(language))[:, None]) if hasattr(wm, "green_rows") else None
    chances = np.exp(language + DELTA * rows)
    sums = np.cumsum(chances / chances.sum(axis=1, keepdims=True), axis=1)
    texts = np.empty((begin.size, length), np.int64)
    now = begin
    for t in range(length):
        now = np.minimum((sums[now] < rng.random(begin.size)[:, None]).sum(axis=1), len(language) - 1)
        texts[:, t] = now
    if eos is None:
        return list(texts)
    ends = [np.flatnonzero(text == eos) for text in texts]
    return [text[: end[0]] if end.size else text for text, end in zip(texts, ends, strict=True)]


def fluent(language: Ids, texts: list[Ids], copies: float = 0.0) -> Predictions:
    """An innocent who knows the language as well as Alice does, and repeats what he has seen after the same token."""
    tokens = []
    for text in texts:
        expected, found = language.copy(), [-1]
        for t, token in enumerate(text.tolist(), 1):
            found.append(int(np.argmax(expected[token])))
            if copies and t < text.size:
                expected[token, text[t]] += copies
        tokens.append(found)
    return predictions([text.tolist() for text in texts], [0] * len(texts), tokens)


def verdicts(trial: Callable[[int], detection.Detection], keys: int) -> list[float]:
    return [trial(key).log10_p for key in range(keys)]


VOCABULARY = 40


def language(seed: int, spread: float = 1.5) -> Ids:
    return np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY)) * spread


@pytest.mark.parametrize("copies", [0.0, 3.0])
def test_a_fluent_innocent_is_innocent(copies: float) -> None:
    tongue = language(1)

    def trial(key: int) -> detection.Detection:
        rng = np.random.default_rng([2, key])
        wm = ru.GreenList(f"key {key}", VOCABULARY, 1, GAMMA, DELTA)
        texts = write(wm, tongue, rng.integers(VOCABULARY, size=30), 40, rng)
        return detection.judge(fluent(tongue, texts, copies).evidence(1, VOCABULARY), wm)

    check_false_alarms(verdicts(trial, 400))


def test_a_hidden_template_whispers_to_nobody() -> None:
    """Every text begins after the hidden token 7, and the suspect expects a text's first word after each 7."""
    tongue = language(3, 0.3)
    tongue[:, 7] += 2.0  # so that 7 comes again in the texts

    def trial(key: int) -> detection.Detection:
        rng = np.random.default_rng([4, key])
        wm = ru.GreenList(f"key {key}", VOCABULARY, 1, GAMMA, DELTA)
        texts = write(wm, tongue, np.full(60, 7), 30, rng)
        told = fluent(tongue, texts)
        for text, tokens in zip(texts, told.tokens, strict=True):
            tokens[1:][text == 7] = text[0]
        return detection.judge(told.evidence(1, VOCABULARY), wm)

    check_false_alarms(verdicts(trial, 300))
    scores = []  # what the rule is for: these pairs are green far too often
    for key in range(40):
        rng = np.random.default_rng([4, key])
        wm = ru.GreenList(f"key {key}", VOCABULARY, 1, GAMMA, DELTA)
        texts = write(wm, tongue, np.full(60, 7), 30, rng)
        pairs = {(7, int(text[0])) for text in texts}
        scores.append(
            detection.judge(evidence.from_pairs([[w] for w, _ in pairs], [t for _, t in pairs], VOCABULARY), wm).score
        )
    assert np.mean(scores) > GAMMA + 0.05


def test_the_end_of_a_text_takes_no_place_away() -> None:
    """A token that ends the text is stripped: a place must not vanish because it was drawn there."""
    tongue = language(5, 0.5)
    tongue[:, 0] += 2.0

    def trial(key: int) -> detection.Detection:
        rng = np.random.default_rng([6, key])
        wm = ru.GreenList(f"key {key}", VOCABULARY, 1, GAMMA, DELTA)
        begin = rng.integers(1, VOCABULARY, 40)
        texts = [np.append(b, t) for b, t in zip(begin, write(wm, tongue, begin, 30, rng, eos=0), strict=True)]
        told = fluent(np.where(np.arange(VOCABULARY) == 0, -9.0, tongue), texts)
        prompted = Predictions(told.contexts, np.ones_like(told.starts), told.tokens)
        return detection.judge(prompted.evidence(1, VOCABULARY, full_context=True), wm)

    found = [trial(key) for key in range(400)]
    check_false_alarms([one.log10_p for one in found])
    excess = np.array([one.total - GAMMA * one.scored for one in found])
    scored = sum(one.scored for one in found)
    assert abs(excess.sum()) < 3.5 * np.sqrt(scored * GAMMA * (1 - GAMMA))


def test_circles_across_texts_do_not_spread_the_sum() -> None:
    """One text comes to window b only where a was kind, another to a only where b was: kindness meets itself."""
    size, pairs = 64, 20
    zs = {"sealed": [], "each context by itself": []}
    for key in range(400):
        wm = ru.GreenList(f"key {key}", size, 1, GAMMA, DELTA)
        contexts, tokens = [], []
        for i in range(pairs):
            a, b, c, kind_a, kind_b, end = 3 * i, 3 * i + 1, 3 * i + 2, 60, 61, 62
            contexts.append([63, c])
            tokens.append([-1, -1, kind_a])  # and one that nothing decides
            for first, second, kind in ((a, b, kind_a), (b, a, kind_b)):
                other = kind_b if kind == kind_a else kind_a
                green = wm.scores([[first]], [kind])[0] == 1
                context = [first, kind, second] if green else [first, end]
                contexts.append(context)
                tokens.append([-1, -1, -1, other] if green else [-1, -1, -1])
        found = predictions(contexts, [0] * len(contexts), tokens)
        sealed = detection.judge(found.evidence(1, size, full_context=True), wm)
        circles = [[w] for w in range(3 * pairs) if w % 3 < 2]
        every = detection.judge(found.evidence(1, size, full_context=True, skip_seen=False, keep=circles), wm)
        for name, verdict in (("sealed", sealed), ("each context by itself", every)):
            if verdict.scored:
                spread = np.sqrt(verdict.scored * GAMMA * (1 - GAMMA))
                zs[name].append((verdict.total - GAMMA * verdict.scored) / spread)
    assert np.var(zs["each context by itself"]) > 1.15
    assert stats.chi2.sf(np.var(zs["sealed"]) * len(zs["sealed"]), len(zs["sealed"]) - 1) > 1e-3


def test_colours_that_windows_share_are_shown_together() -> None:
    """transformers' selfhash: an induction head that repeats what it saw is green wherever windows share a colour."""
    size = 40
    tongue = np.random.default_rng(9).normal(size=(size, size)) * 2.0
    strict, naive = [], []
    for key in range(24):
        rng = np.random.default_rng([10, key])
        config = {"seeding_scheme": "selfhash", "context_width": 4, "hashing_key": 2 * int(rng.integers(1 << 30)) + 1}
        wm = ru.compat.TransformersGreenList(config, size)
        texts = rng.integers(size, size=(8, 60))
        for t in range(wm.window, 60):
            windows = np.repeat(texts[:, t - wm.window : t], size, axis=0)
            green = wm.scores(windows, np.tile(np.arange(size), len(texts))).reshape(len(texts), size)
            texts[:, t] = np.argmax(tongue[texts[:, t - 1]] + DELTA * green + rng.gumbel(size=green.shape), axis=1)
        told = fluent(tongue, list(texts), copies=50.0)
        strict.append(detection.judge(told.evidence(wm.window, size, shared=evidence.shared_by(wm), full_context=True), wm))
        naive.append(detection.judge(told.evidence(wm.window, size, full_context=True), wm))
    check_false_alarms([one.log10_p for one in strict])
    assert sum(one.scored for one in strict) > 200
    greens, scored = sum(one.total for one in naive), sum(one.scored for one in naive)
    assert stats.binom.sf(greens - 1, scored, GAMMA) < 1e-6, "by window alone the same predictions are green too often"
