"""The sparsity schedule: from all tokens to the target keep ratio along half a cosine."""

from __future__ import annotations

import math


def keep_at(progress: float, target: float, ramp: float) -> float:
    """Keep ratio at `progress` (share of the run that is over, 0 to 1).

    Falls from 1 to `target` along half a cosine during the first `ramp` share of the run and stays there; with
    `ramp` 0 it is `target` from the start.
    """
    if progress >= ramp:
        return target
    return target + (1.0 - target) * 0.5 * (1.0 + math.cos(math.pi * progress / ramp))


def kept_tokens(patches: int, keep: float) -> int:
    """Number of patch tokens kept of `patches` at ratio `keep`: rounded half up, at least one."""
    return max(1, min(patches, int(patches * keep + 0.5)))
