"""Functions that tests submit; each is quick to import."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from submitit import JobEnvironment
from submitit.helpers import Checkpointable


def answer() -> int:
    return 42


def fail() -> None:
    raise ValueError("as asked")


def nap(seconds: float) -> None:
    time.sleep(seconds)


def visible_gpus(seconds: float) -> str | None:
    time.sleep(seconds)  # hold it
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def where() -> tuple[int, int, str, str]:
    """Rank, rank on the node, the node's name, and the address of the first node."""
    environment = JobEnvironment()
    first = socket.gethostbyname(environment.hostnames[0])
    return environment.global_rank, environment.local_rank, os.environ["SLURMD_NODENAME"], first


class Ticks(Checkpointable):
    """Counts to `goal`, ten a second; notes where each life of the job begins, and on which node."""

    def __init__(self, notes: Path, goal: int) -> None:
        self.notes, self.goal, self.position = notes, goal, 0

    def __call__(self) -> int:
        start = self.position
        while self.position < self.goal:
            time.sleep(0.1)
            self.position += 1
            if self.position == start + 1:  # under way, so that a signal finds it so
                with open(self.notes, "a", encoding="utf-8") as file:
                    file.write(f"{start} {os.environ['SLURMD_NODENAME']}\n")
        return self.position

    def lives(self) -> list[tuple[int, str]]:
        """Position and node at the beginning of each life, oldest first."""
        if not self.notes.exists():
            return []
        pairs = (line.split() for line in self.notes.read_text(encoding="utf-8").splitlines())
        return [(int(position), node) for position, node in pairs]
