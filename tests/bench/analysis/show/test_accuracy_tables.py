"""What the tables say, cell by cell where the synthetic truth fixes it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bench.analysis.judge.scores import Scores
from bench.analysis.read.frames import cost_frame
from bench.analysis.read.results import group_runs, read_runs
from bench.analysis.show import accuracy_tables, run_tables, settings_tables, time_tables
from bench.analysis.show.cells import NONE


@pytest.fixture(scope="module")
def made(tmp_path_factory, synthetic):
    results = tmp_path_factory.mktemp("tables")
    world = synthetic.World(patients=80, seeds=(0, 1, 2), draws=5)
    synthetic.write_results(results, world)
    dense = next(results.glob("simclr-dense*s2*"))
    (dense / "evaluations" / "linear-100-pruned.json").unlink()  # a seed that is not there yet
    (group,) = group_runs(read_runs(results))
    return group, Scores(group, "linear"), cost_frame(results)


def row(table, name):
    (found,) = [one for one in table.rows if one[0] == name]
    return dict(zip(table.columns, found, strict=True))


def test_accuracy_gives_mean_spread_interval_and_marks_what_is_provisional(made):
    group, scores, _ = made
    table = accuracy_tables.accuracy(scores)
    assert table.columns == ("method", "keep", "seeds", "1 % labels", "10 % labels", "100 % labels")
    supervised = ["supervised (fine-tuned, first draw)", "simclr/dense (first draw)"]
    labels = [[arm.label] if arm.strategy != "supervised" else supervised for arm in group.arms]
    assert [one[0] for one in table.rows] == [label for row in labels for label in row]
    sparse = row(table, "simclr/sparsecontrast")
    arm = next(one for one in group.arms if one.label == "simclr/sparsecontrast")
    found = scores.estimate(arm, 10.0)
    cell = f"{found.value:.3f} ± {found.std:.3f} [{found.low:.3f}, {found.high:.3f}] (rough)"  # 8 have pneumothorax
    assert sparse["10 % labels"] == cell
    assert (sparse["keep"], sparse["seeds"]) == ("0.5", "3")
    assert row(table, "simclr/fixed")["keep"] == "0.5 (0.53 used)"
    assert row(table, "simclr/dense")["100 % labels"].endswith("(patients alone) * (2)")
    assert row(table, "simclr/dense")["seeds"] == "2–3"
    assert "provisional" in table.note
    assert "crossed random effects" in table.note
    assert "nodule, consolidation, effusion, cardiomegaly, pneumothorax" in table.note


def test_knn_has_no_supervised_row(made):
    group, _, _ = made
    names = [one[0] for one in accuracy_tables.accuracy(Scores(group, "knn")).rows]
    assert "supervised" not in names
    assert "untrained" in names


def test_findings_are_columns_while_they_fit(made, tmp_path, synthetic):
    _, scores, _ = made
    table = accuracy_tables.per_finding(scores)
    assert table.columns == ("method", *synthetic.LABELS)
    assert "at 10 % of the labels" in table.title
    world = synthetic.World(patients=60, seeds=(0,), probes=("linear",), labels=tuple(f"f{i}" for i in range(9)))
    synthetic.write_results(tmp_path, world, [synthetic.Method("simclr/dense", 0.8)], cost=False)
    (group,) = group_runs(read_runs(tmp_path))
    tall = accuracy_tables.per_finding(Scores(group, "linear"))
    assert tall.columns == ("finding", "simclr/dense")
    assert len(tall.rows) == 9


def test_auprc_stands_beside_the_share_of_positives(made):
    _, scores, _ = made
    table = accuracy_tables.precision(scores)
    arm = scores.group.arms[0]
    _, one = arm.evaluations("linear", 10.0)[0]
    chance = np.mean([p.positives / (p.positives + p.negatives) for p in one.per_label.values()])
    assert row(table, "(chance: share of positives)")["10 % labels"] == f"{chance:.3f}"
    assert float(row(table, "simclr/sparsecontrast")["10 % labels"][:5]) > chance + 0.1


def test_subgroups_are_means_over_seeds(made):
    _, scores, _ = made
    table = accuracy_tables.subgroups(scores)
    arm = next(one for one in scores.group.arms if one.label == "moco/dense")
    values = [one.subgroups["sex"]["F"] for _, one in arm.evaluations("linear", 10.0).values()]
    assert row(table, "moco/dense")["sex: F"] == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def test_macs_with_the_ratio_to_dense_of_the_same_objective(made):
    group, _, _ = made
    table = run_tables.macs(group)
    assert row(table, "simclr/sparsecontrast")["inference MMACs"] == "2.0 (2.00×)"
    assert row(table, "simclr/sparsecontrast")["run TMACs"] == f"{0.37 * 0.65:.3f} ({1 / 0.65:.2f}×)".replace(
        "0.240", "0.240"
    )
    assert row(table, "moco/dense")["run TMACs"] == "0.444 (1.00×)"
    assert row(table, "simclr/dynamicvit")["training"] == "masked"


def test_times_with_intervals_and_the_noise_floor(made):
    group, _, cost = made
    table = time_tables.times(group, cost)
    assert row(table, "simclr/sparsecontrast")["run speed-up"] == "1.40 [1.37, 1.43]"
    assert row(table, "simclr/patchdropout")["inference speed-up"] == "no difference seen [0.99, 1.03]"
    assert "step 0.98 to 1.02 [0.98, 1.02]" in table.note
    assert "15 rounds (1 repeated)" in table.note
    assert time_tables.times(group, cost.iloc[:0]) is None


def test_what_cross_validation_chose_and_whether_the_grid_brackets_it(made):
    _, scores, _ = made
    dense = row(accuracy_tables.regularisation(scores), "simclr/dense")
    assert dense["10 % labels"] == "1 (0.01–100), 20% at an end"  # one of five draws
    assert dense["100 % labels"] == "0.01 (0.01–0.01), 100% at an end"


def test_learning_and_selection(made):
    group, _, _ = made
    assert row(run_tables.learning(group), "simclr/dense")["runs"] == "3 learned"
    assert row(run_tables.learning(group), "simclr/dense")["final loss"] == "1.35 (1.3–1.4)"
    found = row(run_tables.selection(group), "simclr/sparsecontrast")
    assert found["logit spread / noise"] == "0.7"  # of the whole run, not 0.9 / 0.06
    assert found["static share"] == "0.4"
    assert found["kept in training"] == NONE
    staged = row(run_tables.selection(group), "simclr/dynamicvit")
    assert staged["kept in training"] == "0.74 / 0.51 / 0.40"
    assert staged["kept at inference"] == "0.70 / 0.49 / 0.34"


def test_counts_and_settings_name_what_was_run(made):
    group, _, _ = made
    counts = run_tables.counts(group)
    assert row(counts, "test")["patients"] == "80"
    assert row(counts, "1 % labels, 5 draws")["patients"] == "8"
    table = settings_tables.settings(
        group, {"sentence": "One seed each.", "learning_rates": [1e-3, 3e-3], "chosen": {"simclr/dense": 1e-3}}
    )
    values = dict(table.rows)
    assert values["seeds"] == "0, 1, 2"
    assert values["tuning budget"] == ("One seed each. Chosen: simclr/dense 0.001.")
    assert re.search(r"torch 2\.14\.1", values["versions"])
    assert "AdamW, betas 0.9 and 0.95" in values["optimizer"]
    assert "none: every method" in dict(settings_tables.settings(group, None).rows)["tuning budget"]


def test_every_option_and_number_of_parameters_is_told(tmp_path, synthetic):
    world = synthetic.World(patients=40, seeds=(0,), probes=("linear",), fractions={10.0: 1.0})
    methods = [synthetic.Method("simclr/dense", 0.8), synthetic.Method("simclr/sparsecontrast", 0.8, 0.5)]
    options = {"temperature": 0.2, "width": 28, "fuse": False}
    sizes = {"encoder": 200_000, "strategy": 9_157, "heads": 90_000, "teacher": 0}
    synthetic.write_run(tmp_path, world, methods[0], 0)  # by an earlier version
    synthetic.write_run(tmp_path, world, methods[1], 0, network={"options": options} | sizes)
    (group,) = group_runs(read_runs(tmp_path))
    table = settings_tables.hyperparameters(group)
    assert [found[0] for found in table.rows] == ["simclr/sparsecontrast"]
    assert table.rows[0][1:] == ("0.001", "temperature 0.2, width 28, fuse false", "200,000", "9,157", "90,000", "0")
    synthetic.write_results(tmp_path / "earlier", world, methods)
    (group,) = group_runs(read_runs(tmp_path / "earlier"))
    assert settings_tables.hyperparameters(group) is None
