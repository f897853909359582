"""MACs of an encoder at inference, counted by two or three independent counters.

fvcore reads a trace of the graph; torch's FlopCounterMode observes the operators as they run and gives 2 x MACs.
Neither counts fused attention on a CPU: fvcore gets a handle for it, and under FlopCounterMode attention runs unfused.
The third counter is a formula (`formula/`), where there is one. If two counters differ by more than 1 %, the result is
an error that shows the difference by part.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from bench.measure import formula
from bench.measure.formula.products import by_part
from bench.measure.inputs import IMAGES, random_lesions
from methods import ALL_TOKENS, Inference
from methods.encoders.encoder import Encoder
from methods.strategies.strategy import Call

AGREEMENT = 0.01  # share by which two counters may differ
NO_MACS = (
    "batch_norm",
    "layer_norm",
    "group_norm",
    "instance_norm",
    "adaptive_avg_pool2d",
    "upsample_nearest2d",
)

CNN_PARTS = {
    "stem and downsampling": r"convnext\.(stem|stages\.\d+\.downsample)",
    "depthwise convolutions": r"convnext\.stages\.\d+\.blocks\.\d+\.conv_dw",
    "pointwise MLPs": r"convnext\.stages\.\d+\.blocks\.\d+\.mlp",
    "convolutions": r"resnet\.(conv1|layer\d)",
}


class CountersDisagree(Exception):
    """Two counters of the same network differ by more than 1 %; the message lists the MACs by part."""


Counts = tuple[float, dict[str, float], dict[str, float]]


def inference_macs(encoder: Encoder, images: Tensor, mode: Inference | None = None) -> Counts:
    """MACs per image in an inference mode, by default the encoder's own: in total, by part, and by counter.

    The counters see the first images as one batch. If the number of kept tokens depends on the image, the total and the
    parts are means over all images, each counted alone (a batch is padded to the image that keeps most), by the formula
    if there is one. Raises CountersDisagree.
    """
    encoder = encoder.eval()
    mode = mode or encoder.strategy.inference[0]
    total, parts, counters = _counted(encoder, images[:IMAGES], mode)
    if encoder.strategy.adaptive and mode != ALL_TOKENS:
        few = images if "formula" in counters else images[:IMAGES]  # without a formula, an image takes a second
        alone = [_alone(encoder, image[None], mode) for image in few]
        names = dict.fromkeys(name for one in alone for name in one)
        parts = {name: sum(one.get(name, 0.0) for one in alone) / len(alone) for name in names}
        total = sum(parts.values())
    return total, parts, counters


def _alone(encoder: Encoder, image: Tensor, mode: Inference) -> dict[str, float]:
    """MACs of one image (1, channels, H, W), by part."""
    derived = formula.inference(encoder, image, _Features(encoder, mode).call(1))
    return by_part(derived) if derived is not None else _counted(encoder, image, mode)[1]


def _counted(encoder: Encoder, images: Tensor, mode: Inference) -> Counts:
    """MACs per image of a batch: in total, by part, and by counter. Raises CountersDisagree."""
    network = _Features(encoder, mode)
    with _quiet(), torch.no_grad():
        with FlopCounterMode(display=False) as seen, sdpa_kernel(SDPBackend.MATH):
            network(images)
        traced = _fvcore(network, images)
    n = images.shape[0]
    flop = {name: sum(ops.values()) / 2 / n for name, ops in seen.get_flop_counts().items()}
    fvcore = {name: value / n for name, value in traced.items()}
    parts = {"fvcore": _parts(fvcore, fvcore[""]), "flop_counter": _parts(flop, flop["Global"])}
    totals = {"fvcore": fvcore[""], "flop_counter": flop["Global"]}
    derived = formula.inference(encoder, images, network.call(n))
    if derived is not None:
        parts["formula"] = by_part(derived)
        totals["formula"] = sum(parts["formula"].values())
    check_agreement("per image at inference", totals, parts)
    return totals["flop_counter"], parts["flop_counter"], totals


def check_agreement(what: str, totals: Mapping[str, float], parts: Mapping[str, Mapping[str, float]]) -> None:
    """Raise CountersDisagree if two counters differ by more than 1 %. `totals` and `parts` are by counter."""
    if max(totals.values()) - min(totals.values()) <= AGREEMENT * max(totals.values()):
        return
    names = dict.fromkeys(name for counter in parts.values() for name in counter)
    lines = [f"{name}: {_listed({w: own.get(name, 0.0) for w, own in parts.items()})}" for name in names]
    raise CountersDisagree(
        f"MACs {what}: {_listed(totals)}, more than {AGREEMENT:.0%} apart. By part: " + "; ".join(lines)
    )


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{counter} {value:,.0f}" for counter, value in values.items())


class _Features(nn.Module):
    """An encoder as a module from tensor to tensor, as tracing requires; strategies that need lesions get random
    ones."""

    def __init__(self, encoder: Encoder, mode: Inference) -> None:
        super().__init__()
        self.encoder, self.mode = encoder, mode

    def call(self, batch: int) -> Call:
        lesions = random_lesions(batch, self.encoder.geometry.patches)
        return Call(inference=self.mode, lesions=lesions)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.encoder(images, self.call(images.shape[0])).features
        return features


class _Traceable(TorchFunctionMode):
    """Replaces the Python bool in a scatter, which the tracer does not support, with the equivalent tensor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.scatter and len(args) == 4 and isinstance(args[3], bool):
            args = (*args[:3], torch.full_like(args[2], int(args[3]), dtype=args[0].dtype))
        return func(*args, **(kwargs or {}))


def _fvcore(network: nn.Module, images: Tensor) -> dict[str, float]:
    """MACs by module name, "" for the whole network, without norms, pooling and resampling."""
    from fvcore.nn import FlopCountAnalysis  # imported late, because it warns

    analysis = FlopCountAnalysis(network, images).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    analysis.set_op_handle(**{f"aten::{name}": _nothing for name in NO_MACS})  # with None, fvcore would use its default
    with _Traceable():
        return dict(analysis.by_module())


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """MACs of queries (..., N, d) x keys (..., M, d), and of weights (..., N, M) x values (..., M, e)."""
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return Counter(attention=int(np.prod(q[:-1])) * k[-2] * (q[-1] + v[-1]))


def _nothing(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence fvcore and torch.jit, whose warnings do not concern the user."""
    log = logging.getLogger("fvcore")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _parts(modules: Mapping[str, float], total: float) -> dict[str, float]:
    """MACs by part, from MACs by module.

    Parts of a transformer: patch embedding, modules of the strategy, projections and MLPs of the blocks, attention
    (queries x keys, weights x values), and other products of the strategy (token mixing). Parts of a CNN: convolutions
    and, in a ConvNeXt, pointwise MLPs.
    """
    inside_encoder = r"(vit|convnext|resnet|strategy)\..*"
    inner = {match[0]: value for name, value in modules.items() if (match := re.search(inside_encoder, name))}

    def under(pattern: str) -> float:
        return sum(value for name, value in inner.items() if re.fullmatch(pattern, name))

    parts = {"patch embedding": under(r"vit\.patch_embed")}
    for name in sorted({part[1] for key in inner if (part := re.match(r"strategy\.(\w+)", key))}):
        parts[name] = inner.get(f"strategy.{name}", 0.0) or under(rf"strategy\.{name}\.\d+")
    if any(name.startswith(("convnext.", "resnet.")) for name in inner):
        parts |= {part: under(pattern) for part, pattern in CNN_PARTS.items()}
        return {name: value for name, value in parts.items() if value}
    linear = r"vit\.blocks\.\d+\.(attn\.qkv|attn\.proj|mlp)"
    parts["projections and MLPs"] = under(linear)
    rest = total - sum(parts.values())
    whole = {name for name in inner if re.fullmatch(r"vit\.blocks\.\d+", name)}  # blocks called as modules
    split = {f"vit.blocks.{part[1]}" for name in inner if (part := re.match(r"vit\.blocks\.(\d+)\.attn\.qkv", name))}
    inside = sum(inner.get(f"{name}.attn", 0.0) for name in whole)
    inside -= sum(inner.get(f"{name}.attn.{layer}", 0.0) for name in whole for layer in ("qkv", "proj"))
    # if the strategy runs the parts of a block itself, attention is not inside a module
    parts["attention"] = inside if split <= whole else rest
    if rest - parts["attention"] > 1e-6 * total:
        parts["token mixing"] = rest - parts["attention"]
    return {name: value for name, value in parts.items() if value}
