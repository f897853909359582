"""MoCo v3 (Chen, Xie, He, ICCV 2021, arXiv 2104.02057): a momentum encoder gives the keys; no queue.

Projector of three layers and predictor of two, without biases, both ending in batch norm without affine (on a ResNet,
as in the paper, the projector has two layers and the predictor ends without batch norm; a ConvNeXt takes the
transformer's heads). Each view passes the heads by itself, so their batch norm is over the images of one view.
Symmetric loss 2T x cross-entropy; momentum along half a cosine to 1, and for the keys of a step by the share of the run
that is over when it begins, as in the authors' code (facebookresearch/moco-v3). A transformer's patchify embedding is
frozen at random, a convolutional stem is not (section 4.2: the instability is that of the patchify convolution). The
momentum encoder runs the same strategy with its own momentum copy of the predictor (`teacher=dense`: all tokens).

Departures. Features are the mean of the patch tokens, as for every method here, where the paper reads the class token;
the encoder's initial weights are timm's, as for every method here. The encoder runs on both views at once, as for every
objective here: the batch norm of a convolutional stem or a CNN, which transformers with a patchify embedding have not,
is over both views. By default both views come from one distribution, as all methods' here do; `views=asymmetric` blurs
the first always and the second in one case of ten, as the paper does (its solarisation of the second view has no
counterpart for radiographs and is left out).
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from methods import Value
from methods.encoders.encoder import Encoder
from methods.objectives.objective import Loss, Objective, follow, head_width, mlp, total
from methods.ranks import gather_views
from methods.strategies.strategy import Call


class MoCo(Objective):
    """`momentum` at the start; `hidden` 0 for the paper's 4096, scaled for small encoders."""

    def __init__(
        self,
        encoder: Encoder,
        temperature: float = 0.2,
        momentum: float = 0.99,
        hidden: int = 0,
        out: int = 256,
        teacher: Literal["same", "dense"] = "same",
        views: Literal["symmetric", "asymmetric"] = "symmetric",
    ) -> None:
        super().__init__(encoder)
        self.blur_probabilities = (1.0, 0.1) if views == "asymmetric" else None
        self.temperature, self.momentum, self.teacher = temperature, momentum, teacher
        dim = encoder.geometry.dim
        hidden = self.hidden = hidden or head_width(dim, 4096)
        if encoder.family == "resnet":
            self.projector = mlp([dim, hidden, out], last_norm_affine=False)
            self.predictor = mlp([out, hidden, out], last_norm_affine=None)
        else:
            self.projector = mlp([dim, hidden, hidden, out], last_norm_affine=False)
            self.predictor = mlp([out, hidden, out], last_norm_affine=False)
        network = encoder.network
        if isinstance(network, VisionTransformer) and isinstance(network.patch_embed, PatchEmbed):
            network.patch_embed.requires_grad_(False)
        self.teacher_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.teacher_projector = copy.deepcopy(self.projector).requires_grad_(False)

    @property
    def computed(self) -> dict[str, Value]:
        return {"hidden": self.hidden}

    def forward(self, views: Tensor, call: Call) -> Loss:
        images = views.flatten(0, 1)  # view-major (2B, ...)
        encoding = self.encoder(images, call)
        q1, q2 = (self.predictor(self.projector(view)) for view in gather_views(encoding.features).chunk(2))
        with torch.no_grad():
            features = self.teacher_encoder(images, self._teacher_call(call)).features
            k1, k2 = (self.teacher_projector(view) for view in gather_views(features).chunk(2))
        return total(self.contrast(q1, k2) + self.contrast(q2, k1), encoding)

    def _teacher_call(self, call: Call) -> Call:
        if self.teacher == "dense":
            return replace(call, noise=None, inference="dense")
        return call.of("teacher")

    def contrast(self, queries: Tensor, keys: Tensor) -> Tensor:
        """2T x InfoNCE of (B, D) against (B, D); the positive of row i is row i."""
        q, k = F.normalize(queries.float(), dim=1), F.normalize(keys.float(), dim=1)
        labels = torch.arange(q.shape[0], device=q.device)
        return 2 * self.temperature * F.cross_entropy(q @ k.T / self.temperature, labels)

    def after_step(self, progress: float) -> None:
        """The teacher follows, with the momentum for the keys of the next step."""
        momentum = 1 - (1 - self.momentum) * 0.5 * (1 + math.cos(math.pi * progress))
        follow(self.teacher_encoder, self.encoder, momentum)
        follow(self.teacher_projector, self.projector, momentum)

    def plateau(self, batch: int) -> float:
        return 4 * self.temperature * math.log(batch)
