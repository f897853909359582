"""Training over several ranks, exactly: what methods need from torch.distributed, and nothing at all in one process.

Rank r of W holds the contiguous rows [r b, (r + 1) b) of a global batch of B = W b samples. Every rank computes the
whole batch's loss; what the ranks share (features, sums) crosses between them by `sum_over_ranks`, whose gradient is
summed over the ranks in turn. A rank's gradient is then W times its own share of the single process's, so the mean over
ranks, which DDP takes, is that very gradient: of a parameter used on the global batch on every rank alike (a head's),
and of one used on the rank's own rows (an encoder's).

All this holds inside `together()` alone. Outside, and without a process group, there is one rank: so one of several can
measure, diagnose and evaluate by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_together = False


@contextmanager
def together() -> Iterator[None]:
    """Inside, the ranks of the process group train together: all of them have to enter."""
    global _together
    before, _together = _together, True
    try:
        yield
    finally:
        _together = before


def world() -> int:
    """The number of ranks that train together; 1 in a single process."""
    return dist.get_world_size() if _together and dist.is_available() and dist.is_initialized() else 1


def rows_of_rank(batch: int) -> slice:
    """The rows of a global batch of `batch` samples that this rank holds. Raises ValueError if the ranks don't divide
    it."""
    if batch % world():
        raise ValueError(f"a batch of {batch} samples can't be shared equally by {world()} ranks.")
    share = batch // world()
    rank = dist.get_rank() if world() > 1 else 0
    return slice(rank * share, (rank + 1) * share)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return summed(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return summed(gradient)


def summed(x: Tensor) -> Tensor:
    """The sum over ranks, without gradient; numbers of 16 bits are added in 32."""
    total = x.detach().to(torch.promote_types(x.dtype, torch.float32)).clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total.to(x.dtype)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of all ranks' tensors of one shape, on every rank."""
    return x if world() == 1 else _SumOverRanks.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def mean_over_ranks(values: Tensor, which: Tensor | None = None) -> Tensor:
    """The mean of all values of all ranks, or of those that are True in `which`, of which each may have another
    number."""
    if which is not None:
        total, count = (values * which).sum(), which.sum().to(values.dtype)
    elif world() == 1:
        return values.mean()
    else:
        total, count = values.sum(), values.new_full((), values.numel())
    if world() > 1:
        total, count = sum_over_ranks(torch.stack([total, count])).unbind()
    return total / count


def gather_views(x: Tensor, views: int = 2) -> Tensor:
    """The samples of all ranks in the order of the global batch, view-major: (views x b, ...) -> (views x B, ...).

    Every rank adds its rows to zeros, so the gradient of its own rows comes back, summed over all ranks.
    """
    if world() == 1:
        return x
    own = x.reshape(views, -1, *x.shape[1:])  # (views, b, ...)
    batch = own.shape[1] * world()
    everyone = own.new_zeros(views, batch, *own.shape[2:])
    everyone[:, rows_of_rank(batch)] = own
    return sum_over_ranks(everyone).flatten(0, 1)


def own_rows(x: Tensor, views: int = 2) -> Tensor:
    """This rank's samples of a view-major global batch: (views x B, ...) -> (views x b, ...)."""
    if world() == 1:
        return x
    every = x.reshape(views, -1, *x.shape[1:])
    return every[:, rows_of_rank(every.shape[1])].flatten(0, 1)
