"""ToMe, token merging (Bolya et al., ICLR 2023, arXiv 2210.09461): r tokens fewer in every block, by merging like ones.

Between attention and MLP of every block (section 3): the tokens are dealt in turn into sets A and B; each of A is
matched with the one of B whose key is nearest (cosine; keys averaged over the heads); the r closest pairs are merged;
what is left of A and B is put together again. A merged token is the mean of its patches, so pairs are averaged by size,
and attention is proportional: softmax(QK^T / sqrt(d) + log size) (eq. 1). At most half of the tokens are merged in a
block. Prefix tokens take no part in merging, but each takes a place when the tokens are dealt, as in the authors' code
(facebookresearch/ToMe): without prefix tokens A is the patches 0, 2, 4, ...; with a class token, which is the first of
A, A is the patches 1, 3, 5, ...; with a distillation token too, which is the first of B, it is 0, 2, 4, ... again.
Merging has no parameters; gradients flow through the averages.

`proportional` says when attention is proportional. "always" is what the authors trained and evaluated their published
ToMe models with (README: `prop_attn=True`), although a comment in their code advises against it in training;
"inference" follows that comment; "never" is their choice for MAE models not trained with ToMe.

Departures. The papers' models read the class token; here pooling is the mean of the patches for all methods: of merged
tokens weighted by size, which is the mean of the patches that they stand for. What is left of A keeps the order of the
patches; in the authors' code it does so where there is a class token, and is else in the order of similarity.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.attention import constant_bias_core, run_attention, run_block, run_mlp
from methods.strategies.selection import ranked
from methods.strategies.strategy import Call, Encoding, Geometry, Strategy, embed, pool, take, with_prefix

Proportional = Literal["always", "inference", "never"]


class Matching(nn.Module):
    """Bipartite soft matching on keys (B, heads, n, d) of patch tokens: indices of the r tokens of A to merge (B, r),
    of their partners in B (B, r), of what stays of A (B, n_A - r), ascending.

    A is every second patch from `first` on (0 or 1), B the others.
    """

    def __init__(self, first: int = 0) -> None:
        super().__init__()
        self.first = first

    def forward(self, keys: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
        a, b = self.first, 1 - self.first
        metric = F.normalize(keys.mean(1), dim=-1)  # (B, n, d)
        closest, partner = (metric[:, a::2] @ metric[:, b::2].mT).max(-1)  # (B, n_A)
        source, stay = ranked(closest, r)
        return 2 * source + a, 2 * partner.gather(1, source) + b, 2 * stay + a


class ToMe(Strategy):
    """`r`: tokens merged in every block, as far as half of them are more; `proportional`: when attention counts a
    token by its size."""

    def __init__(self, geometry: Geometry, r: int = 13, proportional: Proportional = "always") -> None:
        super().__init__(geometry)
        self.r, self.proportional = r, proportional
        self.matching = Matching(geometry.prefix % 2)

    def forward(self, vit: VisionTransformer, images: Tensor, call: Call) -> Encoding:
        if not call.training and call.inference == "dense":
            return super().forward(vit, images, call)
        x, prefix = embed(vit, images), self.geometry.prefix
        size: Tensor | None = None  # of the patches in each token (B, N); None while all are 1
        proportional = self.proportional == "always" or (self.proportional == "inference" and not call.training)
        for block in vit.blocks:
            r = min(self.r, (x.shape[1] - prefix) // 2)
            core = constant_bias_core(size.log()) if proportional and size is not None else self.core
            if r == 0:
                x = run_block(block, x, core)
                continue
            x, _, k = run_attention(block, x, core)
            x, size = self._merge(x, size, k, r)
            x = run_mlp(block, x)
        return Encoding(pool(vit.norm(x), prefix, None if size is None else size[:, prefix:]))

    def _merge(self, x: Tensor, size: Tensor | None, keys: Tensor, r: int) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, C) and their sizes (B, N) -> (B, N - r, C), (B, N - r): prefix, what stays of A, B."""
        b, n, c = x.shape
        prefix = self.geometry.prefix
        with torch.no_grad():
            source, partner, stay = self.matching(keys.detach()[:, :, prefix:], r)
            others = torch.arange(1 - self.matching.first, n - prefix, 2, device=x.device).expand(b, -1)
            left, source = with_prefix(torch.cat([stay, others], 1), prefix), source + prefix
            target = prefix + stay.shape[1] + partner // 2  # where the partner is among what is left
            before = x.new_ones(b, n, dtype=torch.float32) if size is None else size
            own, added = before.gather(1, left), before.gather(1, source)
            after = own.scatter_add(1, target, added)
            rows = (target + (n - r) * torch.arange(b, device=x.device)[:, None]).flatten()
            own_share, added_share = own / after, added / after.gather(1, target)
        merged = take(x, left).mul_(own_share.to(x.dtype)[..., None])  # in place: they are copies already
        merging = take(x, source).mul_(added_share.to(x.dtype)[..., None])
        return merged.view(-1, c).index_add_(0, rows, merging.view(-1, c)).view(b, n - r, c), after
