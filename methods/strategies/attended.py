"""How much a token is attended to: what attention-based reduction (Top-K, EViT) ranks the tokens by.

With a class token it is that token's row of the attention, averaged over the heads (EViT, section 3.2). The fused
kernel gives no attention weights, so the row is computed beside it. An encoder without a class token has no such row;
ours, which departs from the papers: the mean over all queries, for which the whole attention map is computed.
"""

from __future__ import annotations

from torch import Tensor, nn


class Attended(nn.Module):
    """Queries and keys (B, heads, N, d) -> share of the attention that each token gets (B, N), which sums to 1.

    `prefix`: number of prefix tokens, the first of which is the class token.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.queries = slice(0, 1) if prefix else slice(None)

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        logits = (q[:, :, self.queries] * q.shape[-1] ** -0.5) @ k.mT  # (B, heads, 1 or N, N)
        share: Tensor = logits.softmax(-1).mean((1, 2))
        return share
