"""Workers share a grid: each run is done once, whoever does it, and what is left behind is tidy."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.launch import ProgressFile, Work, work, workers
from bench.record import Record
from bench.store import Store
from tests.bench import small


@pytest.fixture
def done() -> list[str]:
    """Methods that were run, in their order."""
    return []


@pytest.fixture
def job(tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch) -> Work:
    """Three runs that a test's stand-in does: it fails `fixed`, and notes whom it was asked to do."""
    suite = small.suite(tmp_path, methods="dense,fixed,centre", evaluation__probes=[])
    made = Work(tuple(suite.runs()), suite.evaluation, suite.finetune, tmp_path / "results", None, 1)

    def stand_in(run, evaluation, tuning, store, cache, threads, report) -> Record:
        report({"doing": "as if"})
        assert list(ProgressFile.read_all(made.results)) == [run.run_id]
        assert store.claimed(run.run_id)
        done.append(run.method)
        record = small.record(run.run_id, status="failed" if "fixed" in run.method else "done")
        store.write_record(record)
        return record

    monkeypatch.setattr("bench.experiment.run_experiment", stand_in)
    return made


def test_every_run_is_done_in_order_and_failures_are_counted(job: Work, done: list[str]) -> None:
    assert work(job) == 1
    assert done == ["simclr/dense", "simclr/fixed", "simclr/centre"]
    assert not list((job.results / ".claims").iterdir())
    assert ProgressFile.read_all(job.results) == {}


def test_what_is_done_is_not_done_again_and_what_failed_is(job: Work, done: list[str]) -> None:
    work(job)
    done.clear()
    work(job)
    assert done == ["simclr/fixed"]


def test_what_another_has_begun_is_left_to_it(job: Work, done: list[str]) -> None:
    with Store(job.results).claim(job.runs[0].run_id):
        work(job)
    assert done == ["simclr/fixed", "simclr/centre"]
    done.clear()
    work(job)
    assert done == ["simclr/dense", "simclr/fixed"]


def test_what_another_has_begun_and_left_is_done_after_all(job: Work, done: list[str], monkeypatch: Any) -> None:
    """Its worker ends while the last run is at work here."""
    store = Store(job.results)
    theirs = store.claim(job.runs[0].run_id)
    theirs.__enter__()
    unfinished = Work.unfinished

    def ends(self: Work, run: Any) -> bool:
        if run == job.runs[-1] and store.claimed(job.runs[0].run_id):
            theirs.__exit__(None, None, None)
        return unfinished(self, run)

    monkeypatch.setattr(Work, "unfinished", ends)
    work(job)
    assert done == ["simclr/fixed", "simclr/centre", "simclr/dense"]


def test_workers_do_not_outlive_who_asked_for_them(job: Work, done: list[str]) -> None:
    asked = subprocess.Popen(["true"])
    asked.wait()
    work(replace(job, parent=asked.pid))
    assert done == []
    work(replace(job, parent=os.getppid()))  # who is no more than a living process: submitit puts another between
    assert len(done) == 3


def test_an_interruption_gives_the_claim_back(job: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(run, evaluation, tuning, store, cache, threads, report) -> Record:
        report({"doing": "as if"})
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.experiment.run_experiment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work(job)
    assert not Store(job.results).claimed(job.runs[0].run_id)
    assert ProgressFile.read_all(job.results) == {}


def test_inline_work_waits_until_it_is_asked_for(job: Work, done: list[str]) -> None:
    with workers(job, "inline", 5) as handles:
        (handle,) = handles
        assert not handle.done()
        assert done == []
        assert handle.result() == handle.result() == 1
        assert handle.done()
    assert len(done) == 3


def test_leaving_early_ends_the_workers(job: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = []

    class Executor:
        def __init__(self, folder: Path) -> None:
            assert folder.stat().st_mode & 0o77 == 0  # pickles are private
            self.jobs = 0

        def update_parameters(self, **parameters: Any) -> None:
            pass

        def submit(self, function: Any, *args: Any) -> Any:
            assert (function, args) == (work, (replace(job, parent=os.getpid()),))
            self.jobs += 1
            name = self.jobs
            return SimpleNamespace(done=lambda: name == 1, cancel=lambda check: cancelled.append(name))

    monkeypatch.setattr("submitit.LocalExecutor", Executor)
    with pytest.raises(KeyboardInterrupt), workers(job, "local", 3) as handles:
        assert len(handles) == 3
        raise KeyboardInterrupt
    assert cancelled == [2, 3]


def readme_plugin() -> str:
    """The example of 'Your own method' in the README, as it stands there."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = text.split("# every_other.py\n", 1)[1].split("```", 1)[0]
    assert "class EveryOther" in code
    return code


def test_worker_processes_share_a_grid_with_a_plugin(world: small.World, registries: None, monkeypatch: Any) -> None:
    """The whole path with real processes: two workers, and a strategy of the user's own."""
    plugin = world.folder / "every_other.py"
    plugin.write_text(readme_plugin(), encoding="utf-8")
    monkeypatch.setattr("bench.report.write_report", small.light_report)
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


def test_a_worker_that_nobody_waits_for_stops_in_the_middle_of_a_run(tmp_path: Path) -> None:
    gone = False
    progress = ProgressFile(tmp_path, "a", lambda: gone)
    progress({"step": 10})
    assert ProgressFile.read_all(tmp_path) == {"a": {"step": 10}}
    gone = True
    with pytest.raises(KeyboardInterrupt):
        progress({"step": 20})
