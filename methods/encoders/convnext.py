"""ConvNeXt (Liu et al., CVPR 2022, arXiv 2201.03545), in timm's implementation.

Every `convnext_*` in timm can be built by name, at any image size that is a multiple of its stride, with 1 or 3
channels; so can a small one that trains in minutes on a laptop. A patch is the square of pixels that one position of
the last feature map covers: 32 pixels on a side, so 49 patches at 224 px. The network uses the channels-last memory
format, in which depthwise convolutions are about three times as fast on a CPU and the rows of the pointwise MLPs are
contiguous.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.mlp import GlobalResponseNormMlp
from timm.models.convnext import ConvNeXt, ConvNeXtBlock

from methods import ENCODERS
from methods.encoders.macs import layer_macs
from methods.encoders.weights import check_tiling, load_weights
from methods.names import did_you_mean
from methods.strategies.strategy import ConvGeometry

# The first stages of timm's four. Layer scale starts at 0.1, because 1e-6 would not grow within so short a training.
SMALL: dict[str, dict[str, Any]] = {
    "convnext_d64_l6_patch8": {"depths": (2, 4), "dims": (32, 64), "ls_init_value": 0.1},
}
STAGES = 4  # number of stages in timm's ConvNeXt
STRIDE = 32  # of stem and stages together


def build_convnext(name: str, image_size: int, channels: int, weights: str = "") -> ConvNeXt:
    """Build a ConvNeXt of timm's, or one of `SMALL`, by name and without classifier; its final norm is `head.norm`.

    `weights` as in `build_network`. Raises ValueError for a name that is not a ConvNeXt and for an image size that is
    not a multiple of the stride, FileNotFoundError for a missing weights file.
    """
    if name in SMALL:
        net: Any = _first_stages(channels, **SMALL[name])
    else:
        if not timm.is_model(name):
            raise ValueError(
                f"unknown encoder '{name}': {did_you_mean(name, ENCODERS)}use a ConvNeXt from timm, or one of "
                f"{', '.join(SMALL)}."
            )
        net = timm.create_model(name, pretrained=weights == "timm", in_chans=channels, num_classes=0)
        if not isinstance(net, ConvNeXt) or any(isinstance(m, GlobalResponseNormMlp) for m in net.modules()):
            raise ValueError(
                f"encoder '{name}' is not a first-version ConvNeXt from timm (convnext_*): the second version "
                "normalises the MLPs over all positions, so that no position can be left out. Use e.g. convnext_tiny."
            )
    check_tiling(name, image_size, _stride(net))
    if weights not in ("", "timm"):
        load_weights(net, Path(weights), channels)
    return net.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def _first_stages(channels: int, depths: tuple[int, ...], dims: tuple[int, ...], **options: Any) -> ConvNeXt:
    """Build timm's ConvNeXt and cut it off after the given stages."""
    left = STAGES - len(depths)  # timm wants four stages: the others get no blocks and the last width
    net = ConvNeXt(
        in_chans=channels, num_classes=0, depths=(*depths, *[0] * left), dims=(*dims, *dims[-1:] * left), **options
    )
    net.stages = net.stages[: len(depths)]
    return net


def _stride(net: ConvNeXt) -> int:
    return STRIDE >> (STAGES - len(net.stages))


def geometry_of(net: ConvNeXt, image_size: int) -> ConvGeometry:
    """Return the geometry of a ConvNeXt, with the MACs computed at every position and those of one patch's MLPs."""
    macs = layer_macs(net, torch.empty(2, net.in_chans, image_size, image_size, device="meta"))
    pointwise = sum(value for name, value in macs.items() if ".mlp." in name)
    patches = (image_size // _stride(net)) ** 2
    return ConvGeometry(
        image_size=image_size,
        channels=net.in_chans,
        patch=_stride(net),
        dim=net.num_features,
        depth=sum(isinstance(layer, ConvNeXtBlock) for layer in net.modules()),
        prefix=0,
        stem_macs=sum(macs.values()) - pointwise,
        patch_macs=pointwise // patches,
        family="convnext",
    )
