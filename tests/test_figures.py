"""Figures: what is drawn is what was measured; text of a model cannot inject markup."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

import radio_utils as ru
from radio_utils import figures


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    backend = matplotlib.get_backend()
    plt.switch_backend("Agg")
    with matplotlib.rc_context():
        figures.set_style()
        yield
    plt.close("all")
    plt.switch_backend(backend)


ROWS = [
    {"rho": rho, "setting": setting, "access": "open", "watermark": True, "log10_p": -100 * rho * factor}
    for rho in (0.5, 0.0, 0.05)
    for setting, factor in (("supervised", 2), ("unsupervised", 1))
]


def test_p_against_share_draws_every_row_in_order() -> None:
    ax = figures.log10_p_against_share(ROWS, series="setting", labels={"supervised": "S", "unsupervised": "U"})
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_allclose(lines["S"].get_xdata(), [0, 5, 50])
    np.testing.assert_allclose(lines["S"].get_ydata(), [0, -10, -100])
    np.testing.assert_allclose(lines["U"].get_ydata(), [0, -5, -50])
    assert "ρ" in ax.get_xlabel() and "log10 p" in ax.get_ylabel()
    low, high = sorted(ax.get_ylim())
    assert low <= -100 and high >= 0
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "5", "50"]
    ax.figure.canvas.draw()


def test_other_seeds_are_faint_and_of_their_series_colour() -> None:
    other = [row | {"log10_p": row["log10_p"] - 1} for row in ROWS]
    ax = figures.log10_p_against_share(
        ROWS, series="setting", labels={"supervised": "S", "unsupervised": "U"}, others=[other]
    )
    shown, faint = ([line for line in ax.get_lines() if (line.get_alpha() == 0.35) is wanted] for wanted in (False, True))
    assert [line.get_color() for line in faint] == [line.get_color() for line in shown[:2]]
    np.testing.assert_allclose(faint[0].get_ydata(), [-1, -11, -101])
    assert len(ax.get_legend().get_texts()) == 2


def test_convictions_are_counted_over_runs() -> None:
    runs = [[row | {"log10_p": row["log10_p"] * factor} for row in ROWS] for factor in (1, 0.5)]
    page = figures.convictions(runs).to_html()
    assert "2 of 2" in page and "1 of 2" in page and "0 of 2" in page and "ρ = 5\u00a0%" in page


def test_more_lines_than_markers() -> None:
    rows = [{"rho": 0.1, "setting": i, "log10_p": -i} for i in range(9)]
    ax = figures.log10_p_against_share(rows, series="setting", labels={i: str(i) for i in range(9)})
    assert {str(i) for i in range(9)} <= {line.get_label() for line in ax.get_lines()}
    curves = {str(i): ([1, 2, 3], [-1.0 * i, -2.0, -3.0]) for i in range(14)}
    assert len(figures.p_curves(curves, xlabel="n").get_legend().get_texts()) == 14


def test_p_curves() -> None:
    ax = figures.p_curves({"a": ([1, 10, 100], [-0.1, -1, -20])}, xlabel="pairs")
    line = next(line for line in ax.get_lines() if line.get_label() == "a")
    np.testing.assert_allclose(line.get_ydata(), [-0.1, -1, -20])
    assert ax.get_xlabel() == "pairs"


def test_small_multiples_share_axes_and_mark_the_knob() -> None:
    panels = {f"ρ = {i}": {"a": ([1, 10], [-0.1, -20.0 * i]), "b": ([1, 10], [-0.2, -1])} for i in (1, 2, 3)}
    figure = figures.curves_in_panels(panels, xlabel="answers", chosen=10)
    shown = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title() for ax in shown] == list(panels) and len({ax.get_ylim() for ax in shown}) == 1
    for i, ax in enumerate(shown, start=1):
        curves = {line.get_label(): line for line in ax.get_lines()}
        np.testing.assert_allclose(curves["a"].get_ydata(), [-0.1, -20 * i])
        assert [10, 10] in [list(line.get_xdata()) for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert shown[0].get_ylim()[0] <= -60
    assert [ax.get_xlabel() for ax in shown] == ["", "answers", "answers"], "the lowest of each column say what x is"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    one = figures.curves_in_panels({"one": {"a": ([1, 2], [50, 9])}}, xlabel="δ", ylabel="tokens", log_x=False)
    (ax,) = one.axes
    assert (ax.get_xscale(), ax.get_yscale(), one.get_supylabel()) == ("linear", "log", "tokens")


def test_audit_draws_the_empirical_distribution() -> None:
    texts = np.random.default_rng(0).integers(0, 50, (10, 40))
    audit = ru.null_audit(texts, ru.GreenList("k", 50, 1, 0.25, 2.0), keys=60)
    figure = figures.audit({"one": audit, "two": audit})
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]
    drawn = next(line for line in figure.axes[0].get_lines() if "decoy" in str(line.get_label()))
    np.testing.assert_allclose(np.sort(audit.uniform_p), drawn.get_xdata())
    np.testing.assert_allclose(drawn.get_ydata(), np.arange(1, 61) / 60)


def test_distributions_and_bars() -> None:
    rng = np.random.default_rng(0)
    members, fresh = rng.normal(0, 1, 99), rng.normal(1, 1, 50)
    pairs = {"d = 100 %": (members, fresh), "d = 0 %": (members, members)}
    figure = figures.two_distributions(pairs, names=("candidates", "fresh"), xlabel="m")
    assert [ax.get_title() for ax in figure.axes] == list(pairs)
    ax = figures.bars(["a", "b"], [1.0, 2.5], errors=[0.1, 0.2], ylabel="y", xlabel="x")
    assert [bar.get_height() for bar in ax.patches] == [1.0, 2.5]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")


class Tokenizer:
    def decode(self, ids: list[int]) -> str:
        return {0: "<script>", 1: "a&b", 2: "\n"}.get(ids[0], f"t{ids[0]} ")


@pytest.mark.parametrize("wm", [ru.GreenList("k", 90, 2, 0.25, 2.0), ru.GumbelMax("k", 90, 2)], ids=["green", "gumbel"])
def test_coloured_marks_what_the_watermark_scores(wm: Any) -> None:
    text = np.concatenate([[0, 1, 2], np.random.default_rng(0).integers(3, 90, 60)])
    page = figures.coloured(Tokenizer(), {"A <b>title</b>": text}, wm)._repr_html_()
    scores = wm.scores([text[t - 2 : t] for t in range(2, text.size)], text[2:])
    level = 0.5 if isinstance(wm, ru.GreenList) else np.log(2)
    marked = int((scores > level).sum())
    assert page.count('class="radio-g"') == marked
    assert page.count('class="radio-n"') == 2  # the first window is not scored
    assert f"({100 * marked / 61:.0f} % marked)" in page
    assert "<script>" not in page and "&lt;script&gt;" in page and "a&amp;b" in page and "<b>" not in page


def test_coloured_takes_texts_too_short_to_score() -> None:
    page = figures.coloured(Tokenizer(), {"short": [5], "empty": []}, ru.GreenList("k", 90, 2, 0.25, 2.0))._repr_html_()
    assert page.count("too short to score") == 2


def test_dialogue_escapes() -> None:
    page = figures.dialogue("What is <x>?", {"B": "<img src=x onerror=alert(1)>"})._repr_html_()
    assert "<img" not in page and "&lt;img" in page and "&lt;x&gt;" in page


def test_table_rounds_and_survives_missing_values() -> None:
    rows = [
        {"rho": 0.05, "scored": 12345, "score": 0.25678, "log10_p": -1234.5, "simulated": 0.9, "loss": 3.4},
        {"rho": 0.0, "scored": 9, "score": None, "log10_p": None, "simulated": 0.8975, "loss": 0.0},
    ]
    page = figures.table(rows, caption="Caption").to_html()
    for shown in ("5\u00a0%", "0\u00a0%", "12,345", "0.257", "-1,234", "–", "Caption", "scored pairs"):
        assert shown in page, shown
    assert ">90.0\u00a0%<" in page and ">3.40<" in page and ">0<" in page
    assert "nan" not in page.lower().replace("nonan", "")
    assert ">-0.0308<" in figures.table([{"reading, supervised": -0.030772}]).to_html()  # a column that no list names
    narrow = figures.table(rows, columns=["rho", "scored"]).to_html()
    assert "12,345" in narrow and "0.257" not in narrow


def test_summary_spreads_the_settings_over_rho() -> None:
    rows = [*ROWS, {"rho": 0.0, "setting": "supervised", "access": "open", "watermark": False, "log10_p": -42.0}]
    page = figures.summary(rows).to_html()
    columns, values = ("0\u00a0%", "5\u00a0%", "50\u00a0%"), (">-100<", ">-5<", ">-42<", "–")
    for shown in (*columns, *values, ">watermark<", ">membership<", "open, supervised"):
        assert shown in page, shown


def test_errors_are_drawn_at_their_size() -> None:
    rows = [
        {"rho": rho, "task": task, "value": value + rho, "stderr": 0.25}
        for task, value in (("near", 2.0), ("far", 4.0))
        for rho in (0.0, 0.1)
    ]
    ax = figures.with_errors(rows, series="task", ylabel="loss")
    near, far = ax.containers
    assert list(map(float, near.lines[0].get_ydata())) == pytest.approx([2.0, 2.1])
    assert list(map(float, far.lines[0].get_ydata())) == pytest.approx([4.0, 4.1])
    (segments,) = near.lines[2]
    assert [float(y) for _, y in segments.get_segments()[1]] == pytest.approx([1.85, 2.35])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "10"]


def test_the_story_has_one_line_for_each_setting_and_one_panel_for_each_run() -> None:
    rows = [row | {"access": access} for row in ROWS for access in ("open", "closed")]
    (ax,) = figures.story({"alone": [rows]}).axes
    settings = {"open, supervised", "open, unsupervised", "closed, supervised", "closed, unsupervised"}
    assert {line.get_label() for line in ax.get_lines()} >= settings
    left, right = figures.story({"small": [rows, rows], "large": [[row for row in rows if row["access"] == "open"]]}).axes
    shared = left.figure.get_supxlabel()
    assert "ρ" in shared and "ρ" in ax.get_xlabel() and not left.get_xlabel() + right.get_xlabel(), "x is named once"
    assert (left.get_title(), right.get_title()) == ("small", "large") and left.get_ylim() == right.get_ylim()
    assert {line.get_label() for line in right.get_lines()} & settings == {"open, supervised", "open, unsupervised"}


def test_deviations_are_drawn_for_each_reference() -> None:
    rows = [{"rho": rho, "reference": name, "z": 10 * rho + i} for rho in (0.0, 0.005, 0.1) for i, name in enumerate("ab")]
    ax = figures.z_against_share(rows, series="reference", labels={"a": "first", "b": "second"})
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    assert np.allclose(lines["first"], [0.0, 0.05, 1.0])
    assert np.allclose(lines["second"], [1.0, 1.05, 2.0])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "0.5", "10"]
    assert "standard deviations" in ax.get_ylabel()


def test_wealth_is_drawn_with_the_line_that_convicts() -> None:
    ax = figures.wealth({"guilty": ([10, 20], [1.0, 4.0])}, alpha=1e-3, xlabel="pairs")
    assert [list(line.get_ydata()) for line in ax.get_lines()] == [[1.0, 4.0], [3.0, 3.0]]
    assert ax.get_xlabel() == "pairs"


def test_means_and_standard_errors_of_the_runs() -> None:
    rows = [{"k": k, "kind": kind, "log10_p": -k - run} for k in (4, 1) for kind in "ab" for run in (0.0, 2.0)]
    rows.append({"k": 2, "kind": "a", "log10_p": -7.0})
    ax = figures.means(rows, x="k", y="log10_p", series="kind", labels={"a": "first"}, xlabel="window", log=True)
    first, second = ax.containers
    assert [first.get_label(), second.get_label()] == ["first", "b"]
    assert list(map(float, first.lines[0].get_xdata())) == [1, 2, 4]
    assert list(map(float, first.lines[0].get_ydata())) == [-2, -7, -5]
    lengths = [abs(float(high - low)) for (_, low), (_, high) in first.lines[2][0].get_segments()]
    assert lengths == pytest.approx([2.0, 0.0, 2.0])  # the standard error of two runs that differ by 2 is 1
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4"]
    assert ax.get_xscale() == "log"
    assert figures.means(rows, x="k", y="log10_p", xlabel="window").get_legend() is None


def test_panels_share_an_axis_and_a_legend_and_draw_other_seeds_faintly() -> None:
    rows = [{"k": k, "kind": kind, "log10_p": -k - run} for k in (4, 1) for kind in "ab" for run in (0.0, 2.0)]
    other = [row | {"log10_p": 3 * row["log10_p"]} for row in rows if row["kind"] == "a"]
    figure = figures.means_in_panels({"one": [rows], "two": [rows, other]}, x="k", y="log10_p", series="kind")
    one, two = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"] and one.get_ylim() == two.get_ylim()
    assert one.get_legend() is None
    assert [text.get_text() for text in two.get_legend().get_texts()] == ["a", "b"]
    faint = [line for line in two.get_lines() if line.get_alpha() == 0.35]
    assert [line.get_xydata().tolist() for line in faint if line.get_xydata().size] == [[[1, -6], [4, -15]]]
    assert faint[0].get_color() == two.containers[0].lines[0].get_color()


def test_fit_and_loudness_has_the_better_fit_on_the_right() -> None:
    rows = [
        {"factor": "epochs", "loss": 2.0, "held_out": 4.0, "log10_p": -5.0},
        {"factor": "epochs", "loss": 1.0, "held_out": 5.0, "log10_p": -50.0},
    ]
    losses = {"loss": "his own", "held_out": "fresh"}
    figure = figures.fit_and_loudness(rows, {"epochs": "epochs", "size": "size, not run"}, losses=losses)
    for ax, expected in zip(figure.axes, ([[2.0, -5.0], [1.0, -50.0]], [[4.0, -5.0], [5.0, -50.0]]), strict=True):
        (dots,) = ax.collections
        assert np.asarray(dots.get_offsets()).tolist() == expected
        left, right = ax.get_xlim()
        assert left > right
    assert [text.get_text() for text in figure.axes[-1].get_legend().get_texts()] == ["epochs"]


def test_strength_and_loudness_joins_watermarks_of_one_share() -> None:
    def runs(gamma: float, delta: float, text: float, found: tuple[float, ...]) -> list[dict[str, Any]]:
        name = {"scheme": "green list", "k": 1, "gamma": gamma, "delta": delta}
        return [name | {"log10_p_text": text, "stderr_text": 0.5, "log10_p": p} for p in found]

    rows = runs(0.25, 3.0, -20.0, (-30.0, -34.0)) + runs(0.25, 1.0, -5.0, (-4.0,)) + runs(0.5, 3.0, -15.0, (-9.0,))
    one, two = (("green list", 1, 0.25, 3.0), ("green list", 1, 0.25, 1.0)), (("green list", 1, 0.5, 3.0),)
    ax = figures.strength_and_loudness(rows, {"δ varied": one, "γ varied": (*one, *two)})
    joined, loose = (container.lines[0] for container in ax.containers)
    assert joined.get_xydata().tolist() == [[-20.0, -32.0], [-5.0, -4.0]]
    assert loose.get_xydata().tolist() == [[-20.0, -32.0], [-15.0, -9.0], [-5.0, -4.0]]
    assert (joined.get_linestyle(), loose.get_linestyle()) == ("-", "None")


def test_the_key_is_drawn_among_its_decoys() -> None:
    ax = figures.among_decoys({"guilty": (-400.0, [-0.1, -1.0, -2.5]), "innocent": (-0.2, [-0.4, -3.0])})
    clouds, keys = ax.collections[::2], ax.collections[1::2]
    assert [np.asarray(one.get_offsets())[:, 0].tolist() for one in clouds] == [[-0.1, -1.0, -2.5], [-0.4, -3.0]]
    assert [np.asarray(one.get_offsets()).tolist() for one in keys] == [[[-400.0, 0.0]], [[-0.2, 1.0]]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["guilty", "innocent"]
    left, right = ax.get_xlim()
    assert left < -400 and right > 0
    assert "−100" in [label.get_text() for label in ax.get_xticklabels()]


def test_a_framed_page_stays_in_its_frame() -> None:
    framed = figures.framed('<p title="a">"><script>alert(1)</script>', height=300)._repr_html_()
    assert framed.startswith("<iframe sandbox title=") and "height: 300px" in framed
    assert "<script" not in framed and '"><' not in framed[: -len("></iframe>")]
