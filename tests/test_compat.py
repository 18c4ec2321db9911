"""Other people's schemes: lists and numbers equal to plain torch and to transformers, bit for bit."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM, WatermarkDetector, WatermarkingConfig

from radio_utils import detect, null_audit, parallel, which_key
from radio_utils import evidence as ev
from radio_utils.compat import ReleasedGreenList, ReleasedGumbelMax, TransformersGreenList
from radio_utils.decoding import GreenListProcessor, GumbelMaxProcessor
from radio_utils.detection import curve, judge
from radio_utils.watermarks import Watermark, published, torch_random

SECRET = 918273645546372819


def windows_of(n: int, k: int, vocab_size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, (n, k))


def plain_seed(window: list[int], key: int) -> int:
    state = key
    for token in window:
        state = (state * 35317 + token) % (2**64 - 1)
    return state


def plain_list(seed: int, vocab_size: int, gamma: float) -> np.ndarray:
    order = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(seed))
    green = np.zeros(vocab_size, bool)
    green[order[: int(gamma * vocab_size)].numpy()] = True
    return green


def plain_numbers(seed: int, vocab_size: int) -> torch.Tensor:
    return torch.rand(vocab_size, generator=torch.Generator().manual_seed(seed))


def every_pair(windows: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(windows, vocab_size, axis=0), np.tile(np.arange(vocab_size), len(windows))


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Tiny models and short draws are slower on several threads, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["alone", "together"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few generators are run one by one, many side by side: both are tested on few."""
    monkeypatch.setattr(torch_random, "_FEW", 10**9 if request.param == "alone" else 0)
    monkeypatch.setattr(torch_random, "_BLOCK", 5)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    ("vocab_size", "k", "gamma", "key"),
    [
        (2, 1, 0.5, 0), (3, 1, 0.7, 1), (7, 3, 0.5, 5), (100, 2, 0.99, 3), (227, 2, 0.999, 3), (1000, 2, 0.25, 2**64),
        (1000, 4, 0.1, SECRET), (5000, 1, 0.9, 3), (5000, 2, 0.5, 2**200 + 1),
    ],
)  # fmt: skip
def test_released_lists_are_torchs(vocab_size: int, k: int, gamma: float, key: int) -> None:
    wm = ReleasedGreenList(key, vocab_size, k, gamma)
    assert wm.gamma == int(gamma * vocab_size) / vocab_size
    windows = windows_of(7, k, vocab_size)
    windows[6] = windows[0]
    expected = np.stack([plain_list(plain_seed(w, key), vocab_size, gamma) for w in windows.tolist()])
    assert np.array_equal(wm.green_rows(windows), expected)
    assert np.array_equal(wm.scores(*every_pair(windows, vocab_size)).reshape(expected.shape), expected)
    rows = wm.green_rows_torch(torch.from_numpy(windows), vocab_size + 9)
    assert np.array_equal(rows[:, :vocab_size].numpy(), expected)
    assert not rows[:, vocab_size:].any()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(("vocab_size", "gamma"), [(32000, 0.25), (65535, 0.5), (65536, 0.25), (128256, 0.25)])
def test_released_lists_of_large_vocabularies(vocab_size: int, gamma: float) -> None:
    wm = ReleasedGreenList(3, vocab_size, 2, gamma)
    windows = windows_of(6, 2, vocab_size)
    expected = np.stack([plain_list(plain_seed(w, 3), vocab_size, gamma) for w in windows.tolist()])
    rng = np.random.default_rng(0)
    row, tokens = rng.integers(0, 6, 600), rng.integers(0, vocab_size, 600)
    tokens[:200] %= 500  # low ids have a slot among the first ⌊γV⌋ and may move on
    assert np.array_equal(wm.scores(windows[row], tokens), expected[row, tokens])
    single = wm.scores(windows, tokens[:6])
    assert np.array_equal(single, expected[np.arange(6), tokens[:6]])
    assert np.array_equal(wm.green_rows(windows[:2]), expected[:2])


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    ("vocab_size", "k", "key"), [(2, 1, 0), (17, 3, 4), (1000, 2, 3), (32000, 2, 3), (128256, 4, SECRET)]
)
def test_released_numbers_are_torchs(vocab_size: int, k: int, key: int) -> None:
    wm = ReleasedGumbelMax(key, vocab_size, k)
    windows = windows_of(7, k, vocab_size)
    r = torch.stack([plain_numbers(plain_seed(w, key), vocab_size) for w in windows.tolist()])
    rng = np.random.default_rng(1)
    row, tokens = rng.integers(0, 7, 500), rng.integers(0, vocab_size, 500)
    picked = r[row, tokens]
    assert np.array_equal(wm.uniforms(windows[row], tokens), picked.numpy().astype(np.float64))
    theirs = -torch.log(1 - picked).numpy()
    assert np.allclose(wm.scores(windows[row], tokens), theirs, rtol=2e-7, atol=0)
    rows = wm.uniform_rows_torch(torch.from_numpy(windows), vocab_size + 3)
    assert rows.dtype == torch.float64
    assert torch.equal(rows[:, :vocab_size], r.double())


def test_many_windows_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """More windows than one block and one seeding."""
    monkeypatch.setattr(torch_random, "_SEEDED", 600)
    text = np.minimum(np.random.default_rng(2).zipf(1.3, 2600) - 1, 299)
    windows, tokens = np.stack([text[:-2], text[1:-1]], axis=1), text[2:]
    assert len(np.unique(windows, axis=0)) > 600
    green, gumbel = ReleasedGreenList(3, 300), ReleasedGumbelMax(3, 300)
    lists = [plain_list(plain_seed(w, 3), 300, 0.25)[t] for w, t in zip(windows.tolist(), tokens, strict=True)]
    numbers = [float(plain_numbers(plain_seed(w, 3), 300)[t]) for w, t in zip(windows.tolist(), tokens, strict=True)]
    assert np.array_equal(green.scores(windows, tokens), lists)
    assert np.array_equal(gumbel.uniforms(windows, tokens), numbers)
    shuffled = np.random.default_rng(3).permutation(len(tokens))
    assert np.array_equal(green.scores(windows[shuffled], tokens[shuffled]), np.array(lists)[shuffled])


def test_seeding_arithmetic_at_its_edges() -> None:
    """(2⁶⁴ − 1) is reached, and carries come in both additions."""
    top = 2**64 - 1
    inverse = pow(35317, -1, top)
    keys = [(target - token) * inverse % top for target in (0, 1, top - 1, 2**32, 2**63) for token in (0, 5)]
    windows = np.concatenate([windows_of(200, 4, 10**6), [[0, 0, 0, 0], [5, 0, 0, 1], [5, 1, 0, 0], [0, 1, 5, 999_999]]])
    for key in [*keys, top, top - 1, 2**64, 2**65 + 7, 10**40]:
        expected = [plain_seed(w, key) % 2**32 for w in windows.tolist()]
        assert np.array_equal(published._ReleasedSeeding(key).seeds(windows), expected)


def test_documented_weaknesses_hold() -> None:
    """Keys and windows that share lists."""
    one, zero = ReleasedGreenList(1, 40_000, gamma=0.01), ReleasedGreenList(0, 40_000, gamma=0.01)
    assert np.array_equal(one.green_rows([[7, 9]]), zero.green_rows([[7 + 35317, 9]]))
    assert np.array_equal(zero.green_rows([[7, 35319]]), zero.green_rows([[8, 2]]))
    wide = TransformersGreenList({"context_width": 4}, 500)
    assert wide.window == 1
    assert np.array_equal(wide.green_rows([[9]]), TransformersGreenList({}, 500).green_rows([[9]]))
    rows = ReleasedGreenList(3, 1000).green_rows(windows_of(30, 2, 1000))
    assert set(rows.sum(axis=1)) == {250}  # exactly, in every list


def test_hypergeometric_moments_are_below_binomial_ones() -> None:
    """What the notes on p-values rest on: t tokens of one list against t independent ones."""
    s = np.linspace(0.1, 8, 30)
    for t in (2, 5, 40):
        j = np.arange(t + 1)
        hypergeometric = (np.exp(np.outer(s, j)) * stats.hypergeom.pmf(j, 1000, 250, t)).sum(axis=1)
        assert np.all(hypergeometric <= (1 + 0.25 * (np.exp(s) - 1)) ** t * (1 + 1e-12))


CONFIGS: list[dict[str, Any]] = [
    {"seeding_scheme": "lefthash"},
    {"seeding_scheme": "lefthash", "context_width": 3, "hashing_key": 2**62 + 5, "greenlist_ratio": 0.5},
    {"seeding_scheme": "selfhash", "context_width": 2},
    {"seeding_scheme": "selfhash", "context_width": 4, "hashing_key": 2**61 + 77, "greenlist_ratio": 0.5},
    {"seeding_scheme": "selfhash", "context_width": 3, "hashing_key": 0},
]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("fields", CONFIGS)
def test_scores_are_transformers_detectors(fields: dict[str, Any]) -> None:
    vocab_size = 900
    config = WatermarkingConfig(**fields)
    wm = TransformersGreenList(config, vocab_size)
    detector = WatermarkDetector(LlamaConfig(vocab_size=vocab_size), "cpu", config)
    text = torch.from_numpy(windows_of(1, 120, vocab_size, seed=4))
    k, width = wm.window, config.context_width
    first = width - (config.seeding_scheme == "selfhash")  # where their detector begins
    windows = np.stack([text[0, i - k : i].numpy() for i in range(first, 120)])
    scores = wm.scores(windows, text[0, first:].numpy())
    for i, score in zip(range(first, 120), scores, strict=True):
        prefix = text[0, : i + 1] if config.seeding_scheme == "selfhash" else text[0, :i]
        assert score == float(text[0, i] in detector.processor._get_greenlist_ids(prefix))
    theirs = detector(text, return_dict=True)
    assert theirs.num_green_tokens[0] == scores.sum()
    assert theirs.num_tokens_scored[0] == len(scores)


@cache
def tiny_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("fields", [{}, {"seeding_scheme": "selfhash", "context_width": 3, "bias": 6.0}])
def test_generation_is_transformers_own(fields: dict[str, Any]) -> None:
    config = WatermarkingConfig(**fields)
    wm = TransformersGreenList(config.to_dict(), 256)
    prompts = torch.from_numpy(windows_of(2, 6, 256, seed=5))
    options = {"do_sample": False, "max_new_tokens": 25, "pad_token_id": 0, "attention_mask": torch.ones_like(prompts)}
    theirs = tiny_llama().generate(prompts, watermarking_config=config, **options)
    ours = tiny_llama().generate(prompts, logits_processor=[wm.logits_processor()], **options)
    assert torch.equal(theirs, ours)
    logits = torch.randn(2, 256)
    assert torch.equal(config.construct_processor(256, "cpu")(prompts, logits), wm.logits_processor()(prompts, logits))
    k = wm.window
    text = theirs.numpy()
    windows = np.concatenate([[row[i - k : i] for i in range(6, 31)] for row in text])
    assert wm.scores(windows, text[:, 6:].ravel()).mean() > 0.6


def test_processors_of_the_release() -> None:
    green, gumbel = ReleasedGreenList(3, 250, delta=2.5), ReleasedGumbelMax(3, 250)
    ids, logits = torch.from_numpy(windows_of(3, 5, 250)), torch.randn(3, 256)
    processor = green.logits_processor()
    assert isinstance(processor, GreenListProcessor)
    biased = logits.clone()
    biased[:, :250] += 2.5 * torch.from_numpy(green.green_rows(ids[:, -2:].numpy()))
    assert torch.equal(processor(ids, logits), biased)
    assert isinstance(gumbel.logits_processor(), GumbelMaxProcessor)
    chosen = gumbel.logits_processor()(ids, logits).argmax(1)
    p = logits[:, :250].double().softmax(1)
    for row in range(3):
        r = plain_numbers(plain_seed(ids[row, -2:].tolist(), 3), 250).double()
        assert int(chosen[row]) == int((r.log() / p[row]).argmax())


def test_a_zero_among_the_numbers_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_random, "outputs", lambda seed, count, generator: np.full(count, 2**32 - 2**24, np.uint32))
    wm = ReleasedGumbelMax(3, 10)
    assert wm.uniforms([[1, 2]], [3])[0] == 0.0
    assert wm.scores([[1, 2]], [3])[0] == 0.0
    monkeypatch.setattr(torch_random, "outputs", lambda seed, count, generator: np.full(count, 2**32 - 1, np.uint32))
    assert wm.scores([[1, 2]], [3])[0] == pytest.approx(24 * math.log(2), rel=1e-12)
    monkeypatch.setattr(torch, "rand", lambda n, generator: torch.tensor([0.0, *[0.5] * (n - 1)]))
    assert int(wm.logits_processor()(torch.tensor([[1, 2]]), torch.zeros(1, 10)).argmax()) == 1


def schemes(key: int = SECRET) -> list[Watermark]:
    selfhash = {"hashing_key": key, "seeding_scheme": "selfhash", "context_width": 3, "bias": 1.5}
    return [
        ReleasedGreenList(key, 1000, 3, 0.3, 1.5), ReleasedGumbelMax(key, 1000, 3),
        TransformersGreenList({"hashing_key": key}, 1000), TransformersGreenList(selfhash, 1000),
    ]  # fmt: skip


@pytest.mark.parametrize("which", range(4))
def test_names_and_decoys(which: int) -> None:
    wm = schemes()[which]
    assert str(SECRET) not in wm.fingerprint + repr(wm)
    assert f"{SECRET:x}" not in wm.fingerprint
    decoys = [wm.with_decoy(seed, index) for seed in (0, 1) for index in range(5)]
    assert len({d.fingerprint for d in decoys} | {wm.fingerprint, schemes(3)[which].fingerprint}) == 12
    assert wm.with_decoy(0, 3).fingerprint == schemes(3)[which].with_decoy(0, 3).fingerprint
    windows, tokens = windows_of(1500, wm.window, 1000), windows_of(1, 1500, 1000, seed=1)[0]
    for decoy in decoys[:2]:
        assert (type(decoy), decoy.window, decoy.vocab_size) == (type(wm), wm.window, 1000)
        for name in ("gamma", "delta", "seeding_scheme"):
            assert getattr(decoy, name, None) == getattr(wm, name, None)
        assert abs(stats.pearsonr(wm.scores(windows, tokens), decoy.scores(windows, tokens)).statistic) < 5 / math.sqrt(
            1500
        )
    rate = getattr(wm, "gamma", 1.0)
    spread = math.sqrt(rate * (1 - rate)) if rate < 1 else 1.0
    assert abs(wm.scores(windows, tokens).mean() - rate) < 5 * spread / math.sqrt(1500)


def test_p_values_of_totals() -> None:
    green, gumbel = ReleasedGreenList(3, 30, gamma=0.25), ReleasedGumbelMax(3, 30)
    rate = 7 / 30  # the exact one, not the asked one
    for total in range(11):
        assert 10 ** green.log10_p(total, 10) == pytest.approx(stats.binom.sf(total - 1, 10, rate), rel=1e-10)
        assert 10 ** green.law.log10_above(total, 10) == pytest.approx(stats.binom.sf(total, 10, rate), rel=1e-10)
    assert green.law.log10_above(10, 10) == -math.inf
    assert gumbel.log10_p(13.5, 10) == pytest.approx(math.log10(stats.gamma.sf(13.5, 10)), rel=1e-10)
    for wm in schemes():
        assert wm.scores(np.zeros((0, wm.window), int), np.zeros(0, int)).shape == (0,)


def natural_texts(seed: int = 0, vocab_size: int = 2000) -> np.ndarray:
    """Texts whose tokens have the frequencies of words."""
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, vocab_size + 1) ** 1.1
    return rng.permutation(vocab_size)[rng.choice(vocab_size, size=(20, 150), p=p / p.sum())]


def distinct_colours(wm: TransformersGreenList, found: ev.Evidence) -> np.ndarray:
    """Indices of the first pair of each generator seed and token, by a loop."""
    seeds, met = wm._pair_seeds(found.windows, found.tokens).tolist(), dict[tuple[int, int], int]()
    for i, pair in enumerate(zip(seeds, found.tokens.tolist(), strict=True)):
        met.setdefault(pair, i)
    return np.array(list(met.values()))


@pytest.mark.parametrize("context_width", [2, 4])
@pytest.mark.parametrize("dedup", ["window+token", "window"])
def test_pairs_of_selfhash_that_share_a_colour_count_once(context_width: int, dedup: ev.Dedup) -> None:
    """Half the pairs of a text are the same draw as others: counted apart, decoys had p-values of 1e-6 by the dozen."""
    wm = TransformersGreenList({"seeding_scheme": "selfhash", "context_width": context_width}, 2000)
    texts = natural_texts()
    assert wm.shares_colours
    found = detect(texts, wm, dedup=dedup)
    first = distinct_colours(wm, found.evidence)
    assert found.scored == first.size < len(found.evidence)
    assert found.total == wm.scores(found.evidence.windows, found.evidence.tokens)[first].sum()
    assert found.log10_p == wm.log10_p(found.total, found.scored)
    counts, values = curve(found.evidence, wm)
    assert (counts[-1], values[-1]) == (found.scored, pytest.approx(found.log10_p))
    audit = null_audit(texts, wm, keys=60, seed=1, dedup=dedup)
    assert audit.ks_p > 1e-3
    assert audit.min_log10_p > -4
    direct = [judge(found.evidence, wm.with_decoy(1, i)).log10_p for i in range(4)]
    assert audit.log10_p[:4].tolist() == direct
    keys = [wm, *(wm.with_decoy(5, i) for i in range(3))]
    search = which_key(texts, keys, dedup=dedup)
    assert search.log10_p.tolist() == [judge(found.evidence, key).log10_p for key in keys]
    assert search.counts.tolist() == [judge(found.evidence, key).scored for key in keys]
    assert search.scored == search.counts[search.best]


def test_shared_colours_are_found_across_blocks_and_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    wm = TransformersGreenList({"seeding_scheme": "selfhash", "context_width": 2}, 300)
    texts = natural_texts(3, 300)
    whole = detect(texts, wm)
    shards = [ev.collect(texts[i::3], 1, 300) for i in (2, 0, 1)]
    assert judge(shards[0].merge(*shards[1:]), wm) == whole
    blocks = ev.Evidence.blocks
    monkeypatch.setattr(ev.Evidence, "blocks", lambda self: blocks(self, 100))
    assert judge(whole.evidence, wm) == whole
    assert detect(texts, wm, dedup=None).scored == 20 * 149  # repeats are what was asked for


@pytest.mark.parametrize("key", [0, 2**32, 2**24, 3 * 2**26])
def test_keys_that_leave_few_lists_convict_no_innocent_text(key: int) -> None:
    """Under key 2³² all windows share one list: a frequent token that is green in it was counted after every window."""
    wm = TransformersGreenList({"hashing_key": key}, 2000)
    found = [detect(natural_texts(seed), wm) for seed in range(25)]
    assert min(one.log10_p for one in found) > -3.5
    if key in (0, 2**32):
        for one in found:  # each token once; those met after token 0 first, whose list is every key's, not at all
            after_zero = np.unique(one.evidence.tokens[one.evidence.windows[:, -1] == 0])
            assert len(np.unique(one.evidence.tokens)) - len(after_zero) <= one.scored
            assert one.scored <= len(np.unique(one.evidence.tokens))


def test_colliding_windows_of_the_release_count_once() -> None:
    texts = [[7, 35319, 11], [8, 2, 11], [8, 2, 12]]
    for wm in (ReleasedGreenList(0, 40_000, gamma=0.01), ReleasedGumbelMax(0, 40_000)):
        assert wm.shares_colours
        found = detect(texts, wm)
        assert (len(found.evidence), found.scored) == (3, 2)
        assert found.total == wm.scores([[8, 2], [8, 2]], [11, 12]).sum()


GREEN, GUMBEL = ReleasedGreenList(3, 100), ReleasedGumbelMax(3, 100)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ReleasedGreenList(-1), "seed must be an integer of at least 0, got -1"),
        (lambda: ReleasedGumbelMax(-1), "seed must be an integer of at least 0, got -1"),
        (lambda: ReleasedGumbelMax(True), "seed must be an integer of at least 0, got True"),
        (lambda: ReleasedGreenList("a"), "seed must be an integer"),  # type: ignore[arg-type]
        (lambda: ReleasedGreenList(gamma=0.0), "gamma must lie strictly between 0 and 1"),
        (lambda: ReleasedGreenList(gamma=1.0), "gamma must lie strictly between 0 and 1"),
        (lambda: ReleasedGreenList(gamma=math.nan), "gamma must lie strictly between 0 and 1"),
        (
            lambda: ReleasedGreenList(3, 100, gamma=0.001),
            "gamma=0.001 leaves no green or no red token in a vocabulary of 100; use",
        ),
        (lambda: ReleasedGreenList(delta=-1.0), "delta must be finite and not negative"),
        (lambda: ReleasedGreenList(window=0), "window must be an integer of at least 1"),
        (lambda: ReleasedGumbelMax(window=0), "window must be an integer of at least 1"),
        (lambda: ReleasedGumbelMax(3, 1), "vocab_size must be an integer of at least 2"),
        (lambda: ReleasedGumbelMax(3, 2**28), "vocab_size must be at most 214748363"),
        (lambda: GREEN.scores([[1, 100]], [1]), "windows holds token id 100, outside the watermark's vocabulary"),
        (lambda: GUMBEL.scores([[1, 2]], [-1]), "tokens holds token id -1"),
        (lambda: GREEN.green_rows_torch(torch.tensor([[1, 100]])), "windows holds token id 100"),
        (lambda: GUMBEL.uniform_rows_torch(torch.tensor([[1, 2, 3]])), r"windows must have shape \[n, 2\]"),
        (lambda: GREEN.scores([[1, 2, 3]], [1]), r"windows must have shape \[n, 2\]"),
        (lambda: TransformersGreenList({"seeding_scheme": "min"}, 100), "must be 'lefthash' or 'selfhash', got 'min'"),
        (lambda: TransformersGreenList({"context_width": 0}, 100), "context_width must be an integer of at least 1, got 0"),
        (lambda: TransformersGreenList({"seeding_scheme": "selfhash"}, 100), "context_width=1 with .* at least 2"),
        (lambda: TransformersGreenList({"greenlist_ratio": 1.0}, 100), "greenlist_ratio must lie strictly between"),
        (lambda: TransformersGreenList({"greenlist_ratio": 0.001}, 100), "greenlist_ratio=0.001 leaves no green"),
        (lambda: TransformersGreenList({"bias": math.inf}, 100), "bias must be finite"),
        (lambda: TransformersGreenList({"hashing_key": -5}, 100), "hashing_key must be an integer of at least 0, got -5"),
        (lambda: TransformersGreenList({"hashing_key": 2**63}, 100), "hashing_key must be below"),
        (lambda: TransformersGreenList({"gamma": 0.5}, 100), r"config has unknown fields \['gamma'\]"),
        (lambda: TransformersGreenList("lefthash", 100), "config must be a WatermarkingConfig or a dict"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_scoring_needs_no_torch() -> None:
    """In a browser's Python there is none."""
    program = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
import radio_utils.compat as compat
wm = [compat.ReleasedGreenList(), compat.ReleasedGumbelMax(), compat.TransformersGreenList({}, 500),
      compat.TransformersGreenList({"seeding_scheme": "selfhash", "context_width": 2}, 500)]
result = [float(w.scores([[5] * w.window] * 60, list(range(60))).sum()) for w in wm]
assert wm[0].green_rows([[1, 2]]).sum() == 8000
assert wm[0].log10_p(result[0], 60) <= 0 and wm[1].log10_p(result[1], 60) <= 0
sys.stdout.write(repr(result))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split(",")) == 4


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    windows, tokens = windows_of(400, 2, 1000), windows_of(1, 400, 1000)[0]
    monkeypatch.setattr(torch_random, "_BLOCK", 16)
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(parallel, "THREADS", threads)
        wms = (ReleasedGreenList(3, 1000), ReleasedGumbelMax(3, 1000))
        results.append([wm.scores(windows, tokens) for wm in wms])
    assert np.array_equal(results[0], results[1])
