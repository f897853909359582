"""ResNet (He et al., CVPR 2016, arXiv 1512.03385), in timm's implementation, for the strategy `dense` only.

Every `resnet*` of timm's ResNet class can be built by name, at any image size that is a multiple of 32 px, with 1 or 3
channels. The network uses the channels-last memory format, which is faster on a CPU. It ends in batch norm and ReLU,
so that features are pooled without another norm.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from timm.models.resnet import ResNet

from methods import ENCODERS
from methods.encoders.macs import layer_macs
from methods.encoders.weights import check_tiling, load_weights
from methods.names import did_you_mean
from methods.strategies.strategy import ConvGeometry

STRIDE = 32


def build_resnet(name: str, image_size: int, channels: int, weights: str = "") -> ResNet:
    """Build a ResNet of timm's by name, without head; `weights` as in `build_network`.

    Raises ValueError for a name that is not a ResNet and for an image size that is not a multiple of 32,
    FileNotFoundError for a missing weights file.
    """
    if not timm.is_model(name):
        raise ValueError(
            f"unknown encoder '{name}': {did_you_mean(name, ENCODERS)}use a ResNet from timm, e.g. resnet50."
        )
    net = timm.create_model(name, pretrained=weights == "timm", in_chans=channels, num_classes=0)
    if not isinstance(net, ResNet):
        raise ValueError(f"encoder '{name}' is not a plain ResNet from timm: use e.g. resnet50.")
    check_tiling(name, image_size, STRIDE)
    if weights not in ("", "timm"):
        load_weights(net, Path(weights), channels)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def geometry_of(net: ResNet, image_size: int, channels: int) -> ConvGeometry:
    """Return the geometry of a ResNet, all of whose MACs are spent at every position."""
    macs = layer_macs(net, torch.empty(2, channels, image_size, image_size, device="meta"))
    return ConvGeometry(
        image_size=image_size,
        channels=channels,
        patch=STRIDE,
        dim=net.num_features,
        depth=sum(len(getattr(net, f"layer{i}")) for i in (1, 2, 3, 4)),
        prefix=0,
        stem_macs=sum(macs.values()),
        family="resnet",
    )
