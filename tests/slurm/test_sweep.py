"""Sweeps on a real SLURM, struck while they run: in the end each run is recorded once, with the weights of a run that
nothing disturbed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.launch.progress_file import ProgressFile
from bench.records.record import Record
from tests.slurm import cluster
from tests.slurm.many import many
from tests.slurm.sweep import SLURM, Sweep
from tests.slurm.whole import problems

pytestmark = pytest.mark.slurm
PACE = 0.4  # 40 steps take 16 s
RARELY = ("--checkpoint-minutes", "60")  # so that checkpoints are those of signals
OFTEN = ("--checkpoint-minutes", "0.05")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def undisturbed(slurm: None, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Results of `simclr/paced` with four seeds by local workers of one thread, as the jobs have."""
    sweep = Sweep(tmp_path_factory.mktemp("undisturbed"), cache, "--methods", "paced", "--seeds", "4")
    code, output = sweep.run("--launcher", "local", "--workers", "2")
    assert code == 0, output
    return sweep.results


@pytest.fixture
def reference(undisturbed: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Those of the first so many seeds."""

    def results(seeds: int) -> Path:
        folder = tmp_path / "reference"
        folder.mkdir()
        for run in undisturbed.glob("simclr-paced-*"):
            if any(f"-s{seed}-" in run.name for seed in range(seeds)):
                (folder / run.name).symlink_to(run)
        return folder

    return results


@pytest.fixture
def sweep(slurm: None, tmp_path: Path, cache: Path) -> Callable[..., Sweep]:
    """A paced grid of so many seeds."""

    def make(seeds: int, *options: str, pace: float = PACE) -> Sweep:
        grid = ("--methods", "paced", "--seeds", str(seeds), *options)
        return Sweep(tmp_path, cache, *SLURM, *grid, pace=pace)

    return make


def jobs_of(sweep: Sweep) -> list[str]:
    """The SLURM jobs of its runs, in the order of seeds."""
    paths = sorted((sweep.results / ".jobs").glob("simclr-paced-*.json"))
    return [json.loads(path.read_bytes())["job"] for path in paths if not path.name.endswith(".progress.json")]


def at_work(sweep: Sweep, runs: int) -> list[str]:
    """Wait until so many runs are in the middle of their training; their jobs, in the order of seeds."""

    def training() -> bool:
        states = ProgressFile.read_all(sweep.results).values()
        return sum("step" in state and "doing" not in state for state in states) == runs

    cluster.wait_for(training, f"{runs} runs train")
    return jobs_of(sweep)


def records(sweep: Sweep) -> list[Record]:
    """Of finished runs, in the order of seeds."""
    return [Record.model_validate_json(path.read_bytes()) for path in sorted(sweep.results.glob("*/record.json"))]


def resumed(sweep: Sweep) -> list[bool]:
    """Did the runs' trainings go on from a checkpoint?"""
    return [record.time is not None and record.time.resumed > 0 for record in records(sweep)]


def test_an_array_with_runs_killed_and_cancelled(sweep: Callable[..., Sweep], reference: Callable) -> None:
    """The command names them, does the others, and does them when it is given again."""
    four = sweep(4, *OFTEN)
    with four.running() as command:
        _, killed, cancelled, _ = at_work(four, 4)
        assert len({job.partition("_")[0] for job in jobs_of(four)}) == 1, "one array"
        cluster.kill_tasks(killed)
        cluster.call("scancel", cancelled)
        output, _ = command.communicate(timeout=300)
    assert command.returncode == 1, output
    assert re.search(r"Failed: simclr-paced-\S+-s1-\S+: its process was killed", output), output
    assert re.search(r"Failed: simclr-paced-\S+-s2-\S+: cancelled", output), output
    assert [record.spec["seed"] for record in records(four)] == [0, 3]
    code, output = four.run()
    assert code == 0, output
    assert resumed(four) == [False, True, True, False]
    assert cluster.lives(killed) == ["FAILED"]
    assert problems(four.results, reference(4)) == []


def test_preempted_and_requeued(sweep: Callable[..., Sweep], reference: Callable) -> None:
    """The jobs of a node make way for an urgent one, and one on the other node is requeued by hand. All go on from
    where they were, and the command only waits."""
    three = sweep(3, *RARELY)
    with three.running() as command:
        jobs = at_work(three, 3)
        on = {job: cluster.node_of(job) for job in jobs}
        assert on[jobs[0]] == on[jobs[1]] != on[jobs[2]]
        wanted = ("--partition=urgent", "--exclusive", f"--nodelist={on[jobs[0]]}", "--mem=100M", "--output=/dev/null")
        cluster.call("sbatch", *wanted, "--wrap", "sleep 1")
        cluster.call("scontrol", "requeue", jobs[2])
        output, _ = command.communicate(timeout=300)
    assert command.returncode == 0, output
    assert jobs_of(three) == jobs
    assert resumed(three) == [True, True, True]
    assert problems(three.results, reference(3)) == []


def test_out_of_time(sweep: Callable[..., Sweep], reference: Callable) -> None:
    """SLURM's own signal before the limit, which is cut to a minute while the job runs. One that comes while Python
    starts does no harm."""
    one = sweep(1, *RARELY, "--slurm", "time=10", "--slurm", "signal_delay_s=10", pace=1.0)
    with one.running() as command:
        cluster.wait_for(lambda: any(map(cluster.processes, jobs_of(one))), "the job starts")
        cluster.call("scancel", "--signal=USR2", *jobs_of(one))
        (job,) = at_work(one, 1)
        assert cluster.lives(job) == ["RUNNING"]
        cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=1")
        cluster.wait_for(lambda: cluster.queued(job) == "PENDING", "it is requeued")
        cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=10")
        output, _ = command.communicate(timeout=300)
    assert command.returncode == 0, output
    assert resumed(one) == [True]
    assert "this job is timed-out" in (one.results / ".workers" / f"{job}_0_log.err").read_text()
    assert problems(one.results, reference(1)) == []


def test_a_node_dies(sweep: Callable[..., Sweep], reference: Callable) -> None:
    one = sweep(1, *OFTEN)
    with one.running() as command:
        (job,) = at_work(one, 1)
        cluster.script("kill-node", cluster.node_of(job).removeprefix("node"))
        cluster.wait_for(lambda: "NODE_FAIL" in cluster.lives(job), "SLURM sees it")
        cluster.script("start")
        output, _ = command.communicate(timeout=300)
    assert command.returncode == 0, output
    assert jobs_of(one) == [job]
    assert cluster.lives(job)[0] == "NODE_FAIL"
    assert problems(one.results, reference(1)) == []


def test_leaving_and_finding_jobs_again(sweep: Callable[..., Sweep], reference: Callable, tmp_path: Path) -> None:
    pair = sweep(2, "--slurm", f"job_name={tmp_path.name}")
    code, output = pair.run("--detach")
    assert code == 0, output
    jobs = jobs_of(pair)
    assert all(cluster.queued(job) for job in jobs)
    code, output = pair.run("--detach")
    assert code == 0, output
    assert jobs_of(pair) == jobs
    assert len(cluster.call("squeue", "-h", "--array", "--name", tmp_path.name, "-o", "%i").split()) == 2
    cluster.script("restart", "slurmctld")
    code, output = pair.run()
    assert code == 0, output
    assert jobs_of(pair) == jobs
    assert problems(pair.results, reference(2)) == []


def test_two_ranks_on_two_nodes(sweep: Callable[..., Sweep], tmp_path: Path, cache: Path) -> None:
    """A rank on each node ends with the weights of two ranks on this machine."""
    alone = Sweep(tmp_path / "local", cache, "--methods", "paced", "--seeds", "1", "--ranks", "2")
    code, output = alone.run("--launcher", "local", "--workers", "1")
    assert code == 0, output
    one = sweep(1, "--ranks", "2", "--slurm", "nodes=2", pace=0.0)
    code, output = one.run()
    assert code == 0, output
    (job,) = jobs_of(one)
    assert "node[1-2]" in cluster.call("sacct", "-X", "-n", "-P", "-o", "NodeList", "-j", job)
    assert problems(one.results, alone.results) == []


def test_many_trivial_runs(slurm: None, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = many(30, tmp_path, cache)
    with capsys.disabled():
        print(f"\n{outcome}")
    assert outcome.code == 0, outcome.output
    assert [record.status for record in outcome.records] == 30 * ["done"]
    assert outcome.own < outcome.job
    assert len({record.weights_sha256 for record in outcome.records}) == 30


def test_a_dry_run_prints_what_sbatch_would_be_asked(sweep: Callable[..., Sweep]) -> None:
    one = sweep(1, "--slurm", "account=lab", "--slurm", "gpus=1")
    code, output = one.run("--dry-run")
    assert code == 0, output
    for parameter in ("partition=local", "time=15", "account=lab", "gpus_per_node=1", "nodes=1"):
        assert parameter in output
    assert "node-hours" in output
    assert not jobs_of(one)
