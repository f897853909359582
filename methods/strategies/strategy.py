"""What a strategy is: how tokens flow through a vision transformer, from the images to pooled features.

A strategy is a plain module whose `forward` reads like its paper. It is given timm's own VisionTransformer and runs
its parts (`embed`, `run_block`, the final norm); it owns only what the paper adds (a predictor, a learner of tokens).
Strategies that are defined on CNNs too (the registry says which) are given timm's ConvNeXt or ResNet; there the
positions of the last map are what tokens are to a transformer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods import Family, Inference
from methods.attention import Core, run_block
from methods.convolution import dense_features
from methods.noise import Noise


@dataclass(frozen=True)
class Geometry:
    """The shape of an encoder: what a strategy needs to know to build its own parts."""

    image_size: int
    channels: int
    patch: int  # pixels on a side
    dim: int
    depth: int
    prefix: int  # class, distillation and register tokens
    mlp_ratio: float = 4.0
    stem_macs: int = 0  # of the patch embedding, per image
    family: Family = "vit"

    @property
    def grid(self) -> int:
        """Patches on a side."""
        return self.image_size // self.patch

    @property
    def patches(self) -> int:
        return self.grid**2

    def macs(self, kept: int) -> float:
        """MACs per image of stem and blocks with `kept` patch tokens: 2 (2 + mlp) N C^2 + 2 N^2 C a block."""
        n = kept + self.prefix
        block = (4 + 2 * self.mlp_ratio) * n * self.dim**2 + 2 * n**2 * self.dim
        return self.stem_macs + self.depth * block

    def kept_at(self, macs: float) -> float:
        """Patch tokens, not whole ones, with which `macs` are spent: solves stem + depth (a N + b N^2) = macs for N."""
        budget = macs - self.stem_macs
        b = 2.0 * self.dim
        a = (4 + 2 * self.mlp_ratio) * self.dim**2
        return (math.sqrt(a * a + 4 * b * budget / self.depth) - a) / (2 * b) - self.prefix


@dataclass(frozen=True)
class ConvGeometry(Geometry):
    """The shape of a CNN: a patch is what one position of the last map stands for, `patch` the network's stride.

    `stem_macs` are of all that is computed at every position, `patch_macs` of what is computed for one kept patch.
    """

    patch_macs: int = 0

    def macs(self, kept: int) -> float:
        """MACs per image with `kept` patches."""
        return self.stem_macs + kept * self.patch_macs

    def kept_at(self, macs: float) -> float:
        """Patches, not whole ones, with which `macs` are spent."""
        return (macs - self.stem_macs) / self.patch_macs


@dataclass  # not frozen: what converts a model's inputs to another precision makes it anew
class Call:
    """What one forward pass is told besides the images (B, channels, H, W).

    `keep`: keep ratio by the schedule, now; `progress`: share of the run that is over; `noise`: randomness of the
    step, None at inference; `inference`: at inference, whether the strategy acts or all tokens are computed;
    `lesions`: (B, patches) share of each patch inside a lesion, where masks exist.
    """

    keep: float = 1.0
    progress: float = 1.0
    noise: Noise | None = None
    inference: Inference = "pruned"
    lesions: Tensor | None = None

    @property
    def training(self) -> bool:
        return self.noise is not None

    def of(self, role: str) -> Call:
        """The same call for another network (a teacher), with randomness of its own."""
        return replace(self, noise=None if self.noise is None else self.noise.of(role))


@dataclass
class Encoding:
    """What comes out: `features` (B, C); `losses` the strategy's own, weighted; `kept` (B, patches) bool where the
    strategy keeps tokens; `stats` scalars for the diagnostics."""

    features: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    kept: Tensor | None = None
    stats: dict[str, Tensor] = field(default_factory=dict)


class Strategy(nn.Module):
    """Base of all strategies. Subclasses define `forward(network, images, call) -> Encoding` on timm's networks of
    the families for which the registry names them.

    Over several ranks `images` are this rank's own. Losses that are means over images need no more; what depends on the
    whole batch otherwise (a square of its mean, a budget that images share) asks `methods.ranks` for it.
    """

    inference: tuple[Inference, ...] = ("pruned",)  # how it is evaluated, its own way first; set from the registry
    train_execution: ClassVar[Literal["gathered", "masked"]] = "gathered"
    ramps: ClassVar[bool] = False  # does its keep ratio follow the sparsity schedule?
    needs_lesions: ClassVar[bool] = False  # must a call say where lesions are?

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.core: Core | None = None  # attention backend; None is timm's own fused path

    @property
    def target(self) -> float | None:
        """The keep ratio that is used once the ramp is over; None where the strategy has none."""
        return None

    @property
    def adaptive(self) -> bool:
        """Does the number of tokens depend on what is in an image?"""
        return False

    @property
    def stage_shares(self) -> tuple[float, ...]:
        """Shares of the patches that inference keeps after each stage, where training keeps others
        (`Encoding.stats`, kept_share_1 ...); empty elsewhere."""
        return ()

    def meet_target(self, images: Tensor) -> bool:
        """Have an untrained strategy keep its target of `images` (N, channels, H, W) on the mean, as a trained one
        would, so that its cost can be measured; False where only training can say how many tokens it keeps."""
        return not self.adaptive

    def forward(self, network: Any, images: Tensor, call: Call) -> Encoding:
        """All tokens through all blocks: what a strategy does where it does nothing."""
        if not isinstance(network, VisionTransformer):
            return Encoding(dense_features(network, images))
        x = embed(network, images)
        for block in network.blocks:
            x = run_block(block, x, self.core)
        return Encoding(pool(network.norm(x), self.geometry.prefix))


def embed(vit: VisionTransformer, images: Tensor) -> Tensor:
    """Tokens before block 0, (B, prefix + patches, C): the first four lines of timm's `forward_features`.

    Contiguous: a convolution's channels come first in memory, and without a prefix token all blocks would inherit that.
    """
    x = vit.patch_embed(images)
    x = vit._pos_embed(x)
    x = vit.patch_drop(x)
    x = vit.norm_pre(x)
    return x.contiguous()  # type: ignore[no-any-return]


def pool(x: Tensor, prefix: int, weight: Tensor | None = None) -> Tensor:
    """Mean of the patch tokens that are left, (B, prefix + n, C) -> (B, C): the one pooling of all methods.

    `weight` (B, n) says how much each counts: 0 for padding and hidden tokens.
    """
    patches = x[:, prefix:]
    if weight is None:
        return patches.mean(1)
    weight = weight.to(patches.dtype)[..., None]
    return (patches * weight).sum(1) / weight.sum(1).clamp_min(1e-6)


def gather(x: Tensor, index: Tensor, prefix: int) -> Tensor:
    """Prefix tokens and the patch tokens `index` (B, k): (B, prefix + patches, C) -> (B, prefix + k, C)."""
    return take(x, index if prefix == 0 else with_prefix(index, prefix))


def with_prefix(index: Tensor, prefix: int) -> Tensor:
    """Indices (B, k) of patch tokens -> indices (B, prefix + k) of all tokens, the prefix tokens first."""
    front = torch.arange(prefix, device=index.device).expand(index.shape[0], -1)
    return torch.cat([front, index + prefix], 1)


def take(x: Tensor, index: Tensor) -> Tensor:
    """The tokens `index` (B, k) of x (B, N, C), contiguous: whole rows are copied, several times faster on a CPU than
    element by element, above all in the backward pass."""
    b, n, c = x.shape
    first = torch.arange(0, b * n, n, device=x.device)[:, None]  # row of every image's first token
    return x.reshape(b * n, c).index_select(0, (index + first).flatten()).view(b, index.shape[1], c)


def stages(geometry: Geometry, strategy: str) -> tuple[int, int, int]:
    """The blocks at 1/4, 1/2 and 3/4 of the depth (3, 6, 9 of 12), at which tokens are pruned in three stages.

    Raises ValueError for encoders of fewer than four blocks.
    """
    if geometry.depth < 4:
        raise ValueError(
            f"{strategy} prunes in 3 stages and needs an encoder of at least 4 blocks; this one has {geometry.depth}."
        )
    return geometry.depth // 4, geometry.depth // 2, 3 * geometry.depth // 4


def as_mask(index: Tensor, patches: int, valid: Tensor | None = None) -> Tensor:
    """Indices (B, k), of which those with `valid` (B, k) count, as a boolean mask (B, patches)."""
    mask = torch.zeros(index.shape[0], patches, dtype=torch.bool, device=index.device)
    return mask.scatter(1, index, True if valid is None else valid)
