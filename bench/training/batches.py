"""What a training step is given: the order of the images, the parameters of the views, and lesion masks by patch.

All of it is keyed by the seed and the step, so that methods are compared on the same batches and views.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.specs.run_spec import RunSpec
from datasets.dataset import Dataset
from datasets.views import Parameters, Views
from methods.encoders.encoder import Encoder
from methods.noise import keyed_generator
from methods.strategies.strategy import Call

Indices = npt.NDArray[np.int64]


class Lesions:
    """Carries lesion masks through the views for a strategy that needs them; does nothing for others.

    Only positive images have masks, so the presence of a mask would reveal the label, and its place which label: the
    outline of a heart means cardiomegaly. Therefore every image is given a mask of every finding. An image without one
    borrows it, at the same place, from another image that the seed selects.
    """

    def __init__(self, data: Dataset, encoder: Encoder, seed: int) -> None:
        self.data = data
        self.patch = encoder.geometry.patch
        self.wanted = encoder.strategy.needs_lesions
        if not self.wanted:
            return
        if data.masks is None:
            raise ValueError(
                f"{type(encoder.strategy).__name__} needs lesion masks, and data set '{data.name}' has none: "
                "leave it out."
            )
        self.bits = [bit for bit in range(len(data.label_names)) if self._has(bit).any()]
        everyone = np.arange(len(data))
        self.sources = []  # per finding, the image whose mask each image is given
        for bit in self.bits:
            own = self._has(bit)
            donors = np.flatnonzero(own)
            generator = keyed_generator("borrowed masks", seed, bit)
            drawn = torch.randint(len(donors), (len(own),), generator=generator).numpy()
            self.sources.append(np.where(own, everyone, donors[drawn]))

    def _has(self, bit: int) -> np.ndarray:
        """Which images have a mask of this finding, (N,) bool."""
        assert self.data.masks is not None
        return np.asarray(((self.data.masks >> np.uint16(bit)) & 1).any(axis=(1, 2)))

    def masks_of(self, index: Indices) -> Tensor:
        """Pixels inside a lesion, the image's own or a borrowed one, (B, H, W) bool."""
        masks = self.data.masks
        assert masks is not None
        shown = np.zeros((len(index), *masks.shape[1:]), dtype=bool)
        for bit, source in zip(self.bits, self.sources, strict=True):
            shown |= (masks[source[index]] >> np.uint16(bit)) & 1 == 1
        return torch.from_numpy(shown)

    def coverage(self, masks: Tensor) -> Tensor:
        """Share of each patch that lies inside a lesion, (B, patches)."""
        return torch.nn.functional.avg_pool2d(masks.float()[:, None], self.patch).flatten(1)

    def call_for(self, index: Indices, call: Call, device: torch.device) -> Call:
        """Add the lesions of the unaugmented images to a call, for evaluation."""
        return replace(call, lesions=self.coverage(self.masks_of(index)).to(device)) if self.wanted else call

    def make_views(
        self, views: Views, index: Indices, parameters: Parameters, call: Call, device: torch.device
    ) -> tuple[Tensor, Call]:
        """Make two views (2, B, channels, H, W) of the images, and add their lesions, moved alike, to the call."""
        images = torch.from_numpy(self.data.images[index]).to(device)
        if not self.wanted:
            pair, _ = views.apply(images, parameters)
            return pair, call
        pair, masks = views.apply(images, parameters, self.masks_of(index).to(torch.uint16).to(device))
        assert masks is not None
        return pair, replace(call, lesions=self.coverage(masks.flatten(0, 1).to(torch.int32) != 0))


def epoch_order(images: np.ndarray, seed: int, epoch: int, batch: int) -> Iterator[np.ndarray]:
    """Yield batches of indices in an order keyed by (seed, epoch); an incomplete last batch is dropped."""
    permutation = torch.randperm(len(images), generator=keyed_generator("order", seed, epoch)).numpy()
    for start in range(0, len(images) - batch + 1, batch):
        yield images[permutation[start : start + batch]]


def views_of(spec: RunSpec, **changes: float) -> Views:
    """Return the distribution of views that a run draws from; `changes` override its ranges."""
    ranges: dict[str, Any] = {**spec.views.model_dump(), **changes}
    return Views(spec.encoder.image_size, channels=spec.encoder.channels, **ranges)


def draw_views(spec: RunSpec, blur: tuple[float, float] | None, step: int, batch: int) -> Parameters:
    """Draw the parameters of both views of a step, keyed by (seed, step).

    `blur` gives each view its own probability of being blurred (asymmetric views).
    """

    def drawn(views: Views) -> Parameters:
        return views.draw(keyed_generator("views", spec.seed, step), batch)

    if blur is None:
        return drawn(views_of(spec))
    both = [drawn(views_of(spec, blur_probability=probability)) for probability in blur]
    return replace(both[0], sigma=torch.stack([one.sigma[view] for view, one in enumerate(both)]))
