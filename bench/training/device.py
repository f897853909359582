"""What a process computes with: device, precision, threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment


def one_device(precision: Literal["32-true", "bf16-mixed"] = "32-true") -> Fabric:
    """This process alone, on a GPU if there is one. Fabric is not to look for a scheduler: it would warn on a host that
    has SLURM's commands, and take the job's tasks for its own."""
    return Fabric(accelerator="auto", devices=1, precision=precision, plugins=[LightningEnvironment()])


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Inside, torch computes with `count` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
