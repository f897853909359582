"""A worker works through a grid that it shares: each run is done once, whoever does it, and what is left is tidy."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bench.experiment import Experiment
from bench.launch.leases import DEAD, Leases, Owner
from bench.launch.progress_file import ProgressFile
from bench.launch.worker import Sweep, work
from bench.records.outcome import write_failure
from bench.records.record import Record
from bench.records.store import Store
from bench.training.failures import RanksLost
from tests.bench import small


@pytest.fixture
def done() -> list[str]:
    """Methods that were run, in their order."""
    return []


@pytest.fixture
def sweep(tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Three runs that a test's stand-in does: it fails `fixed`, and notes whom it was asked to do."""
    grid = small.grid(tmp_path, methods="dense,fixed,centre", evaluation__probes=[])
    made = Sweep(
        tuple(grid.runs()), grid.evaluation, grid.finetune, tmp_path / "results", None, 1, command_started=time.time()
    )

    def stand_in(experiment: Experiment) -> Record:
        run, store = experiment.spec, experiment.store
        experiment.progress({"doing": "as if"})
        assert list(ProgressFile.read_all(made.results)) == [run.run_id]
        assert Leases(made.results).held(run.run_id)
        done.append(run.method)
        record = small.record(run.run_id, status="failed" if "fixed" in run.method else "done")
        store.write_record(record)
        if record.status == "failed":
            store.log(run.run_id).write_text("why")
        return record

    monkeypatch.setattr("bench.experiment.run_experiment", stand_in)
    return made


def test_a_run_that_continues_another_comes_after_it(tmp_path: Path, sweep: Sweep, done: list[str]) -> None:
    """In whatever order they are asked for, and also where a job is asked for the second alone."""
    grid = small.grid(tmp_path, methods="dynamicvit[init=dense],dense", evaluation__probes=[])
    assert [run.method for run in grid.runs()] == ["simclr/dense", "simclr/dynamicvit[init=dense]"]
    last = grid.runs()[-1]
    assert work(replace(sweep, runs=(last,))) == 0
    assert done == ["simclr/dense", "simclr/dynamicvit[init=dense]"]


def test_a_run_waits_while_another_worker_trains_what_it_continues(
    tmp_path: Path, sweep: Sweep, done: list[str]
) -> None:
    grid = small.grid(tmp_path, methods="dynamicvit[init=dense],fixed[keep=0.3]", evaluation__probes=[])
    with Leases(sweep.results).hold(grid.runs()[0].run_id, "another command"):
        work(replace(sweep, runs=tuple(grid.runs())))
    assert done == ["simclr/fixed[keep=0.3]"]  # it is left to whoever trains the other
    work(replace(sweep, runs=tuple(grid.runs())))
    assert done == ["simclr/fixed[keep=0.3]", "simclr/dense", "simclr/dynamicvit[init=dense]"]


def test_every_run_is_done_in_order_and_failures_are_counted(sweep: Sweep, done: list[str]) -> None:
    assert work(sweep) == 1
    assert done == ["simclr/dense", "simclr/fixed", "simclr/centre"]
    assert not list((sweep.results / ".leases").iterdir())
    assert ProgressFile.read_all(sweep.results) == {}


def test_what_is_done_is_not_done_again_and_what_failed_is_by_the_next_command(sweep: Sweep, done: list[str]) -> None:
    work(sweep)
    done.clear()
    work(sweep)
    assert done == []
    work(replace(sweep, command_started=time.time() + 1))
    assert done == ["simclr/fixed"]


def test_what_another_has_begun_is_left_to_it(sweep: Sweep, done: list[str]) -> None:
    with Leases(sweep.results).hold(sweep.runs[0].run_id):
        work(sweep)
    assert done == ["simclr/fixed", "simclr/centre"]
    done.clear()
    work(sweep)
    assert done == ["simclr/dense"]


def test_what_another_has_begun_and_left_is_done_after_all(sweep: Sweep, done: list[str], monkeypatch: Any) -> None:
    """Its worker ends while the last run is at work here."""
    leases = Leases(sweep.results)
    theirs = leases.hold(sweep.runs[0].run_id)
    theirs.__enter__()
    unfinished = Sweep.unfinished

    def ends(self: Sweep, run: Any) -> bool:
        if run == sweep.runs[-1] and leases.held(sweep.runs[0].run_id):
            theirs.__exit__(None, None, None)
        return unfinished(self, run)

    monkeypatch.setattr(Sweep, "unfinished", ends)
    work(sweep)
    assert done == ["simclr/fixed", "simclr/centre", "simclr/dense"]


def test_a_job_waits_for_the_claim_of_one_that_may_have_died_on_another_node(
    sweep: Sweep, done: list[str], monkeypatch: Any
) -> None:
    """It was killed, and the same command submitted this one at once."""
    sweep = replace(sweep, runs=sweep.runs[:1])
    path = sweep.results / ".leases" / sweep.runs[0].run_id / "1"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(asdict(replace(Owner.me(), host="another-node", job="12_0"))))
    work(sweep)
    assert done == []  # elsewhere than on SLURM whoever asked is told

    def passes(seconds: float) -> None:
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - DEAD / 2))

    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr("bench.launch.worker.time.sleep", passes)
    work(sweep)
    assert done == ["simclr/dense"]


def test_a_job_whose_ranks_do_not_meet_fails_its_run_by_name(
    sweep: Sweep, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere than on SLURM it is no run's failure: others may do them."""

    def alone(ranks: int) -> None:
        raise RanksLost(f"a rank did not come: 1/{ranks}")

    monkeypatch.setattr("bench.training.ranks.name_rank", lambda: 0)
    monkeypatch.setattr("bench.training.ranks.connect", alone)
    sweep, store = replace(sweep, runs=sweep.runs[:1], ranks=2), Store(sweep.results)
    with pytest.raises(RanksLost):
        work(sweep)
    assert not store.failed(sweep.runs[0].run_id)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with pytest.raises(RanksLost):
        work(sweep)
    record = store.record(sweep.runs[0].run_id)
    assert record is not None
    assert (record.status, record.reason, record.environment["ranks"]) == ("failed", "a rank did not come: 1/2", 2)
    assert sweep.already_failed(sweep.runs[0])
    assert done == []


@pytest.mark.parametrize(
    ("reason", "again"),
    [
        ("another of its ranks ended before its time: what that said stands in results/.workers", True),
        ("a rank did not come: 1/2 clients joined", True),
        ("the loss became nan at step 3 of 4 (learning rate 1)", False),
        ("out of memory at batch 16: use a smaller one with --set train.batch=N", False),
    ],
)
def test_a_requeued_job_goes_on_after_the_loss_of_a_node_and_after_no_failure_of_the_run(
    sweep: Sweep, done: list[str], monkeypatch: pytest.MonkeyPatch, reason: str, again: bool
) -> None:
    """SLURM requeues a job whose node died: it is the same call, at another time."""
    sweep, store = replace(sweep, runs=sweep.runs[:1]), Store(sweep.results)
    failed = small.record(sweep.runs[0].run_id, status="failed", reason=reason)
    write_failure(store, failed, "traceback")
    path = store.log(sweep.runs[0].run_id)
    os.utime(path, (path.stat().st_atime, sweep.command_started + 0.001))
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for restart, runs in (("0", []), ("1", ["simclr/dense"] * again)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        work(sweep)
        assert done == runs
    assert sweep.already_failed(sweep.runs[0])  # to whoever waits for the job, once that is gone


def test_workers_do_not_outlive_who_asked_for_them(sweep: Sweep, done: list[str]) -> None:
    asked = subprocess.Popen(["true"])
    asked.wait()
    work(replace(sweep, parent=asked.pid))
    assert done == []
    work(replace(sweep, parent=os.getppid()))  # who is no more than a living process: submitit puts another between
    assert len(done) == 3


def test_an_interruption_gives_the_claim_back(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(experiment: Experiment) -> Record:
        experiment.progress({"doing": "as if"})
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.experiment.run_experiment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work(sweep)
    assert not Leases(sweep.results).held(sweep.runs[0].run_id)
    assert ProgressFile.read_all(sweep.results) == {}


def test_a_worker_that_nobody_waits_for_stops_in_the_middle_of_a_run(tmp_path: Path) -> None:
    gone = False
    progress = ProgressFile(tmp_path, "a", lambda: gone)
    progress({"step": 10})
    assert ProgressFile.read_all(tmp_path) == {"a": {"step": 10}}
    gone = True
    progress({"step": 20})  # a training saves its state first
    with pytest.raises(KeyboardInterrupt):
        progress({"doing": "evaluating"})
