"""ConvNeXt (Liu et al., CVPR 2022, arXiv 2201.03545): timm's, as it is.

Any of timm's `convnext_*`, at any image size that its stride tiles, with 1 or 3 channels; and a small one that learns
in minutes on a laptop. A patch is what one position of the last map stands for: 32 pixels on a side, so 49 at 224 px.
The network runs in the channels-last memory format, in which depthwise convolutions are some three times as fast on a
CPU and the pointwise MLPs find their rows side by side.
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
from methods.names import meant
from methods.strategies.strategy import ConvGeometry

# The first stages of timm's four; layer scale starts at 0.1, for 1e-6 takes longer to grow than these networks train.
SMALL: dict[str, dict[str, Any]] = {
    "convnext_d64_l6_patch8": {"depths": (2, 4), "dims": (32, 64), "ls_init_value": 0.1},
}
STAGES = 4  # of timm's ConvNeXt
STRIDE = 32  # of the stem and the stages after it


def build_convnext(name: str, image_size: int, channels: int, weights: str = "") -> ConvNeXt:
    """timm's ConvNeXt by name, without classifier; its final norm is `head.norm`.

    `weights` as in `build_network`. Raises ValueError for a name that is no ConvNeXt or a size that the stride does not
    tile, FileNotFoundError for missing weights.
    """
    if name in SMALL:
        net: Any = _first_stages(channels, **SMALL[name])
    else:
        if not timm.is_model(name):
            raise ValueError(
                f"unknown encoder '{name}': {meant(name, ENCODERS)}use a ConvNeXt of timm's, or one of "
                f"{', '.join(SMALL)}."
            )
        net = timm.create_model(name, pretrained=weights == "timm", in_chans=channels, num_classes=0)
        if not isinstance(net, ConvNeXt) or any(isinstance(m, GlobalResponseNormMlp) for m in net.modules()):
            raise ValueError(
                f"encoder '{name}' is not one of timm's first ConvNeXts (convnext_*): in the second version each "
                "position's MLP is normed over all positions, so none can be left out."
            )
    check_tiling(name, image_size, _stride(net))
    if weights not in ("", "timm"):
        load_weights(net, Path(weights), channels)
    return net.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def _first_stages(channels: int, depths: tuple[int, ...], dims: tuple[int, ...], **options: Any) -> ConvNeXt:
    """timm's ConvNeXt that ends after the stages given; those left out have no blocks and the last one's width."""
    left = STAGES - len(depths)
    net = ConvNeXt(
        in_chans=channels, num_classes=0, depths=(*depths, *[0] * left), dims=(*dims, *dims[-1:] * left), **options
    )
    net.stages = net.stages[: len(depths)]
    return net


def _stride(net: ConvNeXt) -> int:
    return STRIDE >> (STAGES - len(net.stages))


def geometry_of(net: ConvNeXt, image_size: int) -> ConvGeometry:
    """The shape of a ConvNeXt: what is computed at every position, and the pointwise MLPs of one patch."""
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
