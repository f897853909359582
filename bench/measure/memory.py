"""Memory of training: what a forward pass keeps for the backward pass, and the peak of the process or the GPU."""

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
    """Bytes that a training forward pass keeps for its backward pass, per image of `views` (2, B, channels, H, W).

    Each storage counts once, whole, however many tensors look into it; parameters and the views themselves, which are
    there anyway, do not. `objective` is left as it is. Wrap the call in autocast to weigh a mixed-precision step.
    """
    subject = copy.deepcopy(objective).train()
    present = {tensor.untyped_storage().data_ptr() for tensor in [*subject.parameters(), views]}
    kept: weakref.WeakSet[_Saved] = weakref.WeakSet()  # what the graph drops before the end of the pass is not kept

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        kept.add(saved)
        return saved

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        loss = subject(views, call).total
    storages = {saved.tensor.untyped_storage().data_ptr(): saved.tensor.untyped_storage().nbytes() for saved in kept}
    del loss  # lived until here, and with it the graph
    return sum(size for where, size in storages.items() if where not in present) / views.shape[1]


def peak_mib() -> tuple[float, Literal["process", "device"]]:
    """The most that was in use so far, in MiB: of the GPU where there is one, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20, "device"
    return _process_peak(), "process"


def resident_mib() -> float:
    """What of this process is in memory now, in MiB; where the system does not say, the most that was."""
    return _status("VmRSS") or _process_peak()


def _process_peak() -> float:
    mark = _status("VmHWM")
    if mark is not None:
        return mark
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _status(name: str) -> float | None:
    """MiB by Linux's own account of this process. VmHWM begins anew with a program, getrusage's peak does not: a
    process would inherit that of the one that started it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{name}:")), None)


class _Saved:
    """Holds a tensor for the graph; its life is the graph's."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output that knew its graph would keep it alive in a circle
