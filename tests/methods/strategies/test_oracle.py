from collections import Counter

import pytest
import torch
from scipy.stats import chi2

from methods.noise import Noise
from methods.strategies.oracle import Oracle
from methods.strategies.strategy import Call
from tests.methods import slow


def lesions(images: int) -> torch.Tensor:
    share = torch.zeros(images, 16)
    share[:, 3], share[:, 7], share[:, 12] = 1.0, 0.25, 0.5
    return share


def test_lesion_patches_come_first_in_the_order_of_their_share() -> None:
    _, geometry = slow.tiny()
    images = torch.randn(50, 1, 32, 32)
    for keep, first in [(1 / 16, {3}), (2 / 16, {3, 12}), (3 / 16, {3, 7, 12}), (0.5, {3, 7, 12})]:
        strategy = Oracle(geometry, keep, equal_macs=False)
        for call in (Call(keep, lesions=lesions(50)), Call(keep, noise=Noise(0, 0, 25), lesions=lesions(50))):
            choice = strategy.choose(images, call)
            assert choice is not None
            rows = [set(row) for row in choice.index.tolist()]
            assert all(first <= row and len(row) == round(16 * keep) for row in rows)


def test_the_rest_is_filled_uniformly() -> None:
    _, geometry = slow.tiny()
    strategy = Oracle(geometry, 0.5, equal_macs=False)
    call = Call(0.5, noise=Noise(0, 0, 2000, views=1), lesions=lesions(2000))
    choice = strategy.choose(torch.zeros(2000, 1, 32, 32), call)
    assert choice is not None
    counts = Counter(choice.index.flatten().tolist())
    rest, p = [i for i in range(16) if i not in (3, 7, 12)], 5 / 13
    spread = 2000 * p * (1 - p) * 13 / 12
    assert chi2.cdf(sum((counts[i] - 2000 * p) ** 2 for i in rest) / spread, 12) < 0.999


def test_an_image_alone_equals_the_image_in_a_batch() -> None:
    vit, geometry = slow.tiny("cls", depth=2)
    strategy = Oracle(geometry, 0.5)
    images, share = torch.randn(6, 1, 32, 32), (torch.rand(6, 16) - 0.6).clamp_min(0)
    together = strategy(vit, images, Call(lesions=share))
    for i in range(6):
        alone = strategy(vit, images[i : i + 1], Call(lesions=share[i : i + 1]))
        assert torch.equal(alone.kept[0], together.kept[i])
        torch.testing.assert_close(alone.features[0], together.features[i], rtol=1e-5, atol=1e-5)


def test_it_says_what_it_lacks() -> None:
    vit, geometry = slow.tiny(depth=2)
    with pytest.raises(ValueError, match="'oracle' needs lesion masks"):
        Oracle(geometry)(vit, torch.zeros(2, 1, 32, 32), Call(1.0, noise=Noise(0, 0, 1)))
    with pytest.raises(ValueError, match=r"lesions of shape \(2, 9\), not \(2, 16\)"):
        Oracle(geometry)(vit, torch.zeros(2, 1, 32, 32), Call(lesions=torch.zeros(2, 9)))
    Oracle(geometry)(vit, torch.zeros(2, 1, 32, 32), Call(inference="dense"))  # dense needs none
