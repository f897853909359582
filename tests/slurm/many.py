"""Many trivial runs as SLURM jobs: is none lost, and what does a run cost beyond itself?

By hand, on the test cluster: `python -m tests.slurm.many --runs 300`.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from bench.records.record import Record
from tests.slurm import cluster
from tests.slurm.sweep import SLURM, Sweep

SLOTS = 4  # jobs of one CPU that run at once on the cluster


@dataclass(frozen=True)
class Outcome:
    """What came of them: exit code and output of the command, the records, seconds of the whole command, and the
    seconds that a job takes on average by SLURM's account."""

    code: int
    output: str
    records: list[Record]
    seconds: float
    job: float

    @property
    def own(self) -> float:
        """Seconds that a run takes by its own account, on average."""
        times = [
            datetime.fromisoformat(record.finished) - datetime.fromisoformat(record.started) for record in self.records
        ]
        return sum(time.total_seconds() for time in times) / len(times)

    def __str__(self) -> str:
        each, count = self.seconds / len(self.records), len(self.records)
        return (
            f"{count} runs in {self.seconds:.0f} s, {SLOTS} at once: {each:.2f} s a run. A run takes {self.own:.1f} s; "
            f"its overhead is {self.job - self.own:.1f} s in its job (Python starts and imports), and "
            f"{SLOTS * each - self.job:.1f} s around it (queue, plan, report)"
        )


def many(runs: int, folder: Path, cache: Path) -> Outcome:
    """Untrained encoders with a probe each, one job of an array per run."""
    sweep = Sweep(folder, cache, "--methods", "untrained", "--seeds", str(runs))
    started = time.monotonic()
    code, output = sweep.run(*SLURM, seconds=60 + 20 * runs)
    seconds = time.monotonic() - started
    records = [Record.model_validate_json(path.read_bytes()) for path in sweep.results.glob("*/record.json")]
    array = json.loads(next((sweep.results / ".jobs").glob("*.json")).read_bytes())["job"].partition("_")[0]
    elapsed = cluster.call("sacct", "-X", "-n", "-P", "-o", "ElapsedRaw", "-j", array).split()
    return Outcome(code, output, records, seconds, sum(map(int, elapsed)) / len(elapsed))


def main(runs: Annotated[int, typer.Option(min=1, help="How many.")] = 300) -> None:
    if not cluster.join():
        typer.echo("Error: no test cluster: as root, `tests/slurm/cluster.sh start`.", err=True)
        raise typer.Exit(2)
    with tempfile.TemporaryDirectory() as folder:
        outcome = many(runs, Path(folder), Path(folder) / "cache")
    typer.echo(outcome.output)
    typer.echo(str(outcome))
    lost = runs - sum(record.status == "done" for record in outcome.records)
    typer.echo(f"{lost} lost; exit code {outcome.code}")
    raise typer.Exit(int(bool(lost or outcome.code)))


if __name__ == "__main__":
    typer.run(main)
