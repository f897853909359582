"""CNNs with nothing but timm's own modules, and the pointwise MLPs of a ConvNeXt on kept patches only.

A block of ConvNeXt (arXiv 2201.03545) adds layer scale(MLP(LayerNorm(depthwise(x)))) to x. The depthwise convolution is
computed everywhere; norm, MLP and layer scale, where some 90 % of the MACs are, at the kept positions only. A dropped
position gets no branch at all: there the block hands x on, and what the depthwise convolution gave is not used. Patches
are those of the last map's grid; in an earlier stage a patch is the square of positions that lie under it, kept or
dropped together. The dropped positions stay where they are, as neighbours of the kept ones: stem, downsampling and
depthwise convolutions see them, the pooling does not.

A gate g of a kept patch multiplies its branch in every block and weighs it in the pooling: at g = 0 all is as if it
were dropped, so the gradient by g is that of a straight line from dropped to kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from timm.models.resnet import ResNet
from torch import Tensor


def dense_features(net: ConvNeXt | ResNet, images: Tensor) -> Tensor:
    """Mean over all positions of the last map, after the final norm where there is one: (B, C)."""
    x: Tensor = net.forward_features(images)
    if isinstance(net, ConvNeXt):
        x = _head_norm(net, x)
    return x.mean((2, 3))


@dataclass(frozen=True)
class Patches:
    """Kept patches of a `grid` x `grid`: `index` (B, k), of which those with `valid` (B, k) count; `gate` (B, k)."""

    index: Tensor
    valid: Tensor | None
    gate: Tensor | None
    grid: int

    @property
    def weight(self) -> Tensor | None:
        """What each counts in the pooling, (B, k); None where all count alike."""
        if self.gate is None or self.valid is None:
            return self.gate if self.valid is None else self.valid.float()
        return self.gate * self.valid

    def rows(self, scale: int) -> Rows:
        """Where they are in a map with `scale` x `scale` positions a patch."""
        before = torch.arange(self.index.shape[0], device=self.index.device)[:, None] * self.grid**2
        index, gate = before + self.index, self.gate  # of all patches of the batch
        if self.valid is not None:
            index, gate = index[self.valid], None if gate is None else gate[self.valid]
        index = index.flatten()  # (K,)
        lines = torch.arange(scale, device=index.device)
        at = ((index // self.grid * scale)[:, None] + lines) * self.grid + (index % self.grid)[:, None]  # (K, scale)
        return Rows(at.flatten(), scale, None if gate is None else gate.flatten().repeat_interleave(scale**2)[:, None])


@dataclass(frozen=True)
class Rows:
    """Kept positions of a channels-last map (B, C, H, W), read as (B x H x grid, scale x C): `at` numbers those rows,
    each a line of positions through a patch; `gate` (positions, 1)."""

    at: Tensor
    scale: int
    gate: Tensor | None

    def table(self, x: Tensor) -> Tensor:
        """A view of the map (B, C, H, W) as rows."""
        return x.permute(0, 2, 3, 1).reshape(-1, self.scale * x.shape[1])

    def take(self, x: Tensor) -> Tensor:
        """The kept positions of a map, (positions, C)."""
        return self.table(x).index_select(0, self.at).view(-1, x.shape[1])

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """The map with `branch` (positions, C) added at the kept positions."""
        b, c, h, w = x.shape
        both = torch.promote_types(x.dtype, branch.dtype)  # of mixed precision
        rows = self.table(x).to(both).index_add(0, self.at, branch.to(both).view(-1, self.scale * c))
        return rows.view(b, h, w, c).permute(0, 3, 1, 2)


def kept_features(net: ConvNeXt, images: Tensor, patches: Patches, masked: bool = False) -> Tensor:
    """Mean over the kept positions of the last map after the final norm, (B, C).

    `masked` computes every position and multiplies the branches of the dropped ones by zero: slow and obvious.
    """
    x = net.stem(images)
    stages: Any = net.stages
    for stage in stages:
        x = stage.downsample(x)
        scale = x.shape[-1] // patches.grid
        if masked:
            mask = _mask(patches).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
            for block in stage.blocks:
                x = x + mask * (block(x) - x)
        else:
            rows = patches.rows(scale)
            for block in stage.blocks:
                x = rows.add(x, _branch(block, rows.take(block.conv_dw(x)), rows.gate))
    b, c = x.shape[:2]
    if masked:
        weight = _mask(patches)
        return (_head_norm(net, net.norm_pre(x)) * weight).sum((2, 3)) / weight.sum((2, 3))
    kept = x.permute(0, 2, 3, 1).view(b, -1, c)
    kept = kept[torch.arange(b, device=x.device)[:, None], patches.index]  # (B, k, C)
    kept = _from_map(_head_norm(net, net.norm_pre(_as_map(kept.view(-1, c))))).view(b, -1, c)
    if patches.weight is None:
        return kept.mean(1)
    weight = patches.weight[..., None]
    return (kept * weight).sum(1) / weight.sum(1)


def _branch(block: ConvNeXtBlock, rows: Tensor, gate: Tensor | None) -> Tensor:
    """Norm, MLP and layer scale of rows (positions, C), times the gate."""
    if block.use_conv_mlp:
        rows = _from_map(block.mlp(block.norm(_as_map(rows))))
    else:
        rows = block.mlp(block.norm(rows))
    if block.gamma is not None:
        rows = rows * block.gamma
    return rows if gate is None else rows * gate


def _mask(patches: Patches) -> Tensor:
    """(B, 1, grid, grid): the gate of the kept patches, 1 where there is none; 0 of the dropped ones."""
    weight = torch.ones_like(patches.index, dtype=torch.float32) if patches.weight is None else patches.weight
    mask = weight.new_zeros(weight.shape[0], patches.grid**2).scatter_add(1, patches.index, weight)
    return mask.view(-1, 1, patches.grid, patches.grid)


def _head_norm(net: ConvNeXt, x: Tensor) -> Tensor:
    """The norm that timm applies after its pooling, here before; where `norm_pre` has done it, there is none."""
    norm = getattr(net.head, "norm", None)
    return x if norm is None else norm(x)  # type: ignore[no-any-return]


def _as_map(rows: Tensor) -> Tensor:
    """(n, C) as a channels-last map (1, C, n, 1), for modules that want one."""
    return rows.t()[None, :, :, None]


def _from_map(x: Tensor) -> Tensor:
    return x[0, :, :, 0].t()
