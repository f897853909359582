"""SimCLR (Chen et al., ICML 2020, arXiv 2002.05709): NT-Xent over the 2N views of a batch.

The projector has three layers, as in SimCLR v2 (arXiv 2006.10029), with batch norm inside and after it.

Departures. Batch norm also precedes the projector: without it, small transformers stayed on the plateau of the loss
with one seed in two. The optimizer is AdamW instead of LARS, as is usual for ViTs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from methods import Value
from methods.encoders.encoder import Encoder
from methods.objectives.objective import Loss, Objective, head_width, mlp, total
from methods.ranks import gather_views
from methods.strategies.strategy import Call


class SimCLR(Objective):
    """SimCLR objective.

    temperature: of the softmax; the paper uses 0.1 on ImageNet and 0.5 on small images.
    hidden: width of the projector; 0 for that of the paper (2048), or less for small encoders (`head_width`).
    out: width of the projections.
    """

    def __init__(self, encoder: Encoder, temperature: float = 0.2, hidden: int = 0, out: int = 128) -> None:
        super().__init__(encoder)
        self.temperature = temperature
        dim = encoder.geometry.dim
        hidden = self.hidden = hidden or head_width(dim, 2048)
        self.projector = mlp([dim, hidden, hidden, out], last_norm_affine=True, first_norm=True)

    @property
    def computed(self) -> dict[str, Value]:
        return {"hidden": self.hidden}

    def forward(self, views: Tensor, call: Call) -> Loss:
        encoding = self.encoder(views.flatten(0, 1), call)  # view-major (2B, ...)
        projections = self.projector(gather_views(encoding.features))
        return total(nt_xent(projections, self.temperature), encoding)

    def plateau(self, batch: int) -> float:
        return math.log(2 * batch - 1)


def nt_xent(projections: Tensor, temperature: float) -> Tensor:
    """Return the NT-Xent loss (SimCLR, eq. 1) of view-major projections (2B, D).

    Every view is contrasted with all 2B - 1 others; its positive is the other view of the same image.
    """
    z = F.normalize(projections.float(), dim=1)
    n = z.shape[0]
    logits = z @ z.T / temperature
    logits.fill_diagonal_(float("-inf"))
    positives = (torch.arange(n, device=z.device) + n // 2) % n
    return F.cross_entropy(logits, positives)
