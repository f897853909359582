"""What the intervals of lesion area kept cover, as docs/intervals.md has it, and by the simulation it comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.statistics.accuracy import SOUND_PATIENTS
from tests.bench.statistics import lesion_coverage as coverage

DOC = Path(__file__).parents[3] / "docs" / "intervals.md"


@pytest.fixture(scope="module")
def documented():
    """Rows of the table in the documentation: head -> shares of the three parts by number of seeds."""
    _, lines = DOC.read_text().split("| selector | patients with the finding | 1 seed | 3 seeds | 5 seeds |")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.split("\n\n")[0].splitlines()[2:]]
    three = {tuple(row[:2]): [[float(share) for share in cell.split(" / ")] for cell in row[2:]] for row in cells}
    assert list(three) == [row.head for row in coverage.ROWS]
    return {head: dict(zip(coverage.SEEDS, shares, strict=True)) for head, shares in three.items()}


def test_documented_intervals_hold_their_level_from_ten_patients_on(documented):
    sound = [found for head, found in documented.items() if int(head[1]) >= SOUND_PATIENTS]
    shares = np.array([parts for found in sound for parts in found.values()])
    assert shares.shape == (2 * 3 * len(coverage.SEEDS), 3)
    assert shares.min() >= 0.93
    assert shares.max() <= 0.985


@pytest.mark.parametrize("selector", coverage.PULLS)
def test_intervals_with_ten_patients_hold_the_truth(selector):
    """Three Monte Carlo errors about what is documented."""
    assert (abs(coverage.covered(coverage.Row(selector, 10), seeds=1, repetitions=200) - 0.96) < 0.045).all()


def test_the_simulated_selectors_keep_what_they_are_said_to_keep():
    """The mean over repetitions is the truth: of one seed that of its own run, of three that of the selector."""
    for seeds in (1, 3):
        found = list(coverage.intervals(coverage.Row("weak", 60), seeds, 60))
        errors = np.array([[one.value for one in estimates] - truth for estimates, truth in found])
        assert (abs(errors.mean(0)) < 4 * errors.std(0) / np.sqrt(len(errors))).all()
        assert (len({tuple(truth) for _, truth in found}) == 1) == (seeds == 3)


@pytest.mark.slow
def test_the_documented_figures_are_those_of_the_simulation(documented):
    """The same repetitions, of which another processor may round one or two over a bound."""
    for row in coverage.ROWS:
        for seeds, shares in documented[row.head].items():
            found = coverage.covered(row, seeds, coverage.REPETITIONS)
            assert found == pytest.approx(shares, abs=0.003), (row.head, seeds)
