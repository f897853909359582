"""Scores of a group: the constructed truth comes out, pairing pays, undefined findings leave every mean."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import special
from sklearn.metrics import roc_auc_score

from bench.analysis.judge.claims import all_claims, signed, span
from bench.analysis.judge.findings import finding
from bench.analysis.judge.scores import Scores
from bench.analysis.read.groups import ReportRefused
from bench.analysis.read.results import group_runs, read_runs
from bench.analysis.show import accuracy_tables, difference_tables

SAVED = (("evaluations", "json"), ("predictions", "npz"))


def scores_of(folder, probe="linear"):
    (group,) = group_runs(read_runs(folder))
    return Scores(group, probe)


def arm_of(scores, name):
    return next(arm for arm in scores.group.arms if arm.label == name)


def named(synthetic, *names):
    return [one for one in synthetic.headline() if one.name in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, synthetic):
    results = tmp_path_factory.mktemp("scores")
    world = synthetic.World(patients=250, seeds=(0, 1, 2), draws=5, probes=("linear",))
    return synthetic.write_results(
        results, world, named(synthetic, "untrained", "simclr/dense", "simclr/fixed"), cost=False
    )


def test_estimates_hold_the_constructed_auroc(folder):
    scores = scores_of(folder)
    for name, truth in (("untrained", 0.62), ("simclr/dense", 0.82), ("simclr/fixed", 0.75)):
        found = scores.estimate(arm_of(scores, name), 100.0)
        assert found.low < truth < found.high
        assert found.basis == ("seeds", "patients")
        assert (found.seeds, found.patients) == (3, 250)


def test_an_estimate_is_the_mean_over_seeds_draws_and_findings_by_sklearn(folder):
    scores = scores_of(folder)
    arm = arm_of(scores, "simclr/dense")
    values = []
    for run in arm.runs:
        with np.load(run.folder / "predictions" / "linear-10-pruned.npz") as saved:
            labels = saved["labels"]
            values.append(
                np.mean([[roc_auc_score(labels[:, i], one[:, i]) for i in range(5)] for one in saved["scores"]])
            )
    found = scores.estimate(arm, 10.0)
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    assert found.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_a_paired_difference_is_far_tighter_than_two_unpaired_ones(folder):
    scores = scores_of(folder)
    dense, fixed = arm_of(scores, "simclr/dense"), arm_of(scores, "simclr/fixed")
    gap, one, other = scores.difference(dense, fixed, 10.0), scores.estimate(dense, 10.0), scores.estimate(fixed, 10.0)
    assert gap.value == pytest.approx(one.value - other.value, abs=1e-9)
    unpaired = np.hypot(one.high - one.low, other.high - other.low)
    assert gap.high - gap.low < 0.7 * unpaired


def test_the_interval_of_an_auroc_is_symmetric_in_its_odds_and_that_of_a_difference_is_not(folder):
    scores = scores_of(folder)
    dense, fixed = arm_of(scores, "simclr/dense"), arm_of(scores, "simclr/fixed")
    for name in (None, "effusion"):
        found = scores.estimate(dense, 10.0, name)
        low, middle, high = special.logit([found.low, found.value, found.high])
        assert middle - low == pytest.approx(high - middle)
        gap = scores.difference(dense, fixed, 10.0, name and (name,))
        assert gap.value - gap.low == pytest.approx(gap.high - gap.value)


def test_the_difference_on_one_finding_is_that_of_its_aurocs_by_sklearn(folder):
    scores = scores_of(folder)
    dense, fixed = arm_of(scores, "simclr/dense"), arm_of(scores, "simclr/fixed")
    means = []
    for arm in (dense, fixed):
        values = []
        for run in arm.runs:
            with np.load(run.folder / "predictions" / f"linear-10-{arm.inference}.npz") as saved:
                values += [roc_auc_score(saved["labels"][:, 2], one[:, 2]) for one in saved["scores"]]
        means.append(np.mean(values))
    found = scores.difference(dense, fixed, 10.0, ("effusion",))
    assert found.value == pytest.approx(means[0] - means[1], abs=1e-9)
    each = [scores.difference(dense, fixed, 10.0, (name,)).value for name in scores.names]
    assert scores.difference(dense, fixed, 10.0).value == pytest.approx(np.mean(each))


@pytest.mark.parametrize(("positives", "bounded", "rough"), [(4, False, False), (7, True, True), (12, True, False)])
def test_the_rarest_finding_decides_on_an_interval(tmp_path, synthetic, positives, bounded, rough):
    world = synthetic.World(patients=200, seeds=(0, 1, 2), draws=1, probes=("linear",), fractions={10.0: 1.0})
    world.truth[:, 0] = np.arange(400) < 2 * positives  # two images a patient
    results = synthetic.write_results(tmp_path, world, named(synthetic, "simclr/dense", "simclr/fixed"), cost=False)
    scores = scores_of(results)
    dense, fixed = arm_of(scores, "simclr/dense"), arm_of(scores, "simclr/fixed")
    rare = [scores.estimate(dense, 10.0, "nodule"), scores.difference(dense, fixed, 10.0, ("nodule",))]
    macro = [scores.estimate(dense, 10.0), scores.difference(dense, fixed, 10.0)]
    for found in (*rare, *macro):
        assert (found.bounded, found.rough) == (bounded, rough)
        assert found.reason == ("" if bounded else "4 test patients with nodule, and an interval needs 5")
    common = scores.estimate(dense, 10.0, "effusion")
    assert (common.bounded, common.rough) == (True, False)
    (row,) = [one for one in accuracy_tables.per_finding(scores).rows if one[0] == "simclr/dense"]
    low, high = f"{rare[0].low:.3f}", f"{rare[0].high:.3f}"
    assert row[1] == f"{rare[0].value:.3f} " + (f"[{low}, {high}]{' (rough)' * rough}" if bounded else "(no interval)")
    note = accuracy_tables.accuracy(scores).note
    assert ("Rough: " in note) == rough
    assert ("No interval: 4 test patients with nodule, and" in note) == (not bounded)


def test_a_finding_that_nearly_all_have_is_as_rare(tmp_path, synthetic):
    world = synthetic.World(patients=60, seeds=(0, 1, 2), draws=1, probes=("linear",), fractions={10.0: 1.0})
    world.truth[:, 0] = np.arange(120) >= 6
    results = synthetic.write_results(tmp_path, world, named(synthetic, "simclr/dense"), cost=False)
    scores = scores_of(results)
    found = scores.estimate(scores.group.arms[0], 10.0, "nodule")
    assert found.reason == "3 test patients without nodule, and an interval needs 5"


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_have_intervals_over_test_patients_alone_named_so(tmp_path, synthetic, seeds):
    world = synthetic.World(patients=150, seeds=tuple(range(seeds)), draws=4, probes=("linear",))
    results = synthetic.write_results(tmp_path, world, named(synthetic, "simclr/dense", "simclr/fixed"), cost=False)
    scores = scores_of(results)
    dense, fixed = arm_of(scores, "simclr/dense"), arm_of(scores, "simclr/fixed")
    for found in (scores.estimate(dense, 10.0), scores.difference(dense, fixed, 10.0)):
        assert (found.basis, found.seeds) == (("patients",), seeds)
        assert found.high - found.low < 0.2  # with one degree of freedom: several times as wide
    for table in (
        accuracy_tables.accuracy(scores),
        accuracy_tables.per_finding(scores),
        difference_tables.differences(scores, "dense"),
        difference_tables.differences_per_finding(scores, "dense"),
    ):
        assert "95 % intervals: test patients alone (t); seeds, fewer than 3, are taken as they are" in table.note


def test_an_arm_that_lacks_seeds_has_its_intervals_marked(tmp_path, synthetic):
    world = synthetic.World(patients=150, seeds=(0, 1, 2), draws=1, probes=("linear",), fractions={10.0: 1.0})
    dense, fixed = named(synthetic, "simclr/dense", "simclr/fixed")
    synthetic.write_results(tmp_path, world, [dense], cost=False)
    for seed in (0, 1):
        synthetic.write_run(tmp_path, world, fixed, seed)
    scores = scores_of(tmp_path)
    table = accuracy_tables.accuracy(scores)
    cells = {row[0]: row[-1] for row in table.rows}
    assert cells["simclr/fixed"].endswith("] (patients alone) * (2)")
    assert cells["simclr/dense"].endswith("]")
    assert "; (patients alone): fewer than 3 seeds, test patients alone." in table.note


@pytest.fixture(scope="module")
def flat(tmp_path_factory, synthetic):
    """Nodule and pneumothorax can't be told among the validation patients; among the test patients all can."""
    world = synthetic.World(
        patients=150,
        seeds=(0, 1, 2),
        draws=3,
        probes=("linear",),
        validation=300,
        flat=("nodule", "pneumothorax"),
        fractions={10.0: 1.0},
    )
    names = ("untrained", "simclr/dense", "simclr/fixed", "simclr/sparsecontrast")
    return synthetic.write_results(tmp_path_factory.mktemp("flat"), world, named(synthetic, *names), cost=False)


def test_findings_are_chosen_on_validation_patients_alone(flat):
    scores = scores_of(flat)
    assert scores.chosen_findings == ("consolidation", "effusion", "cardiomegaly")
    dense, untrained = scores.dense_and_untrained
    assert (dense.label, untrained.label) == ("simclr/dense", "untrained")
    assert scores.difference(dense, untrained, 10.0, ("nodule",)).low > 0  # had test patients been asked


def test_the_second_macro_is_over_the_chosen_findings_and_names_the_others(flat):
    scores = scores_of(flat)
    table = difference_tables.differences_over_chosen(scores)
    arm, dense = arm_of(scores, "simclr/fixed"), arm_of(scores, "simclr/dense")
    gap = np.mean([scores.difference(arm, dense, 10.0, (name,)).value for name in scores.chosen_findings])
    (row,) = [one for one in table.rows if one[0] == "simclr/fixed"]
    macro = span(scores.difference(arm, dense, 10.0, scores.chosen_findings))
    assert row[1:] == ("simclr/dense", "2.0 against 4.1", macro)
    assert row[3].startswith(signed(gap))
    assert gap != pytest.approx(scores.difference(arm, dense, 10.0).value, abs=1e-3)
    assert "Left out: nodule, pneumothorax." in table.note
    text = finding(scores.group, scores, all_claims(scores.group, scores, pd.DataFrame()))
    (others,) = [one for one in text if one.startswith("At 10 % of the labels the interval of simclr/dense minus")]
    assert "above 0 for consolidation, effusion and cardiomegaly, and not for nodule and pneumothorax:" in others
    sparse = scores.difference(arm_of(scores, "simclr/sparsecontrast"), dense, 10.0, scores.chosen_findings)
    over = "Over consolidation, effusion and cardiomegaly, chosen on the validation patients, simclr/sparsecontrast"
    assert f"{over} against dense at 10 % of the labels: {span(sparse)} macro AUROC." in text


def test_without_predictions_findings_are_chosen_by_the_recorded_aurocs(flat, tmp_path):
    for folder in flat.glob("*/predictions"):
        shutil.copytree(folder.parent, tmp_path / folder.parent.name, ignore=shutil.ignore_patterns("predictions"))
    scores = scores_of(tmp_path)
    found = scores._on_validation("effusion")
    values = [
        [one.validation["effusion"] for _, one in arm.evaluations("linear", 10.0).values()]
        for arm in scores.dense_and_untrained
    ]
    assert found.value == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    assert found.basis == ("seeds",)
    assert "effusion" in scores.chosen_findings
    assert "nodule" not in scores.chosen_findings


def test_where_no_finding_is_chosen_it_is_said_and_there_is_no_second_macro(tmp_path, synthetic):
    world = synthetic.World(
        patients=80, probes=("linear",), fractions={10.0: 1.0}, validation=100, flat=synthetic.LABELS
    )
    synthetic.write_results(tmp_path, world, named(synthetic, "untrained", "simclr/dense", "simclr/fixed"), cost=False)
    scores = scores_of(tmp_path)
    assert scores.chosen_findings == ()
    assert difference_tables.differences_over_chosen(scores) is None
    text = finding(scores.group, scores, [])
    assert any(one.endswith("among the validation patients lies above 0 for no finding.") for one in text)


def test_records_without_validation_scores_have_no_second_macro_and_say_so(folder):
    scores = scores_of(folder)
    assert scores.chosen_findings is None
    assert difference_tables.differences_over_chosen(scores) is None
    assert any("There is no interval of the linear probe on validation patients" in note for note in scores.notes)


def test_validation_patients_too_few_for_an_interval_choose_nothing(tmp_path, synthetic):
    world = synthetic.World(patients=80, probes=("linear",), fractions={10.0: 1.0}, validation=20)
    world.validation_truth[:] = (np.arange(20) < 3)[:, None]
    synthetic.write_results(tmp_path, world, named(synthetic, "untrained", "simclr/dense"), cost=False)
    scores = scores_of(tmp_path)
    assert scores.chosen_findings is None
    assert any("There is no interval of the linear probe on validation patients" in note for note in scores.notes)
    assert not [one for one in finding(scores.group, scores, []) if "among the validation patients" in one]


def test_other_validation_patients_are_refused(tmp_path, synthetic):
    for seed, validation in ((0, 100), (1, 101)):
        world = synthetic.World(patients=60, probes=("linear",), fractions={10.0: 1.0}, validation=validation)
        for method in named(synthetic, "untrained", "simclr/dense"):
            synthetic.write_run(tmp_path, world, method, seed)
    scores = scores_of(tmp_path)
    with pytest.raises(ReportRefused, match="other validation patients"):
        assert scores.chosen_findings


def test_an_undefined_finding_leaves_every_fraction_and_is_named(tmp_path, synthetic):
    world = synthetic.World(patients=60, seeds=(0,), draws=2, probes=("linear",))
    results = synthetic.write_results(tmp_path, world, named(synthetic, "simclr/dense", "simclr/fixed"), cost=False)
    path = next(results.glob("simclr-fixed*/evaluations/linear-1-pruned.json"))
    one = json.loads(path.read_text())
    del one["per_label"]["effusion"]
    one["undefined"] = {"effusion": "draw 1 has a single class"}
    path.write_text(json.dumps(one))
    scores = scores_of(results)
    for fraction in (1.0, 10.0, 100.0):
        assert scores.findings(fraction) == ("nodule", "consolidation", "cardiomegaly", "pneumothorax")
    assert any("effusion" in note and "draw 1 has a single class" in note for note in scores.notes)
    assert scores.estimate(arm_of(scores, "simclr/dense"), 1.0, "effusion") is None
    assert scores.estimate(arm_of(scores, "simclr/dense"), 10.0, "effusion") is not None
    left = scores.estimate(arm_of(scores, "simclr/dense"), 10.0).value
    kept = [scores.estimate(arm_of(scores, "simclr/dense"), 10.0, name).value for name in scores.findings(10.0)]
    assert left == pytest.approx(np.mean(kept))


def test_fractions_without_a_common_finding_get_their_own_and_say_so(tmp_path, synthetic):
    world = synthetic.World(patients=60, seeds=(0,), probes=("linear",), labels=("nodule", "effusion"))
    results = synthetic.write_results(tmp_path, world, named(synthetic, "simclr/dense"), cost=False)
    for fraction, gone in (("1", "nodule"), ("10", "effusion")):
        path = next(results.glob(f"*/evaluations/linear-{fraction}-pruned.json"))
        one = json.loads(path.read_text())
        del one["per_label"][gone]
        path.write_text(json.dumps(one | {"undefined": {gone: "a single class"}}))
    scores = scores_of(results)
    assert [scores.findings(f) for f in (1.0, 10.0, 100.0)] == [("effusion",), ("nodule",), ("nodule", "effusion")]
    assert any("can't be compared with each other" in note for note in scores.notes)


def test_without_predictions_intervals_are_over_seeds(tmp_path, synthetic):
    world = synthetic.World(patients=60, predictions=False, probes=("linear",))
    results = synthetic.write_results(tmp_path, world, named(synthetic, "simclr/dense", "simclr/fixed"), cost=False)
    scores = scores_of(results)
    dense, fixed = arm_of(scores, "simclr/dense"), arm_of(scores, "simclr/fixed")
    found = scores.estimate(dense, 10.0)
    assert (found.basis, found.rough, found.bounded) == (("seeds",), False, True)
    covered = "95 % intervals: seeds alone (t), for the records keep no predictions."
    assert covered in accuracy_tables.accuracy(scores).note
    means = [[one.macro_auroc for _, one in arm.evaluations("linear", 10.0).values()] for arm in (dense, fixed)]
    assert scores.difference(dense, fixed, 10.0).value == pytest.approx(np.mean(means[0]) - np.mean(means[1]))


def test_other_test_patients_are_refused(tmp_path, synthetic):
    for seed, patients in ((0, 60), (1, 61)):
        world = synthetic.World(patients=patients, probes=("linear",))
        folder = synthetic.write_run(tmp_path, world, named(synthetic, "simclr/dense")[0], seed)
        record = json.loads((folder / "record.json").read_text())
        record["splits"]["test"]["hash"] = "same"
        (folder / "record.json").write_text(json.dumps(record))
    scores = scores_of(tmp_path)
    with pytest.raises(ReportRefused, match="other test patients"):
        scores.estimate(scores.group.arms[0], 10.0)


def test_the_reference_is_of_the_same_objective_and_keep(tmp_path, synthetic):
    world = synthetic.World(patients=60, seeds=(0,), probes=("linear",))
    make = synthetic.Method
    methods = [make("simclr/dense", 0.8), make("moco/dense", 0.8), make("untrained", 0.6, inference="dense")]
    for keep in (0.5, 0.7):
        methods += [make("simclr/fixed", 0.7, keep), make("simclr/sparsecontrast", 0.8, keep)]
    methods.append(make("moco/sparsecontrast", 0.8, 0.5))
    scores = scores_of(synthetic.write_results(tmp_path, world, methods, cost=False))

    def reference(name, strategy):
        found = scores.reference(arm_of(scores, name), strategy)
        return found.label if found else None

    assert reference("simclr/sparsecontrast keep 0.7", "fixed") == "simclr/fixed keep 0.7"
    assert reference("simclr/sparsecontrast keep 0.5", "dense") == "simclr/dense"
    assert reference("moco/sparsecontrast", "dense") == "moco/dense"
    assert reference("moco/sparsecontrast", "fixed") is None
    assert reference("moco/dense", "dense") == "simclr/dense"
    assert reference("untrained", "dense") == "simclr/dense"
    assert reference("simclr/dense", "dense") is None


def test_a_difference_is_on_the_draws_that_both_have(tmp_path, synthetic):
    """`supervised` is trained on the first draw alone, and one draw can be luckier than another."""
    world = synthetic.World(patients=80, seeds=(0, 1, 2), draws=3, probes=("linear",))
    results = synthetic.write_results(tmp_path, world, named(synthetic, "simclr/dense", "simclr/fixed"), cost=False)
    for folder in results.glob("simclr-fixed*"):
        file, predictions = (folder / f"{kind}/linear-10-pruned.{end}" for kind, end in SAVED)
        one = json.loads(file.read_text())
        file.write_text(json.dumps(one | {"draws": one["draws"][:1]}))
        saved = dict(np.load(predictions))
        np.savez(predictions, **(saved | {"scores": saved["scores"][:1]}))
    scores = scores_of(results)
    dense, fixed = arm_of(scores, "simclr/dense"), arm_of(scores, "simclr/fixed")
    assert (scores.draws(dense, 10.0), scores.draws(fixed, 10.0), scores.draws(fixed, 100.0)) == (3, 1, 1)
    expected = []
    for run in dense.runs:
        with np.load(run.folder / "predictions" / f"linear-10-{dense.inference}.npz") as saved:
            first, truth = saved["scores"][0], saved["labels"]
        expected.append(np.mean([roc_auc_score(truth[:, i], first[:, i]) for i in range(truth.shape[1])]))
    gap = scores.difference(dense, fixed, 10.0)
    assert gap.value == pytest.approx(np.mean(expected) - scores.estimate(fixed, 10.0).value, abs=1e-9)
    assert scores.difference(fixed, dense, 10.0).value == pytest.approx(-gap.value, abs=1e-12)
    assert scores.estimate(dense, 10.0, draws=1).value == pytest.approx(np.mean(expected), abs=1e-9)
    note = accuracy_tables.accuracy(scores).note
    covered = (
        "seeds, draws of the labelled patients where there are several and test patients as crossed random effects"
    )
    assert covered in note


def test_without_predictions_single_draws_are_known_as_macro_means_alone(tmp_path, synthetic):
    """A mean over draws does not stand in for the first draw."""
    world = synthetic.World(patients=60, draws=3, predictions=False, probes=("linear",), fractions={10.0: 1.0})
    results = synthetic.write_results(
        tmp_path, world, named(synthetic, "supervised", "simclr/dense", "simclr/fixed"), cost=False
    )
    for path in results.glob("simclr-dense*/evaluations/*.json"):
        one = json.loads(path.read_text())
        for number, draw in enumerate(one["draws"]):
            draw |= {"macro_auroc": 0.5 + 0.1 * number, "macro_auprc": 0.2 + 0.1 * number}
        path.write_text(json.dumps(one))
    scores = scores_of(results)
    supervised, dense = arm_of(scores, "supervised"), arm_of(scores, "simclr/dense")
    assert scores.estimate(dense, 10.0, draws=1).value == pytest.approx(0.5)
    gap = scores.estimate(supervised, 10.0).value - 0.5
    assert scores.difference(supervised, dense, 10.0).value == pytest.approx(gap)
    assert scores.precisions(dense, 10.0, 2) == pytest.approx([0.25] * 3)
    assert scores.difference(supervised, dense, 10.0, ("effusion",)) is None
    assert scores.estimate(dense, 10.0, "effusion", draws=1) is None
    assert scores.estimate(dense, 10.0, "effusion") is not None


def test_the_number_of_test_patients_is_of_those_with_a_label_of_the_findings(tmp_path, synthetic):
    world = synthetic.World(patients=60, seeds=(0, 1, 2), draws=1, probes=("linear",), fractions={10.0: 1.0})
    results = synthetic.write_results(tmp_path, world, named(synthetic, "simclr/dense"), cost=False)
    for path in results.glob("*/predictions/*.npz"):
        saved = dict(np.load(path))
        saved["labels"][:20, 2] = np.nan  # two images a patient
        np.savez(path, **saved)
    scores = scores_of(results)
    (dense,) = scores.group.arms
    assert scores.estimate(dense, 10.0, "effusion").patients == 50
    assert scores.estimate(dense, 10.0, "nodule").patients == scores.estimate(dense, 10.0).patients == 60
