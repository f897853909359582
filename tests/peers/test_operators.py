"""Kinds of operators, by their names and shapes, and of a step that is watched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peers import operators

X, DW, POINT = [8, 96, 56, 56], [96, 1, 7, 7], [192, 96, 2, 2]


@pytest.mark.parametrize(
    ("name", "shapes", "kind"),
    [
        ("aten::addmm", [[4], [4, 4]], "linear layers"),
        ("aten::mkldnn_convolution", [X, DW, [96]], operators.DEPTHWISE),
        ("aten::convolution_backward", [X, X, DW, []], operators.DEPTHWISE),
        ("aten::mkldnn_convolution", [X, POINT, [192]], operators.DENSE_CONVOLUTIONS),
        ("aten::convolution_backward", [X, X, POINT, []], operators.DENSE_CONVOLUTIONS),
        ("aten::mkldnn_convolution", [[8, 1, 224, 224], [1, 1, 3, 3]], operators.DENSE_CONVOLUTIONS),
        ("aten::mkldnn_convolution", [[8, 1, 64, 64], [16, 1, 3, 3]], operators.DENSE_CONVOLUTIONS),
        ("aten::index_add_", [], "gathering and scattering"),
        ("aten::native_layer_norm_backward", [], "norms"),
        ("aten::gelu_backward", [], "activations"),
        ("Optimizer.step#AdamW.step", [], "optimizer"),
        ("aten::copy_", [], operators.REST),
    ],
)
def test_kinds(name: str, shapes: list[list[int]], kind: str) -> None:
    assert operators.kind_of(name, shapes) == kind


def test_a_watched_step_is_summed_by_kind() -> None:
    layers = nn.Sequential(nn.Conv2d(32, 32, 7, padding=3, groups=32), nn.Conv2d(32, 4, 2, 2), nn.Flatten(), nn.GELU())
    x = torch.randn(2, 32, 32, 32)
    found = operators.watched(lambda: layers(x).square().sum().backward())
    assert {operators.DEPTHWISE, operators.DENSE_CONVOLUTIONS, "activations", operators.REST} <= found.keys()
    assert "linear layers" not in found
    assert all(ms >= 0 for ms in found.values())
    assert found[operators.DEPTHWISE] > found["activations"]
