"""Train, validation and test patients, and the label fractions of the training patients.

Everything is by patient. Splits follow iterative stratification (Sechidis, Tsoumakas, Vlahavas, "On the
stratification of multi-label data", ECML PKDD 2011): the rarest class first, each patient to the part that
still lacks most of it. Here the classes are "finding present" and "finding known to be absent", both of a
patient.

Label fractions are prefixes of one stratified order of the labelled training patients, so 1 % lies inside 10
% inside 100 %. The order first covers both classes of every finding in as few patients as it can, so that the
smallest fractions can be learnt from, and from there on takes the patient that keeps all classes nearest to
their share. Draw d has an order of its own, and depends on d alone, never on the seed of a run.

All positions here are row positions of the data set's arrays; no index labels are involved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from datasets.dataset import Array, Dataset

SPLIT_STREAM = 0x5711  # keeps the streams of splits and of draws apart
DRAW_STREAM = 0xD4A3
COVER_POOL = 64  # patients looked at for each early place, so that draws don't all begin with the same few
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """Sorted image positions of each part, and a hash of the whole.

    `train` holds the training patients' images without a label too (for pre-training); `val` and `test` hold
    labelled images only, and no patient of theirs is in `train`.
    """

    train: Indices
    val: Indices
    test: Indices
    hash: str


def check_shares(val: float, test: float) -> None:
    """Raises ValueError for shares of the patients that leave nothing to validate, test or train on."""
    if not (0 < val < 1 and 0 < test < 1 and val + test < 1):
        raise ValueError(f"Shares of val {val} and test {test} are not possible; both above 0, sum below 1.")


def make_splits(data: Dataset, seed: int = 0, val: float = 0.15, test: float = 0.25) -> Splits:
    """Split by patient: the official split where there is one, else stratified with `seed`.

    val, test: shares of the labelled patients. Patients without any label go to train. Where an official
    split lacks val or test, that part is carved from its train patients, as a share of them.

    Raises ValueError for shares that leave nothing to train on, for too few patients, and for a patient who
    is in two official splits.
    """
    check_shares(val, test)
    patients, of_image = np.unique(data.patients, return_inverse=True)
    labelled = _per_patient(data.labelled, of_image, len(patients))
    part = np.full(len(patients), "train", dtype="<U5")
    missing = {"val": val, "test": test}
    if data.official_split is not None:
        part = _official(data, patients, of_image)
        missing = {name: share for name, share in missing.items() if not (part[labelled] == name).any()}
    free = np.flatnonzero((part == "train") & labelled)
    if missing:
        counts = {name: max(1, round(share * len(free))) for name, share in missing.items()}
        left = len(free) - sum(counts.values())
        if left < 1:
            raise ValueError(
                f"Data set '{data.name}' has {len(free)} labelled training patients, too few for train, "
                f"{' and '.join(counts)}; at least {len(counts) + 1} are needed."
            )
        classes = _classes(data.labels, of_image, len(patients))[free]
        rng = np.random.default_rng([SPLIT_STREAM, seed])
        names = ["train", *counts]
        part[free] = np.array(names)[_stratify(classes, [left, *counts.values()], rng)]
    elif not len(free):
        raise ValueError(f"The official split of data set '{data.name}' has no labelled training patients.")
    of = part[of_image]
    train = np.flatnonzero(of == "train")
    held_out = {name: np.flatnonzero((of == name) & data.labelled) for name in ("val", "test")}
    text = "".join(index_hash(data, indices) for indices in (train, held_out["val"], held_out["test"]))
    return Splits(train, held_out["val"], held_out["test"], hashlib.sha256(text.encode()).hexdigest())


def fraction(data: Dataset, splits: Splits, percent: float, draw: int) -> Indices:
    """Positions of the labelled training images of the first `percent` % of the draw's patients.

    The number of patients is round(percent / 100 * n), n the training patients with a label.
    Raises ValueError unless 0 < percent <= 100 and draw >= 0, and where that number is 0.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"A label fraction of {percent} % is not possible; give above 0, at most 100.")
    if draw < 0:
        raise ValueError(f"There is no draw {draw}; draws are numbered from 0.")
    rows = splits.train[data.labelled[splits.train]]
    patients, of_row = np.unique(data.patients[rows], return_inverse=True)
    count = round(percent / 100 * len(patients))
    if count == 0:
        raise ValueError(
            f"A label fraction of {percent:g} % of {len(patients)} labelled training patients is less than half a "
            f"patient; one patient is {100 / len(patients):.2g} %."
        )
    if count >= len(patients):
        return rows
    classes = _classes(data.labels[rows], of_row, len(patients))
    chosen = np.zeros(len(patients), dtype=bool)
    chosen[list(islice(_order(classes, np.random.default_rng([DRAW_STREAM, draw])), count))] = True
    return np.asarray(rows[chosen[of_row]])


def index_hash(data: Dataset, indices: Array) -> str:
    """sha256 (hex) of a set of images: the data's fingerprint, then position and patient of each, sorted."""
    digest = hashlib.sha256(data.fingerprint.encode())
    for index in np.unique(np.asarray(indices, dtype=np.int64)):
        digest.update(f"\n{index}\t{data.patients[index]}".encode())
    return digest.hexdigest()


def _official(data: Dataset, patients: Array, of_image: Array) -> Array:
    """(patients,) the official part of each patient."""
    assert data.official_split is not None
    part = np.empty(len(patients), dtype="<U5")
    part[of_image] = data.official_split
    clash = np.flatnonzero(part[of_image] != data.official_split)
    if len(clash):
        who = data.patients[clash[0]]
        where = " and ".join(sorted(set(data.official_split[data.patients == who].tolist())))
        raise ValueError(f"Patient '{who}' is in two official splits, {where}; give each patient to one.")
    return part


def _per_patient(flags: Array, of_image: Array, n: int) -> Array:
    """(n,) bool: any image of the patient has the flag."""
    return _any_image(flags[:, None], of_image, n)[:, 0]


def _any_image(flags: Array, of_image: Array, n: int) -> Array:
    """(images, K) bool -> (n, K) bool, true where any image of the patient is."""
    result = np.zeros((n, flags.shape[1]), dtype=bool)
    for column in range(flags.shape[1]):
        result[of_image[flags[:, column]], column] = True
    return result


def _classes(labels: Array, of_image: Array, n: int) -> Array:
    """(n, 2 L) bool: the patient has an image with the finding; the patient has one without it."""
    return _any_image(np.hstack([labels == 1, labels == 0]), of_image, n)


def _stratify(classes: Array, sizes: list[int], rng: np.random.Generator) -> Array:
    """Iterative stratification: (n, K) bool into parts of exactly these sizes; (n,) the part of each."""
    n = len(classes)
    part = np.full(n, -1)
    room = np.array(sizes, dtype=float)
    wanted = np.outer(room / n, classes.sum(0))  # (parts, K) still lacking
    free = rng.permutation(n)
    while len(free):
        left = classes[free].sum(0)
        if left.any():
            rarest = int(np.where(left > 0, left, n + 1).argmin())
            taken = free[classes[free, rarest]]
        else:
            rarest, taken = -1, free
        for patient in taken:
            need = wanted[:, rarest] if rarest >= 0 else room
            best = max(np.flatnonzero(room > 0), key=lambda p: (need[p], room[p] / sizes[p]))
            part[patient] = best
            room[best] -= 1
            wanted[best] -= classes[patient]
        free = free[part[free] < 0]
    return part


def _order(classes: Array, rng: np.random.Generator) -> Iterator[int]:
    """The stratified order of n patients with classes (n, K) bool, one position after the other.

    Patients of the same pattern of classes are interchangeable and come in random order, so the cost of a
    place is that of looking at the patterns, not at the patients.
    """
    shuffled = rng.permutation(len(classes))
    patterns, of_patient = np.unique(classes[shuffled], axis=0, return_inverse=True)
    of_patient = of_patient.reshape(-1)
    mixed = rng.permutation(len(patterns))  # ties go to a random pattern
    patterns = patterns[np.argsort(mixed)]
    of_patient = mixed[of_patient]
    queues = [shuffled[of_patient == p].tolist() for p in range(len(patterns))]
    left = np.array([len(queue) for queue in queues])
    share = classes.mean(0)
    varies = (share > 0) & (share < 1)
    weight = np.where(varies, 1 / np.where(varies, share * (1 - share), 1), 0.0)
    error = np.zeros(len(share))  # count so far less its expectation
    covered = share == 0
    while left.any():
        cost: npt.NDArray[Any] = ((error + patterns - share) ** 2) @ weight
        cost[left == 0] = np.inf
        if not covered.all():
            cost = _cover(cost, patterns, left, covered, share, rng)
        best = int(cost.argmin())
        error += patterns[best] - share
        covered |= patterns[best]
        left[best] -= 1
        yield queues[best].pop()


def _cover(cost: Array, patterns: Array, left: Array, covered: Array, share: Array, rng: np.random.Generator) -> Array:
    """The costs of those patterns alone, of a random pool of patients, that cover most classes anew."""
    pool = np.unique(rng.choice(len(patterns), size=min(COVER_POOL, int(left.sum())), p=left / left.sum()))
    new = patterns[:, ~covered].sum(1)
    if not new[pool].any():  # nobody in the pool helps: go for the rarest class that is still open
        rarest = np.where(covered, np.inf, share).argmin()
        pool = np.flatnonzero(patterns[:, rarest] & (left > 0))
    best = pool[new[pool] == new[pool].max()]
    result = np.full(len(cost), np.inf)
    result[best] = cost[best]
    return result
