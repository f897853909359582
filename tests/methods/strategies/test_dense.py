import pytest
import timm
import torch

from methods.encoders.encoder import Encoder
from methods.encoders.vit import build_vit, geometry_of
from methods.noise import Noise
from methods.strategies.dense import Dense
from methods.strategies.strategy import Call, embed
from tests.methods import slow


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [
        ("vit_tiny_patch16_224", 64, 1),
        ("vit_tiny_patch16_224", 224, 3),
        ("deit_tiny_patch16_224", 96, 3),
        ("deit_tiny_distilled_patch16_224", 48, 1),
        ("vit_wee_patch16_reg1_gap_256", 64, 3),
        ("vit_stem_d64_l4_patch8", 64, 1),
    ],
)
def test_tokens_are_bit_equal_to_timms_own(name: str, size: int, channels: int) -> None:
    vit = build_vit(name, size, channels).eval()
    images = torch.randn(1, channels, size, size)
    with torch.no_grad():
        encoding = Encoder(vit, Dense(geometry_of(vit)))(images)
        tokens = vit.forward_features(images)
        assert torch.equal(encoding.features, tokens[:, vit.num_prefix_tokens :].mean(1))
        if timm.is_model(name):  # the model as timm builds it, with the same weights
            pooling = "token" if "distilled" in name else ""
            theirs = timm.create_model(
                name, img_size=size, in_chans=channels, num_classes=0, global_pool=pooling
            ).eval()
            theirs.load_state_dict(vit.state_dict())
            assert torch.equal(theirs.forward_features(images), tokens)
            x = embed(vit, images)
            for block in vit.blocks:
                x = block(x)
            assert torch.equal(vit.norm(x), tokens)


@pytest.mark.parametrize("prefix", ["", "cls", "cls+reg"])
def test_dense_equals_the_slow_version(prefix: str) -> None:
    vit, geometry = slow.tiny(prefix, depth=2, channels=3)
    images = torch.randn(2, 3, 32, 32)
    encoding = Dense(geometry)(vit, images, Call(noise=Noise(0, 0, 1)))
    expected = torch.stack([slow.blocks(vit, slow.embed(vit, i))[geometry.prefix :].mean(0) for i in images])
    slow.assert_same(encoding.features, expected, [vit])
    assert encoding.kept is None
    assert not encoding.losses
