"""The verdict on paper: what it says in each case, and that nothing in it can run."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from screens import browser, browser_path
from trials import World, audited
from waiting import PATIENCE

from radio_utils import GreenList
from radio_utils.audit import Request, TestResult, Verdict, report
from radio_utils.audit.verdict import Control
from radio_utils.detection import Comparison

EVIL = (
    "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">{{ 7*7 }}'\"`--></code>"
    "<svg onload=alert(1)>"
)


def result(**changes: Any) -> TestResult:
    values: dict[str, Any] = {
        "name": "reading, supervised", "applied": True, "why": "weights are at hand", "seen": 900, "scored": 700,
        "score": 0.41, "expected": 0.25, "log10_p": -9.5, "log10_corrected": -9.2, "decoys": 99, "ks_p": 0.4,
        "lowest_decoy": -2.1, "smallest_effect": 0.08, "needed_pairs": 300,
    }  # fmt: skip
    return TestResult(**(values | changes))


def verdict(**changes: Any) -> Verdict:
    values: dict[str, Any] = {
        "outcome": "convicted", "alpha": 1e-3,
        "tests": (result(), TestResult(name="answers, all", applied=False, why="only open tests were asked for")),
        "control": Control("Alice's model is not at hand"), "counted": 2, "texts_log10_p": -88.0,
        "vocabulary": "The suspect's tokenizer is Alice's.",
        "estimate": {"tokens_read": 1000}, "inputs": {"watermarked_texts": {"file": "a.jsonl", "sha256": "0f"}},
        "settings": {"suspect": "bob", "suspect_model": "", "window": 2, "reference": "base"},
        "fingerprint": "greenlist-k2-f00",
        "seconds": {"model": 1.5}, "folder": "out",
    }  # fmt: skip
    return Verdict(**(values | changes))


ABOUT = {
    "date": "2026-11-21 12:00 UTC", "versions": {"python": "3.11"}, "hardware": {"cpu": "some"}, "command": "audit bob",
}  # fmt: skip


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page[page.index("<body>") :]))


def test_a_conviction_says_what_it_means_and_what_would_undo_it() -> None:
    page = text_of(report.page(verdict(), ABOUT))
    assert "Convicted. The evidence says that the suspect learned from text under the watermark greenlist-k2-f00." in page
    assert "would be 1 in 10⁹. The level asked for was 0.001." in page
    assert "the key was known to the suspect's owner" in page.replace("&#39;", "'")
    assert "picked because they score well under the key" in page and "that their licence allows" in page
    assert "answers, all: only open tests were asked for." in page
    assert "1 was run. The column “corrected” allows for 2" in page and "not the probability that this suspect is" in page
    assert "The number is from the test “reading, supervised”" in page and "stops as soon as" not in page
    assert "audit bob" in page and "reading, supervised: 0.0800 (seen: 0.1600)" in page
    assert "Not convicted" not in page and "Void." not in page


def test_no_evidence_is_not_innocence() -> None:
    tests = (result(log10_p=-0.8, log10_corrected=-0.5, score=0.26, needed_pairs=50_000),)
    page = text_of(report.page(verdict(outcome="not convicted", tests=tests), ABOUT))
    assert "Not convicted. At the level 0.001 there is no evidence" in page
    assert "This does not prove that it did not." in page and "No evidence is not evidence of innocence." in page
    assert "about 50,000 distinct pairs in place of 700 would reach the level" in page and "it may be chance" in page
    assert "must divide α among the tries" in page
    assert "Convicted." not in page and "The evidence says" not in page


def test_tables_speak_to_a_lawyer() -> None:
    page = report.page(verdict(), ABOUT)
    headers = re.findall(r"<th[^>]*>(.*?)</th>", page)
    assert headers and not any("log10" in header or "evenness" in header for header in headers)
    assert "1 in 10⁹" in text_of(page) and "evenness" not in page and "allows for the 2 tests that shared" in page
    alone = text_of(report.page(verdict(counted=1), ABOUT))
    assert "1 tests" not in alone and "no other test shared the level" in alone
    assert "with 700 pairs; the effect that was seen needs about 300 for that" in alone


def test_answers_are_not_taken_for_the_suspect() -> None:
    inputs = {"suspect": {"file": "said.jsonl", "sha256": "0f", "texts": 3}}
    settings = {"suspect": "said.jsonl", "suspect_model": "", "window": 1}
    tests = (result(name="answers, watched", asked=32, log10_corrected=-3.02, log10_p=-3.3, ks_p=None, alarms=0.01),)
    page = text_of(report.page(verdict(inputs=inputs, settings=settings, tests=tests), ABOUT))
    assert "The evidence says that whoever wrote these answers learned" in page
    assert "keep a record of how the answers were obtained" in page
    assert "its number lies just below the level" in page


def test_the_command_repeats_the_audit_and_holds_no_key() -> None:
    given = Request(suspect="bob's", watermarked_texts="a b.jsonl", key="secret", window=1, alpha=0.01, output_dir="x")
    assert report.command(given.public()) == (
        "python -m radio_utils.audit --suspect 'bob'\"'\"'s' --watermarked-texts 'a b.jsonl' --window 1 --alpha 0.01 "
        "--key-file KEY --output-dir again"
    )
    kept = Request(suspect="bob", watermarked_texts="a", key_env="ALICE_KEY")
    assert report.command(kept.public()).count("--key-") == 1


def test_void_says_why() -> None:
    control = Control("", 100, 99, -12.0, 0.5, 1e-9, 0.02, leaks=True)
    tests = (result(sound=False),)
    page = text_of(report.page(verdict(outcome="void", tests=tests, control=control), ABOUT))
    assert "Void. The tests cannot be believed" in page and "convicts this suspect under keys that nobody used" in page
    assert "There is a leak" in page and "a rank whose p-value is 0.5" in page and "their rank says little" in page
    assert "1 in 10" not in page and verdict(outcome="void").log10_p == 0.0  # nothing to quote
    assert "Keys that nobody used do not behave" not in page and "could have found" not in page
    unsound = report.page(verdict(outcome="void", tests=(result(sound=False, ks_p=1e-9),)), ABOUT)
    assert "<td>NO</td>" in unsound
    page = text_of(unsound)
    assert "Keys that nobody used do not behave as they must" in page and "There is a leak" not in page


def test_the_first_lines_say_whether_the_control_was_run() -> None:
    for control, words in (
        (Control("worlds is 0: give the number"), "Re-marking control: not run, so that nothing here shows"),
        (
            Control("", 80, 40, -1.2, 0.39, 0.8, None),
            "wrote texts under keys that nobody used (keys: 40, texts under each: 80)",
        ),
    ):
        page = text_of(report.page(verdict(control=control), ABOUT))
        assert words in page.partition("The evidence says")[0]
        assert ("Worlds is 0: give the number." in page) == bool(control.why)


def test_what_was_added_is_a_table_and_a_base_with_a_trace_a_remark() -> None:
    for added, log10_p, shown in (
        (Comparison(12, 0.5, 300, 0.4, -0.7), -0.4, True),
        (Comparison(0, math.nan, 0, math.nan, 0.0), 0.0, True),
        (Comparison(400, 0.6, 300, 0.3, -9.0), -8.7, False),
    ):
        one = verdict(outcome="not convicted", tests=(result(added=added, log10_corrected=log10_p),))
        page = text_of(report.page(one, ABOUT))
        assert "What the suspect added" in page and f"{added.base:,}" in page
        assert ("not shown that it does so more than the model that it was made from" in page) == shown
        json.dumps(one.record()["tests"], allow_nan=False)


def test_nothing_is_called_exact_without_its_condition() -> None:
    assert "exact" not in text_of(report.page(verdict(), ABOUT))
    assert "It holds on one condition" in text_of(report.page(verdict(), ABOUT))


def test_a_verdict_without_a_reference_is_about_the_chain_of_models() -> None:
    settings = {"suspect": "bob", "suspect_model": "", "window": 2, "reference": ""}
    one = verdict(settings=settings)
    page = text_of(report.page(one, ABOUT))
    assert "the suspect or a model that it was made from learned from text" in page and "can be given as reference" in page
    assert one.record()["about"] == "the suspect or a model that it was made from"


def test_what_is_said_of_answers_is_true_of_a_file_and_of_a_server() -> None:
    """A file may leave prompts without an answer out, which nobody can see; of a server it is known."""
    for refused, words in (
        (None, "Answers given: 1,087. Empty answers: 25. Looked up."),
        (1, "Prompts asked, each time counted: 1,087. Empty answers: 25. Refused: 1. Looked up."),
    ):
        one = result(name="answers, all", answers=1087, empty=25, refused=refused, note="Looked up.")
        assert f"weights are at hand. {words}" in text_of(report.page(verdict(tests=(one,)), ABOUT))


def test_of_each_test_it_is_said_what_it_could_have_found() -> None:
    tests = (
        result(),
        result(name="reading, unsupervised", scored=3, smallest_effect=None, needed_pairs=None),
        result(name="answers, watched", scored=9000, smallest_effect=None, needed_pairs=None),
    )
    page = text_of(report.page(verdict(tests=tests), ABOUT))
    assert "reading, supervised: 0.0800 (seen: 0.1600)" in page
    assert "reading, unsupervised: none, however strong; too few pairs could be scored (3)." in page
    assert "answers, watched: unknown, as its pairs do not count alike, or their number was not fixed" in page


def test_more_pairs_are_advised_only_where_more_are_needed() -> None:
    """Fewer than were scored: p allowed for something else, such as tokens that were made from strings."""
    for needed, shown in ((699, False), (701, True)):
        tests = (result(log10_p=-0.8, log10_corrected=-0.5, needed_pairs=needed),)
        page = text_of(report.page(verdict(outcome="not convicted", tests=tests), ABOUT))
        assert ("distinct pairs in place of 700" in page) == shown


def test_a_watched_test_that_did_not_stop_has_no_number_at_the_level() -> None:
    for outcome, log10_p in (("convicted", -3.3), ("not convicted", -0.4)):
        tests = (result(name="answers, watched", log10_p=log10_p, log10_corrected=log10_p, needed_pairs=None),)
        page = text_of(report.page(verdict(outcome=outcome, tests=tests), ABOUT))
        assert ("its number lies just below the level" in page) == (outcome == "convicted")


def test_no_evidence_against_a_suspect_with_a_trace_before_is_about_what_it_added() -> None:
    for reference in ("base", ""):
        settings = {"suspect": "bob", "suspect_model": "", "window": 2, "reference": reference}
        page = text_of(report.page(verdict(outcome="not convicted", settings=settings), ABOUT))
        assert ("beyond what the model that it was made from had learned" in page) == bool(reference)


def test_decoys_that_were_given_were_not_drawn_last() -> None:
    for digits in ("0123456789abcdef" * 2, ""):
        settings = verdict().settings | {"decoy_entropy": digits}
        page = text_of(report.page(verdict(settings=settings), ABOUT))
        assert ("They were drawn after all evidence was fixed" in page) == (not digits)
        assert ("Their digits were given" in page) == bool(digits)
        assert "spread evenly between" not in page and "one-sided" in page  # caution is no fault of a test


def test_earlier_levels_add_up_to_no_more_than_certainty() -> None:
    earlier = tuple({"folder": "a", "date": "", "outcome": "void", "alpha": 0.4, "fingerprint": ""} for _ in range(3))
    page = text_of(report.page(verdict(earlier=earlier), ABOUT))
    assert "has a probability of 1 at most" in page


def test_parameters_that_said_nothing_are_not_shown() -> None:
    """Where an engine's file or a watermark says them, those of the request hold other values."""
    given = Request(suspect="bob", watermarked_texts="a", key="secret").public()
    assert "<td>window</td>" in report.page(verdict(settings=given), ABOUT)
    made = Request(suspect="bob", watermarked_texts="a", mark=GreenList("hidden", 128, 5, 0.5)).public()
    for settings in (given | {"engine_config": "vllm.json"}, made):
        page = report.page(verdict(settings=settings), ABOUT)
        assert not any(f"<td>{name}</td>" in page for name in ("window", "gamma", "scheme"))
        assert "after each 2 tokens" not in page and "hidden" not in page
    assert report.command(made) == (
        "radio_utils.audit.run(Request(suspect='bob', watermarked_texts='a', mark=MARK, output_dir='again'))"
    )


@given(st.floats(-400, 0))
def test_odds_are_those_of_the_p_value(log10_p: float) -> None:
    words = report.odds(log10_p)
    if words.startswith("1, "):
        assert log10_p > -0.01
        return
    number = words.removeprefix("1 in ").replace(",", "")
    power = number.removeprefix("10").translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")) if log10_p <= -6 else ""
    value = float(power) if power else math.log10(float(number))
    assert value == pytest.approx(-log10_p, abs=0.5 if power else 0.05)


def test_what_may_be_quoted_is_the_least_corrected_p_of_a_sound_test() -> None:
    tests = (result(log10_corrected=-3.0), result(log10_corrected=-7.0, sound=False), result(log10_corrected=-5.0))
    assert verdict(tests=tests).log10_p == -5.0
    assert verdict(tests=tests[1:2]).log10_p == 0.0 == verdict(tests=()).log10_p


def test_both_files_hold_the_same_verdict(world: World, tmp_path: Path) -> None:
    found = audited(world, tmp_path / "out", world.guilty, reference=world.base, access="both")
    record = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert record["outcome"] == found.outcome == "convicted" and record["log10_p"] == found.log10_p
    assert [one["log10_p"] for one in record["tests"]] == [one.log10_p for one in found.tests]
    assert record["control"]["why"] == found.control.why != ""
    assert [one["added"] is not None for one in record["tests"]] == [one.added is not None for one in found.tests]
    assert record["settings"]["watermarked_texts"] == world.used and "key" not in record["settings"]
    assert record["inputs"]["suspect"]["sha256"].keys() >= {"model.safetensors", "tokenizer.json"}
    page = (tmp_path / "out" / "report.html").read_text()
    for test in found.tests:
        assert test.name in page
        assert not test.applied or f">{test.log10_p:.1f}</td>" in page
    assert record["inputs"]["watermarked_texts"]["sha256"] in page and found.fingerprint in page
    assert "data:image/png;base64," in page


def evil(value: Any) -> Any:
    """The same value with every string in it hostile, save the names that the page asks for."""
    if isinstance(value, str):
        return value + EVIL
    if isinstance(value, dict):
        asked = ("suspect", "suspect_model", "window", "date", "command")
        return {name if name in asked else name + EVIL: evil(one) for name, one in value.items()}
    return value


def test_every_string_is_text_on_the_page() -> None:
    plain = verdict(outcome="not convicted", control=Control(EVIL))
    tests = tuple(
        dataclasses.replace(test, why=evil(test.why), note=EVIL, name=test.name if test.applied else EVIL)
        for test in plain.tests
    )
    words = {name: evil(getattr(plain, name)) for name in ("vocabulary", "inputs", "settings", "fingerprint", "seconds")}
    page = report.page(dataclasses.replace(plain, tests=tests, **words), evil(ABOUT))
    assert "<script" not in page.lower() and "<svg" not in page and 'onerror="' not in page and "49" not in text_of(page)
    assert page.count("&lt;script&gt;") >= 12
    assert page.count("<img") == 0


@pytest.mark.browser
@pytest.mark.skipif(browser_path() is None, reason="no Chromium is installed: `apt-get install chromium` gives one")
def test_nothing_runs_and_nothing_is_fetched_in_a_browser(world: World, tmp_path: Path) -> None:
    """A whole audit whose folders and files have hostile names and texts, opened in Chromium."""
    name = "<img src=x onerror=document.title='ran'><script>document.title='ran'<"
    folder = shutil.copytree(world.innocent, tmp_path / f"{name}&script>")
    lines = Path(world.used).read_text().splitlines()
    used = tmp_path / f"{name}.jsonl"
    used.write_text("\n".join(json.dumps({"prompt": EVIL, EVIL: EVIL} | json.loads(line)) for line in lines))
    found = audited(
        world, tmp_path / "out", str(folder), watermarked_texts=str(used), access="both", suspect_model=EVIL,
        api_key_env=EVIL,
    )  # fmt: skip
    assert found.outcome == "not convicted"
    asked, trouble = list[str](), list[str]()
    with browser() as chromium:
        page = chromium.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: trouble.append(dialog.message))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda message: trouble.append(message.text))
        page.goto((tmp_path / "out" / "report.html").as_uri(), wait_until="load")
        page.wait_for_timeout(300)
        assert page.title() == "Audit: not convicted"
        assert page.locator("script").count() == 0 and page.locator("svg").count() == 0
        assert page.locator("img").count() == 1
        assert page.evaluate("() => document.images[0].naturalWidth") > 100
        assert name in page.locator("body").inner_text()  # shown, as text
        own = [one for one in asked if not one.startswith("data:")]
        # were a hole in the escaping found, the page's own policy would still stop what comes through it
        page.evaluate("() => document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
        page.wait_for_timeout(300)
        assert page.title() == "Audit: not convicted"
    assert len(own) == 1 and own[0].startswith("file:") and own[0].endswith("report.html")
    assert all("Content Security Policy" in one for one in trouble)
