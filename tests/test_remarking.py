"""The re-marking control on toy worlds: its rank is exact whatever leaks, and it sees what decoys cannot."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import radio_utils as ru
from radio_utils import GreenList, GumbelMax, Watermark
from radio_utils.remarking import LEAK, mean_score, other_keys, worlds_needed, write_under

V, TEXTS, LENGTH = 64, 40, 25
Leak = Literal["none", "respelt", "selected", "template"]


@dataclass(frozen=True)
class Toy:
    """A language of two words: after each of many windows one is likelier. Its windows are the same in every world."""

    windows: np.ndarray  # [TEXTS * LENGTH, 2]
    likely: np.ndarray
    other: np.ndarray

    @classmethod
    def of(cls, seed: int) -> Toy:
        rng = np.random.default_rng(seed)
        flat = rng.choice(V * V, TEXTS * LENGTH, replace=False)
        likely = rng.integers(V, size=flat.size)
        return cls(np.column_stack(np.divmod(flat, V)), likely, (likely + rng.integers(1, V, flat.size)) % V)

    def write(self, wm: Watermark, rng: np.random.Generator) -> np.ndarray:
        """Which word was drawn at each place under the mark: bool [TEXTS * LENGTH], True for the likelier."""
        bias = 2.0 * (wm.scores(self.windows, self.likely) - wm.scores(self.windows, self.other))
        return rng.random(bias.size) < 1 / (1 + np.exp(-0.8 - bias))

    def pairs(self, drawn: np.ndarray, wm: Watermark, leak: Leak) -> tuple[np.ndarray, np.ndarray]:
        """What an innocent suspect is scored on, who knows which word is likelier and nothing of any key."""
        tokens, kept = self.likely, np.ones(drawn.size, bool)
        if leak == "respelt":  # the rarer word melts into its window when the text is tokenised again: no place is left
            kept = drawn
        elif leak == "selected":  # Alice kept the half of the texts in which her own detector sees the mark best
            score = wm.scores(self.windows, np.where(drawn, self.likely, self.other)).reshape(TEXTS, LENGTH).mean(axis=1)
            kept = np.repeat(score >= np.median(score), LENGTH)
        elif leak == "template":  # the window comes again inside the text, and the suspect recalls what stood after it
            tokens = np.where(drawn, self.likely, self.other)
        return self.windows[kept], tokens[kept]

    def marked(self, drawn: np.ndarray, wm: Watermark) -> float:
        return float(wm.scores(self.windows, np.where(drawn, self.likely, self.other)).mean())


def log10_p(pairs: tuple[np.ndarray, np.ndarray], wm: Watermark) -> float:
    return float(wm.log10_p(wm.scores(*pairs).sum(), pairs[1].size))


def wm_of(key: Any) -> GreenList:
    return GreenList(key, V, 2, gamma=0.25)


def controlled(leak: Leak, seed: int, *, worlds: int = 99, entropy: int | None = 17, **options: Any) -> Any:
    toy, rng = Toy.of(seed), np.random.default_rng([seed, 1])
    return ru.remark_control(
        lambda wm: toy.write(wm, rng),
        lambda drawn, wm: log10_p(toy.pairs(drawn, wm, leak), wm),
        wm_of(f"key {seed}"),
        worlds=worlds,
        strength=toy.marked,
        seed=entropy,
        **options,
    )


@pytest.mark.parametrize("leak", ["none", "respelt", "template"])
def test_the_rank_of_an_innocent_is_uniform_whatever_leaks(leak: Leak) -> None:
    toy, rng, repeats, m = Toy.of(3), np.random.default_rng(5), 200, 7

    def test(drawn: np.ndarray, wm: Watermark) -> float:
        return log10_p(toy.pairs(drawn, wm, leak), wm) - 1e-9 * rng.random()  # without ties the rank is exactly uniform

    ranks = []
    for repeat in range(repeats):
        wm = wm_of(f"fresh {repeat}")
        given_texts = toy.write(wm, rng) if repeat % 2 else None
        control = ru.remark_control(
            lambda other: toy.write(other, rng), test, wm, texts=given_texts, worlds=m, strength=None, seed=repeat
        )
        assert control.p_value == control.rank / (m + 1)
        ranks.append(control.rank)
    counts = np.bincount(ranks, minlength=m + 2)[1:]
    assert counts.size == m + 1
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("leak", ["respelt", "selected", "template"])
def test_a_leak_is_seen_by_the_control_and_not_by_decoys(leak: Leak) -> None:
    control = controlled(leak, 11)
    assert control.log10_p < -1.3  # an innocent would be convicted at 0.05, as in most other worlds
    assert np.median(control.worlds) < -1.3
    assert control.leaks
    assert control.ks_p < 1e-6
    assert control.p_value > 0.05  # the rank does not convict him

    toy, wm = Toy.of(11), wm_of("key 11")
    pairs = toy.pairs(toy.write(wm, np.random.default_rng(0)), wm, leak)
    decoys = [wm.with_decoy(2, i) for i in range(400)]
    assert stats.kstest([10 ** log10_p(pairs, decoy) for decoy in decoys], "uniform", alternative="greater").pvalue > 0.01


def test_a_sound_test_has_uniform_worlds_and_a_flag_as_rare_as_it_says() -> None:
    found = [controlled("none", seed, worlds=40, entropy=seed) for seed in range(60)]
    assert not any(control.leaks for control in found)
    pooled = np.concatenate([control.worlds for control in found])
    for alpha in (0.05, 0.01):
        assert np.mean(pooled <= np.log10(alpha)) < alpha + 3 * np.sqrt(alpha / pooled.size)
    # and not far below: the score is discrete, not shifted
    assert np.mean(pooled <= np.log10(0.05)) > 0.02


def test_who_learned_from_the_real_texts_stands_first() -> None:
    toy, rng, wm = Toy.of(2), np.random.default_rng(8), wm_of("the real key")
    learned = rng.random(toy.likely.size) < 0.2
    green = wm.scores(toy.windows, toy.other) > wm.scores(toy.windows, toy.likely)
    predicted = np.where(learned & green, toy.other, toy.likely)
    control = ru.remark_control(
        lambda key: toy.write(key, rng),
        lambda drawn, key: log10_p((toy.windows, predicted), key),
        wm,
        worlds=99,
        strength=toy.marked,
        seed=1,
    )
    assert control.rank == 1
    assert control.p_value == 0.01
    assert not control.leaks  # the others are uniform, although he is guilty
    assert control.strength_p > 0.02


def test_texts_of_another_pipeline_are_told_by_their_strength() -> None:
    toy, rng, wm = Toy.of(4), np.random.default_rng(9), wm_of("real")
    options: dict[str, Any] = {"worlds": 99, "strength": toy.marked, "seed": 2}

    def strength_p(texts: np.ndarray, wm: Watermark) -> float:
        control = ru.remark_control(lambda key: toy.write(key, rng), lambda drawn, key: -1.0, wm, texts=texts, **options)
        assert control.p_value == 1.0  # a test that says the same of all worlds convicts nobody
        return float(control.strength_p or 0.0)

    assert strength_p(toy.write(wm, rng), wm) > 0.02
    assert strength_p(toy.write(wm_of("another key"), rng), wm) == 0.02  # the weakest
    many = [wm_of(f"lucky {i}") for i in range(600)]
    lucky = max(many, key=lambda key: toy.marked(toy.write(key, np.random.default_rng(1)), key))
    assert strength_p(toy.write(lucky, np.random.default_rng(1)), lucky) <= 0.04  # chosen since it does well


finite = st.floats(-50.0, 0.0)


@given(finite, st.lists(finite, min_size=1, max_size=30), st.floats(0, 1), st.lists(st.floats(0, 1), min_size=30))
def test_rank_and_p_count_ties_against_the_accusation(
    real: float, worlds: list[float], mark: float, marks: list[float]
) -> None:
    strengths = np.array(marks[: len(worlds)])
    control = ru.RemarkControl(real, np.array(worlds), 0, (), mark, strengths)
    as_extreme = sum(world <= real for world in worlds)
    assert control.rank == 1 + as_extreme
    assert control.p_value == pytest.approx((1 + as_extreme) / (1 + len(worlds)))
    low, high = sum(s <= mark for s in strengths), sum(s >= mark for s in strengths)
    assert control.strength_p == pytest.approx(min(1.0, 2 * (1 + min(low, high)) / (1 + len(worlds))))
    assert 0 <= control.ks_p <= 1
    assert control.leaks == (control.ks_p <= LEAK)


def test_ks_is_one_sided() -> None:
    low, high = (ru.RemarkControl(-1.0, np.log10(p), 0, ()) for p in (np.linspace(1e-6, 0.3, 99), np.linspace(0.7, 1, 99)))
    assert low.leaks
    assert high.ks_p > 0.9
    assert low.strength_p is None
    assert low.ks_p == pytest.approx(stats.ksone.sf(max((i + 1) / 99 - p for i, p in enumerate(10**low.worlds)), 99))


def test_a_control_can_be_repeated_and_fresh_ones_differ() -> None:
    first = controlled("none", 1, worlds=5, entropy=None)
    again = controlled("none", 1, worlds=5, entropy=first.seed)
    assert first.keys == again.keys
    assert np.array_equal(first.worlds, again.worlds)
    assert first.seed != controlled("none", 1, worlds=5, entropy=None).seed
    assert first.seed >= 2**64  # 128 bits of entropy; one in 2⁶⁴ is smaller
    assert len({*first.keys, wm_of("key 1").fingerprint}) == 6


def test_a_control_comes_back_from_its_file(tmp_path: Path) -> None:
    for control in (controlled("none", 1, worlds=5, entropy=None), ru.RemarkControl(-1.5, np.array([-0.25]), 0, ("a",))):
        control.save(tmp_path / "control.json")
        again = ru.RemarkControl.load(tmp_path / "control.json")
        for name in ("log10_p", "seed", "keys", "strength", "rank", "ks_p", "strength_p"):
            assert getattr(again, name) == getattr(control, name)
        assert np.array_equal(again.worlds, control.worlds)


def test_batched_writing_is_one_call_for_all_worlds() -> None:
    toy, calls = Toy.of(6), []

    def draw(wm: Watermark) -> np.ndarray:
        return toy.write(wm, np.random.default_rng(0))

    def write(wms: list[Watermark]) -> list[np.ndarray]:
        calls.append(len(wms))
        return [draw(wm) for wm in wms]

    def test(drawn: np.ndarray, wm: Watermark) -> float:
        return log10_p(toy.pairs(drawn, wm, "template"), wm)

    options: dict[str, Any] = {"worlds": 7, "seed": 3, "strength": toy.marked}
    one_by_one = ru.remark_control(draw, test, wm_of("x"), **options)
    at_once = ru.remark_control(write, test, wm_of("x"), batched=True, **options)
    with_texts = ru.remark_control(write, test, wm_of("x"), batched=True, texts=draw(wm_of("x")), **options)
    assert calls == [8, 7]
    for other in (at_once, with_texts):
        assert other.log10_p == one_by_one.log10_p
        assert np.array_equal(other.worlds, one_by_one.worlds)
        assert other.strength == one_by_one.strength


@given(st.floats(1e-6, 0.99))
def test_worlds_needed_is_the_least_that_can_reject(alpha: float) -> None:
    m = worlds_needed(alpha)
    assert 1 / (m + 1) <= alpha * (1 + 1e-9)
    assert m == 1 or 1 / m > alpha


def test_worlds_needed_at_the_usual_levels() -> None:
    assert [worlds_needed(alpha) for alpha in (0.5, 0.1, 0.05, 0.01, 1e-3, 1e-6)] == [1, 9, 19, 99, 999, 999_999]
    for alpha in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="alpha must lie"):
            worlds_needed(alpha)


def texts_of(wm: Watermark) -> list[np.ndarray]:
    return [np.arange(20) % V]


def judged(texts: Any, wm: Watermark) -> Any:
    return ru.detect(texts, wm)


REAL = wm_of("real")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"worlds": 0}, ValueError, "worlds must be a whole number of at least 1, got 0"),
        ({"worlds": 2.5}, ValueError, "worlds must be"),
        ({"worlds": True}, ValueError, "worlds must be"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"seed": "x"}, ValueError, "seed must be"),
        ({"write": [1]}, TypeError, "write must be a function, got list"),
        ({"test": None}, TypeError, "test must be a function, got NoneType"),
        ({"wm": "key"}, TypeError, "wm must be a watermark, got str"),
        ({"strength": 3.0}, TypeError, "strength must be a function"),
        ({"write": lambda wm: None}, ValueError, "the pipeline gave no texts under greenlist"),
        ({"write": lambda wm: []}, ValueError, "the pipeline gave no texts"),
        ({"write": lambda wm: ["words"]}, ValueError, "strength cannot be measured"),
        ({"texts": []}, ValueError, "the pipeline gave no texts"),
        ({"batched": True}, ValueError, "write must return a list of texts for each of 4 watermarks, got 1 texts"),
        ({"batched": True, "write": lambda wms: None}, ValueError, "got NoneType"),
        ({"test": lambda texts, wm: ru.detect(texts, REAL)}, ValueError, "test judged under greenlist"),
        ({"test": lambda texts, wm: float("nan")}, ValueError, "finite and at most 0, got nan"),
        ({"test": lambda texts, wm: 0.03}, ValueError, "finite and at most 0, got 0.03"),
        ({"test": lambda texts, wm: -np.inf}, ValueError, "finite and at most 0"),
        ({"test": lambda texts, wm: "-3"}, TypeError, "log10 p as a number, got str"),
        ({"test": lambda texts, wm: True}, TypeError, "log10 p as a number, got bool"),
        ({"strength": lambda texts, wm: float("nan")}, ValueError, "strength is nan"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments: dict[str, Any] = {"write": texts_of, "test": judged, "wm": REAL, "worlds": 3} | changes
    with pytest.raises(error, match=words):
        ru.remark_control(arguments.pop("write"), arguments.pop("test"), arguments.pop("wm"), **arguments)


def test_faults_of_the_functions_show_before_anything_is_written() -> None:
    def never(wm: Watermark) -> Any:
        raise AssertionError("written")

    with pytest.raises(ValueError, match="test judged under"):
        ru.remark_control(never, lambda texts, wm: judged(texts, wm_of("other")), REAL, texts=texts_of(REAL))


def test_verdicts_of_all_kinds_are_understood() -> None:
    control = ru.remark_control(texts_of, judged, REAL, worlds=4)
    assert control.log10_p == ru.detect(texts_of(REAL), REAL).log10_p
    assert control.strength == mean_score(texts_of(REAL), REAL) == ru.detect(texts_of(REAL), REAL).score
    assert mean_score([*texts_of(REAL), np.array([1])], REAL) == control.strength  # too short for a pair


def test_published_schemes_with_few_keys_are_refused_by_name() -> None:
    class Few(GreenList):
        def with_decoy(self, seed: int, index: int) -> GreenList:
            return wm_of(index % 3)

    with pytest.raises(ValueError, match=r"other keys of greenlist.* cannot be had, only 3"):
        other_keys(Few("x", V), 5, 0)
    assert len({other.fingerprint for other in other_keys(ru.compat.ReleasedGreenList(3, V, 2), 50, 1)}) == 50


def test_the_statistics_need_no_torch() -> None:
    code = "import sys, radio_utils as ru; ru.remark_control; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- writing under many keys ------------------------------------------------------------------------------------------

one_thread = pytest.mark.usefixtures("one_thread")


@cache
def tiny() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, max_position_embeddings=64, **sizes)).eval()  # type: ignore[arg-type]


def prompts(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    return [rng.integers(V, size=size) for size in rng.integers(2, 9, count)]


@one_thread
@pytest.mark.parametrize("wm", [wm_of("one"), GumbelMax("one", V, 2)], ids=["green", "gumbel"])
def test_one_world_is_what_generate_writes(wm: Watermark) -> None:
    import torch

    from radio_utils.decoding import Sampling, generate

    sampling = Sampling(1.0, top_k=30)
    options: dict[str, Any] = {"max_new_tokens": 20, "sampling": sampling, "stop_tokens": [5], "batch_size": 8}
    alone = generate(tiny(), prompts(30), wm=wm, generator=torch.Generator().manual_seed(1), **options)
    (world,) = write_under(tiny(), prompts(30), [wm], generator=torch.Generator().manual_seed(1), **options)
    assert all(np.array_equal(a, b) for a, b in zip(alone, world, strict=True))
    assert len({text.size for text in world}) > 3  # rows left the batches


@one_thread
@pytest.mark.parametrize("make", [wm_of, lambda key: GumbelMax(key, V, 2)], ids=["green", "gumbel"])
def test_each_world_carries_its_own_mark_and_no_other(make: Any) -> None:
    from radio_utils.decoding import Sampling

    wms = [make(f"world {i}") for i in range(5)]
    worlds = write_under(
        tiny(), prompts(40), wms, max_new_tokens=30, sampling=Sampling(1.0), stop_tokens=[5], batch_size=64
    )
    assert [len(world) for world in worlds] == [40] * 5
    found = np.array([[ru.detect([t for t in world if t.size > 2], wm).log10_p for wm in wms] for world in worlds])
    assert (np.diag(found) < -10).all()
    assert found[~np.eye(5, dtype=bool)].min() > -4


def test_writing_refuses_no_worlds() -> None:
    with pytest.raises(ValueError, match="wms is empty"):
        write_under(tiny(), prompts(2), [], max_new_tokens=3)
    assert write_under(tiny(), [], [wm_of("a"), wm_of("b")], max_new_tokens=3) == [[], []]
