"""Every figure the papers give at 224 px, patch 16, RGB, with a classifier of 1000 classes: counted, and by formula.

The papers' models read a class token where ours pool, which is no product. The classifier is added: 1000 x C.
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
from methods.encoders.encoder import Encoder
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
    macs, _, witnesses = inference_macs(model, torch.randn(1, 3, 224, 224))
    assert witnesses.keys() == {"fvcore", "flop_counter", "formula"}
    assert (macs + 1000 * SIZES[size][0]) / 1e9 == pytest.approx(published, rel=0.01)
