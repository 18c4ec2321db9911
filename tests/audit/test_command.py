"""The command, and audits of a suspect behind an API: what they spend, what stops them, and that they go on when killed."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import Server, serving
from trials import GAMMA, KEY, OTHER_KEY, WORDS, World, save_tokenizer, watermark, write_file, write_ids
from waiting import PATIENCE, wait_until

from radio_utils import planning
from radio_utils.audit import Request
from radio_utils.audit.__main__ import main
from radio_utils.files import sha256_of
from radio_utils.suspects import endpoint

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALICE_KEY", KEY)
    monkeypatch.setenv("CAROLS_KEY", OTHER_KEY)
    monkeypatch.setenv("API_KEY", "sk-credentials-of-the-tests")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between attempts."""
    monkeypatch.setattr(endpoint.Clock, "sleep", lambda self, seconds, woken: None)


@pytest.fixture(scope="module")
def guilty() -> Iterator[Server]:
    with serving(Server(guilty=True)) as server:
        yield server


def command(world: World, out: Path, suspect: str, **changes: Any) -> list[str]:
    settings: dict[str, Any] = {
        "suspect": suspect, "watermarked_texts": world.used, "key_env": "ALICE_KEY", "window": 1, "gamma": GAMMA,
        "decoys": 99, "decoy_entropy": "5a" * 16, "max_queries": 80, "max_tokens": 24, "output_dir": str(out),
    }  # fmt: skip
    if suspect.startswith("http"):
        settings |= {"suspect_model": "bob", "tokenizer": world.base}
    settings |= changes
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def verdict(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "verdict.json").read_text())
    return found


def answered(out: Path) -> set[str]:
    """Requests whose answer is on the disk, in whole lines."""
    log = out / "answers.jsonl"
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
    return {row["request"] for row in map(json.loads, lines) if "request" in row}


# ----------------------------------------------------------------------------------------------------------------------
# Verdicts


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_guilty_endpoint_is_convicted_before_all_is_asked(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], api: str
) -> None:
    with serving(Server(guilty=True)) as server:
        assert main(command(world, tmp_path / "out", server.address, api=api, max_queries=200)) == 0
        captured = capsys.readouterr()
        assert captured.out.startswith("convicted: log10 p = -") and "report.html" in captured.out
        found = verdict(tmp_path / "out")
        watched = found["tests"][3]
        assert watched["name"] == "answers, watched" and watched["log10_p"] < -3 and watched["sound"]
        assert len(server.asked) == watched["asked"] < 200 and watched["asked"] % 16 == 0
        assert found["tests"][4]["why"].startswith("not needed")
        before = len(server.asked)
        assert main(command(world, tmp_path / "out", server.address, api=api, max_queries=200)) == 0
        assert len(server.asked) == before  # all of it was on the disk
        again = verdict(tmp_path / "out")
        assert again["tests"] == found["tests"] and again["outcome"] == "convicted"


def test_an_innocent_endpoint_and_a_wrong_accuser(world: World, tmp_path: Path) -> None:
    with serving(Server(guilty=False)) as server:
        assert main(command(world, tmp_path / "innocent", server.address)) == 0
        found = verdict(tmp_path / "innocent")
        assert found["outcome"] == "not convicted" and len(server.asked) == 80 == len(set(server.requests))
        assert all(test["scored"] > 100 and test["log10_p"] > -3 for test in found["tests"] if test["applied"])
        assert [test["name"] for test in found["tests"] if test["applied"]] == ["answers, watched", "answers, all"]
    with serving(Server(guilty=True)) as server:  # guilty of another's text
        carols = write_file(tmp_path / "carols.jsonl", write_ids(100, watermark(OTHER_KEY), seed=41))
        changes = {"key_env": "CAROLS_KEY", "watermarked_texts": carols}
        assert main(command(world, tmp_path / "carols", server.address, **changes)) == 0
        assert verdict(tmp_path / "carols")["outcome"] == "not convicted"


# ----------------------------------------------------------------------------------------------------------------------
# What stops an audit: one sentence, status 2, and nothing spent


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key_env": "CAROLS_KEY"}, "watermarked_texts do not carry this watermark"),
        ({"gamma": 0.5}, "gamma=0.25"),
        ({"window": 2}, "with window=1 they do"),
        ({"tokenizer": "another"}, "watermarked_texts do not carry this watermark"),
        ({"watermarked_texts": "plain"}, "do not carry this watermark"),
        ({"watermarked_texts": "empty"}, "holds no text"),
        ({"watermarked_texts": "broken"}, "row 3: not JSON"),
        ({"watermarked_texts": "huge"}, "row 1: over 268,435,456 bytes"),
        ({"watermarked_texts": "missing.jsonl"}, "does not exist"),
        ({"fresh_texts": "broken"}, "fresh_texts: .*row 3: not JSON"),
        ({"key_env": "NOT_SET"}, "key_env='NOT_SET' is not set"),
        ({"alpha": 1e-300, "max_tokens": 2, "max_queries": 3}, "too little text for alpha"),
        ({"api": "soap"}, "api must be one of"),
        ({"api_key_env": "NOT_SET"}, "NOT_SET.*put the API key there"),
        ({"suspect_model": "mallory"}, "offers no model 'mallory', but 'bob'"),
        ({"suspect": "http://user:secret@[broken"}, "is no address of a server"),
        ({"output_dir": "file"}, "cannot be made a folder"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_costs_nothing(
    world: World, tmp_path: Path, guilty: Server, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    files = {"plain": world.plain, **{name: str(tmp_path / f"{name}.jsonl") for name in ("empty", "broken", "huge")}}
    Path(files["empty"]).touch()
    Path(files["broken"]).write_text('{"text": "w1 w2"}\n{"text": "w1 w2"}\n{"text": "w1')
    Path(files["huge"]).touch()
    os.truncate(files["huge"], 10 << 30)
    files["file"] = files["empty"]
    files["another"] = save_tokenizer(tmp_path / "another", {f"w{i}": (7 * i) % WORDS for i in range(WORDS)})
    before = len(guilty.asked)
    changes = {name: files.get(value, value) if isinstance(value, str) else value for name, value in changes.items()}
    assert main(command(world, tmp_path / "out", changes.pop("suspect", guilty.address), **changes)) == 2
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in captured.err and captured.out == ""
    assert re.search(words, last) and "secret" not in captured.err
    assert len(guilty.asked) == before and not (tmp_path / "out" / "verdict.json").exists()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ((200, b"<html>garbage</html>"), "answers garbage: no JSON"),
        ((200, [1, 2]), "answers garbage"),
        ((401, {"error": {"message": "expired"}}), "refuses the credentials .401: expired.*renew the API key in API_KEY"),
        ((402, {"error": {"message": "pay"}}), "has no quota left"),
        ((500, {"error": {"message": "oops"}}), "fails .500: oops., 6 times in a row"),
    ],
)
@pytest.mark.parametrize("after", [-1, 20])
def test_a_server_that_fails_stops_the_audit_and_nothing_is_lost(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], trouble: tuple[int, Any], words: str, after: int
) -> None:
    with serving(Server(guilty=False)) as server:
        # from the start, or once twenty answers were asked for; the list of models has number −1
        server.trouble = lambda number: trouble if after < 0 or number >= after else None
        arguments = command(world, tmp_path / "out", server.address, api_key_env="API_KEY", concurrency=2)
        status = main(arguments)
        captured = capsys.readouterr()
        last = captured.err.strip().splitlines()[-1]
        assert status == 2 and last.startswith("error: ") and "Traceback" not in captured.err
        assert re.search(words, last), last
        assert "sk-credentials" not in captured.err + captured.out
        kept = answered(tmp_path / "out")
        assert not kept if after < 0 else 15 <= len(kept) <= 20
        server.trouble = lambda number: None
        start = len(server.asked)
        assert main(arguments) == 0 and verdict(tmp_path / "out")["outcome"] == "not convicted"
        assert not kept & set(server.requests[start:])
        assert len(server.asked) - start == 80 - len(kept)


@pytest.mark.usefixtures("impatient")
def test_nobody_listens(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Server(guilty=True)) as server:
        address = server.address
    assert main(command(world, tmp_path / "out", address)) == 2
    assert "cannot be reached" in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_budget_of_requests_holds(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Server(guilty=False)) as server:
        assert main(command(world, tmp_path / "out", server.address, max_requests=40)) == 2
        assert len(server.asked) == 40 and "max_requests" not in capsys.readouterr().out
        assert main(command(world, tmp_path / "out", server.address, max_requests=80)) == 0
        assert len(server.asked) == 80


# ----------------------------------------------------------------------------------------------------------------------
# Killed, and gone on with


def _run(arguments: list[str]) -> None:
    sys.exit(main(arguments))


def test_killed_at_twenty_moments_and_gone_on_with(world: World, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trials", "radio_utils.audit.__main__", "radio_utils.audit.report", "openai"])
    out, chance = tmp_path / "killed", random.Random(1)
    with serving(Server(guilty=False)) as calm:
        assert main(command(world, tmp_path / "calm", calm.address, max_queries=160)) == 0
    with serving(Server(guilty=False, delay=0.03)) as server:
        arguments = command(world, out, server.address, max_queries=160, concurrency=2, max_requests=1000)
        counts: list[int] = []
        for _ in range(20):
            known, start, killed = answered(out), len(server.asked), threading.Event()

            def came(start: int = start) -> int:
                return len(set(server.requests[start:]))

            # however long the kill takes, seven answers are all that it gets
            server.trouble = lambda number, came=came, killed=killed: came() > 7 and not killed.wait(PATIENCE)
            process = context.Process(target=_run, args=(arguments,))
            process.start()
            # some before the first request, most between requests
            wanted = chance.randrange(0, 8)
            wait_until(lambda came=came, wanted=wanted, process=process: came() >= wanted or not process.is_alive())
            time.sleep(chance.random() * 0.06)
            process.kill()
            process.join()
            killed.set()
            assert process.exitcode == -9
            assert not known & set(server.requests[start:])
            counts.append(len(answered(out)))
        assert counts == sorted(counts) and 20 < counts[-1] < 160 and len(set(counts)) > 8
        server.trouble = lambda number: None
        known, start = answered(out), len(server.asked)
        assert main(arguments) == 0
        asked = server.requests[start:]
        assert not known & set(asked) and len(set(asked)) == 160 - len(known)
        assert len(asked) <= len(set(asked)) + 2, "what was under way at the last kill may come now"
    first, second = verdict(tmp_path / "calm"), verdict(out)
    # the answers depend on prompt and seed alone, so those of another port are the same
    assert second["outcome"] == first["outcome"]
    assert second["tests"] == first["tests"] and second["counted"] == first["counted"]
    written = [one.read_bytes() for one in out.rglob("*") if one.is_file()]
    assert len(written) >= 4 and not any(KEY.encode() in one for one in written)


def test_the_command_itself(world: World, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-m", "radio_utils.audit", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    done = run(*command(world, tmp_path / "out", world.guilty))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("convicted: log10 p = -") and (tmp_path / "out" / "report.html").is_file()
    assert "reading, supervised: yes, weights and texts" in done.stderr  # the plan, before it is carried out
    stopped = run(*command(world, tmp_path / "other", world.guilty, window=2))
    assert stopped.returncode == 2 and stopped.stdout == ""
    assert stopped.stderr.strip().splitlines()[-1].startswith("error: watermarked_texts do not carry this watermark")
    assert "Traceback" not in stopped.stderr and KEY not in done.stderr + done.stdout + stopped.stderr


# ----------------------------------------------------------------------------------------------------------------------
# One odd reply is not taken for the server; what was left out, refused or empty is said


def filtered(prompt: str) -> bool:
    return hash_of(prompt) % 5 == 0


def hash_of(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((400, {"error": {"message": "content management policy", "code": "content_filter"}}), "refuses the request .400"),
        (
            (200, {"choices": [{"text": None, "finish_reason": "content_filter"}]}),
            "answers are empty: is this a chat model",
        ),
        ((200, {"choices": []}), "answers without text"),
        ((200, {"error": {"code": 502, "message": "provider failed"}}), "answers an error"),
    ],
)
def test_a_conviction_survives_prompts_that_have_no_answer(world: World, tmp_path: Path, reply: Any, words: str) -> None:
    with serving(Server(guilty=True)) as server:
        server.trouble = lambda number: reply if number > 0 and filtered(server.asked[-1]["prompt"]) else None
        assert main(command(world, tmp_path / "out", server.address, concurrency=1)) == 0
    found = verdict(tmp_path / "out")
    watched = found["tests"][3]
    assert found["outcome"] == "convicted" and watched["answers"] == watched["asked"]
    assert 0 < watched["empty"] + watched["refused"] < watched["answers"] and re.search(words, watched["note"])
    page = (tmp_path / "out" / "report.html").read_text()
    counts = f"{watched['answers']}. Empty answers: {watched['empty']}. Refused: {watched['refused']}."
    assert f"Prompts asked, each time counted: {counts}" in page


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("reply", [(401, {}), (403, {}), (404, {}), (503, {}), (200, {"models": []}), (200, b"<html>")])
def test_a_server_that_lists_no_models_answers_all_the_same(world: World, tmp_path: Path, reply: Any) -> None:
    with serving(Server(guilty=True)) as server:
        server.trouble = lambda number: reply if number < 0 else None
        assert main(command(world, tmp_path / "out", server.address + "/v1/completions")) == 0
    assert verdict(tmp_path / "out")["outcome"] == "convicted"


def test_a_setting_that_is_refused_is_left_out_and_said(world: World, tmp_path: Path) -> None:
    with serving(Server(guilty=True)) as server:
        error = {"error": {"message": "Unrecognized request argument supplied: top_p", "param": "top_p"}}
        server.trouble = lambda number: (400, error) if number > 0 and "top_p" in server.asked[-1] else None
        assert main(command(world, tmp_path / "out", server.address)) == 0
    assert "The server refuses the setting top_p, so it was left out." in verdict(tmp_path / "out")["tests"][3]["note"]


def test_a_suspect_that_says_nothing_is_named(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Server(guilty=True)) as server:
        server.trouble = lambda number: (200, {"choices": [{"text": ""}]}) if number > 0 else None
        assert main(command(world, tmp_path / "out", server.address)) == 2
    assert "80 are empty; raise max_tokens" in capsys.readouterr().err.replace("80 answers", "")
    assert len(answered(tmp_path / "out")) == 80  # all of it is kept


# ----------------------------------------------------------------------------------------------------------------------
# What is promised beforehand, and what is true afterwards


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_at_most_is_at_most(world: World, tmp_path: Path, api: str) -> None:
    """The server counts as its tokenizer does, template and all, and every request may be sent and paid for."""
    tokenizer = save_tokenizer(tmp_path / "tokenizer", {f"w{i}": i for i in range(WORDS)})
    template = (
        "{% for m in messages %}w1 w2 {{ m['content'] }} w3 {% endfor %}{% if add_generation_prompt %}w4 w5{% endif %}"
    )
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(template)
    prices = {"price_in": 1e6, "price_out": 1e6, "max_requests": 100}
    with serving(Server(guilty=False)) as server:
        arguments = command(world, tmp_path / "out", server.address, api=api, tokenizer=tokenizer, **prices)
        assert main(arguments) == 0
        asked = [one["messages"][0]["content"] if api == "chat" else one["prompt"] for one in server.asked]
    sizes = sorted((len(text.split()) + 5 * (api == "chat") for text in asked), reverse=True)
    promised = verdict(tmp_path / "out")["estimate"]
    assert promised["answers_at_most"] == 80 == len(asked) and promised["requests_at_most"] == 100
    assert promised["tokens_in_at_most"] == sum(sizes) + 20 * sizes[0]
    assert promised["tokens_out_at_most"] == 100 * 24
    assert promised["cost_at_most"] == promised["tokens_in_at_most"] + 2400
    assert promised["cost_if_none_is_repeated"] == sum(sizes) + 80 * 24


def test_the_stated_power_is_that_of_what_was_scored(world: World, tmp_path: Path) -> None:
    """Not of what might have been: the filter and short answers leave far fewer pairs than were planned."""
    with serving(Server(guilty=False)) as server:
        assert main(command(world, tmp_path / "out", server.address, max_queries=40)) == 0
    found = verdict(tmp_path / "out")
    watched, fixed = found["tests"][3:5]
    assert watched["smallest_effect"] is None and watched["needed_pairs"] is None
    smallest, level = fixed["smallest_effect"], math.log10(1e-3 / found["counted"])
    simulated = planning.simulate_power(
        watermark(), smallest, fixed["scored"], log10_p=level, generator=np.random.default_rng(0)
    )
    assert simulated == pytest.approx(0.9, abs=0.05)
    first = found["estimate"]
    assert first["first_answers"] == 16 and first["tokens_of_a_first_answer"] == 24.0
    assert first["pairs_expected_of_all"] == pytest.approx(fixed["scored"], rel=0.15)
    assert 0 < first["share_that_the_filter_leaves"] <= 1
    assert f"with {fixed['scored']} pairs" in (tmp_path / "out" / "report.html").read_text()


def test_the_answers_of_a_model_at_hand_are_kept_and_can_be_audited_alone(world: World, tmp_path: Path) -> None:
    assert main(command(world, tmp_path / "out", world.guilty, access="closed")) == 0
    found, kept = verdict(tmp_path / "out"), tmp_path / "out" / "answers_at_hand.jsonl"
    assert found["inputs"]["answers"] == {"file": str(kept), "sha256": sha256_of(kept)}
    assert len(kept.read_text().splitlines()) == 80 == found["tests"][4]["answers"]
    assert main(command(world, tmp_path / "alone", str(kept), tokenizer=world.base)) == 0
    alone = verdict(tmp_path / "alone")
    assert [one["log10_p"] for one in alone["tests"]] == [one["log10_p"] for one in found["tests"]]


def test_help_says_what_each_option_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, words in Request.explained().items():
        assert len(words) > 15 and "``" not in words and words.endswith(".")
        assert name == "key" or f"--{name.replace('_', '-')}" in said
    assert "the level of the whole verdict, the chance that an innocent is convicted. Default: 0.001." in said


def test_what_nobody_foresaw_is_one_sentence_too(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("radio_utils.audit.__main__.run", failing)
    assert main(command(world, tmp_path / "out", world.guilty)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: the audit failed in a way that it does not know (ZeroDivisionError: a b); its traceback is"
    )
    assert "ZeroDivisionError" in (tmp_path / "out" / "failure.txt").read_text()
