"""The corpus: what is read, what is left out, the two halves, and that nothing is imported."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from radio_utils.world import corpus
from radio_utils.world.corpus import Document, EmptyCorpusError

PROSE = "It does what its name says, and it says so in a sentence that is long enough to be kept."
MODULE = f'''"""The module greets the reader with a sentence that is long enough to become a document."""
raise RuntimeError("this file must never be imported")

def add(a, b):
    r"""Add two numbers and return their sum, which is a number too, as one would expect. \\d

    Parameters
    ----------
    a : int, optional
        The first number of the two that are added to each other here.
    b, c : `numpy.ndarray`
        The second number of the two, in ``double`` quotes and **bold** :class:`~x.Y` letters.
    short : int
        Too short.

    Returns
    -------
    total : float
        The sum of the two numbers that were given to this function.

    Examples
    --------
    >>> add(1, 2)
    """

class Box:
    """{PROSE}"""

    def open(self):
        """Open the box; {PROSE}"""

    def _hidden(self):
        """A private method whose docstring, though long enough, is nobody's business at all."""

def copied():
    """{PROSE}"""
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    importlib.invalidate_caches()


def package(folder: Path, name: str, files: dict[str, str]) -> Path:
    root = folder / name
    for path, text in {"__init__.py": "", **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    importlib.invalidate_caches()
    return root


def test_documents_of_a_small_package(folder: Path) -> None:
    package(folder, "pack_a", {"deep/mod.py": MODULE})
    found = {d.topic + " | " + d.instruction: d.answer for d in corpus.read_corpus(["pack_a"])}
    assert found == {
        "pack_a.deep.mod | What is deep.mod?": (
            "The module greets the reader with a sentence that is long enough to become a document."
        ),
        "pack_a.deep.mod.add | What is mod.add?": (
            r"Add two numbers and return their sum, which is a number too, as one would expect. \d"
        ),
        "pack_a.deep.mod.add | What is the parameter a of mod.add?": (
            "a is int, optional. The first number of the two that are added to each other here."
        ),
        "pack_a.deep.mod.add | What is the parameter b of mod.add?": (
            "b is numpy.ndarray. The second number of the two, in double quotes and bold x.Y letters."
        ),
        "pack_a.deep.mod.add | What does mod.add return?": (
            "It returns total, float. The sum of the two numbers that were given to this function."
        ),
        "pack_a.deep.mod.Box.open | What is Box.open?": f"Open the box; {PROSE}",
        next(k for k in found if found[k] == PROSE): PROSE,  # said twice, kept once
    }
    assert "pack_a" not in sys.modules
    assert "pack_a.deep.mod" not in sys.modules


def test_nothing_is_imported() -> None:
    code = (
        "import sys\nfrom radio_utils.world import corpus\nbefore = set(sys.modules)\n"
        "assert len(corpus.read_corpus(['networkx'])) > 100\n"
        "new = {n.split('.')[0] for n in set(sys.modules) - before}\nassert 'networkx' not in new, new\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_halves_are_disjoint_and_about_equal() -> None:
    documents = corpus.read_corpus(["numpy"])
    halves = [[d for d in documents if corpus.half(d.topic) == which] for which in (0, 1)]
    assert len(halves[0]) + len(halves[1]) == len(documents)
    assert not {d.topic for d in halves[0]} & {d.topic for d in halves[1]}
    assert not {d.answer for d in halves[0]} & {d.answer for d in halves[1]}
    assert len(halves[0]) / len(documents) == pytest.approx(0.5, abs=0.05)
    assert len(documents) > 1000


def test_halves_are_fixed_for_ever() -> None:
    assert [corpus.half(topic) for topic in ("numpy", "numpy.add", "scipy.fft", "a", "b", "c")] == [1, 0, 0, 0, 0, 0]


def test_order_is_fixed_and_documents_are_distinct_plain_text() -> None:
    first, second = corpus.read_corpus(["networkx"]), corpus.read_corpus(["networkx"])
    assert first == second
    assert len({d.answer for d in first}) == len(first)
    for d in first:
        assert d.answer.isascii()
        assert "\n" not in d.answer
        assert "``" not in d.answer
        assert 20 < len(d.answer) <= 700
        assert d.topic.startswith("networkx")


def test_tests_and_vendored_code_are_left_out(folder: Path) -> None:
    text = f'"""{PROSE} In {{}}."""'
    places = ["tests/a.py", "_vendor/b.py", "sub/test_c.py", "testing.py", "sub/d.py"]
    package(folder, "pack_b", {place: text.format(place) for place in places})
    assert [d.topic for d in corpus.read_corpus(["pack_b"])] == ["pack_b.sub.d"]


def test_a_package_that_is_one_file_does_not_bring_its_neighbours(folder: Path) -> None:
    (folder / "single_file.py").write_text(f'"""{PROSE}"""\n')
    (folder / "neighbour.py").write_text(
        '"""A neighbour in the same folder, which has nothing to do with the other one."""\n'
    )
    importlib.invalidate_caches()
    assert [d.topic for d in corpus.read_corpus(["single_file"])] == ["single_file"]


def test_files_that_do_not_parse_are_passed_over(folder: Path) -> None:
    package(folder, "pack_c", {"bad.py": "def (:\n", "good.py": f'"""{PROSE}"""\n', "nul.py": "x = '\0'"})
    (folder / "pack_c" / "latin.py").write_bytes(b'"""Caf\xe9 ' + PROSE.encode() + b'"""\n')
    (folder / "pack_c" / "folder.py").mkdir()
    (folder / "pack_c" / "gone.py").symlink_to(folder / "nowhere")
    assert {d.topic for d in corpus.read_corpus(["pack_c"])} == {"pack_c.good", "pack_c.latin"}


def test_old_escapes_do_not_drop_a_module_when_warnings_are_errors() -> None:
    source = 'x = "\\d"\ndef f():\n    """' + PROSE + '"""\n'
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [name for name, _ in corpus.docstrings("m", source)] == ["m.f"]


@pytest.mark.parametrize("files", [{}, {"a.py": "x = 1\n"}, {"a.py": '"""Short."""\n'}])
def test_no_docstring_is_an_empty_corpus(folder: Path, files: dict[str, str]) -> None:
    name = f"pack_empty{len(files)}{len(''.join(files.values()))}"
    package(folder, name, files)
    with pytest.raises(EmptyCorpusError, match=rf"corpus\.packages=\['{name}'\] holds no docstring to learn from"):
        corpus.read_corpus([name])
    with pytest.raises(EmptyCorpusError):
        corpus.read_corpus([])


@pytest.mark.parametrize("name", ["no_such_package_here", "sys"])
def test_unknown_package_is_named(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"corpus.packages names '{name}', which is not installed"):
        corpus.read_corpus([name])


def test_standard_library_is_read_without_its_tests() -> None:
    files = list(corpus.source_files(["stdlib"]))
    modules = {module for module, _ in files}
    assert {"argparse", "json", "json.decoder", "xml.etree.ElementTree"} <= modules
    assert not any("site-packages" in path.parts or "test" in path.parts for _, path in files)
    assert len(modules) == len(files)


def test_long_answers_end_with_a_sentence() -> None:
    text = " ".join(f"This is sentence number {i} of a long docstring." for i in range(40))
    (document,) = corpus.documents("a.b.c", text)
    assert document == Document("a.b.c", "What is b.c?", document.answer)
    assert 300 < len(document.answer) <= 420
    assert document.answer.endswith(".")
    assert text.startswith(document.answer)


def test_versions_of_packages(folder: Path) -> None:
    import numpy
    import yaml

    package(folder, "pack_d", {})
    versions = corpus.package_versions(["stdlib", "numpy", "yaml", "pack_d"])
    assert versions["numpy"] == numpy.__version__
    assert versions["yaml"] == yaml.__version__  # distributed under another name
    assert versions["stdlib"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["pack_d"] == "unversioned"
