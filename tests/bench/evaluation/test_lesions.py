"""What selections keep of lesions on the phantom: areas against loops, and controls whose parts are known."""

from __future__ import annotations

import numpy as np
import pytest

from bench.evaluation.features import Features
from bench.evaluation.lesions import lesion_areas, lesions_kept
from bench.training.data import RunData
from datasets.splits import make_splits
from datasets.views import Views
from methods import build_encoder

KEPT, PLACE, IMAGE = range(3)


@pytest.fixture(scope="module")
def run_data(phantom, fabric) -> RunData:
    return RunData(phantom, make_splits(phantom), Views(32), fabric, seed=0)


def built(strategy: str, **options):
    return build_encoder("vit_stem_d64_l4_patch8", strategy, options, image_size=32, channels=1, seed=0).eval()


def kept_by(run_data: RunData, strategy: str, **options):
    return lesions_kept(Features(built(strategy, **options), run_data))


def test_areas_are_those_of_pixels(run_data: RunData) -> None:
    index = run_data.splits.test
    for bit in range(len(run_data.dataset.label_names)):
        expected = np.zeros((len(index), 16))
        for image, row, column in zip(*np.nonzero((run_data.dataset.masks[index] >> bit) & 1), strict=True):
            expected[image, row // 8 * 4 + column // 8] += 1 / 64
        np.testing.assert_allclose(lesion_areas(run_data, index, bit, 4), expected, atol=1e-6)


@pytest.mark.parametrize("strategy", ["fixed", "centre"])
def test_a_mask_that_is_the_same_for_all_owes_nothing_to_the_image(run_data: RunData, strategy: str) -> None:
    found = kept_by(run_data, strategy)
    seen = found["images"] > 0
    assert seen.any()
    assert (found["pseudo"][seen, IMAGE] == 0).all()
    assert np.isnan(found["pseudo"][~seen]).all()
    assert (found["pseudo"][seen, PLACE].mean(-1) != 0).any()
    np.testing.assert_allclose(
        found["pseudo"][seen, KEPT].mean(-1), found["share"][seen] + found["pseudo"][seen, PLACE].mean(-1)
    )


@pytest.mark.parametrize("select", ["budget", "threshold"])
def test_numbers_that_vary_by_image_are_compared_by_scores(run_data: RunData, select: str) -> None:
    """Against loops over images and patients, with the scores that the encoder reports."""
    encoder = built("sparsecontrast", select=select)
    index = run_data.splits.test
    own = Features(encoder, run_data).own(index)
    kept, scores, who = own["kept"], own["scores"], run_data.dataset.patients[index]
    assert len(set(kept.sum(1))) > 1
    found = lesions_kept(Features(encoder, run_data))
    seen = np.flatnonzero(found["images"])
    for bit in seen[:2]:
        image = []
        areas = lesion_areas(run_data, index, int(bit), 4)
        for area, mask, patient in zip(areas, kept, who, strict=True):
            if area.sum() > 0:
                count = int(mask.sum())
                others = [set(np.argsort(-row, kind="stable")[:count]) for row in scores[who != patient]]
                null = np.mean([sum(area[place] for place in one) for one in others]) / area.sum()
                image.append(area[mask].sum() / area.sum() - null)
        assert found["pseudo"][bit, IMAGE].mean() == pytest.approx(np.mean(image), abs=1e-9)


def test_the_oracle_keeps_lesions_because_of_the_image(run_data: RunData) -> None:
    """Of all findings together: a large one, such as a heart, is kept in everybody."""
    oracle, random = kept_by(run_data, "oracle", keep=0.5), kept_by(run_data, "random", keep=0.5)
    seen = oracle["images"] > 0
    assert oracle["pseudo"][seen, KEPT].mean() > random["pseudo"][seen, KEPT].mean() + 0.2
    assert oracle["pseudo"][seen, IMAGE].mean() > 0.05


def test_who_selects_nothing_keeps_no_account(run_data: RunData) -> None:
    assert kept_by(run_data, "dense") is None
    bare = run_data.dataset.replace(masks=None, has_mask=None)
    assert kept_by(RunData(bare, run_data.splits, run_data.views, run_data.fabric, 0), "fixed") is None
