import pytest
import torch
from torch import nn

from methods import build_encoder
from methods.encoders.vit import build_vit, geometry_of
from methods.strategies.predictor import BOUND, Predictor, bounded, predictor_macs, predictor_width, standardised
from methods.strategies.strategy import Geometry


def vit_small() -> Geometry:
    with torch.device("meta"):
        return geometry_of(build_vit("vit_small_patch16_224", 224, 3))


def test_at_vit_small_scale_three_layers_of_800_thousand_parameters() -> None:
    with torch.device("meta"):
        encoder = build_encoder("vit_small_patch16_224", "sparsecontrast", {}, image_size=224, channels=3, seed=0)
    predictor = encoder.strategy.predictor
    layers = [layer for layer in predictor.modules() if isinstance(layer, nn.Conv2d)]
    assert len(layers) == 3
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in layers] == [(258, 16, 16), (258, 3, 1), (1, 3, 1)]
    assert sum(p.numel() for p in predictor.parameters()) == pytest.approx(0.8e6, rel=0.01)


def test_its_macs_are_those_of_the_layers_that_run() -> None:
    geometry = vit_small()
    width = predictor_width(geometry)
    assert width == 258
    counted = 0

    def hook(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal counted
        counted += output.numel() * layer.weight[0].numel()

    with torch.device("meta"):
        predictor = Predictor(geometry, width)
        for layer in predictor.layers:
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(hook)
        logits = predictor(torch.zeros(1, 3, 224, 224))
    assert logits.shape == (1, 196)
    assert predictor_macs(geometry, width) == counted
    assert counted / 1e9 == pytest.approx(0.157, abs=0.0005)


@pytest.mark.parametrize(("name", "size"), [("vit_stem_d64_l4_patch8", 64), ("vit_tiny_patch16_224", 64)])
def test_small_encoders_get_a_predictor_of_the_same_relative_cost(name: str, size: int) -> None:
    small, big = geometry_of(build_vit(name, size, 1)), vit_small()
    share = predictor_macs(big, 258) / big.macs(196)
    width = predictor_width(small)
    assert predictor_macs(small, width) / small.macs(small.patches) <= share * 1.001
    assert predictor_macs(small, width + 1) / small.macs(small.patches) > share
    assert width > 4


def test_the_paper_width_is_the_most() -> None:
    assert predictor_width(Geometry(224, 3, 16, 768, 12, 1)) == 258


def test_logits_are_the_three_convolutions_in_reading_order() -> None:
    """The reference patchifies, then computes two 3x3 convolutions with loops over neighbours."""
    torch.manual_seed(0)
    predictor = Predictor(Geometry(32, 1, 8, 16, 2, 0), 5)
    first, second, third = (layer for layer in predictor.layers if isinstance(layer, nn.Conv2d))
    image = torch.randn(1, 32, 32)
    grid = {
        (r, c): gelu(first.weight.flatten(1) @ image[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8].flatten() + first.bias)
        for r in range(4)
        for c in range(4)
    }
    for layer, activation in ((second, gelu), (third, lambda x: x)):
        grid = {
            (r, c): activation(
                layer.bias
                + sum(
                    layer.weight[:, :, dr, dc] @ grid[r + dr - 1, c + dc - 1]
                    for dr in range(3)
                    for dc in range(3)
                    if (r + dr - 1, c + dc - 1) in grid
                )
            )
            for r in range(4)
            for c in range(4)
        }
    expected = torch.cat([grid[r, c] for r in range(4) for c in range(4)])
    torch.testing.assert_close(predictor(image[None])[0], expected, rtol=1e-5, atol=1e-6)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def test_standardised_logits_have_mean_0_and_spread_1_in_every_image() -> None:
    logits = torch.tensor([[300.0, 320.0, 340.0, 360.0], [0.1, 0.2, 0.3, 0.4], [7.0, 7.0, 7.0, 7.0]])
    found = standardised(logits)
    expected = torch.tensor([-1.5, -0.5, 0.5, 1.5]) / 1.25**0.5  # of 0, 1, 2, 3
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], expected, rtol=1e-3, atol=1e-4)
    assert (found[2] == 0).all()


def test_bounded_logits_keep_small_ones_and_their_order() -> None:
    logits = torch.tensor([[-300.0, -1.0, 0.01, 3.0, 5.0]])
    found = bounded(logits)
    assert found.abs().max() <= BOUND
    assert found[0, 2].item() == pytest.approx(0.01, rel=1e-4)
    assert (found.diff() > 0).all()


@pytest.mark.parametrize("how", [standardised, bounded])
def test_where_raw_logits_are_saturated_these_still_have_a_slope(how) -> None:
    """At logits of 20 the slope s (1 - s) of the sigmoid is 2e-9; bounded by 4 it is at least 0.018."""
    raw = torch.tensor([[-25.0, -20.0, 20.0, 30.0]])
    slope = [(z.sigmoid() * (-z).sigmoid()).mean().item() for z in (raw, how(raw))]
    assert slope[0] < 1e-8
    assert slope[1] > 0.017
