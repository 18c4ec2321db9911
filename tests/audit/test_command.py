"""The command, and audits of a suspect behind an API: what they spend, what stops them, and that they go on when killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Server, serving
from trials import GAMMA, KEY, OTHER_KEY, WORDS, World, save_tokenizer, watermark, write_file, write_ids

from radio_utils.audit.__main__ import main
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
        kills, counts = 0, []
        while kills < 20:
            known, start = answered(out), len(server.asked)
            process = context.Process(target=_run, args=(arguments,))
            process.start()
            # some before the first request, most between requests
            until, wanted = time.monotonic() + 300, chance.randrange(0, 9)
            while len(server.asked) - start < wanted and process.is_alive() and time.monotonic() < until:
                time.sleep(0.002)
            time.sleep(chance.random() * 0.06)
            process.kill()
            process.join()
            assert process.exitcode == -9
            assert not known & set(server.requests[start:])
            kills += 1
            counts.append(len(answered(out)))
        assert counts == sorted(counts) and 20 < counts[-1] < 160 and len(set(counts)) > 8
        known, start = answered(out), len(server.asked)
        assert main(arguments) == 0
        assert not known & set(server.requests[start:]) and len(server.requests[start:]) == 160 - len(known)
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
