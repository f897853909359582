"""Batch norm over the images of all ranks, for encoders.

torch's SyncBatchNorm does not run on CPU tensors. On a single rank the module acts as nn.BatchNorm2d. Parameters and
buffers have the same names, and the running statistics are those of the global batch, equal on all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from methods.encoders.encoder import Encoder
from methods.ranks import summed, world


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d over the images of all ranks that train together, which must hold equally many."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(x)
        out, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), share)
        return out  # type: ignore[no-any-return]


class _Normalise(torch.autograd.Function):
    """Normalise (B, C, H, W) by the mean and variance over all ranks, which are computed in two passes.

    Also returns mean and variance (C,) and the number of values per channel.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        count = x.numel() // x.shape[1] * world()
        wide = torch.promote_types(x.dtype, torch.float32)
        mean = summed(x.sum((0, 2, 3), dtype=wide)) / count  # (C,)
        variance = summed((x - _across(mean)).square().sum((0, 2, 3))) / count
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.count = count
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradient of x from sums over all ranks, and this rank's share of those of weight and bias.

        DDP adds up the shares of the ranks.
        """
        x, weight, mean, scale = ctx.saved_tensors
        normal = (x - _across(mean)) * _across(scale)
        by_bias = gradient.sum((0, 2, 3), dtype=mean.dtype)
        by_weight = (gradient * normal).sum((0, 2, 3))
        constant, slope = summed(torch.stack([by_bias, by_weight])).div_(ctx.count).unbind()
        if weight is not None:
            scale = scale * weight
        by_x = (gradient - _across(constant) - normal * _across(slope)) * _across(scale)
        own = (None, None) if weight is None else (by_weight, by_bias)
        return by_x.to(x.dtype), *own, None


def _across(channels: Tensor) -> Tensor:
    """View (C,) as (C, 1, 1), which broadcasts against a batch of maps."""
    return channels[:, None, None]


def globalise(module: nn.Module) -> None:
    """Replace every nn.BatchNorm2d inside `module` with GlobalBatchNorm2d, in place, sharing parameters and buffers.

    Raises ValueError if an encoder contains another kind of batch norm, for example from a plug-in, because each rank
    would normalise by its own images. Heads may contain any kind, since they run on the global batch.
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _globalised(child))
    for encoder in (one for one in module.modules() if isinstance(one, Encoder)):
        for name, child in encoder.named_modules():
            if isinstance(child, _BatchNorm) and not isinstance(child, GlobalBatchNorm2d):
                raise ValueError(
                    f"{name}, a {type(child).__name__}, would normalise the images of each rank separately: use "
                    "nn.BatchNorm2d in encoders and strategies, or train on one rank."
                )


def _globalised(norm: nn.BatchNorm2d) -> GlobalBatchNorm2d:
    made = GlobalBatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made.weight, made.bias = norm.weight, norm.bias
    made.running_mean, made.running_var = norm.running_mean, norm.running_var
    made.num_batches_tracked = norm.num_batches_tracked
    return made.train(norm.training)
