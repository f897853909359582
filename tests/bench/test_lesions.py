"""Lesion masks on their way to the oracle: carried through the views, borrowed where an image has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.lesions import Lesions
from datasets.dataset import Dataset
from datasets.views import Views
from methods import build_encoder
from methods.strategies.strategy import Call

N, DONORS = 60, 12
CPU = torch.device("cpu")
STILL = {
    "crop_area": (1.0, 1.0),
    "crop_aspect": (1.0, 1.0),
    "rotation": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "gamma": (1.0, 1.0),
    "blur_probability": 0.0,
    "noise": 0.0,
}


def encoder(strategy: str):
    return build_encoder("vit_stem_d64_l4_patch8", strategy, {}, image_size=32, channels=1, seed=0)


def drawn(views: Views, index: np.ndarray):
    return views.draw(torch.Generator().manual_seed(0), len(index))


@pytest.fixture(scope="module")
def oracle():
    return encoder("oracle")


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Twelve of sixty images have a lesion, each of a size of its own; every label of one says so."""
    generator = np.random.default_rng(5)
    masks = np.zeros((N, 32, 32), np.uint16)
    for i in range(DONORS):
        row, column = generator.integers(0, 16, 2)
        masks[5 * i, row : row + i + 2, column : column + 5] = 1 << (i % 3)
    labels = np.stack([((masks >> bit) & 1).any((1, 2)) for bit in range(3)], 1).astype(np.float32)
    return Dataset(
        name="made",
        images=generator.integers(0, 256, (N, 32, 32), dtype=np.uint8),
        labels=labels,
        label_names=("a", "b", "c"),
        patients=np.arange(N).astype(str),
        masks=masks,
        has_mask=labels == 1,
        fingerprint="0" * 64,
    )


def test_lesions_of_ones_own_are_kept_and_others_are_borrowed_whole(data: Dataset, oracle) -> None:
    lesions = Lesions(data, oracle, seed=0)
    masks = lesions.masks_of(np.arange(N)).numpy()
    own = data.masks != 0
    donors = {mask.tobytes() for mask in own if mask.any()}
    assert len(donors) == DONORS
    for i in range(N):
        if own[i].any():
            assert (masks[i] == own[i]).all()
        else:
            assert masks[i].tobytes() in donors


def test_borrowed_masks_come_from_all_donors_alike(data: Dataset, oracle) -> None:
    """Over seeds, so that the size or place of a mask tells nothing about the label."""
    own = (data.masks != 0).sum((1, 2))
    negatives = np.flatnonzero(own == 0)
    seeds = 150
    drawn = np.stack([Lesions(data, oracle, seed).source[negatives] for seed in range(seeds)])
    counts = np.array([(drawn == donor).sum() for donor in np.flatnonzero(own)])
    expected = seeds * len(negatives) / DONORS
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 31.3  # 11 degrees of freedom, p = 0.001
    areas = own[drawn]
    error = own[own > 0].std() / np.sqrt(areas.size)
    assert abs(areas.mean() - own[own > 0].mean()) < 4 * error
    assert len({tuple(row) for row in drawn}) == seeds  # every seed draws its own
    assert (np.array([len(set(column)) for column in drawn.T]) > 6).all()  # no image has always the same donor


def test_the_same_seed_borrows_the_same(data: Dataset, oracle) -> None:
    a, b = Lesions(data, oracle, 3).source, Lesions(data, oracle, 3).source
    assert (a == b).all()


def test_coverage_against_a_loop(data: Dataset, oracle) -> None:
    lesions = Lesions(data, oracle, 0)
    masks = lesions.masks_of(np.arange(N))
    expected = torch.zeros(N, 16)
    for i, row, column in masks.nonzero().tolist():
        expected[i, row // 8 * 4 + column // 8] += 1 / 64
    assert expected.max() > 0.3
    torch.testing.assert_close(lesions.coverage(masks), expected)
    call = lesions.call_for(np.arange(N), Call(keep=0.3), CPU)
    assert call.keep == 0.3
    torch.testing.assert_close(call.lesions, expected)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_lesions_go_where_the_views_put_them(data: Dataset, oracle, flip: float) -> None:
    """With views that only flip, view-major as the images are."""
    lesions, index = Lesions(data, oracle, 0), np.arange(7, 31)
    views = Views(32, flip=flip, **STILL)
    pair, call = lesions.make_views(views, index, drawn(views, index), Call(keep=0.7), CPU)
    masks = lesions.masks_of(index)
    masks = masks.flip(2) if flip else masks
    assert pair.shape == (2, 24, 1, 32, 32)
    assert call.keep == 0.7
    torch.testing.assert_close(call.lesions, lesions.coverage(masks).repeat(2, 1), atol=1e-4, rtol=0)


def test_views_are_the_same_with_lesions_and_without(data: Dataset, oracle) -> None:
    index, views = np.arange(8), Views(32)
    pairs = [
        Lesions(data, one, 0).make_views(views, index, drawn(views, index), Call(), CPU)[0]
        for one in (oracle, encoder("dense"))
    ]
    assert torch.equal(*pairs)


def test_who_does_not_ask_is_told_nothing(data: Dataset) -> None:
    call = Call(keep=0.5)
    lesions = Lesions(data, encoder("sparsecontrast"), 0)
    assert lesions.call_for(np.arange(3), call, CPU) is call
    assert lesions.make_views(Views(32), np.arange(3), drawn(Views(32), np.arange(3)), call, CPU)[1] is call


def test_data_without_masks_are_refused_to_the_oracle_alone(data: Dataset, oracle) -> None:
    bare = data.replace(masks=None, has_mask=None)
    with pytest.raises(ValueError, match="'oracle' needs lesion masks, and data set 'made' has none"):
        Lesions(bare, oracle, 0)
    Lesions(bare, encoder("dense"), 0)
