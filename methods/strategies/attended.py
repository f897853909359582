"""Attention that each token receives, by which Top-K and EViT rank tokens.

With a class token, it is the attention of the class token to the others, averaged over the heads (EViT, section 3.2).
The fused kernel returns no attention weights, so this row of the attention map is computed in addition.

Departure. Encoders without a class token have no such row. There it is the mean over all queries, for which the whole
attention map is computed.
"""

from __future__ import annotations

from torch import Tensor, nn


class Attended(nn.Module):
    """Map queries and keys (B, heads, N, d) to the share of attention that each token receives (B, N).

    The shares of an image sum to 1. `prefix` is the number of prefix tokens, the first of which is the class token.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.queries = slice(0, 1) if prefix else slice(None)

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        logits = (q[:, :, self.queries] * q.shape[-1] ** -0.5) @ k.mT  # (B, heads, 1 or N, N)
        share: Tensor = logits.softmax(-1).mean((1, 2))
        return share
