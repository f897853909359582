"""Base class of strategies, and the steps that they share: how images become pooled features.

A strategy is a plain module whose `forward` reads like its paper. It receives timm's VisionTransformer and runs its
parts (`embed`, `run_block`, the final norm). It owns only what the paper adds, such as a predictor or a token learner.
Strategies that are also defined on CNNs (see the registry) receive timm's ConvNeXt or ResNet, whose positions in the
last feature map correspond to the tokens of a transformer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods import Family, Inference, Value
from methods.attention import Core, run_block
from methods.convolution import dense_features
from methods.noise import Noise


@dataclass(frozen=True)
class Geometry:
    """Shape of an encoder, from which a strategy builds its own parts."""

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
        """Number of patches on a side."""
        return self.image_size // self.patch

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.grid**2

    def macs(self, kept: int) -> float:
        """Return the MACs per image of stem and blocks with `kept` patch tokens.

        A block takes 2 (2 + mlp_ratio) N C^2 + 2 N^2 C, with N tokens including the prefix.
        """
        n = kept + self.prefix
        block = (4 + 2 * self.mlp_ratio) * n * self.dim**2 + 2 * n**2 * self.dim
        return self.stem_macs + self.depth * block

    def kept_at(self, macs: float) -> float:
        """Return the number of patch tokens, a real number, that takes `macs`: the inverse of `macs`.

        Solves stem + depth (a N + b N^2) = macs for N.
        """
        budget = macs - self.stem_macs
        b = 2.0 * self.dim
        a = (4 + 2 * self.mlp_ratio) * self.dim**2
        return (math.sqrt(a * a + 4 * b * budget / self.depth) - a) / (2 * b) - self.prefix


@dataclass(frozen=True)
class ConvGeometry(Geometry):
    """Shape of a CNN, in which a patch is the square of pixels that one position of the last feature map covers.

    `patch` is the stride of the network. `stem_macs` counts what is computed at every position, `patch_macs` what is
    computed for one kept patch.
    """

    patch_macs: int = 0

    def macs(self, kept: int) -> float:
        """Return the MACs per image with `kept` patches."""
        return self.stem_macs + kept * self.patch_macs

    def kept_at(self, macs: float) -> float:
        """Return the number of patches, a real number, that takes `macs`: the inverse of `macs`."""
        return (macs - self.stem_macs) / self.patch_macs


@dataclass  # not frozen, because mixed precision copies and converts the inputs of a model
class Call:
    """Inputs of a forward pass besides the images (B, channels, H, W).

    keep: current keep ratio of the schedule.
    progress: completed share of the run, 0 to 1.
    noise: random numbers of the training step; None at inference.
    inference: at inference, "pruned" lets the strategy act, "dense" computes all tokens, "mean" and "shuffled" keep the
        patches `kept`.
    kept: (B, patches) bool, patches that inference keeps instead of the strategy's own choice.
    lesions: (B, patches) share of each patch inside a lesion, where masks exist.
    """

    keep: float = 1.0
    progress: float = 1.0
    noise: Noise | None = None
    inference: Inference = "pruned"
    kept: Tensor | None = None
    lesions: Tensor | None = None

    @property
    def training(self) -> bool:
        """Whether this is a training step."""
        return self.noise is not None

    def of(self, role: str) -> Call:
        """Return the same call for another network, such as a teacher, which draws different random numbers."""
        return replace(self, noise=None if self.noise is None else self.noise.of(role))


@dataclass
class Encoding:
    """Result of a forward pass.

    features: (B, C).
    losses: weighted loss terms of the strategy, by name.
    kept: (B, patches) bool, for strategies that keep some of the tokens.
    scores: (B, patches) by which patches are kept, the highest first, for strategies that rank all patches of an image.
    stats: scalars for diagnostics, by name.
    """

    features: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    kept: Tensor | None = None
    stats: dict[str, Tensor] = field(default_factory=dict)
    scores: Tensor | None = None


class Strategy(nn.Module):
    """Base class of strategies.

    Subclasses define `forward(network, images, call) -> Encoding` for the families that the registry lists.

    On several ranks, `images` are those of this rank. Losses that are means over images need no further care. Whatever
    else depends on the whole batch, such as the square of a mean or a budget shared by images, must be computed over
    all ranks with `methods.ranks`.
    """

    inference: tuple[Inference, ...] = ("pruned",)  # evaluation modes, the default one first; set from the registry
    train_execution: ClassVar[Literal["gathered", "masked"]] = "gathered"
    ramps: ClassVar[bool] = False  # whether the keep ratio follows the sparsity schedule
    needs_lesions: ClassVar[bool] = False  # whether calls must have `lesions`

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.core: Core | None = None  # attention backend; None for timm's own fused path

    @property
    def target(self) -> float | None:
        """Keep ratio after the ramp; None for strategies without one."""
        return None

    @property
    def lr_factors(self) -> dict[str, float]:
        """Factors on the learning rate, by the beginning of the names of the encoder's parameters."""
        return {}

    @property
    def computed(self) -> dict[str, Value]:
        """Values in use of options whose default stands for a computed value."""
        return {}

    @property
    def adaptive(self) -> bool:
        """Whether the number of kept tokens depends on the image."""
        return False

    @property
    def stage_shares(self) -> tuple[float, ...]:
        """Shares of the patches that inference keeps after each stage; empty if training keeps the same shares.

        Those of training are in `Encoding.stats`, as kept_share_1 and so on.
        """
        return ()

    def start_from(self, network: nn.Module) -> None:
        """Take notice that training continues from this network, which is already that of the encoder."""

    def calibrate(self, images: Tensor) -> bool:
        """Make an untrained strategy keep its target ratio of `images` (N, channels, H, W) on average.

        The cost of a trained strategy can then be measured without training. Returns False if only training determines
        how many tokens the strategy keeps.
        """
        return not self.adaptive

    def forward(self, network: Any, images: Tensor, call: Call) -> Encoding:
        """Compute all tokens in all blocks, the behaviour of an inactive strategy."""
        if not isinstance(network, VisionTransformer):
            return Encoding(dense_features(network, images))
        x = embed(network, images)
        for block in network.blocks:
            x = run_block(block, x, self.core)
        return Encoding(pool(network.norm(x), self.geometry.prefix))


def embed(vit: VisionTransformer, images: Tensor) -> Tensor:
    """Return the tokens before block 0, (B, prefix + patches, C), as timm's `forward_features` computes them.

    They are contiguous. A convolution puts channels first in memory, and without a prefix token all blocks would keep
    that layout.
    """
    x = vit.patch_embed(images)
    x = vit._pos_embed(x)
    x = vit.patch_drop(x)
    x = vit.norm_pre(x)
    return x.contiguous()  # type: ignore[no-any-return]


def pool(x: Tensor, prefix: int, weight: Tensor | None = None) -> Tensor:
    """Average the remaining patch tokens, (B, prefix + n, C) -> (B, C). All methods share this pooling.

    `weight` (B, n) are the weights of the tokens, 0 for padding and hidden tokens.
    """
    patches = x[:, prefix:]
    if weight is None:
        return patches.mean(1)
    weight = weight.to(patches.dtype)[..., None]
    return (patches * weight).sum(1) / weight.sum(1).clamp_min(1e-6)


def gather(x: Tensor, index: Tensor, prefix: int) -> Tensor:
    """Copy the prefix tokens and the patch tokens `index` (B, k): (B, prefix + patches, C) -> (B, prefix + k, C)."""
    return take(x, index if prefix == 0 else with_prefix(index, prefix))


def with_prefix(index: Tensor, prefix: int) -> Tensor:
    """Convert indices (B, k) of patch tokens to indices (B, prefix + k) of all tokens, prefix tokens first."""
    front = torch.arange(prefix, device=index.device).expand(index.shape[0], -1)
    return torch.cat([front, index + prefix], 1)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Copy the tokens `index` (B, k) of x (B, N, C) into a contiguous tensor (B, k, C).

    Whole rows are copied, which on a CPU is several times faster than `gather`, above all in the backward pass.
    """
    b, n, c = x.shape
    first = torch.arange(0, b * n, n, device=x.device)[:, None]  # row of the first token of each image
    return x.reshape(b * n, c).index_select(0, (index + first).flatten()).view(b, index.shape[1], c)


def stages(geometry: Geometry, strategy: str) -> tuple[int, int, int]:
    """Return the blocks at 1/4, 1/2 and 3/4 of the depth (3, 6, 9 of 12), which prune tokens in three stages.

    Raises ValueError for encoders with fewer than four blocks.
    """
    if geometry.depth < 4:
        raise ValueError(
            f"{strategy} prunes in 3 stages and needs an encoder with at least 4 blocks; this one has {geometry.depth}."
        )
    return geometry.depth // 4, geometry.depth // 2, 3 * geometry.depth // 4


def as_mask(index: Tensor, patches: int, valid: Tensor | None = None) -> Tensor:
    """Convert indices (B, k) to a boolean mask (B, patches); indices where `valid` (B, k) is False are ignored."""
    mask = torch.zeros(index.shape[0], patches, dtype=torch.bool, device=index.device)
    return mask.scatter(1, index, True if valid is None else valid)
