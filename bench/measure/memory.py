"""Memory of training: what a forward pass keeps for the backward pass, and the peak of the process or the GPU."""

from __future__ import annotations

import copy
import resource
import sys
import weakref
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10), "process"


class _Saved:
    """Holds a tensor for the graph; its life is the graph's."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output that knew its graph would keep it alive in a circle
