"""How much of a lesion a selection keeps, against the same lesion under other patients' selections.

For image i with a finding, a_j is the area of its lesion in patch j and m_j says whether patch j is kept. The lesion
area kept is R = sum_j a_j m_j / sum_j a_j. Its null R0 replaces m_j by the mean over the images of all other patients,
at the number of patches that image i keeps: what a selection keeps of the lesion that knows where lesions lie in
general, and nothing about this image. R has three parts:

    share kept            what any selection of this size keeps on average
    place = R0 - share    what the places add that are kept in other images
    image = R - R0        what the image itself adds

Each is averaged over the images with the finding. Uncertainty is over patients, by the jackknife: leaving out a patient
takes its images out of the mean and out of the null of all others, so the mean is a U-statistic of order two divided by
a number of images, for which pseudo-values are exact to the first order (Arvesen, Annals of Mathematical Statistics
1969).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.statistics import accuracy

Array = NDArray[Any]
KEPT, PLACE, IMAGE = PARTS = ("kept", "place", "image")  # R, R0 - share, R - R0
ALIKE = "no patient differs from another, as where every lesion is kept whole"
DIGITS = 9  # to which pseudo-values are rounded, so that those of a part that is 0 in every image are 0


@dataclass(frozen=True)
class LesionParts:
    """One finding. `pseudo` (3, K) are the pseudo-values of PARTS for the K patients of all images, in sorted order;
    their means are the estimates, NaN where there is no null. `share` is the mean share of patches kept, `by_area` R
    weighted by area; all over the `images` with the finding, of `patients` patients."""

    pseudo: Array
    share: float
    by_area: float
    images: int
    patients: int


def lesion_parts(areas: Array, kept: Array, patients: Array, scores: Array | None = None) -> LesionParts | None:
    """Split the lesion area that a selection keeps into its parts; None where no image has a lesion.

    areas (n, patches) >= 0, kept (n, patches) bool, patients (n,). `scores` (n, patches), by which patches are kept,
    the highest first, give other images' selections at an image's own number; they are needed only where numbers
    differ, and without them there is no null. Nor is there one with fewer than three patients.
    """
    total = areas.sum(1)
    found = np.flatnonzero(total > 0)
    if not len(found):
        return None
    names, member = np.unique(patients, return_inverse=True)
    size, owner = len(names), member[found]
    weight = areas[found] / total[found, None]  # (f, patches)
    each, shares = (weight * kept[found]).sum(1), kept[found].mean(1)
    null, null_without = _nulls(weight, found, kept, member, scores)
    estimates = np.array([each.mean(), (null - shares).mean(), (each - null).mean()])
    left = len(found) - np.bincount(owner, minlength=size)
    sums = np.stack(
        [
            each.sum() - np.bincount(owner, each, size),
            null_without - shares.sum() + np.bincount(owner, shares, size),
            each.sum() - np.bincount(owner, each, size) - null_without,
        ]
    )
    # without the only patient with the finding nothing is left: it tells nothing about the spread
    without = np.where(left > 0, sums / np.maximum(left, 1), estimates[:, None])
    pseudo = size * estimates[:, None] - (size - 1) * without
    pseudo += (estimates - pseudo.mean(1))[:, None]  # the bias that the jackknife removes is of second order
    return LesionParts(
        pseudo=np.round(pseudo, DIGITS) + 0.0,  # no negative zeros
        share=float(shares.mean()),
        by_area=float((areas[found] * kept[found]).sum() / areas[found].sum()),
        images=len(found),
        patients=len(np.unique(owner)),
    )


def part_interval(pseudo: Array, part: str) -> accuracy.Estimate | None:
    """Mean over seeds of pseudo-values (seeds, K) of one of PARTS, with an interval over seeds and patients.

    None where there is no value, or a single patient. R is a share, with an interval on the logit scale; the other
    parts are differences. There is no interval where all patients are alike: that is a chance of few lesions, or
    follows from a selection that is the same for all images.
    """
    if pseudo.shape[1] < 2 or not np.isfinite(pseudo).all():
        return None
    found = accuracy.crossed_interval(pseudo[:, None])
    if np.ptp(pseudo.mean(0)) == 0:
        return found.unbounded(ALIKE)
    return accuracy.of_share(found, ALIKE) if part == KEPT else accuracy.of_difference(found)


def _nulls(weight: Array, found: Array, kept: Array, member: Array, scores: Array | None) -> tuple[Array, Array]:
    """The null R0 of each image of `found` (f,), and the sum of the nulls of all images of other patients when one
    patient is left out altogether (K,). NaN where there is no null.

    weight (f, patches) is the share of the lesion in each patch, member (n,) the number of an image's patient.
    """
    size, counts = int(member.max()) + 1, kept.sum(1)
    alike = len(np.unique(counts)) == 1
    if size < 3 or not (alike or scores is not None):
        return np.full(len(found), np.nan), np.full(size, np.nan)
    images, owner = np.bincount(member), member[found]
    null, without = np.empty(len(found)), np.zeros(size)
    order = np.argsort(member, kind="stable")
    first = np.flatnonzero(np.diff(member[order], prepend=-1))  # of each patient, in this order
    ranks = None if alike or scores is None else np.argsort(np.argsort(-scores[order], kind="stable"))
    for count in np.unique(counts[found]):
        masks = kept[order] if ranks is None else ranks < count  # ties go to the first
        at = np.flatnonzero(counts[found] == count)
        by_patient = np.add.reduceat(masks, first, axis=0, dtype=np.float64)
        others = by_patient.sum(0) - by_patient[owner[at]]  # (f', patches)
        among = len(kept) - images[owner[at]]
        null[at] = (weight[at] * (others / among[:, None])).sum(1)
        inside = (weight[at] * others).sum(1)[:, None] - weight[at] @ by_patient.T  # (f', K): of neither patient
        one_less = inside / (among[:, None] - images[None, :])
        one_less[np.arange(len(at)), owner[at]] = 0.0  # a patient's own images are left out with it
        without += one_less.sum(0)
    return null, without
