"""Lesion masks on their way to the oracle: carried through the views, borrowed where an image has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.training.batches import Lesions
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
    """Twelve of sixty images have a lesion of one of three findings, each finding in a band of rows of its own."""
    generator = np.random.default_rng(5)
    masks = np.zeros((N, 32, 32), np.uint16)
    for i in range(DONORS):
        row, column = 11 * (i % 3), int(generator.integers(0, 25))
        masks[5 * i, row : row + 2 + 2 * (i // 3), column : column + 7] = 1 << (i % 3)
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


def shown(data: Dataset, oracle, seed: int) -> np.ndarray:
    """(3, N): whose lesion of each finding each image shows; every one has to be the whole lesion of a donor."""
    masks = Lesions(data, oracle, seed).masks_of(np.arange(N)).numpy()
    sources = np.zeros((3, N), int)
    for finding in range(3):
        band = slice(11 * finding, 11 * finding + 11)
        donors = {(data.masks[i, band] != 0).tobytes(): i for i in np.flatnonzero(data.labels[:, finding])}
        assert len(donors) == 4
        sources[finding] = [donors[mask[band].tobytes()] for mask in masks]
    return sources


def test_lesions_of_ones_own_are_kept_and_others_are_borrowed_whole(data: Dataset, oracle) -> None:
    sources = shown(data, oracle, 0)
    for finding in range(3):
        own = np.flatnonzero(data.labels[:, finding])
        assert (sources[finding, own] == own).all()


def test_nothing_about_a_mask_tells_the_label(data: Dataset, oracle) -> None:
    """Every image shows every finding, and over images and seeds all lesions of a finding are shown alike."""
    seeds = 100
    drawn = np.stack([shown(data, oracle, seed) for seed in range(seeds)])  # (seeds, 3, N)
    for finding in range(3):
        borrowed = drawn[:, finding, data.labels[:, finding] == 0]
        counts = np.array([(borrowed == donor).sum() for donor in np.flatnonzero(data.labels[:, finding])])
        expected = borrowed.size / 4
        assert ((counts - expected) ** 2 / expected).sum() < 16.3  # 3 degrees of freedom, p = 0.001
        assert (np.array([len(set(column)) for column in borrowed.T]) == 4).all()  # nobody has always the same
    neither = drawn[:, :2, data.labels[:, :2].sum(1) == 0].transpose(0, 2, 1).reshape(-1, 2)
    assert len({tuple(pair) for pair in neither.tolist()}) == 16  # the findings independently
    assert len({sources.tobytes() for sources in drawn}) == seeds


def test_the_same_seed_borrows_the_same(data: Dataset, oracle) -> None:
    assert (shown(data, oracle, 3) == shown(data, oracle, 3)).all()


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
    with pytest.raises(ValueError, match="Oracle needs lesion masks, and data set 'made' has none"):
        Lesions(bare, oracle, 0)
    Lesions(bare, encoder("dense"), 0)
