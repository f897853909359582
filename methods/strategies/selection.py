"""Selection before block 0: choose patches of the image, gather their tokens, run the rest on them alone.

SparseContrast and its controls differ only in `choose`: everything after the choice is the same code. On a ConvNeXt
the choice is made once as well, on the grid of the last map, and holds at all resolutions (`methods/convolution.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from methods.attention import HIDDEN, Core, RaggedCore, key_bias_core, run_block, trimmed_core
from methods.convolution import Patches, kept_features
from methods.schedule import kept_tokens
from methods.strategies.strategy import Call, Encoding, Geometry, Strategy, as_mask, embed, gather, pool, with_prefix


@dataclass
class Choice:
    """Which patches are kept.

    `index` (B, k) of patches, in ascending order; `valid` (B, k) bool where images keep different numbers and the
    rest is padding; `token_scale` (B, k) multiplies the kept tokens and `key_bias` (B, k) is added to the attention
    logits of the kept keys (both carry gradients to a predictor); `fuse` (B, patches) are weights with which dropped
    tokens are averaged into one more token, which is attended to and not pooled; with `keys_only` the dropped tokens
    stay as queries and in the MLPs, and only their keys are trimmed; losses and stats as in Encoding.
    """

    index: Tensor
    valid: Tensor | None = None
    token_scale: Tensor | None = None
    key_bias: Tensor | None = None
    fuse: Tensor | None = None
    keys_only: bool = False
    losses: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)


class Selection(Strategy):
    """Base: subclasses say which patches with `choose(images, call) -> Choice`, or None for all of them.

    `execution` "gathered" computes the kept tokens only; "masked" computes all of them and hides the dropped ones as
    keys and in the pooling: the slow, obvious equivalent, for tests and for showing what masks cost.
    """

    ramps = True

    def __init__(self, geometry: Geometry, keep: float, execution: str = "gathered") -> None:
        super().__init__(geometry)
        self.keep = keep
        self.execution = execution

    @property
    def target(self) -> float:
        return self.keep

    def choose(self, images: Tensor, call: Call) -> Choice | None:
        raise TypeError(f"{type(self).__name__} does not say which patches it keeps")

    def forward(self, network: Any, images: Tensor, call: Call) -> Encoding:
        if not call.training and call.inference == "dense":
            return super().forward(network, images, call)
        choice = self.choose(images, call)
        if choice is None:
            return super().forward(network, images, call)
        run = self._run_convnext if isinstance(network, ConvNeXt) else self._run_vit
        kept = as_mask(choice.index, self.geometry.patches, choice.valid)
        return Encoding(run(network, images, choice), choice.losses, kept, choice.stats)

    def _run_convnext(self, net: ConvNeXt, images: Tensor, choice: Choice) -> Tensor:
        """Features (B, C) of a CNN. Raises ValueError for a choice that speaks of attention or of tokens."""
        if choice.key_bias is not None or choice.fuse is not None or choice.keys_only:
            raise ValueError(
                "a CNN has no keys to bias or to trim and no token to fuse into: keep patches, or scale them."
            )
        patches = Patches(choice.index, choice.valid, choice.token_scale, self.geometry.grid)
        return kept_features(net, images, patches, masked=self.execution == "masked")

    def _run_vit(self, vit: VisionTransformer, images: Tensor, choice: Choice) -> Tensor:
        """Features (B, C) of a vision transformer."""
        x, prefix = embed(vit, images), self.geometry.prefix
        if choice.fuse is not None:  # rides as one more prefix token
            x, prefix = torch.cat([pool(x, prefix, choice.fuse)[:, None], x], 1), prefix + 1
        if choice.keys_only:
            return self._trim_keys(vit, x, choice, prefix)
        if self.execution == "masked":
            return self._hide(vit, x, choice, prefix)
        return self._gather(vit, x, choice, prefix)

    def _gather(self, vit: VisionTransformer, x: Tensor, choice: Choice, prefix: int) -> Tensor:
        """(B, prefix + patches, C) -> features (B, C), computing k patch tokens an image."""
        x = _scaled(gather(x, choice.index, prefix), choice.token_scale, prefix)
        if choice.valid is not None and isinstance(self.core, RaggedCore):
            return self._gather_ragged(vit, x, choice, prefix, self.core)
        bias = _bias(choice)
        core = self.core if bias is None else key_bias_core(F.pad(bias, (prefix, 0)))
        return pool(self._blocks(vit, x, core), prefix, _share(choice))

    def _gather_ragged(
        self, vit: VisionTransformer, x: Tensor, choice: Choice, prefix: int, backend: RaggedCore
    ) -> Tensor:
        """The same where images keep different numbers of tokens: laid end to end, so that padding costs nothing."""
        assert choice.valid is not None
        valid = F.pad(choice.valid, (prefix, 0), value=True)  # (B, prefix + k)
        core = backend.ragged(valid.sum(1).tolist())
        if choice.key_bias is not None:
            core = key_bias_core(F.pad(choice.key_bias, (prefix, 0))[valid][None], core)
        packed = self._blocks(vit, x[valid][None], core)[0]  # (all kept tokens, C)
        out = packed.new_zeros(x.shape).masked_scatter(valid[..., None], packed)
        return pool(out, prefix, _share(choice))

    def _hide(self, vit: VisionTransformer, x: Tensor, choice: Choice, prefix: int) -> Tensor:
        """The same result with every token computed and the dropped ones hidden."""
        kept = as_mask(choice.index, self.geometry.patches, choice.valid)
        bias = torch.where(kept, 0.0, HIDDEN)
        if choice.key_bias is not None:
            bias = bias.scatter_add(1, choice.index, _only(choice.key_bias, choice.valid))
        x = _scaled(x, _spread(choice, self.geometry.patches), prefix)
        share = _share(choice)
        weight = kept if share is None else torch.zeros_like(bias).scatter_add(1, choice.index, share.to(bias.dtype))
        return pool(self._blocks(vit, x, key_bias_core(F.pad(bias, (prefix, 0)))), prefix, weight)

    def _trim_keys(self, vit: VisionTransformer, x: Tensor, choice: Choice, prefix: int) -> Tensor:
        """All tokens ask and are pooled; only the kept ones (and the prefix) are asked."""
        bias = _bias(choice)
        core = trimmed_core(with_prefix(choice.index, prefix), None if bias is None else F.pad(bias, (prefix, 0)))
        x = _scaled(x, _spread(choice, self.geometry.patches), prefix)
        return pool(self._blocks(vit, x, core), prefix)

    def _blocks(self, vit: VisionTransformer, x: Tensor, core: Core | None) -> Tensor:
        for block in vit.blocks:
            x = run_block(block, x, core)
        return vit.norm(x)  # type: ignore[no-any-return]

    def count(self, call: Call) -> int:
        """Patches to keep now: by the schedule in training, the target at inference."""
        return kept_tokens(self.geometry.patches, call.keep if call.training else self.target)


def highest(scores: Tensor, k: int) -> Tensor:
    """Indices (B, k) of the k highest of `scores` (B, patches), ascending; of equals the first."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return order[:, :k].sort(dim=1).values


def ranked(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices (B, k) of the k highest of `scores` (B, n) and (B, n - k) of the others, each ascending; of equals the
    first counts as the higher."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return order[:, :k].sort(dim=1).values, order[:, k:].sort(dim=1).values


def _scaled(x: Tensor, scale: Tensor | None, prefix: int) -> Tensor:
    """Patch tokens times `scale` (B, n), prefix tokens as they are."""
    return x if scale is None else x * F.pad(scale, (prefix, 0), value=1.0)[..., None]


def _bias(choice: Choice) -> Tensor | None:
    """Bias of the kept keys, with padding hidden."""
    if choice.valid is None:
        return choice.key_bias
    hidden = torch.where(choice.valid, 0.0, HIDDEN)
    return hidden if choice.key_bias is None else choice.key_bias + hidden


def _share(choice: Choice) -> Tensor | None:
    """What each kept token counts in the pooling, which is an attention with equal logits: it takes the bias too."""
    if choice.key_bias is None:
        return choice.valid
    return _only(choice.key_bias.exp(), choice.valid)


def _spread(choice: Choice, patches: int) -> Tensor | None:
    """The scale of the kept tokens on the whole grid, (B, patches); 1 elsewhere."""
    if choice.token_scale is None:
        return None
    ones = choice.token_scale.new_ones(choice.index.shape[0], patches)
    return ones.scatter_add(1, choice.index, _only(choice.token_scale - 1, choice.valid))


def _only(values: Tensor, valid: Tensor | None) -> Tensor:
    return values if valid is None else torch.where(valid, values, 0.0)
