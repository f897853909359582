"""The device and the precision that a process computes with."""

from __future__ import annotations

from typing import Literal

from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment


def one_device(precision: Literal["32-true", "bf16-mixed"] = "32-true") -> Fabric:
    """This process alone, on a GPU if there is one. Fabric is not to look for a scheduler: it would warn on a host that
    has SLURM's commands, and take the job's tasks for its own."""
    return Fabric(accelerator="auto", devices=1, precision=precision, plugins=[LightningEnvironment()])
