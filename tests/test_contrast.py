"""Contrastive reading: the sums by a slow loop, weights that know no key, honest p-values, and power where it must be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

import radio_utils as ru
from radio_utils import contrast, reading

V = 60


def llama(seed: int, vocab_size: int = V) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Marked(torch.nn.Module):
    """A model whose expectations lean towards green by ``lean`` in the logit, besides noise of its own."""

    def __init__(self, wm: ru.GreenList, lean: float, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(wm.vocab_size, wm.vocab_size, generator=generator)
        noise = 0.3 * torch.randn(wm.vocab_size, wm.vocab_size, generator=torch.Generator().manual_seed(seed + 99))
        green = torch.from_numpy(wm.green_rows(np.arange(wm.vocab_size)[:, None]))
        self.table = torch.nn.Parameter(table + (noise + lean * green if lean is not None else 0))

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, use_cache: bool = False) -> Any:
        return type("Output", (), {"logits": self.table[input_ids]})()


def texts(n: int = 40, length: int = 40, seed: int = 3, vocab_size: int = V) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, (n, length))


@pytest.mark.parametrize("read", ["contrast", "soft"])
def test_under_a_filter_only_its_windows_have_weights_and_all_positions_are_seen(read: str) -> None:
    sequences, keep = [(t % 5).tolist() for t in texts(6, 12)], [[0, 1], [3, 3], [4, 2], [9, 9]]

    def found(**options: Any) -> contrast.Contrast:
        if read == "soft":
            return reading.read_soft(llama(1), sequences, 2, V, top=V, skip_seen=False, **options)
        return reading.read_contrast(llama(1), llama(2), sequences, 2, V, top=V, **options)

    whole, some = found(), found(keep=keep)
    asked, scored = ({tuple(window) for window in one.pairs.windows.tolist()} for one in (whole, some))
    assert scored == asked & {tuple(window) for window in keep} and 0 < len(scored) < len(asked)
    assert some.pairs.seen == whole.pairs.seen


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize("skip_seen", [False, True])
def test_weights_equal_the_definition(window: int, twin: bool, skip_seen: bool) -> None:
    """The whole route, a position and a token at a time, in plain Python."""
    models = [llama(1), llama(2), *([llama(3)] if twin else [])]
    sequences, prompts = [(t % 9).tolist() for t in texts(6, 12)], [(t % 9).tolist() for t in texts(6, 3, seed=8)]
    got = reading.read_contrast(
        models[0], models[1:], sequences, window, V, prompts=prompts, batch_size=4, top=V, skip_seen=skip_seen
    )
    sums: dict[tuple[int, ...], list[np.ndarray]] = {}
    for prompt, text in zip(prompts, sequences, strict=True):
        context = prompt + text
        with torch.inference_mode():
            p = [m(input_ids=torch.tensor([context])).logits[0].softmax(-1).double().numpy() for m in models]
        for t in range(max(len(prompt), window), len(context)):
            before = [context[s - window : s] for s in range(window, t)]
            if skip_seen and context[t - window : t] in before:
                continue
            sums.setdefault(tuple(context[t - window : t]), []).append(np.stack([one[t - 1] for one in p]))
    rows = {w: np.sqrt(np.mean(all_p, axis=0) + contrast.FLOOR) for w, all_p in sums.items()}
    counts = {w: len(all_p) for w, all_p in sums.items()}
    share = contrast.discount(np.array(list(map(float, counts.values()))))
    trust = {w: share[n - 1] * n**contrast.EXPONENT for w, n in counts.items()}
    y = {w: h[0] - h[1] for w, h in rows.items()}
    if twin:
        a = np.concatenate([(h[2] - h[1]) * trust[w] for w, h in rows.items()])
        b = np.concatenate([y[w] * trust[w] for w in rows])
        beta = min(max(float(a @ b / (a @ a)), 0.0), 1.0)
        assert len(got.twins) == 1
        assert got.twins[0].pairs.seen == got.pairs.seen
        assert got.explained == pytest.approx((beta,), rel=1e-4)
        y = {w: y[w] - beta * (h[2] - h[1]) for w, h in rows.items()}
    weights = {(w, v): float(y[w][v]) * trust[w] for w in rows for v in range(V)}
    unit = 0.3 * math.sqrt(np.mean(np.square(list(weights.values()))))
    rows_of = zip(got.pairs.windows.tolist(), got.pairs.tokens.tolist(), got.weights, strict=True)
    found = {(tuple(w), t): q for w, t, q in rows_of}
    for pair, weight in weights.items():
        assert abs(found.get(pair, 0) - weight / unit) <= 0.501
    assert got.pairs.seen == sum(len(t) for t in sequences)


def test_the_discount_tells_how_often_windows_come_again() -> None:
    """Windows of a long-tailed law: those met n times in one text are met about n d(n) times in another of its size."""
    chance = 1 / np.arange(1, 50_001)
    first, second = np.random.default_rng(0).multinomial(20_000, chance / chance.sum(), size=2)
    found = contrast.discount(first[first > 0].astype(float))
    assert 0 < found[0] < 0.5 and found[-1] > 0.95
    for n in (1, 2, 3, 5):
        assert n * found[n - 1] == pytest.approx(second[first == n].mean(), rel=0.25)
    assert contrast.discount(np.array([3.0, 3.0])).tolist() == [1, 1, 1], "nothing to fit"
    assert contrast.discount(np.array([1.0, 2, 2, 2, 3, 3, 3, 3, 3])).max() == 1, "rare windows are few"
    assert contrast.discount(np.zeros(0)).tolist() == [1]


def test_the_mark_is_found_and_only_with_its_key() -> None:
    wm = ru.GreenList("alice", V, 1)
    guilty, innocent, base = Marked(wm, 0.4), Marked(wm, 0.0), Marked(wm, None)  # type: ignore[arg-type]
    found = ru.read_open_model(guilty, texts(), wm, reference=base)
    assert isinstance(found, ru.ContrastiveReading)
    assert found.log10_p < -10
    assert found.z > 6
    assert found.score > 0.25
    assert found.log10_p <= found.log10_chernoff < -8
    assert found.log10_saddlepoint == pytest.approx(found.log10_p, rel=0.01)
    assert ru.read_open_model(guilty, texts(), wm.with_key("bob"), reference=base).log10_p > -4
    assert ru.read_open_model(innocent, texts(), wm, reference=base).log10_p > -4
    hard = ru.read_open_model(guilty, texts(), wm)
    assert found.log10_p < hard.log10_p


@pytest.mark.parametrize("make", [ru.GreenList, ru.GumbelMax])
def test_p_values_under_decoys_are_uniform_for_guilty_and_innocent(make: Any) -> None:
    wm = make("alice", V, 1)
    base = llama(5)
    for suspect in (llama(6), Marked(ru.GreenList("alice", V, 1), 1.0)):
        found = reading.read_contrast(suspect, base, texts(), 1, V)
        audit = contrast.audit_contrast(found, wm, keys=600, seed=2)
        assert audit.ks_p > 1e-3
        assert -6 < audit.min_log10_p < -1
        direct = [contrast.judge_contrast(found, wm.with_decoy(2, i)).log10_p for i in range(5)]
        assert audit.log10_p[:5] == pytest.approx(direct, rel=1e-6)


def test_few_tokens_a_position_lose_little() -> None:
    wm = ru.GreenList("alice", V, 1)
    guilty, base = Marked(wm, 0.5), Marked(wm, None)  # type: ignore[arg-type]
    z = [ru.read_open_model(guilty, texts(), wm, reference=base, top=top).z for top in (V, 20)]  # type: ignore[union-attr]
    assert z[1] > 0.6 * z[0]


def test_a_model_equal_to_its_reference_has_no_evidence() -> None:
    wm = ru.GreenList("alice", V, 1)
    found = ru.read_open_model(llama(1), texts(), wm, reference=llama(1))
    assert (found.scored, found.log10_p, found.log10_chernoff) == (0, 0.0, 0.0)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="the contrast is empty"):
        contrast.audit_contrast(found.contrast, wm)  # type: ignore[union-attr]


def test_watermarked_text_is_refused() -> None:
    """An innocent who copies from his context more than his base does would be convicted by it."""
    wm = ru.GreenList("alice", V, 1)
    marked, rng = texts(), np.random.default_rng(0)
    for t in range(1, marked.shape[1]):
        options = rng.integers(0, V, (marked.shape[0], 6))
        scores = wm.scores(np.repeat(marked[:, t - 1 : t], 6, axis=0), options.ravel()).reshape(-1, 6)
        marked[:, t] = options[np.arange(len(options)), scores.argmax(1)]
    with pytest.raises(ValueError, match="sequences or prompts carry the watermark"):
        ru.read_open_model(llama(1), marked, wm, reference=llama(2))
    with pytest.raises(ValueError, match="sequences or prompts carry the watermark"):  # what is fed counts, scored or not
        ru.read_open_model(llama(1), texts(40, 5), wm, prompts=marked, reference=llama(2))


class Repeating(torch.nn.Module):
    """Expects any token, and with probability ``copied`` what followed the last token when it was met before."""

    def __init__(self, vocab_size: int, copied: float) -> None:
        super().__init__()
        self.weight, self.vocab_size, self.copied = torch.nn.Parameter(torch.zeros(1)), vocab_size, copied

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        n, length = input_ids.shape
        p = torch.full((n, length, self.vocab_size), 1.0 / self.vocab_size, dtype=torch.float64)
        if self.copied:
            earlier = torch.tril(torch.ones(length, length, dtype=torch.float64), -1)
            same = (input_ids[:, :, None] == input_ids[:, None, :]) * earlier
            followed = torch.nn.functional.one_hot(torch.roll(input_ids, -1, 1), self.vocab_size).double()
            found = torch.einsum("nts,nsv->ntv", same, followed)
            total = found.sum(-1, keepdim=True)
            share = self.copied * (total > 0)
            p = (1 - share) * p + share * found / total.clamp(min=1)
        return type("Output", (), {"logits": p.log()})()


def test_an_innocent_who_copies_a_faint_mark_is_not_convicted() -> None:
    """A few marked texts among many pass the gate, and he who repeats more than his base does repeats their mark."""
    size, trapped, honest = 300, [], []
    for key in range(3):
        wm, rng = ru.GreenList(f"k{key}", size, 1), np.random.default_rng(key)
        given = rng.integers(0, size, (150, 64))
        green = [np.flatnonzero(row) for row in wm.green_rows(np.arange(size)[:, None])]
        for text in given[:4]:
            text[:] = rng.integers(0, 30, 64)
            for t in range(1, 64):
                few = green[text[t - 1]]
                text[t] = rng.choice(few[few < 30] if (few < 30).any() else few)
        options = {"reference": Repeating(size, 0.0)}
        try:
            honest.append(ru.read_open_model(Repeating(size, 0.3), given, wm, **options))
        except ValueError as error:
            assert "carry the watermark" in str(error)  # by the stricter gate
        weighted = [
            reading.read_contrast(Repeating(size, 0.3), options["reference"], given, 1, size, skip_seen=skip)
            for skip in (False, True)
        ]
        trapped.append(contrast.judge_contrast(weighted[0], wm).z)
        honest.append(contrast.judge_contrast(weighted[1], wm))
    assert min(trapped) > 3
    assert max(abs(found.z) for found in honest) < 3  # type: ignore[union-attr]
    assert honest[-1].seen == 150 * 63


def test_the_gate_and_what_the_text_itself_says(monkeypatch: pytest.MonkeyPatch) -> None:
    wm = ru.GreenList("alice", V, 1)
    own = ru.detect(texts(), wm).log10_p
    found = ru.read_open_model(llama(1), texts(), wm, reference=llama(2))
    assert found.text_log10_p == own  # type: ignore[union-attr]
    assert contrast.judge_contrast(found.contrast, wm).text_log10_p is None  # type: ignore[union-attr]
    real = reading.detection.detect
    for log10_p, refused in ((-2.9, False), (-3.1, True)):
        monkeypatch.setattr(reading.detection, "detect", lambda *a, p=log10_p: replace(real(*a), log10_p=p))
        if refused:
            with pytest.raises(ValueError, match=r"carry the watermark \(log10 p = -3.1\)"):
                ru.read_open_model(llama(1), texts(), wm, reference=llama(2))
        else:
            assert ru.read_open_model(llama(1), texts(), wm, reference=llama(2)).text_log10_p == -2.9  # type: ignore[union-attr]


# --- twins -------------------------------------------------------------------------------------------------------------


def collected(wm: ru.GreenList, seed: int, *twins: tuple[float, float]) -> contrast.Contrast:
    """Of tables: B, his base and twins. A twin is (how much of B's move it makes too, how much it leans towards green)."""
    rng, size = np.random.default_rng(seed), wm.vocab_size
    windows = rng.integers(0, size, (25 * size, 1))
    green = wm.green_rows(np.arange(size)[:, None]).astype(float)
    base, move, *own = rng.normal(size=(3 + len(twins), size, size))
    moved = [
        base + 0.5 * follows * move + 0.2 * noise + lean * green
        for noise, (follows, lean) in zip(own, ((1.0, 0.0), *twins), strict=True)
    ]
    tables = [torch.from_numpy(one)[windows[:, 0]].softmax(-1) for one in (moved[0], base, *moved[1:])]
    collector = contrast.ContrastCollector(1, size, len(tables), top=size)
    collector.add(windows, tables)
    return collector.contrast()


def untested(found: contrast.Contrast, wm: ru.GreenList) -> contrast.ContrastiveReading:
    """The verdict on the same weights without a look at the twins."""
    return contrast.judge_contrast(contrast.Contrast(found.pairs, found.weights), wm)


@pytest.mark.parametrize("lean", [3.0, 1.0, 0.3, -0.3, -1.0, -3.0])
@pytest.mark.parametrize("follows", [-1.0, -0.5, 0.5, 1.0])
def test_a_marked_twin_never_convicts(lean: float, follows: float) -> None:
    """With β free, a twin that moves where B does not lent him its mark: 12 of 12 innocents convicted, down to −867."""
    for seed in range(3):
        wm = ru.GreenList(f"k{seed}", V, 1)
        with pytest.raises(ValueError, match=r"reference\[1\] carries the mark \(two-sided log10 p = -\d"):
            contrast.judge_contrast(collected(wm, seed, (follows, lean)), wm)
        # whichever twin it is, it is named
        with pytest.raises(ValueError, match=r"reference\[2\] carries the mark"):
            contrast.judge_contrast(collected(wm, seed, (0.5, 0.0), (follows, lean)), wm)
        # under another key it is as innocent as any
        assert contrast.judge_contrast(collected(wm, seed, (follows, lean)), wm.with_key("other")).log10_p > -4


def test_what_a_negative_coefficient_did() -> None:
    wm = ru.GreenList("k", V, 1)
    found = collected(wm, 1, (-1.0, 3.0))
    assert found.explained == (0.0,)  # least squares without bounds would be below it
    assert untested(found, wm).log10_p > -3  # so that even unseen the marked twin lends nothing
    above = collected(wm, 1, (1.0, 3.0))
    assert 0.0 < above.explained[0] < 1.0 and untested(above, wm).log10_p > -0.01  # it takes from B instead
    against = collected(wm, 1, (1.0, -3.0))
    assert untested(against, wm).log10_p < -30  # this is what no bound on β can catch, and the two-sided test does


@pytest.mark.parametrize("twins", [[(0.5, 0.0)], [(0.4, 0.0), (-0.7, 0.0)], [(3.0, 0.0), (0.9, 0.0), (0.0, 0.0)]])
def test_coefficients_are_the_bounded_least_squares(twins: list[tuple[float, float]], monkeypatch: Any) -> None:
    matrices = []
    explained = contrast._explained
    monkeypatch.setattr(contrast, "_explained", lambda weighted: matrices.append(weighted) or explained(weighted))
    found = collected(ru.GreenList("k", V, 1), 4, *twins)
    (weighted,) = matrices

    def loss(beta: np.ndarray) -> float:
        return float(np.sum((weighted[:, 0] - weighted[:, 1:] @ beta) ** 2))

    best = loss(np.array(found.explained))
    assert all(0.0 <= beta <= 1.0 for beta in found.explained)
    rng = np.random.default_rng(0)
    for beta in (*rng.random((300, len(twins))), *np.clip(found.explained + rng.normal(0, 0.01, (300, len(twins))), 0, 1)):
        assert loss(beta) >= best * (1 - 1e-12)


def test_a_twin_that_is_the_base_or_another_twin_changes_nothing() -> None:
    texts_read = texts(8, 20)
    alone = reading.read_contrast(llama(1), llama(2), texts_read, 1, V)
    same = reading.read_contrast(llama(1), [llama(2), llama(2)], texts_read, 1, V)
    assert np.array_equal(same.weights, alone.weights) and len(same.twins[0].pairs) == 0
    assert contrast.judge_contrast(same, ru.GreenList("alice", V, 1)).log10_p == pytest.approx(
        contrast.judge_contrast(alone, ru.GreenList("alice", V, 1)).log10_p
    )
    one = reading.read_contrast(llama(1), [llama(2), llama(3)], texts_read, 1, V)
    twice = reading.read_contrast(llama(1), [llama(2), llama(3), llama(3)], texts_read, 1, V)
    assert sum(twice.explained) == pytest.approx(one.explained[0], rel=1e-6)


def alarms_within(p: np.ndarray, alpha: float) -> bool:
    low, high = stats.binom.interval(0.99, p.size, alpha)
    return bool(low <= np.sum(p <= alpha) <= high)


def test_alarms_with_twins_that_pass() -> None:
    """Innocent twins leave the rate what α says, and a thousandth of them is refused; slightly marked ones lower it."""
    innocent, slight, refused = [], [], 0
    for key in range(205):
        wm = ru.GreenList(f"key {key}", 30, 1)
        follows = (-0.8, 0.0, 0.8)[key % 3]
        try:
            innocent.append(contrast.judge_contrast(collected(wm, key, (follows, 0.0)), wm).p_value)
        except ValueError:
            refused += 1
        try:
            slight.append(contrast.judge_contrast(collected(wm, key + 1000, (follows, 0.06)), wm).p_value)
        except ValueError as error:
            assert "carries the mark" in str(error)
    assert refused <= 4
    assert 140 < len(slight) < 205  # slight marks do pass, and not all of them
    for alpha in (0.05, 0.01, 0.001):
        assert alarms_within(np.array(innocent), alpha), alpha
        assert np.sum(np.array(slight) <= alpha) <= stats.binom.ppf(0.995, len(slight), alpha), alpha


def test_the_whole_route_refuses_a_marked_twin_and_convicts_with_an_innocent_one() -> None:
    wm = ru.GreenList("alice", V, 1)
    base, guilty = Marked(wm, None), Marked(wm, 0.4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"reference\[1\] carries the mark"):
        ru.read_open_model(guilty, texts(), wm, reference=[base, Marked(wm, 0.4)])
    found = ru.read_open_model(guilty, texts(), wm, reference=[base, Marked(wm, 0.0)])
    assert found.log10_p < -10


def test_alices_own_model_may_be_the_reference() -> None:
    """Another architecture, another number of padding logits and another type than B's."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    wm = ru.GreenList("alice", V, 1)
    torch.manual_seed(9)
    own = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=V + 4, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=None,
        )
    ).eval()  # fmt: skip
    prompts = [[1, 2, 3]] * 40
    assert ru.read_open_model(Marked(wm, 1.5), texts(), wm, reference=own, prompts=prompts).log10_p < -20
    assert ru.read_open_model(Marked(wm, 0.0), texts(), wm, reference=own.bfloat16(), prompts=prompts).log10_p > -4
    twins = [own.float(), llama(6)]
    assert ru.read_open_model(Marked(wm, 1.5), texts(), wm, reference=twins, prompts=prompts).log10_p < -20


def test_sums_do_not_depend_on_how_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    keys, values = rng.integers(0, 300, (5000, 1)).astype(np.uint64), rng.random((5000, 2))
    monkeypatch.setattr(contrast, "_WAITING", 700)
    sums = contrast.Sums(2)
    for part in np.array_split(np.arange(5000), 17):
        sums.add(keys[part], values[part])
    found, totals = sums.total()
    assert found[:, 0].tolist() == sorted(set(keys[:, 0].tolist()))
    expected = np.stack([np.bincount(keys[:, 0].astype(int), values[:, i]) for i in range(2)], axis=1)
    assert totals == pytest.approx(expected[found[:, 0].astype(int)])


def test_a_contrast_survives_the_disk(tmp_path: Any) -> None:
    found = reading.read_contrast(llama(1), [llama(2), llama(3), llama(4)], texts(4, 10), 1, V)
    assert len(found.twins) == 2
    found.save(tmp_path)
    again = contrast.Contrast.load(tmp_path)
    assert again.explained == found.explained
    for one, other in ((again, found), *zip(again.twins, found.twins, strict=True)):
        assert np.array_equal(one.weights, other.weights)
        assert np.array_equal(one.pairs.windows, other.pairs.windows)
        assert np.array_equal(one.pairs.tokens, other.pairs.tokens)


@pytest.mark.parametrize("kind", ["reference", "twins"])
def test_a_filter_that_leaves_nothing_is_no_evidence(kind: str) -> None:
    wm = ru.GreenList("alice", V, 1)
    reference = llama(2) if kind == "reference" else [llama(2), llama(3)]
    for found in (
        ru.read_open_model(llama(1), texts(3), wm, reference=reference, keep=np.zeros((0, 1), int)),
        ru.read_open_model(llama(1), texts(3) % 50, wm, reference=reference, keep=[[55]]),
    ):
        assert (found.seen, found.scored, found.log10_p, found.total) == (3 * 39, 0, 0.0, 0.0)
        assert len(found.contrast.explained) == len(found.contrast.twins) == int(kind == "twins")  # type: ignore[union-attr]


def test_the_score_of_weights_that_cancel() -> None:
    for wm, mean in ((ru.GreenList("alice", V, 1), 0.25), (ru.GumbelMax("alice", V, 1), None)):
        values, chances = wm.law.mark_distribution
        pairs = ru.detection.ev.from_pairs([[1], [2]], [3, 4], V)
        marks = wm.law.marks(wm.scores([[1], [2]], [3, 4]))
        found = contrast.judge_contrast(contrast.Contrast(pairs, np.array([3, -3]), ()), wm)
        null = float(values @ chances)
        assert mean is None or null == mean
        assert found.score == pytest.approx(null + 3 * (marks[0] - marks[1]) / 6)


def test_a_contrast_that_does_not_fit_is_named() -> None:
    pairs = ru.detection.ev.from_pairs([[1], [2]], [3, 4], V)
    for weights, words in (
        (np.array([1, 2, 3]), "weights must be one for each of the 2 pairs, got 3"),
        (np.array([1]), "weights must be one for each of the 2 pairs, got 1"),
        (np.array([1.0, 2.0]), "weights must be a row of whole numbers, got dtype float64"),
        (np.array([[1, 2]]), "weights must be a row of whole numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            contrast.Contrast(pairs, weights, ())
    own = contrast.Contrast(pairs, np.array([1, 2]))
    for explained, twins, words in (
        ((0.3,), (), "twins must be one contrast for each of the 1 references in explained, got 0"),
        ((), (own,), "twins must be one contrast for each of the 0 references in explained, got 1"),
        ((-0.1,), (own,), r"explained must hold coefficients in \[0, 1\]"),
        ((0.2, 1.1), (own, own), r"explained must hold coefficients in \[0, 1\]"),
        ((math.nan,), (own,), r"explained must hold coefficients in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=words):
            contrast.Contrast(pairs, np.array([1, 2]), explained, twins)
    with pytest.raises(ValueError, match="pairs repeat with dedup=None"):
        contrast.Contrast(ru.detection.ev.from_pairs([[1]], [1], V, dedup=None), np.array([1]), ())
    found = contrast.Contrast(pairs, np.array([1, 2]), ())
    for wm in (ru.GreenList("a", 2 * V, 1), ru.GreenList("a", V, 2)):
        with pytest.raises(ValueError, match="evidence was collected with window=1 and vocab_size=60"):
            contrast.judge_contrast(found, wm)
        with pytest.raises(ValueError, match="evidence was collected with window=1 and vocab_size=60"):
            contrast.audit_contrast(found, wm, keys=5)


def test_weights_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = contrast.ContrastCollector(1, V, 2)
    with pytest.raises(ValueError, match="probabilities hold NaN or infinity"):
        collector.add(np.array([[1]]), [torch.full((1, V), torch.nan), torch.full((1, V), 1 / V)])
    collector.add(np.array([[1]]), [torch.rand(1, V), torch.full((1, V), 1 / V)])
    monkeypatch.setattr(contrast, "FLOOR", -1.0)
    with pytest.raises(ValueError, match="a weight is not finite"), np.errstate(all="ignore"):
        collector.contrast()


def test_what_can_be_refused_is_refused_before_a_model_runs() -> None:
    class Untouched(torch.nn.Module):
        def forward(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("a model ran")

    wm, model = ru.GreenList("alice", V, 1), Untouched()
    with pytest.raises(ValueError, match="dedup must be one of"):
        ru.read_open_model(model, texts(2), wm, reference=model, dedup="tokens")  # type: ignore[arg-type]
    for reference, words in (
        ("base", "^reference must be a causal model, got str; load it"),
        ([model, "x"], r"reference\[1\]"),
    ):
        with pytest.raises(TypeError, match=words):
            ru.read_open_model(model, texts(2), wm, reference=reference)
    with pytest.raises(TypeError, match="model must be a causal model"):
        ru.read_open_model("bob", texts(2), wm, reference=model)


def test_bad_input_is_named() -> None:
    wm = ru.GreenList("alice", V, 1)
    with pytest.raises(ValueError, match="reference is empty"):
        ru.read_open_model(llama(1), texts(2), wm, reference=[])
    with pytest.raises(ValueError, match="fewer than the watermark's vocab_size=60"):
        ru.read_open_model(llama(1), texts(2) % 50, wm, reference=llama(1, 50))
    with pytest.raises(ValueError, match="top must be at least 1"):
        ru.read_open_model(llama(1), texts(2), wm, reference=llama(2), top=0)
