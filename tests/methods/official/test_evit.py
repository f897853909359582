"""EViT against the outputs of its authors' code, youweiliang/evit @5ca95a7, with its fused token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from methods.strategies import evit
from methods.strategies.strategy import Call
from tests.methods.official import recipe

REFERENCE = recipe.reference("evit")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rho", [0.7, 0.5])
def test_the_same_patches_are_kept_and_the_features_agree(
    rho: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens of a stage are followed to the patches they were (196 + stage: the token fused there): theirs are in
    the order of attention, ours in that of the patches."""
    key = f"{rho}_1_{seed}"
    vit, geometry = recipe.transformer(seed)
    tokens, chosen = recipe.final_tokens(vit), recipe.watch(monkeypatch, evit, "ranked")
    with torch.no_grad():
        features = evit.EViT(geometry, rho=rho)(vit, recipe.images(seed), Call()).features
    ours = theirs = np.tile(np.arange(196), (3, 1))
    for stage, (best, _) in enumerate(chosen):
        index = REFERENCE[f"raw0_{key}" if stage == 0 else f"idx{stage}_{key}"].astype(int)
        fused = np.full((3, 1), 196 + stage)
        ours = np.concatenate([np.take_along_axis(ours, best.numpy(), 1), fused], 1)
        theirs = np.concatenate([np.take_along_axis(theirs, index, 1), fused], 1)
        assert (np.sort(ours, 1) == np.sort(theirs, 1)).all()
    assert len(chosen) == 3
    assert recipe.gap(features, REFERENCE[f"feature_{key}"]) < recipe.ROUNDING
    assert recipe.gap(tokens[0][:, 0], REFERENCE[f"cls_{key}"]) < recipe.ROUNDING


@pytest.mark.parametrize(("rho", "seed"), [(0.7, 0), (0.5, 1)])
def test_gradients_agree(rho: float, seed: int) -> None:
    recipe.check_gradients(evit.EViT, rho, seed, REFERENCE, f"grads_{rho}_1_{seed}")
