"""Which records share a group, which are refused, and how rows are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench.analysis.read.frames import cost_frame, results_frame
from bench.analysis.read.groups import ReportRefused
from bench.analysis.read.results import group_runs, read_runs
from bench.records.seal import digest_of
from bench.specs.frozen import file_sha256
from methods import BASELINES, OBJECTIVES, STRATEGIES, Entry


@pytest.fixture
def small(synthetic):
    return synthetic.World(patients=60, seeds=(0, 1), draws=2, probes=("linear",))


def methods(synthetic, *names):
    return [one for one in synthetic.headline() if one.name in names]


def alter(folder, change):
    """Change a record; its evaluations follow it when it gets another run id."""
    path = folder / "record.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    for file in folder.glob("evaluations/*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"run_id": record["run_id"]}))


def seal_all(folder):
    """Seal what lies in a run's folder as the store does."""
    for file in folder.glob("evaluations/*.json"):
        one = json.loads(file.read_text())
        one["predictions_sha256"] = file_sha256(folder / "predictions" / f"{file.stem}.npz")
        file.write_text(json.dumps(one | {"digest": digest_of(one)}))
    path = folder / "record.json"
    record = json.loads(path.read_text())
    record["files"] = {"history.jsonl": file_sha256(folder / "history.jsonl")}
    path.write_text(json.dumps(record | {"digest": digest_of(record)}))


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


def test_all_that_differs_is_said_at_once_and_by_whom(tmp_path, synthetic, small):
    names = ("simclr/dense", "simclr/sparsecontrast", "simclr/fixed", "moco/dense", "simclr/tokenlearner")
    synthetic.write_results(tmp_path, small, methods(synthetic, *names), cost=False)
    (odd,) = tmp_path.glob("simclr-fixed*s1*")
    alter(odd, lambda r: (r.update(science_version=2), r["splits"]["val"].update(hash="other")))
    with pytest.raises(ReportRefused) as refused:
        group_runs(read_runs(tmp_path))
    head, *lines, mend = str(refused.value).splitlines()
    assert head == "Records of the same data, split and preset differ in"
    assert lines[0].startswith("- the validation split: va-00180 in ")
    assert lines[0].endswith(f" and 6 more; other in {odd.name}")
    assert lines[1].startswith("- the science version of the code: 1 in ")
    assert lines[1].endswith(f"; 2 in {odd.name}")
    assert len(lines) == 2
    assert "move the ones that don't belong to another results folder" in mend
    assert "rerun them" in mend


@pytest.mark.parametrize("loaded", [False, True])
def test_arms_come_in_the_order_of_the_registry_and_plugins_last(tmp_path, synthetic, registries, loaded):
    own = [f"{objective}/{strategy}" for objective in OBJECTIVES for strategy in STRATEGIES]
    names = [*BASELINES, *own[: len(STRATEGIES)], "simclr/a", "simclr/b", "moco/dense", "x/dense", "y/a"]
    world = synthetic.World(patients=20, seeds=(0,), labels=("nodule",), probes=("linear",), fractions={100.0: 1.0})
    for name in reversed(names):
        synthetic.write_run(tmp_path, world, synthetic.Method(name, 0.8), 0)
    if loaded:
        for registry, plugins in ((STRATEGIES, "ba"), (OBJECTIVES, "yx")):
            registry |= {name: Entry(":Mine", "", "", code="of a file") for name in plugins}
    (group,) = group_runs(read_runs(tmp_path))
    assert [arm.label for arm in group.arms] == names


def test_one_method_from_two_versions_of_a_plugin_is_refused_and_two_methods_are_not(tmp_path, synthetic, small):
    synthetic.write_results(tmp_path, small, methods(synthetic, "simclr/dense", "simclr/tokenlearner"), cost=False)
    for folder in tmp_path.glob("simclr-tokenlearner*"):
        alter(folder, lambda r: r["spec"].update(code="aaaa"))
    (group,) = group_runs(read_runs(tmp_path))
    assert len(group.arms) == 2
    alter(folder, lambda r: r["spec"].update(code="bbbb"))
    with pytest.raises(ReportRefused, match="code of the plug-in that defines simclr/tokenlearner: .*aaaa") as refused:
        group_runs(read_runs(tmp_path))
    assert f"bbbb in {folder.name}" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: (r["data"].update(fingerprint="e" * 64), r["splits"].update(hash="e")), "the data's fingerprint"),
        (lambda r: r["splits"].update(hash="e" * 64), "the split"),
    ],
)
def test_data_that_changed_between_two_runs_are_refused(tmp_path, synthetic, small, change, words):
    """Another hash of the split makes another group: from one and the same spec that is no group, but a mistake."""
    for seed in (0, 1):
        folder = synthetic.write_run(tmp_path, small, methods(synthetic, "simclr/dense")[0], seed)
    alter(folder, change)
    with pytest.raises(ReportRefused, match=f"with the same data set .*\n- {words}: .* in {folder.name}"):
        group_runs(read_runs(tmp_path))
    alter(folder, lambda r: r["spec"]["data"].update(root="/elsewhere"))
    assert len(group_runs(read_runs(tmp_path))) == 2


def test_other_schemas_are_refused(tmp_path, synthetic, small):
    folder = synthetic.write_run(tmp_path, small, methods(synthetic, "simclr/dense")[0], 0)
    for path in (folder / "evaluations" / "linear-1-pruned.json", folder / "record.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 7}))
        with pytest.raises(ReportRefused, match=rf"{path.name} has schema 7, and this code reads 1: .*run it again"):
            read_runs(tmp_path)


def test_an_evaluation_of_another_run_is_refused(tmp_path, synthetic, small):
    folders = [synthetic.write_run(tmp_path, small, methods(synthetic, "simclr/dense")[0], seed) for seed in (0, 1)]
    name = Path("evaluations") / "linear-1-pruned.json"
    shutil.copy(folders[0] / name, folders[1] / name)
    with pytest.raises(ReportRefused, match=rf"{name} is an evaluation of another run, {folders[0].name}: move"):
        read_runs(tmp_path)


def test_a_copy_of_an_evaluation_is_not_counted_twice(tmp_path, synthetic, small):
    folder = synthetic.write_run(tmp_path, small, methods(synthetic, "simclr/dense")[0], 0)
    path = folder / "evaluations" / "linear-10-pruned.json"
    shutil.copyfile(path, path.with_name("linear-10-pruned (copy).json"))
    with pytest.raises(ReportRefused, match=r"\(copy\).json is linear-10-pruned by its content: move it"):
        read_runs(tmp_path)


def test_a_record_that_names_a_file_elsewhere_is_refused(tmp_path, synthetic, small):
    """Nothing outside of the run's folder is read on a record's word."""
    folder = synthetic.write_run(tmp_path, small, methods(synthetic, "simclr/dense")[0], 0)
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    for name in ("../secret.txt", str(secret), "evaluations/linear-10-pruned.json", ""):
        alter(folder, lambda r, name=name: r.update(files={name: "0" * 64}))
        with pytest.raises(ReportRefused, match="is not a file of a run"):
            read_runs(tmp_path)


@pytest.mark.parametrize("name", ["record.json", "evaluations/linear-10-pruned.json"])
def test_what_was_edited_by_hand_is_refused_by_name(tmp_path, synthetic, small, name):
    folder = synthetic.write_run(tmp_path, small, methods(synthetic, "simclr/dense")[0], 0)
    seal_all(folder)
    assert len(read_runs(tmp_path)) == 1
    path = folder / name
    one = json.loads(path.read_text())
    path.write_text(json.dumps(one, indent=4, sort_keys=True))  # laid out anew, not changed
    assert len(read_runs(tmp_path)) == 1
    one["keep" if name == "record.json" else "macro_auroc"] = 0.999
    path.write_text(json.dumps(one))
    with pytest.raises(ReportRefused, match=rf"{name} was changed after it was written .*put the original back, or"):
        read_runs(tmp_path)


@pytest.mark.parametrize("name", ["history.jsonl", "predictions/linear-10-pruned.npz"])
def test_a_file_beside_a_record_that_was_changed_is_refused_by_name(tmp_path, synthetic, small, name):
    folder = synthetic.write_run(tmp_path, small, methods(synthetic, "simclr/dense")[0], 0)
    seal_all(folder)
    with open(folder / name, "ab") as file:
        file.write(b" ")
    with pytest.raises(ReportRefused, match=f"{name} is not the file that was recorded"):
        read_runs(tmp_path)
    (folder / name).unlink()  # without predictions there would be no interval
    with pytest.raises(ReportRefused, match=f"{name} is not there, although it is recorded: put the original back"):
        read_runs(tmp_path)


def test_all_runs_that_are_refused_are_named(tmp_path, synthetic, small):
    folders = [synthetic.write_run(tmp_path, small, methods(synthetic, "simclr/dense")[0], seed) for seed in range(9)]
    for folder in folders[1:]:
        (folder / "record.json").write_text("{}")
    with pytest.raises(ReportRefused, match="^8 runs can't be reported:\n- ") as refused:
        read_runs(tmp_path)
    _, *lines, last = str(refused.value).splitlines()
    assert [line.split(" can't be read as a record")[0] for line in lines] == [
        f"- {folder / 'record.json'}" for folder in sorted(folders[1:])[:6]
    ]
    assert last == "- and 2 more"


def test_a_cost_table_that_was_edited_is_refused(tmp_path, synthetic):
    synthetic.write_cost(tmp_path, methods(synthetic, "simclr/sparsecontrast"))
    (path,) = (tmp_path / "cost").iterdir()
    table = json.loads(path.read_text())
    table["digest"] = digest_of(table)
    path.write_text(json.dumps(table))
    assert len(cost_frame(tmp_path)) == 2
    table["rows"][0]["infer_speedup"] = 9.0
    path.write_text(json.dumps(table))
    with pytest.raises(ReportRefused, match=rf"cost/{path.name} was changed"):
        cost_frame(tmp_path)


def test_two_runs_of_one_seed_are_refused(tmp_path, synthetic, small):
    dense = methods(synthetic, "simclr/dense")[0]
    folder = synthetic.write_run(tmp_path, small, dense, 0)
    folder.rename(tmp_path / "twin")
    alter(tmp_path / "twin", lambda r: r.update(run_id="twin"))
    synthetic.write_run(tmp_path, small, dense, 0)
    with pytest.raises(ReportRefused, match=r"the same method, seed and evaluation \(simclr/dense, seed 0"):
        group_runs(read_runs(tmp_path))


def test_a_floor_made_again_for_another_learning_rate_is_the_same_floor(tmp_path, synthetic, small):
    baseline = methods(synthetic, "untrained")[0]

    def again(change):
        folder = synthetic.write_run(tmp_path, small, baseline, 0).rename(tmp_path / "again")
        alter(folder, lambda r: (r.update(run_id="again"), r["spec"]["train"].update(lr=0.5), change(r)))
        synthetic.write_run(tmp_path, small, baseline, 0)
        return group_runs(read_runs(tmp_path))

    (group,) = again(lambda r: None)
    assert [len(arm.runs) for arm in group.arms] == [1]
    shutil.rmtree(tmp_path)
    with pytest.raises(ReportRefused, match=r"the same method, seed and evaluation \(untrained, seed 0"):
        again(lambda r: r.update(weights_sha256="cd" * 32))


def test_other_splits_presets_encoders_and_settings_are_other_groups(tmp_path, synthetic, small):
    dense = methods(synthetic, "simclr/dense")[0]

    def run(number, change):
        folder = synthetic.write_run(tmp_path, small, dense, 0).rename(tmp_path / f"run{number}")
        alter(folder, lambda r: (r.update(run_id=folder.name), change(r)))

    run(0, lambda r: None)
    run(1, lambda r: (r["spec"]["data"].update(split_seed=1), r["splits"].update(hash="another")))
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
    with pytest.raises(ReportRefused, match=r"broken/record\.json can't be read as a record"):
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
    row = sparse[(sparse["labels"] == 1)].iloc[0]
    assert row["macro_auroc"] == stored["macro_auroc"]
    assert [row[f"macro_auroc_patients_{end}"] for end in ("low", "high")] == stored["interval"]
    assert not {"macro_auroc_low", "macro_auroc_high"} & set(frame.columns)  # they said not what they cover


def test_the_newest_cost_row_wins_and_brings_its_own_noise_floor(tmp_path, synthetic):
    both = methods(synthetic, "simclr/dense", "simclr/sparsecontrast")
    synthetic.write_cost(tmp_path, both, finished="2026-02-02T00:00:00Z", infer_ms=2.0)
    synthetic.write_cost(tmp_path, both[:1], finished="2026-01-01T00:00:00Z", infer_ms=1.0)
    frame = cost_frame(tmp_path).set_index("method")
    assert frame.loc["simclr/dense", "infer_ms"] == 2.0
    assert len(frame) == 3
    assert frame.loc["simclr/sparsecontrast", "aa_train_high"] == pytest.approx(1.02)
    assert cost_frame(tmp_path / "nowhere").empty
