"""The progress of a run, in a small file that the watching command reads."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.records.environment import slurm_job


class ProgressFile:
    """The progress of one run in `results/.progress`, written at most twice a second."""

    def __init__(self, results: Path, run_id: str, orphaned: Callable[[], bool] = lambda: False) -> None:
        self.path = results / ".progress" / f"{run_id}.json"
        self.orphaned = orphaned
        self._written = 0.0

    def __call__(self, state: dict[str, Any]) -> None:
        """Write the state. Raises KeyboardInterrupt, which ends the run without a record, where the command that asked
        for it is gone; during training the checkpoints take care of that."""
        if "doing" in state and self.orphaned():
            raise KeyboardInterrupt
        now = time.monotonic()
        if now - self._written < 0.5 and "doing" not in state:
            return
        self._written = now
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        where = {"node": os.environ.get("SLURMD_NODENAME", ""), "job": slurm_job()[0]}
        temporary.write_text(json.dumps({**state, **{k: v for k, v in where.items() if v}}), encoding="utf-8")
        os.replace(temporary, self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    @staticmethod
    def read_all(results: Path) -> dict[str, dict[str, Any]]:
        """The state of all runs in progress, by run id."""
        states = {}
        for path in sorted((results / ".progress").glob("*.json")):
            try:
                states[path.stem] = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue  # just removed or replaced
        return states
