"""Reads the predictions of an evaluation: scores of the test or of the validation images, with labels and patients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from bench.analysis.read.groups import ReportRefused
from bench.statistics.accuracy import Array, patients_by_class
from datasets.archives import read_npz

Part = Literal["test", "validation"]


@dataclass(frozen=True)
class Sample:
    """The images that were scored: labels (n, L) in {0, 1, NaN}, and patients (n,) str."""

    labels: Array
    patients: Array

    @cached_property
    def names(self) -> Array:
        """The patients, each once, sorted."""
        return np.unique(self.patients)

    @cached_property
    def by_class(self) -> Array:
        """(L, 2) numbers of patients with a negative and with a positive image of each finding."""
        return patients_by_class(self.labels, self.patients)

    def labelled(self, findings: list[int]) -> int:
        """The number of patients with a known label of one of the findings (column numbers)."""
        return len(np.unique(self.patients[(~np.isnan(self.labels[:, findings])).any(axis=1)]))


def read_predictions(path: Path, findings: int, part: Part) -> tuple[Array, Sample] | None:
    """Scores (draws, images, findings) and the images; None where there are none on validation images.

    Raises ReportRefused for a file that is not one of predictions.
    """
    names = [name if part == "test" else f"validation_{name}" for name in ("scores", "labels", "patients")]
    try:
        saved = read_npz(path, names if part == "test" else (), optional=names)
    except ValueError as error:
        raise ReportRefused(f"{error} It holds a run's predictions: run it again, or move its folder away.") from error
    if len(saved) < len(names):
        return None
    scores, labels, patients = (saved[name] for name in names)
    images = patients.shape[:1]
    numbers = scores.dtype.kind == "f" and labels.dtype.kind == "f" and patients.dtype.kind == "U"
    if (
        not numbers
        or scores.size == 0
        or scores.ndim != 3
        or scores.shape[1:] != (*images, findings)
        or labels.shape != scores.shape[1:]
    ):
        raise ReportRefused(
            f"{path} does not hold scores of {findings} findings with their labels and patients: run it again, or move "
            "its folder away."
        )
    return scores, Sample(labels, patients)
