"""ConvNeXt and ResNet as encoders."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from methods import OBJECTIVES, build_encoder, build_objective
from methods.encoders.encoder import build_network
from methods.noise import Noise
from methods.strategies.strategy import Call

SMALL, ATTO, RESNET = "convnext_d64_l6_patch8", "convnext_atto", "resnet18"


@pytest.mark.parametrize(
    ("name", "size", "channels", "dim", "depth", "patch", "gmacs"),
    [
        ("convnext_tiny", 224, 3, 768, 18, 32, 4.47),  # Liu et al., table 9: 4.5 G
        (ATTO, 96, 1, 320, 12, 32, None),
        (SMALL, 64, 1, 64, 6, 8, None),
        (SMALL, 48, 3, 64, 6, 8, None),
        ("resnet50", 224, 3, 2048, 16, 32, 4.09),  # torchvision: 4.09 G, with 0.002 in the head
        (RESNET, 64, 1, 512, 8, 32, None),
    ],
)
def test_geometry_is_what_the_maps_show(
    name: str, size: int, channels: int, dim: int, depth: int, patch: int, gmacs: float | None
) -> None:
    network, geometry = build_network(name, size, channels)
    found = (geometry.image_size, geometry.channels, geometry.dim, geometry.depth, geometry.patch)
    assert found == (size, channels, dim, depth, patch)
    with torch.no_grad():
        last = network.eval().forward_features(torch.zeros(1, channels, 64, 64))
    assert last.shape == (1, dim, 64 // patch, 64 // patch)
    if gmacs is not None:
        assert geometry.macs(geometry.patches) / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_counting_layers_leaves_the_network_as_it_is() -> None:
    network, _ = build_network(RESNET, 64, 1)
    assert network.training
    assert all(p.device.type == "cpu" for p in network.parameters())
    assert float(network.bn1.running_mean.abs().max()) == 0.0
    assert not network.conv1._forward_hooks


@pytest.mark.parametrize(("name", "first"), [(ATTO, "stem.0"), (RESNET, "conv1")])
def test_weights_load_by_name(name: str, first: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model(name).state_dict()
    state = {key: torch.randn_like(value) if value.is_floating_point() else value for key, value in state.items()}
    save_file(state, tmp_path / "trained.safetensors")
    loaded = build_network(name, 64, 3, weights=str(tmp_path / "trained.safetensors"))[0].state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)
    assert {key.split(".")[0] for key in set(state) - set(loaded)} <= {"head", "fc"}
    gray = build_network(name, 64, 1, weights=str(tmp_path / "trained.safetensors"))[0].state_dict()
    torch.testing.assert_close(gray[f"{first}.weight"], state[f"{first}.weight"].sum(1, keepdim=True))
    with pytest.raises(FileNotFoundError, match=r"no encoder weights at .*absent"):
        build_network(name, 64, 3, weights=str(tmp_path / "absent.safetensors"))
    del state[f"{first}.weight"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=f"{first}.weight missing"):
        build_network(name, 64, 3, weights=str(tmp_path / "part.safetensors"))


@pytest.mark.parametrize("name", [ATTO, RESNET])
def test_timms_own_weights_are_asked_for_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = timm.create_model

    def create(name: str, pretrained: bool, **options: object) -> torch.nn.Module:
        asked.append((name, pretrained))
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", create)
    build_network(name, 64, 1, weights="timm")
    build_network(name, 64, 1)
    assert asked == [(name, True), (name, False)]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("convnext_huge", 64, "unknown encoder 'convnext_huge'"),
        ("convnextv2_atto", 64, "not a first-version ConvNeXt from timm"),
        (ATTO, 80, "image size 80 is not a multiple of the patch size of .*, 32 pixels: use e.g. 64"),
        (SMALL, 60, "image size 60 is not a multiple of the patch size of .*, 8 pixels"),
        ("resnet49", 64, "unknown encoder 'resnet49'"),
        ("resnetv2_50", 64, "not a plain ResNet from timm"),
        (RESNET, 48, "image size 48 is not a multiple of the patch size of .*, 32 pixels"),
        ("swin_tiny_patch4_window7_224", 224, "plain ViT"),
    ],
)
def test_encoders_that_cannot_be_used_are_named(name: str, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(name, size, 3)


@pytest.mark.parametrize(
    ("name", "strategy"), [(SMALL, "dynamicvit"), (ATTO, "tokenlearner"), (RESNET, "sparsecontrast"), (RESNET, "fixed")]
)
def test_strategies_that_are_not_defined_are_named(name: str, strategy: str) -> None:
    with pytest.raises(ValueError, match=f"'{strategy}' is not defined on encoder '{name}', a CNN: use .*dense"):
        build_encoder(name, strategy, {}, image_size=64, channels=1, seed=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_resnet_learns_from_both_objectives(objective: str, channels: int) -> None:
    encoder = build_encoder(RESNET, "dense", {}, image_size=64, channels=channels, seed=0)
    model = build_objective(objective, encoder, {"hidden": 32}, seed=0)
    loss = model(torch.randn(2, 4, channels, 64, 64), Call(noise=Noise(0, 0, 4)))
    loss.total.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(block.bn2.weight.grad.any() for block in encoder.network.layer1)  # timm initialises them at 0
    assert all(p.requires_grad for p in encoder.parameters())  # no patchify embedding to freeze
    with torch.no_grad():
        batch = torch.randn(3, channels, 64, 64)
        expected = encoder.eval().network.forward_features(batch).mean((2, 3))
        assert torch.equal(encoder(batch).features, expected)


def test_mocos_heads_on_a_resnet_are_those_of_its_paper() -> None:
    linear = {}
    for name in (RESNET, SMALL):
        encoder = build_encoder(name, "dense", {}, image_size=64, channels=1, seed=0)
        model = build_objective("moco", encoder, {"hidden": 16, "out": 8}, seed=0)
        linear[name] = [
            [tuple(layer.weight.shape) for layer in head if isinstance(layer, torch.nn.Linear)]
            for head in (model.projector, model.predictor)
        ]
        assert isinstance(model.projector[-1], torch.nn.BatchNorm1d)
        assert isinstance(model.predictor[-1], torch.nn.BatchNorm1d) == (name == SMALL)
    assert linear[RESNET] == [[(16, 512), (8, 16)], [(16, 8), (8, 16)]]
    assert linear[SMALL] == [[(16, 64), (16, 16), (8, 16)], [(16, 8), (8, 16)]]
