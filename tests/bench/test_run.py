"""`bench.run` end to end, in process: what it leaves, that nothing is done twice, and that failures stay small."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.analysis.page import write_report
from bench.launch.leases import Leases
from bench.measure.table import Measurement
from bench.records.record import CostTable, Evaluation, Record
from bench.training.failures import TrainingFailed
from tests.bench import small

METHODS = "dense,sparsecontrast,moco/random"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> SimpleNamespace:
    """Three methods and both baselines, two probes at two fractions, nothing left out but the clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.grid.plan.cores", lambda: 1)
        world = small.World(tmp_path_factory.mktemp("done"), cache)
        baselines = 'baselines=["untrained", "supervised"]'
        result = world.run("--methods", METHODS, "--probes", "linear,knn", "--set", baselines)
    return SimpleNamespace(world=world, result=result, runs=world.runs())


def snapshot(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def refuse(*args: Any) -> None:
    raise AssertionError("trained anew")


def test_the_grid_ends_well_and_says_so(done) -> None:
    assert done.result.exit_code == 0, done.result.output
    assert set(done.runs) == {
        "dense-s0",
        "sparsecontrast-s0",
        "moco-random-s0",
        "untrained-s0",
        "supervised-50pct-s0",
        "supervised-100pct-s0",
    }
    output = done.result.output
    assert "6 runs, 0 of them done before." in output
    assert "[6/6] " in output
    assert f"Report: {done.world.reports / 'report.md'}" in output
    assert "This preset only tests the machinery: its numbers are no evidence of anything." in output
    assert done.result.stderr == ""
    for hidden in (".leases", ".progress"):
        assert not list((done.world.results / hidden).iterdir())


def test_every_run_leaves_what_the_readme_promises(done) -> None:
    for name, folder in done.runs.items():
        record = Record.model_validate_json((folder / "record.json").read_bytes())
        assert record.status == "done"
        assert record.run_id == folder.name
        files = {path.name for path in folder.iterdir()}
        expected = {"record.json", "checkpoint.safetensors", "evaluations", "predictions"}
        if not name.startswith("supervised"):
            expected |= {"history.jsonl"}
        if name in ("sparsecontrast-s0", "moco-random-s0"):
            expected |= {"selection.npz", "lesions.npz"}
        assert files == expected, name
        evaluations = {path.stem for path in (folder / "evaluations").glob("*.json")}
        assert evaluations == {path.stem for path in (folder / "predictions").glob("*.npz")}
        for stem in evaluations:
            one = Evaluation.model_validate_json((folder / "evaluations" / f"{stem}.json").read_bytes())
            assert one.run_id == folder.name
            assert stem == f"{one.probe}-{one.labels:g}-{one.inference}"
            assert 0 < one.macro_auroc < 1
            assert len(one.draws) == (1 if one.labels == 100 or one.probe == "finetune" else 2)
            with np.load(folder / "predictions" / f"{stem}.npz", allow_pickle=False) as stored:
                assert stored["scores"].shape == (len(one.draws), one.n_images, 5)


def test_each_method_is_evaluated_in_its_own_ways(done) -> None:
    def stems(name: str) -> set[str]:
        return {path.stem for path in (done.runs[name] / "evaluations").iterdir()}

    def probes(default: str, *others: str) -> set[str]:
        ways = [("linear", default), ("knn", default), *(("linear", way) for way in others)]
        return {f"{probe}-{labels}-{way}" for probe, way in ways for labels in (50, 100)}

    assert stems("moco-random-s0") == probes("pruned", "dense")
    assert stems("sparsecontrast-s0") == probes("pruned", "dense", "mean", "shuffled")
    assert stems("dense-s0") == stems("untrained-s0") == probes("dense")
    assert stems("supervised-50pct-s0") == {"finetune-50-dense"}
    assert stems("supervised-100pct-s0") == {"finetune-100-dense"}


def test_all_runs_saw_the_same_data_and_fractions(done) -> None:
    hashes: dict[tuple[float, int], set[str]] = {}
    splits = set()
    for folder in done.runs.values():
        splits.add(json.loads((folder / "record.json").read_bytes())["splits"]["hash"])
        for path in (folder / "evaluations").iterdir():
            one = Evaluation.model_validate_json(path.read_bytes())
            for draw in one.draws:
                hashes.setdefault((one.labels, draw.draw), set()).add(draw.subset.hash)
    assert len(splits) == 1
    assert set(hashes) == {(50.0, 0), (50.0, 1), (100.0, 0)}
    assert all(len(found) == 1 for found in hashes.values())


def test_the_report_holds_every_run(done) -> None:
    report = (done.world.reports / "report.md").read_text(encoding="utf-8")
    assert {path.name for path in done.world.reports.iterdir()} >= {"report.md", "report.tex", "results.csv", "figures"}
    rows = pd.read_csv(done.world.reports / "results.csv")
    assert set(rows["run_id"]) == {folder.name for folder in done.runs.values()}
    for _, row in rows.iterrows():
        stem = f"{row['probe']}-{row['labels']:g}-{row['inference']}"
        path = done.world.results / row["run_id"] / "evaluations" / f"{stem}.json"
        assert json.loads(path.read_bytes())["macro_auroc"] == pytest.approx(row["macro_auroc"], abs=1e-6)
    for method in ("simclr/dense", "simclr/sparsecontrast", "moco/random", "untrained", "supervised"):
        assert method in report
        assert method in done.result.output


def test_the_same_command_again_does_nothing(done, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.grid.plan.cores", lambda: 1)
    monkeypatch.setattr("bench.launch.launch.work", refuse)
    monkeypatch.setattr("bench.analysis.page.write_report", small.light_report)
    before, world = snapshot(done.world.results), done.world
    again = small.World(world.folder, world.cache)
    again.reports = world.folder / "again"
    baselines = 'baselines=["untrained", "supervised"]'
    result = again.run("--methods", METHODS, "--probes", "linear,knn", "--set", baselines)
    assert result.exit_code == 0, result.output
    assert "6 runs, 6 of them done before." in result.output
    assert (again.reports / "report.md").exists()
    assert snapshot(world.results) == before


def test_new_fractions_and_probes_train_nothing(world: small.World, light: None, monkeypatch) -> None:
    assert world.run("--methods", "dense,random").exit_code == 0
    before = snapshot(world.results)
    monkeypatch.setattr("bench.experiment.pretrain_and_measure", refuse)
    result = world.run("--methods", "dense,random", "--labels", "50,20", "--probes", "linear,knn,finetune")
    assert result.exit_code == 0, result.output
    after = snapshot(world.results)
    assert before.items() <= after.items()  # not even the old evaluations are touched
    assert {path.name for path in after.keys() - before.keys() if path.suffix == ".json"} == {
        f"{probe}-{labels}-{inference}.json"
        for probe in ("linear", "knn", "finetune")
        for labels in (20, 50)
        for inference in ("dense", "pruned")
    } - {"linear-50-dense.json", "linear-50-pruned.json"}


def test_other_settings_of_the_evaluation_make_it_anew_and_train_nothing(
    world: small.World, light, monkeypatch
) -> None:
    options = ("--methods", "dense", "--labels", "50", "--probes", "linear,finetune")
    assert world.run(*options).exit_code == 0
    before = snapshot(world.results)
    monkeypatch.setattr("bench.experiment.pretrain_and_measure", refuse)
    assert world.run(*options, "--set", "finetune.lr=0.01").exit_code == 0
    changed = {path.name for path, stamp in snapshot(world.results).items() if before.get(path) != stamp}
    assert changed == {"finetune-50-dense.json", "finetune-50-dense.npz"}
    assert world.run(*options, "--set", "finetune.lr=0.01", "--set", "evaluation.neighbours=3").exit_code == 0
    changed = {path.suffix for path, stamp in snapshot(world.results).items() if before.get(path) != stamp}
    assert changed == {".json", ".npz"}


def test_a_changed_option_makes_new_runs_and_leaves_the_old(world: small.World, light: None) -> None:
    assert world.run("--methods", "dense").exit_code == 0
    before = snapshot(world.results)
    result = world.run("--methods", "dense", "--set", "train.lr=0.01")
    assert "1 runs, 0 of them done before." in result.output
    assert before.items() <= snapshot(world.results).items()
    assert len(list(world.results.glob("*/record.json"))) == 2


def test_other_data_of_the_same_name_make_new_runs(world: small.World, light: None, tmp_path: Path) -> None:
    roots = [small.make_folder(tmp_path / name, image=i) for i, name in enumerate("ab")]
    for root in roots:
        result = world.run("--methods", "dense", "--data", "folder", "--data-root", str(root))
        assert result.exit_code == 0, result.output
        assert "1 runs, 0 of them done before." in result.output
    assert len(list(world.results.glob("*/record.json"))) == 2
    moved = roots[0].rename(tmp_path / "moved")
    result = world.run("--methods", "dense", "--data", "folder", "--data-root", str(moved))
    assert "1 runs, 1 of them done before." in result.output


def test_fresh_runs_again_and_keeps_the_old(world: small.World, light: None) -> None:
    assert world.run("--methods", "dense,centre").exit_code == 0
    old = {name: (folder / "record.json").read_bytes() for name, folder in world.runs().items()}
    result = world.run("--methods", "dense", "--fresh")
    assert result.exit_code == 0, result.output
    assert "1 runs, 0 of them done before." in result.output
    (kept,) = (world.results / ".old").iterdir()
    assert (kept / "record.json").read_bytes() == old["dense-s0"]
    assert list((kept / "evaluations").iterdir())
    records = {name: json.loads((folder / "record.json").read_bytes()) for name, folder in world.runs().items()}
    assert records["dense-s0"]["weights_sha256"] == json.loads(old["dense-s0"])["weights_sha256"]
    assert (world.runs()["centre-s0"] / "record.json").read_bytes() == old["centre-s0"]


def test_fresh_leaves_alone_what_somebody_is_at_work_on(world: small.World, light: None) -> None:
    from bench.launch.leases import Leases

    assert world.run("--methods", "dense").exit_code == 0
    (folder,) = world.runs().values()
    before = snapshot(folder)
    with Leases(world.results).hold(folder.name):
        result = world.run("--methods", "dense", "--fresh")
    assert result.exit_code == 2
    assert f"another command is at work on {folder.name}" in result.stderr
    assert snapshot(folder) == before


def test_nobody_begins_a_run_that_fresh_moves(world: small.World, light: None, monkeypatch) -> None:
    from bench.grid import plan

    assert world.run("--methods", "dense").exit_code == 0
    real, command_started = plan.shutil.move, []

    def move(folder: Path, target: Path) -> None:
        with Leases(world.results).hold(folder.name) as mine:
            command_started.append(mine)
        real(folder, target)

    monkeypatch.setattr("bench.grid.plan.shutil.move", move)
    assert world.run("--methods", "dense", "--fresh").exit_code == 0
    assert command_started == [False]
    assert not list((world.results / ".leases").iterdir())


def test_a_disk_that_takes_nothing_is_said_to_be_full(world: small.World, light: None, monkeypatch) -> None:
    """Not even that a run failed can be written down."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("bench.records.store.os.fsync", full)
    result = world.run("--methods", "dense")
    assert result.exit_code == 1
    assert "Failed: simclr-dense" in result.stderr
    assert "the disk is full: [Errno 28] No space left on device; make room, then give the command" in result.stderr


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(world: small.World, light: None, monkeypatch) -> None:
    from bench.training.pretrain import pretrain

    command_started: list[str] = []

    def interrupted(spec, *args: Any) -> Any:
        command_started.append(spec.method)
        if len(command_started) == 2:
            raise KeyboardInterrupt
        return pretrain(spec, *args)

    monkeypatch.setattr("bench.experiment.pretrain", interrupted)
    result = world.run("--methods", "dense,centre,fixed")
    assert result.exit_code == 130
    assert "Interrupted. What is done is kept; the same command continues from there." in result.stderr
    assert "Traceback" not in result.output
    (folder,) = world.runs().values()
    assert Record.model_validate_json((folder / "record.json").read_bytes()).status == "done"
    assert len(list((folder / "evaluations").iterdir())) == 2
    assert not [*(world.results / ".leases").iterdir(), *world.results.rglob("*.tmp")]
    before = snapshot(folder)
    result = world.run("--methods", "dense,centre,fixed")
    assert result.exit_code == 0, result.output
    assert "3 runs, 1 of them done before." in result.output
    assert command_started == ["simclr/dense", "simclr/centre", "simclr/centre", "simclr/fixed"]
    assert snapshot(folder) == before
    assert len(world.runs()) == 3


def test_ctrl_c_while_planning(world: small.World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.grid.plan.load", interrupt)
    result = world.run("--methods", "dense")
    assert result.exit_code == 130
    assert "Traceback" not in result.output


def test_a_failing_run_is_named_and_the_others_are_reported(world: small.World, light, monkeypatch) -> None:
    from bench.training.pretrain import pretrain

    def fails(spec, *args: Any) -> Any:
        if "centre" in spec.method:
            raise TrainingFailed("the loss became nan at step 3 of 4")
        return pretrain(spec, *args)

    monkeypatch.setattr("bench.experiment.pretrain", fails)
    monkeypatch.setattr("bench.analysis.page.write_report", write_report)  # the real one
    result = world.run("--methods", "dense,centre,fixed", "--labels", "100")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    records = {name: json.loads((folder / "record.json").read_bytes()) for name, folder in world.runs().items()}
    assert {name: record["status"] for name, record in records.items()} == {
        "centre-s0": "failed",
        "dense-s0": "done",
        "fixed-s0": "done",
    }
    failed = records["centre-s0"]["run_id"]
    log = world.results / failed / "log.txt"
    assert f"Failed: {failed}: the loss became nan at step 3 of 4 (see {log})" in result.stderr
    assert log.exists()
    assert "simclr/centre, seed 0: FAILED: the loss became nan" in result.stdout
    report = (world.reports / "report.md").read_text(encoding="utf-8")
    assert failed in report
    assert "simclr/fixed" in report
    monkeypatch.setattr("bench.experiment.pretrain", pretrain)
    monkeypatch.setattr("bench.analysis.page.write_report", small.light_report)
    result = world.run("--methods", "dense,centre,fixed", "--labels", "100")
    assert result.exit_code == 0, "a failed run is tried again"
    assert "3 runs, 2 of them done before." in result.output


PLUGIN = '''
from methods import Entry, OBJECTIVES
from methods.objectives.simclr import SimCLR


class Bad(SimCLR):
    """Its loss is no number from the third step on."""

    steps = 0

    def forward(self, views, call):
        loss = super().forward(views, call)
        self.steps += 1
        if self.steps > 2:
            loss.contrastive = loss.contrastive * float("nan")
            loss.total = loss.contrastive
        return loss


OBJECTIVES = {"bad": Entry(":Bad", "a bad loss", "a test", OBJECTIVES["simclr"].options)}
'''


def test_a_loss_that_is_no_number_is_a_failed_run(world: small.World, light: None, registries: None) -> None:
    plugin = world.folder / "bad.py"
    plugin.write_text(PLUGIN, encoding="utf-8")
    result = world.run("--plugin", str(plugin), "--methods", "bad/dense,bad/fixed,dense", "--labels", "100")
    assert result.exit_code == 1
    assert result.stderr.count("the loss became nan at step 2 of 4 (learning rate 0.001)") == 2
    records = {name: json.loads((folder / "record.json").read_bytes()) for name, folder in world.runs().items()}
    assert {name: record["status"] for name, record in records.items()} == {
        "bad-dense-s0": "failed",
        "bad-fixed-s0": "failed",
        "dense-s0": "done",
    }


def test_a_failing_evaluation_is_named_and_keeps_the_training(world: small.World, light: None, monkeypatch) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("a probe is odd")

    with monkeypatch.context() as patch:
        patch.setattr("bench.evaluation.missing.evaluate", fails)
        result = world.run("--methods", "dense")
    assert result.exit_code == 1
    (folder,) = world.runs().values()
    assert f"Failed: {folder.name}: trained, but not evaluated (see {folder / 'log.txt'})" in result.stderr
    monkeypatch.setattr("bench.experiment.pretrain", refuse)
    assert world.run("--methods", "dense").exit_code == 0


def test_a_worker_that_dies_is_named(world: small.World, light: None, monkeypatch) -> None:
    def dies(*args: Any) -> None:
        raise RuntimeError("line one\nthe process was killed")

    monkeypatch.setattr("bench.launch.launch.work", dies)
    result = world.run("--methods", "dense")
    assert result.exit_code == 1
    assert "Failed: a worker exited unexpectedly: the process was killed" in result.stderr
    assert ": not finished" in result.stderr
    (folder,) = (line.split(": ")[1] for line in result.stderr.splitlines() if line.endswith(": not finished"))
    with Leases(world.results).hold(folder):
        assert f"Failed: {folder}: another command is at work on it" in world.run("--methods", "dense").stderr


def test_a_refused_report_is_a_failure(world: small.World, light: None, monkeypatch) -> None:
    from bench.analysis.read.groups import ReportRefused

    def refused(*args: Any, **options: Any) -> None:
        raise ReportRefused("Records differ in their splits.")

    monkeypatch.setattr("bench.analysis.page.write_report", refused)
    result = world.run("--methods", "dense")
    assert result.exit_code == 1
    assert "Failed: the report is refused: Records differ in their splits." in result.stderr
    assert len(world.runs()) == 1


def test_a_provisional_report_after_the_first_seed(world: small.World, light: None, monkeypatch) -> None:
    seen: list[tuple[int, int]] = []

    def report(results: Path, reports: Path, planned: int = 0) -> Any:
        seen.append((len(list(results.glob("*/record.json"))), planned))
        return small.light_report(results, reports, planned)

    from bench.training.pretrain import pretrain

    def slowly(spec, *args: Any) -> Any:
        if spec.seed == 1:
            for _ in range(200):  # until the watch has looked
                if seen:
                    break
                import time

                time.sleep(0.05)
        return pretrain(spec, *args)

    monkeypatch.setattr("bench.analysis.page.write_report", report)
    monkeypatch.setattr("bench.experiment.pretrain", slowly)
    result = world.run("--methods", "dense,centre", "--seeds", "2", "--labels", "100")
    assert result.exit_code == 0, result.output
    assert seen == [(2, 4), (4, 4)]
    assert result.output.count("a provisional report is in") == 1


def test_cost_is_measured_once_and_before_anything_runs(world: small.World, light: None, monkeypatch) -> None:
    measured: list[tuple[list[str], int, int]] = []

    def measure(what: Measurement) -> CostTable:
        done = len(list(world.results.glob("*/record.json")))
        measured.append(([method.name for method in what.methods], what.threads, done))
        return CostTable(rows=(), environment={}, started="", finished="")

    monkeypatch.setattr("bench.measure.table.measure", measure)
    baselines = 'baselines=["untrained"]'
    for _ in range(2):
        result = world.run("--methods", "dense,centre", "--set", baselines, measure=True)
        assert result.exit_code == 0, result.output
    assert measured == [(["simclr/dense", "simclr/centre"], 1, 0)]
    assert len(list((world.results / "cost").glob("*.json"))) == 1
