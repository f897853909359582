"""Top-K against the outputs of its authors' code, JoakimHaurum/TokenReduction @88fe07e."""

from __future__ import annotations

import pytest
import torch

from methods.strategies import topk
from methods.strategies.strategy import Call
from tests.methods.official import recipe

REFERENCE = recipe.reference("topk")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rho", [0.9, 0.7, 0.5, 0.25])
def test_the_same_patches_are_kept_and_the_features_agree(
    rho: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit, geometry = recipe.transformer(seed)
    tokens, kept = recipe.final_tokens(vit), recipe.watch(monkeypatch, topk, "highest")
    with torch.no_grad():
        encoding = topk.TopK(geometry, rho=rho)(vit, recipe.images(seed), Call())
    ours = recipe.kept_alike(kept, REFERENCE, f"{rho}_{seed}")
    assert encoding.kept is not None
    assert (encoding.kept.nonzero()[:, 1].view(3, -1).numpy() == ours).all()
    assert recipe.gap(encoding.features, REFERENCE[f"feature_{rho}_{seed}"]) < recipe.ROUNDING
    assert recipe.gap(tokens[0][:, 0], REFERENCE[f"cls_{rho}_{seed}"]) < recipe.ROUNDING


@pytest.mark.parametrize(("rho", "seed"), [(0.7, 0), (0.25, 1)])
def test_gradients_agree(rho: float, seed: int) -> None:
    recipe.check_gradients(topk.TopK, rho, seed, REFERENCE, f"grads_{rho}_{seed}")
