"""TokenLearner (Ryoo et al., NeurIPS 2021, arXiv 2106.11297): a few learnt tokens in the patches' place.

v1.1, the one of the published ViT configurations: each token is an average of the positions, with weights
from LN -> MLP (hidden 64) -> softmax over the positions; it averages the tokens themselves, not their LN. v1:
LN -> three 3x3 convolutions with GELU -> a fourth -> sigmoid, and the weighted sum over space. It is placed
once, before a block at mid-depth or later. With `fuser` it stands in every block from there on: learn tokens,
run the block on them, spread them over the positions again (TokenFuser), add what was there before.

Departures. Pooling is the mean of the learnt tokens (of all patches with the fuser), as for every strategy.
The published configurations have no class token: where an encoder has prefix tokens, they pass by the learner
and go through the later blocks beside the learnt tokens. GELU is exact instead of its tanh approximation. The initial
weights of v1's convolutions are torch's. No dropout.

To know when reading its results: the mean of learnt, weighted averages is in effect a learnt attention pooling, which
other strategies do not have.
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
    """v1.1: positions (B, N, C) -> weights (B, S, N), which sum to 1 over the positions."""

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _mlp(dim, tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm(x)).transpose(1, 2).softmax(-1)  # type: ignore[no-any-return]


class ConvWeights(nn.Module):
    """v1: positions (B, N, C) of a square grid -> weights (B, S, N), each between 0 and 1."""

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
    """Spreads S tokens (B, S, C) over the positions (B, N, C) that they were learnt from."""

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
    """`tokens` learnt before block int(`at` x depth); later blocks see only those (and prefix tokens)."""

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
        """Prefix tokens and the learnt ones: (B, prefix + patches, C) -> (B, prefix + S, C)."""
        patches = x[:, self.geometry.prefix :]
        return torch.cat([x[:, : self.geometry.prefix], learner(patches) @ patches], 1)


def _mlp(dim: int, out: int) -> nn.Sequential:
    """Two linear layers with GELU between, Xavier weights as published."""
    layers = nn.Sequential(nn.Linear(dim, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, out))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return layers
