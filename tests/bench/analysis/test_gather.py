"""Which records share a group, which are refused, and how rows are named."""

from __future__ import annotations

import json
import shutil

import pytest

from bench.analysis.frames import cost_frame, results_frame
from bench.analysis.gather import group_runs, read_runs
from bench.analysis.groups import ReportRefused


@pytest.fixture
def small(synthetic):
    return synthetic.World(patients=60, seeds=(0, 1), draws=2, probes=("linear",))


def methods(synthetic, *names):
    return [one for one in synthetic.headline() if one.name in names]


def alter(folder, change):
    path = folder / "record.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_runs_of_one_comparison_form_one_group_in_a_fixed_order(tmp_path, synthetic, small):
    synthetic.write_results(tmp_path, small, cost=False)
    (group,) = group_runs(read_runs(tmp_path))
    names = [arm.label for arm in group.arms]
    assert names[:4] == ["untrained", "supervised", "simclr/dense", "simclr/sparsecontrast"]
    assert names[-1] == "moco/dense"
    assert group.seeds == (0, 1)
    assert group.fractions("linear") == (1.0, 10.0, 100.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["data"].update(fingerprint="other"), "fingerprint"),
        (lambda r: r["data"].update(label_names=["a", "b", "c", "d", "e"]), "the findings"),
        (lambda r: r.update(science_version=2), "science version"),
        (lambda r: r["splits"]["test"].update(hash="other"), "the test split"),
        (lambda r: r["splits"]["train"].update(hash="other"), "the training split"),
    ],
)
def test_strangers_in_a_group_are_refused_by_name(tmp_path, synthetic, small, change, words):
    for seed in (0, 1):
        folder = synthetic.write_run(tmp_path, small, methods(synthetic, "simclr/dense")[0], seed)
    alter(folder, change)
    with pytest.raises(ReportRefused, match=words) as refused:
        group_runs(read_runs(tmp_path))
    assert folder.name in str(refused.value)
    assert "another results folder" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e["draws"][0]["subset"].update(hash="other"), "labelled images of draw 0 at 10 %"),
        (lambda e: e.update(settings="other"), "how they were evaluated"),
    ],
)
def test_other_labelled_images_or_another_evaluation_are_refused(tmp_path, synthetic, small, change, words):
    for seed in (0, 1):
        folder = synthetic.write_run(tmp_path, small, methods(synthetic, "simclr/dense")[0], seed)
    path = folder / "evaluations" / "linear-10-pruned.json"
    one = json.loads(path.read_text())
    change(one)
    path.write_text(json.dumps(one))
    with pytest.raises(ReportRefused, match=words):
        group_runs(read_runs(tmp_path))


def test_two_runs_of_one_seed_are_refused(tmp_path, synthetic, small):
    dense = methods(synthetic, "simclr/dense")[0]
    folder = synthetic.write_run(tmp_path, small, dense, 0)
    folder.rename(tmp_path / "twin")
    alter(tmp_path / "twin", lambda r: r.update(run_id="twin"))
    synthetic.write_run(tmp_path, small, dense, 0)
    with pytest.raises(ReportRefused, match="Two runs claim to be simclr/dense, seed 0"):
        group_runs(read_runs(tmp_path))


def test_a_floor_made_again_for_another_learning_rate_is_the_same_floor(tmp_path, synthetic, small):
    floor = methods(synthetic, "untrained")[0]

    def again(change):
        folder = synthetic.write_run(tmp_path, small, floor, 0).rename(tmp_path / "again")
        alter(folder, lambda r: (r.update(run_id="again"), r["spec"]["train"].update(lr=0.5), change(r)))
        synthetic.write_run(tmp_path, small, floor, 0)
        return group_runs(read_runs(tmp_path))

    (group,) = again(lambda r: None)
    assert [len(arm.runs) for arm in group.arms] == [1]
    shutil.rmtree(tmp_path)
    with pytest.raises(ReportRefused, match="Two runs claim to be untrained, seed 0"):
        again(lambda r: r.update(weights_sha256="cd" * 32))


def test_other_splits_presets_encoders_and_settings_are_other_groups(tmp_path, synthetic, small):
    dense = methods(synthetic, "simclr/dense")[0]

    def run(number, change):
        folder = synthetic.write_run(tmp_path, small, dense, 0).rename(tmp_path / f"run{number}")
        alter(folder, lambda r: (r.update(run_id=folder.name), change(r)))

    run(0, lambda r: None)
    run(1, lambda r: r["splits"].update(hash="another"))
    run(2, lambda r: r["spec"].update(preset="standard"))
    run(3, lambda r: r["spec"]["encoder"].update(name="vit_tiny"))
    run(4, lambda r: r["spec"]["train"].update(epochs=20))
    groups = group_runs(read_runs(tmp_path))
    assert len(groups) == 5
    assert sorted(str(group.settings) for group in groups if group.settings) == [
        "{'train.epochs': 10}",
        "{'train.epochs': 20}",
    ]


def test_a_tuned_learning_rate_does_not_split_the_group_and_two_rates_are_two_rows(tmp_path, synthetic, small):
    for name, rate in (("simclr/dense", 1e-3), ("simclr/fixed", 2e-3), ("simclr/fixed", 4e-3)):
        folder = synthetic.write_run(tmp_path, small, methods(synthetic, name)[0], 0)
        folder = folder.rename(tmp_path / f"{folder.name}-{rate}")
        alter(
            folder, lambda r, rate=rate, name=folder.name: (r["spec"]["train"].update(lr=rate), r.update(run_id=name))
        )
    (group,) = group_runs(read_runs(tmp_path))
    assert [arm.label for arm in group.arms] == ["simclr/dense", "simclr/fixed lr 0.002", "simclr/fixed lr 0.004"]


def test_two_ways_of_inference_are_two_rows(tmp_path, synthetic, small):
    method = synthetic.Method("simclr/random", 0.7, 0.5)
    folder = synthetic.write_run(tmp_path, small, method, 0)
    for path in list((folder / "evaluations").iterdir()):
        one = json.loads(path.read_text()) | {"inference": "dense"}
        path.with_name(path.name.replace("pruned", "dense")).write_text(json.dumps(one))
    (group,) = group_runs(read_runs(tmp_path))
    assert [arm.label for arm in group.arms] == ["simclr/random", "simclr/random (all tokens at inference)"]
    assert len(group.runs) == 1


def test_the_supervised_floor_is_scored_only_at_the_fraction_it_was_trained_on(tmp_path, synthetic, small):
    synthetic.write_results(tmp_path, small, methods(synthetic, "supervised", "simclr/dense"), cost=False)
    (group,) = group_runs(read_runs(tmp_path))
    arm = group.arms[0]
    for fraction in (1.0, 10.0, 100.0):
        found = arm.evaluations("linear", fraction)
        assert {run.record.spec["labels"] for run, _ in found.values()} == {fraction}
        assert set(found) == {0, 1}
    assert arm.evaluations("knn", 10.0) == {}


def test_unreadable_and_missing_records_are_said_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no record"):
        read_runs(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "record.json").write_text('{"run_id": "x"}')
    with pytest.raises(ReportRefused, match=r"broken/record\.json can't be read as a Record"):
        read_runs(tmp_path)


def test_validation_scores_stay_out(tmp_path, synthetic, small):
    folder = synthetic.write_run(tmp_path, small, methods(synthetic, "simclr/dense")[0], 0)
    path = folder / "evaluations" / "linear-10-pruned.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"split": "val"}))
    (run,) = read_runs(tmp_path)
    assert sorted(one.labels for one in run.evaluations) == [1.0, 100.0]


def test_the_results_frame_has_a_row_an_evaluation(tmp_path, synthetic, small):
    synthetic.write_results(tmp_path, small, methods(synthetic, "untrained", "simclr/sparsecontrast"), cost=False)
    frame = results_frame(read_runs(tmp_path))
    assert len(frame) == 2 * 2 * 3
    sparse = frame[frame["method"] == "simclr/sparsecontrast"]
    assert set(sparse["keep"]) == {0.5}
    stored = json.loads((tmp_path / sparse.iloc[0]["run_id"] / "evaluations" / "linear-1-pruned.json").read_text())
    assert sparse[(sparse["labels"] == 1)].iloc[0]["macro_auroc"] == stored["macro_auroc"]


def test_the_newest_cost_row_wins_and_brings_its_own_noise_floor(tmp_path, synthetic):
    both = methods(synthetic, "simclr/dense", "simclr/sparsecontrast")
    synthetic.write_cost(tmp_path, both, finished="2026-02-02T00:00:00Z", infer_ms=2.0)
    synthetic.write_cost(tmp_path, both[:1], finished="2026-01-01T00:00:00Z", infer_ms=1.0)
    frame = cost_frame(tmp_path).set_index("method")
    assert frame.loc["simclr/dense", "infer_ms"] == 2.0
    assert len(frame) == 3
    assert frame.loc["simclr/sparsecontrast", "aa_train_high"] == pytest.approx(1.02)
    assert cost_frame(tmp_path / "nowhere").empty
