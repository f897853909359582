from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from methods import STRATEGIES, build_encoder, build_objective
from methods.encoders.vit import ConvStem, build_vit, geometry_of

TINY = "vit_tiny_patch16_224"


def test_heads_for_a_seed_are_the_same_for_all_strategies_and_the_global_stream_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    heads = []
    for strategy in STRATEGIES:
        encoder = build_encoder("vit_stem_d64_l4_patch8", strategy, {}, image_size=32, channels=1, seed=1)
        heads.append(build_objective("moco", encoder, {}, seed=1))
    for head in heads[1:]:
        for mine, first in zip(head.projector.parameters(), heads[0].projector.parameters(), strict=True):
            assert torch.equal(mine, first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """File of a trained model with learned positions at 64 px, three channels and a classifier."""
    torch.manual_seed(0)
    state = timm.create_model(TINY, img_size=64, num_classes=10).state_dict()
    state = {key: torch.randn_like(value) for key, value in state.items()}
    save_file(state, tmp_path / "trained.safetensors")
    return tmp_path / "trained.safetensors", state


def test_weights_load_by_name_at_the_same_size(weights: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = weights
    loaded = build_vit(TINY, 64, 3, weights=str(path)).state_dict()
    assert set(state) - set(loaded) == {"head.weight", "head.bias"}
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)


def test_weights_load_at_another_size_with_positions_resampled(
    weights: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    path, state = weights
    vit = build_vit(TINY, 96, 3, weights=str(path))
    loaded = vit.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in loaded if key != "pos_embed")
    assert torch.equal(loaded["pos_embed"][:, 0], state["pos_embed"][:, 0])
    grid = state["pos_embed"][0, 1:].T.reshape(1, 192, 4, 4)
    resized = F.interpolate(grid, size=(6, 6), mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(loaded["pos_embed"][:, 1:], resized, rtol=1e-4, atol=1e-5)
    assert vit.pos_embed.requires_grad


def test_rgb_weights_see_a_gray_image_as_its_copy_in_three_channels(
    weights: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    path, _ = weights
    gray = torch.randn(2, 1, 64, 64)
    one, three = build_vit(TINY, 64, 1, weights=str(path)), build_vit(TINY, 64, 3, weights=str(path))
    torch.testing.assert_close(
        one.patch_embed(gray), three.patch_embed(gray.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-3
    )


def test_weights_that_do_not_fit_are_named(weights: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    path, state = weights
    with pytest.raises(FileNotFoundError, match=r"no encoder weights at .*absent\.safetensors"):
        build_vit(TINY, 64, 3, weights=str(tmp_path / "absent.safetensors"))
    with pytest.raises(ValueError, match="do not fit the encoder"):
        build_vit("vit_small_patch16_224", 64, 3, weights=str(path))
    del state["blocks.3.mlp.fc1.weight"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"blocks\.3\.mlp\.fc1\.weight missing"):
        build_vit(TINY, 64, 3, weights=str(tmp_path / "part.safetensors"))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_tiny_patch16_225", 64, "unknown encoder 'vit_tiny_patch16_225'"),
        (TINY, 60, "image size 60 is not a multiple of the patch size of .*, 16 pixels: use e.g. 64"),
        ("vit_stem_d64_l4_patch8", 60, "image size 60 is not a multiple of the patch size of .*, 8 pixels"),
        ("resnet18", 64, "not a plain ViT"),
        ("swin_tiny_patch4_window7_224", 224, "plain ViT"),
    ],
)
def test_encoders_that_cannot_be_used_are_named(name: str, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_vit(name, size, 3)


@pytest.mark.parametrize(
    ("name", "size", "channels", "prefix", "depth", "dim", "patch"),
    [
        (TINY, 64, 1, 1, 12, 192, 16),
        ("deit_tiny_distilled_patch16_224", 64, 3, 2, 12, 192, 16),
        ("vit_wee_patch16_reg1_gap_256", 64, 3, 1, 14, 256, 16),
        ("vit_stem_d64_l4_patch8", 64, 1, 0, 4, 64, 8),
        ("vit_stem_d96_l6_patch8", 48, 3, 0, 6, 96, 8),
        ("vit_stem_d192_l8_patch16", 64, 1, 0, 8, 192, 16),
    ],
)
def test_geometry_is_what_the_tokens_show(
    name: str, size: int, channels: int, prefix: int, depth: int, dim: int, patch: int
) -> None:
    vit = build_vit(name, size, channels).eval()
    geometry = geometry_of(vit)
    found = (geometry.prefix, geometry.depth, geometry.dim, geometry.patch, geometry.channels, geometry.image_size)
    assert found == (prefix, depth, dim, patch, channels, size)
    with torch.no_grad():
        tokens = vit.forward_features(torch.zeros(1, channels, size, size))
    assert tokens.shape == (1, prefix + geometry.patches, dim)


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_stem_d64_l4_patch8"])
def test_macs_are_those_of_the_layers_that_run(name: str) -> None:
    """Count every linear layer and convolution with hooks, and add the two N x N products of attention."""
    size, channels = (224, 3) if "small" in name else (64, 1)
    with torch.device("meta"):
        vit = build_vit(name, size, channels)
    counted = 0

    def hook(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal counted
        counted += output.numel() * layer.weight[0].numel()

    for layer in vit.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            layer.register_forward_hook(hook)
    tokens = vit.forward_features(torch.zeros(1, channels, size, size, device="meta")).shape[1]
    geometry = geometry_of(vit)
    counted += geometry.depth * 2 * tokens**2 * geometry.dim
    assert geometry.macs(geometry.patches) == counted
    if "small" in name:
        assert counted / 1e9 == pytest.approx(4.599, rel=0.001)


def test_positions_are_sine_and_cosine_of_row_and_column_and_stay() -> None:
    vit = build_vit(TINY, 64, 1)
    assert vit.pos_embed is not None
    assert not vit.pos_embed.requires_grad
    table = vit.pos_embed[0]
    assert (table[0] == 0).all()
    grid = table[1:].reshape(4, 4, 192)
    quarter = 192 // 4
    frequency = 10000.0 ** -(torch.arange(quarter) / quarter)
    angle = torch.arange(4)[:, None] * frequency
    sines, cosines = angle.sin(), angle.cos()  # (4, C / 4), for rows and columns alike
    for row in range(4):
        for column in range(4):
            expected = torch.cat([sines[row], sines[column], cosines[row], cosines[column]])
            torch.testing.assert_close(grid[row, column], expected, rtol=1e-5, atol=1e-5)
    assert build_vit(TINY, 64, 1, positions="learned").pos_embed.requires_grad


def test_the_stem_is_stride_two_convolutions_down_to_the_patch_grid() -> None:
    vit = build_vit("vit_stem_d64_l4_patch8", 64, 1)
    assert isinstance(vit.patch_embed, ConvStem)
    convolutions = [layer for layer in vit.patch_embed.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convolutions] == [
        (1, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1),
    ]  # fmt: skip
    for convolution in convolutions:  # receptive fields overlap: with random weights a neighbour could respond more
        torch.nn.init.constant_(convolution.weight, 0.1)
    image = torch.zeros(1, 1, 64, 64)
    image[..., 16:24, 40:48] = 1.0  # row 2, column 5 of the 8x8 grid
    with torch.no_grad():
        vit.patch_embed.eval()
        change = (vit.patch_embed(image) - vit.patch_embed(torch.zeros_like(image))).abs().sum(-1)
    assert int(change.argmax()) == 2 * 8 + 5
