"""Three ways to execute a grid, and what is private about them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.launch.handle import private_folder
from bench.launch.launch import LaunchOptions, workers
from bench.launch.worker import Sweep, work
from bench.records.store import Store
from tests.bench import small


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    grid = small.grid(tmp_path, methods="dense")
    return Sweep(tuple(grid.runs()), grid.evaluation, grid.finetune, tmp_path / "results", None, 1)


def test_inline_work_waits_until_it_is_asked_for(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Sweep] = []
    monkeypatch.setattr("bench.launch.launch.work", done.append)
    with workers(sweep, LaunchOptions()) as handles:
        (handle,) = handles
        assert done == []
        assert handle.wait() == []
    assert done == [sweep]


class Executor:
    """Stands for submitit's: notes what it is told."""

    made: list[Any] = []
    cancelled: list[int] = []

    def __init__(self, folder: Path) -> None:
        assert folder.stat().st_mode & 0o77 == 0  # pickles are private
        Executor.made.append(self)
        self.number = len(Executor.made)
        self.parameters: dict[str, Any] = {}

    def update_parameters(self, **parameters: Any) -> None:
        self.parameters = parameters

    def submit(self, function: Any, *args: Any) -> Any:
        self.call = function, args
        cancel = lambda check: Executor.cancelled.append(self.number)  # noqa: E731
        return SimpleNamespace(done=lambda: self.number == 1, cancel=cancel)


@pytest.fixture
def executors(monkeypatch: pytest.MonkeyPatch) -> list[Executor]:
    monkeypatch.setattr(Executor, "made", [])
    monkeypatch.setattr(Executor, "cancelled", [])
    monkeypatch.setattr("submitit.LocalExecutor", Executor)
    return Executor.made


def test_leaving_early_ends_the_workers(sweep: Sweep, executors: list[Executor]) -> None:
    with pytest.raises(KeyboardInterrupt), workers(sweep, LaunchOptions("local", 3)):
        raise KeyboardInterrupt
    assert [one.call for one in executors] == [(work, (replace(sweep, parent=os.getpid()),))] * 3
    assert Executor.cancelled == [2, 3]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("x\nKilled"), "a worker exited unexpectedly: Killed"),
        (OSError(28, "No space left on device", "a"), "the disk is full: .*: 'a'; make room, then give the command"),
        (RuntimeError("x\nOSError: [Errno 28] No space left on device"), "the disk is full: OSError: .*; make room"),
    ],
)
def test_workers_that_begin_nothing_have_one_successor(
    sweep: Sweep, executors: list[Executor], monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def results() -> None:
        raise error

    ended = SimpleNamespace(done=lambda: True, results=results)
    monkeypatch.setattr(Executor, "submit", lambda self, function, *args: ended)
    with workers(sweep, LaunchOptions("local", 2)) as handles:
        (((run_id, text),),) = [handle.wait() for handle in handles]
    assert re.match(said, text), text
    assert run_id == ""
    assert len(executors) == 3


@pytest.mark.parametrize(
    ("count", "ranks", "gpus", "each"),
    [
        (3, 1, 0, [(), (), ()]),
        (3, 1, 2, [(0,), (1,), (0,)]),
        (2, 2, 4, [(0, 1), (2, 3)]),
    ],
)
def test_gpus_are_shared_out(
    sweep: Sweep, executors: list[Executor], count: int, ranks: int, gpus: int, each: list[tuple[int, ...]]
) -> None:
    with workers(replace(sweep, ranks=ranks), LaunchOptions("local", count, gpus)):
        pass
    assert [tuple(one.parameters["visible_gpus"]) for one in executors] == each
    assert {one.parameters["tasks_per_node"] for one in executors} == {ranks}
    assert [one.parameters["gpus_per_node"] for one in executors] == [len(gpus) for gpus in each]


def test_the_folder_of_pickles_is_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "mine" / ".workers").mkdir(parents=True, mode=0o777)
    assert private_folder(tmp_path / "mine").stat().st_mode & 0o777 == 0o700
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / ".workers").symlink_to(tmp_path / "mine" / ".workers")
    with pytest.raises(PermissionError, match="is not this user's own folder: move it away"):
        private_folder(tmp_path / "theirs")


def readme_plugin() -> str:
    """The example of 'Your own method' in the README, as it stands there."""
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    code = text.split("# every_other.py\n", 1)[1].split("```", 1)[0]
    assert "class EveryOther" in code
    return code


def test_worker_processes_share_a_grid_with_a_plugin(world: small.World, registries: None, monkeypatch: Any) -> None:
    """The whole path with real processes: two workers, and a strategy of the user's own."""
    plugin = world.folder / "every_other.py"
    plugin.write_text(readme_plugin(), encoding="utf-8")
    monkeypatch.setattr("bench.analysis.page.write_report", small.light_report)
    result = world.run(
        *("--launcher", "local", "--workers", "2", "--plugin", str(plugin)),
        *("--methods", "everyother,untrained,fixed[equal_macs=false]", "--labels", "100"),
    )
    assert result.exit_code == 0, result.output
    runs = world.runs()
    assert {name.partition("-s0")[0] for name in runs} == {"everyother", "untrained", "fixed-equal-macs-false"}
    store, threads = Store(world.results), set()
    for folder in runs.values():
        record = store.record(folder.name)
        assert record is not None
        assert record.status == "done"
        threads.add(record.environment["threads"])
        assert list((folder / "evaluations").iterdir())
    assert threads == {1}
    with np.load(runs["everyother-s0"] / "selection.npz") as shown:
        assert (shown["kept"].reshape(-1, 16) == (np.arange(16) % 2 == 0)).all()
    assert len(list((world.results / ".workers").glob("*_result.pkl"))) == 2
    code = store.record(runs["everyother-s0"].name).spec["code"]  # type: ignore[union-attr]
    assert len(code) == 16
    plugin.write_text(readme_plugin() + "# changed\n", encoding="utf-8")
    from methods import STRATEGIES

    del STRATEGIES["everyother"]  # as in a new process
    dry = world.run("--plugin", str(plugin), "--methods", "everyother", "--dry-run")
    assert dry.output.count("to do") == 1, "a changed plug-in makes new runs"


KILLS_ITSELF = """
import os
import signal
from pathlib import Path

from methods import Entry
from methods.strategies.subset import Fixed

MARK = Path({mark!r})


class Deadly(Fixed):
    def choose(self, images, call):
        if call.noise is not None and call.noise.step == 2 and not MARK.exists():
            MARK.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().choose(images, call)


STRATEGIES = {{"deadly": Entry(":Deadly", "kills its process in its first training", "a test")}}
"""


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_worker_that_is_killed_fails_its_run_by_name_and_the_rest_go_on(
    world: small.World, registries: None, monkeypatch: Any, count: str
) -> None:
    """Not even tried again by another worker, which it would kill too; the next command does only that run."""
    plugin = world.folder / "deadly.py"
    plugin.write_text(KILLS_ITSELF.format(mark=str(world.folder / "mark")), encoding="utf-8")
    monkeypatch.setattr("bench.analysis.page.write_report", small.light_report)
    monkeypatch.setattr("bench.grid.plan.cores", lambda: 2)
    options = (
        "--launcher",
        "local",
        "--workers",
        count,
        "--plugin",
        str(plugin),
        "--methods",
        "deadly,dense,fixed,centre",
    )
    result = world.run(*options, "--labels", "100")
    assert result.exit_code == 1
    states = {name: json.loads((path / "record.json").read_text()) for name, path in world.runs().items()}
    assert {name: record["status"] for name, record in states.items()} == {
        "deadly-s0": "failed",
        "dense-s0": "done",
        "fixed-s0": "done",
        "centre-s0": "done",
    }
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Failed: ")]
    assert line.startswith("Failed: simclr-deadly")
    assert states["deadly-s0"]["reason"] in line
    assert not list((world.results / ".progress").iterdir())
    assert "ended without an error message: it was killed, perhaps because memory ran out at batch 16" in line
    stamps = {
        name: (path / "record.json").stat().st_mtime_ns for name, path in world.runs().items() if "deadly" not in name
    }
    again = world.run(*options, "--labels", "100")
    assert again.exit_code == 0, again.output
    assert "4 runs, 3 of them done before." in again.output
    assert stamps == {name: (world.runs()[name] / "record.json").stat().st_mtime_ns for name in stamps}
    assert not list((world.results / ".leases").iterdir())


def test_a_folder_of_pickles_that_is_anothers_is_refused_in_a_sentence(world: small.World) -> None:
    world.results.mkdir()
    (world.folder / "theirs").mkdir()
    (world.results / ".workers").symlink_to(world.folder / "theirs")
    result = world.run("--launcher", "local", "--methods", "dense")
    assert result.exit_code == 1
    assert f"{world.results / '.workers'} is not this user's own folder: move it away" in result.stderr
    assert result.stderr.count("\n") == 1
