"""MACs at inference against fvcore's count of the authors' modules (as `README.md` beside this file names them): a
ViT-S/16 at 224 px in RGB with a class token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.measure import formula
from methods import STRATEGIES
from methods.encoders.encoder import Encoder
from methods.encoders.vit import geometry_of
from methods.strategies.strategy import Call

REFERENCE = json.loads(Path(__file__).with_name("macs.json").read_text(encoding="utf-8"))  # with norms, without
OPTION = {"dynamicvit": "rho", "evit": "rho", "topk": "rho", "tome": "r"}


@pytest.mark.parametrize("case", REFERENCE)
def test_the_counter_and_the_formula_agree_with_the_reference(case: str) -> None:
    """Exactly for dense and DynamicViT, else to 0.01 %: beside fused attention Top-K and EViT compute the class token's
    row again, of EViT's fused token fvcore counts no product, and ToMe's authors compare the class token too.

    On the meta device, so nothing is computed.
    """
    name, _, value = case.partition(" ")
    options: dict[str, Any] = {OPTION[name]: json.loads(value)} if value else {}
    with torch.device("meta"):
        vit = timm.create_model("vit_small_patch16_224", num_classes=0, global_pool="")
        encoder = Encoder(vit, STRATEGIES[name].load()(geometry_of(vit), **options)).eval()
        images, call = torch.empty(1, 3, 224, 224), Call(inference="pruned" if value else "dense")
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            encoder(images, call)
    products = formula.inference(encoder, images, call)
    assert products is not None
    for macs in (counter.get_total_flops() / 2, sum(product.macs for product in products)):
        assert macs == pytest.approx(REFERENCE[case][1], rel=0 if name in ("dense", "dynamicvit") else 1e-4, abs=0)
