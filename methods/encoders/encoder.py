"""An encoder: one of timm's networks, of a family that strategies know, run by a strategy.

Families: plain vision transformers (`vit.py`), ConvNeXt (`convnext.py`), ResNet (`resnet.py`). Which strategies are
defined on which family stands in the registry.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods import family_of
from methods.attention import backend_core
from methods.encoders import convnext, resnet, vit
from methods.strategies.strategy import Call, Encoding, Geometry, Strategy


class Encoder(nn.Module):
    """A network run by a strategy: images (B, channels, H, W) -> Encoding with features (B, C).

    The network is a submodule with the name of its family, so its weights are named by what they are:
    `vit.blocks.0...`, `convnext.stages.0...`, `resnet.layer1...`.
    """

    vit: VisionTransformer

    def __init__(self, network: nn.Module, strategy: Strategy) -> None:
        super().__init__()
        self.family = strategy.geometry.family
        self.add_module(self.family, network)
        self.strategy = strategy

    @property
    def network(self) -> nn.Module:
        """timm's network, whatever its family."""
        return self.get_submodule(self.family)

    @property
    def geometry(self) -> Geometry:
        return self.strategy.geometry

    def forward(self, images: Tensor, call: Call | None = None) -> Encoding:
        return self.strategy(self.network, images, call or Call())  # type: ignore[no-any-return]

    def use_attention(self, backend: str, device: torch.device) -> None:
        """Choose the attention backend by name; raises ValueError where it cannot run."""
        self.strategy.core = backend_core(backend, device)


def build_network(
    name: str, image_size: int, channels: int, positions: str = "sincos", weights: str = ""
) -> tuple[nn.Module, Geometry]:
    """timm's network by name, without head, and its shape. Its weights depend on torch's global seed alone.

    `positions` ("sincos" or "learned") is for transformers; `weights` is "" for random ones, "timm" for timm's
    pre-trained ones (downloaded), else the path of a .safetensors file with timm's parameter names. Raises ValueError
    for a name that is of no family or a size that its patches do not tile, FileNotFoundError for missing weights.
    """
    if family_of(name) == "convnext":
        cnn = convnext.build_convnext(name, image_size, channels, weights)
        return cnn, convnext.geometry_of(cnn, image_size)
    if family_of(name) == "resnet":
        resnet_ = resnet.build_resnet(name, image_size, channels, weights)
        return resnet_, resnet.geometry_of(resnet_, image_size, channels)
    transformer = vit.build_vit(name, image_size, channels, positions, weights)
    return transformer, vit.geometry_of(transformer)
