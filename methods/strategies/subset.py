"""Controls that select patches without regard to the content of the image; a learned selection has to beat them.

`fixed`: one random mask for all images, drawn from the seed, in training and at inference. `centre`: the patches
nearest to the image centre. `random`: a new subset for every image and step; at inference a subset that depends only on
the pixels of the image, or all tokens. `patchdropout` (Liu et al., WACV 2023, arXiv 2208.07220): new subsets in
training, all tokens at inference.

Departures of `patchdropout`. The paper trains on supervised tasks, here the task is contrastive. Its code keeps
int(patches x keep) patches, here the number is rounded half up, as for all strategies with a keep ratio
(`kept_tokens`). There, one keep ratio holds throughout training (or a random one is drawn at every step); here, it
falls from 1 along the schedule that all these strategies share: `train.ramp=0` keeps it constant.

With `equal_macs` (the default) they keep more tokens than requested, so that their MACs equal those of SparseContrast
with its predictor at the requested keep ratio: about 0.53 instead of 0.5 at ViT-S/16 scale.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from methods.noise import keyed_generator
from methods.schedule import kept_tokens
from methods.strategies.predictor import predictor_macs, predictor_width
from methods.strategies.selection import Choice, Selection, highest
from methods.strategies.strategy import Call, Geometry


def equal_macs_keep(geometry: Geometry, keep: float, predictor: float) -> float:
    """Return the keep ratio, at most 1, at which an encoder takes as many MACs as one with a predictor takes at `keep`.

    `predictor` are the MACs of the predictor per image.
    """
    budget = geometry.macs(kept_tokens(geometry.patches, keep)) + predictor
    return min(1.0, geometry.kept_at(budget) / geometry.patches)


class Subset(Selection):
    """Selection of the patches with the highest scores; subclasses define `scores`."""

    def __init__(
        self, geometry: Geometry, keep: float = 0.5, equal_macs: bool = True, execution: str = "gathered", seed: int = 0
    ) -> None:
        if equal_macs:
            keep = equal_macs_keep(geometry, keep, predictor_macs(geometry, predictor_width(geometry)))
        super().__init__(geometry, keep, execution)
        self.seed = seed

    def scores(self, images: Tensor, call: Call) -> Tensor:
        """Return one score per patch, (B, patches)."""
        raise TypeError(f"{type(self).__name__} does not define `scores`")

    def choose(self, images: Tensor, call: Call) -> Choice | None:
        k = self.count(call)
        if k == self.geometry.patches:
            return None
        scores = self.scores(images, call)
        return Choice(highest(scores, k), scores=scores)


class Fixed(Subset):
    """One random mask for all images. During the ramp masks are nested: a patch that was dropped stays dropped."""

    def scores(self, images: Tensor, call: Call) -> Tensor:
        key = keyed_generator("fixed mask", self.seed)
        drawn = torch.rand(self.geometry.patches, generator=key, dtype=torch.float32)
        return drawn.to(images.device).expand(images.shape[0], -1)


class Centre(Subset):
    """The patches whose centres are nearest to the image centre; ties go to the first in reading order."""

    def scores(self, images: Tensor, call: Call) -> Tensor:
        place = torch.arange(self.geometry.grid, device=images.device) - (self.geometry.grid - 1) / 2
        distance = (place[:, None] ** 2 + place[None, :] ** 2).flatten()
        return (-distance).expand(images.shape[0], -1)


class Random(Subset):
    """A new uniformly random subset of exactly k patches; at inference it depends only on the pixels of the image."""

    def scores(self, images: Tensor, call: Call) -> Tensor:
        patches = self.geometry.patches
        if call.noise is not None:
            return call.noise.uniform("random subset", patches, device=images.device)
        keys = [keyed_generator("random subset", self.seed, _digest(image)) for image in images]
        rows = [torch.rand(patches, generator=key, dtype=torch.float32) for key in keys]
        return torch.stack(rows).to(images.device)


class PatchDropout(Random):
    """Random in training, all tokens at inference."""


def _digest(image: Tensor) -> str:
    return hashlib.blake2b(image.detach().float().cpu().contiguous().numpy().tobytes(), digest_size=8).hexdigest()
