import itertools
import math
from collections import Counter

import pytest
import torch
from scipy.stats import chi2

from methods import STRATEGIES
from methods.noise import Noise
from methods.schedule import kept_tokens
from methods.strategies.predictor import predictor_macs, predictor_width
from methods.strategies.strategy import Call, Geometry
from methods.strategies.subset import Centre, Fixed, PatchDropout, Random, Subset, equal_macs_keep
from tests.methods import slow

VIT_S = Geometry(224, 3, 16, 384, 12, 1, stem_macs=196 * 384 * 768)
GRID_2 = Geometry(16, 1, 8, 16, 2, 0)
GRID_4 = Geometry(32, 1, 8, 16, 2, 0)


def kept(strategy: Subset, images: torch.Tensor, call: Call) -> list[tuple[int, ...]]:
    choice = strategy.choose(images, call)
    assert choice is not None
    return [tuple(row) for row in choice.index.tolist()]


def test_random_subsets_are_uniform_over_all_subsets() -> None:
    strategy = Random(GRID_2, 0.5, equal_macs=False)
    drawn: Counter[tuple[int, ...]] = Counter()
    for step in range(10):
        drawn.update(kept(strategy, torch.zeros(600, 1, 16, 16), Call(0.5, noise=Noise(0, step, 300))))
    assert set(drawn) == set(itertools.combinations(range(4), 2))
    statistic = sum((count - 1000) ** 2 / 1000 for count in drawn.values())
    assert chi2.cdf(statistic, 5) < 0.999


def test_random_keeps_exactly_k_and_every_patch_equally_often() -> None:
    strategy = Random(GRID_4, 0.3, equal_macs=False)
    rows = kept(strategy, torch.zeros(4000, 1, 32, 32), Call(0.3, noise=Noise(1, 0, 2000)))
    assert {len(set(row)) for row in rows} == {5}
    counts = Counter(patch for row in rows for patch in row)
    p = 5 / 16
    spread = 4000 * p * (1 - p) * 16 / 15  # covariance of a draw without replacement
    assert chi2.cdf(sum((counts[i] - 4000 * p) ** 2 for i in range(16)) / spread, 15) < 0.999


def test_random_at_inference_follows_the_pixels_alone() -> None:
    strategy = Random(GRID_4, 0.5, equal_macs=False)
    images = torch.randn(40, 1, 32, 32)
    together = kept(strategy, images, Call())
    alone = [kept(strategy, image[None], Call())[0] for image in images.flip(0)][::-1]
    assert together == alone
    assert len(set(together)) > 35
    assert kept(strategy, images + 1e-3, Call()) != together


def test_random_views_and_steps_differ() -> None:
    strategy = Random(GRID_4, 0.5, equal_macs=False)
    images = torch.zeros(40, 1, 32, 32)
    one, two = (kept(strategy, images, Call(0.5, noise=Noise(0, step, 20))) for step in (0, 1))
    assert one != two
    assert one[:20] != one[20:]


def test_fixed_is_one_mask_in_training_and_inference_nested_along_the_ramp() -> None:
    strategy = Fixed(GRID_4, 0.25, equal_macs=False, seed=3)
    images = torch.randn(5, 1, 32, 32)
    (mask,) = set(kept(strategy, images, Call()))
    assert set(kept(strategy, images, Call(0.25, noise=Noise(0, 7, 5, views=1)))) == {mask}
    (wider,) = set(kept(strategy, images, Call(0.5, noise=Noise(0, 7, 5, views=1))))
    assert set(mask) < set(wider)
    others = {kept(Fixed(GRID_4, 0.25, equal_macs=False, seed=s), images, Call())[0] for s in range(20)}
    assert len(others) > 15


def test_centre_keeps_the_nearest_patches() -> None:
    images = torch.zeros(1, 1, 32, 32)
    assert kept(Centre(GRID_4, 0.25, equal_macs=False), images, Call()) == [(5, 6, 9, 10)]
    ring = kept(Centre(GRID_4, 0.75, equal_macs=False), images, Call())[0]
    assert set(range(16)) - set(ring) == {0, 3, 12, 15}  # the corners go first
    grid_5 = Geometry(40, 1, 8, 16, 2, 0)
    far = {p: math.hypot(p // 5 - 2, p % 5 - 2) for p in range(25)}
    nearest = sorted(sorted(far), key=far.__getitem__)[:9]
    assert kept(Centre(grid_5, 9 / 25, equal_macs=False), images, Call()) == [tuple(sorted(nearest))]


def test_patchdropout_draws_as_random_does_in_training_and_is_dense_at_inference() -> None:
    vit, geometry = slow.tiny(depth=2)
    images, call = torch.randn(4, 1, 32, 32), Call(0.5, noise=Noise(0, 0, 2))
    mine, random = PatchDropout(geometry, 0.5), Random(geometry, 0.5)
    assert kept(mine, images, call) == kept(random, images, call)
    assert STRATEGIES["patchdropout"].inference == ("dense",)
    dense = mine(vit, images, Call(inference="dense")).features
    assert torch.equal(dense, vit.forward_features(images).mean(1))


@pytest.mark.parametrize("cls", [Fixed, Centre, Random, PatchDropout])
def test_a_subset_equals_the_slow_version(cls: type[Subset]) -> None:
    vit, geometry = slow.tiny("cls", depth=2)
    strategy = cls(geometry, 0.5, equal_macs=False)
    images, call = torch.randn(2, 1, 32, 32), Call(0.5, noise=Noise(0, 0, 1))
    encoding = strategy(vit, images, call)
    rows = []
    for image, where in zip(images, kept(strategy, images, call), strict=True):
        tokens = slow.embed(vit, image)
        left = torch.stack([tokens[0], *(tokens[1 + p] for p in where)])
        rows.append(slow.blocks(vit, left)[1:].mean(0))
    slow.assert_same(encoding.features, torch.stack(rows), [vit])


def test_masked_and_gathered_agree() -> None:
    vit, geometry = slow.tiny("cls", depth=3)
    images, call = torch.randn(6, 1, 32, 32), Call(0.5, noise=Noise(0, 0, 3))
    features = [
        Random(geometry, 0.5, False, execution)(vit, images, call).features for execution in ("gathered", "masked")
    ]
    torch.testing.assert_close(*features, rtol=1e-5, atol=1e-5)


def test_nothing_is_dropped_before_the_ramp_begins() -> None:
    vit, geometry = slow.tiny(depth=2)
    images = torch.randn(2, 1, 32, 32)
    features = Random(geometry, 0.5)(vit, images, Call(1.0, noise=Noise(0, 0, 1))).features
    assert torch.equal(features, vit.forward_features(images).mean(1))


def test_equal_macs_at_vit_small_scale() -> None:
    keep = equal_macs_keep(VIT_S, 0.5, predictor_macs(VIT_S, predictor_width(VIT_S)))
    assert keep == pytest.approx(0.53, abs=0.006)
    assert Fixed(VIT_S, 0.5).target == keep
    assert Fixed(VIT_S, 0.5, equal_macs=False).target == 0.5


@pytest.mark.parametrize("asked", [0.1, 0.5, 0.6, 0.9])
def test_equal_macs_spends_what_sparsecontrast_spends(asked: float) -> None:
    """Add up, block by block, qkv, two N x N products for all heads, projection and MLP."""

    def encoder(n: float) -> float:
        n, c = n + 1, 384
        return 12 * (n * c * 3 * c + 2 * n * n * c + n * c * c + 2 * n * c * 4 * c)

    predictor = 196 * (3 * 256 * 258 + 9 * 258 * 258 + 9 * 258)
    keep = equal_macs_keep(VIT_S, asked, predictor_macs(VIT_S, predictor_width(VIT_S)))
    assert encoder(196 * keep) == pytest.approx(encoder(kept_tokens(196, asked)) + predictor, rel=1e-6)


def test_equal_macs_never_keeps_more_than_all() -> None:
    assert Fixed(VIT_S, 1.0).target == 1.0
    assert Fixed(VIT_S, 0.99).target == 1.0
