"""Number of patches that a selection keeps, and MACs of choosing them, for transformers and ConvNeXts."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from bench.measure.formula.products import CONV, Pass, Product, Products, is_trained
from methods.schedule import kept_tokens
from methods.strategies.sparsecontrast import SparseContrast


@dataclass(frozen=True)
class Kept:
    """Numbers of kept patches per image: the mean over the batch, and the maximum, to which images are padded.
    `adaptive` says whether the number depends on the image."""

    mean: float
    most: int
    adaptive: bool = False


def kept(run: Pass) -> Kept | None:
    """Numbers of kept patches: those of the schedule in training, those of the target at inference or, for an adaptive
    strategy, those of the images. None if all patches are kept without choosing."""
    strategy, training = run.strategy, run.call.training
    count = kept_tokens(run.patches, run.call.keep if training else strategy.target)
    looks = isinstance(strategy, SparseContrast)
    rests = not looks or (training and strategy.select != "threshold")
    if count == run.patches and rests:
        return None
    if not strategy.adaptive:
        return Kept(count, count)
    with torch.no_grad():
        choice = copy.deepcopy(strategy).choose(run.images, run.call)
    return Kept(float(choice.valid.sum(1).float().mean()), choice.index.shape[1], adaptive=True)


def predictor(run: Pass) -> Products:
    """Products of the predictor of SparseContrast on the grid of patches: patchify, 3x3, and 3x3 to one channel."""
    if not isinstance(run.strategy, SparseContrast):
        return
    geometry, network = run.encoder.geometry, run.strategy.predictor
    first = network.layers[0]
    assert isinstance(first, nn.Conv2d)
    width, trained = first.out_channels, is_trained(network)
    yield Product("predictor", run.patches * geometry.channels * geometry.patch**2 * width, trained, CONV)
    yield Product("predictor", run.patches * 9 * width**2, 2 * trained, CONV)
    yield Product("predictor", run.patches * 9 * width, 2 * trained, CONV)
