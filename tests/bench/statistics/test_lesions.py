"""Lesion area kept against loops: the null over other patients, and the jackknife by leaving patients out."""

from __future__ import annotations

import numpy as np
import pytest

from bench.statistics.accuracy import crossed_interval
from bench.statistics.lesions import lesion_parts

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


def test_one_mask_for_all_images_owes_nothing_to_the_image() -> None:
    areas, kept, who, _ = made(seed=3)
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


@pytest.mark.parametrize("patients", [60, 200])
def test_intervals_cover_the_truth(patients: int) -> None:
    """The image part of a selector that is drawn to the lesion: 300 data sets against a very large one."""

    def draw(random: np.random.Generator, patients: int):
        images = random.integers(1, 4, patients)
        who = np.repeat(np.arange(patients), images)
        pull = np.repeat(random.normal(0.8, 0.6, patients), images)  # patients differ in how well it sees them
        lesion = np.repeat(random.integers(0, PATCHES, patients), images)
        areas = np.eye(PATCHES)[lesion] * (np.repeat(random.random(patients), images) < 0.5)[:, None]
        scores = random.normal(size=(len(who), PATCHES)) + np.linspace(0, 1, PATCHES)
        scores[np.arange(len(who)), lesion] += pull
        kept = scores >= np.sort(scores, axis=1)[:, [-4]]
        return areas, kept, who

    random = np.random.default_rng(1)
    truth = lesion_parts(*draw(random, 4000)).pseudo[2].mean()
    held = 0
    for _ in range(300):
        values = lesion_parts(*draw(random, patients)).pseudo[2]
        found = crossed_interval(values[None, None])
        held += found.low <= truth <= found.high
    assert 0.91 <= held / 300 <= 0.985  # three Monte Carlo errors about .95
