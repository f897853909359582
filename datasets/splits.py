"""Training, validation and test patients, and label fractions of the training patients.

All splits are by patient. They follow iterative stratification (Sechidis, Tsoumakas, Vlahavas, "On the stratification
of multi-label data", ECML PKDD 2011): starting with the rarest class, each patient goes to the part that lacks most of
it. The classes of a patient are "finding present" and "finding known to be absent".

Label fractions are prefixes of a stratified order of the labelled training patients, so that 1 % lies inside 10 %
inside 100 %. The order first covers both classes of every finding with as few patients as possible, so that the
smallest fractions can be trained on. It then takes the patients that keep all classes nearest to their share. Every
draw has another order, which depends only on the number of the draw and not on the seed of a run.

Positions are row positions of the arrays of the data set.
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

SPLIT_STREAM = 0x5711  # separates the random streams of splits and draws
DRAW_STREAM = 0xD4A3
COVER_POOL = 64  # random candidates for each early place, so that not all draws begin with the same few patients
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """Sorted positions of the images of each part, and a hash of all three.

    `train` includes unlabelled images, which are used for pre-training. `val` and `test` hold only labelled images. No
    patient is in two parts.
    """

    train: Indices
    val: Indices
    test: Indices
    hash: str


def check_shares(val: float, test: float) -> None:
    """Raise ValueError for shares that leave no patients for training, validation or testing."""
    if not (0 < val < 1 and 0 < test < 1 and val + test < 1):
        raise ValueError(
            f"Shares of val {val} and test {test} are not possible; both must be above 0, and their sum below 1."
        )


def make_splits(data: Dataset, seed: int = 0, val: float = 0.15, test: float = 0.25) -> Splits:
    """Split a data set by patient: by the official split if there is one, otherwise stratified with `seed`.

    val, test: shares of the labelled patients. Patients without labels go to train. If an official split lacks val or
    test, that part is taken from its training patients, as a share of those with labels.

    Raises ValueError for impossible shares, too few patients, and a patient in two official splits.
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
                f"Data set '{data.name}' has {len(free)} labelled training patients, too few to split into train, "
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
    """Return the positions of the labelled training images in a label fraction.

    They belong to the first round(percent / 100 * n) of the n labelled training patients, in the order of `draw`.
    Raises ValueError unless 0 < percent <= 100 and draw >= 0, and if the number of patients is 0.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"A label fraction of {percent} % is not possible; it must be above 0 and at most 100.")
    if draw < 0:
        raise ValueError(f"Draw {draw} is not possible; draws are numbered from 0.")
    rows = splits.train[data.labelled[splits.train]]
    patients, of_row = np.unique(data.patients[rows], return_inverse=True)
    count = round(percent / 100 * len(patients))
    if count == 0:
        raise ValueError(
            f"A label fraction of {percent:g} % of {len(patients)} labelled training patients is less than half a "
            f"patient; a single patient is {100 / len(patients):.2g} %."
        )
    if count >= len(patients):
        return rows
    classes = _classes(data.labels[rows], of_row, len(patients))
    chosen = np.zeros(len(patients), dtype=bool)
    chosen[list(islice(_order(classes, np.random.default_rng([DRAW_STREAM, draw])), count))] = True
    return np.asarray(rows[chosen[of_row]])


def draws(data: Dataset, splits: Splits, percent: float, count: int) -> list[Indices]:
    """Return the first `count` draws of a label fraction, as `fraction` does; 100 % has a single draw."""
    return [fraction(data, splits, percent, draw) for draw in range(1 if percent >= 100 else count)]


def usage_notes(data: Dataset, splits: Splits) -> tuple[str, ...]:
    """Return sentences on images that are used for pre-training alone or not at all, and on what else was counted.

    Images without any label are part of the pre-training, unless their patient is in the validation or test split.
    """
    unlabelled = int((~data.labelled[splits.train]).sum())
    used = np.concatenate([splits.train, splits.val, splits.test])
    notes = []
    if unlabelled:
        notes.append(f"{_images(unlabelled)} without any label {_are(unlabelled)} used in pre-training only.")
    if left := len(data) - len(used):
        notes.append(
            f"{_images(left)} without any label, of validation or test patients, {_are(left)} not used at all."
        )
    for what, numbers in data.counted.items():
        train, val, test = (int(numbers[part].sum()) for part in (splits.train, splits.val, splits.test))
        notes.append(f"{what}: {train:,} in pre-training, {val:,} in the validation and {test:,} in the test split.")
    return tuple(notes)


def _images(count: int) -> str:
    return f"{count:,} {'image' if count == 1 else 'images'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def index_hash(data: Dataset, indices: Array) -> str:
    """Return the sha256 (hex) of a set of images: fingerprint of the data, then sorted positions with patients."""
    digest = hashlib.sha256(data.fingerprint.encode())
    for index in np.unique(np.asarray(indices, dtype=np.int64)):
        digest.update(f"\n{index}\t{data.patients[index]}".encode())
    return digest.hexdigest()


def _official(data: Dataset, patients: Array, of_image: Array) -> Array:
    """Return the official part (patients,) of each patient. Raises ValueError for a patient in two parts."""
    assert data.official_split is not None
    part = np.empty(len(patients), dtype="<U5")
    part[of_image] = data.official_split
    clash = np.flatnonzero(part[of_image] != data.official_split)
    if len(clash):
        who = data.patients[clash[0]]
        where = " and ".join(sorted(set(data.official_split[data.patients == who].tolist())))
        raise ValueError(f"Patient '{who}' is in two official splits, {where}; put each patient into one.")
    return part


def _per_patient(flags: Array, of_image: Array, n: int) -> Array:
    """Return for each patient (n,) whether any of their images has the flag."""
    return _any_image(flags[:, None], of_image, n)[:, 0]


def _any_image(flags: Array, of_image: Array, n: int) -> Array:
    """Reduce flags of images (images, K) to flags of patients (n, K): True if any image of the patient has it."""
    result = np.zeros((n, flags.shape[1]), dtype=bool)
    for column in range(flags.shape[1]):
        result[of_image[flags[:, column]], column] = True
    return result


def _classes(labels: Array, of_image: Array, n: int) -> Array:
    """Return for each patient (n, 2 L) whether an image has each finding, then whether an image lacks each finding."""
    return _any_image(np.hstack([labels == 1, labels == 0]), of_image, n)


def _stratify(classes: Array, sizes: list[int], rng: np.random.Generator) -> Array:
    """Divide patients with classes (n, K) into parts of exactly these sizes; return the part of each patient (n,)."""
    n = len(classes)
    part = np.full(n, -1)
    room = np.array(sizes, dtype=float)
    wanted = np.outer(room / n, classes.sum(0))  # (parts, K) patients that a part still lacks
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
    """Yield the positions of n patients with classes (n, K) in stratified order.

    Patients with the same pattern of classes are interchangeable and come in random order, so that each step considers
    patterns instead of patients.
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
    error = np.zeros(len(share))  # count so far minus its expectation
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
    """Restrict the costs to the patterns of a random pool of patients that cover most uncovered classes."""
    pool = np.unique(rng.choice(len(patterns), size=min(COVER_POOL, int(left.sum())), p=left / left.sum()))
    new = patterns[:, ~covered].sum(1)
    if not new[pool].any():  # nobody in the pool covers a new class: take the rarest one that is uncovered
        rarest = np.where(covered, np.inf, share).argmin()
        pool = np.flatnonzero(patterns[:, rarest] & (left > 0))
    best = pool[new[pool] == new[pool].max()]
    result = np.full(len(cost), np.inf)
    result[best] = cost[best]
    return result
