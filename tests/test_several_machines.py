"""Two hosts: network namespaces of this machine, joined by a cable, each with a Ray of its own in one cluster.

Reading, contrastive reading, answering and detection are shared out between them, and the second host is lost while it has
a shard in hand. It takes up to two minutes and needs root, so it runs where asked for: ``RADIO_UTILS_TWO_HOSTS=1``.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_sharding import PROMPTS, TEXTS, WM, saved, write

from radio_utils.sharding import answer_shards, detect_shards, read_shards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("RADIO_UTILS_TWO_HOSTS"),
        reason="set RADIO_UTILS_TWO_HOSTS=1: it makes network namespaces, as root",
    ),
]

STEPS = ["read", "answer", "contrast", "detect"]
FIRST, SECOND = "10.231.7.1", "10.231.7.2"
PORT = 6379
# Run on the first host
DRIVER = """
import json, logging, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import ray
from test_several_machines import STEPS, found

logging.basicConfig(level="WARNING", format="%(message)s")
ray.init(address=sys.argv[2], log_to_driver=False, logging_level="ERROR")
folder, results = Path(sys.argv[3]), sys.argv[4]
steps = {step: found(step, folder, results, backend="ray", workers=2) for step in STEPS}
(folder / f"{results}.json").write_text(json.dumps(steps))  # Ray itself prints, too
"""


def found(step: str, folder: Path, results: str, **how: Any) -> str:
    """What a step finds in the folder's texts, as text."""
    files, bob, kept = sorted((folder / "files").iterdir()), folder / "bob", folder / results
    if step == "detect":
        return repr(detect_shards(files, WM, kept, **how))
    if step == "answer":
        return json.dumps([path.read_text() for path in answer_shards(bob, files, kept, max_new_tokens=8, **how)])
    reference = folder / "base" if step == "contrast" else None
    return repr(read_shards(bob, files, WM, kept, reference=reference, **how))


class Host:
    """A network namespace and all that runs in it."""

    def __init__(self, name: str, address: str, session: Path, environment: dict[str, str]) -> None:
        self.name, self.address, self.session, self.environment = name, address, session, environment

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, sys.executable, *words]

    def start(self) -> None:
        """Ray's own processes. Ray gives them 30 s, which a busy machine may not."""
        role = [f"--address={FIRST}:{PORT}"]
        if self.address == FIRST:
            role = ["--head", f"--port={PORT}", f"--temp-dir={self.session}", "--include-dashboard=false"]
        command = self.command(
            "-m", "ray.scripts.scripts", "start", *role, f"--node-ip-address={self.address}",
            "--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats",
        )  # fmt: skip
        for _ in range(3):
            with tempfile.TemporaryFile("w+") as log:  # a pipe would stay open as long as they run
                if subprocess.run(command, env=self.environment, stdout=log, stderr=log, check=False).returncode == 0:
                    return
                log.seek(0)
                said = log.read()
            assert "timed out" in said.lower(), said
            self.lose()
        pytest.skip("Ray did not start within its own 30 s, three times; ask for this test on a machine that is less busy")

    def processes(self) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in listed.stdout.split()]

    def works(self) -> bool:
        """Whether one of its processes has a shard in hand: Ray names it so."""
        for pid in self.processes():
            try:
                if b"_on_ray" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return True
            except OSError:  # it ended just now
                continue
        return False

    def lose(self) -> None:
        """All that runs there is gone at once."""
        while left := self.processes():
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts with a cable between them, and a cluster of both."""
    pytest.importorskip("ray")
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("no network namespaces here")
    session = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets lie there, whose names must be short
    # Ray would take a token that lies in the home folder for the first host, and none for the second
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**os.environ, **token, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    names = [f"rw{os.getpid()}{end}" for end in "ab"]
    pair = [Host(*one, session, environment) for one in zip(names, (FIRST, SECOND), strict=True)]
    try:
        try:
            for name in names:
                ip(f"netns add {name}")
            ip(f"link add {names[0]} netns {names[0]} type veth peer name {names[1]} netns {names[1]}")
            for host in pair:
                ip(f"-n {host.name} addr add {host.address}/24 dev {host.name}")
                ip(f"-n {host.name} link set {host.name} up")
                ip(f"-n {host.name} link set lo up")
            subprocess.run(pair[0].command("-c", ""), check=True, capture_output=True)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces may not be made here: {error.stderr.decode().strip()}")
        for host in pair:
            host.start()
        yield pair[0], pair[1]
    finally:
        for host in pair:
            if Path(f"/run/netns/{host.name}").exists():
                host.lose()
                ip(f"netns del {host.name}")
        shutil.rmtree(session, ignore_errors=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")  # both hosts see it, as a disk that they share
    (folder / "files").mkdir()
    for i in range(4):
        write(folder / "files" / f"{i}.jsonl", TEXTS[i::4], PROMPTS[i::4])
    for seed, name in enumerate(["bob", "base"]):
        saved(folder / name, seed)
    return folder


def test_two_hosts_find_what_one_process_finds_and_one_may_be_lost(hosts: tuple[Host, Host], folder: Path) -> None:
    first, second = hosts
    alone = {step: found(step, folder, "alone") for step in STEPS}
    for results in ("both", "lost"):
        words = ["-c", DRIVER, str(Path(__file__).parent), f"{FIRST}:{PORT}", str(folder), results]
        run = subprocess.Popen(first.command(*words), env=first.environment, stderr=subprocess.PIPE, text=True)
        while not second.works():
            assert run.poll() is None, run.communicate()
            time.sleep(0.01)
        if results == "lost":
            second.lose()
        _, err = run.communicate()
        assert run.returncode == 0, err
        assert ("its Ray worker is lost" in err and "it is done again" in err) == (results == "lost"), err
        assert json.loads((folder / f"{results}.json").read_text()) == alone
