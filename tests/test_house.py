"""The house rules: which part of the project may import which, and which may name methods."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from methods import BASELINES, OBJECTIVES, STRATEGIES

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"messages", "statistics", "analysis.outputs"},
    {"specs"},
    {"records"},
    {"training", "analysis.read"},
    {"evaluation", "measure", "analysis.judge"},
    {"experiment", "analysis.show"},
    {"launch", "analysis.page", "verification"},
    {"grid"},
    {"run", "report", "cost", "verify", "tune", "list"},
]
"""The rooms of bench/ from the ground up: a room imports its own modules and those of lower floors."""
NEIGHBOURS = {"methods": {"methods"}, "datasets": {"datasets"}, "bench": {"bench", "methods", "datasets"}}
APART = {"analysis": {"training", "evaluation", "measure"}}
"""What none of a folder's rooms may import, although it lies lower: a report never trains and never measures."""
Imports = dict[str, set[str]]


def imports_of(root: Path) -> Imports:
    """The project's modules, each with those that it imports anywhere in its file, also inside functions."""
    sources = {_name(path.relative_to(root)): path for top in NEIGHBOURS for path in sorted((root / top).rglob("*.py"))}
    return {name: set(_imported(ast.parse(path.read_bytes()), sources)) for name, path in sources.items()}


def _name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _imported(tree: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield from (module for module in (inside if inside in known else node.module,) if module in known)


def room_of(module: str) -> str:
    """The room of a module of bench/: `bench.analysis.read.frames` is in `analysis.read`."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[0] == "analysis" else parts[:1])


def violations(imports: Imports) -> list[str]:
    """Imports that the rules forbid, and modules without a room."""
    floor_of = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
    found = []
    for module, imported in imports.items():
        top = module.partition(".")[0]
        found += [f"{module} imports {one}" for one in imported if one.partition(".")[0] not in NEIGHBOURS[top]]
        if top != "bench" or module in ("bench", "bench.analysis"):
            continue
        room = room_of(module)
        if room not in floor_of:
            found.append(f"{module} has no room: give '{room}' a floor in tests/test_house.py")
            continue
        for other in (room_of(one) for one in imported if one.startswith("bench.") and one != "bench.analysis"):
            if other != room and floor_of.get(other, len(FLOORS)) >= floor_of[room]:
                found.append(f"{module} imports {other}, which is not on a lower floor")
            elif other in APART.get(room.partition(".")[0], set()):
                found.append(f"{module} imports {other}, and {room} must not")
    return found


@pytest.fixture(scope="module")
def imports() -> Imports:
    return imports_of(ROOT)


def test_each_part_imports_only_what_lies_below_it(imports: Imports) -> None:
    assert len(imports) > 100
    assert violations(imports) == []


def test_no_modules_of_bench_import_each_other_in_a_circle(imports: Imports) -> None:
    inside = {module: imported for module, imported in imports.items() if module.startswith("bench")}
    try:
        tuple(TopologicalSorter(inside).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_analysis_can_neither_train_nor_measure(imports: Imports) -> None:
    reached, waiting = set(), ["bench.report"]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += imports[module]
    assert "bench.analysis.page" in reached
    assert {
        room_of(module) for module in reached if module.startswith("bench.") and module != "bench.analysis"
    }.isdisjoint({"training", "evaluation", "measure", "experiment", "launch", "grid"})


def test_the_launching_side_starts_without_torch() -> None:
    code = "import sys, bench.grid.plan, bench.launch.worker, bench.launch.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


@pytest.mark.parametrize(
    ("file", "code", "said"),
    [
        ("bench/records/store.py", "def f():\n    from bench.training import ranks", "not on a lower floor"),
        ("bench/analysis/show/page.py", "import bench.measure", "analysis.show must not"),
        ("bench/launch/slurm.py", "from bench.verification import stages", "not on a lower floor"),
        ("bench/attic/old.py", "", "'attic' a floor"),
        ("bench/helpers.py", "", "'helpers' a floor"),
        ("methods/dense.py", "import datasets", "methods.dense imports datasets"),
        ("datasets/nih.py", "from bench import records", "datasets.nih imports bench"),
    ],
)
def test_a_broken_rule_is_found(tmp_path: Path, file: str, code: str, said: str) -> None:
    for name in ("training/ranks", "measure/__init__", "records/__init__", "verification/stages", "__init__"):
        (tmp_path / "bench" / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bench" / f"{name}.py").write_text("")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/__init__.py").write_text("")
    assert violations(imports_of(tmp_path)) == []
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(code)
    (found,) = violations(imports_of(tmp_path))
    assert said in found


MAY_NAME_METHODS = {
    "bench.measure.formula": "MACs by formula are optional, and independent of the code of the strategies",
    "bench.analysis.judge": "a claim names the methods that it compares",
    "bench.analysis.show.difference_tables": "shows the differences that claims are about",
}
"""Where bench/ may name a strategy, an objective or a baseline; all else takes names from the registry."""


def names_of_methods(tree: ast.AST) -> set[str]:
    """Strategies, objectives and baselines that a module names in a text of its own: alone, as a method
    (`simclr/dense[...]`), or in a comma list of such."""
    known, found = STRATEGIES.keys() | OBJECTIVES.keys() | BASELINES.keys(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for item in node.value.split(","):
                parts = set(item.split("[")[0].strip().split("/")) - {""}
                found |= parts if parts <= known else set()
    return found


def test_bench_takes_methods_from_the_registry(imports: Imports) -> None:
    classes = {entry.target.split(":")[0] for entry in (STRATEGIES | OBJECTIVES).values()}
    found, needed = {}, set()
    for module in (one for one in imports if one.startswith("bench")):
        path = ROOT / module.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if named := names_of_methods(ast.parse(path.read_bytes())) | (imports[module] & classes):
            rooms = [room for room in MAY_NAME_METHODS if f"{module}.".startswith(f"{room}.")]
            needed.update(rooms)
            found |= {} if rooms else {module: named}
    assert found == {}
    assert needed == MAY_NAME_METHODS.keys(), "this permission is no longer needed"


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ('arm.strategy == "tome"', {"tome"}),
        ('("untrained", "other")', {"untrained"}),
        ('parse("simclr/fixed[keep=0.3], moco/other, topk")', {"simclr", "fixed", "topk"}),
        ('f"{objective}/dense"', {"dense"}),
        ('f"moco/{strategy}"', {"moco"}),
        ('"dense time / method time"', set()),
        ('"linear/other"', set()),
        ("random.choice(centre)", set()),
    ],
)
def test_a_named_method_is_found(code: str, named: set[str]) -> None:
    assert names_of_methods(ast.parse(code)) == named
