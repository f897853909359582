"""Every figure the papers give at 224 px, RGB, with a classifier of 1000 classes: counted, and by formula.

The papers' transformers (patch 16) read a class token where ours pool, which is no product. The classifier is added:
1000 x C. Of CNNs the papers round to a tenth of a GMAC (ConvNeXt: table 9; ResNet-50: 4.1); torchvision's list of
models gives hundredths.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.measure import formula
from bench.measure.counters import inference_macs
from methods import STRATEGIES
from methods.encoders.encoder import Encoder, build_network
from methods.encoders.vit import geometry_of
from methods.strategies.strategy import Call

SIZES = {"Ti": (192, 3), "S": (384, 6), "B": (768, 12)}
FIGURES: list[tuple[str, str, dict[str, Any], float]] = [  # size, strategy, options, GMACs
    ("Ti", "dense", {}, 1.254),
    ("S", "dense", {}, 4.599),
    ("B", "dense", {}, 17.564),
    *(
        ("S", "dynamicvit", {"rho": rho}, macs)
        for rho, macs in ((0.9, 4.041), (0.8, 3.463), (0.7, 2.981), (0.6, 2.565), (0.5, 2.229))
    ),
    *(("S", "topk", {"rho": rho}, macs) for rho, macs in ((0.9, 3.960), (0.7, 2.980), (0.5, 2.278))),
    *(("S", "evit", {"rho": rho}, macs) for rho, macs in ((0.9, 4.022), (0.7, 3.029), (0.5, 2.309))),
    *(("S", "tome", {"r": r}, macs) for r, macs in ((8, 3.421), (13, 2.706), (16, 2.294))),
    *(
        ("S", "tokenlearner", {"tokens": 8, "at": block / 12}, macs)
        for block, macs in ((3, 1.321), (6, 2.407), (9, 3.493))
    ),
]


def encoder(size: str, strategy: str, options: dict[str, Any]) -> Encoder:
    """On the meta device, where nothing is computed. TokenLearner's models have no class token."""
    dim, heads = SIZES[size]
    with torch.device("meta"):
        vit = VisionTransformer(
            embed_dim=dim,
            depth=12,
            num_heads=heads,
            num_classes=0,
            global_pool="",
            class_token=strategy != "tokenlearner",
        )
        built = STRATEGIES[strategy].load()(geometry_of(vit), **options)
    built.inference = STRATEGIES[strategy].inference
    return Encoder(vit, built).eval()


@pytest.mark.parametrize(("size", "strategy", "options", "published"), FIGURES)
def test_macs_as_published(size: str, strategy: str, options: dict[str, Any], published: float) -> None:
    model = encoder(size, strategy, options)
    image = torch.empty(1, 3, 224, 224, device="meta")
    call = Call(inference=model.strategy.inference[0])
    with torch.no_grad(), FlopCounterMode(display=False) as seen, sdpa_kernel(SDPBackend.MATH):
        model(image, call)
    derived = formula.inference(model, image, call)
    assert derived is not None
    head = 1000 * SIZES[size][0]
    assert (seen.get_total_flops() / 2 + head) / 1e9 == pytest.approx(published, rel=0.01)
    assert (sum(product.macs for product in derived) + head) / 1e9 == pytest.approx(published, rel=0.001)


@pytest.mark.parametrize(("size", "strategy", "options", "published"), [FIGURES[0], FIGURES[9], FIGURES[15]])
def test_macs_as_published_where_all_is_computed(
    size: str, strategy: str, options: dict[str, Any], published: float
) -> None:
    """With fvcore, which wants real tensors; one model of each kind of figure."""
    model = encoder(size, strategy, options).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    macs, _, counters = inference_macs(model, torch.randn(1, 3, 224, 224))
    assert counters.keys() == {"fvcore", "flop_counter", "formula"}
    assert (macs + 1000 * SIZES[size][0]) / 1e9 == pytest.approx(published, rel=0.01)


CNNS: list[tuple[str, float, float]] = [  # GMACs in the paper, and by torchvision's list
    ("convnext_tiny", 4.5, 4.46),
    ("convnext_small", 8.7, 8.68),
    ("convnext_base", 15.4, 15.36),
    ("resnet50", 4.1, 4.09),
]


def cnn(name: str, strategy: str, options: dict[str, Any]) -> Encoder:
    """On the meta device."""
    with torch.device("meta"):
        network, geometry = build_network(name, 224, 3)
        built = STRATEGIES[strategy].load()(geometry, **options)
    built.inference = STRATEGIES[strategy].inference
    return Encoder(network, built).eval()


@pytest.mark.parametrize(("name", "paper", "listed"), CNNS)
def test_macs_of_cnns_as_published(name: str, paper: float, listed: float) -> None:
    model = cnn(name, "dense", {})
    derived = formula.inference(model, torch.empty(1, 3, 224, 224, device="meta"), Call())
    assert derived is not None
    macs, head = sum(product.macs for product in derived), 1000 * model.geometry.dim
    assert (macs + head) / 1e9 == pytest.approx(listed, abs=0.006)
    assert (macs + head) / 1e9 == pytest.approx(paper, rel=0.01)
    assert macs == model.geometry.macs(model.geometry.patches)


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("strategy", ["sparsecontrast", "fixed"])
def test_formula_of_convnext_t_at_several_keeps(strategy: str, keep: float) -> None:
    """Against FlopCounterMode; `equal_macs=false` keeps what is asked for."""
    options = {"keep": keep} if strategy == "sparsecontrast" else {"keep": keep, "equal_macs": False}
    model = cnn("convnext_tiny", strategy, options)
    image = torch.empty(2, 3, 224, 224, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as seen:
        model(image, Call())
    derived = formula.inference(model, image, Call())
    assert derived is not None
    assert sum(product.macs for product in derived) == seen.get_total_flops() / 2 / 2
    mlps = sum(product.macs for product in derived if product.part == "pointwise MLPs")
    depths_and_widths = ((3, 96), (3, 192), (9, 384), (3, 768))
    whole = sum(depth * (56 >> i) ** 2 * 8 * width**2 for i, (depth, width) in enumerate(depths_and_widths))
    assert mlps == whole * int(49 * keep + 0.5) / 49
