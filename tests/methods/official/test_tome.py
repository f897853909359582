"""ToMe against the outputs of its authors' code, facebookresearch/ToMe @af95e4b, with proportional attention.

With a class token, which takes a place when the tokens are dealt into two sets, and with a distillation token too.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.strategies.strategy import Call
from methods.strategies.tome import ToMe
from tests.methods.official import recipe

REFERENCE = recipe.reference("tome")


def tokens_of_patches(merges: list[tuple[int, tuple[Tensor, Tensor, Tensor]]], first: int) -> np.ndarray:
    """Which token each patch is in after all blocks, (images, patches); `merges`: of every block how many tokens came
    in, and what the matching said."""
    where = np.tile(np.arange(196), (3, 1))
    for n, (source, partner, stay) in merges:
        for image in range(3):
            left = np.concatenate([stay[image].numpy(), np.arange(1 - first, n, 2)])
            to = np.empty(n, int)
            to[left] = np.arange(len(left))
            to[source[image].numpy()] = to[partner[image].numpy()]
            where[image] = to[where[image]]
    return where


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("r", [13, 16, 25])
@pytest.mark.parametrize(("prefix", "first"), [("cls", 1), ("dist", 0)])
def test_the_same_patches_are_merged_and_the_features_agree(prefix: str, first: int, r: int, seed: int) -> None:
    key = f"{prefix}_{r}_{seed}"
    vit, geometry = recipe.transformer(seed, prefix)
    strategy, tokens = ToMe(geometry, r=r), recipe.final_tokens(vit)
    merges: list[tuple[int, tuple[Tensor, Tensor, Tensor]]] = []
    strategy.matching.register_forward_hook(lambda module, given, out: merges.append((given[0].shape[2], out)))
    with torch.no_grad():
        features = strategy(vit, recipe.images(seed), Call()).features
    where = tokens_of_patches(merges, first)
    assert (where == REFERENCE[f"group_{key}"] - geometry.prefix).all()
    sizes = np.stack([np.bincount(image, minlength=tokens[0].shape[1] - geometry.prefix) for image in where])
    assert (sizes == REFERENCE[f"size_{key}"][:, geometry.prefix :]).all()
    assert recipe.gap(features, REFERENCE[f"feature_{key}"]) < recipe.ROUNDING
    assert recipe.gap(tokens[0][:, 0], REFERENCE[f"cls_{key}"]) < recipe.ROUNDING


@pytest.mark.parametrize(("prefix", "r", "seed"), [("cls", 13, 0), ("cls", 25, 1), ("dist", 16, 2)])
def test_gradients_agree(prefix: str, r: int, seed: int) -> None:
    vit, geometry = recipe.transformer(seed, prefix)
    recipe.loss_of(ToMe(geometry, r=r)(vit, recipe.images(seed), recipe.TRAINING).features, seed).backward()
    theirs = REFERENCE[f"grads_{prefix}_{r}_{seed}"]
    assert recipe.gradient_gap(vit, REFERENCE[f"names_{prefix}"], theirs, seed) < recipe.GRADIENT_ROUNDING
