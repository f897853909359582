"""`bench.run` as its users give it, in a process of its own, on a grid small enough to be run on a test cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PROJECT = Path(__file__).parents[2]
PLUGIN = Path(__file__).with_name("paced.py")
SLURM = ("--launcher", "slurm", "--slurm", "partition=local", "--slurm", "time=15")
"""A job takes one CPU of four, unless it asks for more."""
TOML = """
baselines = []
data.options = { patients = 60, images_per_patient = 2.0 }
encoder = { name = "vit_stem_d64_l4_patch8", image_size = 32 }
train = { epochs = 10, batch = 16 }
evaluation = { labels = [100], probes = ["linear"], draws = 1, resamples = 50, c = [0.01] }
"""


class Sweep:
    """A grid in a folder. `pace` is the seconds that each of the 40 steps of `simclr/paced` waits, when it is
    trained; `options` go with every command."""

    def __init__(self, folder: Path, cache: Path, *options: str, pace: float = 0.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.results, self.reports = folder / "results", folder / "reports"
        (folder / "small.toml").write_text(TOML, encoding="utf-8")
        fixed = ["--preset", "smoke", "--spec", str(folder / "small.toml"), "--plugin", str(PLUGIN), "--no-measure"]
        where = ["--results", str(self.results), "--reports", str(self.reports), "--cache", str(cache)]
        self.command = [sys.executable, "-m", "bench.run", *fixed, *where, *options]
        self.environment = {**os.environ, "PACE": str(pace), "OMP_NUM_THREADS": "1"}

    def start(self, *options: str, output: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.command, *options],
            cwd=PROJECT,
            env=self.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *options: str, seconds: float = 300) -> tuple[int, str]:
        """Exit code and output."""
        with self.running(*options) as command:
            output, _ = command.communicate(timeout=seconds)
        return command.returncode, output

    @contextmanager
    def running(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """The command, while it runs; it is killed at the end if it still does."""
        command = self.start(*options)
        try:
            yield command
        finally:
            if command.poll() is None:
                command.kill()
                command.communicate()
