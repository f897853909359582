"""Sparsity schedule: the keep ratio falls from 1 to its target along half a cosine."""

from __future__ import annotations

import math


def keep_at(progress: float, target: float, ramp: float) -> float:
    """Return the keep ratio at `progress`, the completed share of the run (0 to 1).

    The ratio falls from 1 to `target` during the first `ramp` share of the run and stays there. With `ramp` 0 it is
    `target` from the start.
    """
    if progress >= ramp:
        return target
    return target + (1.0 - target) * 0.5 * (1.0 + math.cos(math.pi * progress / ramp))


def kept_tokens(patches: int, keep: float) -> int:
    """Return how many of `patches` patch tokens are kept at ratio `keep`: rounded half up, at least one."""
    return max(1, min(patches, int(patches * keep + 0.5)))
