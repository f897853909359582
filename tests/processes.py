"""Processes that a test starts together, as the ranks of a job are."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_together(commands: Sequence[tuple[Sequence[str], Mapping[str, str] | None]], seconds: float = 300) -> None:
    """Start all, each command with its environment (None: this process's), and see each end well."""
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for command, environment in commands
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=seconds)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
