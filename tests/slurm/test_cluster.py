"""What the launcher builds on: how this SLURM and submitit behave when jobs are requeued, preempted and killed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from tests.slurm import cluster, jobs

pytestmark = pytest.mark.slurm


@pytest.fixture
def ticks(tmp_path: Path) -> jobs.Ticks:
    return jobs.Ticks(tmp_path / "notes", goal=100)


def begin(executor: submitit.SlurmExecutor, ticks: jobs.Ticks) -> submitit.Job[int]:
    """Submit, and wait until it counts."""
    job = executor.submit(ticks)
    cluster.wait_for(ticks.lives, "the job begins")
    return job


def ends(job: submitit.Job[int], *lives: str) -> None:
    """Wait until the job's lives have ended in these ways."""
    with suppress(AssertionError):
        cluster.wait_for(lambda: cluster.lives(job.job_id) == list(lives), "it ends")
    assert cluster.lives(job.job_id) == list(lives)


def test_states(executor: submitit.SlurmExecutor) -> None:
    """An array: done, failed, cancelled while running, cancelled while waiting for its turn."""
    executor.update_parameters(array_parallelism=3)
    with executor.batch():
        done = executor.submit(jobs.answer)
        failed = executor.submit(jobs.fail)
        cancelled, pending = executor.submit(jobs.nap, 60), executor.submit(jobs.nap, 60)
        last = executor.submit(jobs.nap, 60)
    assert done.result() == 42
    with pytest.raises(FailedJobError, match="as asked"):
        failed.result()
    cluster.wait_for(lambda: cluster.queued(pending.job_id) == "RUNNING", "three naps run")
    cluster.wait_for(lambda: cluster.queued(cancelled.job_id) == "RUNNING", "three naps run")
    for job in (cancelled, pending, last):
        job.cancel()
    for job, state in ((done, "COMPLETED"), (failed, "FAILED"), (cancelled, "CANCELLED"), (last, "CANCELLED")):
        ends(job, state)
    assert done.job_id.partition("_")[0] == last.job_id.partition("_")[0]


def test_an_array_waits_for_its_turn(executor: submitit.SlurmExecutor) -> None:
    executor.update_parameters(array_parallelism=1)
    with executor.batch():
        first, second = executor.submit(jobs.nap, 60), executor.submit(jobs.nap, 60)
    cluster.wait_for(lambda: cluster.queued(first.job_id) == "RUNNING", "the first runs")
    assert cluster.queued(second.job_id) == "PENDING"
    first.cancel()
    cluster.wait_for(lambda: cluster.queued(second.job_id) == "RUNNING", "the second runs")


def test_requeued_from_outside_without_a_signal(executor: submitit.SlurmExecutor, ticks: jobs.Ticks) -> None:
    """Nothing asks for a checkpoint, so it starts from scratch: only checkpoints by time help."""
    job = begin(executor, ticks)
    cluster.call("scontrol", "requeue", job.job_id)
    cluster.wait_for(lambda: len(ticks.lives()) == 2, "it begins again")
    assert [position for position, _ in ticks.lives()] == [0, 0]
    ends(job, "REQUEUED", "COMPLETED")
    assert job.result() == ticks.goal


def test_preempted_with_a_checkpoint(executor: submitit.SlurmExecutor, ticks: jobs.Ticks, tmp_path: Path) -> None:
    executor.update_parameters(nodelist="node1")
    job = begin(executor, ticks)
    urgent = submitit.SlurmExecutor(tmp_path / "urgent")
    urgent.update_parameters(partition="urgent", nodelist="node1", exclusive=True, time=5, mem="100M")
    other = urgent.submit(jobs.answer)
    assert other.result() == 42
    cluster.wait_for(lambda: len(ticks.lives()) == 2, "it begins again")
    (first, _), (second, _) = ticks.lives()
    assert first == 0 < second
    assert job.result() == ticks.goal
    ends(job, cluster.lives(job.job_id)[0], "COMPLETED")
    assert "this job is preempted" in job.stderr()


def test_a_signal_to_a_short_job_counts_as_a_time_out(executor: submitit.SlurmExecutor, ticks: jobs.Ticks) -> None:
    """Of a job with a limit of ten minutes or less, `min(0.8 max, max - 10 min)` have always passed."""
    executor.max_num_timeout = 1
    executor.update_parameters(time=10)
    job = begin(executor, ticks)
    job._interrupt(timeout=True)  # USR2 alone, as SLURM sends it
    cluster.wait_for(lambda: len(ticks.lives()) == 2, "it begins again")
    assert ticks.lives()[1][0] > 0
    job._interrupt(timeout=True)  # USR2 alone, as SLURM sends it
    with pytest.raises(FailedJobError, match="timed-out too many times"):
        job.result()


def test_killed(executor: submitit.SlurmExecutor, ticks: jobs.Ticks) -> None:
    """A task that is killed is not requeued, and leaves no result."""
    job = begin(executor, ticks)
    assert len(cluster.processes(job.job_id)) == 1
    cluster.kill_tasks(job.job_id)
    ends(job, "FAILED")
    with pytest.raises(UncompletedJobError):
        job.result()
    assert len(ticks.lives()) == 1


def test_a_node_dies_and_comes_back(executor: submitit.SlurmExecutor, ticks: jobs.Ticks) -> None:
    job = begin(executor, ticks)
    node = int(ticks.lives()[0][1].removeprefix("node"))
    cluster.script("kill-node", str(node))
    assert not cluster.processes(job.job_id)
    cluster.wait_for(lambda: cluster.node_state(node).startswith("down"), "the node is seen to be down")
    cluster.wait_for(lambda: len(ticks.lives()) == 2, "the job begins again")
    assert ticks.lives()[1] == (0, f"node{3 - node}")
    cluster.script("start")
    assert cluster.node_state(node) in ("idle", "mixed")
    ends(job, "NODE_FAIL", "COMPLETED")


def test_a_job_outlives_a_restart_of_the_daemons(executor: submitit.SlurmExecutor, ticks: jobs.Ticks) -> None:
    job = begin(executor, ticks)
    for daemon in ("slurmctld", f"slurmd-{cluster.node_of(job.job_id)}"):
        cluster.script("restart", daemon)
        assert cluster.processes(job.job_id)
    assert job.result() == ticks.goal
    ends(job, "COMPLETED")
    assert len(ticks.lives()) == 1


def test_ranks_on_two_nodes(executor: submitit.SlurmExecutor) -> None:
    executor.update_parameters(nodes=2, ntasks_per_node=2)
    results = executor.submit(jobs.where).results()
    places = [(0, 0, "node1"), (1, 1, "node1"), (2, 0, "node2"), (3, 1, "node2")]
    assert [(rank, local, node) for rank, local, node, _ in results] == places
    assert {first for *_, first in results} == {"127.0.0.1"}


def test_gpus_are_shared_out(executor: submitit.SlurmExecutor) -> None:
    """Two jobs with a GPU each on one node see different ones."""
    executor.update_parameters(nodelist="node1", gpus_per_node=1, array_parallelism=2)
    with executor.batch():
        pair = [executor.submit(jobs.visible_gpus, 5) for _ in range(2)]
    assert {job.result() for job in pair} == {"0", "1"}
