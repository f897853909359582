"""The tables of differences, cell by cell where the synthetic truth fixes it."""

from __future__ import annotations

import numpy as np
import pytest

from bench.analysis.judge.scores import Scores
from bench.analysis.read.results import group_runs, read_runs
from bench.analysis.show import difference_tables


@pytest.fixture(scope="module")
def made(tmp_path_factory, synthetic):
    results = tmp_path_factory.mktemp("differences")
    world = synthetic.World(patients=80, seeds=(0, 1, 2), draws=5, probes=("linear",))
    synthetic.write_results(results, world, cost=False)
    (group,) = group_runs(read_runs(results))
    return group, Scores(group, "linear")


def row(table, name):
    (found,) = [one for one in table.rows if one[0] == name]
    return dict(zip(table.columns, found, strict=True))


def test_differences_to_dense_and_to_fixed(made):
    _, scores = made
    dense = difference_tables.differences(scores, "dense")
    assert row(dense, "untrained")["minus"] == "simclr/dense"
    assert row(dense, "supervised (fine-tuned, first draw)")["minus"] == "simclr/dense (first draw)"
    assert row(dense, "simclr/fixed")["10 % labels"].startswith("−0.0")
    assert row(dense, "untrained")["not 0.03 below, at 10 %"] == "–"
    assert "simclr/dense" not in [one[0] for one in dense.rows]
    fixed = difference_tables.differences(scores, "fixed")
    assert row(fixed, "simclr/sparsecontrast")["better, at 10 %"] == "no verdict"  # of three seeds
    assert {one[1] for one in fixed.rows} == {"simclr/fixed"}
    assert not {"untrained", "simclr/fixed", "moco/dense"} & {one[0] for one in fixed.rows}
    assert difference_tables.differences(scores, "oracle") is None


def test_differences_finding_by_finding(made):
    group, scores = made
    table = difference_tables.differences_per_finding(scores, "dense")
    assert table.columns == ("method", *scores.names)
    assert "difference to dense, at 10 % of the labels" in table.title
    assert {one[0] for one in table.rows} == {
        *(arm.label for arm in group.arms if arm.strategy not in ("dense", "supervised")),
        "moco/dense",
        "supervised (fine-tuned, first draw)",
    }
    dense, fixed = (next(a for a in group.arms if a.label == f"simclr/{name}") for name in ("dense", "fixed"))
    pairs = [
        (a, b) for (_, a), (_, b) in zip(*(x.evaluations("linear", 10.0).values() for x in (fixed, dense)), strict=True)
    ]
    gap = np.mean([a.per_label["effusion"].auroc - b.per_label["effusion"].auroc for a, b in pairs])
    assert row(table, "simclr/fixed")["effusion"].startswith(f"{gap:+.3f} [".replace("-", "−"))
    assert "Paired" in table.note
    assert "3 seeds, 80 test patients" in table.note
    assert "none is corrected" in table.note
    assert difference_tables.differences_per_finding(scores, "oracle") is None
