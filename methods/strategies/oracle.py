"""Oracle: keeps the patches that lesions cover most, for data with masks.

Patches are ordered by the share of their area inside a lesion. Ties, most of which are patches without any lesion, are
ordered at random, as in the control `random`. Only positive images have masks, so the pattern of kept patches alone
would reveal the label. The caller therefore gives negative images lesions drawn from the distribution of the positive
ones (`Call.lesions`).

The oracle is a diagnostic. It is not an upper bound on what a selection can reach.
"""

from __future__ import annotations

from torch import Tensor

from methods.strategies.selection import Choice
from methods.strategies.strategy import Call
from methods.strategies.subset import Random


class Oracle(Random):
    """Selection of lesion patches first. Raises ValueError unless each call has one lesion share per patch."""

    needs_lesions = True

    def choose(self, images: Tensor, call: Call) -> Choice | None:
        if call.lesions is None:
            raise ValueError("strategy 'oracle' needs lesion masks: use data with masks, or leave the strategy out.")
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
