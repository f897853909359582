"""Bytes saved for backward against counts by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.measure.memory import peak_mib, resident_mib, saved_bytes
from bench.specs.run_spec import EncoderSpec
from bench.training.build import build
from methods.names import parse_methods
from methods.noise import Noise
from methods.objectives.objective import Loss, Objective
from methods.strategies.strategy import Call, Encoding


class Mlp(Objective):
    """Linear 6 -> 10, ReLU, Linear 10 -> 3, squared: 8 rows from 4 images of two views."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.layers = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
        self.unused: list[Tensor] = []

    def forward(self, views: Tensor, call: Call) -> Loss:
        x = self.layers(views.flatten(0, 1))
        x.detach().requires_grad_().exp()  # a graph that is dropped keeps nothing
        total = (x * x).sum()
        return Loss(total, total, Encoding(x))


def test_mlp_by_hand() -> None:
    """Kept: the ReLU's output, once though two layers need it, and the last output. Not the weights, not the views."""
    views = torch.randn(2, 4, 6)
    assert saved_bytes(Mlp(), views, Call()) == 4 * 8 * (10 + 3) / 4


def test_sparse_keeps_less_than_dense_and_nothing_is_altered() -> None:
    encoder = EncoderSpec(name="vit_stem_d64_l4_patch8", image_size=32)
    views = torch.randn(2, 4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    kept = {}
    for name in ("dense", "sparsecontrast"):
        objective = build(parse_methods(name)[0], encoder, 0).eval()
        before = {key: value.clone() for key, value in objective.state_dict().items()}
        kept[name] = saved_bytes(objective, views, Call(keep=0.5, noise=Noise(0, 0, 4)))
        after = objective.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert not objective.training
        twice = saved_bytes(objective, views.repeat(1, 2, 1, 1, 1), Call(keep=0.5, noise=Noise(0, 0, 8)))
        assert twice == pytest.approx(kept[name], rel=0.02)
    assert 0.4 < kept["sparsecontrast"] / kept["dense"] < 0.8


@pytest.mark.skipif(not Path("/proc/self/status").exists() or torch.cuda.is_available(), reason="reads Linux's count")
def test_peak_is_the_systems_high_water_mark() -> None:
    held = bytearray(os.urandom(1) * (32 << 20))
    peak, of = peak_mib()
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    assert of == "process"
    assert len(held) / 2**20 < peak
    assert peak == pytest.approx(int(line.split()[1]) / 1024, abs=8)
    assert len(held) / 2**20 < resident_mib() <= peak
