"""Computing in float64, for comparisons that the rounding of float32 would blur."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from methods.noise import Noise


@contextmanager
def float64_throughout() -> Iterator[None]:
    """Compute in float64 all that is in float32 by default or by `Tensor.float`, drawing random numbers included."""
    before, uniform = torch.get_default_dtype(), Noise.uniform

    def wide_uniform(*arguments, **options) -> torch.Tensor:  # type: ignore[no-untyped-def]
        return uniform(*arguments, **options).double()

    with patch.object(torch.Tensor, "float", torch.Tensor.double), patch.object(Noise, "uniform", wide_uniform):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
