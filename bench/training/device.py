"""The device, precision and threads of a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment


def one_device(precision: Literal["32-true", "bf16-mixed"] = "32-true") -> Fabric:
    """Return a Fabric for this process alone, on a GPU if there is one.

    Fabric must not look for a scheduler: on a host with SLURM's commands it would warn, and it would take over the
    tasks of the job.
    """
    return Fabric(accelerator="auto", devices=1, precision=precision, plugins=[LightningEnvironment()])


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Make torch use `count` CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
