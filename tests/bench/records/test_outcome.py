"""What a record says of the network: every option with the value in use, and parameters that add up."""

from __future__ import annotations

import pytest

from bench.records.outcome import network_of
from bench.specs.run_spec import EncoderSpec
from bench.training.build import build
from methods import OBJECTIVES, STRATEGIES
from methods.names import parse_methods
from methods.strategies.predictor import predictor_macs

ENCODER = EncoderSpec(name="vit_stem_d64_l4_patch8", image_size=64)


@pytest.mark.parametrize("name", ["simclr/dense", "simclr/sparsecontrast[noise=0.5]", "moco/tokenlearner"])
def test_every_option_and_every_parameter_is_in_it(name: str) -> None:
    (method,) = parse_methods(name)
    objective = build(method, ENCODER, seed=0)
    found = network_of(method, objective)
    assert found.options.keys() == OBJECTIVES[method.objective].options.keys() | STRATEGIES[method.strategy].options
    assert found.options["hidden"] == 4 * 64  # computed: four times the width of the encoder
    assert dict(method.options).items() <= found.options.items()
    sizes = (found.encoder, found.strategy, found.heads, found.teacher)
    assert sum(sizes) == sum(p.numel() for p in objective.parameters())
    assert found.encoder == sum(p.numel() for p in objective.encoder.network.parameters())
    assert (found.teacher > found.encoder) == (method.objective == "moco")


def test_the_predictors_size_is_its_own() -> None:
    """With one output per patch, a convolution has as many weights as it takes MACs per patch."""
    (method,) = parse_methods("simclr/sparsecontrast")
    objective = build(method, ENCODER, seed=0)
    found, geometry = network_of(method, objective), objective.encoder.geometry
    width = found.options["width"]
    assert isinstance(width, int)
    assert found.strategy == predictor_macs(geometry, width) // geometry.patches + 2 * width + 1
