"""Watching a grid: what is said when a run ends, how long is left, when the provisional report is due."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.grid import watch as module
from bench.grid.watch import Watch
from bench.launch.progress_file import ProgressFile
from bench.launch.worker import Sweep
from bench.records.record import Learning, Timing
from bench.records.store import Store, wanted_evaluations
from bench.specs.run_spec import RunSpec
from tests.bench import small


class Grid:
    """Four runs, two methods with two seeds, which a test ends by hand; a clock that a test sets."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        grid = small.grid(folder, **{"methods": "dense,fixed", "seeds": [0, 1], **changes})
        self.sweep = Sweep(tuple(grid.runs()), grid.evaluation, grid.finetune, folder / "results", None, 1)
        self.store = Store(self.sweep.results)
        self.out = io.StringIO()
        self.calls = 0
        self.now = 1000.0

    def watch(self) -> Watch:
        console = Console(file=self.out, force_terminal=False, width=200)
        return Watch(self.sweep, console, self.call)

    def call(self) -> None:
        self.calls += 1

    def train(self, run: RunSpec, **changes: Any) -> None:
        self.store.write_record(small.record(run.run_id, **changes))

    def end(self, run: RunSpec, **changes: Any) -> None:
        self.train(run, **changes)
        for key in wanted_evaluations(run, self.sweep.evaluation):
            settings = self.sweep.evaluation.settings_of(key.probe, self.sweep.finetune)
            done = small.evaluation(run.run_id, settings, key.probe, key.labels)
            self.store.write_evaluation(key.name, done, {})

    def said(self) -> list[str]:
        lines = self.out.getvalue().splitlines()
        self.out.seek(0)
        self.out.truncate()
        return lines


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grid:
    made = Grid(tmp_path)
    monkeypatch.setattr(module.time, "monotonic", lambda: made.now)
    return made


def learnt(verdict: str) -> Learning:
    return Learning(final_loss=1, plateau_loss=2, feature_std=1, rankme=2, verdict=verdict, selection={})


def test_a_line_for_every_run_that_ends(grid: Grid) -> None:
    watch, runs = grid.watch(), grid.sweep.runs
    watch._look()
    assert grid.said() == []
    grid.now += 60
    grid.end(runs[0], time=Timing(steps=4, steps_per_second=2, wall_seconds=41.6), learning=learnt("learned"))
    watch._look()
    assert grid.said() == ["[1/4] simclr/dense, seed 0: done in 42 s (3 left, about 3 min)"]
    watch._look()
    assert grid.said() == []  # once
    grid.end(runs[1], learning=learnt("plateaued"))
    watch._look()
    assert grid.said() == ["[2/4] simclr/fixed, seed 0: done, PLATEAUED (2 left, about 60 s)"]
    grid.train(runs[2], status="failed", reason="the loss became nan [at step 3]")
    watch._look()
    assert grid.said() == ["[3/4] simclr/dense, seed 1: FAILED: the loss became nan [at step 3]"]
    assert watch.failed == {runs[2].run_id: "the loss became nan [at step 3]"}
    grid.end(runs[3])
    watch._look()
    assert grid.said() == ["[4/4] simclr/fixed, seed 1: done (nothing left)"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(20, "about 60 s"), (29, "about 87 s"), (40, "about 2 min"), (600, "about 30 min")]
)
def test_what_is_left_takes_as_long_as_what_was_done(grid: Grid, seconds: float, said: str) -> None:
    watch = grid.watch()
    grid.now += seconds
    grid.end(grid.sweep.runs[0])
    watch._look()
    assert grid.said()[0].endswith(f"(3 left, {said})")


def test_what_was_done_before_counts_as_done_and_not_for_the_time(grid: Grid) -> None:
    grid.end(grid.sweep.runs[0])
    watch = grid.watch()
    grid.now += 10
    grid.end(grid.sweep.runs[1])
    watch._look()
    assert grid.said() == ["[2/4] simclr/fixed, seed 0: done (2 left, about 20 s)"]


def test_a_run_without_its_evaluations_has_not_ended(grid: Grid) -> None:
    watch = grid.watch()
    grid.train(grid.sweep.runs[0])
    watch._look()
    assert grid.said() == []
    grid.end(grid.sweep.runs[0])
    watch._look()
    assert len(grid.said()) == 1


def test_an_earlier_failure_is_not_taken_for_a_new_one(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    run = grid.sweep.runs[0]
    grid.train(run, status="failed", reason="last week")
    watch = grid.watch()
    watch._look()
    assert grid.said() == []
    grid.train(run, status="failed", reason="again")
    stamp = watch._past[run.run_id]
    monkeypatch.setattr(Watch, "_stamp", lambda self, run_id: stamp + 1 if run_id == run.run_id else 0.0)
    ProgressFile(grid.sweep.results, run.run_id)({"doing": "something"})
    watch._look()
    assert grid.said() == []  # it is at work
    ProgressFile(grid.sweep.results, run.run_id).remove()
    watch._look()
    assert grid.said() == ["[1/4] simclr/dense, seed 0: FAILED: again"]


def test_the_provisional_report_is_due_once_after_the_first_seed(grid: Grid) -> None:
    watch, runs = grid.watch(), grid.sweep.runs
    calls = []
    for run in (runs[0], runs[2], runs[1], runs[3]):  # the second seed may begin before the first is whole
        grid.end(run)
        watch._look()
        watch._look()
        calls.append(grid.calls)
    assert calls == [0, 0, 1, 1]


def test_a_failed_run_does_not_hold_the_provisional_report_up(grid: Grid) -> None:
    watch, runs = grid.watch(), grid.sweep.runs
    grid.end(runs[0])
    grid.train(runs[1], status="failed", reason="no")
    watch._look()
    assert grid.calls == 1


def test_there_is_no_provisional_report_when_all_is_done(grid: Grid, tmp_path: Path) -> None:
    watch = grid.watch()
    for run in grid.sweep.runs:
        grid.end(run)
    watch._look()
    assert (len(grid.said()), grid.calls) == (4, 0)
    (tmp_path / "one").mkdir()
    single = Grid(tmp_path / "one", seeds=[0])
    watch = single.watch()
    for run in single.sweep.runs:
        single.end(run)
        watch._look()
    assert single.calls == 0


def test_nor_when_the_first_seed_was_done_before(grid: Grid) -> None:
    for run in grid.sweep.runs[:2]:
        grid.end(run)
    watch = grid.watch()
    watch._look()
    assert grid.calls == 0


def test_plain_lines_on_what_is_at_work_now_and_then(grid: Grid) -> None:
    watch, run = grid.watch(), grid.sweep.runs[0]
    report = ProgressFile(grid.sweep.results, run.run_id)
    report({"step": 10, "steps": 40, "loss": 3.14159, "keep": 0.75, "images_per_second": 99.6})
    ProgressFile(grid.sweep.results, "a-run-of-another-grid")({"doing": "x"})
    watch._plain_progress()
    assert grid.said() == []
    grid.now += module.PLAIN_EVERY
    watch._plain_progress()
    assert grid.said() == ["    simclr/dense, seed 0: step 10/40, loss 3.142, keep 0.75, 100 images/s"]
    watch._plain_progress()
    assert grid.said() == []
    report({"doing": "linear at 10 %", "step": 1, "steps": 3})
    grid.now += module.PLAIN_EVERY
    watch._plain_progress()
    assert grid.said() == ["    simclr/dense, seed 0: linear at 10 %"]


def test_supervised_runs_say_their_fraction(tmp_path: Path) -> None:
    grid = Grid(tmp_path, methods="supervised", seeds=[0])
    watch = grid.watch()
    grid.end(grid.sweep.runs[0])
    watch._look()
    assert grid.said()[0].startswith("[1/2] supervised at 50 %, seed 0: done")


def test_it_watches_from_a_thread_and_says_all_before_it_leaves(grid: Grid) -> None:
    with grid.watch():
        for run in grid.sweep.runs:
            grid.end(run)
    assert len(grid.said()) == 4


def test_a_live_table_on_a_terminal(grid: Grid) -> None:
    out = io.StringIO()
    watch = Watch(grid.sweep, Console(file=out, force_terminal=True, width=160))
    grid.end(grid.sweep.runs[0])
    ProgressFile(grid.sweep.results, grid.sweep.runs[1].run_id)(
        {"step": 10, "steps": 40, "loss": 3.14159, "keep": 0.75, "images_per_second": 99.6}
    )
    watch._look()
    console = Console(file=io.StringIO(), width=160)
    console.print(watch._table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 done (0 failed), 1 running, 3 left" in text
    assert re.search(r"simclr/fixed, seed 0\W+10/40\W+3\.142\W+0\.75\W+100", text)
    assert "\x1b" in out.getvalue() or "[1/4]" in out.getvalue()


def test_what_is_at_work_is_written_twice_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("bench.launch.worker.time.monotonic", lambda: now[0])
    report = ProgressFile(tmp_path, "run")
    for step in range(6):
        report({"step": step})
        now[0] += 0.25
    assert ProgressFile.read_all(tmp_path) == {"run": {"step": 4}}
    report({"doing": "diagnosing"})
    assert ProgressFile.read_all(tmp_path) == {"run": {"doing": "diagnosing"}}
    (tmp_path / ".progress" / "half.json").write_text('{"step": ')
    assert list(ProgressFile.read_all(tmp_path)) == ["run"]
    report.remove()
    report.remove()
    assert ProgressFile.read_all(tmp_path) == {}
