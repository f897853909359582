"""PatchDropout in training against the outputs of its authors' code, yueliukth/PatchDropout @3fef419, given the same
uniform numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.noise import Noise
from methods.strategies.strategy import Call
from methods.strategies.subset import PatchDropout
from tests.methods.official import recipe

REFERENCE = recipe.reference("patchdropout")


class Given(Noise):
    def uniform(self, name: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        drawn = np.random.RandomState(self.seed + 50).uniform(size=(self.batch, *shape))
        return torch.from_numpy(drawn).to(torch.float32)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("keep", [0.5, 0.25, 0.7])
def test_counts_features_and_gradients_agree(keep: float, seed: int) -> None:
    key = f"{keep}_{seed}"
    vit, geometry = recipe.transformer(seed)
    tokens, strategy = recipe.final_tokens(vit), PatchDropout(geometry, keep=keep, equal_macs=False)
    encoding = strategy(vit, recipe.images(seed), Call(keep=keep, noise=Given(seed, 0, 3, views=1)))
    assert encoding.kept is not None
    assert encoding.kept.sum(1).tolist() == [int(REFERENCE[f"tokens_{key}"])] * 3
    assert recipe.gap(encoding.features, REFERENCE[f"feature_{key}"]) < recipe.ROUNDING
    assert recipe.gap(tokens[0][:, 0], REFERENCE[f"cls_{key}"]) < recipe.ROUNDING
    recipe.loss_of(encoding.features, seed).backward()
    theirs = REFERENCE[f"grads_{key}"]
    assert recipe.gradient_gap(vit, REFERENCE["names"], theirs, seed) < recipe.GRADIENT_ROUNDING
