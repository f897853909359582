"""EViT (Liang et al., ICLR 2022, arXiv 2202.07800): keeps attentive tokens and fuses the others into one.

Tokens are reduced in the blocks at 1/4, 1/2 and 3/4 of the depth (3, 6, 9 of 12), between attention and MLP, in
training and at inference. They are ranked by the attention of the class token, averaged over the heads (section 3.2).
Of the n tokens besides the prefix, which include an earlier fused token, the best ceil(rho x n) stay. The others are
replaced by one token, their sum weighted by that attention (section 3.3), through which gradients reach the attention.

Departures. The features are the mean of all remaining tokens besides the prefix, including the fused one; the paper
uses the class token. Encoders without a class token rank and weight tokens by the mean attention over all queries
(`methods/strategies/attended.py`). `rho` is constant; the paper lowers it from 1 to its target along a cosine during
training.
"""

from __future__ import annotations

import math

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.attention import run_attention, run_block, run_mlp
from methods.strategies.attended import Attended
from methods.strategies.selection import ranked
from methods.strategies.strategy import Call, Encoding, Geometry, Strategy, as_mask, embed, gather, pool, stages, take


class Fusion(nn.Module):
    """Sum tokens (B, n, C), weighted by the attention (B, n) that they receive, into one token (B, 1, C)."""

    def forward(self, tokens: Tensor, share: Tensor) -> Tensor:
        return share.to(tokens.dtype)[:, None] @ tokens


class EViT(Strategy):
    """EViT with the share `rho` of tokens that each stage keeps. Raises ValueError for fewer than four blocks."""

    def __init__(self, geometry: Geometry, rho: float = 0.7) -> None:
        super().__init__(geometry)
        self.rho = rho
        self.within = stages(geometry, "evit")
        self.attended = Attended(geometry.prefix)
        self.fusion = Fusion()

    @property
    def target(self) -> float:
        return self.rho

    def kept_of(self, tokens: int) -> int:
        """Return how many of `tokens` tokens besides the prefix a stage keeps, not counting the new fused one."""
        return math.ceil(tokens * self.rho - 1e-9)

    def forward(self, vit: VisionTransformer, images: Tensor, call: Call) -> Encoding:
        if not call.training and call.inference == "dense":
            return super().forward(vit, images, call)
        x, patches = embed(vit, images), self.geometry.patches
        index = torch.arange(patches, device=x.device).expand(x.shape[0], -1)  # of remaining tokens; `patches`: fused
        for i, block in enumerate(vit.blocks):
            keep = self.kept_of(index.shape[1]) if i in self.within else index.shape[1]
            if keep == index.shape[1]:
                x = run_block(block, x, self.core)
                continue
            x, q, k = run_attention(block, x, self.core)
            x, index = self._fuse(x, self.attended(q, k), index, keep)
            x = run_mlp(block, x)
        kept = as_mask(index, patches + 1)[:, :patches]
        return Encoding(pool(vit.norm(x), self.geometry.prefix), kept=kept)

    def _fuse(self, x: Tensor, share: Tensor, index: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """Reduce tokens to the `keep` best and a fused one; return them and their patch indices.

        x: (B, prefix + n, C). share: attention that they receive, (B, prefix + n). index: their patches, (B, n).
        """
        prefix = self.geometry.prefix
        best, rest = ranked(share[:, prefix:].detach(), keep)
        fused = self.fusion(take(x, rest + prefix), share.gather(1, rest + prefix))
        left = torch.cat([gather(x, best, prefix), fused], 1)
        mark = index.new_full((index.shape[0], 1), self.geometry.patches)
        return left, torch.cat([index.gather(1, best), mark], 1)
