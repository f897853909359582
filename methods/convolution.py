"""Features of CNNs, either of all positions or with the pointwise MLPs of a ConvNeXt computed for kept patches only.

A ConvNeXt block (arXiv 2201.03545) adds layer_scale(MLP(LayerNorm(depthwise(x)))) to x. The depthwise convolution is
computed at every position; norm, MLP and layer scale, which take some 90 % of the MACs, only at the kept ones. At a
dropped position the block returns x unchanged and the output of the depthwise convolution is discarded. Patches are the
positions of the last feature map. In earlier stages a patch is the square of positions that it covers, which are kept
or dropped together. Stem, downsampling and depthwise convolutions still see dropped positions as neighbours of kept
ones; the pooling leaves them out.

A gate g of a kept patch multiplies its branch in every block and is its weight in the pooling. With g = 0 the result is
the same as with the patch dropped, so the gradient with respect to g follows a straight line from dropped to kept.

All computations use timm's own modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from timm.models.resnet import ResNet
from torch import Tensor


def dense_features(net: ConvNeXt | ResNet, images: Tensor) -> Tensor:
    """Return the mean (B, C) over all positions of the last feature map, after the final norm if there is one."""
    x: Tensor = net.forward_features(images)
    if isinstance(net, ConvNeXt):
        x = _head_norm(net, x)
    return x.mean((2, 3))


@dataclass(frozen=True)
class Patches:
    """Kept patches on a `grid` x `grid` map.

    index: (B, k) positions of the kept patches.
    valid: (B, k) bool, False for padding; None if every index counts.
    gate: (B, k) factors on the branches of the kept patches; None for 1.
    """

    index: Tensor
    valid: Tensor | None
    gate: Tensor | None
    grid: int

    @property
    def weight(self) -> Tensor | None:
        """Weights (B, k) of the patches in the pooling; None if they are equal."""
        if self.gate is None or self.valid is None:
            return self.gate if self.valid is None else self.valid.float()
        return self.gate * self.valid

    def rows(self, scale: int) -> Rows:
        """Locate the kept patches in a map with `scale` x `scale` positions per patch."""
        before = torch.arange(self.index.shape[0], device=self.index.device)[:, None] * self.grid**2
        index, gate = before + self.index, self.gate  # numbered over the whole batch
        if self.valid is not None:
            index, gate = index[self.valid], None if gate is None else gate[self.valid]
        index = index.flatten()  # (K,)
        lines = torch.arange(scale, device=index.device)
        at = ((index // self.grid * scale)[:, None] + lines) * self.grid + (index % self.grid)[:, None]  # (K, scale)
        return Rows(at.flatten(), scale, None if gate is None else gate.flatten().repeat_interleave(scale**2)[:, None])


@dataclass(frozen=True)
class Rows:
    """Kept positions of a channels-last map (B, C, H, W), viewed as a table (B x H x grid, scale x C).

    A row of the table is one line of positions through a patch, so that whole rows can be copied.

    at: indices of the kept rows. scale: positions per patch and side. gate: (kept positions, 1), or None.
    """

    at: Tensor
    scale: int
    gate: Tensor | None

    def table(self, x: Tensor) -> Tensor:
        """View a map (B, C, H, W) as the table."""
        return x.permute(0, 2, 3, 1).reshape(-1, self.scale * x.shape[1])

    def take(self, x: Tensor) -> Tensor:
        """Copy the kept positions of a map: (B, C, H, W) -> (positions, C)."""
        return self.table(x).index_select(0, self.at).view(-1, x.shape[1])

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return the map with `branch` (positions, C) added at the kept positions."""
        b, c, h, w = x.shape
        both = torch.promote_types(x.dtype, branch.dtype)  # they differ in mixed precision
        rows = self.table(x).to(both).index_add(0, self.at, branch.to(both).view(-1, self.scale * c))
        return rows.view(b, h, w, c).permute(0, 3, 1, 2)


def kept_features(net: ConvNeXt, images: Tensor, patches: Patches, masked: bool = False) -> Tensor:
    """Return the mean (B, C) over the kept positions of the last feature map, after the final norm.

    With `masked`, every position is computed and the branches of dropped ones are multiplied by zero: the slow but
    obvious equivalent.
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
    """Apply norm, MLP, layer scale and gate of a block to rows (positions, C)."""
    if block.use_conv_mlp:
        rows = _from_map(block.mlp(block.norm(_as_map(rows))))
    else:
        rows = block.mlp(block.norm(rows))
    if block.gamma is not None:
        rows = rows * block.gamma
    return rows if gate is None else rows * gate


def _mask(patches: Patches) -> Tensor:
    """Return the map (B, 1, grid, grid) that holds the gate of each kept patch (1 without gates) and 0 elsewhere."""
    weight = torch.ones_like(patches.index, dtype=torch.float32) if patches.weight is None else patches.weight
    mask = weight.new_zeros(weight.shape[0], patches.grid**2).scatter_add(1, patches.index, weight)
    return mask.view(-1, 1, patches.grid, patches.grid)


def _head_norm(net: ConvNeXt, x: Tensor) -> Tensor:
    """Apply, before pooling, the norm that timm applies after it; nothing to do where `norm_pre` has done it."""
    norm = getattr(net.head, "norm", None)
    return x if norm is None else norm(x)  # type: ignore[no-any-return]


def _as_map(rows: Tensor) -> Tensor:
    """View rows (n, C) as a channels-last map (1, C, n, 1), for modules that take maps."""
    return rows.t()[None, :, :, None]


def _from_map(x: Tensor) -> Tensor:
    """Invert `_as_map`."""
    return x[0, :, :, 0].t()
