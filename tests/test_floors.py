"""The house stands on floors: a room imports from floors below its own, and so there is no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import radio_utils

ROOT = Path(radio_utils.__file__).parent
# From the ground up; rooms of one floor do not know each other. A file that is in no room is a failure: give it one.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("executors", "files", "provenance", "parallel", "processes", "stats", "extras"),
    ("artifacts", "watermarks"),
    ("compat", "engines", "decoding", "evidence", "keys"),
    ("detection", "eprocess", "keyless", "predictions", "presets", "shown", "suspects"),
    ("contrast", "costs", "membership", "optout", "remarking", "commit", "figures"),
    ("soft", "planning"),
    ("reading", "advise"),
    ("counts", "retokenising", "sharding"),
    ("querying",),
    ("world", "audit"),
    ("experiments",),
    ("book", "chapter", "marks", "practice", "strangers", "quality", "stages", "distributed"),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    names = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported(node: ast.AST) -> Iterator[str]:
    """What a module imports at its top or within functions; imports for types only do not count."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imported(child)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_no_arrow_goes_up_or_along_a_floor() -> None:
    wrong = []
    for module, path in modules().items():
        room = room_of(module)
        if not room:  # the package's own front door
            continue
        assert room in LEVEL, f"radio_utils.{room} has no floor; add it to FLOORS"
        for target in imported(ast.parse(path.read_text(encoding="utf-8"))):
            other = room_of(target) if target.startswith("radio_utils.") else room
            if other != room and other in LEVEL and LEVEL[other] >= LEVEL[room]:
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_no_two_modules_import_each_other() -> None:
    """Within a room, too, one can read the modules in an order in which each knows only those before it."""
    known = modules()
    graph = {name: set[str]() for name in known}
    for name, path in known.items():
        for target in imported(ast.parse(path.read_text(encoding="utf-8"))):
            meant = target if target in known else target.rpartition(".")[0]
            graph[name] |= {meant} & (known.keys() - {name})
    TopologicalSorter(graph).prepare()  # raises with the names where there is a circle


def test_private_names_stay_in_their_room() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, path in modules().items()
        for target in imported(ast.parse(path.read_text(encoding="utf-8")))
        if target.startswith("radio_utils.")
        and (name := target.rpartition(".")[2]).startswith("_")
        and not name.startswith("__")
        and target.rpartition(".")[0] != module
    ]
    assert not wrong, "\n".join(wrong)


def test_the_world_is_built_one_way() -> None:
    """Not even for types does a module of the world know one that knows it."""
    known = {name: path for name, path in modules().items() if room_of(name) == "world"}
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                targets = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
                graph[name] |= targets & known.keys()
    flow = list(TopologicalSorter(graph).static_order())  # raises where there is a circle
    stages = [f"radio_utils.world.{name}" for name in ("setting", "origins", "writing", "choosing", "tuning", "world")]
    assert [name for name in flow if name in stages] == stages
