"""What intervals cover, as docs/intervals.md has it, and by the simulation that it comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.statistics.accuracy import FEWEST_PATIENTS, SOUND_PATIENTS
from tests.bench.statistics import coverage

DOC = Path(__file__).parents[3] / "docs" / "intervals.md"


@pytest.fixture(scope="module")
def documented():
    """Rows of the table in the documentation: head -> figures by number of seeds."""
    _, lines = DOC.read_text().split("| 1 seed | 3 seeds | 5 seeds |")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.split("\n\n")[0].splitlines()[2:]]
    rows = {tuple(row[:3]): dict(zip(coverage.SEEDS, map(float, row[3:]), strict=True)) for row in cells}
    assert list(rows) == [row.head for row in coverage.ROWS]
    return rows


def test_documented_intervals_hold_their_level_from_ten_positive_patients_on(documented):
    sound = [share for row, found in documented.items() if int(row[2]) >= SOUND_PATIENTS for share in found.values()]
    assert len(sound) == 3 * 11
    assert min(sound) >= 0.93
    assert max(sound) <= 0.985


def test_intervals_that_are_not_given_would_not_hold_their_level(documented):
    few = [row for row in documented if int(row[2]) < FEWEST_PATIENTS and "difference" not in row[0]]
    assert len(few) == 3
    assert all(min(documented[row].values()) < 0.91 for row in few)


def test_an_interval_with_ten_positive_patients_holds_the_truth():
    """Without the scaled placements, the patients' own degrees of freedom and the logit scale: .86."""
    (row,) = [one for one in coverage.ROWS if one.head == ("one finding", "0.85", "10")]
    assert coverage.covered(row, seeds=1, repetitions=400) > 0.9


def test_the_simulated_methods_have_the_aurocs_that_they_are_said_to_have():
    """The mean over repetitions is the truth: of one seed that of its own run, of three that of the method."""
    row = coverage.Row("one finding", (0.85,), (60,))
    for seeds in (1, 3):
        found = [(one.value, truth) for one, truth in coverage.intervals(row, seeds, 200)]
        error = np.array([value - truth for value, truth in found])
        assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(error))
        assert (len({truth for _, truth in found}) == 1) == (seeds == 3)


@pytest.mark.slow
def test_the_documented_figures_are_those_of_the_simulation(documented):
    """The same repetitions, of which another processor may round one or two over a bound."""
    for row in coverage.ROWS:
        for seeds, share in documented[row.head].items():
            found = coverage.covered(row, seeds, coverage.REPETITIONS)
            assert found == pytest.approx(share, abs=0.002), (row.head, seeds)
