"""Evidence: set laws, and windows, exclusion, filter and de-duplication against plain Python."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio_utils import evidence as ev
from radio_utils.evidence.windows import lexicographic

BIG = 2**40
Pair = tuple[tuple[int, ...], int]
few_ids = st.sampled_from([0, 1, 2, 3, 7])
huge_ids = st.sampled_from([0, 1, 2**31, 2**39, BIG - 1])
MODES: tuple[ev.Dedup, ...] = ("window+token", "window", None)


def texts_of(ids: st.SearchStrategy[int], shortest: int = 5, most: int = 6) -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.lists(ids, min_size=shortest, max_size=20), min_size=1, max_size=most)


def as_set(found: ev.Evidence) -> set[Pair]:
    return set(as_list(found))


def as_list(found: ev.Evidence) -> list[Pair]:
    return [(tuple(w), t) for w, t in zip(found.windows.tolist(), found.tokens.tolist(), strict=True)]


def plain_collect(
    texts: list[list[int]],
    k: int,
    prompts: list[list[int]] | None = None,
    keep: list[tuple[int, ...]] | None = None,
    dedup: ev.Dedup = "window+token",
) -> list[Pair]:
    """The definition, one token at a time."""
    found: list[Pair] = []
    for i, text in enumerate(texts):
        prompt = prompts[i] if prompts else []
        known = {tuple(prompt[j : j + k]) for j in range(len(prompt) - k + 1)}
        for t in range(k, len(text)):
            window = tuple(text[t - k : t])
            if window not in known and (keep is None or window in keep):
                found.append((window, text[t]))
    if dedup is None:
        return found
    if dedup == "window+token":
        return list(dict.fromkeys(found))
    smallest: dict[tuple[int, ...], int] = {}
    for window, token in found:
        smallest[window] = min(token, smallest.get(window, token))
    return [pair for pair in dict.fromkeys(found) if smallest[pair[0]] == pair[1]]


@settings(max_examples=150)
@given(st.data(), st.integers(1, 4), st.sampled_from(MODES), st.booleans())
def test_collect_equals_plain_python(data: st.DataObject, k: int, dedup: ev.Dedup, huge: bool) -> None:
    ids = huge_ids if huge else few_ids
    texts = data.draw(texts_of(ids))
    prompts = data.draw(st.none() | st.lists(st.lists(ids, max_size=10), min_size=len(texts), max_size=len(texts)))
    keep = data.draw(st.none() | st.lists(st.tuples(*[ids] * k), max_size=8))
    array = None if keep is None else np.array(keep, np.int64).reshape(-1, k)
    found = ev.collect(texts, k, BIG, prompts=prompts, keep=array, dedup=dedup)
    assert sorted(as_list(found)) == sorted(plain_collect(texts, k, prompts, keep, dedup))
    if dedup is not None:
        assert as_list(found) == sorted(as_list(found))  # a sorted set, whatever the order of the texts
    assert found.seen == sum(len(text) - k for text in texts)
    assert found.dedup == dedup
    assert found.windows.shape == (len(found), k)
    assert found.windows.dtype == found.tokens.dtype == np.int64


@settings(max_examples=80)
@given(st.data(), st.integers(1, 4), st.sampled_from(["window+token", "window"]))
def test_merging_is_a_set_union(data: st.DataObject, k: int, dedup: ev.Dedup) -> None:
    a, b, c = (ev.collect(data.draw(texts_of(few_ids | huge_ids)), k, BIG, dedup=dedup) for _ in range(3))
    assert as_set(a.merge(b)) == as_set(b.merge(a))
    assert as_set(a.merge(b).merge(c)) == as_set(a.merge(b.merge(c))) == as_set(a.merge(b, c)) == as_set(c.merge(a, b))
    assert as_list(a.merge(a)) == as_list(a)
    assert as_list(a.merge()) == as_list(a)
    assert a.merge(b, c).seen == a.seen + b.seen + c.seen
    assert len(as_list(a.merge(b))) == len(as_set(a.merge(b)))


@settings(max_examples=80)
@given(st.data(), st.integers(1, 4), st.sampled_from(MODES))
def test_shards_give_the_evidence_of_the_whole(data: st.DataObject, k: int, dedup: ev.Dedup) -> None:
    texts = data.draw(texts_of(few_ids, most=8))
    prompts = data.draw(st.lists(st.lists(few_ids, max_size=8), min_size=len(texts), max_size=len(texts)))
    whole = ev.collect(texts, k, BIG, prompts=prompts, dedup=dedup)
    order = data.draw(st.permutations(range(len(texts))))
    cut = data.draw(st.integers(1, len(texts)))
    groups = [g for g in (order[:cut], order[cut:]) if g]
    shards = [ev.collect([texts[i] for i in g], k, BIG, prompts=[prompts[i] for i in g], dedup=dedup) for g in groups]
    merged = shards[0].merge(*shards[1:])
    assert Counter(as_list(merged)) == Counter(as_list(whole))
    assert merged.seen == whole.seen


@settings(max_examples=80)
@given(st.data(), st.integers(1, 4), st.integers(1, 3))
def test_frequent_windows_equal_a_counter(data: st.DataObject, k: int, at_least: int) -> None:
    texts = data.draw(st.lists(st.lists(few_ids | huge_ids, max_size=15), min_size=1, max_size=5))
    counts = Counter(window for t in texts for window in {tuple(t[i : i + k]) for i in range(len(t) - k + 1)})
    found = ev.frequent_windows(texts, k, BIG, at_least=at_least)
    assert found.shape[1] == k
    assert [tuple(row) for row in found.tolist()] == sorted(w for w, n in counts.items() if n >= at_least)


@settings(max_examples=60)
@given(st.lists(st.tuples(huge_ids, huge_ids, huge_ids), max_size=30))
def test_first_rows_equal_a_dictionary(rows: list[tuple[int, ...]]) -> None:
    array = np.array(rows, np.int64).reshape(-1, 3)
    expected = [rows.index(row) for row in dict.fromkeys(rows)]
    assert ev.first_rows(array).tolist() == expected


@settings(max_examples=100)
@given(st.data(), st.integers(1, 6), st.sampled_from([2, 3, 1000, 2048, 32_000, 128_256, 2**31, 2**32, 2**33, BIG]))
def test_packing_is_one_to_one_and_keeps_order(data: st.DataObject, k: int, vocab_size: int) -> None:
    packing = ev.Packing(k, vocab_size)
    ids = st.integers(0, vocab_size - 1)
    rows = sorted(data.draw(st.lists(st.tuples(*[ids] * (k + 1)), min_size=1, max_size=20)))
    array = np.array(rows, np.int64)
    words = packing.pack(list(array.T))
    assert words.shape == (len(rows), packing.words)
    windows, tokens = packing.unpack(words)
    assert np.column_stack([windows, tokens]).tolist() == array.tolist()
    assert [tuple(w) for w in words.tolist()] == sorted(tuple(w) for w in words.tolist())
    assert np.array_equal(packing.windows_of(words), packing.pack_windows(array[:, :-1]))


def test_a_pair_takes_eight_bytes_where_it_fits() -> None:
    assert [ev.Packing(k, 32_000).words for k in (1, 2, 3, 4, 7)] == [1, 1, 1, 2, 2]
    assert [ev.Packing(k, 128_256).words for k in (1, 2, 4)] == [1, 1, 2]


@settings(max_examples=80)
@given(st.data(), st.integers(1, 4), st.integers(0, 3000), st.sampled_from([1, 5, 20, 44, 63, 64]))
def test_rows_are_ordered_as_by_lexsort(data: st.DataObject, columns: int, count: int, bits: int) -> None:
    """Equal rows, rows that agree in their first columns only, and sorted sets that follow one another."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    rows = rng.integers(0, (1 << bits) - 1, (count, columns), np.uint64, endpoint=True)
    share = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    rows = np.where(rng.random((count, 1)) < share, rows[rng.integers(0, max(count, 1), count)] if count else rows, rows)
    rows[:, : columns // 2] >>= np.uint64(bits - 1)
    assert np.array_equal(lexicographic(rows), np.lexsort(rows.T[::-1]))
    first = {}
    for place, value in enumerate(rows[:, 0].tolist()):
        first.setdefault(value, place)
    assert np.array_equal(np.flatnonzero(ev.first_appearances(rows[:, 0])), sorted(first.values()))
    halves = [half[np.lexsort(half.T[::-1])] for half in np.array_split(rows, 2)]
    runs = np.concatenate(halves)
    assert np.array_equal(lexicographic(runs, runs=True), np.lexsort(runs.T[::-1]))


def test_first_rows_of_the_largest_ids() -> None:
    top = np.iinfo(np.int64).max
    assert ev.first_rows(np.array([[top], [0], [top]])).tolist() == [0, 1]
    assert ev.first_rows(np.array([[top, top], [0, 1], [top, top], [0, 0]])).tolist() == [0, 1, 3]
    assert ev.first_rows(np.zeros((0, 2), np.int64)).tolist() == []


@pytest.mark.parametrize("vocab_size", [50, 2**40])
def test_a_set_that_grew_in_many_leaves_is_the_same_set(monkeypatch: pytest.MonkeyPatch, vocab_size: int) -> None:
    texts = np.random.default_rng(3).integers(0, 50, (400, 60))
    whole = ev.collect(texts, 2, vocab_size)
    monkeypatch.setattr("radio_utils.evidence.pairs._BLOCK", 500)
    monkeypatch.setattr("radio_utils.evidence.packing.LEAF", 64)
    small = ev.collect(list(texts), 2, vocab_size)
    assert len(small.parts) > (50 if vocab_size == 50 else 20)  # wide pairs are cut between oldest ids only
    assert np.array_equal(np.concatenate(small.parts), np.concatenate(whole.parts))
    pieces = [(w.tolist(), t.tolist()) for w, t in small.blocks(777)]
    assert pieces == [(w.tolist(), t.tolist()) for w, t in whole.blocks(777)]
    assert sum(len(t) for _, t in pieces) == len(whole)
    once = ev.collect(list(texts), 2, vocab_size, dedup="window")
    assert as_list(once) == sorted(plain_collect(texts.tolist(), 2, dedup="window"))


def test_a_sample_is_a_share_of_the_windows_and_the_same_in_every_shard() -> None:
    texts = np.random.default_rng(4).integers(0, 300, (200, 100))
    whole = ev.collect(texts, 2, 300)
    part = ev.collect(texts, 2, 300, sample=0.25)
    assert as_set(part) < as_set(whole)
    assert len(part) / len(whole) == pytest.approx(0.25, abs=0.02)
    assert {w for w, _ in as_set(part)}.isdisjoint({w for w, _ in as_set(whole) - as_set(part)})
    shards = [ev.collect(texts[i::3], 2, 300, sample=0.25) for i in range(3)]
    assert as_set(shards[0].merge(*shards[1:])) == as_set(part)
    assert part.seen == whole.seen


def test_evidence_survives_the_disk(tmp_path: Path) -> None:
    found = ev.collect([[1, 2, 3, 4, 2, 3]], 2, 10)
    found.save(tmp_path / "shard.npz")
    again = ev.Evidence.load(tmp_path / "shard.npz")
    assert as_list(again) == as_list(found)
    assert (again.seen, again.dedup, again.packing) == (found.seen, found.dedup, found.packing)
    assert [path.name for path in tmp_path.iterdir()] == ["shard.npz"]
    (tmp_path / "broken.npz").write_bytes((tmp_path / "shard.npz").read_bytes()[:100])
    np.savez(tmp_path / "other.npz", words=np.zeros((2, 1)), seen=1, dedup="x", window=2, vocab_size=10)
    for name in ("broken.npz", "other.npz", "absent.npz"):
        with pytest.raises(ValueError, match=f"{name} holds no evidence"):
            ev.Evidence.load(tmp_path / name)


@pytest.mark.parametrize("window", [1, 6])
def test_what_is_fresh(window: int) -> None:
    def pairs(*given: tuple[int, int], dedup: ev.Dedup = "window+token") -> ev.Evidence:
        windows, tokens = [[w] * window for w, _ in given], [t for _, t in given]
        return ev.from_pairs(windows, tokens, 10**5, dedup=dedup)

    met = [(9, 1), (5, 3), (7, 4)]
    fresh = pairs((5, 3), (5, 4), (9, 1), (2, 2)).without(pairs(*met))
    assert as_list(fresh) == [((2,) * window, 2), ((5,) * window, 4)]
    once = pairs((5, 9), (7, 1), (2, 2), dedup="window").without(pairs(*met, dedup="window"))
    assert as_list(once) == [((2,) * window, 2)]  # a known window is not fresh, whatever its token
    for other, words in (
        (pairs(*met, dedup="window"), "cannot be compared; collect it the same way"),
        (ev.from_pairs([[1] * window], [1], 100), "cannot be compared"),
    ):
        with pytest.raises(ValueError, match=words):
            pairs(*met).without(other)
    with pytest.raises(ValueError, match="dedup=None keeps repeats"):
        pairs(*met, dedup=None).without(pairs(*met, dedup=None))


def test_from_pairs_filters_and_deduplicates() -> None:
    windows, tokens = np.array([[1, 2], [1, 2], [3, 4], [1, 2], [5, 6]]), np.array([9, 9, 9, 8, 7])
    found = ev.from_pairs(windows, tokens, 10, seen=20, keep=[[1, 2], [5, 6], [7, 7]])
    assert as_list(found) == [((1, 2), 8), ((1, 2), 9), ((5, 6), 7)]
    assert found.seen == 20
    assert len(ev.from_pairs(windows, tokens, 10, keep=np.zeros((0, 2), int))) == 0
    assert as_list(ev.from_pairs(windows, tokens, 10, dedup="window")) == [((1, 2), 8), ((3, 4), 9), ((5, 6), 7)]


def test_every_kind_of_sequence_is_taken() -> None:
    rows = [[1, 2, 3, 4], [2, 3, 4, 5]]
    expected = as_list(ev.collect(rows, 2, 10))
    kinds: list[Any] = [
        np.array(rows),
        np.array(rows, np.uint8),
        [np.array(r, np.int32) for r in rows],
        tuple(map(tuple, rows)),
        iter(rows),
    ]
    for texts in kinds:
        assert as_list(ev.collect(texts, 2, 10)) == expected
    assert as_list(ev.collect(rows, 2, 10, prompts=np.array(rows))) == []
    assert len(ev.collect(rows, 2, 10, prompts=[[], [1]])) == len(expected)


def test_a_prompt_excludes_windows_of_its_own_text_only() -> None:
    found = ev.collect([[1, 2, 3], [1, 2, 3]], 2, 10, prompts=[[0, 1, 2], [5, 6, 7]], dedup=None)
    assert as_list(found) == [((1, 2), 3)]


def test_windows_do_not_straddle_texts_or_reach_into_the_prompt() -> None:
    found = ev.collect([[1, 2, 3], [4, 5, 6]], 2, 10, prompts=[[8, 9], [8, 9]])
    assert as_list(found) == [((1, 2), 3), ((4, 5), 6)]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ev.collect([], 1, 10), "texts is empty"),
        (lambda: ev.collect([[1, 2], []], 1, 10), r"texts\[1\] has 0 tokens; at least 2 are needed"),
        (lambda: ev.collect([[1, 2, 3], [1, 2]], 2, 10), r"texts\[1\] has 2 tokens; at least 3 are needed"),
        (lambda: ev.collect([[1, 2, [3]]], 1, 10), r"texts\[0\] is ragged"),  # type: ignore[list-item]
        (lambda: ev.collect([[1.0, 2.0]], 1, 10), r"texts\[0\] must hold integer token ids, got dtype float64"),
        (lambda: ev.collect([[1, math.nan]], 1, 10), r"texts\[0\] holds NaN"),
        (lambda: ev.collect([[1, -2]], 1, 10), r"texts\[0\] holds token id -2"),
        (lambda: ev.collect([[1, 2], [3, 10]], 1, 10), r"texts\[1\] holds token id 10, outside .*\[0, 10\)"),
        (lambda: ev.collect([np.array([1, 2**63], np.uint64)], 1, 10), r"texts\[0\] holds token id 9223372036854775808"),
        (lambda: ev.collect([[1, 2**70]], 1, 10), r"texts\[0\] must hold integer token ids, got dtype object"),
        (lambda: ev.collect("abc", 1, 10), "got a string; tokenise it first"),
        (lambda: ev.collect(["abc", "de"], 1, 10), r"texts\[0\] must hold integer token ids"),
        (lambda: ev.collect([[True, False]], 1, 10), r"texts\[0\] must hold integer token ids"),
        (lambda: ev.collect(np.array([1, 2, 3]), 1, 10), r"texts\[0\] must be a flat sequence"),
        (lambda: ev.collect(np.zeros((2, 3, 4), int), 1, 10), r"texts\[0\] must be a flat sequence"),
        (lambda: ev.collect([[1, 2], [3, 4]], 1, 10, prompts=[[1]]), "got 1 prompts for 2 texts"),
        (lambda: ev.collect([[1, 2]], 1, 10, prompts=[]), "got 0 prompts for 1 texts"),
        (lambda: ev.collect([[1, 2]], 1, 10, prompts="a"), "prompts must be sequences of token ids, got a string"),
        (lambda: ev.collect([[1, 2]], 1, 10, prompts=[[11]]), r"prompts\[0\] holds token id 11"),
        (lambda: ev.collect([[1, 2]], 1, 10, keep=[[1, 2]]), r"keep must be windows of shape \[m, 1\], got \[1, 2\]"),
        (lambda: ev.collect([[1, 2]], 1, 10, keep=[[12]]), "keep holds token id 12"),
        (lambda: ev.collect([[1, 2]], 1, 10, keep=[[0.5]]), "keep must hold integer token ids"),
        (lambda: ev.Packing(1, 2**63), r"vocab_size must be below 2\*\*63"),
        (lambda: ev.checked_texts("prompts", [[1], []], 10, shortest=1), r"^prompts\[1\] is empty; give it at least one"),
        (lambda: ev.collect([[1, 2]], 0, 10), "window must be at least 1, got 0"),
        (lambda: ev.collect([[1, 2]], 1, 10, dedup="both"), "dedup must be one of .* got 'both'"),  # type: ignore[arg-type]
        (lambda: ev.collect([[1, 2]], 1, 10, sample=0.0), r"sample must lie in \(0, 1\], .* got 0.0"),
        (lambda: ev.collect(np.zeros((2, 2), int), 2, 10), r"texts\[0\] has 2 tokens; at least 3"),
        (lambda: ev.from_pairs([[1]], [1], 10, keep=[[1.5]]), "keep must hold integer"),
        (lambda: ev.from_pairs([[1]], [1], 10, keep=[[1, 2]]), r"shape \[m, 1\]"),
        (lambda: ev.from_pairs([[1]], [1, 2], 10), r"windows must have shape \[n, k\] and tokens \[n\]"),
        (lambda: ev.frequent_windows([[1, 2]], 1, 10, at_least=0), "at_least must be 1 or more, got 0"),
        (lambda: ev.collect([[1, 2]], 1, 10).merge(ev.collect([[1, 2, 3]], 2, 10)), "cannot be merged"),
        (lambda: ev.collect([[1, 2]], 1, 10).merge(ev.collect([[1, 2]], 1, 10, dedup=None)), "cannot be merged"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@given(texts_of(huge_ids, shortest=1))
def test_padding_keeps_every_token_and_marks_it(texts: list[list[int]]) -> None:
    ids, mask = ev.padded([np.array(text) for text in texts])
    assert ids.shape == mask.shape == (len(texts), max(map(len, texts)))
    assert [row[seen.astype(bool)].tolist() for row, seen in zip(ids, mask, strict=True)] == texts
    assert not ids[mask == 0].any()
    assert (np.diff(mask, axis=1) <= 0).all()  # on the right


@given(st.lists(few_ids, min_size=4, max_size=24), st.integers(0, 24), st.integers(1, 3), st.booleans())
def test_what_reading_mode_scores_of_a_context(context: list[int], start: int, k: int, skip_seen: bool) -> None:
    expected, shown, allowed = [], set(), 0
    for t in range(k, len(context)):
        window = tuple(context[t - k : t])
        allowed += t >= start
        if t >= start and not (skip_seen and window in shown):
            expected.append((window, t))
        shown.add(window)
    windows, places, seen = ev.following(np.array(context), start, k, skip_seen=skip_seen)
    assert [(tuple(w), t) for w, t in zip(windows.tolist(), places.tolist(), strict=True)] == expected
    assert seen == allowed
