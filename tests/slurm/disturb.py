"""A sweep is left running on the test cluster while jobs, nodes and daemons are struck at random; then every record
has to be whole: there once, equal to that of a sweep that nothing disturbed, and nothing left behind.

By hand: `python -m tests.slurm.disturb --minutes 20`. Exit code 1 and a list where something is not whole.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tests.slurm import cluster
from tests.slurm.sweep import SLURM, Sweep
from tests.slurm.whole import problems

NAME = f"storm-{os.getpid()}"  # of its jobs: others may use the cluster
NAMED = ("--name", NAME)
OPTIONS = (*SLURM, "--slurm", f"job_name={NAME}", "--checkpoint-minutes", "0.1")


class Storm:
    """Disturbances on a sweep whose command is `command`; each returns what it struck, or "" where it found nothing."""

    def __init__(self, sweep: Sweep, seed: int) -> None:
        self.sweep, self.random = sweep, random.Random(seed)
        self.command: subprocess.Popen[str] | None = None
        self.counts: Counter[str] = Counter()
        self.kinds: dict[str, Callable[[], str]] = {
            "requeue": self.requeue,
            "kill -9": self.kill,
            "preempt": self.preempt,
            "node dies": self.kill_node,
            "daemon": self.restart_daemon,
            "submitter": self.end_submitter,
        }

    def strike(self) -> None:
        kind = self.random.choice(list(self.kinds))
        try:
            struck = self.kinds[kind]()
        except RuntimeError as error:  # the job has just ended, or slurmctld is away
            struck = f"in vain: {error}"
        if struck:
            self.counts[kind] += not struck.startswith("in vain")
            say(f"{kind}: {struck}")

    def a_job(self) -> str:
        """A job of the sweep that runs now; "" where none does."""
        return self.random.choice(
            cluster.call("squeue", "-h", "--array", "-t", "R", *NAMED, "-o", "%i").split() or [""]
        )

    def requeue(self) -> str:
        job = self.a_job()
        if job:
            cluster.call("scontrol", "requeue", job)
        return job

    def kill(self) -> str:
        job = self.a_job()
        if job:
            cluster.kill_tasks(job)
        return job

    def preempt(self) -> str:
        node = f"node{self.random.choice((1, 2))}"
        wanted = ("--partition=urgent", "--exclusive", f"--nodelist={node}", "--mem=100M", "--output=/dev/null")
        cluster.call("sbatch", *wanted, "--wrap", "sleep 5")
        return node

    def kill_node(self) -> str:
        node = self.random.choice(("1", "2"))
        cluster.script("kill-node", node)
        time.sleep(self.random.uniform(0, 25))  # SLURM takes it for dead after 15 s
        cluster.script("start")
        return node

    def restart_daemon(self) -> str:
        daemon = self.random.choice(("slurmctld", "slurmdbd", "slurmd-node1", "slurmd-node2"))
        cluster.script("restart", daemon)
        return daemon

    def end_submitter(self) -> str:
        if self.command is None or self.command.poll() is not None:
            return ""
        how = self.random.choice((signal.SIGINT, signal.SIGTERM, signal.SIGKILL))
        self.command.send_signal(how)
        return how.name


def main(
    minutes: Annotated[float, typer.Option(help="Of disturbances; the sweep is about as long.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the disturbances.")] = 0,
    every: Annotated[float, typer.Option(help="Seconds between two, on average.")] = 15,
) -> None:
    if not cluster.join():
        typer.echo("Error: no test cluster: as root, `tests/slurm/cluster.sh start`.", err=True)
        raise typer.Exit(2)
    with tempfile.TemporaryDirectory() as folder:
        wrong = storm(Path(folder), minutes, seed, every)
    for problem in wrong:
        say(f"WRONG {problem}")
    say(f"{len(wrong)} problems")
    raise typer.Exit(int(bool(wrong)))


def storm(folder: Path, minutes: float, seed: int, every: float) -> list[str]:
    """What is not whole after it."""
    grid = ("--methods", "paced,moco/paced", "--seeds", str(max(1, round(1.5 * minutes))))
    reference = Sweep(folder / "reference", folder / "cache", *grid)
    code, output = reference.run("--launcher", "local", "--workers", "2", seconds=3600)
    assert code == 0, output
    say("the reference is done")
    sweep = Sweep(folder / "disturbed", folder / "cache", *grid, pace=1.0)
    weather, seen = Storm(sweep, seed), {}
    end = time.monotonic() + 60 * minutes
    wrong = []
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        while time.monotonic() < end:
            if weather.command is None or weather.command.poll() is not None:
                if weather.command is not None:
                    say(f"the command ended with {weather.command.returncode}")
                    if weather.command.returncode == 0:
                        break
                weather.command = sweep.start(*OPTIONS, output=log)
            time.sleep(weather.random.expovariate(1 / every))
            weather.strike()
            wrong += changed(sweep.results, seen)
        say(f"calm after {dict(weather.counts)}; {len(seen)} runs are done")
        cluster.script("start")
        if weather.command is not None:
            weather.command.wait()
        for _ in range(3):  # what was struck last may have failed: the same command again does it
            code, output = sweep.run(*OPTIONS, seconds=3600)
            say(f"the command ended with {code}")
            if code == 0:
                break
    wrong += changed(sweep.results, seen)
    if code != 0:
        wrong.append(f"the command does not come to an end: {output[-2000:]}")
    jobs = cluster.call("squeue", "-h", *NAMED, "-o", "%i %T")
    return [*wrong, *problems(sweep.results, reference.results), *(f"still queued: {job}" for job in jobs.splitlines())]


def changed(results: Path, seen: dict[str, str]) -> list[str]:
    """Records of finished runs that are not what they were when they were first seen; notes new ones in `seen`."""
    wrong = []
    for path in results.glob("*/record.json"):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if b'"status": "done"' in content and seen.setdefault(path.parent.name, digest) != digest:
            wrong.append(f"{path.parent.name}: recorded twice")
            seen[path.parent.name] = digest
    return wrong


def say(what: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')} {what}")


if __name__ == "__main__":
    typer.run(main)
