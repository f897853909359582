"""Random numbers that depend only on (seed, stream, patient, image), drawn for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets.phantom.geometry import Array

COUNTS, ANATOMY, POSE, DISEASE, EPISODE, NOISE = range(6)  # independent streams: an added number shifts only its own
COLUMNS = 512


class Draws:
    """Random numbers for a batch: a row of uniform numbers per key, of which each call takes the next columns."""

    def __init__(self, keys: Sequence[tuple[int, ...]]) -> None:
        unique = dict.fromkeys(keys)
        rows = {key: np.random.default_rng(key).random(COLUMNS) for key in unique}
        self._rows = np.stack([rows[key] for key in keys]) if len(keys) else np.empty((0, COLUMNS))
        self._next = 0

    def uniform(self, low: float = 0.0, high: float = 1.0, *shape: int) -> Array:
        """Draw uniform numbers, (B, *shape). Raises RuntimeError if a row is exhausted."""
        count = int(np.prod(shape))
        if self._next + count > COLUMNS:
            raise RuntimeError("more numbers requested than a row holds; raise COLUMNS")
        block = self._rows[:, self._next : self._next + count]
        self._next += count
        return np.asarray(low + (high - low) * block.reshape(len(block), *shape))

    def normal(self, mean: float = 0.0, spread: float = 1.0, *shape: int) -> Array:
        """Draw normal numbers, (B, *shape), clipped at 2.5 standard deviations."""
        radius = np.sqrt(-2 * np.log(1 - self.uniform(0, 1, *shape)))
        value = radius * np.cos(2 * np.pi * self.uniform(0, 1, *shape))
        return np.asarray(mean + spread * np.clip(value, -2.5, 2.5))

    def lognormal(self, median: float, spread: float, low: float, high: float, *shape: int) -> Array:
        """Draw log-normal numbers, (B, *shape), clipped to [low, high]."""
        return np.clip(median * np.exp(self.normal(0, spread, *shape)), low, high)

    def chance(self, probability: float | Array, *shape: int) -> Array:
        """Draw booleans, (B, *shape), that are True with the given probability."""
        return np.asarray(self.uniform(0, 1, *shape) < probability)


def image_counts(seed: int, patients: int, mean: float) -> Array:
    """Draw the number of images of each patient (patients,), 1 to 4: 1 + Binomial(3, (mean - 1) / 3).

    The numbers of the first patients do not depend on how many follow.
    """
    share = (mean - 1) / 3
    return np.asarray(1 + (np.random.default_rng((seed, COUNTS)).random((patients, 3)) < share).sum(1))
