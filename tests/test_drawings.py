"""Drawings: the boxes show the colours of the scheme's lists, and leave out what the test leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

import radio_utils as ru
from radio_utils import evidence, figures, querying
from radio_utils.figures.boxes import shown
from radio_utils.predictions import Predictions

V = 40
WM = ru.GreenList("alice", V, 1, 0.25, 2.0)
TWO = ru.GreenList("alice", V, 2, 0.25, 2.0)


class Tokenizer:
    def decode(self, ids: list[int]) -> str:
        return {0: "a long token that goes on", 1: "$x_1", 2: " \n", 3: "\U0001f600"}.get(ids[0], f"w{ids[0]}")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    backend = matplotlib.get_backend()
    plt.switch_backend("Agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)


def boxes(figure: Any) -> list[tuple[str, str]]:
    """Label and look of all boxes, in the order in which they were drawn."""
    (ax,) = figure.axes
    labels = {(round(text.get_position()[0], 3), round(text.get_position()[1], 3)): text.get_text() for text in ax.texts}
    found = []
    for patch in ax.patches:
        x, y, width, height = patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()
        found.append((labels[round(x + width / 2, 3), round(y + height / 2, 3)], str(patch.get_gid())))
    return found


def colour(wm: Any, window: Any, token: int) -> str:
    return "green" if wm.scores([list(window)], [token])[0] == 1 else "red"


def test_candidates_have_the_colours_of_the_windows_list() -> None:
    text, candidates = [5, 6, 7, 8], [range(10, 18), [8, 9, 10]]
    found = boxes(figures.windows_and_lists(Tokenizer(), text, candidates, TWO))
    expected = [("w5", "window"), ("w6", "window")]
    expected += [(f"w{v}", colour(TWO, (5, 6), v)) for v in range(10, 18)]
    expected += [("w7", colour(TWO, (5, 6), 7) + ", drawn"), ("w6", "window"), ("w7", "window")]
    expected += [(f"w{v}", colour(TWO, (6, 7), v) + (", drawn" if v == 8 else "")) for v in (8, 9, 10)]
    assert found[: len(expected)] == expected
    assert {"green", "red"} <= {look for _, look in expected}, "colours of one kind show nothing"
    with pytest.raises(ValueError, match="candidates must have a row for each of 2 tokens, got 1"):
        figures.windows_and_lists(Tokenizer(), text, candidates[:1], TWO)


@pytest.mark.parametrize("wm", [WM, TWO], ids=["k=1", "k=2"])
def test_reading_leaves_out_what_the_evidence_leaves_out(wm: ru.GreenList) -> None:
    rng = np.random.default_rng(0)
    contexts = tuple(rng.integers(4, 12, 14) for _ in range(3))  # few tokens, so that windows come again
    tokens = tuple(rng.integers(4, V, 15) for _ in contexts)
    found = Predictions(contexts, np.array([3, 4, 5]), tokens)
    # dedup=None: every place that is scored, and as often as it is
    scored = found.evidence(wm.window, V, full_context=True, dedup=None)
    drawn = boxes(figures.reading_mode(Tokenizer(), found, wm, places=20))
    below = drawn[1 : 2 * sum(15 - s for s in (3, 4, 5)) : 2]
    expected = sorted(
        (f"w{token}", colour(wm, window, token)) for window, token in zip(scored.windows, scored.tokens, strict=True)
    )
    assert sorted(box for box in below if box[1] != "left out") == expected
    assert sum(look == "left out" for _, look in below) == len(below) - len(scored) > 0


def test_windows_of_the_prompt_are_left_out_as_in_the_test() -> None:
    prompt, answer = np.array([20, 21, 22, 23]), np.array([30, 21, 31, 22, 23, 32, 33])
    drawn = boxes(figures.prompt_exclusion(Tokenizer(), prompt, answer, WM))
    assert drawn[:4] == [("w20", "plain"), ("w21", "window"), ("w22", "window"), ("w23", "window")]
    expected = {
        (f"w{token}", colour(WM, window, token))
        for found in [querying.score_answers([prompt], [answer], WM).evidence]
        for window, token in zip(found.windows, found.tokens, strict=True)
    }
    places = drawn[4 : 4 + answer.size]
    assert [label for label, _ in places] == [f"w{t}" for t in answer]
    assert places[0] == ("w30", "plain"), "the first token of an answer has no window"
    assert {box for box in places[1:] if box[1] != "left out"} == expected
    assert [label for label, look in places if look == "left out"] == ["w31", "w23", "w32"]


def test_an_engines_answer_is_scored_from_its_first_token_on() -> None:
    wm = ru.engines.from_config({"algorithm": "gumbel", "key": 7, "context_width": 2}, V)
    answer = np.array([30, 31, 32, 33])
    drawn = boxes(figures.prompt_exclusion(Tokenizer(), [20, 21], answer, wm))[2:6]
    scored = querying.score_answers([[20, 21]], [answer], wm).scored
    assert scored == 4 and all(look in ("green", "red") for _, look in drawn)


def test_the_filter_has_two_colours_and_leaves_out_what_it_is_not() -> None:
    answer, keep = np.array([30, 31, 32, 30, 33]), [[30], [32]]
    drawn = boxes(figures.filtered(Tokenizer(), [20], answer, WM, keep))[:8]
    windows, tokens = evidence.all_windows([answer], 1)[0][:4].ravel(), answer[1:]
    for (above, below), window, token in zip(zip(drawn[::2], drawn[1::2], strict=True), windows, tokens, strict=True):
        inside = window in (30, 32)
        assert above == (f"w{window}", "window" if inside else "filtered")
        assert below == (f"w{token}", colour(WM, [window], token) if inside else "left out")


def test_bets_multiply_the_wealth() -> None:
    ax = figures.bets(["a b", "c d", "e f"], [1, 0, 1], gamma=0.25, guess=0.5, alpha=0.01)
    path, threshold = ax.get_lines()
    assert np.allclose(path.get_ydata(), [1, 2, 4 / 3, 8 / 3]) and np.allclose(threshold.get_ydata(), 100)
    greens, reds = (np.asarray(dots.get_offsets()).tolist() for dots in ax.collections)
    assert [x for x, _ in greens] == [1, 3] and [x for x, _ in reds] == [2]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["", "a b", "c d", "e f"]


def test_a_plan_shows_each_test_with_its_share() -> None:
    tests = [
        {"test": "reading, supervised", "applies": True, "why": "the weights are at hand"},
        {"test": "answers, watched", "applies": False, "why": "the suspect is not asked over an API"},
    ]
    figure = figures.audit_plan({"alpha": 0.001, "level_of_each_test": 0.0005, "tests": tests})
    drawn = boxes(figure)
    assert drawn == [
        ("α = 0.001", "window"), ("α/m = 0.0005", "green"), ("not run", "left out"), ("α/m = 0.0005", "filtered"),
        ("convicted if min p ≤ α/m", "window"),
    ]  # fmt: skip
    said = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "m = 2" in said and "1 more that another key would allow" in said
    assert "not asked over an API" in said and "the weights are at hand" not in said


def test_boxes_stay_on_the_sheet_and_do_not_overlap() -> None:
    answer = np.random.default_rng(0).integers(0, V, 40)
    (ax,) = figures.prompt_exclusion(Tokenizer(), answer[::-1], answer, WM).axes
    areas = [(p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()) for p in ax.patches]
    left, right = ax.get_xlim()
    assert all(x0 > left and x1 < right for x0, _, x1, _ in areas)
    for i, (x0, y0, x1, y1) in enumerate(areas):
        assert not any(x0 < u1 and u0 < x1 and y0 < v1 and v0 < y1 for u0, v0, u1, v1 in areas[:i])
    ax.figure.canvas.draw()
    wide = [text.get_window_extent() for text in ax.texts]
    assert all(box.x1 <= ax.figure.bbox.x1 for box in wide)


def test_tokens_are_shown_as_they_are_and_fit() -> None:
    assert [shown(Tokenizer(), i) for i in (0, 1, 2, 3)] == ["a␣long␣toke…", "$x_1", "␣⏎", "□"]
