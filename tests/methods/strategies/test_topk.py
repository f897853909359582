"""Top-K against its rule, computed image by image, with gradients."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from methods.noise import Noise
from methods.strategies.attended import Attended
from methods.strategies.strategy import Call, Geometry
from methods.strategies.topk import TopK
from tests.methods import slow

TRAIN = Call(1.0, noise=Noise(0, 0, 3, views=1))


def slow_topk(vit: VisionTransformer, image: Tensor, rho: float) -> tuple[Tensor, list[list[int]]]:
    """Return the features of one image and the patches that remain after each stage."""

    def reduce(x: Tensor, share: Tensor, left: list[int], stage: int) -> tuple[Tensor, list[int]]:
        score = share.tolist()
        best = sorted(range(len(left)), key=lambda j: -score[j])[: int(16 * rho ** (stage + 1))]
        return x[sorted(best)], [left[j] for j in sorted(best)]

    return slow.pruned(vit, image, reduce)


@pytest.mark.parametrize("call", [TRAIN, Call()], ids=["training", "inference"])
@pytest.mark.parametrize(("prefix", "depth"), [("", 4), ("cls", 5), ("cls+reg", 6)])
def test_equals_the_rule_written_out_with_gradients(prefix: str, depth: int, call: Call) -> None:
    vit, geometry = slow.tiny(prefix, depth=depth)
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    encoding = TopK(geometry, rho=0.7)(vit, images, call)
    slow.assert_prunes_alike(encoding, vit, [slow_topk(vit, image, 0.7) for image in images], [11, 7, 5])


def test_published_counts_and_places() -> None:
    strategy = TopK(Geometry(224, 3, 16, 384, 12, 1), rho=0.7)
    assert [strategy.kept_after(k) for k in range(3)] == [137, 96, 67]
    assert strategy.within == (3, 6, 9)
    assert strategy.target == 0.7
    assert strategy.train_execution == "gathered"
    assert not strategy.ramps
    assert TopK(Geometry(160, 1, 16, 16, 4, 0), rho=0.29).kept_after(0) == 29  # where 100 x 0.29 is 28.999...
    assert TopK(Geometry(32, 1, 16, 16, 4, 0), rho=0.05).kept_after(2) == 1
    with pytest.raises(ValueError, match="topk prunes in 3 stages.* at least 4 blocks; this one has 3"):
        TopK(Geometry(32, 1, 8, 16, 3, 0))


def test_only_what_is_kept_is_computed() -> None:
    """The rows that the MLPs see show it, in training too."""
    vit, geometry = slow.tiny("cls", depth=4)
    rows: list[int] = []
    for block in vit.blocks:
        block.mlp.register_forward_hook(lambda module, given, out: rows.append(given[0].shape[1]))
    TopK(geometry, rho=0.5)(vit, torch.randn(2, 1, 32, 32), TRAIN)
    assert rows == [17, 1 + 8, 1 + 4, 1 + 2]


def test_dense_inference_is_timms_forward() -> None:
    vit, geometry = slow.tiny("cls")
    images = torch.randn(3, 1, 32, 32)
    features = TopK(geometry)(vit, images, Call(inference="dense")).features
    assert torch.equal(features, vit.forward_features(images)[:, 1:].mean(1))


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_attended_sums_to_one_and_pays_for_one_row_where_there_is_a_class_token(prefix: int) -> None:
    q, k = torch.randn(2, 2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    weights = (q @ k.mT / 8**0.5).softmax(-1)  # (2, 3, 9, 9)
    expected = weights[:, :, 0].mean(1) if prefix else weights.mean((1, 2))
    got = Attended(prefix)(q, k)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got.sum(1), torch.ones(2))
