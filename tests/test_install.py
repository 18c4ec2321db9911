"""The wheel in fresh environments: each holds what its extra asks for and nothing else.

No index is asked: an environment gets links to the distributions that the wheel's metadata names, directly or not, as they
are installed here. That tests what the metadata says; that an index serves it is tested weekly by a workflow.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from radio_utils.extras import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS_OF_PROJECT = PROJECT["optional-dependencies"]
CORE = {"numpy", "scipy", "tqdm"}
MODULES = """
import importlib, json, pkgutil
import radio_utils
found = {}
for module in pkgutil.walk_packages(radio_utils.__path__, "radio_utils.", onerror=lambda name: None):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            found[module.name] = str(error)
        else:
            found[module.name] = ""
print(json.dumps(found))
"""


def needed(requirements: list[str], extras: tuple[str, ...] = ()) -> Iterator[Requirement]:
    """Those of the requirements whose markers hold here."""
    for one in map(Requirement, requirements):
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield one


def closure(requirements: list[str]) -> set[str]:
    """The names of all distributions that the requirements bring. Skips where one of them is not installed here."""
    found: dict[str, set[str]] = {}
    waiting = [(canonicalize_name(one.name), set(one.extras)) for one in needed(requirements)]
    while waiting:
        name, extras = waiting.pop()
        if name in found and extras <= found[name]:
            continue
        found[name] = found.get(name, set()) | extras
        if name == "radio-utils":
            requires = PROJECT["dependencies"] + [one for extra in extras for one in EXTRAS_OF_PROJECT[extra]]
        else:
            try:
                requires = importlib.metadata.distribution(name).requires or []
            except importlib.metadata.PackageNotFoundError:
                pytest.skip(f"{name} is not installed here")
        waiting += [(canonicalize_name(one.name), set(one.extras)) for one in needed(requires, tuple(extras))]
    return found.keys() - {"radio-utils"}


def linked(site: Path, distributions: set[str]) -> None:
    """Links in ``site`` to every file and folder of the distributions."""
    for name in distributions:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is built from: building leaves files beside it."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "radio_utils", folder / "radio_utils", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(folder), str(source))
    (found,) = folder.glob("*.whl")
    return found


def pip(python: str | Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def environment(folder: Path, distributions: set[str]) -> Path:
    """The interpreter of a new environment in ``folder`` that holds the distributions."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    linked(site, distributions)
    return folder / "bin" / "python"


def installed(wheel: Path, folder: Path, extra: str = "") -> Path:
    """The interpreter of a new environment with the wheel and what it asks for."""
    asked = f"[{extra}]" if extra else ""
    python = environment(folder, closure([f"radio-utils{asked}"]))
    pip(python, "install", "--no-index", f"{wheel}{asked}")  # fails where a requirement is not met
    return python


def run(python: Path, source: str, *, folder: Path | None = None) -> str:
    # -I: neither this folder nor PYTHONPATH is where the package comes from
    done = subprocess.run([python, "-I", "-c", source], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lacking(python: Path) -> dict[str, str]:
    """The modules that cannot be imported, and the extra that each names; every one of them must."""
    failed = {name: message for name, message in json.loads(run(python, MODULES)).items() if message}
    extras = {}
    for name, message in failed.items():
        match = re.fullmatch(r"radio_utils[\w.]* needs (\w+): pip install 'radio-utils\[(\w+)\]'", message)
        assert match, f"{name} says {message!r}"
        assert EXTRAS[match[1]] == match[2]
        extras[name] = match[2]
    return extras


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(wheel, tmp_path_factory.mktemp("core"))


def test_the_core_brings_three_packages_and_detects(core: Path) -> None:
    (site,) = core.parent.parent.glob("lib/python*/site-packages")
    assert {path.name.split("-")[0] for path in site.glob("*.dist-info")} == {*CORE, "radio_utils"}
    assert (site / "radio_utils" / "py.typed").is_file()
    said = run(
        core,
        """
import numpy as np, sys
from scipy import stats
import radio_utils as ru
wm = ru.GreenList(key="alice", vocab_size=1000, window=1, gamma=0.25, delta=3.0)
texts = list(np.random.default_rng(0).integers(0, 1000, (20, 100)))
found = ru.detect(texts, wm)
assert abs(found.log10_p - np.log10(stats.binom.sf(found.total - 1, found.scored, 0.25))) < 1e-9
assert ru.null_audit(texts, wm, keys=50).keys == 50
assert ru.planning.pairs_needed(wm, effect=0.01, log10_p=-5, power=0.9).scored > 1000
assert ru.which_key(texts, [wm, wm.with_key("bob")]).found(1e-6) == []
assert ru.GumbelMax(key=1, vocab_size=50, window=2) and ru.EProcess and "torch" not in sys.modules
print("detected")
""",
    )
    assert said == "detected\n"


def test_what_the_core_lacks_is_named(core: Path) -> None:
    extras = lacking(core)
    light = {"detection", "eprocess", "planning", "compat", "evidence", "sharding", "contrast", "membership", "commit"}
    assert not {f"radio_utils.{name}" for name in light} & extras.keys()
    assert extras["radio_utils.reading"] == "models" and extras["radio_utils.suspects"] == "models"
    said = run(
        core,
        """
import radio_utils as ru
for name in ("read_open_model", "query_closed_model", "audit_suspect"):
    try:
        getattr(ru, name)
    except ModuleNotFoundError as error:
        print(error)
import importlib.util
assert importlib.util.find_spec("torch") is None
try:
    import torch
except ModuleNotFoundError as error:
    assert str(error) == "No module named 'torch'"  # imports of others are left alone
""",
    )
    assert len(said.splitlines()) == 3 and said.count("pip install 'radio-utils[models]'") == 3


def test_the_core_audits_from_a_shell_with_one_sentence(core: Path) -> None:
    done = subprocess.run([core, "-I", "-m", "radio_utils.audit"], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0 and last.endswith("needs torch: pip install 'radio-utils[models]'")


def test_models(wheel: Path, tmp_path: Path) -> None:
    python = installed(wheel, tmp_path, "models")
    said = run(
        python,
        """
import torch, transformers
import radio_utils as ru
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    bos_token_id=None, eos_token_id=None, pad_token_id=0,
)
model = transformers.LlamaForCausalLM(config).eval()
wm = ru.GreenList(key="alice", vocab_size=64, window=1, gamma=0.25, delta=8.0)
texts = model.generate(
    torch.arange(1, 9)[:, None], max_new_tokens=60, do_sample=True, logits_processor=[wm.logits_processor()]
)
print(ru.detect(texts.tolist(), wm).log10_p, ru.read_open_model(model, texts.tolist(), wm).log10_p)
try:
    import radio_utils.figures
except ModuleNotFoundError as error:
    print(error)
""",
    )
    numbers, error = said.splitlines()
    assert float(numbers.split()[0]) < -10 and float(numbers.split()[1]) <= 0
    assert re.fullmatch(r"radio_utils\.figures\.\w+ needs \w+: pip install 'radio-utils\[audit\]'", error)


def test_audit(wheel: Path, tmp_path: Path) -> None:
    python = installed(wheel, tmp_path, "audit")
    said = run(
        python,
        """
import radio_utils.audit.auditing, radio_utils.practice
try:
    import radio_utils.book.check
except ModuleNotFoundError as error:
    print(error)
from radio_utils.audit.__main__ import main
main(["--help"])
""",
    )
    assert said.startswith("radio_utils.book.project needs nbformat: pip install 'radio-utils[book]'")
    assert "--watermarked-texts" in said


def test_book(wheel: Path, tmp_path: Path) -> None:
    python = installed(wheel, tmp_path, "book")
    assert lacking(python) == {}


def test_the_setup_cell_on_a_machine_like_colab(source: Path, tmp_path: Path) -> None:
    """Its line of pip as written: the repository is a local one, torch and numpy are there before and stay."""
    git = ["git", "-C", str(source), "-c", "user.name=x", "-c", "user.email=x@y"]
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "x"]):
        subprocess.run([*git, *arguments], check=True)
    there = closure(["radio-utils[chapters]", "pip", "setuptools", "wheel"])
    python = environment(tmp_path / "colab", there)
    notebook = nbformat.read(ROOT / "notebooks" / "01_watermarking.ipynb", as_version=4)
    (cell,) = (cell.source for cell in notebook.cells if "setup" in cell.metadata.get("tags", []))
    address = re.search(r'^REPOSITORY = "(.*)"$', cell, re.M)
    assert address
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{source.as_uri()}.insteadOf", "GIT_CONFIG_VALUE_0": address[1],
        "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }  # fmt: skip
    script = tmp_path / "cell.py"  # away from the checkout, whose radio_utils must not be found
    seen = "import importlib.metadata as m; print([m.version(n) for n in ('torch', 'numpy')])\n"
    script.write_text(f"{seen}{cell}\n{seen}from radio_utils import chapter, detect; print(chapter.__file__)\n")
    done = subprocess.run([python, script], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, device, after, where = done.stdout.splitlines()
    assert before == after and device.startswith("device: ") and where.startswith(str(tmp_path / "colab"))


def imported() -> dict[str, set[str]]:
    """What the package's modules import of others, by the first part of its name."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "radio_utils").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top not in {"radio_utils", "__future__"}:
                    found.setdefault(top, set()).add(path.name)
    return found


def test_every_import_belongs_to_the_core_or_to_an_extra() -> None:
    unknown = {name: places for name, places in imported().items() if name not in CORE | EXTRAS.keys()}
    assert unknown == {}, "name the extra of pyproject.toml that brings it in radio_utils/extras.py"


def test_extras_hold_what_they_are_said_to_bring() -> None:
    assert {Requirement(one).name for one in PROJECT["dependencies"]} == CORE
    distributions = importlib.metadata.packages_distributions()
    for module, extra in EXTRAS.items():
        if module in distributions:
            brought = closure([f"radio-utils[{extra}]"])
            assert {canonicalize_name(name) for name in distributions[module]} & brought, (module, extra)


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    pins = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(encoding="utf-8")))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    unpinned = {"bitsandbytes"}  # a GPU's
    for requirements in (PROJECT["dependencies"], *EXTRAS_OF_PROJECT.values()):
        for one in map(Requirement, requirements):
            name = canonicalize_name(one.name)
            if name not in unpinned | {"radio-utils"}:
                assert name in pinned and one.specifier.contains(pinned[name]), f"requirements.txt must pin {one}"


def test_messages_name_extras_that_exist() -> None:
    for path in sorted((ROOT / "radio_utils").rglob("*.py")):
        for extra in re.findall(r"pip install '(?:radio-utils|\.)\[(\w+)\]'", path.read_text(encoding="utf-8")):
            assert extra in EXTRAS_OF_PROJECT, (path.name, extra)
