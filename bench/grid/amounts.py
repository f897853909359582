"""How much data a planned grid has, in numbers and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench.specs.grid_spec import GridSpec
from bench.statistics.small_data import Amounts, Training, scored_of
from datasets.splits import Indices, Splits, draws

if TYPE_CHECKING:
    from datasets.dataset import Dataset

Draws = Mapping[float, Sequence[Indices]]
"""The labelled training images of each draw of each label fraction, in per cent."""


def draws_of(grid: GridSpec, data: Dataset, splits: Splits) -> Draws:
    """All draws of the grid's label fractions. Raises ValueError for a fraction that is less than half a patient."""
    return {percent: draws(data, splits, percent, grid.evaluation.draws) for percent in grid.evaluation.labels}


def amounts_of(grid: GridSpec, data: Dataset, splits: Splits, drawn: Draws) -> Amounts:
    """Steps, patients and positives, as `bench.statistics.small_data` judges them."""
    from bench.training.build import steps_of

    pretrained = any(method.objective != "none" for method in grid.parsed_methods())
    part, rows = ("validation", splits.val) if grid.evaluation.split == "val" else ("test", splits.test)
    return Amounts(
        steps=steps_of(len(splits.train), grid.train) if pretrained else 0,
        training={percent: _training(data, images) for percent, images in drawn.items()},
        scored=scored_of(data.labels[rows], data.patients[rows], data.label_names),
        part=part,
    )


def _training(data: Dataset, drawn: Sequence[Indices]) -> Training:
    """The fewest patients, and positive images of each finding, of some draws."""
    positives = np.min([(data.labels[index] == 1).sum(axis=0) for index in drawn], axis=0)
    return Training(
        patients=min(len(np.unique(data.patients[index])) for index in drawn),
        positives=dict(zip(data.label_names, positives.tolist(), strict=True)),
    )
