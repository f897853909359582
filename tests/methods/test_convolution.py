"""Given choices of patches on a ConvNeXt, against a reference that computes one position at a time."""

import pytest
import timm
import torch
from torch import Tensor

from methods import STRATEGIES, build_encoder
from methods.convolution import Patches, dense_features, kept_features
from methods.encoders.convnext import build_convnext, geometry_of
from methods.noise import Noise
from methods.strategies.selection import Choice, Selection
from methods.strategies.sparsecontrast import SparseContrast
from methods.strategies.strategy import Call, ConvGeometry
from tests.methods import slow, slow_convnext

GRID = 3
EXACT = torch.tensor([[0, 2, 4, 7], [1, 3, 5, 8]])
RAGGED, VALID = torch.tensor([[0, 2, 4, 7], [6, 8, 0, 1]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
CHOSEN = [c for c in STRATEGIES if "convnext" in STRATEGIES[c].encoders and c != "dense"]


def images(channels: int = 1) -> Tensor:
    return torch.randn(2, channels, 24, 24, generator=torch.Generator().manual_seed(3))


def patches(ragged: bool, gated: bool) -> Patches:
    gate = 0.5 + torch.rand(2, 4, generator=torch.Generator().manual_seed(1))
    index, valid = (RAGGED, VALID) if ragged else (EXACT, None)
    return Patches(index, valid, gate.requires_grad_() if gated else None, GRID)


def slowly(net: torch.nn.Module, batch: Tensor, kept: Patches) -> Tensor:
    """Return the gate of every patch of every image, 0 for dropped ones."""
    rows = []
    for i, image in enumerate(batch):
        gates: list[Tensor | float] = [0.0] * GRID**2
        for slot, patch in enumerate(kept.index[i].tolist()):
            if kept.valid is None or kept.valid[i, slot]:
                gates[patch] = 1.0 if kept.gate is None else kept.gate[i, slot]
        rows.append(slow_convnext.features(net, image, gates, GRID))
    return torch.stack(rows)


@pytest.mark.parametrize("masked", [False, True], ids=["gathered", "masked"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gate"])
@pytest.mark.parametrize("ragged", [False, True], ids=["exact", "ragged"])
def test_kept_positions_equal_the_slow_version(ragged: bool, gated: bool, masked: bool) -> None:
    net, kept = slow_convnext.small(), patches(ragged, gated)
    fast, expected = kept_features(net, images(), kept, masked), slowly(net, images(), kept)
    slow.assert_same(fast, expected, [net], tolerance=1e-5)
    if kept.gate is not None:
        probe = torch.randn(expected.shape)
        got, want = (torch.autograd.grad((f * probe).sum(), kept.gate)[0] for f in (fast, expected))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        assert want.abs().max() > 1e-3


@pytest.mark.parametrize("how", [{"conv_mlp": True}, {"layer_scale": None}, {"channels": 3}], ids=str)
def test_other_blocks_equal_the_slow_version_too(how: dict[str, object]) -> None:
    net, kept = slow_convnext.small(**how), patches(False, True)  # type: ignore[arg-type]
    batch = images(int(how.get("channels", 1)))  # type: ignore[call-overload]
    slow.assert_same(kept_features(net, batch, kept), slowly(net, batch, kept), [net], tolerance=1e-5)


def test_the_slow_version_with_all_patches_is_timm() -> None:
    net = slow_convnext.small()
    everything = Patches(torch.arange(9).expand(2, 9), None, None, GRID)
    expected = net.head.norm(net.forward_features(images())).mean((2, 3))
    for found in (slowly(net, images(), everything), kept_features(net, images(), everything)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_gate_of_zero_is_a_patch_dropped() -> None:
    net, index = slow_convnext.small(), torch.tensor([[0, 2, 4, 7]]).expand(2, 4)
    closed = Patches(index, None, torch.tensor([1.0, 0.0, 1.0, 1.0]).expand(2, 4), GRID)
    dropped = Patches(index[:, [0, 2, 3]], None, None, GRID)
    torch.testing.assert_close(*(kept_features(net, images(), p) for p in (closed, dropped)), rtol=1e-5, atol=1e-6)


def test_the_mlps_see_the_kept_positions_alone() -> None:
    net, rows = slow_convnext.small(), []
    for stage in net.stages:
        for block in stage.blocks:
            block.mlp.fc1.register_forward_hook(lambda layer, inputs, output: rows.append(output.shape[0]))
    kept_features(net, images(), patches(True, False))
    assert rows == [6 * 4, 6, 6]  # six kept patches, with two by two positions each in the first stage


def test_dense_is_timm_bit_for_bit() -> None:
    """The memory format is the same; only the norm that timm applies after pooling comes before it."""
    torch.manual_seed(0)
    theirs = timm.create_model("convnext_atto", in_chans=3, num_classes=0).to(memory_format=torch.channels_last).eval()
    encoder = build_encoder("convnext_atto", "dense", {}, image_size=64, channels=3, seed=0).eval()
    batch = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        last = theirs.forward_features(batch)
        assert torch.equal(encoder.network.forward_features(batch), last)
        assert torch.equal(encoder(batch).features, theirs.head.norm(last).mean((2, 3)))


def test_the_norm_of_some_comes_before_their_head() -> None:
    net = build_convnext("convnext_tiny_hnf", 32, 1).eval()
    batch = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        dense = dense_features(net, batch)
        kept = kept_features(net, batch, Patches(torch.tensor([[0]]), None, None, 1))
    torch.testing.assert_close(dense, net.forward_features(batch).mean((2, 3)))
    torch.testing.assert_close(kept, dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", CHOSEN)
def test_every_choice_is_run_as_its_mask_says(strategy: str) -> None:
    """Gathered and masked execution agree, in training and at inference, and keep the patches that they report."""
    batch, share = torch.randn(4, 1, 32, 32), torch.rand(4, 16)
    runs = {}
    for execution in ("gathered", "masked"):
        encoder = build_encoder(
            "convnext_d64_l6_patch8", strategy, {"execution": execution}, image_size=32, channels=1, seed=0
        )
        slow.shake(encoder.network, 0.05)
        if execution == "masked":
            encoder.network.load_state_dict(runs["gathered"][0].network.state_dict())
        calls = [Call(0.5, 0.1, Noise(0, 3, 2), lesions=share), Call(lesions=share)]
        runs[execution] = (encoder, [encoder(batch, call) for call in calls])
    for one, other in zip(runs["gathered"][1], runs["masked"][1], strict=True):
        assert torch.equal(one.kept, other.kept)
        assert one.kept.sum(1).unique().numel() == 1
        assert one.kept.sum() < one.kept.numel()
        torch.testing.assert_close(one.features, other.features, rtol=1e-4, atol=1e-5)


def test_the_predictor_learns_through_the_gate() -> None:
    encoder = build_encoder(
        "convnext_d64_l6_patch8", "sparsecontrast", {"lambda_sparsity": 0.0}, image_size=32, channels=1, seed=0
    )
    features = encoder(torch.randn(4, 1, 32, 32), Call(0.5, 0.1, Noise(0, 0, 2))).features
    (features * torch.randn(features.shape)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.strategy.predictor.parameters())


GEOMETRY = ConvGeometry(32, 1, 8, 8, 3, 0, patch_macs=1, family="convnext")


@pytest.mark.parametrize("option", [{"gate": "key_bias"}, {"fuse": True}, {"trim": "keys"}], ids=str)
def test_what_speaks_of_keys_or_tokens_is_refused(option: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"(key_bias|fuse=true|trim=keys) is not defined on a CNN"):
        SparseContrast(GEOMETRY, **option)  # type: ignore[arg-type]


def test_a_choice_that_speaks_of_tokens_is_refused() -> None:
    class Fusing(Selection):
        def choose(self, images: Tensor, call: Call) -> Choice:
            return Choice(EXACT, fuse=torch.ones(2, 9))

    with pytest.raises(ValueError, match="no token to fuse into"):
        Fusing(GEOMETRY, 0.5)(slow_convnext.small(), images(), Call())


def test_half_the_patches_are_half_the_mlps() -> None:
    geometry = geometry_of(build_convnext("convnext_d64_l6_patch8", 64, 1), 64)
    whole, half = geometry.macs(64), geometry.macs(32)
    mlps = 2 * 256 * 8 * 32**2 + 4 * 64 * 8 * 64**2
    assert whole - half == mlps / 2
    assert geometry.kept_at(half) == 32
