"""Properties of the encoders of all families."""

import pytest
import torch

from methods import OBJECTIVES, STRATEGIES, build_encoder, build_objective

CONVNEXTS = [name for name, entry in STRATEGIES.items() if "convnext" in entry.encoders]
MLP = "stages.0.blocks.0.mlp.fc1.weight"
QKV = "blocks.0.attn.qkv.weight"


@pytest.mark.parametrize(
    ("name", "strategies", "weight"),
    [
        ("vit_stem_d64_l4_patch8", list(STRATEGIES), QKV),
        ("vit_tiny_patch16_224", ["dynamicvit", "sparsecontrast"], QKV),
        ("convnext_d64_l6_patch8", CONVNEXTS, MLP),
        ("convnext_atto", CONVNEXTS, MLP),
    ],
)
def test_weights_for_a_seed_are_the_same_for_all_methods(name: str, strategies: list[str], weight: str) -> None:
    reference = build_encoder(name, "dense", {}, image_size=32, channels=1, seed=5).network.state_dict()
    for strategy in strategies:
        torch.rand(3)  # whatever was drawn before
        encoder = build_encoder(name, strategy, {}, image_size=32, channels=1, seed=5)
        for objective in OBJECTIVES:
            state = build_objective(objective, encoder, {}, seed=5).encoder.network.state_dict()
            assert state.keys() == reference.keys()
            assert all(torch.equal(state[key], reference[key]) for key in reference)
    other = build_encoder(name, "dense", {}, image_size=32, channels=1, seed=6).network.state_dict()
    assert not torch.equal(other[weight], reference[weight])
