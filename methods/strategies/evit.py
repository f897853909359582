"""EViT (Liang et al., ICLR 2022, arXiv 2202.07800): inattentive tokens are fused into one.

Between attention and MLP of the blocks at 1/4, 1/2 and 3/4 of the depth (3, 6, 9 of 12) the tokens are ranked by the
class token's attention, mean over the heads (section 3.2). Of the n tokens beside the class token, an earlier fused one
counted among them, the best ceil(rho x n) stay; the others become one token more, their sum weighted by that attention
(section 3.3), through which gradients reach the attention. In training as at inference.

Departures. Pooling is the mean of all tokens left beside the prefix, the fused one included, where the paper reads the
class token. Encoders without a class token rank and weigh by the mean attention over all queries
(`methods/strategies/attended.py`). `rho` holds from the first step on; the paper lowers it from 1 to its target along a
cosine while it trains.
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
    """The sum of tokens (B, n, C) weighted by the attention that they get (B, n): (B, 1, C)."""

    def forward(self, tokens: Tensor, share: Tensor) -> Tensor:
        return share.to(tokens.dtype)[:, None] @ tokens


class EViT(Strategy):
    """`rho`: share of the tokens that each stage keeps. Raises ValueError for encoders of fewer than four blocks."""

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
        """How many of the tokens beside the prefix a stage keeps, the new fused one not counted."""
        return math.ceil(tokens * self.rho - 1e-9)

    def forward(self, vit: VisionTransformer, images: Tensor, call: Call) -> Encoding:
        if not call.training and call.inference == "dense":
            return super().forward(vit, images, call)
        x, patches = embed(vit, images), self.geometry.patches
        index = torch.arange(patches, device=x.device).expand(x.shape[0], -1)  # of the tokens left; `patches` if fused
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
        """Tokens (B, prefix + n, C), the attention they get (B, prefix + n) and their patches (B, n) -> what is left of
        them and their patches."""
        prefix = self.geometry.prefix
        best, rest = ranked(share[:, prefix:].detach(), keep)
        fused = self.fusion(take(x, rest + prefix), share.gather(1, rest + prefix))
        left = torch.cat([gather(x, best, prefix), fused], 1)
        mark = index.new_full((index.shape[0], 1), self.geometry.patches)
        return left, torch.cat([index.gather(1, best), mark], 1)
