"""Collective operations that make training on several ranks equal to training in one process.

Rank r of W holds the contiguous rows [r b, (r + 1) b) of a global batch of B = W b samples. Every rank computes the
loss of the whole batch. Features and sums are exchanged with `sum_over_ranks`, whose gradient is summed over the ranks
too. The gradient on a rank is therefore W times its share of the single-process gradient, and the mean over ranks,
which DDP takes, is the single-process gradient. This holds for parameters that every rank uses on the global batch
(heads) and for parameters that a rank uses on its own rows (encoders).

The functions communicate only inside `together()`. Outside it, and without a process group, they act as in a single
process, so that one rank can measure, diagnose and evaluate alone.
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
    """Let the ranks of the process group train together inside the context; all of them must enter it."""
    global _together
    before, _together = _together, True
    try:
        yield
    finally:
        _together = before


def world() -> int:
    """Return the number of ranks that train together, 1 in a single process."""
    return dist.get_world_size() if _together and dist.is_available() and dist.is_initialized() else 1


def rows_of_rank(batch: int) -> slice:
    """Return the rows of a global batch of `batch` samples that this rank holds.

    Raises ValueError if the number of ranks does not divide `batch`.
    """
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
    """Sum a tensor over ranks, without gradient; 16-bit numbers are summed in 32 bits."""
    total = x.detach().to(torch.promote_types(x.dtype, torch.float32)).clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total.to(x.dtype)


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum tensors of the same shape over ranks, with gradient; every rank receives the sum."""
    return x if world() == 1 else _SumOverRanks.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def mean_over_ranks(values: Tensor, which: Tensor | None = None) -> Tensor:
    """Return the mean of the values of all ranks, or of those where `which` is True.

    The number of values may differ between ranks.
    """
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
    """Gather the samples of all ranks in the order of the global batch: (views x b, ...) -> (views x B, ...).

    Both are view-major. Every rank adds its rows to zeros, so that it receives the gradient of its own rows, summed
    over all ranks.
    """
    if world() == 1:
        return x
    own = x.reshape(views, -1, *x.shape[1:])  # (views, b, ...)
    batch = own.shape[1] * world()
    everyone = own.new_zeros(views, batch, *own.shape[2:])
    everyone[:, rows_of_rank(batch)] = own
    return sum_over_ranks(everyone).flatten(0, 1)


def own_rows(x: Tensor, views: int = 2) -> Tensor:
    """Return the samples of this rank from a view-major global batch: (views x B, ...) -> (views x b, ...)."""
    if world() == 1:
        return x
    every = x.reshape(views, -1, *x.shape[1:])
    return every[:, rows_of_rank(every.shape[1])].flatten(0, 1)
