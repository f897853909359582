"""MACs of a vision transformer by formula, for each strategy.

With N tokens of width C, a block has 4 N C^2 MACs in projections, 2 N^2 C in attention and 2 mlp N C^2 in its MLP,
where mlp is the ratio of the hidden width to C.
"""

from __future__ import annotations

import math
from dataclasses import replace

from timm.layers.attention import Attention

from bench.measure.formula import selection
from bench.measure.formula.products import BATCHED, CONV, Formula, Pass, Product, Products, is_trained
from methods.encoders.vit import ConvStem
from methods.strategies.dense import Dense
from methods.strategies.dynamicvit import DynamicViT
from methods.strategies.evit import EViT
from methods.strategies.oracle import Oracle
from methods.strategies.selection import Selection
from methods.strategies.sparsecontrast import Frozen, SparseContrast
from methods.strategies.subset import Centre, Fixed, PatchDropout, Random
from methods.strategies.tokenlearner import TokenLearner
from methods.strategies.tome import ToMe
from methods.strategies.topk import TopK

LAYERS, ATTENTION, MIXING, STEM = "projections and MLPs", "attention", "token mixing", "patch embedding"


def always(run: Pass) -> Products:
    """Products of the patch embedding: a patchify convolution, or 3x3 convolutions of stride 2 and a 1x1
    convolution."""
    geometry, embedding = run.encoder.geometry, run.encoder.vit.patch_embed
    trained = is_trained(embedding)
    if not isinstance(embedding, ConvStem):
        yield Product(STEM, geometry.patches * geometry.channels * geometry.patch**2 * geometry.dim, trained, CONV)
        return
    steps = int(math.log2(geometry.patch))
    widths = [geometry.channels, *(geometry.dim // 2 ** (steps - 1 - i) for i in range(steps))]
    for i in range(steps):
        side = geometry.image_size // 2 ** (i + 1)
        yield Product(STEM, side**2 * 9 * widths[i] * widths[i + 1], trained * (2 if i else 1), CONV)
    yield Product(STEM, geometry.patches * geometry.dim**2, 2 * trained, CONV)


def _dense(run: Pass) -> Products:
    yield from _blocks(run, run.depth, run.prefix + run.patches)


def _selection(run: Pass) -> Products:
    """Products of the predictor, if SparseContrast chooses, and of the blocks on the kept patches."""
    strategy, kept = run.strategy, selection.kept(run)
    if kept is None:
        yield from _dense(run)
        return
    yield from selection.predictor(run)
    biased = run.call.training and getattr(strategy, "gate", "") == "key_bias" and strategy.trained
    yield from _selected(run, kept.most, padded=kept.adaptive or biased)


def _selected(run: Pass, kept: int, padded: bool) -> Products:
    """Products of the blocks on `kept` patches, or on all patches if only keys are trimmed or dropped patches
    hidden."""
    strategy: Selection = run.strategy
    prefix = run.prefix + bool(getattr(strategy, "fuse", False))
    whole = prefix + run.patches
    if getattr(strategy, "trim", "tokens") == "keys":
        yield from _blocks(run, run.depth, whole, prefix + kept, padded)
    elif strategy.execution == "masked":
        yield from _blocks(run, run.depth, whole, padded=True)
    else:
        yield from _blocks(run, run.depth, prefix + kept, padded=padded)


def _dynamicvit(run: Pass) -> Products:
    """Products with predictors C -> C -> C/2 -> C/4 -> 2. Training computes all tokens, and a dense branch to
    distil."""
    c, depth, patches = run.dim, run.depth, run.patches
    start = depth // 4
    for i in range(depth):
        if i in (start, depth // 2, 3 * depth // 4):
            stage = 1 + (i >= depth // 2) + (i >= 3 * depth // 4)
            widths = ((c, c), (c, c // 2), (c // 2, c // 4), (c // 4, 2))
            yield Product("predictors", patches * sum(a * b for a, b in widths))
            if not run.call.training:
                patches = max(1, int(run.patches * run.strategy.rho**stage))
        yield from _blocks(run, 1, run.prefix + patches)
    if run.learns and run.strategy.distil_weight:
        separate = run.strategy.init == "dense"  # the teacher is a network of its own
        teacher = [*always(run)] if separate else []
        teacher += _blocks(run, depth if separate else depth - start, run.prefix + run.patches)
        for product in teacher:
            yield replace(product, part="dense branch", gradients=0)


def _tokenlearner(run: Pass) -> Products:
    """Products of learning S tokens from N positions: weights by an MLP C -> 64 -> S or by 3x3 convolutions, then
    weights x positions."""
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

    yield from _blocks(run, strategy.before, p + n)
    if strategy.fusers is None:
        yield from learn()
        yield from _blocks(run, run.depth - strategy.before, p + s)
        return
    for _ in range(run.depth - strategy.before):
        yield from learn()
        yield from _blocks(run, 1, p + s)
        yield Product("fusers", c * s * s + mlp)  # mixing of the tokens; weights of the positions
        yield Product("fusers", n * s * c, kind=BATCHED)


def _attention_pruned(run: Pass) -> Products:
    """Products of Top-K and EViT: three blocks drop tokens before the MLP, ranked by the attention of the class token
    or, without one, of all tokens."""
    fuses, rho, c, p = isinstance(run.strategy, EViT), run.strategy.rho, run.dim, run.prefix
    at, n = (run.depth // 4, run.depth // 2, 3 * run.depth // 4), run.patches
    for i in range(run.depth):
        yield from _attend(run, p + n)
        kept = n
        if i in at:
            stage = at.index(i) + 1
            kept = math.ceil(rho * n - 1e-9) if fuses else max(1, int(run.patches * rho**stage + 1e-9))
        if kept < n:
            yield Product("attended", (1 if p else n) * (p + n) * c, 2 if fuses else 0, BATCHED)
            if fuses:
                yield Product("fusion", (n - kept) * c, kind=BATCHED)
            n = kept + fuses
        yield from _mlp(run, p + n)


def _tome(run: Pass) -> Products:
    """Products of ToMe: each block compares the tokens of one half with those of the other, in the width of a head."""
    n, p = run.patches, run.prefix
    for _ in range(run.depth):
        yield from _attend(run, p + n)
        r = min(run.strategy.r, n // 2)
        if r:
            yield Product("matching", (n - n // 2) * (n // 2) * run.dim // _heads(run), 0, BATCHED)
        n -= r
        yield from _mlp(run, p + n)


def _heads(run: Pass) -> int:
    attention = run.encoder.vit.get_submodule("blocks.0.attn")
    assert isinstance(attention, Attention)
    return attention.num_heads


def _attend(run: Pass, tokens: int, keys: int | None = None, padded: bool = False) -> Products:
    """Products of the first half of a block. If `padded`, each head is wider by the dimensions that carry a bias."""
    dim, heads = run.dim, _heads(run)
    width = dim // heads
    padding = (-width % 8 or 8) if padded else 0
    yield Product(LAYERS, 4 * tokens * dim**2)
    yield Product(ATTENTION, 2 * tokens * (keys or tokens) * heads * (width + padding), kind=BATCHED)


def _mlp(run: Pass, tokens: int) -> Products:
    yield Product(LAYERS, 2 * run.encoder.geometry.mlp_ratio * tokens * run.dim**2)


def _blocks(run: Pass, count: int, tokens: int, keys: int | None = None, padded: bool = False) -> Products:
    for _ in range(count):
        yield from _attend(run, tokens, keys, padded)
        yield from _mlp(run, tokens)


FORMULAS: dict[type, Formula] = {
    Dense: _dense,
    DynamicViT: _dynamicvit,
    TokenLearner: _tokenlearner,
    TopK: _attention_pruned,
    EViT: _attention_pruned,
    ToMe: _tome,
    **dict.fromkeys((SparseContrast, Frozen, Fixed, Centre, Random, PatchDropout, Oracle), _selection),
}
