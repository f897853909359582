"""Handles: what the command knows of a part of the grid that runs elsewhere, and the folder of submitit's files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

Trouble = tuple[str, str]  # a run's id ("" for none in particular), and what went wrong


class Handle(Protocol):
    """A part of the grid that is being executed. `job_id` is its SLURM job, "" for none; `found` says that an earlier
    command submitted it."""

    job_id: str
    found: bool

    def wait(self) -> list[Trouble]:
        """Wait until it is over; returns what went wrong and stands in no record."""

    def state(self) -> tuple[str, str, str]:
        """Run id, state and node of a queued or running job; "" for what is not known."""


def private_folder(results: Path) -> Path:
    """`results/.workers`, where submitit keeps pickled calls and logs. Only the user may write there, since loading
    somebody else's pickle would run their code. Raises PermissionError where the folder belongs to somebody else."""
    folder = results / ".workers"
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is not this user's own folder: move it away, or use another --results.")
    folder.chmod(0o700)
    return folder
