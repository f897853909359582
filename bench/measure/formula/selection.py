"""MACs of choosing patches before the network, and how many are left: alike for transformers and ConvNeXt."""

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
    """Patches kept of an image: the mean over the batch, and the most, to which the others are padded; whether the
    number depends on the image."""

    mean: float
    most: int
    adaptive: bool = False


def kept(run: Pass) -> Kept | None:
    """As many as the schedule says, in training, or the target; or what the images need. None where nothing is chosen,
    for all are kept."""
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
    """SparseContrast's: patchify, then 3x3, then 3x3 to one channel, on the grid of patches."""
    if not isinstance(run.strategy, SparseContrast):
        return
    geometry, network = run.encoder.geometry, run.strategy.predictor
    first = network.layers[0]
    assert isinstance(first, nn.Conv2d)
    width, trained = first.out_channels, is_trained(network)
    yield Product("predictor", run.patches * geometry.channels * geometry.patch**2 * width, trained, CONV)
    yield Product("predictor", run.patches * 9 * width**2, 2 * trained, CONV)
    yield Product("predictor", run.patches * 9 * width, 2 * trained, CONV)
