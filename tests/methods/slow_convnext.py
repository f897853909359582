"""Slow reference of a ConvNeXt with dropped patches, written from the equations: one position of an image at a time.

It shares only the weights (timm's parameters by name) with the package, so that gradients can be compared too.
"""

from __future__ import annotations

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from tests.methods.slow import gelu, layer_norm, linear, shake


def small(channels: int = 1, conv_mlp: bool = False, layer_scale: float | None = 0.5, seed: int = 0) -> ConvNeXt:
    """Build a network of two stages with strides 4 and 8, all parameters moved off their initial values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ConvNeXt(
            in_chans=channels,
            num_classes=0,
            depths=(1, 2, 0, 0),
            dims=(6, 8, 8, 8),
            kernel_sizes=3,
            conv_mlp=conv_mlp,
            ls_init_value=layer_scale,
        )
        net.stages = net.stages[:2]
        shake(net)
    return net


def features(net: ConvNeXt, image: Tensor, gates: list[Tensor | float], grid: int) -> Tensor:
    """Compute the features (C,) of one image (channels, H, W); `gates` are those of the patches in reading order, 0 for
    dropped ones."""
    x = _channel_norm(net.stem[1], _patchify(net.stem[0], image))
    for stage in net.stages:
        if not isinstance(stage.downsample, nn.Identity):
            x = _patchify(stage.downsample[1], _channel_norm(stage.downsample[0], x))
        for block in stage.blocks:
            x = _block(block, x, gates, grid)
    rows = [x[:, p // grid, p % grid] for p in range(grid * grid)]
    total = sum(gate * layer_norm(net.head.norm, row) for gate, row in zip(gates, rows, strict=True))
    return total / sum(gates)  # type: ignore[no-any-return, return-value]


def _patchify(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution whose kernel is as wide as its stride."""
    step = conv.stride[0]
    rows = []
    for top in range(0, x.shape[1], step):
        row = [
            conv.weight.flatten(1) @ x[:, top : top + step, left : left + step].flatten() + conv.bias
            for left in range(0, x.shape[2], step)
        ]
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1)


def _channel_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return layer_norm(norm, x.permute(1, 2, 0)).permute(2, 0, 1)


def _block(block: nn.Module, x: Tensor, gates: list[Tensor | float], grid: int) -> Tensor:
    """Add the branch, times the gate, to the residual, unless the patch is dropped."""
    conv, side = block.conv_dw, x.shape[1]
    reach = conv.kernel_size[0] // 2
    padded = nn.functional.pad(x, (reach,) * 4)
    rows = []
    for i in range(side):
        row = []
        for j in range(side):
            gate = gates[(i * grid // side) * grid + j * grid // side]
            if isinstance(gate, float) and gate == 0.0:
                row.append(x[:, i, j])
                continue
            window = padded[:, i : i + 2 * reach + 1, j : j + 2 * reach + 1]
            branch = layer_norm(block.norm, (window * conv.weight[:, 0]).sum((1, 2)) + conv.bias)
            branch = _linear(block.mlp.fc2, gelu(_linear(block.mlp.fc1, branch)))
            branch = branch if block.gamma is None else branch * block.gamma
            row.append(x[:, i, j] + gate * branch)
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1)


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return layer.weight[:, :, 0, 0] @ x + layer.bias
    return linear(layer, x)  # type: ignore[arg-type]
