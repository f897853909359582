"""Products: what the formulas for MACs are made of, and those that all transformers share.

A forward pass is a list of products of two operands (a layer and its weight, queries and keys, ...). Its backward pass
has one more product of the same size for every operand that gets a gradient: none of images, none of frozen weights.
With N tokens of width C a block multiplies 4 N C^2 (projections), 2 N^2 C (attention) and 2 mlp N C^2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from timm.layers.attention import Attention
from torch import Tensor, nn

from methods.encoders.vit import ConvStem
from methods.strategies.strategy import Call

if TYPE_CHECKING:
    from methods.encoders.encoder import Encoder

LINEAR, ATTENTION, MIXING, STEM = "projections and MLPs", "attention", "token mixing", "patch embedding"

Kind = Literal["convolutions", "linear layers", "batched products"]  # by the operator that does it
CONV: Kind = "convolutions"
BATCHED: Kind = "batched products"


@dataclass(frozen=True)
class Product:
    """A product in the forward pass: which part of the network, MACs per image, operands that get a gradient."""

    part: str
    macs: float
    gradients: int = 2
    kind: Kind = "linear layers"


Products = Iterator[Product]


@dataclass(frozen=True)
class Pass:
    """One forward pass of an encoder: on which images it is told what, and whether gradients are kept."""

    encoder: Encoder
    images: Tensor
    call: Call
    learns: bool

    @property
    def strategy(self) -> Any:
        return self.encoder.strategy

    @property
    def patches(self) -> int:
        return self.encoder.geometry.patches

    @property
    def prefix(self) -> int:
        return self.encoder.geometry.prefix

    @property
    def dim(self) -> int:
        return self.encoder.geometry.dim

    @property
    def depth(self) -> int:
        return self.encoder.geometry.depth

    @property
    def heads(self) -> int:
        attention = self.encoder.vit.get_submodule("blocks.0.attn")
        assert isinstance(attention, Attention)
        return attention.num_heads

    def stem(self) -> Products:
        """Patchify convolution; or 3x3 convolutions, each on a grid of half the side, and a 1x1 one."""
        geometry, trained = self.encoder.geometry, is_trained(self.encoder.vit.patch_embed)
        if not isinstance(self.encoder.vit.patch_embed, ConvStem):
            yield Product(STEM, geometry.patches * geometry.channels * geometry.patch**2 * geometry.dim, trained, CONV)
            return
        steps = int(math.log2(geometry.patch))
        widths = [geometry.channels, *(geometry.dim // 2 ** (steps - 1 - i) for i in range(steps))]
        for i in range(steps):
            side = geometry.image_size // 2 ** (i + 1)
            yield Product(STEM, side**2 * 9 * widths[i] * widths[i + 1], trained * (2 if i else 1), CONV)
        yield Product(STEM, geometry.patches * geometry.dim**2, 2 * trained, CONV)

    def attend(self, tokens: int, keys: int | None = None, padded: bool = False) -> Products:
        """The first half of a block; `padded`: each head is wider by the dimension that carries a bias."""
        width = self.dim // self.heads
        padding = (-width % 8 or 8) if padded else 0
        yield Product(LINEAR, 4 * tokens * self.dim**2)
        yield Product(ATTENTION, 2 * tokens * (keys or tokens) * self.heads * (width + padding), kind=BATCHED)

    def mlp(self, tokens: int) -> Products:
        yield Product(LINEAR, 2 * self.encoder.geometry.mlp_ratio * tokens * self.dim**2)

    def blocks(self, count: int, tokens: int, keys: int | None = None, padded: bool = False) -> Products:
        for _ in range(count):
            yield from self.attend(tokens, keys, padded)
            yield from self.mlp(tokens)


def by_part(products: list[Product]) -> dict[str, float]:
    """MACs by part of the network."""
    return _sum((product.part, product.macs) for product in products)


def by_kind(products: list[Product]) -> dict[str, float]:
    """MACs by kind of operator."""
    return _sum((product.kind, product.macs) for product in products)


def is_trained(module: nn.Module) -> int:
    return int(any(p.requires_grad for p in module.parameters()))


def _sum(products: Iterator[tuple[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for name, macs in products:
        total[name] = total.get(name, 0.0) + macs
    return {name: macs for name, macs in total.items() if macs}
