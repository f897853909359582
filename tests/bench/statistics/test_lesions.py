"""Lesion area kept against loops: the null over other patients, and the jackknife by leaving patients out."""

from __future__ import annotations

import numpy as np
import pytest

from bench.statistics.accuracy import crossed_interval
from bench.statistics.lesions import lesion_parts, part_interval

PATCHES = 9


def made(seed: int = 0, patients: int = 7, own_number: bool = False):
    """Images of several patients with lesions in some, scores, and the selections that follow from these."""
    random = np.random.default_rng(seed)
    who = np.repeat([f"p{i}" for i in range(patients)], random.integers(1, 4, patients))
    scores = random.normal(size=(len(who), PATCHES))
    counts = random.integers(2, 7, len(who)) if own_number else np.full(len(who), 4)
    kept = np.array([row >= np.sort(row)[-count] for row, count in zip(scores, counts, strict=True)])
    areas = random.random((len(who), PATCHES)) * (random.random((len(who), PATCHES)) < 0.4)
    areas[random.random(len(who)) < 0.4] = 0
    areas[0, 3] = 1.0
    areas[-1, 5] = 2.0
    return areas, kept, who, scores


def by_loops(areas, kept, who, scores):
    """R, place and image by the definition, one image, patient and patch at a time."""
    parts = []
    for i in range(len(who)):
        if areas[i].sum() == 0:
            continue
        count = int(kept[i].sum())
        others = [j for j in range(len(who)) if who[j] != who[i]]
        r = sum(areas[i, p] for p in range(PATCHES) if kept[i, p]) / areas[i].sum()
        null = 0.0
        for j in others:
            highest = sorted(range(PATCHES), key=lambda p: -scores[j, p])[:count]
            null += sum(areas[i, p] for p in highest) / areas[i].sum() / len(others)
        parts.append((r, null - count / PATCHES, r - null))
    return np.mean(parts, axis=0)


@pytest.mark.parametrize("own_number", [False, True])
def test_parts_and_pseudo_values_are_those_of_loops(own_number: bool) -> None:
    areas, kept, who, scores = made(own_number=own_number)
    found = lesion_parts(areas, kept, who, scores)
    whole = by_loops(areas, kept, who, scores)
    np.testing.assert_allclose(found.pseudo.mean(1), whole, atol=1e-9)
    names = np.unique(who)
    left_out = [by_loops(*(x[who != name] for x in (areas, kept, who, scores))) for name in names]
    pseudo = len(names) * whole - (len(names) - 1) * np.array(left_out)
    np.testing.assert_allclose(found.pseudo.T - whole, pseudo - pseudo.mean(0), atol=1e-9)
    lesions = areas.sum(1) > 0
    assert found.images == lesions.sum()
    assert found.patients == len(np.unique(who[lesions]))
    assert found.share == pytest.approx(kept[lesions].mean())
    assert found.by_area == pytest.approx((areas * kept).sum() / areas.sum())


def test_numbers_that_are_equal_need_no_scores_and_others_do() -> None:
    areas, kept, who, scores = made()
    np.testing.assert_array_equal(lesion_parts(areas, kept, who).pseudo, lesion_parts(areas, kept, who, scores).pseudo)
    areas, kept, who, _ = made(own_number=True)
    found = lesion_parts(areas, kept, who)
    assert np.isfinite(found.pseudo[0]).all()
    assert np.isnan(found.pseudo[1:]).all()


@pytest.mark.parametrize("patients", [7, 3000])  # the more patients, the more rounding in a pseudo-value
def test_one_mask_for_all_images_owes_nothing_to_the_image(patients: int) -> None:
    areas, kept, who, _ = made(seed=3, patients=patients)
    found = lesion_parts(areas, np.broadcast_to(kept[0], kept.shape), who)
    assert (found.pseudo[2] == 0).all()
    assert found.pseudo[1].mean() != 0


def test_a_selection_of_the_lesion_is_all_image_and_one_of_the_place_all_place() -> None:
    patients, who = 40, np.repeat(np.arange(40).astype(str), 1)
    at = np.random.default_rng(0).integers(0, PATCHES, patients)
    areas = np.eye(PATCHES)[at]
    seen = lesion_parts(areas, areas > 0, who)
    assert seen.pseudo[0].mean() == 1
    assert seen.pseudo[2].mean() > 0.8
    assert abs(seen.pseudo[1].mean()) < 0.1
    always = np.zeros_like(areas)
    always[:, 4] = 1  # lesions lie in the middle, and every image keeps the middle
    place = lesion_parts(always, always > 0, who)
    assert place.pseudo.mean(1) == pytest.approx([1, 1 - 1 / PATCHES, 0])


def test_a_finding_of_one_patient_has_an_estimate_and_no_spread() -> None:
    areas, kept, who, scores = made()
    areas[who != "p0"] = 0
    found = lesion_parts(areas, kept, who, scores)
    np.testing.assert_allclose(found.pseudo.mean(1), by_loops(areas, kept, who, scores))
    assert found.patients == 1


def test_without_lesions_there_is_nothing_to_keep() -> None:
    areas, kept, who, _ = made()
    assert lesion_parts(np.zeros_like(areas), kept, who) is None


def test_patients_without_the_finding_do_not_narrow_the_interval_of_what_is_kept() -> None:
    """With one image a patient, the jackknife over all K has the variance of the m with a lesion, by m - 1 for m."""
    random = np.random.default_rng(4)
    total, m = 50, 12
    kept = random.random((total, PATCHES)) < 0.5
    areas = random.random((total, PATCHES)) * (np.arange(total) < m)[:, None]
    values = lesion_parts(areas, kept, np.arange(total)).pseudo[0]
    shares = (areas * kept)[:m].sum(1) / areas[:m].sum(1)
    variance = shares.var(ddof=1) / (m - 1) * (total - 1) / total
    assert values.var(ddof=1) / total == pytest.approx(variance)
    np.testing.assert_allclose(values[m:], shares.mean())


def test_intervals_are_those_of_a_share_and_of_differences() -> None:
    random = np.random.default_rng(5)
    values = 0.9 + 0.3 * random.normal(size=(5, 20))
    found, raw = part_interval(values, "kept"), crossed_interval(values[:, None])
    middle, half = np.log(raw.value / (1 - raw.value)), (raw.high - raw.low) / 2 / (raw.value * (1 - raw.value))
    odds = np.exp([middle - half, middle + half])
    np.testing.assert_allclose([found.low, found.high], odds / (1 + odds))
    assert raw.high > found.high
    wide = part_interval(np.tile([-3.0, 3.0], (5, 10)), "image")
    assert (wide.low, wide.high) == (-1.0, 1.0)
    assert part_interval(values - 0.9, "place") == crossed_interval(values[:, None] - 0.9)


def test_there_is_no_interval_where_nothing_varies_and_no_value_where_there_is_none() -> None:
    whole = part_interval(np.ones((5, 20)), "kept")
    assert (whole.value, whole.bounded) == (1.0, False)
    always = part_interval(np.array([[0.4375], [0.25]]).repeat(20, axis=1), "place")  # as all lesions are kept whole
    same = part_interval(np.zeros((5, 20)), "image")  # of `fixed`, by construction
    assert (always.value, same.value) == (0.34375, 0)
    assert not any(one.bounded for one in (always, same))
    assert {one.reason for one in (whole, always, same)} == {
        "no patient differs from another, as where every lesion is kept whole"
    }
    assert part_interval(np.full((5, 20), np.nan), "place") is None
    assert part_interval(np.ones((5, 1)), "kept") is None


def test_one_patient_or_two_leave_no_comparison() -> None:
    areas, kept, who, scores = made(patients=2)
    found = lesion_parts(areas, kept, who, scores)
    assert np.isfinite(found.pseudo[0]).all()
    assert np.isnan(found.pseudo[1:]).all()
