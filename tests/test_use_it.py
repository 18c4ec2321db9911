"""The examples of the page "Use it on your model" and of the README, run as they are written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE, wait_until

from radio_utils.practice import Case

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "book" / "use_it.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.M | re.S)
EXAMPLES = {  # by a word of theirs that no other has
    "weights": "--output-dir audit-weights",
    "python": 'output_dir="audit-python"',
    "server": "transformers serve",
    "api": "--output-dir audit-api",
    "text": "--output-dir audit-text",
    "notebook": "-p output_dir audit-notebook",
    "shards": "sharding.detect_shards",
}


def example(name: str) -> tuple[str, str]:
    """Language and source of the one block with this example's word."""
    found = [(language, source) for language, source in BLOCK.findall(PAGE) if EXAMPLES[name] in source]
    assert len(found) == 1, (name, len(found))
    return found[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, practice_case: Case) -> Path:
    """A folder with the practice case in ``practice`` and the repository's notebooks."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(practice_case.folder, folder / "practice")
    (folder / "notebooks").symlink_to(ROOT / "notebooks")
    return folder


@pytest.fixture(scope="module")
def environment(place: Path) -> dict[str, str]:
    found = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    found |= {
        "OMP_NUM_THREADS": "1",
        "RADIO_UTILS_RESULTS": str(place / "results"),
        "RADIO_UTILS_STORE": str(place / "store"),
    }
    return found | {"ALICE_KEY": (place / "practice" / "key.txt").read_text()}


def run(name: str, folder: Path, environment: dict[str, str]) -> str:
    language, source = example(name)
    command = ["bash", "-e", "-c", source] if language == "bash" else [sys.executable, "-c", source]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def verdict(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    assert "<script" not in (folder / "report.html").read_text(encoding="utf-8")
    return found


def test_every_example_of_the_page_is_run_here() -> None:
    setting_up = 1
    assert len(BLOCK.findall(PAGE)) == len(EXAMPLES) + setting_up
    assert BLOCK.findall(PAGE)[0] == (
        "bash", 'python -m radio_utils.practice practice\ncd practice\nexport ALICE_KEY="$(cat key.txt)"\n'
    )  # fmt: skip


def test_the_commitment_opens(place: Path, environment: dict[str, str]) -> None:
    (command,) = re.findall(r"^`(python -m radio_utils\.commit [^`]+)`$", PAGE, re.M)
    folder = place / "practice"
    for _ in range(2):  # the second time it exists, and is left alone
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "never written over" in done.stderr
    audit = example("weights")[1].replace("audit-weights", "audit-committed --commitment commitment.json")
    subprocess.run(["bash", "-e", "-c", audit], cwd=folder, env=environment, capture_output=True, check=True)
    committed = json.loads((folder / "commitment.json").read_text())
    assert verdict(folder / "audit-committed")["commitment"]["date"] == committed["date"]


def test_weights(place: Path, environment: dict[str, str]) -> None:
    said = run("weights", place / "practice", environment)
    assert said.startswith("convicted: log10 p = -")
    found = verdict(place / "practice" / "audit-weights")
    assert found["outcome"] == "convicted" and "give her own unmarked model" in found["control"]["why"]
    assert all(test["added"]["log10_p"] < 0 for test in found["tests"] if test["name"] == "reading, supervised")
    assert not any(found["inputs"][name]["from_strings"] for name in ("watermarked_texts", "fresh_texts"))
    assert {test["name"] for test in found["tests"] if test["applied"]} == {
        "reading, supervised", "contrastive reading"
    }  # fmt: skip


def test_three_lines_of_python(place: Path, environment: dict[str, str]) -> None:
    assert run("python", place / "practice", environment).startswith("convicted -")


@pytest.fixture(scope="module")
def server(place: Path, environment: dict[str, str]) -> Iterator[str]:
    """The page's server, when it is ready."""
    _, command = example("server")
    (port,) = re.findall(r"--port (\d+)", command)
    with (place / "server.log").open("w") as log:
        started = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=place / "practice", env=environment, stdout=log, stderr=log
        )

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=PATIENCE).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    try:
        wait_until(lambda: answers() or started.poll() is not None)
        assert started.poll() is None, (place / "server.log").read_text()[-3000:]
        yield port
    finally:
        started.terminate()
        started.wait(PATIENCE)


@pytest.mark.usefixtures("server")
def test_an_api(place: Path, environment: dict[str, str]) -> None:
    assert run("api", place / "practice", environment).startswith("convicted: log10 p = -")
    folder = place / "practice" / "audit-api"
    found = verdict(folder)
    answers = len((folder / "answers.jsonl").read_text().splitlines())
    assert found["outcome"] == "convicted" and answers > 0
    run("api", place / "practice", environment)  # and once more, from what was kept
    assert len((folder / "answers.jsonl").read_text().splitlines()) == answers
    assert verdict(folder)["log10_p"] == found["log10_p"]


def test_only_text(place: Path, environment: dict[str, str]) -> None:
    assert run("text", place / "practice", environment).startswith("convicted: log10 p = -")
    assert verdict(place / "practice" / "audit-text")["inputs"]["suspect"]["file"] == "answers.jsonl"


def test_the_notebook(place: Path, environment: dict[str, str]) -> None:
    run("notebook", place, environment)
    assert verdict(place / "audit-notebook")["outcome"] == "convicted"
    executed = (place / "audit.ipynb").read_text(encoding="utf-8")
    assert "your suspect" in executed and environment["ALICE_KEY"] not in executed


def test_shards(place: Path, environment: dict[str, str]) -> None:
    assert float(run("shards", place / "practice", environment)) < -20


def test_the_readme_audits_the_practice_case(place: Path, environment: dict[str, str]) -> None:
    blocks = [source for _, source in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))]
    (source,) = (block for block in blocks if "radio_utils.audit" in block)
    first, rest = source.split("\n", 1)
    assert first == "python -m radio_utils.practice practice && cd practice"
    done = subprocess.run(
        ["bash", "-e", "-c", rest], cwd=place / "practice", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("convicted: log10 p = -"), done.stderr[-3000:]


def test_a_failing_audit_in_the_notebook_is_one_sentence(place: Path, environment: dict[str, str]) -> None:
    command = (
        "papermill notebooks/10_audit.ipynb failed.ipynb -k python3 -p suspect practice/guilty "
        "-p watermarked_texts practice/plain.jsonl -p key_file practice/key.txt -p window 1 -p output_dir audit-failed"
    )
    done = subprocess.run(command.split(), cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "do not carry this watermark" in last
    assert "radio_utils/audit/" not in done.stderr  # no walk through our code
