"""Random images and lesions, always the same, for counting and timing a network without data."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.specs.run_spec import EncoderSpec

IMAGES = 2  # of a counted batch: the fewest that a contrastive loss tells apart


def random_views(encoder: EncoderSpec, batch: int = IMAGES) -> Tensor:
    """Two views of `batch` random images, (2, B, channels, H, W)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, batch, encoder.channels, encoder.image_size, encoder.image_size, generator=generator)


def random_lesions(batch: int, patches: int) -> Tensor:
    """Random shares of the patches that lie inside lesions, (B, patches), for strategies that need lesions."""
    return torch.rand(batch, patches, generator=torch.Generator().manual_seed(0))
