"""Simulates how often the intervals of lesion area kept hold the true value, and prints a table.

    python -m tests.bench.statistics.lesion_coverage [REPETITIONS]

The model. A patient has one to three images, a selector scores SIDE x SIDE patches and keeps the KEPT highest. Every
image has a spot, a square of SPOT x SPOT patches, more often in the middle. A score is higher in the middle, for every
image alike, and by the selector's pull at the spot, plus noise: of a patient, of an image, and of an image in one run.
Pulls differ between patients and between runs. In patients with the finding, the spot is a lesion in the first image,
and in each other one with probability .7. So what is kept does not depend on the number of patients with the finding,
and the true values of all three parts are known: the means over very many images.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from bench.statistics.accuracy import LEVELS, Estimate
from bench.statistics.lesions import PARTS, lesion_parts, part_interval

PATIENTS = 150
SIDE, SPOT, KEPT = 6, 2, 18  # patches along a side of the image and of a spot; patches kept
PATIENT, IMAGE, OWN = 0.35, 0.35, 0.3  # variances of the noise
PULLS = {"weak": 0.3, "strong": 1.5}
VARIED = 0.3  # standard deviation of a patient's pull
WOBBLE = 0.1  # standard deviation of a run's pull
REPETITIONS = 1000
SEEDS = (1, 3, 5)
POSITIVES = (3, 5, 10, 20, 60)
IMAGES = 40_000  # for the true values


@dataclass(frozen=True)
class Row:
    """A selector and a number of test patients with the finding."""

    selector: str
    positives: int

    @property
    def head(self) -> tuple[str, str]:
        """The first cells of the row."""
        return self.selector, str(self.positives)


ROWS = tuple(Row(selector, m) for selector in PULLS for m in POSITIVES)


def _spots(random: np.random.Generator, images: int) -> Any:
    """Masks of spots (images, patches): their corners are binomial along both sides."""
    at = random.binomial(SIDE - SPOT, 0.5, (images, 2))
    place = np.arange(SIDE)
    rows, columns = ((place >= at[:, [k]]) & (place < at[:, [k]] + SPOT) for k in range(2))
    return (rows[:, :, None] & columns[:, None, :]).reshape(images, -1)


def _centre() -> Any:
    """What every score gets from its place (patches,)."""
    along = 1 - np.abs(np.arange(SIDE) - (SIDE - 1) / 2) / (SIDE / 2)
    return (along[:, None] + along[None, :]).ravel()


def _highest(scores: Any) -> Any:
    return scores >= np.sort(scores, axis=-1)[..., [-KEPT]]


def intervals(row: Row, seeds: int, repetitions: int) -> Iterator[tuple[list[Estimate], Any]]:
    """The estimates of PARTS with their intervals, whatever the number of patients, and the true values."""
    random = np.random.default_rng([seeds, row.positives, list(PULLS).index(row.selector)])
    pull = PULLS[row.selector]
    patches = SIDE * SIDE
    for _ in range(repetitions):
        who = np.repeat(np.arange(PATIENTS), random.integers(1, 4, PATIENTS))
        first = np.diff(who, prepend=-1) > 0
        ill = (random.permutation(PATIENTS) < row.positives)[who] & (first | (random.random(len(who)) < 0.7))
        spots = _spots(random, len(who))
        shared = random.normal(0, np.sqrt(PATIENT), (PATIENTS, patches))[who]
        shared += random.normal(0, np.sqrt(IMAGE), shared.shape) + _centre()
        drawn = random.normal(0, VARIED, PATIENTS)[who]
        runs = random.normal(pull, WOBBLE, seeds)
        own = random.normal(0, np.sqrt(OWN), (seeds, *shared.shape))
        kept = _highest(shared + own + (runs[:, None] + drawn)[..., None] * spots)
        found = [lesion_parts(spots * ill[:, None], one, who) for one in kept]
        pseudo = np.stack([one.pseudo for one in found if one is not None])
        truth = true_parts(pull, WOBBLE) if seeds >= LEVELS else np.mean([true_parts(run, 0.0) for run in runs], 0)
        yield [part_interval(pseudo[:, part], name) for part, name in enumerate(PARTS)], truth


@cache
def _curve() -> tuple[Any, Any]:
    """True parts (parts, pulls) of a run with one of several pulls: the same images for all of them."""
    pulls = np.linspace(min(PULLS.values()) - 5 * WOBBLE, max(PULLS.values()) + 5 * WOBBLE, 31)
    random = np.random.default_rng(0)
    spots = _spots(random, IMAGES)
    noise = _centre() + random.normal(0, np.sqrt(PATIENT + IMAGE + OWN), spots.shape)
    drawn = random.normal(0, VARIED, (IMAGES, 1))
    values = []
    for pull in pulls:
        kept = _highest(noise + (pull + drawn) * spots)
        r = (kept & spots).sum(1).mean() / SPOT**2
        null = kept.mean(0) @ spots.mean(0) / SPOT**2  # the image and the selection are of different patients
        values.append((r, null - KEPT / SIDE**2, r - null))
    return pulls, np.array(values).T


def true_parts(pull: float, wobble: float) -> Any:
    """True PARTS of a run with this pull, or the mean over runs with a spread of pulls."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    at, curves = _curve()
    return np.array([weights @ np.interp(pull + wobble * nodes, at, curve) / weights.sum() for curve in curves])


def covered(row: Row, seeds: int, repetitions: int) -> Any:
    """Share of the intervals that hold the truth, by part (parts,). A repetition may have none: where every lesion is
    kept whole."""
    hits = [
        [one.low <= value <= one.high if one.bounded else np.nan for one, value in zip(estimates, truth, strict=True)]
        for estimates, truth in intervals(row, seeds, repetitions)
    ]
    return np.nanmean(hits, axis=0)


def table(repetitions: int) -> str:
    """A Markdown table; a cell has the three parts."""
    head = ("selector", "patients with the finding", *(f"{n} seed{'s'[: n - 1]}" for n in SEEDS))
    rows = [head, ("---",) * len(head)]
    for row in ROWS:
        shares = (covered(row, seeds, repetitions) for seeds in SEEDS)
        rows.append((*row.head, *(" / ".join(f"{share:.3f}" for share in three) for three in shares)))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(table(int(sys.argv[1]) if len(sys.argv) > 1 else REPETITIONS))
