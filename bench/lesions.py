"""Lesion masks on their way to a strategy that asks where lesions are (`oracle`), and on to its patches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets.dataset import Dataset
from datasets.views import Parameters, Views
from methods.encoders.vit import Encoder
from methods.noise import keyed_generator
from methods.strategies.strategy import Call

Indices = npt.NDArray[np.int64]


class Lesions:
    """Carries lesion masks through the views for a strategy that asks for them (`oracle`), else does nothing.

    Masks exist in positives only, so their presence would tell the label: an image without one borrows the mask of
    another image, drawn at random by the seed, at the place where it lies there.
    """

    def __init__(self, data: Dataset, encoder: Encoder, seed: int) -> None:
        self.data = data
        self.patch = encoder.geometry.patch
        self.wanted = encoder.strategy.needs_lesions
        if not self.wanted:
            return
        if data.masks is None:
            raise ValueError(
                f"strategy 'oracle' needs lesion masks, and data set '{data.name}' has none: leave it out."
            )
        own = (data.masks != 0).any(axis=(1, 2))
        donors = np.flatnonzero(own)
        drawn = torch.randint(len(donors), (len(own),), generator=keyed_generator("borrowed masks", seed)).numpy()
        self.source = np.where(own, np.arange(len(own)), donors[drawn])

    def masks_of(self, index: Indices) -> Tensor:
        """(B, H, W) bool: inside a lesion, own or borrowed."""
        assert self.data.masks is not None
        return torch.from_numpy(self.data.masks[self.source[index]] != 0)

    def coverage(self, masks: Tensor) -> Tensor:
        """Share of each patch that is inside a lesion, (B, patches)."""
        return torch.nn.functional.avg_pool2d(masks.float()[:, None], self.patch).flatten(1)

    def call_for(self, index: Indices, call: Call, device: torch.device) -> Call:
        """The same call with the lesions of the images themselves, for evaluation."""
        return replace(call, lesions=self.coverage(self.masks_of(index)).to(device)) if self.wanted else call

    def make_views(
        self, views: Views, index: Indices, parameters: Parameters, call: Call, device: torch.device
    ) -> tuple[Tensor, Call]:
        """Two views (2, B, channels, H, W) of the images, and the call with the lesions as the views show them."""
        images = torch.from_numpy(self.data.images[index]).to(device)
        if not self.wanted:
            pair, _ = views.apply(images, parameters)
            return pair, call
        pair, masks = views.apply(images, parameters, self.masks_of(index).to(torch.uint16).to(device))
        assert masks is not None
        return pair, replace(call, lesions=self.coverage(masks.flatten(0, 1).to(torch.int32) != 0))
