"""MACs of a ResNet (arXiv 1512.03385) by formula: those of its convolutions.

The stem ends in a pooling to a quarter of the image side. The first stage has that side, each later stage half the side
of the previous one. On P positions with `came` input channels, a basic block of width w has P (9 came w + 9 w^2) MACs,
a bottleneck P (came w + 9 w^2 + 4 w^2). In the first block of a stage, the first product of a bottleneck runs on the
positions of the previous stage, because timm has the stride in the 3x3 convolution, and the input is projected if its
shape changes.
"""

from __future__ import annotations

from typing import Any

from timm.models.resnet import Bottleneck
from torch import nn

from bench.measure.formula.products import CONV, Formula, Pass, Product, Products
from methods.strategies.dense import Dense

PART = "convolutions"
EXPANSION = 4  # of a bottleneck


def is_plain(net: Any) -> bool:
    """Whether the formula holds for a network: pooling in the stem, no channel attention, no blur, no groups."""
    blocks = [block for layer in _layers(net) for block in layer]
    return isinstance(net.maxpool, nn.MaxPool2d) and not any(
        block.se is not None or not isinstance(block.aa, nn.Identity) or block.conv2.groups > 1 for block in blocks
    )


def always(run: Pass) -> Products:
    """Products of the stem: a 7x7 convolution of stride 2, or three 3x3 convolutions."""
    geometry, net = run.encoder.geometry, run.encoder.network
    positions, channels = (geometry.image_size // 2) ** 2, [geometry.channels, *_stem_widths(net)]
    kernel = 7 if len(channels) == 2 else 3
    for i, (came, width) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
        yield Product(PART, positions * kernel**2 * came * width, 2 if i else 1, CONV)  # images get no gradient


def _dense(run: Pass) -> Products:
    net: Any = run.encoder.network
    came, side = _stem_widths(net)[-1], run.encoder.geometry.image_size // 4
    for i, layer in enumerate(_layers(net)):
        for j, block in enumerate(layer):
            before = side**2
            if i and not j:
                side //= 2
            macs, out = _block(isinstance(block, Bottleneck), came, block.conv2.out_channels, before, side**2)
            yield Product(PART, macs, kind=CONV)
            came = out


def _block(bottleneck: bool, came: int, width: int, before: int, positions: int) -> tuple[int, int]:
    """MACs and output width of a block with `came` input channels on `before` positions, and `positions` in its
    output."""
    out = EXPANSION * width if bottleneck else width
    shortcut = positions * came * out if came != out or before != positions else 0
    if bottleneck:
        return before * came * width + positions * (9 * width**2 + width * out) + shortcut, out
    return positions * 9 * (came * width + width**2) + shortcut, out


def _stem_widths(net: Any) -> list[int]:
    return [layer.out_channels for layer in net.conv1.modules() if isinstance(layer, nn.Conv2d)]


def _layers(net: Any) -> list[Any]:
    return [net.layer1, net.layer2, net.layer3, net.layer4]


FORMULAS: dict[type, Formula] = {Dense: _dense}
