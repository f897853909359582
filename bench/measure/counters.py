"""MACs of an encoder at inference, by two counters that know nothing of each other.

fvcore reads a trace of the graph; torch's FlopCounterMode sees the operators as they run and gives 2 x MACs. Each is
blind to fused attention on a CPU in its own way: fvcore gets a handle for it, under FlopCounterMode attention runs
unfused. Where the two differ by more than 1 % there is no count but an error that shows the difference by part.
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

from methods.encoders.vit import Encoder
from methods.strategies.strategy import Call

AGREEMENT = 0.01  # share by which the two counters may differ
NO_MACS = (
    "batch_norm",
    "layer_norm",
    "group_norm",
    "instance_norm",
    "adaptive_avg_pool2d",
    "upsample_nearest2d",
)


class CountersDisagree(Exception):
    """Two counters of the same network differ by more than 1 %; the message shows where."""


def inference_macs(encoder: Encoder, images: Tensor) -> tuple[float, dict[str, float], dict[str, float]]:
    """MACs per image of an encoder's own way of inference, by part, and by counter.

    Raises CountersDisagree where fvcore and FlopCounterMode differ by more than 1 %.
    """
    network = _Features(encoder).eval()
    with _quiet(), torch.no_grad():
        with FlopCounterMode(display=False) as seen, sdpa_kernel(SDPBackend.MATH):
            network(images)
        traced = _fvcore(network, images)
    n = images.shape[0]
    flop = {name: sum(ops.values()) / 2 / n for name, ops in seen.get_flop_counts().items()}
    fvcore = {name: value / n for name, value in traced.items()}
    totals = {"fvcore": fvcore[""], "flop_counter": flop["Global"]}
    parts = _parts(flop, totals["flop_counter"])
    if abs(totals["fvcore"] - totals["flop_counter"]) > AGREEMENT * totals["flop_counter"]:
        raise CountersDisagree(_differences(parts, _parts(fvcore, totals["fvcore"]), totals))
    return totals["flop_counter"], parts, totals


class _Features(nn.Module):
    """An encoder from tensor to tensor, as tracing wants it; lesions, for those who look at them, at random."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        patches = self.encoder.geometry.patches
        lesions = torch.rand(images.shape[0], patches, generator=torch.Generator().manual_seed(0))
        call = Call(inference=self.encoder.strategy.inference[0], lesions=lesions)
        features: Tensor = self.encoder(images, call).features
        return features


class _Traceable(TorchFunctionMode):
    """The tracer knows no scatter of a Python bool; it gets the tensor that this stands for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.scatter and len(args) == 4 and isinstance(args[3], bool):
            args = (*args[:3], torch.full_like(args[2], int(args[3]), dtype=args[0].dtype))
        return func(*args, **(kwargs or {}))


def _fvcore(network: nn.Module, images: Tensor) -> dict[str, float]:
    """MACs by module name, "" for all; norms, pooling and resampling left out."""
    from fvcore.nn import FlopCountAnalysis  # late: importing it warns

    analysis = FlopCountAnalysis(network, images).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    analysis.set_op_handle(**{f"aten::{name}": _nothing for name in NO_MACS})  # None would leave fvcore's default
    with _Traceable():
        return dict(analysis.by_module())


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Queries with keys, and weights with values: (..., N, d), (..., M, d), (..., M, e)."""
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return Counter(attention=int(np.prod(q[:-1])) * k[-2] * (q[-1] + v[-1]))


def _nothing(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter()


@contextmanager
def _quiet() -> Iterator[None]:
    """fvcore traces with torch.jit, whose deprecation and tracer warnings are no news to the user."""
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
    """MACs by part from MACs by module: patch embedding, the strategy's own modules, projections and MLPs of the
    blocks, attention (queries x keys, weights x values), and what else the strategy multiplies."""
    inner = {match[0]: value for name, value in modules.items() if (match := re.search(r"(vit|strategy)\..*", name))}

    def under(pattern: str) -> float:
        return sum(value for name, value in inner.items() if re.fullmatch(pattern, name))

    parts = {"patch embedding": under(r"vit\.patch_embed")}
    for name in sorted({part[1] for key in inner if (part := re.match(r"strategy\.(\w+)", key))}):
        parts[name] = inner.get(f"strategy.{name}", 0.0) or under(rf"strategy\.{name}\.\d+")
    linear = r"vit\.blocks\.\d+\.(attn\.qkv|attn\.proj|mlp)"
    parts["projections and MLPs"] = under(linear)
    rest = total - sum(parts.values())
    inside = under(r"vit\.blocks\.\d+\.attn") - under(r"vit\.blocks\.\d+\.attn\.(qkv|proj)")
    called = under(r"vit\.blocks\.\d+") > 0  # blocks as modules; else the strategy runs their parts and the attention
    parts["attention"] = inside if called else rest
    if rest - parts["attention"] > 1e-6 * total:
        parts["token mixing"] = rest - parts["attention"]
    return {name: value for name, value in parts.items() if value}


def _differences(flop: Mapping[str, float], fvcore: Mapping[str, float], totals: Mapping[str, float]) -> str:
    lines = [f"{name}: {fvcore.get(name, 0.0):,.0f} and {flop.get(name, 0.0):,.0f}" for name in {**flop, **fvcore}]
    return (
        f"fvcore counts {totals['fvcore']:,.0f} MACs per image at inference, FlopCounterMode "
        f"{totals['flop_counter']:,.0f}, more than {AGREEMENT:.0%} apart. By part: " + "; ".join(lines)
    )
