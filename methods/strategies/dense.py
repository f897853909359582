"""Dense: all tokens through all blocks, on the fused path. The baseline that every claim is measured against."""

from __future__ import annotations

from methods.strategies.strategy import Strategy


class Dense(Strategy):
    """timm's encoder as it is; its tokens are bit-equal to timm's `forward_features`."""
