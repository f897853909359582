"""MACs by formulas derived by hand: a witness that counts nothing, beside the counters that see the operators run.

Inference is the sum of an encoder's products; a train step adds the backward ones, for both views, and the heads, the
teacher and the contrast. Padding counts, as it is computed; norms, pooling and activations do not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench.measure.products import BATCHED, CONV, MIXING, Pass, Product, Products, is_trained
from methods.objectives.moco import MoCo
from methods.objectives.objective import Objective
from methods.objectives.simclr import SimCLR
from methods.schedule import kept_tokens
from methods.strategies.dense import Dense
from methods.strategies.dynamicvit import DynamicViT
from methods.strategies.evit import EViT
from methods.strategies.oracle import Oracle
from methods.strategies.selection import Selection
from methods.strategies.sparsecontrast import Frozen, SparseContrast
from methods.strategies.strategy import Call
from methods.strategies.subset import Centre, Fixed, PatchDropout, Random
from methods.strategies.tokenlearner import TokenLearner
from methods.strategies.tome import ToMe
from methods.strategies.topk import TopK

if TYPE_CHECKING:
    from methods.encoders.encoder import Encoder


def inference(encoder: Encoder, images: Tensor, call: Call) -> list[Product] | None:
    """The products of a forward pass; None for a strategy that there is no formula for."""
    return _forward(Pass(encoder, images, call, learns=False))


def train_step(objective: Objective, views: Tensor, call: Call, batch: int) -> list[Product] | None:
    """The products of a train step of `batch` images, MACs of both views and backward passes included; None for a
    strategy or an objective without a formula.

    `views` (2, n, channels, H, W) and `call` decide the shapes where they depend on what is in the images.
    """
    images = views.flatten(0, 1)
    student = _forward(Pass(objective.encoder, images, call, learns=True))
    if student is None or type(objective) not in (SimCLR, MoCo):
        return None
    assert isinstance(objective, SimCLR | MoCo)
    student.append(Product("heads", _linear(objective.projector)))
    out = [layer.out_features for layer in objective.projector if isinstance(layer, nn.Linear)][-1]
    teacher: list[Product] = []
    if isinstance(objective, SimCLR):
        student.append(Product("contrast", 2 * batch * out))  # each view with all 2B; both operands learn
    else:
        student.append(Product("heads", _linear(objective.predictor)))
        student.append(Product("contrast", batch * out, 1))  # a query with the other view's keys, which do not learn
        told = replace(call, noise=None, inference="dense") if objective.teacher == "dense" else call.of("teacher")
        forward = _forward(Pass(objective.teacher_encoder, images, told, learns=False))
        assert forward is not None
        teacher = [*forward, Product("teacher", _linear(objective.teacher_projector))]
    return [
        *(replace(product, macs=2 * (1 + product.gradients) * product.macs) for product in student),
        *(replace(product, macs=2 * product.macs, part="teacher") for product in teacher),
    ]


def _forward(run: Pass) -> list[Product] | None:
    if type(run.strategy) not in FORMULAS or not hasattr(run.encoder, "vit"):
        return None
    whole = not run.call.training and run.call.inference == "dense"
    return [*run.stem(), *(_dense if whole else FORMULAS[type(run.strategy)])(run)]


def _dense(run: Pass) -> Products:
    yield from run.blocks(run.depth, run.prefix + run.patches)


def _subset(run: Pass) -> Products:
    """The controls: as many patches as the schedule says, or all of them."""
    kept = kept_tokens(run.patches, run.call.keep if run.call.training else run.strategy.target)
    yield from _dense(run) if kept == run.patches else _selected(run, kept, padded=False)


def _sparsecontrast(run: Pass) -> Products:
    """The predictor, patchify - 3x3 - 3x3 to one channel; then the kept patches alone."""
    strategy, geometry = run.strategy, run.encoder.geometry
    kept = kept_tokens(run.patches, run.call.keep if run.call.training else strategy.target)
    if run.call.training and kept == run.patches and strategy.select != "threshold":
        yield from _dense(run)
        return
    width, trained = strategy.predictor.layers[0].out_channels, is_trained(strategy.predictor)
    yield Product("predictor", run.patches * geometry.channels * geometry.patch**2 * width, trained, CONV)
    yield Product("predictor", run.patches * 9 * width**2, 2 * trained, CONV)
    yield Product("predictor", run.patches * 9 * width, 2 * trained, CONV)
    adaptive = strategy.select != "topk"
    if adaptive:  # as many as the widest image of the batch
        with torch.no_grad():
            choice = copy.deepcopy(strategy).choose(run.images, run.call)
        assert choice is not None
        kept = choice.index.shape[1]
    biased = run.call.training and strategy.trained and strategy.gate == "key_bias"
    yield from _selected(run, kept, padded=adaptive or biased)


def _selected(run: Pass, kept: int, padded: bool) -> Products:
    """Blocks on `kept` patches; where keys alone are trimmed, or dropped patches hidden, on all of them."""
    strategy: Selection = run.strategy
    prefix = run.prefix + bool(getattr(strategy, "fuse", False))
    whole = prefix + run.patches
    if getattr(strategy, "trim", "tokens") == "keys":
        yield from run.blocks(run.depth, whole, prefix + kept, padded)
    elif strategy.execution == "masked":
        yield from run.blocks(run.depth, whole, padded=True)
    else:
        yield from run.blocks(run.depth, prefix + kept, padded=padded)


def _dynamicvit(run: Pass) -> Products:
    """Predictors C -> C -> C/2 -> C/4 -> 2. Training computes all tokens, and a dense branch where it learns."""
    c, depth, patches = run.dim, run.depth, run.patches
    start = depth // 4
    for i in range(depth):
        if i in (start, depth // 2, 3 * depth // 4):
            stage = 1 + (i >= depth // 2) + (i >= 3 * depth // 4)
            widths = ((c, c), (c, c // 2), (c // 2, c // 4), (c // 4, 2))
            yield Product("predictors", patches * sum(a * b for a, b in widths))
            if not run.call.training:
                patches = max(1, int(run.patches * run.strategy.rho**stage))
        yield from run.blocks(1, run.prefix + patches)
    if run.learns and run.strategy.distil_weight:
        for product in run.blocks(depth - start, run.prefix + run.patches):
            yield replace(product, part="dense branch", gradients=0)


def _tokenlearner(run: Pass) -> Products:
    """N positions to S tokens: weights by an MLP C -> 64 -> S or 3x3 convolutions, then weights x positions."""
    strategy, c, n, p = run.strategy, run.dim, run.patches, run.prefix
    if len(strategy.learners) == 0:
        yield from _dense(run)
        return
    convolutional = hasattr(strategy.learners[0], "convs")
    s = strategy.learners[0].convs[0].out_channels if convolutional else strategy.learners[0].mlp[2].out_features
    mlp = n * (c * 64 + 64 * s)

    def learn() -> Products:
        yield Product("learners", 9 * n * (c * s + 3 * s * s), kind=CONV) if convolutional else Product("learners", mlp)
        yield Product(MIXING, s * n * c, kind=BATCHED)

    yield from run.blocks(strategy.before, p + n)
    if strategy.fusers is None:
        yield from learn()
        yield from run.blocks(run.depth - strategy.before, p + s)
        return
    for _ in range(run.depth - strategy.before):
        yield from learn()
        yield from run.blocks(1, p + s)
        yield Product("fusers", c * s * s + mlp)  # across the tokens; shares of the positions
        yield Product("fusers", n * s * c, kind=BATCHED)


def _attention_pruned(run: Pass) -> Products:
    """Top-K and EViT: in three blocks fewer tokens for the MLP, ranked by the class token's row, or by all rows."""
    fuses, rho, c, p = isinstance(run.strategy, EViT), run.strategy.rho, run.dim, run.prefix
    at, n = (run.depth // 4, run.depth // 2, 3 * run.depth // 4), run.patches
    for i in range(run.depth):
        yield from run.attend(p + n)
        kept = n
        if i in at:
            stage = at.index(i) + 1
            kept = math.ceil(rho * n - 1e-9) if fuses else max(1, int(run.patches * rho**stage + 1e-9))
        if kept < n:
            yield Product("attended", (1 if p else n) * (p + n) * c, 2 if fuses else 0, BATCHED)
            if fuses:
                yield Product("fusion", (n - kept) * c, kind=BATCHED)
            n = kept + fuses
        yield from run.mlp(p + n)


def _tome(run: Pass) -> Products:
    """In every block each token of one half is compared with each of the other, on one head's width."""
    n, p = run.patches, run.prefix
    for _ in range(run.depth):
        yield from run.attend(p + n)
        r = min(run.strategy.r, n // 2)
        if r:
            yield Product("matching", (n - n // 2) * (n // 2) * run.dim // run.heads, 0, BATCHED)
        n -= r
        yield from run.mlp(p + n)


FORMULAS: dict[type, Callable[[Pass], Products]] = {
    Dense: _dense,
    DynamicViT: _dynamicvit,
    TokenLearner: _tokenlearner,
    TopK: _attention_pruned,
    EViT: _attention_pruned,
    ToMe: _tome,
    SparseContrast: _sparsecontrast,
    Frozen: _sparsecontrast,
    **dict.fromkeys((Fixed, Centre, Random, PatchDropout, Oracle), _subset),
}


def _linear(head: nn.Module) -> int:
    return sum(layer.in_features * layer.out_features for layer in head.modules() if isinstance(layer, nn.Linear))
