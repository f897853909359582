"""Simulates how often the intervals of accuracy hold the true value; makes the table of docs/intervals.md.

    python -m tests.bench.statistics.coverage [REPETITIONS]

The model. A patient has one to three images. A patient with the finding shows it in the first image, and in each other
one with probability .7. A score is strength x finding + noise of variance 1: .35 of it is a patient's, .35 an image's,
both shared by all runs, and .3 an image's in one run alone. A run's strength varies about its method's (standard
deviation .1). So the true AUROC of a method is known: over seeds and patients, or of the runs at hand where there are
too few seeds for an interval to cover them. The intervals are made by the functions that make those of a report.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from bench.statistics import accuracy

PATIENTS = 300
SHARED, OWN = 0.35, 0.3  # variances: twice SHARED (patient, image) and OWN add up to 1
WOBBLE = 0.1  # standard deviation of a run's strength
REPETITIONS = 2000
CHUNK = 50  # repetitions that share one set of patients, images and labels
COMMON = (60, 60, 60, 60)  # positive patients of the findings that stand beside a rare one in a macro mean
SEEDS = (1, 3, 5)


@dataclass(frozen=True)
class Row:
    """What is estimated, its true AUROCs (one method, or two for a difference), test patients with each finding."""

    what: str
    aurocs: tuple[float, ...]
    positives: tuple[int, ...]

    @property
    def head(self) -> tuple[str, ...]:
        """The first cells of the row."""
        return self.what, " against ".join(f"{one:g}" for one in self.aurocs), str(self.positives[0])


ROWS = (
    *(Row("one finding", (auroc,), (m,)) for auroc in (0.6, 0.85) for m in (3, 5, 7, 10, 20, 60)),
    *(Row("one finding, difference", (0.85, 0.8), (m,)) for m in (3, 5, 7, 10, 20, 60)),
    *(Row("macro of five", (0.85,), (m, *COMMON)) for m in (3, 5, 7, 10)),
    *(Row("macro of five, difference", (0.85, 0.8), (m, *COMMON)) for m in (3, 5, 7, 10)),
)


def intervals(row: Row, seeds: int, repetitions: int) -> Iterator[tuple[accuracy.Estimate, float]]:
    """An estimate with its interval, whatever the number of positive patients, and the truth, for each repetition."""
    random = np.random.default_rng([seeds, len(row.positives), row.positives[0], *(int(100 * a) for a in row.aurocs)])
    for start in range(0, repetitions, CHUNK):
        for values, truth in zip(*simulated(row, seeds, min(CHUNK, repetitions - start), random), strict=True):
            found = accuracy.crossed_interval(values[:, None])
            yield accuracy.of_auroc(found) if len(row.aurocs) == 1 else accuracy.of_difference(found), truth


def simulated(row: Row, seeds: int, repetitions: int, random: np.random.Generator) -> tuple[Any, Any]:
    """Pseudo-values of one method, or differences between two (repetitions, seeds, patients), and the true values."""
    findings = len(row.positives)
    who = np.repeat(np.arange(PATIENTS), random.integers(1, 4, PATIENTS))
    first = np.diff(who, prepend=-1)[:, None] > 0
    ill = np.stack([random.permutation(PATIENTS) < positives for positives in row.positives], axis=1)
    labels = (ill[who] & (first | (random.random((len(who), findings)) < 0.7))).astype(float)
    patient = random.normal(0, np.sqrt(SHARED), (repetitions, 1, PATIENTS, findings))
    noise = patient[:, :, who] + random.normal(0, np.sqrt(SHARED), (repetitions, 1, *labels.shape))
    values, truths = [], []
    for auroc in row.aurocs:
        strength = norm.ppf(auroc) * np.sqrt(2 + WOBBLE**2) + random.normal(0, WOBBLE, (repetitions, seeds))
        own = random.normal(0, np.sqrt(OWN), (repetitions, seeds, *labels.shape))
        scores = (strength[..., None, None] * labels + noise + own).reshape(-1, *labels.shape)
        of_runs, _ = accuracy.pseudo_values(scores, labels, who, np.ones(findings, dtype=bool))
        values.append(of_runs.reshape(repetitions, seeds, PATIENTS))
        covers_seeds = seeds >= accuracy.LEVELS
        truths.append(np.full(repetitions, auroc) if covers_seeds else norm.cdf(strength / np.sqrt(2)).mean(1))
    return (values[0], truths[0]) if len(values) == 1 else (values[0] - values[1], truths[0] - truths[1])


def covered(row: Row, seeds: int, repetitions: int) -> float:
    """Share of the repetitions whose interval holds the truth; one without an interval does not."""
    return float(np.mean([one.low <= truth <= one.high for one, truth in intervals(row, seeds, repetitions)]))


def table(repetitions: int) -> str:
    """The table in docs/intervals.md."""
    head = ("estimate", "true AUROC", "rarest finding: positive patients", *(f"{n} seed{'s'[: n - 1]}" for n in SEEDS))
    rows = [head, ("---",) * len(head)]
    rows += [(*row.head, *(f"{covered(row, seeds, repetitions):.3f}" for seeds in SEEDS)) for row in ROWS]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(table(int(sys.argv[1]) if len(sys.argv) > 1 else REPETITIONS))
