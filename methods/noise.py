"""Random numbers keyed by (seed, step, name, view, sample): never by rank, by call order or by method.

Every draw is made for the whole global batch, of which a rank takes its rows. So a run is the same whatever method
stands beside it, however it is split over ranks, and wherever it was interrupted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


def keyed_generator(*key: object) -> torch.Generator:
    """A CPU generator whose stream depends on `key` alone (the same in every process and on every machine)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass  # not frozen, as a part of `Call`
class Noise:
    """The randomness of one training step.

    `batch` is the number of samples over all ranks, `rows` those of this rank, `views` the number of views that are
    stacked along the batch axis (view-major: all samples of view 0, then all of view 1). `role` separates the
    networks that run on the same views (student, teacher).
    """

    seed: int
    step: int
    batch: int
    views: int = 2
    rows: slice = field(default_factory=lambda: slice(None))
    role: str = "student"

    def of(self, role: str) -> Noise:
        """The same step's randomness for another network."""
        return replace(self, role=role)

    def uniform(self, name: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers in [0, 1), float32, (views x local batch, *shape)."""
        generator = keyed_generator(self.seed, self.step, self.role, name)
        drawn = torch.rand(self.views, self.batch, *shape, generator=generator, dtype=torch.float32)
        return drawn[:, self.rows].flatten(0, 1).to(device)

    def gumbel(self, name: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Standard Gumbel numbers (standard deviation pi / sqrt(6) = 1.28), (views x local batch, *shape)."""
        tiny = torch.finfo(torch.float32).tiny
        exponential = -self.uniform(name, *shape, device=device).clamp_min(tiny).log()
        return -exponential.clamp_min(tiny).log()
