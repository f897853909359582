"""TokenLearner (Ryoo et al., NeurIPS 2021, arXiv 2106.11297): replaces the patch tokens with a few learned tokens.

In v1.1, the version of the published ViT configurations, a learned token is an average of the patch tokens, with
weights from LN -> MLP (hidden 64) -> softmax over the positions. The average is over the tokens before the LN. In v1,
the weights come from LN -> three 3x3 convolutions with GELU -> a fourth -> sigmoid, and the token is the weighted sum
over space. Tokens are learned once, before a block at mid-depth or later. With `fuser`, every block from there on
learns tokens, runs on them, spreads them over the positions again (TokenFuser), and adds the result to its input.

Departures. The features are the mean of the learned tokens (with the fuser, of all patches), as for every strategy.
The published configurations have no class token. Here, prefix tokens bypass the learner and go through the later blocks
together with the learned tokens. GELU is exact instead of its tanh approximation. The initial weights of v1's
convolutions are torch's. There is no dropout.

Note for reading results: the mean of learned, weighted averages amounts to a learned attention pooling, which the other
strategies do not have.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.attention import run_block
from methods.strategies.strategy import Call, Encoding, Geometry, Strategy, embed, pool

HIDDEN = 64  # of both MLPs, as published

Version = Literal["v1.1", "v1"]


class MlpWeights(nn.Module):
    """Weights of v1.1: maps positions (B, N, C) to weights (B, S, N) that sum to 1 over the positions."""

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _mlp(dim, tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm(x)).transpose(1, 2).softmax(-1)  # type: ignore[no-any-return]


class ConvWeights(nn.Module):
    """Weights of v1: maps positions (B, N, C) of a square grid to weights (B, S, N) between 0 and 1."""

    def __init__(self, dim: int, tokens: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.convs = nn.Sequential(
            *(
                layer
                for before in (dim, tokens, tokens)
                for layer in (nn.Conv2d(before, tokens, 3, padding=1, bias=False), nn.GELU())
            ),
            nn.Conv2d(tokens, tokens, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        image = self.norm(x).transpose(1, 2).unflatten(2, (self.grid, self.grid))  # (B, C, grid, grid)
        return self.convs(image).flatten(2).sigmoid()  # type: ignore[no-any-return]


class TokenFuser(nn.Module):
    """Spreads S tokens (B, S, C) over the positions (B, N, C) from which they were learned."""

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(dim, eps=1e-6)
        self.across = nn.Linear(tokens, tokens)
        nn.init.zeros_(self.across.weight)
        nn.init.zeros_(self.across.bias)
        self.norm_out = nn.LayerNorm(dim, eps=1e-6)
        self.norm_positions = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _mlp(dim, tokens)

    def forward(self, learnt: Tensor, positions: Tensor) -> Tensor:
        mixed = self.across(self.norm_in(learnt).transpose(1, 2)).transpose(1, 2)
        share = self.mlp(self.norm_positions(positions)).sigmoid()  # (B, N, S)
        return share @ self.norm_out(mixed)  # type: ignore[no-any-return]


class TokenLearner(Strategy):
    """TokenLearner strategy: later blocks see only the learned tokens and the prefix tokens.

    tokens: number of learned tokens.
    at: relative depth; tokens are learned before block int(at x depth).
    version: "v1.1" or "v1" (see the module).
    fuser: learn tokens in every later block and spread them over the positions again.
    """

    def __init__(
        self,
        geometry: Geometry,
        tokens: int = 8,
        at: float = 0.75,
        version: Version = "v1.1",
        fuser: bool = False,
    ) -> None:
        super().__init__(geometry)
        self.before = int(at * geometry.depth)
        count = geometry.depth - self.before if fuser else 1
        self.learners = nn.ModuleList(
            MlpWeights(geometry.dim, tokens) if version == "v1.1" else ConvWeights(geometry.dim, tokens, geometry.grid)
            for _ in range(count)
        )
        self.fusers = nn.ModuleList(TokenFuser(geometry.dim, tokens) for _ in range(count)) if fuser else None

    def forward(self, vit: VisionTransformer, images: Tensor, call: Call) -> Encoding:
        if not call.training and call.inference == "dense":
            return super().forward(vit, images, call)
        x, prefix = embed(vit, images), self.geometry.prefix
        for block in vit.blocks[: self.before]:
            x = run_block(block, x, self.core)
        if self.fusers is None:
            x = self._learn(self.learners[0], x)
            for block in vit.blocks[self.before :]:
                x = run_block(block, x, self.core)
        else:
            for block, learner, fuser in zip(vit.blocks[self.before :], self.learners, self.fusers, strict=True):
                few = run_block(block, self._learn(learner, x), self.core)
                patches = x[:, prefix:] + fuser(few[:, prefix:], x[:, prefix:])
                x = torch.cat([few[:, :prefix], patches], 1)
        return Encoding(pool(vit.norm(x), prefix))

    def _learn(self, learner: nn.Module, x: Tensor) -> Tensor:
        """Replace the patch tokens with learned ones: (B, prefix + patches, C) -> (B, prefix + S, C)."""
        patches = x[:, self.geometry.prefix :]
        return torch.cat([x[:, : self.geometry.prefix], learner(patches) @ patches], 1)


def _mlp(dim: int, out: int) -> nn.Sequential:
    """Build two linear layers with GELU between them and Xavier initialisation, as published."""
    layers = nn.Sequential(nn.Linear(dim, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, out))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return layers
