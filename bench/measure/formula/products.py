"""Products, of which the formulas for MACs consist.

A forward pass is a list of products of two operands (input and weights of a layer, queries and keys, ...). Its backward
pass has a product of the same size for every operand that gets a gradient; images and frozen weights get none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from methods.strategies.strategy import Call

if TYPE_CHECKING:
    from methods.encoders.encoder import Encoder

Kind = Literal["convolutions", "linear layers", "batched products"]  # by operator
LINEAR: Kind = "linear layers"
CONV: Kind = "convolutions"
BATCHED: Kind = "batched products"


@dataclass(frozen=True)
class Product:
    """A product of the forward pass: part of the network, MACs per image, number of operands that get a gradient."""

    part: str
    macs: float
    gradients: int = 2
    kind: Kind = LINEAR


@dataclass(frozen=True)
class Pass:
    """A forward pass of an encoder on some images, with its call; `learns` says whether weights get gradients."""

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


Products = Iterator[Product]
Formula = Callable[[Pass], Products]


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
