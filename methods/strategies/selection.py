"""Selection before block 0: choose patches of the image, gather their tokens, and run the encoder on those only.

SparseContrast and its controls differ only in `choose`; all code after the choice is shared. On a ConvNeXt the choice
is also made once, on the grid of the last feature map, and applies at all resolutions (`methods/convolution.py`).
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
    """Patches that are kept, and how.

    index: (B, k) kept patches, in ascending order.
    valid: (B, k) bool, False for padding where images keep different numbers of patches; None without padding.
    token_scale: (B, k) factors on the kept tokens.
    key_bias: (B, k) added to the attention logits of the kept keys. Like `token_scale`, it carries gradients.
    fuse: (B, patches) weights with which dropped tokens are averaged into one more token. Other tokens attend to it,
        and it is not pooled.
    keys_only: drop only the keys; the tokens of dropped patches remain as queries and in the MLPs.
    scores, losses, stats: as in `Encoding`.
    """

    index: Tensor
    valid: Tensor | None = None
    token_scale: Tensor | None = None
    key_bias: Tensor | None = None
    fuse: Tensor | None = None
    keys_only: bool = False
    losses: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)
    scores: Tensor | None = None


class Selection(Strategy):
    """Base class of strategies that select patches once; subclasses define `choose`.

    keep: target keep ratio.
    execution: "gathered" computes only the kept tokens. "masked" computes all tokens and hides the dropped ones as keys
        and in the pooling: the slow but obvious equivalent, for tests and for showing the cost of masks.
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
        """Choose the patches to keep of images (B, channels, H, W); None keeps all."""
        raise TypeError(f"{type(self).__name__} does not define `choose`")

    def forward(self, network: Any, images: Tensor, call: Call) -> Encoding:
        if not call.training and call.inference == "dense":
            return super().forward(network, images, call)
        choice = self.choose(images, call)
        if choice is None:
            return super().forward(network, images, call)
        run = self._run_convnext if isinstance(network, ConvNeXt) else self._run_vit
        kept = as_mask(choice.index, self.geometry.patches, choice.valid)
        return Encoding(run(network, images, choice), choice.losses, kept, choice.stats, choice.scores)

    def _run_convnext(self, net: ConvNeXt, images: Tensor, choice: Choice) -> Tensor:
        """Return the features (B, C) of a CNN. Raises ValueError for a choice that concerns keys or fused tokens."""
        if choice.key_bias is not None or choice.fuse is not None or choice.keys_only:
            raise ValueError(
                "a CNN has no keys to bias or to trim and no token to fuse into: only keep patches, or scale them."
            )
        patches = Patches(choice.index, choice.valid, choice.token_scale, self.geometry.grid)
        return kept_features(net, images, patches, masked=self.execution == "masked")

    def _run_vit(self, vit: VisionTransformer, images: Tensor, choice: Choice) -> Tensor:
        """Return the features (B, C) of a vision transformer."""
        x, prefix = embed(vit, images), self.geometry.prefix
        if choice.fuse is not None:  # the fused token is treated as one more prefix token
            x, prefix = torch.cat([pool(x, prefix, choice.fuse)[:, None], x], 1), prefix + 1
        if choice.keys_only:
            return self._trim_keys(vit, x, choice, prefix)
        if self.execution == "masked":
            return self._hide(vit, x, choice, prefix)
        return self._gather(vit, x, choice, prefix)

    def _gather(self, vit: VisionTransformer, x: Tensor, choice: Choice, prefix: int) -> Tensor:
        """Return features (B, C) from tokens (B, prefix + patches, C), computing only k patch tokens per image."""
        x = _scaled(gather(x, choice.index, prefix), choice.token_scale, prefix)
        if choice.valid is not None and isinstance(self.core, RaggedCore):
            return self._gather_ragged(vit, x, choice, prefix, self.core)
        bias = _bias(choice)
        core = self.core if bias is None else key_bias_core(F.pad(bias, (prefix, 0)))
        return pool(self._blocks(vit, x, core), prefix, _share(choice))

    def _gather_ragged(
        self, vit: VisionTransformer, x: Tensor, choice: Choice, prefix: int, backend: RaggedCore
    ) -> Tensor:
        """Do the same with images of different numbers of tokens concatenated, so that padding costs nothing."""
        assert choice.valid is not None
        valid = F.pad(choice.valid, (prefix, 0), value=True)  # (B, prefix + k)
        core = backend.ragged(valid.sum(1).tolist())
        if choice.key_bias is not None:
            core = key_bias_core(F.pad(choice.key_bias, (prefix, 0))[valid][None], core)
        packed = self._blocks(vit, x[valid][None], core)[0]  # (all kept tokens, C)
        out = packed.new_zeros(x.shape).masked_scatter(valid[..., None], packed)
        return pool(out, prefix, _share(choice))

    def _hide(self, vit: VisionTransformer, x: Tensor, choice: Choice, prefix: int) -> Tensor:
        """Return the features of `_gather` by computing every token and hiding the dropped ones."""
        kept = as_mask(choice.index, self.geometry.patches, choice.valid)
        bias = torch.where(kept, 0.0, HIDDEN)
        if choice.key_bias is not None:
            bias = bias.scatter_add(1, choice.index, _only(choice.key_bias, choice.valid))
        x = _scaled(x, _spread(choice, self.geometry.patches), prefix)
        share = _share(choice)
        weight = kept if share is None else torch.zeros_like(bias).scatter_add(1, choice.index, share.to(bias.dtype))
        return pool(self._blocks(vit, x, key_bias_core(F.pad(bias, (prefix, 0)))), prefix, weight)

    def _trim_keys(self, vit: VisionTransformer, x: Tensor, choice: Choice, prefix: int) -> Tensor:
        """Compute and pool all tokens, but let them attend only to the kept ones and the prefix."""
        bias = _bias(choice)
        core = trimmed_core(with_prefix(choice.index, prefix), None if bias is None else F.pad(bias, (prefix, 0)))
        x = _scaled(x, _spread(choice, self.geometry.patches), prefix)
        return pool(self._blocks(vit, x, core), prefix)

    def _blocks(self, vit: VisionTransformer, x: Tensor, core: Core | None) -> Tensor:
        for block in vit.blocks:
            x = run_block(block, x, core)
        return vit.norm(x)  # type: ignore[no-any-return]

    def count(self, call: Call) -> int:
        """Return how many patches to keep: by the schedule in training, by the target at inference."""
        return kept_tokens(self.geometry.patches, call.keep if call.training else self.target)


def highest(scores: Tensor, k: int) -> Tensor:
    """Return the indices (B, k) of the k highest `scores` (B, patches), in ascending order; ties go to the first."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return order[:, :k].sort(dim=1).values


def ranked(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the k highest `scores` (B, n) and of the others, (B, k) and (B, n - k).

    Both are in ascending order; ties go to the first.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    return order[:, :k].sort(dim=1).values, order[:, k:].sort(dim=1).values


def _scaled(x: Tensor, scale: Tensor | None, prefix: int) -> Tensor:
    """Multiply the n patch tokens by `scale` (B, n); prefix tokens stay unchanged."""
    return x if scale is None else x * F.pad(scale, (prefix, 0), value=1.0)[..., None]


def _bias(choice: Choice) -> Tensor | None:
    """Return the bias of the kept keys, which also hides padding; None if there is neither bias nor padding."""
    if choice.valid is None:
        return choice.key_bias
    hidden = torch.where(choice.valid, 0.0, HIDDEN)
    return hidden if choice.key_bias is None else choice.key_bias + hidden


def _share(choice: Choice) -> Tensor | None:
    """Return the weights of the kept tokens in the pooling; None if they are equal.

    Pooling is an attention with equal logits, so that the bias applies to it too.
    """
    if choice.key_bias is None:
        return choice.valid
    return _only(choice.key_bias.exp(), choice.valid)


def _spread(choice: Choice, patches: int) -> Tensor | None:
    """Scatter the scale of the kept tokens to all patches (B, patches), with 1 elsewhere."""
    if choice.token_scale is None:
        return None
    ones = choice.token_scale.new_ones(choice.index.shape[0], patches)
    return ones.scatter_add(1, choice.index, _only(choice.token_scale - 1, choice.valid))


def _only(values: Tensor, valid: Tensor | None) -> Tensor:
    """Set the values of padding to 0."""
    return values if valid is None else torch.where(valid, values, 0.0)
