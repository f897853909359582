"""Options for SLURM, what the queue says, and runs as jobs. Its commands are stand-ins: tests/slurm has a real one."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.launch import slurm
from bench.launch import slurm_jobs as submit
from bench.launch.leases import Leases
from bench.launch.requeues import Requeues
from bench.launch.slurm import DEFAULTS, Job, Queue, SlurmOptions, ended_as, explain, read_options
from bench.launch.slurm_jobs import JobsUnknown, RunJob, Task
from bench.launch.worker import Sweep
from bench.records.store import Store, write_atomically
from tests.bench import small


def changed(*texts: str) -> dict[str, Any]:
    """What the options change of the defaults."""
    return {k: v for k, v in read_options(texts).parameters.items() if DEFAULTS.get(k) != v}


@pytest.mark.parametrize(
    ("texts", "parameters"),
    [
        (["partition=gpu"], {"partition": "gpu"}),
        (["gpus=2", "cpus=8", "parallel=16"], {"gpus_per_node": 2, "cpus_per_task": 8, "array_parallelism": 16}),
        (["mem=8"], {"mem": "8192M"}),
        (["mem=1.5GB"], {"mem": "1536M"}),
        (["mem=500M"], {"mem": "500M"}),
        (["time=90"], {"time": 90}),
        (["time=2:30:00"], {"time": 150}),
        (["time=90:30"], {"time": 91}),
        (["time=1-0"], {"time": 1440}),
        (["time=1-02:03"], {"time": 1563}),
        (["time=2-00:00:01"], {"time": 2881}),
        (["setup=module load cuda", "setup=export A=1"], {"setup": ["module load cuda", "export A=1"]}),
        (["srun_args=--mpi none --label"], {"srun_args": ["--mpi", "none", "--label"]}),
        (["exclusive=true"], {"exclusive": True}),
        (["exclusive=user"], {"exclusive": "user"}),
        (["use_srun=false"], {"use_srun": False}),
        (["account=a=b"], {"account": "a=b"}),
        (["nodes=2", "signal_delay_s=30"], {"nodes": 2, "signal_delay_s": 30}),
        (["additional_parameters.licenses=x"], {"additional_parameters": {"licenses": "x"}}),
    ],
)
def test_options(texts: list[str], parameters: dict[str, Any]) -> None:
    assert changed(*texts) == parameters


def test_every_parameter_is_one_that_submitit_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import submitit

    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", staticmethod(lambda: 2))
    options = read_options(["partition=a", "gpus=2", "cpus=2", "mem=4", "time=60", "account=b", "parallel=3", "qos=c"])
    executor = submitit.SlurmExecutor(tmp_path)
    executor.update_parameters(**submit.parameters(options, 2))
    text = executor._make_submission_file_text("true", "x")
    for line in ("--gpus-per-node=2", "--cpus-per-task=2", "--mem=4096M", "--time=60", "--ntasks-per-node=2"):
        assert f"#SBATCH {line}" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition", "'partition' can't be read: write key=value"),
        ("=x", "can't be read"),
        ("partition=", "can't be read"),
        ("partitoin=gpu", "unknown --slurm key 'partitoin': did you mean partition?"),
        ("nodes=²", "nodes='²' must be a whole number of at least 1"),
        ("gpus=two", "gpus='two' must be a whole number of at least 0"),
        ("cpus=0", "cpus='0' must be a whole number of at least 1"),
        ("time=soon", "time='soon' can't be read"),
        ("time=1:2:3:4", "can't be read"),
        ("time=0", "must be at least one minute"),
        ("mem=lots", "mem='lots' can't be read"),
        ("mem=-1", "can't be read"),
        ("mem=nan", "can't be read"),
        ("requeues=-1", "requeues='-1'"),
        ("ntasks_per_node=2", "can't be set: --ranks N says"),
    ],
)
def test_mistakes_in_options(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="--slurm") as found:
        read_options([text])
    assert message in str(found.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slurm", "partition=gpu"], "--slurm is for --launcher slurm"),
        (["--detach"], "--detach is for --launcher slurm"),
        (["--ranks", "2"], "--ranks 2 needs several processes"),
        (["--launcher", "local", "--ranks", "3"], "a batch of 16 images can't be shared equally by 3 ranks"),
        (["--launcher", "slurm", "--ranks", "3", "--slurm", "nodes=2"], "3 ranks can't be shared equally by 2 nodes"),
        (
            ["--launcher", "slurm", "--ranks", "4", "--slurm", "nodes=2", "--slurm", "gpus=1"],
            "2 ranks on a node need a GPU each, and --slurm gpus=1: use --slurm gpus=2.",
        ),
    ],
)
def test_contradictions_are_found_before_anything_is_done(world: small.World, options: list[str], message: str) -> None:
    result = world.run(*options, "--methods", "dense")
    assert result.exit_code == 2
    assert message in result.stderr


class Commands:
    """Stand-ins for SLURM's commands, on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def say(self, name: str, lines: str, code: int = 0) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\nexit {code}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "LOOK_EVERY", 0.0)
    made = Commands(folder)
    made.say("squeue", "")
    made.say("sacct", "")
    return made


def test_the_queue_is_read(commands: Commands) -> None:
    commands.say("squeue", "12_3|RUNNING|node7|None\n12_4|PENDING||Priority\n13|COMPLETING|node[1-2]|None")
    queue = Queue()
    assert queue.job("12_3") == Job("RUNNING", "node7")
    assert queue.job("12_4") == Job("PENDING", "", "Priority")
    assert queue.alive(["12_4", "13", "99"]) == {"12_4", "13"}


def test_the_queue_is_asked_for_the_jobs_of_who_runs_this(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "another")
    path = commands.folder / "squeue"
    path.write_text('#!/bin/sh\nwhile [ "$1" != --user ]; do shift; done\necho "1|$2|a|None"\n')
    path.chmod(0o755)
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    assert Queue().job("1") == Job(user, "a")
    monkeypatch.setattr("bench.launch.slurm.os.getuid", lambda: 4242424)  # of no name here
    assert Queue().job("1") == Job("4242424", "a")


def test_a_job_is_gone_when_it_is_missing_several_times(commands: Commands) -> None:
    """A requeued job may be missing for a moment, and a controller that restarts says nothing at all."""
    commands.say("squeue", "12|RUNNING|a|None")
    queue = Queue()
    assert queue.job("12") == Job("RUNNING", "a")
    commands.say("squeue", "", code=1)
    for _ in range(5):
        assert queue.job("12") == Job("RUNNING", "a")
    commands.say("squeue", "")
    assert queue.job("12") == Job("UNKNOWN")
    commands.say("squeue", "12|PENDING||Priority")
    assert queue.job("12") == Job("PENDING", "", "Priority")
    commands.say("squeue", "")
    seen = [queue.job("12") for _ in range(6)]
    assert seen[0] == Job("UNKNOWN")
    assert seen[-1] is None


def test_a_queue_that_does_not_answer_is_asked_once_for_all(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To be told so takes longer than the time between two looks; 300 jobs must not take it 300 times."""
    asked, now = [], [0.0]

    def squeue() -> dict[str, Job]:
        asked.append(now[0])
        now[0] += 10.0
        raise TimeoutError

    monkeypatch.setattr(slurm, "LOOK_EVERY", 2.0)
    monkeypatch.setattr(slurm, "_squeue", squeue)
    monkeypatch.setattr("bench.launch.slurm.time.monotonic", lambda: now[0])
    queue = Queue()
    for number in range(300):
        assert queue.job(f"12_{number}") == Job("UNKNOWN")
    assert asked == [0.0]


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("CANCELLED by 0", "cancelled (SLURM job 5)"),
        ("TIMEOUT", "out of time, and not requeued"),
        ("OUT_OF_MEMORY", "out of memory"),
        ("FAILED", "its process was killed, or could not start (SLURM job 5)"),
        ("NODE_FAIL", "its node failed"),
        ("BOOT_FAIL", "ended as BOOT_FAIL (SLURM job 5)"),
        ("", "left the queue (SLURM job 5)"),
    ],
)
def test_how_a_job_ended(commands: Commands, state: str, text: str) -> None:
    commands.say("sacct", state)
    assert explain("5", ended_as("5")).startswith(text)


@pytest.fixture
def job(tmp_path: Path) -> Sweep:
    grid = small.grid(tmp_path, methods="dense,fixed,untrained", evaluation__probes=[])
    return Sweep(tuple(grid.runs()), grid.evaluation, grid.finetune, tmp_path / "results", None, 1, command_started=1.0)


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], list[Task]]]:
    """Arrays that were submitted, with submitit's executor replaced: job ids 100_0, 100_1, ... 101_0, ..."""
    arrays: list[tuple[dict[str, Any], list[Task]]] = []

    class Executor:
        def __init__(self, folder: Path, max_num_timeout: int, python: str) -> None:
            self.folder = folder

        def update_parameters(self, **parameters: Any) -> None:
            arrays.append((parameters, []))

        def batch(self) -> Any:
            import contextlib

            return contextlib.nullcontext()

        def submit(self, task: Task) -> Any:
            arrays[-1][1].append(task)
            return SimpleNamespace(job_id=f"{99 + len(arrays)}_{len(arrays[-1][1]) - 1}")

    monkeypatch.setattr("submitit.SlurmExecutor", Executor)
    return arrays


def test_an_array_for_each_shape_and_a_task_for_each_run(commands: Commands, job: Sweep, submitted: Any) -> None:
    handles = submit.submit(replace(job, ranks=4), read_options(["nodes=2"]))
    assert [(one["nodes"], one["ntasks_per_node"]) for one, _ in submitted] == [(2, 2), (1, 1)]
    assert [[task.sweep.runs[0].method for task in tasks] for _, tasks in submitted] == [
        ["simclr/dense", "simclr/fixed"],
        ["untrained"],
    ]
    assert [(h.job_id, h.run.method) for h in handles] == [
        ("100_0", "simclr/dense"),
        ("100_1", "simclr/fixed"),
        ("101_0", "untrained"),
    ]
    assert {task.sweep.ranks for task in submitted[1][1]} == {1}
    assert all(task.sweep.results.is_absolute() for _, tasks in submitted for task in tasks)


def test_what_is_in_the_queue_or_done_is_not_submitted_again(commands: Commands, job: Sweep, submitted: Any) -> None:
    submit.submit(job, SlurmOptions())
    assert [len(tasks) for _, tasks in submitted] == [3]
    commands.say("squeue", "100_0|RUNNING|a|None\n100_1|PENDING||Priority\n100_2|PENDING||Priority")
    handles = submit.submit(job, SlurmOptions())
    assert len(submitted) == 1
    assert [handle.job_id for handle in handles] == ["100_0", "100_1", "100_2"]
    commands.say("squeue", "100_0|RUNNING|a|None")  # 100_2 was cancelled, 100_1 has done its run
    Store(job.results).write_record(small.record(job.runs[1].run_id))
    handles = submit.submit(job, SlurmOptions())
    assert [[task.sweep.runs[0].method for task in tasks] for _, tasks in submitted[1:]] == [["untrained"]]
    assert [handle.job_id for handle in handles] == ["100_0", "101_0"]


def test_jobs_of_another_version_are_named_to_be_cancelled(commands: Commands, job: Sweep, submitted: Any) -> None:
    """Their pickled calls name modules that this version has elsewhere."""
    submit.submit(job, SlurmOptions())
    commands.say("squeue", "100_0|PENDING||Priority\n100_1|PENDING||Priority")
    jobs, names = Store(job.results).jobs, [run.run_id for run in job.runs]
    for name, job_id, version in zip(names, ("100_0", "100_1", "100_2"), ({}, {"version": 1}, {}), strict=True):
        write_atomically(jobs / f"{name}.json", json.dumps({**version, "job": job_id, "submitted": "then"}).encode())
    with pytest.raises(JobsUnknown, match="jobs 100_0, 100_1 in the queue.*another version.*: scancel 100_0 100_1$"):
        submit.submit(job, SlurmOptions())
    assert len(submitted) == 1
    commands.say("squeue", "")  # cancelled, as was advised
    assert [handle.job_id for handle in submit.submit(job, SlurmOptions())] == ["101_0", "101_1", "101_2"]
    commands.say("squeue", "101_0|PENDING||Priority")
    submit.submit(job, SlurmOptions())  # of this version: found again, as ever


def test_without_slurm_it_is_said(job: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JobsUnknown, match="SLURM does not answer .*: is this a host that submits jobs?"):
        submit.submit(job, SlurmOptions())
    assert not Leases(job.results).held("submission")


class Clock:
    """Time that passes by sleeping. `then` happens after two sleeps."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.now, self.then, self.sleeps = 1000.0, then, 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps += 1
        if self.sleeps == 2:
            self.then()
        assert self.sleeps < 200


@pytest.fixture
def waited(job: Sweep, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list, float]]:
    """What waiting for the jobs of the first runs brings, one after the other, and the seconds that it takes, when
    `then` happens."""

    def wait(then: Callable[[], None], runs: int = 1, **changes: Any) -> tuple[list[list[tuple[str, str]]], float]:
        clock, queue, asked = Clock(then), Queue(), replace(job, **changes)
        monkeypatch.setattr("bench.launch.slurm.time", clock)
        monkeypatch.setattr("bench.launch.slurm_jobs.time", clock)
        handles = [RunJob(asked, run, f"100_{i}", queue, clock.sleep) for i, run in enumerate(job.runs[:runs])]
        for handle in handles:
            handle.state()  # as whoever watches does
        return [handle.wait() for handle in handles], clock.now - 1000.0

    return wait


def test_a_job_is_waited_for_until_its_record_is_there(commands: Commands, job: Sweep, waited: Callable) -> None:
    commands.say("squeue", "100_0|RUNNING|a|None")

    def done() -> None:
        commands.say("squeue", "")
        Store(job.results).write_record(small.record(job.runs[0].run_id))

    outcomes, seconds = waited(done)
    assert outcomes == [[]]
    assert seconds < submit.GRACE


def test_a_job_that_ends_without_a_record_is_explained(commands: Commands, job: Sweep, waited: Callable) -> None:
    commands.say("squeue", "100_0|RUNNING|a|None")

    def cancelled() -> None:
        commands.say("squeue", "")
        commands.say("sacct", "CANCELLED by 0")

    (((run_id, text),),), _ = waited(cancelled)
    assert run_id == job.runs[0].run_id
    assert text.startswith("cancelled (SLURM job 100_0); see ")
    assert text.endswith(".workers/100_0_0_log.err")


def test_a_run_that_failed_in_its_job_before_this_command_began_is_told_by_its_record(
    commands: Commands, job: Sweep, waited: Callable
) -> None:
    """A sweep was left; the command that waits for it comes when the record is written and the job still ends."""
    commands.say("squeue", "100_0|COMPLETING|a|None")
    store, run_id = Store(job.results), job.runs[0].run_id
    write_atomically(store.jobs / f"{run_id}.json", b"{}")
    write_atomically(store.log(run_id), b"why")
    assert not replace(job, command_started=time.time() + 60).already_failed(job.runs[0])
    outcomes, seconds = waited(lambda: commands.say("squeue", ""), command_started=time.time() + 60)
    assert outcomes == [[]]
    assert seconds < submit.GRACE


def test_jobs_that_end_together_are_waited_for_together(commands: Commands, waited: Callable) -> None:
    commands.say("squeue", "100_0|RUNNING|a|None\n100_1|RUNNING|a|None\n100_2|RUNNING|b|None")
    outcomes, seconds = waited(lambda: commands.say("squeue", ""), runs=3)
    assert [len(outcome) for outcome in outcomes] == [1, 1, 1]
    assert submit.GRACE < seconds < 2 * submit.GRACE


def test_a_run_that_another_has_begun_is_waited_for(commands: Commands, job: Sweep, waited: Callable) -> None:
    """Our job found it claimed and left."""
    other = Leases(job.results).hold(job.runs[0].run_id)
    other.__enter__()

    def done() -> None:
        Store(job.results).write_record(small.record(job.runs[0].run_id))
        other.__exit__(None, None, None)

    assert waited(done)[0] == [[]]


@pytest.fixture
def on_slurm(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    def be(job_id: str, restart: int) -> None:
        monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
        monkeypatch.setenv("SLURM_JOB_ID", job_id)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))

    return be


def test_a_job_that_gets_nowhere_between_two_requeues_is_given_up(tmp_path: Path, on_slurm: Any) -> None:
    requeues = Requeues(Store(tmp_path), "a")
    assert requeues.reason_to_stop(0, 20) == ""  # no job at all
    on_slurm("7", 0)
    assert requeues.reason_to_stop(0, 20) == ""
    on_slurm("7", 1)
    assert requeues.reason_to_stop(0, 20) == ""  # its first start may be cut short
    on_slurm("7", 2)
    assert "job 7 made no progress between two requeues (at step 0 both times)" in requeues.reason_to_stop(0, 20)
    on_slurm("8", 0)
    assert requeues.reason_to_stop(0, 20) == ""  # submitted anew
    for restart in range(1, 6):
        on_slurm("8", restart)
        assert requeues.reason_to_stop(10 * restart, 20) == ""


def test_evaluations_are_progress_too(tmp_path: Path, on_slurm: Any) -> None:
    store = Store(tmp_path)
    for restart in range(4):
        on_slurm("7", restart)
        assert Requeues(store, "a").reason_to_stop(100, 20) == ""
        store.write_evaluation(f"linear-{restart}-dense", small.evaluation("a", "s"), {})


def test_a_training_without_a_checkpoint_is_progress_too(tmp_path: Path, on_slurm: Any) -> None:
    """Its checkpoints go as it is recorded: it stands at step 0 as before it began."""
    store = Store(tmp_path)
    for restart in range(3):
        on_slurm("7", restart)
        assert Requeues(store, "a").reason_to_stop(0, 20) == ""
        if restart == 1:
            store.write_record(small.record("a"))
    on_slurm("7", 3)
    assert "(in the same evaluation both times): give it more time" in Requeues(store, "a").reason_to_stop(0, 20)


def test_steps_and_evaluations_are_not_mixed_up(tmp_path: Path, on_slurm: Any) -> None:
    """A step's worth of checkpoint goes as the training ends, and an evaluation comes."""
    store = Store(tmp_path)
    for restart, steps in enumerate([0, 1, 0]):
        on_slurm("7", restart)
        assert Requeues(store, "a").reason_to_stop(steps, 20) == ""
        if steps:
            store.write_evaluation("linear-1-dense", small.evaluation("a", "s"), {})


def test_the_number_of_requeues_is_bounded(tmp_path: Path, on_slurm: Any) -> None:
    requeues = Requeues(Store(tmp_path), "a")
    for restart in range(4):
        on_slurm("7", restart)
        assert requeues.reason_to_stop(restart, 3) == ""
    on_slurm("7", 4)
    assert "job 7 was requeued 4 times, and the limit is 3: see --slurm requeues=N" in requeues.reason_to_stop(4, 3)


def test_a_task_survives_its_requeue(job: Sweep) -> None:
    delayed = Task(job).checkpoint()
    assert delayed.function == Task(job)
    assert not delayed.args


def test_a_dry_run_prints_what_sbatch_is_told(world: small.World) -> None:
    result = world.run(
        *("--launcher", "slurm", "--slurm", "partition=gpu", "--slurm", "time=30", "--ranks", "2"),
        *("--methods", "dense,untrained", "--dry-run"),
    )
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "SLURM: 1 job, about 0.0 node-hours" in text
    assert "partition=gpu" in text
    assert "time=30" in text
    assert "ntasks_per_node=2" in text
    assert "ntasks_per_node=1" in text
    assert not (world.results / ".jobs").exists()


def test_detached_jobs_are_left_and_found_again(
    world: small.World, commands: Commands, submitted: Any, light: None
) -> None:
    options = ("--launcher", "slurm", "--methods", "dense,untrained", "--labels", "100")
    result = world.run(*options, "--detach")
    assert result.exit_code == 0, result.output
    assert "2 jobs are in the queue (SLURM 100)" in result.output
    commands.say("squeue", "100_0|PENDING||Priority\n100_1|PENDING||Priority")
    assert "Found" not in result.output
    again = world.run(*options, "--slurm", "time=60", "--detach").output
    assert "2 jobs are in the queue (SLURM 100)" in again
    assert "Found 2 jobs of an earlier command" in again
    assert len(submitted) == 1
    known = {path.name: json.loads(path.read_text())["job"] for path in (world.results / ".jobs").glob("*.json")}
    assert sorted(known.values()) == ["100_0", "100_1"]


def test_commands_that_hang_are_an_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*args: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired("squeue", 60)

    monkeypatch.setattr("bench.launch.slurm.subprocess.run", hangs)
    with pytest.raises(OSError, match="squeue does not answer"):
        Queue().alive(["1"])
    assert ended_as("1") == ""
