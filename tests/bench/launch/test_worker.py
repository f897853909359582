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

from bench.launch.leases import DEAD, Claims, Owner
from bench.launch.progress_file import ProgressFile
from bench.launch.worker import Work, work
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
def job(tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch) -> Work:
    """Three runs that a test's stand-in does: it fails `fixed`, and notes whom it was asked to do."""
    suite = small.suite(tmp_path, methods="dense,fixed,centre", evaluation__probes=[])
    made = Work(tuple(suite.runs()), suite.evaluation, suite.finetune, tmp_path / "results", None, 1, begun=time.time())

    def stand_in(run, evaluation, tuning, store, cache, threads, report, checkpoints) -> Record:
        report({"doing": "as if"})
        assert list(ProgressFile.read_all(made.results)) == [run.run_id]
        assert Claims(made.results).held(run.run_id)
        done.append(run.method)
        record = small.record(run.run_id, status="failed" if "fixed" in run.method else "done")
        store.write_record(record)
        if record.status == "failed":
            store.log(run.run_id).write_text("why")
        return record

    monkeypatch.setattr("bench.experiment.run_experiment", stand_in)
    return made


def test_every_run_is_done_in_order_and_failures_are_counted(job: Work, done: list[str]) -> None:
    assert work(job) == 1
    assert done == ["simclr/dense", "simclr/fixed", "simclr/centre"]
    assert not list((job.results / ".claims").iterdir())
    assert ProgressFile.read_all(job.results) == {}


def test_what_is_done_is_not_done_again_and_what_failed_is_by_the_next_command(job: Work, done: list[str]) -> None:
    work(job)
    done.clear()
    work(job)
    assert done == []
    work(replace(job, begun=time.time() + 1))
    assert done == ["simclr/fixed"]


def test_what_another_has_begun_is_left_to_it(job: Work, done: list[str]) -> None:
    with Claims(job.results).hold(job.runs[0].run_id):
        work(job)
    assert done == ["simclr/fixed", "simclr/centre"]
    done.clear()
    work(job)
    assert done == ["simclr/dense"]


def test_what_another_has_begun_and_left_is_done_after_all(job: Work, done: list[str], monkeypatch: Any) -> None:
    """Its worker ends while the last run is at work here."""
    claims = Claims(job.results)
    theirs = claims.hold(job.runs[0].run_id)
    theirs.__enter__()
    unfinished = Work.unfinished

    def ends(self: Work, run: Any) -> bool:
        if run == job.runs[-1] and claims.held(job.runs[0].run_id):
            theirs.__exit__(None, None, None)
        return unfinished(self, run)

    monkeypatch.setattr(Work, "unfinished", ends)
    work(job)
    assert done == ["simclr/fixed", "simclr/centre", "simclr/dense"]


def test_a_job_waits_for_the_claim_of_one_that_may_have_died_on_another_node(
    job: Work, done: list[str], monkeypatch: Any
) -> None:
    """It was killed, and the same command submitted this one at once."""
    job = replace(job, runs=job.runs[:1])
    path = job.results / ".claims" / job.runs[0].run_id / "1"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(asdict(replace(Owner.me(), host="another-node", job="12_0"))))
    work(job)
    assert done == []  # elsewhere than on SLURM whoever asked is told

    def passes(seconds: float) -> None:
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - DEAD / 2))

    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr("bench.launch.worker.time.sleep", passes)
    work(job)
    assert done == ["simclr/dense"]


def test_a_job_whose_ranks_do_not_meet_fails_its_run_by_name(
    job: Work, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere than on SLURM it is no run's failure: others may do them."""

    def alone(ranks: int) -> None:
        raise RanksLost(f"a rank did not come: 1/{ranks}")

    monkeypatch.setattr("bench.training.ranks.name_rank", lambda: 0)
    monkeypatch.setattr("bench.training.ranks.meet", alone)
    job, store = replace(job, runs=job.runs[:1], ranks=2), Store(job.results)
    with pytest.raises(RanksLost):
        work(job)
    assert not store.failed(job.runs[0].run_id)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with pytest.raises(RanksLost):
        work(job)
    record = store.record(job.runs[0].run_id)
    assert record is not None
    assert (record.status, record.reason, record.environment["ranks"]) == ("failed", "a rank did not come: 1/2", 2)
    assert job.gave_up(job.runs[0])
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
    job: Work, done: list[str], monkeypatch: pytest.MonkeyPatch, reason: str, again: bool
) -> None:
    """SLURM requeues a job whose node died: it is the same call, at another time."""
    job, store = replace(job, runs=job.runs[:1]), Store(job.results)
    failed = small.record(job.runs[0].run_id, status="failed", reason=reason)
    write_failure(store, failed, "traceback")
    path = store.log(job.runs[0].run_id)
    os.utime(path, (path.stat().st_atime, job.begun + 0.001))
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for restart, runs in (("0", []), ("1", ["simclr/dense"] * again)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        work(job)
        assert done == runs
    assert job.gave_up(job.runs[0])  # to whoever waits for the job, once that is gone


def test_workers_do_not_outlive_who_asked_for_them(job: Work, done: list[str]) -> None:
    asked = subprocess.Popen(["true"])
    asked.wait()
    work(replace(job, parent=asked.pid))
    assert done == []
    work(replace(job, parent=os.getppid()))  # who is no more than a living process: submitit puts another between
    assert len(done) == 3


def test_an_interruption_gives_the_claim_back(job: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(run, evaluation, tuning, store, cache, threads, report, checkpoints) -> Record:
        report({"doing": "as if"})
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.experiment.run_experiment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work(job)
    assert not Claims(job.results).held(job.runs[0].run_id)
    assert ProgressFile.read_all(job.results) == {}


def test_a_worker_that_nobody_waits_for_stops_in_the_middle_of_a_run(tmp_path: Path) -> None:
    gone = False
    progress = ProgressFile(tmp_path, "a", lambda: gone)
    progress({"step": 10})
    assert ProgressFile.read_all(tmp_path) == {"a": {"step": 10}}
    gone = True
    progress({"step": 20})  # a training saves its state first
    with pytest.raises(KeyboardInterrupt):
        progress({"doing": "evaluating"})
