"""Memory of training: bytes kept for the backward pass, and peak memory of the process or the GPU."""

from __future__ import annotations

import copy
import resource
import sys
import weakref
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from methods.objectives.objective import Objective
from methods.strategies.strategy import Call


def saved_bytes(objective: Objective, views: Tensor, call: Call) -> float:
    """Bytes that the forward pass of a training step keeps for its backward pass, per image of `views` (2, B, channels,
    H, W).

    Each storage counts once and as a whole, however many tensors share it; parameters and the views do not count,
    because they exist anyway. `objective` is not changed. Call it under autocast to measure a mixed-precision step.
    """
    subject = copy.deepcopy(objective).train()
    present = {tensor.untyped_storage().data_ptr() for tensor in [*subject.parameters(), views]}
    kept: weakref.WeakSet[_Saved] = weakref.WeakSet()  # tensors that the graph drops during the pass do not count

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        kept.add(saved)
        return saved

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        loss = subject(views, call).total
    storages = {saved.tensor.untyped_storage().data_ptr(): saved.tensor.untyped_storage().nbytes() for saved in kept}
    del loss  # keeps the graph alive until here
    return sum(size for where, size in storages.items() if where not in present) / views.shape[1]


def peak_mib() -> tuple[float, Literal["process", "device"]]:
    """Peak memory so far in MiB: allocated on the GPU if there is one, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20, "device"
    return _process_peak(), "process"


def resident_mib() -> float:
    """Resident memory of this process now, in MiB; its peak if the current value is unknown."""
    return _status("VmRSS") or _process_peak()


def _process_peak() -> float:
    mark = _status("VmHWM")
    if mark is not None:
        return mark
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _status(name: str) -> float | None:
    """A value of Linux's /proc/self/status in MiB. VmHWM starts at 0 with a new program; the peak of getrusage does
    not, and would include that of the parent process."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{name}:")), None)


class _Saved:
    """Holds a tensor for the graph, and lives as long as the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an attached output would keep its graph alive in a reference cycle
