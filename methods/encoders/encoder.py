"""Encoder: a timm network that is run by a strategy.

The families are plain vision transformers (`vit.py`), ConvNeXts (`convnext.py`) and ResNets (`resnet.py`). The registry
(`methods/__init__.py`) lists the families on which each strategy is defined.
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
    """Module that maps images (B, channels, H, W) to an Encoding with features (B, C).

    The network is a submodule named after its family, so that weights have names such as `vit.blocks.0...`,
    `convnext.stages.0...` or `resnet.layer1...`.
    """

    vit: VisionTransformer

    def __init__(self, network: nn.Module, strategy: Strategy) -> None:
        super().__init__()
        self.family = strategy.geometry.family
        self.add_module(self.family, network)
        self.strategy = strategy

    @property
    def network(self) -> nn.Module:
        """The timm network, of any family."""
        return self.get_submodule(self.family)

    @property
    def geometry(self) -> Geometry:
        """Shape of the network."""
        return self.strategy.geometry

    def forward(self, images: Tensor, call: Call | None = None) -> Encoding:
        return self.strategy(self.network, images, call or Call())  # type: ignore[no-any-return]

    def use_attention(self, backend: str, device: torch.device) -> None:
        """Choose the attention backend by name. Raises ValueError if it cannot run on `device`."""
        self.strategy.core = backend_core(backend, device)


def build_network(
    name: str, image_size: int, channels: int, positions: str = "sincos", weights: str = ""
) -> tuple[nn.Module, Geometry]:
    """Build a timm network by name, without head; return it with its geometry.

    positions: "sincos" or "learned" position embeddings, for transformers.
    weights: "" for random initial weights, which depend only on torch's global seed; "timm" to download timm's
    pre-trained weights; otherwise the path of a .safetensors file with timm's parameter names.

    Raises ValueError for a name of no known family and for an image size that the patches do not tile,
    FileNotFoundError for a missing weights file.
    """
    if family_of(name) == "convnext":
        cnn = convnext.build_convnext(name, image_size, channels, weights)
        return cnn, convnext.geometry_of(cnn, image_size)
    if family_of(name) == "resnet":
        resnet_ = resnet.build_resnet(name, image_size, channels, weights)
        return resnet_, resnet.geometry_of(resnet_, image_size, channels)
    transformer = vit.build_vit(name, image_size, channels, positions, weights)
    return transformer, vit.geometry_of(transformer)
