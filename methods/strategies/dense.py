"""Dense: all tokens in all blocks, with fused attention. The reference of every comparison."""

from __future__ import annotations

from methods.strategies.strategy import Strategy


class Dense(Strategy):
    """The unchanged encoder; its tokens are bit-equal to those of timm's `forward_features`."""
