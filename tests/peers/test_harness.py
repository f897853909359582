"""Both loops must do the same work, or their ratio means nothing."""

from __future__ import annotations

import pytest
import torch

from bench.specs.run_spec import EncoderSpec
from bench.training import pretrain
from datasets.views import Views
from peers.harness import loops

SMALL = EncoderSpec(name="vit_stem_d64_l4_patch8", image_size=32)


@pytest.mark.parametrize("method", ["simclr/dense", "simclr/sparsecontrast", "moco/dense"])
def test_both_loops_end_with_the_same_weights(method: str) -> None:
    before = pretrain.build, Views.apply
    ours, bare = (loop() for loop in loops(method, SMALL, batch=4, steps=3))
    assert ours is not bare
    one, other = ours.state_dict(), bare.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (pretrain.build, Views.apply) == before


def test_both_loops_train() -> None:
    for number, loop in enumerate(loops("simclr/dense", SMALL, batch=4, steps=2)):
        first = {name: value.clone() for name, value in loop().state_dict().items()}
        second = loop().state_dict()
        assert any(not torch.equal(first[name], second[name]) for name in first), number
