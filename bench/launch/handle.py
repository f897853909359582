"""A part of a grid that somebody is doing: what can be asked of it, and where submitit keeps what it was given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

Trouble = tuple[str, str]  # a run's id ("" for none in particular), and what went wrong


class Handle(Protocol):
    """A part of the grid that is being done; `job_id` is its SLURM job, "" for none; `found` says that an
    earlier command submitted it."""

    job_id: str
    found: bool

    def wait(self) -> list[Trouble]:
        """Until it is over; what went wrong that no record tells."""

    def state(self) -> tuple[str, str, str]:
        """Run id, state and node of a job that is queued or runs; "" for what is not known."""


def private_folder(results: Path) -> Path:
    """`results/.workers`, where submitit keeps pickled calls and logs: for the user alone, who could otherwise be made
    to load another's. Raises PermissionError where it is another's."""
    folder = results / ".workers"
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is not this user's own folder: move it away, or give another --results.")
    folder.chmod(0o700)
    return folder
