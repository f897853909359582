"""Vision transformers: timm's plain ViTs, and small ones that train in minutes on a laptop.

Every plain ViT in timm can be built by name, at any image size that its patches tile, with 1 or 3 channels. The small
ones have a convolutional stem (Xiao et al., "Early Convolutions Help Transformers See Better", NeurIPS 2021). Position
embeddings are fixed 2-D sine-cosine, as in MoCo v3, unless learned ones are requested or loaded with weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from methods import ENCODERS
from methods.encoders.weights import check_tiling, load_weights
from methods.names import did_you_mean
from methods.strategies.strategy import Geometry


class ConvStem(nn.Module):
    """Convolutional stem that maps images (B, in_chans, H, W) to tokens (B, patches, embed_dim).

    log2(patch_size) 3x3 convolutions with stride 2, batch norm and ReLU, each twice as wide as the one before, are
    followed by a 1x1 convolution. The signature is that of timm's PatchEmbed, which it replaces.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        bias: bool = True,
        dynamic_img_pad: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        side = img_size if isinstance(img_size, int) else img_size[0]
        self.grid_size = (side // patch_size, side // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.patch_size = (patch_size, patch_size)
        steps = patch_size.bit_length() - 1
        widths = [in_chans, *(embed_dim // 2 ** (steps - 1 - i) for i in range(steps))]
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1, bias=bias))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]  # (B, patches, C)


SMALL: dict[str, dict[str, Any]] = {
    "vit_stem_d64_l4_patch8": {"embed_dim": 64, "depth": 4, "num_heads": 4, "patch_size": 8},
    "vit_stem_d96_l6_patch8": {"embed_dim": 96, "depth": 6, "num_heads": 4, "patch_size": 8},
    "vit_stem_d192_l8_patch16": {"embed_dim": 192, "depth": 8, "num_heads": 6, "patch_size": 16},
}


def build_vit(
    name: str, image_size: int, channels: int, positions: str = "sincos", weights: str = ""
) -> VisionTransformer:
    """Build a plain ViT of timm's, or one of `SMALL`, by name and without head.

    weights: "" for random initial weights, which depend only on torch's global seed; "timm" to download timm's
    pre-trained weights; otherwise the path of a .safetensors file with timm's parameter names.

    Raises ValueError for a name that is not a plain ViT and for an image size that the patches do not tile,
    FileNotFoundError for a missing weights file.
    """
    if name in SMALL:
        config = SMALL[name]
        check_tiling(name, image_size, config["patch_size"])
        vit = VisionTransformer(
            img_size=image_size,
            in_chans=channels,
            num_classes=0,
            global_pool="",
            class_token=False,
            embed_layer=ConvStem,
            **config,
        )
    else:
        vit = _timm_vit(name, image_size, channels, pretrained=weights == "timm")
    if weights not in ("", "timm"):
        load_weights(vit, Path(weights), channels, checkpoint_filter_fn)  # resizes position and patch embeddings
    elif weights == "" and positions == "sincos":
        _fix_positions(vit)
    return vit


def _timm_vit(name: str, image_size: int, channels: int, pretrained: bool) -> VisionTransformer:
    if not timm.is_model(name):
        raise ValueError(
            f"unknown encoder '{name}': {did_you_mean(name, ENCODERS)}use a plain ViT, ConvNeXt or ResNet from timm, "
            f"or one of {', '.join(SMALL)}."
        )
    patch = next((int(p[5:]) for p in name.split(".")[0].split("_") if p.startswith("patch") and p[5:].isdecimal()), 0)
    if patch:
        check_tiling(name, image_size, patch)
    pooling = "token" if "distilled" in name else ""  # unused without a head, but distilled models require "token"
    try:
        vit = timm.create_model(
            name, pretrained=pretrained, img_size=image_size, in_chans=channels, num_classes=0, global_pool=pooling
        )
    except TypeError as error:
        raise ValueError(
            f"encoder '{name}' is not a plain ViT, because timm takes no image size for it: use one of those that "
            "`python -m bench.list` names."
        ) from error
    if not isinstance(vit, VisionTransformer) or not _is_plain(vit):
        raise ValueError(
            f"encoder '{name}' belongs to none of the families on which strategies are defined: use a plain ViT, "
            "ConvNeXt or ResNet from timm."
        )
    return vit


def _is_plain(vit: VisionTransformer) -> bool:
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block

    return all(type(b) is Block and type(b.attn) is Attention and b.attn.gate is None for b in vit.blocks)


def _fix_positions(vit: VisionTransformer) -> None:
    """Set fixed 2-D sine-cosine position embeddings on the patch grid; those of prefix tokens are zero."""
    if vit.pos_embed is None:
        return
    _, n, dim = vit.pos_embed.shape
    grid: Sequence[int] = vit.patch_embed.grid_size
    table = build_sincos2d_pos_embed(list(grid), dim=dim, interleave_sin_cos=False)  # (patches, C)
    prefix = n - table.shape[0]
    with torch.no_grad():
        vit.pos_embed.copy_(nn.functional.pad(table, (0, 0, prefix, 0))[None])
    vit.pos_embed.requires_grad_(False)


def geometry_of(vit: VisionTransformer) -> Geometry:
    """Return the geometry of a ViT."""
    fc1 = vit.get_submodule("blocks.0.mlp.fc1")
    assert isinstance(fc1, nn.Linear)
    channels, side = vit.in_chans, vit.patch_embed.grid_size[0] * vit.patch_embed.patch_size[0]
    return Geometry(
        image_size=side,
        channels=channels,
        patch=vit.patch_embed.patch_size[0],
        dim=vit.embed_dim,
        depth=len(vit.blocks),
        prefix=vit.num_prefix_tokens,
        mlp_ratio=fc1.out_features / vit.embed_dim,
        stem_macs=_stem_macs(vit.patch_embed, side),
    )


def _stem_macs(stem: nn.Module, side: int) -> int:
    """Return the MACs of the stem's convolutions for an image with `side` pixels on a side."""
    total = 0
    for layer in stem.modules():
        if isinstance(layer, nn.Conv2d):
            side = side // layer.stride[0]
            kernel = layer.kernel_size[0] * layer.kernel_size[1]
            total += side * side * kernel * layer.in_channels * layer.out_channels // layer.groups
    return total
