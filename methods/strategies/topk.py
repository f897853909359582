"""Top-K (Haurum et al., ICCV-W 2023, arXiv 2308.04657): keeps the tokens to which the class token attends most.

It is the simplest baseline of that paper, EViT without the fused token. Tokens are dropped in the blocks at 1/4, 1/2
and 3/4 of the depth (3, 6, 9 of 12), between attention and MLP, in training and at inference. Each stage keeps the
int(patches x rho^stage) tokens that receive most attention from the class token, averaged over the heads. Prefix tokens
always stay. The choice has no gradient.

Departures. The features are the mean of the kept patch tokens; the paper uses the class token. The class token is
therefore trained only through the attention. Encoders without a class token rank tokens by the mean attention over all
queries (`methods/strategies/attended.py`).
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from methods.attention import run_attention, run_block, run_mlp
from methods.strategies.attended import Attended
from methods.strategies.selection import highest
from methods.strategies.strategy import Call, Encoding, Geometry, Strategy, as_mask, embed, gather, pool, stages


class TopK(Strategy):
    """Top-K with the share `rho` of tokens that each stage keeps. Raises ValueError for fewer than four blocks."""

    def __init__(self, geometry: Geometry, rho: float = 0.7) -> None:
        super().__init__(geometry)
        self.rho = rho
        self.within = stages(geometry, "topk")
        self.attended = Attended(geometry.prefix)

    @property
    def target(self) -> float:
        return self.rho

    def kept_after(self, stage: int) -> int:
        """Return how many patch tokens remain after `stage` (counted from 0)."""
        return max(1, int(self.geometry.patches * self.rho ** (stage + 1) + 1e-9))

    def forward(self, vit: VisionTransformer, images: Tensor, call: Call) -> Encoding:
        if not call.training and call.inference == "dense":
            return super().forward(vit, images, call)
        x, prefix = embed(vit, images), self.geometry.prefix
        index = torch.arange(self.geometry.patches, device=x.device).expand(x.shape[0], -1)  # of the remaining patches
        for i, block in enumerate(vit.blocks):
            keep = self.kept_after(self.within.index(i)) if i in self.within else index.shape[1]
            if keep == index.shape[1]:
                x = run_block(block, x, self.core)
                continue
            x, q, k = run_attention(block, x, self.core)
            with torch.no_grad():
                share = self.attended(q.detach(), k.detach())[:, prefix:]
                best = highest(share, keep)
            index, x = index.gather(1, best), gather(x, best, prefix)
            x = run_mlp(block, x)
        return Encoding(pool(vit.norm(x), prefix), kept=as_mask(index, self.geometry.patches))
