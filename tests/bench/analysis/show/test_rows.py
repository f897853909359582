"""No row, line or difference sets a first draw beside a mean over draws without saying so."""

from __future__ import annotations

import re

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from bench.analysis.judge.scores import Scores
from bench.analysis.page import write_report
from bench.analysis.read.results import group_runs, read_runs
from bench.analysis.show import accuracy_tables, difference_tables, plots
from bench.analysis.show.rows import rows_of

SUPERVISED, DENSE = "supervised (fine-tuned, first draw)", "simclr/dense (first draw)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, synthetic):
    world = synthetic.World(patients=120, seeds=(0, 1), draws=4, probes=("linear",))
    names = ("untrained", "supervised", "simclr/dense", "simclr/fixed", "moco/dense")
    methods = [one for one in synthetic.headline() if one.name in names]
    return synthetic.write_results(tmp_path_factory.mktemp("rows"), world, methods, cost=False)


@pytest.fixture(scope="module")
def scores(folder):
    (group,) = group_runs(read_runs(folder))
    return Scores(group, "linear")


def first_draw(folder, score):
    """Mean over seeds of a score of dense on the first draw at 10 % of the labels, by finding; by scikit-learn."""
    values = []
    for path in sorted(folder.glob("simclr-dense*/predictions/linear-10-*.npz")):
        with np.load(path) as saved:
            truth, first = saved["labels"], saved["scores"][0]
        values.append([score(truth[:, i], first[:, i]) for i in range(truth.shape[1])])
    return np.mean(values, axis=0)


def cell(table, label, column):
    (found,) = [row for row in table.rows if row[0] == label]
    return found[table.columns.index(column)]


def test_supervised_and_its_reference_stand_on_the_same_draw_in_every_table(folder, scores):
    aurocs = first_draw(folder, roc_auc_score)
    macro = accuracy_tables.accuracy(scores)
    assert cell(macro, DENSE, "10 % labels").startswith(f"{aurocs.mean():.3f} ")
    assert cell(macro, DENSE, "10 % labels") != cell(macro, "simclr/dense", "10 % labels")
    assert cell(macro, DENSE, "100 % labels") == cell(macro, "simclr/dense", "100 % labels")
    labels = [row[0] for row in macro.rows]
    assert labels[labels.index(SUPERVISED) + 1] == DENSE
    findings = accuracy_tables.per_finding(scores)
    for name, value in zip(scores.names, aurocs, strict=True):
        assert cell(findings, DENSE, name).startswith(f"{value:.3f} ")
    precision = accuracy_tables.precision(scores)
    assert cell(precision, DENSE, "10 % labels").startswith(
        f"{first_draw(folder, average_precision_score).mean():.3f} "
    )
    for table in (macro, findings, precision):
        assert [row[0] for row in table.rows].index(SUPERVISED) >= 0
        assert "Rows of the first draw can be compared with each other, and not with the others" in table.note
        assert "a network trained from scratch on the labels, end to end, and no probe" in table.note


def test_a_difference_says_that_it_is_on_the_first_draw(scores):
    table = difference_tables.differences(scores, "dense")
    assert cell(table, SUPERVISED, "minus") == DENSE
    assert cell(table, "untrained", "minus") == cell(table, "moco/dense", "minus") == "simclr/dense"
    macro = accuracy_tables.accuracy(scores)
    both = [float(cell(macro, label, "10 % labels").split()[0]) for label in (SUPERVISED, DENSE)]
    gap = float(cell(table, SUPERVISED, "10 % labels").split()[0].replace("−", "-"))
    assert gap == pytest.approx(both[0] - both[1], abs=0.0011)  # of three rounded numbers
    assert SUPERVISED in [row[0] for row in difference_tables.differences_per_finding(scores, "dense").rows]


def test_a_fraction_with_a_single_draw_needs_no_further_row(scores):
    assert [row.label for row in rows_of(scores, [100.0])] == [
        "untrained",
        "supervised (fine-tuned)",
        "simclr/dense",
        "simclr/fixed",
        "moco/dense",
    ]


def test_subgroups_leave_out_what_is_no_mean_over_draws(scores):
    table = accuracy_tables.subgroups(scores)
    assert not [row for row in table.rows if "supervised" in row[0]]
    assert f"Left out, for its scores are no means over draws: {SUPERVISED}." in table.note


def test_figure_and_report_never_name_supervised_without_its_draw(folder, scores, tmp_path):
    plots.label_efficiency(scores, tmp_path, "labels")
    drawn = (tmp_path / "labels.svg").read_text()  # matplotlib names each text in a comment
    assert f"<!-- {SUPERVISED} -->" in drawn
    assert f"<!-- {DENSE} -->" in drawn
    assert "<!-- supervised -->" not in drawn
    assert "(supervised: fine-tuned) -->" in drawn  # the second line of the axis' name
    write_report(folder, tmp_path / "reports")
    page = (tmp_path / "reports" / "report.md").read_text().replace("\\", "")
    cells = [part.strip() for line in page.splitlines() if line.startswith("|") for part in line.split("|")]
    assert {one for one in cells if re.match("supervised", one)} == {SUPERVISED}
