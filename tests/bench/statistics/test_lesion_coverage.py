"""What the intervals of lesion area kept cover, by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench.statistics import lesion_coverage as coverage


@pytest.mark.parametrize("selector", coverage.PULLS)
def test_intervals_with_ten_patients_hold_the_truth(selector):
    """Three Monte Carlo errors about .96."""
    assert (abs(coverage.covered(coverage.Row(selector, 10), seeds=1, repetitions=200) - 0.96) < 0.045).all()


def test_the_simulated_selectors_keep_what_they_are_said_to_keep():
    """The mean over repetitions is the truth: of one seed that of its own run, of three that of the selector."""
    for seeds in (1, 3):
        found = list(coverage.intervals(coverage.Row("weak", 60), seeds, 60))
        errors = np.array([[one.value for one in estimates] - truth for estimates, truth in found])
        assert (abs(errors.mean(0)) < 4 * errors.std(0) / np.sqrt(len(errors))).all()
        assert (len({tuple(truth) for _, truth in found}) == 1) == (seeds == 3)
