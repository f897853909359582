"""MACs of a ConvNeXt (arXiv 2201.03545) by formula.

The stem maps 4x4 pixels to a position, and each later stage 2x2 positions to one. A block of width C on P positions has
49 P C MACs in its depthwise 7x7 convolution, and 8 P C^2 in its MLP (C to 4C and back). With a selection, the MLP runs
at the kept positions only: s^2 for each kept patch, if a patch is s positions wide.
"""

from __future__ import annotations

from typing import Any

from bench.measure.formula import selection
from bench.measure.formula.products import CONV, LINEAR, Formula, Pass, Product, Products
from methods.strategies.dense import Dense
from methods.strategies.oracle import Oracle
from methods.strategies.sparsecontrast import Frozen, SparseContrast
from methods.strategies.subset import Centre, Fixed, PatchDropout, Random

STEM, DEPTHWISE, POINTWISE = "stem and downsampling", "depthwise convolutions", "pointwise MLPs"
KERNEL, EXPANSION = 7, 4


def always(run: Pass) -> Products:
    """Products of stem, downsampling and depthwise convolutions, which run at all positions."""
    geometry, stages = run.encoder.geometry, _stages(run)
    side, width = geometry.image_size // 4, stages[0][1]
    narrow = _overlapping_stem(run)
    if narrow:  # two 3x3 convolutions of stride 2 instead of the 4x4 convolution
        yield Product(STEM, (2 * side) ** 2 * 9 * geometry.channels * narrow, 1, CONV)
        yield Product(STEM, side**2 * 9 * narrow * width, kind=CONV)
    else:
        yield Product(STEM, side**2 * 16 * geometry.channels * width, 1, CONV)  # images get no gradient
    for i, (depth, wider) in enumerate(stages):
        if i:
            side //= 2
            yield Product(STEM, side**2 * 4 * width * wider, kind=CONV)
            width = wider
        yield Product(DEPTHWISE, depth * side**2 * KERNEL**2 * width, kind=CONV)


def _dense(run: Pass) -> Products:
    yield from _mlps(run, run.patches)


def _selection(run: Pass) -> Products:
    kept = selection.kept(run)
    if kept is None:
        yield from _dense(run)
        return
    yield from selection.predictor(run)
    yield from _mlps(run, run.patches if run.strategy.execution == "masked" else kept.mean)


def _mlps(run: Pass, kept: float) -> Products:
    """Products of the MLPs on `kept` patches; in the last stage a patch is one position."""
    stages = _stages(run)
    kind = CONV if _network(run).stages[0].blocks[0].use_conv_mlp else LINEAR
    for i, (depth, width) in enumerate(stages):
        positions = kept * 4 ** (len(stages) - 1 - i)
        yield Product(POINTWISE, depth * positions * 2 * EXPANSION * width**2, kind=kind)


def _stages(run: Pass) -> list[tuple[int, int]]:
    """Depth and width of each stage."""
    net = _network(run)
    widths = [info["num_chs"] for info in net.feature_info]
    return [(len(stage.blocks), width) for stage, width in zip(net.stages, widths, strict=False)]


def _overlapping_stem(run: Pass) -> int:
    """Width between the two convolutions of an overlapping stem; 0 for the stem of the paper, which is one
    convolution."""
    first = _network(run).stem[0]
    return int(first.out_channels) if first.kernel_size[0] == 3 else 0


def _network(run: Pass) -> Any:
    return run.encoder.network


FORMULAS: dict[type, Formula] = {
    Dense: _dense,
    **dict.fromkeys((SparseContrast, Frozen, Fixed, Centre, Random, PatchDropout, Oracle), _selection),
}
