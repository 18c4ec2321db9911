"""What a mark will be worth: predicted numbers beside simulated ones, schemes, the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

import radio_utils as ru
from radio_utils import advise as command
from radio_utils import engines, planning

V = 1000
GUMBEL = engines.VLLMGumbel(1, V, 1)


def chances(entropy: float, size: int) -> np.ndarray:
    """Chances ∝ exp(−rank·s) of this entropy: another family than the one that is planned with."""
    low, high = 0.0, 50.0
    for _ in range(60):
        s = (low + high) / 2
        p = np.exp(-s * np.arange(size))
        p /= p.sum()
        low, high = (s, high) if -(p * np.log(np.maximum(p, 1e-300))).sum() > entropy else (low, s)
    p = np.maximum(p, 1e-12)
    return p / p.sum()


@pytest.mark.parametrize("name", ["gumbel", "dual key", "green", "synthid"])
def test_a_texts_tokens_are_those_of_a_simulated_text(name: str) -> None:
    """Texts drawn with the mark from other distributions of the same entropy: within a factor of two."""
    rng = np.random.default_rng(0)
    wm: Any = {
        "gumbel": GUMBEL,
        "dual key": engines.VLLMDualKey(1, V, 1, alpha=0.3),
        "green": ru.GreenList("a", V, 1, gamma=0.25, delta=2.0),
        "synthid": engines.VLLMSynthID(1, V, 1, depth=12),
    }[name]
    advice = planning.advise(wm, tokens=1e6, rho=0.1, entropy=1.2)
    scores = []
    for entropy in rng.exponential(1.2, 2500):
        p = chances(min(entropy, 4.5), 150)
        if name in ("gumbel", "dual key"):
            e = -np.log1p(-rng.random((2, p.size)))
            key = int(rng.random() < 0.3) if name == "dual key" else 0
            drawn = np.argmin(-np.log(-np.expm1(-e[key])) / p)  # argmax of U^(1/p)
            scores.append(e[0, drawn] if name == "gumbel" else 0.7 * e[0, drawn] + 0.3 * e[1, drawn])
        elif name == "green":
            green = rng.random(p.size) < 0.25
            q = p * np.exp(2.0 * green)
            scores.append(float(green[rng.choice(p.size, p=q / q.sum())]))
        else:
            bits = rng.random((12, p.size)) < 0.5
            for layer in bits:
                p = p * (1.0 + layer - min(p @ layer, 1.0))
            scores.append(float(bits[:, rng.choice(p.size, p=p / p.sum())].sum()))
    sizes = np.geomspace(30, 600, 18).astype(int)
    totals = np.array([[rng.choice(scores, n).sum() for _ in range(30)] for n in sizes])
    enough = np.mean(np.asarray(wm.log10_p(totals, sizes[:, None])) <= -6, axis=1) >= 0.9
    assert advice.text_tokens is not None
    assert enough.any() and 0.5 < advice.text_tokens / sizes[np.argmax(enough)] < 2.0


@pytest.mark.parametrize("rho", [0.1, 1.0])
def test_a_count_based_student_is_convicted_by_so_many_pairs(rho: float) -> None:
    """A student that counts, with a prior, reads Alice's draws and others': predicted within a factor of two."""
    rng = np.random.default_rng(1)
    tokens, inertia, epochs = 3000, 10.0, 3.0
    q = 1.0 / np.arange(1, V + 1)
    q /= q.sum()
    first = float(-(q * np.log(q)).sum())
    p = np.stack([rng.permutation(chances(min(h, 4.0), 120)) for h in rng.exponential(1.2, V)])
    e = rng.exponential(size=p.shape)  # one score for each pair, whoever asks
    drawn = np.argmin(-np.log(-np.expm1(-e)) / p, axis=1)  # a window's draw is always the same
    alices, others = rng.multinomial(tokens, q), rng.multinomial(round(tokens * (1 - rho) / rho), q)
    learned = np.stack([rng.multinomial(n, one) for n, one in zip(others, p, strict=True)]).astype(float)
    learned[np.arange(V), drawn] += alices
    met = epochs * (alices + others)
    student = (epochs * learned + inertia * p) / (met + inertia)[:, None]
    advice = planning.advise(
        GUMBEL, tokens=tokens, rho=rho, entropy=1.2, first_entropy=first, epochs=epochs, inertia=inertia
    )
    for way in advice.ways:
        windows = rng.choice(V, 20_000, p=alices / tokens if way.logs else q)
        if way.access == "closed":
            at = [rng.choice(120, p=student[w]) for w in windows[:5000].tolist()]
            values = e[windows[:5000], at] - 1.0
        else:
            values = ((student * (e - 1.0)).sum(axis=1) / np.sqrt((student**2).sum(axis=1).mean()))[windows]
        simulated = float(values.mean())
        assert 0.5 < way.effect / simulated < 2.0, (way, simulated)
    by = {(way.access, way.logs): way for way in advice.ways}
    assert by["open", True].effect >= by["grey", True].effect >= by["closed", True].effect > by["closed", False].effect


def test_what_helps_and_what_does_not() -> None:
    def pairs(k: int = 2, **changed: Any) -> dict[tuple[str, bool], float]:
        options = {"tokens": 1e6, "rho": 0.05, "entropy": 1.5} | changed
        advice = planning.advise(engines.VLLMGumbel(1, 32_000, k), **options)
        return {(w.access, w.logs): w.pairs or np.inf for w in advice.ways} | {("text", True): advice.text_tokens or np.inf}

    base = pairs()
    assert pairs(rho=0.5)["closed", False] < base["closed", False]
    assert pairs(tokens=1e8)["closed", False] < base["closed", False]
    assert pairs(k=4)["closed", False] > base["closed", False] and pairs(k=4)["text", True] == base["text", True]
    assert pairs(entropy=0.5)["text", True] > base["text", True]
    few = planning.advise(engines.VLLMGumbel(1, 32_000, 4), tokens=100, rho=0.001, entropy=1.5)
    assert {way.tokens for way in few.ways if way.logs} == {None}, "the logs hold fewer pairs"
    assert "out of reach" in few.alt
    with pytest.raises(dataclasses.FrozenInstanceError):
        few.rho = 1.0  # type: ignore[misc]


def test_a_measured_entropy() -> None:
    """A Markov chain's cross-entropy is a little above its entropy; single values of positions are taken as they are."""
    rng = np.random.default_rng(2)
    rows = np.stack([rng.permutation(chances(1.0, 30)) for _ in range(30)])
    texts = np.zeros((20, 2000), int)
    for t in range(1, 2000):
        texts[:, t] = [rng.choice(30, p=rows[w]) for w in texts[:, t - 1]]
    assert 0.97 < planning.entropy_of(texts, 30) < 1.1
    wm = engines.VLLMGumbel(1, 30, 1)
    measured = planning.advise(wm, tokens=1e5, rho=0.5, texts=texts)
    assert measured.entropy == pytest.approx(planning.entropy_of(texts, 30), rel=0.1)
    flat = planning.advise(wm, tokens=1e5, rho=0.5, entropy=np.full(100, 1.0))
    assert flat.entropy == pytest.approx(1.0) and flat.text_effect > planning.advise(
        wm, tokens=1e5, rho=0.5, entropy=np.r_[np.zeros(90), np.full(10, 3.0)]
    ).text_effect  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rho": 0.0}, "rho must lie"),
        ({"tokens": float("nan")}, "tokens must lie"),
        ({"entropy": -1.0}, "entropy must be"),
        ({"entropy": 12.0}, "is it in bits"),
        ({"entropy": None}, "either entropy"),
        ({"texts": [[1, 2]]}, "either entropy"),
        ({"entropy": None, "texts": [[1, 2]]}, "two at least"),
    ],
)
def test_bad_input_is_named(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        planning.advise(GUMBEL, **({"tokens": 1e6, "rho": 0.1, "entropy": 1.0} | changed))
    with pytest.raises(ValueError, match="vocab_size"):
        planning.advise({"algorithm": "gumbel", "key": 1}, tokens=1e6, rho=0.1, entropy=1.0)


def test_the_command_prints_a_table_and_saves_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib.use("Agg")
    config, figure, texts = tmp_path / "mark.json", tmp_path / "mark.svg", tmp_path / "texts.jsonl"
    config.write_text(json.dumps({"algorithm": "gumbel", "context_width": 2}))
    texts.write_text("".join(json.dumps({"ids": [1, 2, 3, 1, 2, 4] * 20}) + "\n" for _ in range(4)))
    common = ["--engine-config", str(config), "--vocab-size", "1000", "--tokens", "1e6", "--rho", "0.1"]
    assert command.main([*common, "--entropy", "1.0", "--plot", str(figure)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert (
        len(printed) == 10
        and "--inertia" in printed[9]
        and printed[0].startswith("vllm gumbel, k = 2")
        and printed[1].split()[0] == "setting"
    )
    assert "Tokens to read" in figure.read_text()
    assert command.main([*common, "--texts", str(texts), "--window", "3"]) == 0
    assert "k = 3" in capsys.readouterr().out
    assert command.main([*common[:-1], "2", "--entropy", "1.0"]) == 2
    assert capsys.readouterr().err.startswith("error: rho must lie")
