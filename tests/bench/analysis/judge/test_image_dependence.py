"""When a selection is said to be about the image, and that comparisons name what both sides take at inference."""

from __future__ import annotations

import pytest

from bench.analysis.judge import claims as claims_module
from bench.analysis.judge.findings import finding
from bench.analysis.judge.image_dependence import dependences
from bench.analysis.judge.scores import Scores
from bench.analysis.read.frames import cost_frame, results_frame
from bench.analysis.read.results import group_runs, read_runs
from bench.analysis.show import accuracy_tables, difference_tables, run_tables


@pytest.fixture
def made(tmp_path, synthetic):
    """Builds results in which SparseContrast is evaluated in all modes, at the AUROC given for each."""

    def build(own=0.80, seeds=5, **modes):
        modes = {"dense": 0.81, "mean": 0.70, "shuffled": 0.65} | modes
        make = synthetic.Method
        methods = [
            make("untrained", 0.6, inference="dense", wobble=0.003, verdict="not trained"),
            make("simclr/dense", 0.8, wobble=0.003, inference="dense"),
            make("simclr/sparsecontrast", own, 0.5, wobble=0.003, modes=modes),
            make("simclr/patchdropout", 0.79, 0.5, wobble=0.003, inference="dense"),
        ]
        world = synthetic.World(
            patients=250, seeds=tuple(range(seeds)), draws=1, probes=("linear",), fractions={10.0: 1.0}
        )
        synthetic.write_results(tmp_path, world, methods)
        (group,) = group_runs(read_runs(tmp_path))
        return group, Scores(group, "linear"), tmp_path

    return build


@pytest.mark.parametrize(
    ("modes", "seeds", "verdict"),
    [
        ({}, 5, "shown"),
        ({"mean": 0.80}, 5, "not shown"),  # the mean selection, a crop, does as well
        ({"shuffled": 0.80}, 5, "not shown"),
        ({"mean": 0.80, "shuffled": 0.82}, 5, "not shown"),
        ({}, 4, "no verdict: 4 of the 5 seeds that it needs"),
    ],
)
def test_only_a_selection_that_beats_both_others_is_about_the_image(made, modes, seeds, verdict):
    group, scores, results = made(seeds=seeds, **modes)
    (found,) = dependences(scores, 10.0)
    assert found.verdict == verdict
    assert found.over_mean.value == pytest.approx(0.80 - modes.get("mean", 0.70), abs=0.03)
    sentences = finding(group, scores, claims_module.all_claims(group, scores, cost_frame(results)))
    (sentence,) = [one for one in sentences if "with its own selection" in one]
    assert ("accuracy depends on the image" in sentence) == (verdict == "shown")
    assert ("it is not shown" in sentence) == (verdict == "not shown")
    table = difference_tables.selections(scores)
    assert table.rows[0][0] == "simclr/sparsecontrast"
    assert table.rows[0][-1] == verdict


def test_other_selections_are_rows_of_their_own_table_alone(made):
    group, scores, _ = made()
    assert [arm.label for arm in group.other_selections] == [
        "simclr/sparsecontrast (mean selection)",
        "simclr/sparsecontrast (selection of another image)",
    ]
    table = accuracy_tables.accuracy(scores)
    labels = [row[0] for row in table.rows]
    assert labels.count("simclr/sparsecontrast") == 1
    assert "simclr/sparsecontrast (all tokens at inference)" in labels
    assert not [label for label in labels if "selection" in label]
    assert [row[0] for row in run_tables.macs(group).rows] == [
        "simclr/dense",
        "simclr/sparsecontrast",
        "simclr/patchdropout",
    ]


def test_a_rival_that_computes_all_tokens_is_met_with_all_tokens(made):
    """PatchDropout prunes in training alone: SparseContrast meets it at equal MACs with all tokens too."""
    group, scores, results = made()
    claims = claims_module.all_claims(group, scores, cost_frame(results))
    (claim,) = [one for one in claims if one.kind == "patchdropout"]
    assert "at equal MACs at inference (all tokens, 4.1 M)" in claim.text
    assert claim.value == pytest.approx(0.81 - 0.79, abs=0.02)
    (dense,) = [one for one in claims if one.kind == "accuracy"]
    assert "with 2.0 MMACs at inference against 4.1" in dense.text
    table = difference_tables.differences(scores, "dense")
    cells = {row[0]: row[table.columns.index("inference MMACs")] for row in table.rows}
    assert cells["simclr/sparsecontrast"] == "2.0 against 4.1"
    assert cells["simclr/sparsecontrast (all tokens at inference)"] == "4.1"


def test_without_an_evaluation_with_all_tokens_the_difference_in_macs_is_said(made, tmp_path):
    made()
    for path in tmp_path.glob("simclr-sparsecontrast*/evaluations/*-dense.json"):
        path.unlink()
    (group,) = group_runs(read_runs(tmp_path))
    claims = claims_module.all_claims(group, Scores(group, "linear"), cost_frame(tmp_path))
    (claim,) = [one for one in claims if one.kind == "patchdropout"]
    assert "with 2.0 MMACs at inference against 4.1" in claim.text


def test_the_tidy_data_have_the_macs_of_each_mode(made):
    _, _, results = made()
    frame = results_frame(read_runs(results))
    sparse = frame[frame["strategy"] == "sparsecontrast"].groupby("inference")["infer_gmacs"].first()
    assert sparse["dense"] == pytest.approx(0.0041)
    assert sparse["pruned"] == sparse["shuffled"] == pytest.approx(0.00205)
