"""Random numbers keyed by seed, step, network and name, independent of rank, call order and method.

Every draw covers the whole global batch, and each rank takes its own rows. A run is therefore the same for any number
of ranks, after any interruption, and next to any other method.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


def keyed_generator(*key: object) -> torch.Generator:
    """Return a CPU generator whose stream depends only on `key`, on every machine and in every process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass  # not frozen, because it is part of `Call`
class Noise:
    """Random numbers of one training step.

    seed, step: of the run, and the number of the step.
    batch: number of samples over all ranks.
    views: number of views, stacked along the batch axis (view-major: all samples of view 0, then all of view 1).
    rows: samples of this rank.
    role: name of the network, so that student and teacher draw different numbers for the same views.
    """

    seed: int
    step: int
    batch: int
    views: int = 2
    rows: slice = field(default_factory=lambda: slice(None))
    role: str = "student"

    def of(self, role: str) -> Noise:
        """Return the randomness of the same step for another network."""
        return replace(self, role=role)

    def uniform(self, name: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw uniform numbers in [0, 1), float32, of shape (views x local batch, *shape)."""
        generator = keyed_generator(self.seed, self.step, self.role, name)
        drawn = torch.rand(self.views, self.batch, *shape, generator=generator, dtype=torch.float32)
        return drawn[:, self.rows].flatten(0, 1).to(device)

    def gumbel(self, name: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw standard Gumbel numbers (standard deviation pi / sqrt(6) = 1.28), (views x local batch, *shape)."""
        tiny = torch.finfo(torch.float32).tiny
        exponential = -self.uniform(name, *shape, device=device).clamp_min(tiny).log()
        return -exponential.clamp_min(tiny).log()
