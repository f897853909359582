"""Multiply-accumulates of a method: inference, training step, whole run. Norms, pooling, activations and the optimizer
do not count.

FlopCounterMode counts a training step (both views, forward and backward, teacher, predictor, heads) as it is executed,
including padding, on given or random images. Large encoders are counted on the meta device, which computes nothing,
unless shapes depend on the content of the images. Recomputation inside fused kernels is not counted. The second counter
of a step is the formula (`formula/`), if there is one; counters that differ by more than 1 % are an error.

Along the schedule, the MACs of a step are a quadratic in the number of kept tokens (projections and MLPs are linear,
attention is quadratic), so three counts suffice. Steps that keep all patches take another path and are counted
separately.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.measure import formula
from bench.measure.counters import CountersDisagree, check_agreement, inference_macs
from bench.measure.formula.products import by_kind, by_part
from bench.measure.inputs import random_lesions, random_views
from bench.records.record import Macs
from bench.specs.run_spec import EncoderSpec, TrainSpec
from methods import ALL_TOKENS
from methods.encoders.encoder import Encoder
from methods.noise import Noise
from methods.objectives.objective import Objective
from methods.schedule import keep_at, kept_tokens
from methods.strategies.strategy import Call, Strategy

__all__ = ["CountersDisagree", "count", "interpolate", "kept_over_run", "nodes"]

LARGE = 1e8  # MACs per image of a dense encoder; above it, computing a step in order to count it is slow
KINDS = {
    "convolutions": ("convolution", "convolution_backward"),
    "linear layers": ("addmm", "mm"),
    "batched products": ("bmm", "baddbmm"),
}


def count(
    objective: Objective,
    encoder: EncoderSpec,
    train: TrainSpec,
    steps: int,
    images: Tensor | None = None,
    plain: Tensor | None = None,
) -> Macs:
    """MACs of a method whose pre-training takes `steps` steps. `objective` is not changed.

    `images` (2, B, channels, H, W) are the views of a step, random by default; `plain` (N, channels, H, W) are images
    at inference, by default the first view. They matter for strategies that keep a number of tokens that depends on the
    image. Raises CountersDisagree.
    """
    views = random_views(encoder) if images is None else images.detach().cpu()
    subject = _copy(objective)
    images = views[0] if plain is None else plain.detach().cpu()
    inference, parts, counters = inference_macs(subject.encoder, images)
    others = subject.encoder.strategy.inference[1:]
    all_tokens = inference_macs(subject.encoder, images, ALL_TOKENS)[0] if ALL_TOKENS in others else None
    step = StepMacs(subject, train.batch, views)
    strategy = subject.encoder.strategy
    target = strategy.target if strategy.ramps and strategy.target is not None else None
    at_target, train_parts, train_counters = step.counters(target if target is not None else 1.0)
    if target is None:
        total = steps * at_target
    else:
        kept = kept_over_run(strategy, steps, train.ramp)
        total = sum(n * step_macs for n, step_macs in _along(kept, strategy.geometry.patches, step))
    return Macs(
        inference=inference,
        train_step=at_target,
        whole_run=train.batch * total,
        all_tokens=all_tokens,
        inference_parts=parts,
        counters=counters,
        train_parts=train_parts,
        train_counters=train_counters,
    )


def kept_over_run(strategy: Strategy, steps: int, ramp: float) -> Counter[int]:
    """Number of steps of a run by the number of patches that they keep, for a strategy with a ramp."""
    assert strategy.target is not None
    patches, target = strategy.geometry.patches, strategy.target
    return Counter(kept_tokens(patches, keep_at(step / steps, target, ramp)) for step in range(steps))


def nodes(kept: int, patches: int) -> list[int]:
    """Numbers of kept patches that determine a quadratic on [kept, patches - 1], ascending."""
    return sorted({kept, (kept + patches - 1) // 2, patches - 1}) if kept < patches else [patches]


def interpolate(at: list[int], values: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Lagrange polynomial through (`at`, `values`), evaluated at `wanted`; `values` (..., nodes) -> (..., wanted)."""
    x = np.asarray(at, dtype=float)
    basis = [
        np.prod(
            [(wanted - x[j]) / (x[i] - x[j]) for j in range(len(x)) if j != i] or [np.ones(len(wanted))],
            axis=0,
        )
        for i in range(len(x))
    ]
    return np.asarray(np.asarray(values) @ np.asarray(basis))


def _along(kept: Counter[int], patches: int, step: StepMacs) -> Iterator[tuple[int, float]]:
    """Pairs (number of steps, MACs of one of them per image) for each number of patches in the schedule."""
    if not kept:
        return
    if kept[patches]:
        yield kept[patches], step(1.0)
    some = sorted(k for k in kept if k < patches)
    if some:
        at = nodes(some[0], patches)
        values = np.array([step(k / patches) for k in at])
        for k, value in zip(some, interpolate(at, values, np.array(some, dtype=float)), strict=True):
            yield kept[k], float(value)


class StepMacs:
    """MACs of a training step per image of a batch of `batch` images, as a function of the keep ratio."""

    def __init__(self, objective: Objective, batch: int, views: Tensor) -> None:
        self.objective = objective
        self.batch, self.views = batch, views
        self.contrast = _contrast_macs(objective, views)

    def __call__(self, keep: float) -> float:
        return self.counters(keep)[0]

    def counters(self, keep: float) -> tuple[float, dict[str, float], dict[str, float]]:
        """MACs of a step: in total, by part, and by counter. Raises CountersDisagree.

        Without a formula the parts are kinds of operators, because FlopCounterMode does not assign the operators of a
        backward pass to modules reliably.
        """
        counted = self.views.shape[1]
        kinds = {kind: macs / counted for kind, macs in _step_macs(self.objective, self.views, keep).items()}
        # all images cost the same except in the contrast, which compares each with all others of the batch
        kinds["linear layers"] += self.contrast * (self.batch - counted)
        seen, total = {"flop_counter": kinds}, {"flop_counter": sum(kinds.values())}
        call = _call(self.objective, self.views, keep)
        derived = formula.train_step(self.objective, self.views, call, self.batch)
        if derived is not None:
            seen["formula"] = by_kind(derived)
            total["formula"] = sum(seen["formula"].values())
        check_agreement("per image of a train step", total, seen)
        return total["flop_counter"], kinds if derived is None else by_part(derived), total


def _contrast_macs(objective: Objective, views: Tensor) -> float:
    """MACs of a step that grow with the square of the batch, per pair of images; strategies do not change them."""
    dense = copy.deepcopy(objective)
    for module in dense.modules():
        if isinstance(module, Encoder):
            module.strategy = Strategy(module.geometry)  # the base class computes all tokens
    few, more = views[:, [0, -1]], views[:, [0, -1, 0, -1]]  # batch norm in a head wants two images at least
    return (sum(_step_macs(dense, more, 1.0).values()) / 4 - sum(_step_macs(dense, few, 1.0).values()) / 2) / 2


def _step_macs(objective: Objective, views: Tensor, keep: float) -> dict[str, float]:
    """MACs of forward and backward on a batch of views, by kind of operator."""
    geometry = objective.encoder.geometry
    if geometry.macs(geometry.patches) > LARGE:
        with suppress(RuntimeError, NotImplementedError):  # a shape depends on the content of the images
            return _counted_step(copy.deepcopy(objective).to("meta"), views.to("meta"), keep)
    return _counted_step(copy.deepcopy(objective), views, keep)


def _counted_step(objective: Objective, views: Tensor, keep: float) -> dict[str, float]:
    objective.train()
    call = _call(objective, views, keep)
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward_flops}
    )
    with torch.enable_grad(), counter as seen, sdpa_kernel(SDPBackend.MATH):
        objective(views, call).total.backward()
    macs = {str(operator): flops / 2 for operator, flops in seen.get_flop_counts()["Global"].items()}
    kinds = {kind: sum(macs.pop(f"aten.{name}", 0.0) for name in names) for kind, names in KINDS.items()}
    return {**kinds, "other": sum(macs.values())} if macs else kinds


def _call(objective: Objective, views: Tensor, keep: float) -> Call:
    """Call of the counted step."""
    batch, patches = views.shape[1], objective.encoder.geometry.patches
    lesions = random_lesions(2 * batch, patches).to(views.device)
    return Call(keep=keep, noise=Noise(0, 0, batch), lesions=lesions)


def _convolution_backward_flops(
    grad: list[int], x: list[int], weight: list[int], *args: Any, out_shape: Any, **kwargs: Any
) -> int:
    """2 x MACs of the gradients of a convolution, for input and weights, if wanted: each costs as much as the forward
    pass. The formula in torch ignores the groups in the gradient of the weights, and so overestimates a depthwise
    convolution by a factor of its number of channels."""
    wanted = sum(shape is not None for shape in out_shape[:2])
    return 2 * wanted * grad[0] * math.prod(grad[2:]) * math.prod(weight)


def _copy(objective: Objective) -> Objective:
    """A copy on the CPU with torch's own attention, so that buffers and gradients of the original do not change."""
    subject = copy.deepcopy(objective).cpu()
    for module in subject.modules():
        if isinstance(module, Strategy):
            module.core = None
    return subject
