"""What comes before a finding: no evidence, missing runs, runs that did not learn, few seeds, little data."""

from __future__ import annotations

import json
import re

import pytest

from bench.analysis.judge.caveats import amounts_of, caveats, unlearned
from bench.analysis.judge.claims import ANOTHER_PROCESSOR
from bench.analysis.judge.findings import finding
from bench.analysis.judge.scores import Scores
from bench.analysis.page import write_report
from bench.analysis.read.results import group_runs, read_runs
from bench.analysis.show import plots
from bench.analysis.show.styles import colour_of
from bench.statistics import small_data
from bench.statistics.small_data import Scored, Training

MARKED = "simclr/fixed †"


@pytest.fixture
def made(tmp_path, synthetic):
    """Builds a results folder of these methods; returns group and scores."""

    def build(*methods, cost=False, **world):
        options = {"patients": 40, "seeds": (0, 1), "draws": 1, "probes": ("linear",), "fractions": {10.0: 1.0}}
        synthetic.write_results(tmp_path / "results", synthetic.World(**(options | world)), list(methods), cost=cost)
        return read()

    def read():
        (group,) = group_runs(read_runs(tmp_path / "results"))
        return group, Scores(group, "linear")

    build.read = read
    return build


@pytest.fixture
def methods(synthetic):
    make = synthetic.Method
    return [
        make("untrained", 0.6, inference="dense", verdict="not trained"),
        make("simclr/dense", 0.8),
        make("simclr/fixed", 0.6, 0.5, verdict="plateaued"),
        make("simclr/patchdropout", 0.8, 0.5, inference="dense"),
    ]


def test_smoke_is_no_evidence(made, methods):
    group, scores = made(*methods, preset="smoke")
    (first, *_) = finding(group, scores, [])
    assert first.startswith("This is the smoke preset")
    assert "no evidence" in first


def test_one_seed_and_missing_runs_make_it_provisional(made, methods):
    group, scores = made(*methods, seeds=(0,))
    said = "there is one seed, so intervals are over test patients alone"
    assert any(one.startswith("Provisional") and said in one for one in caveats(group, scores))
    assert any("4 of 12 planned runs are done" in one for one in caveats(group, scores, planned=12))


def test_failed_runs_are_named_with_their_reason(made, methods, synthetic, tmp_path):
    made(*methods)
    world = synthetic.World(patients=40, seeds=(0, 1), probes=("linear",), fractions={10.0: 1.0})
    sparse = synthetic.Method("simclr/sparsecontrast", 0.8, 0.5)
    synthetic.write_run(tmp_path / "results", world, sparse, 0)
    failed = synthetic.write_run(tmp_path / "results", world, sparse, 1, status="failed", reason="loss is NaN")
    group, scores = made.read()
    text = finding(group, scores, [])
    assert text[-1] == f"Failed runs are missing from every mean: {failed.name} failed (loss is NaN)."
    assert "1 run failed; seeds are missing for simclr/sparsecontrast" in text[0]
    assert [one.split(" (")[0].split()[-1] for one in unlearned(group)] == ["failed", "plateaued", "plateaued"]
    assert unlearned(group)[1].endswith("plateaued (loss 4.84, plateau at 4.84, feature spread 0.002)")


def test_runs_that_did_not_learn_lead_the_finding_counted_and_by_method(made, methods):
    methods[3].verdict = "collapsed"
    group, scores = made(*methods, seeds=(0, 1, 2), preset="smoke")
    text = finding(group, scores, [])
    assert text[0].startswith("This is the smoke preset")
    assert text[1] == (
        "3 of 9 runs did not leave the plateau of their loss: simclr/fixed † (3 of 3). 3 of 9 runs collapsed: "
        "simclr/patchdropout † (3 of 3). Their scores are in the means."
    )
    assert text[2].startswith("No verdict on accuracy")


def test_some_runs_that_did_not_learn_are_enough(made, methods, tmp_path):
    made(*methods)
    for path in (tmp_path / "results").glob("simclr-*s1*/record.json"):
        record = json.loads(path.read_text())
        record["learning"]["verdict"] = "plateaued" if record["strategy"] == "dense" else "learned"
        path.write_text(json.dumps(record))
    group, scores = made.read()
    assert [arm.label for arm in group.trained] == ["simclr/dense †", "simclr/fixed †", "simclr/patchdropout"]
    (text,) = [one for one in caveats(group, scores) if "did not leave" in one]
    assert text.startswith("2 of 6 runs did not leave the plateau of their loss: simclr/dense † (1 of 2), simclr/fixed")
    assert text.endswith("Differences to dense are differences to networks that did not all learn.")


def test_they_are_marked_in_every_table_and_figure_and_no_front_is_drawn(made, methods, tmp_path):
    group, scores = made(*methods, cost=True, seeds=(0, 1, 2, 3, 4), patients=150)
    summary = write_report(tmp_path / "results", tmp_path / "reports")
    page = (tmp_path / "reports" / "report.md").read_text()
    cells = [part.strip() for line in page.splitlines() if line.startswith("|") for part in line.split("|")]
    assert MARKED in cells
    assert "simclr/fixed" not in cells
    means = "† Means include runs that did not learn: simclr/fixed (5 of 5)."
    tables = re.findall(r"^\*\*.*\*\*\n\n((?:\|.*\n)+)\n(.*)$", page, re.M)
    assert len(tables) > 8
    assert [means in note for _, note in tables] == [MARKED in table for table, _ in tables]
    for name in ("labels", "cost", "training"):
        (caption,) = re.findall(rf"!\[(.*)\]\(figures/1-phantom-{name}", page)
        assert means in caption
        drawn = (tmp_path / "reports" / "figures" / f"1-phantom-{name}.svg").read_text()
        assert f"<!-- {MARKED} -->" in drawn
        assert "<!-- † with runs that" in drawn
        assert "<!-- front -->" not in drawn
    assert "no front is drawn: some runs did not learn." in page
    assert MARKED in summary.table
    assert means in summary.table.replace("\n", " ")
    assert r"simclr/fixed \dag{}" in (tmp_path / "reports" / "report.tex").read_text()
    arm = next(one for one in group.arms if one.label == MARKED)
    style = plots.style_of(arm, group)
    assert (style["markerfacecolor"], style["markeredgecolor"]) == ("white", colour_of("fixed", ()))
    dense = plots.style_of(next(one for one in group.arms if one.label == "simclr/dense"), group)
    assert dense["markerfacecolor"] == dense["color"]


def test_without_such_runs_nothing_is_marked_and_there_is_a_front(made, methods, tmp_path):
    methods[2].verdict = "learned"
    _, scores = made(*methods, cost=True, seeds=(0, 1, 2, 3, 4), patients=150)
    write_report(tmp_path / "results", tmp_path / "reports")
    assert "†" not in (tmp_path / "reports" / "report.md").read_text()
    assert plots.without_front(scores) == ""
    assert "<!-- front -->" in (tmp_path / "reports" / "figures" / "1-phantom-cost.svg").read_text()


@pytest.mark.parametrize("seeds", [1, 4, 5])
def test_fewer_than_five_seeds_say_that_processors_differ_beside_every_accuracy(made, methods, tmp_path, seeds):
    made(*methods, seeds=tuple(range(seeds)), patients=150)
    summary = write_report(tmp_path / "results", tmp_path / "reports")
    page = (tmp_path / "reports" / "report.md").read_text()
    notes = [one for one in page.split("\n\n") if "over seeds" in one and "Plateau loss" not in one]
    notes = [one for one in notes if not one.startswith(("Chosen by cross-validation", "- "))]
    notes += [one for one in page.split("\n\n") if one.startswith(("Label efficiency", "Macro AUROC at", "Paired:"))]
    assert len(notes) >= 7
    assert [ANOTHER_PROCESSOR in one for one in notes] == [seeds < 5] * len(notes)
    assert (ANOTHER_PROCESSOR in summary.table) == (seeds < 5)
    assert any(ANOTHER_PROCESSOR in one for one in summary.finding) == (seeds < 5)


def test_amounts_are_those_of_the_records(made, methods):
    """Of the draw and the run with the fewest; the scored images as the predictions have them."""
    group, scores = made(*methods, fractions={1.0: 0.5, 10.0: 1.0})
    found = amounts_of(scores)
    assert found.steps == 225
    assert found.training[1.0] == Training(8, {"nodule": 1, "consolidation": 2, "effusion": 3} | last(8))
    assert found.training[10.0].patients == 72
    truth, who = scores.sample.labels, scores.sample.patients
    has = {name: {*who[truth[:, i] == 1]} for i, name in enumerate(scores.names)}
    lacks = {name: {*who[truth[:, i] == 0]} for i, name in enumerate(scores.names)}
    for i, name in enumerate(scores.names):
        assert found.scored[name] == Scored(len(lacks[name]), len(has[name]), int((truth[:, i] == 1).sum()), 2)
    said = small_data.sentences(found)
    assert said
    start = len(caveats(group, scores))
    assert finding(group, scores, [])[start : start + len(said)] == said


def last(patients):
    """Positives of the last two findings, as the synthetic subsets have them."""
    return {"cardiomegaly": int(2 * patients * 0.18), "pneumothorax": int(2 * patients * 0.1)}


def test_without_predictions_only_training_amounts_are_known(made, methods):
    _, scores = made(*methods, predictions=False)
    assert scores.sample is None
    assert (amounts_of(scores).scored, amounts_of(scores).training[10.0].patients) == ({}, 72)
