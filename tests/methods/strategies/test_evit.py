"""EViT against the rule of the paper, computed image by image, with gradients."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from methods.noise import Noise
from methods.strategies.evit import EViT
from methods.strategies.strategy import Call, Geometry
from tests.methods import slow

TRAIN = Call(1.0, noise=Noise(0, 0, 3, views=1))
FUSED = -1


def slow_evit(vit: VisionTransformer, image: Tensor, rho: float) -> tuple[Tensor, list[list[int]]]:
    """Return the features of one image and the patches that remain after each stage, FUSED for a fused token."""

    def reduce(x: Tensor, share: Tensor, left: list[int], stage: int) -> tuple[Tensor, list[int]]:
        score = share.tolist()
        best = sorted(range(len(left)), key=lambda j: -score[j])[: math.ceil(rho * len(left))]
        rest = [j for j in range(len(left)) if j not in best]
        if not rest:
            return x, left
        fused = sum(share[j] * x[j] for j in rest)
        return torch.stack([*(x[j] for j in sorted(best)), fused]), [*(left[j] for j in sorted(best)), FUSED]

    return slow.pruned(vit, image, reduce)


@pytest.mark.parametrize("call", [TRAIN, Call()], ids=["training", "inference"])
@pytest.mark.parametrize(("prefix", "depth"), [("", 4), ("cls", 5), ("cls+reg", 6)])
def test_equals_the_paper_written_out_with_gradients(prefix: str, depth: int, call: Call) -> None:
    vit, geometry = slow.tiny(prefix, depth=depth)
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    encoding = EViT(geometry, rho=0.7)(vit, images, call)
    counts = [12 + 1, 10 + 1, 8 + 1]  # of 16, of 13, of 11
    slow.assert_prunes_alike(encoding, vit, [slow_evit(vit, image, 0.7) for image in images], counts)


def test_an_earlier_fused_token_can_stay_or_be_fused_again() -> None:
    """Among a few images both happen, and an image whose first fused token stays has two of them."""
    vit, geometry = slow.tiny("cls", depth=4)
    images = torch.randn(24, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ends = [slow_evit(vit, image, 0.6)[1][-1] for image in images]
        kept = EViT(geometry, rho=0.6)(vit, images, Call()).kept
    fused = [end.count(FUSED) for end in ends]
    assert min(fused) == 1 < max(fused)
    assert kept.sum(1).tolist() == [len(end) - n for end, n in zip(ends, fused, strict=True)]


def test_published_counts_and_places() -> None:
    strategy = EViT(Geometry(224, 3, 16, 384, 12, 1), rho=0.7)
    counts, tokens = [], 196
    for _ in range(3):
        tokens = strategy.kept_of(tokens) + 1
        counts.append(tokens)
    assert counts == [139, 99, 71]
    assert strategy.within == (3, 6, 9)
    assert strategy.target == 0.7
    assert strategy.train_execution == "gathered"
    assert EViT(Geometry(160, 1, 16, 16, 4, 0), rho=0.55).kept_of(100) == 55  # where 100 x 0.55 is 55.000...01
    with pytest.raises(ValueError, match="evit prunes in 3 stages.* at least 4 blocks; this one has 2"):
        EViT(Geometry(32, 1, 8, 16, 2, 0))


def test_rho_one_fuses_nothing() -> None:
    vit, geometry = slow.tiny("cls")
    images = torch.randn(3, 1, 32, 32)
    encoding = EViT(geometry, rho=1.0)(vit, images, TRAIN)
    assert encoding.kept.all()
    torch.testing.assert_close(encoding.features, vit.forward_features(images)[:, 1:].mean(1), rtol=1e-5, atol=1e-5)


def test_dense_inference_is_timms_forward() -> None:
    vit, geometry = slow.tiny("cls")
    images = torch.randn(3, 1, 32, 32)
    features = EViT(geometry)(vit, images, Call(inference="dense")).features
    assert torch.equal(features, vit.forward_features(images)[:, 1:].mean(1))
