"""Which batch norms become global. That they compute the right values is tested on two ranks, in test_ranks.py."""

from __future__ import annotations

import pytest
from torch import nn

from methods import build_encoder
from methods.encoders.batchnorm import GlobalBatchNorm2d, globalise


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(64), nn.SyncBatchNorm(64), type("Own", (nn.BatchNorm2d,), {})(64)])
def test_one_that_would_stay_each_ranks_own_is_refused_in_an_encoder(norm: nn.Module) -> None:
    encoder = build_encoder("vit_stem_d64_l4_patch8", "dense", {}, image_size=32, channels=1, seed=0)
    heads = nn.Sequential(nn.BatchNorm1d(8))
    globalise(nn.ModuleDict({"encoder": encoder, "heads": heads}))
    assert any(isinstance(module, GlobalBatchNorm2d) for module in encoder.modules())
    assert type(heads[0]) is nn.BatchNorm1d
    encoder.strategy.own = norm
    with pytest.raises(
        ValueError, match=f"strategy.own, a {type(norm).__name__}, would normalise the images of each rank"
    ):
        globalise(nn.ModuleDict({"encoder": encoder, "heads": heads}))
