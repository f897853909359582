"""Oracle: keeps the patches that lesions cover most. A diagnostic for data with masks, and no upper bound.

Patches are ordered by the share of their area inside a lesion; equals, above all the patches without any, at
random, as the control `random` draws them. Masks exist in positives only, so the pattern of what is kept
would tell the label: the caller gives negatives lesions drawn from the distribution of the positives'
(`Call.lesions`).
"""

from __future__ import annotations

from torch import Tensor

from methods.strategies.selection import Choice
from methods.strategies.strategy import Call
from methods.strategies.subset import Random


class Oracle(Random):
    """Lesion patches first. Raises ValueError where a call brings no lesions, or not one number a patch."""

    needs_lesions = True

    def choose(self, images: Tensor, call: Call) -> Choice | None:
        if call.lesions is None:
            raise ValueError("strategy 'oracle' needs lesion masks: use data that have some, or leave it out.")
        expected = (images.shape[0], self.geometry.patches)
        if tuple(call.lesions.shape) != expected:
            raise ValueError(f"strategy 'oracle' got lesions of shape {tuple(call.lesions.shape)}, not {expected}.")
        return super().choose(images, call)

    def scores(self, images: Tensor, call: Call) -> Tensor:
        assert call.lesions is not None
        shuffled = super().scores(images, call).argsort(dim=1)
        covered = call.lesions.to(images.device).gather(1, shuffled)
        order = shuffled.gather(1, covered.argsort(dim=1, descending=True, stable=True))  # best first
        return -order.argsort(dim=1).float()  # minus the rank of each patch
