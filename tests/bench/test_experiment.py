"""One spec -> one record: what stands in it, what is made once, and what a failure leaves."""

from __future__ import annotations

import errno
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from bench import experiment as module
from bench.evaluation.evaluate import EvaluationRequest, evaluate
from bench.evaluation.probes import linear_probe
from bench.experiment import run_experiment, train_along
from bench.records.environment import conditions, environment
from bench.records.outcome import failure
from bench.records.record import Record
from bench.records.store import Store
from bench.specs.run_spec import RunSpec
from bench.training.batches import Lesions
from bench.training.build import build
from bench.training.checkpoint import Checkpoints
from bench.training.failures import TrainingFailed
from bench.verification.rerun import changes
from datasets.splits import fraction, make_splits
from methods import STRATEGIES
from methods.plugins import load_plugin
from methods.strategies.strategy import Call
from tests.bench import small

METHODS = ["dense", "moco/sparsecontrast", "untrained", "oracle"]


class Setup:
    """Runs specs of the small world into a folder of their own."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache, self.store = folder, cache, Store(folder / "results")

    def run(self, method: str, **changes: Any) -> tuple[Record, Path]:
        grid = small.grid(self.folder, methods=method, **changes)
        run = grid.runs()[0]
        record = run_experiment(small.experiment(run, grid, self.store, self.cache))
        return record, self.store.folder(run.run_id)


@pytest.fixture
def setup(tmp_path: Path, cache: Path, light: None) -> Setup:
    return Setup(tmp_path, cache)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, tuple[Record, Path]]:
    """Runs of several methods, with nothing left out."""
    made = Setup(tmp_path_factory.mktemp("finished"), cache)
    found = {method: made.run(method) for method in METHODS}
    return {**found, "supervised": made.run("supervised", evaluation__labels=[50])}


@pytest.mark.parametrize("method", [*METHODS, "supervised"])
def test_a_record_tells_what_was_run_on_what(finished, phantom, method: str) -> None:
    record, folder = finished[method]
    assert record.status == "done", record.reason
    assert record.run_id == folder.name
    assert small.unsealed(Record.model_validate_json((folder / "record.json").read_bytes())) == record
    splits = make_splits(phantom)
    assert record.data is not None
    assert record.splits is not None
    assert record.data.fingerprint == phantom.fingerprint
    assert record.data.notes == phantom.notes
    assert record.splits.hash == splits.hash
    for part in ("train", "val", "test"):
        index, said = getattr(splits, part), getattr(record.splits, part)
        assert said.images == len(index)
        assert said.patients == len(set(phantom.patients[index]))
        assert said.positives == {n: int(phantom.labels[index, i].sum()) for i, n in enumerate(phantom.label_names)}
    assert record.spec["train"]["batch"] == 16
    assert record.evidence is False
    assert record.environment["threads"] == 1
    assert record.environment["versions"]["torch"]
    assert record.started <= record.finished


@pytest.mark.parametrize("method", [*METHODS, "supervised"])
def test_the_checkpoint_is_what_the_record_says(finished, method: str) -> None:
    record, folder = finished[method]
    content = (folder / "checkpoint.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == record.weights_sha256
    names = set(load(content))
    assert all(
        name.startswith(("encoder.", "head.") if method == "supervised" else ("vit.", "strategy.")) for name in names
    )
    assert len(names) > 40


def test_what_a_pretraining_leaves(finished) -> None:
    record, folder = finished["moco/sparsecontrast"]
    assert (record.objective, record.strategy, record.method) == ("moco", "sparsecontrast", "moco/sparsecontrast")
    assert record.keep == record.keep_effective == 0.5
    assert record.time is not None
    assert record.memory is not None
    assert record.learning is not None
    assert record.macs is not None
    assert record.time.steps == 4
    assert record.memory.saved_bytes_per_image > 1e4
    assert record.macs.train_step > 2 * record.macs.inference > 0
    assert record.macs.whole_run > record.macs.train_step
    assert record.network is not None
    assert record.network.options["momentum"] == 0.99
    assert record.learning.verdict in ("learned", "plateaued", "collapsed")
    assert {"overlap", "static_share", "kept_inference"} <= set(record.learning.selection)
    (line,) = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert (line["epoch"], line["step"], line["loss"]) == (1, 4, record.learning.final_loss)
    with np.load(folder / "selection.npz", allow_pickle=False) as shown:
        assert shown["kept"].shape[1:] == (4, 4)
        assert shown["images"].shape[0] == shown["kept"].shape[0] > 0


def test_pruned_methods_cost_less_than_dense_ones(finished) -> None:
    macs = {method: finished[method][0].macs for method in ("dense", "oracle", "untrained")}
    assert macs["oracle"].inference < macs["dense"].inference == macs["untrained"].inference
    assert macs["untrained"].whole_run == 0


def test_floors_are_not_pretrained(finished, tmp_path: Path) -> None:
    record, folder = finished["untrained"]
    assert (record.objective, record.strategy, record.train_execution) == ("none", "untrained", "none")
    assert record.time is record.memory is record.keep is None
    assert record.learning.verdict == "not trained"
    run = small.run_spec(tmp_path, "untrained")
    fresh = build(run.parsed, run.encoder, 0).encoder.state_dict()
    stored = load((folder / "checkpoint.safetensors").read_bytes())
    assert stored.keys() == fresh.keys()
    assert all((stored[name] == fresh[name]).all() for name in fresh)
    record, folder = finished["supervised"]
    assert record.spec["labels"] == 50
    assert record.spec["finetune"]["max_steps"] == 3
    assert record.time.steps == 2  # 35 images make two batches of 16, and one epoch
    assert [path.name for path in (folder / "evaluations").iterdir()] == ["finetune-50-dense.json"]


def test_controls_say_what_they_keep(finished) -> None:
    record, _ = finished["oracle"]
    assert record.keep == 0.5
    assert 0.5 < record.keep_effective < 0.7  # as many more as the predictor costs


def test_the_weights_do_not_depend_on_what_ran_before(finished, setup: Setup) -> None:
    assert setup.run("moco/sparsecontrast")[0].weights_sha256 == finished["moco/sparsecontrast"][0].weights_sha256
    assert (
        setup.run("supervised", evaluation__labels=[50])[0].weights_sha256 == finished["supervised"][0].weights_sha256
    )


@pytest.mark.parametrize("method", METHODS)
def test_what_is_evaluated_is_what_was_trained(finished, phantom, tmp_path: Path, method: str) -> None:
    """The stored scores come from the checkpoint's own features, and not from other weights."""
    _, folder = finished[method]
    run = small.run_spec(tmp_path, method)
    encoder = build(run.parsed, run.encoder, 0).encoder.eval()
    index, test = fraction(phantom, make_splits(phantom), 100, 0), make_splits(phantom).test
    way = encoder.strategy.inference[0]
    with np.load(folder / "predictions" / f"linear-100-{way}.npz") as stored:
        scores = stored["scores"][0]

    def probed() -> np.ndarray:
        parts = []
        for rows in (index, test):
            images = torch.from_numpy(phantom.images[rows]).float()[:, None] / 255
            call = Lesions(phantom, encoder, 0).call_for(rows, Call(inference=way), torch.device("cpu"))
            parts.append(encoder((images - 0.5) / 0.25, call).features.detach().numpy())
        return linear_probe(parts[0], phantom.labels[index], phantom.patients[index], parts[1], [0.01])[0]

    trained, fresh = load((folder / "checkpoint.safetensors").read_bytes()), probed()
    encoder.load_state_dict(trained)
    np.testing.assert_allclose(scores, probed(), atol=1e-3)
    assert (np.abs(scores - fresh).max() < 1e-3) == (method == "untrained")


@pytest.mark.parametrize("method", ["moco/sparsecontrast", "supervised"])
def test_evaluations_are_made_from_the_checkpoint_and_come_out_the_same(setup: Setup, monkeypatch, method: str) -> None:
    changes = {"evaluation__labels": [50]}
    _, folder = setup.run(method, **changes)
    paths = sorted((folder / "evaluations").iterdir())
    before, record = [json.loads(path.read_bytes()) for path in paths], (folder / "record.json").read_bytes()
    for path in paths:
        path.unlink()

    def refuse(*args: Any) -> None:
        raise AssertionError("trained anew")

    monkeypatch.setattr("bench.experiment.pretrain_and_measure", refuse)
    again, _ = setup.run(method, **changes)
    assert again.status == "done"
    assert [json.loads(path.read_bytes()) for path in paths] == before
    assert (folder / "record.json").read_bytes() == record


def test_pixels_stay_away_from_records_when_they_may_not_be_published(setup: Setup) -> None:
    _, folder = setup.run("fixed", data__publish=False)
    assert (folder / "record.json").exists()
    assert not (folder / "selection.npz").exists()
    assert (folder / "lesions.npz").exists()  # neither pixels nor ids


def test_a_failed_training_is_recorded_with_its_reason_and_can_be_tried_again(setup: Setup, monkeypatch) -> None:
    def fail(*args: Any) -> None:
        raise TrainingFailed("the loss became nan at step 1 of 4")

    with monkeypatch.context() as patch:
        patch.setattr("bench.experiment.pretrain", fail)
        record, folder = setup.run("dense")
    assert (record.status, record.reason) == ("failed", "the loss became nan at step 1 of 4")
    stored = setup.store.record(record.run_id)
    assert stored is not None
    assert small.unsealed(stored) == record
    assert "TrainingFailed" in (folder / "log.txt").read_text()
    assert record.weights_sha256 == ""
    assert not (folder / "checkpoint.safetensors").exists()
    record, _ = setup.run("dense")
    assert record.status == "done"
    assert setup.store.done(record.run_id)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory at batch 16: use a smaller one with --set train.batch=N"),
        (RuntimeError("a tensor is odd"), "RuntimeError: a tensor is odd"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: ..."),
            "out of memory at batch 16: use a smaller one with --set train.batch=N",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.safetensors"),
            "the disk is full: [Errno 28] No space left on device: 'x.safetensors'; make room, then give the command "
            "again",
        ),
    ],
)
def test_reasons(setup: Setup, monkeypatch, error: Exception, reason: str) -> None:
    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr("bench.experiment.pretrain", fail)
    assert setup.run("dense")[0].reason == reason


def test_a_failing_evaluation_loses_neither_the_training_nor_the_others(setup: Setup, monkeypatch) -> None:
    def at_half(request: EvaluationRequest, *rest: Any):
        if request.key.labels == 50:
            raise RuntimeError("a probe is odd")
        return evaluate(request, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("bench.evaluation.missing.evaluate", at_half)
        record, folder = setup.run("dense")
    # for whoever counts
    assert (record.status, record.reason) == (
        "failed",
        "RuntimeError: a probe is odd, in the evaluation linear-50-dense",
    )
    assert [path.stem for path in (folder / "evaluations").iterdir()] == ["linear-100-dense"]
    assert setup.store.done(record.run_id)
    assert "a probe is odd" in (folder / "log.txt").read_text()
    weights = (folder / "checkpoint.safetensors").read_bytes()

    def refuse(*args: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("bench.experiment.pretrain", refuse)
    record, _ = setup.run("dense")
    assert record.status == "done"
    assert len(list((folder / "evaluations").iterdir())) == 2
    assert (folder / "checkpoint.safetensors").read_bytes() == weights
    assert not (folder / "log.txt").exists()


def test_an_interruption_is_no_failure(setup: Setup, monkeypatch) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.experiment.pretrain", interrupt)
    with pytest.raises(KeyboardInterrupt):
        setup.run("dense")
    assert not list((setup.folder / "results").glob("*/record.json"))


@pytest.mark.parametrize("method", ["dense", "supervised"])
def test_a_training_that_went_on_under_other_conditions_says_so(setup: Setup, monkeypatch, method: str) -> None:
    class Stopped(Checkpoints):
        def due(self) -> bool:
            if self.restored is None:
                self.stopping._asked = 2
            return super().due()

    grid = small.grid(setup.folder, methods=method, evaluation__labels=[50], evaluation__probes=["linear"])
    (run,) = grid.runs()

    def attempt() -> Record:
        checkpoints = Stopped(setup.store.training(run.run_id))
        threads = torch.get_num_threads()
        return run_experiment(
            small.experiment(run, grid, setup.store, setup.cache, threads=threads, checkpoints=checkpoints)
        )

    here = conditions(environment(torch.get_num_threads()))
    with monkeypatch.context() as patch:
        patch.setattr("bench.records.environment.machine", lambda: "Another")
        with pytest.raises(KeyboardInterrupt):
            attempt()
    record = attempt()
    assert record.time is not None
    assert record.time.resumed == 1
    assert record.environment["also_trained_under"] == [{**here, "machine": "Another"}]
    assert changes(record.environment, here) == [
        f"machine: Another recorded, {here['machine']} found (for a part of the training)"
    ]


def test_floors_are_trained_by_one_rank_whatever_the_job_has(finished, monkeypatch) -> None:
    monkeypatch.setattr("bench.records.environment.ranks_here", lambda: 4)
    for method, ranks in (("untrained", 1), ("supervised", 1), ("dense", 4)):
        spec = RunSpec.model_validate(finished[method][0].spec)
        assert failure(spec, 1, "").environment["ranks"] == ranks


def test_data_that_changed_since_the_grid_was_planned(setup: Setup) -> None:
    grid = small.grid(setup.folder, methods="dense")
    (run,) = grid.runs("a" * 64)
    record = run_experiment(small.experiment(run, grid, setup.store, setup.cache))
    assert record.status == "failed"
    assert "has changed since the grid was planned: give the command again" in record.reason


@pytest.mark.parametrize("method", ["dense", "supervised"])
def test_who_comes_second_leaves_what_the_first_has_finished(setup: Setup, monkeypatch, capsys, method: str) -> None:
    """A process is frozen while it trains, and thaws when another has taken the run over and finished it."""
    train = "finetune" if method == "supervised" else "pretrain"
    real, written = getattr(module, train), {}

    def frozen(*args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(module, train, real)
            _, folder = setup.run(method, evaluation__labels=[50])
        written.update({path: path.read_bytes() for path in folder.rglob("*") if path.is_file()})
        return real(*args, **kwargs)

    monkeypatch.setattr(module, train, frozen)
    record, folder = setup.run(method, evaluation__labels=[50])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == written
    assert len(written) > 3
    assert record == setup.store.record(record.run_id)
    assert "another process took it over and finished it; its record stands" in capsys.readouterr().out


def test_an_evaluation_that_another_made_meanwhile_is_left(setup: Setup, monkeypatch) -> None:
    real, made = evaluate, []

    def frozen(*args: Any) -> Any:
        if not made:
            made.append(True)
            _, folder = setup.run("dense", evaluation__labels=[50])
            made.append((folder / "evaluations" / "linear-50-dense.json").stat().st_mtime_ns)
        return real(*args)

    monkeypatch.setattr("bench.evaluation.missing.evaluate", frozen)
    _, folder = setup.run("dense", evaluation__labels=[50])
    assert (folder / "evaluations" / "linear-50-dense.json").stat().st_mtime_ns == made[1]


PLUGIN = """
from methods import Entry
from methods.strategies.dense import Dense


class Mine(Dense):
    def forward(self, network, images, call):
        return super().forward(network, images * {factor}, call)


STRATEGIES = {{"mine": Entry(":Mine", "a variant", "a test", inference=("dense",))}}
"""


def test_a_plug_in_that_changed_since_the_grid_was_planned(setup: Setup, registries: None) -> None:
    """Its job waited in a queue: the record would name the code of then, and the weights would be those of now."""
    plugin = setup.folder / "mine.py"
    plugin.write_text(PLUGIN.format(factor=1.0))
    load_plugin(plugin)
    grid = small.grid(setup.folder, methods="mine")
    (run,) = grid.runs()
    assert run.code
    del STRATEGIES["mine"]  # the job's process, which reads the file anew
    plugin.write_text(PLUGIN.format(factor=0.5))
    load_plugin(plugin)
    record = run_experiment(small.experiment(run, grid, setup.store, setup.cache))
    assert record.status == "failed"
    assert "the plug-in of simclr/mine changed since the grid was planned: give the command again" in record.reason
    with pytest.raises(ValueError, match="the plug-in of simclr/mine changed"):  # any other rank's share of it
        train_along(run, setup.store, setup.cache, Checkpoints(setup.store.training(run.run_id)))


def test_encoder_weights_that_changed_since_the_grid_was_planned(setup: Setup) -> None:
    path = setup.folder / "first.safetensors"
    network = build(small.run_spec(setup.folder, "dense").parsed, small.run_spec(setup.folder, "dense").encoder, 0)
    state = {name: tensor.contiguous() for name, tensor in network.encoder.network.state_dict().items()}
    save_file(state, path)
    record, _ = setup.run("dense", encoder__weights=str(path))
    assert record.status == "done", record.reason
    assert record.spec["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    grid = small.grid(setup.folder, methods="dense", encoder__weights=str(path))
    (run,) = grid.runs()
    assert run.run_id == record.run_id
    save_file({name: 2 * tensor for name, tensor in state.items()}, path)
    (other,) = small.grid(setup.folder, methods="dense", encoder__weights=str(path)).runs()
    assert other.run_id != run.run_id
    store = Store(setup.folder / "elsewhere")
    failed = run_experiment(small.experiment(run, grid, store, setup.cache))
    assert failed.reason == (
        f"ValueError: the weights in {path} are not those that the run was planned with: put them back, or give the "
        "command again"
    )


def test_what_is_evaluated_is_what_the_record_names(setup: Setup) -> None:
    record, folder = setup.run("dense", evaluation__probes=["linear"])
    checkpoint = folder / "checkpoint.safetensors"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for path in (folder / "evaluations").iterdir():
        path.unlink()
    failed, _ = setup.run("dense", evaluation__probes=["linear"])
    assert failed.reason == f"{checkpoint} is not what the record names: put it back, or move {folder} away"
    assert not list((folder / "evaluations").iterdir())
    assert setup.store.done(record.run_id)
    checkpoint.write_bytes(whole)
    assert setup.run("dense", evaluation__probes=["linear"])[0].status == "done"


def test_the_time_of_a_floor_that_went_on_is_all_of_it(setup: Setup, finished, monkeypatch) -> None:
    class Slow(Checkpoints):
        """Is stopped after its first step, which takes a second."""

        def due(self) -> bool:
            if self.restored is None:
                time.sleep(1.0)
                self.stopping._asked = 2
            return super().due()

    monkeypatch.setenv("WORLD_SIZE", "2")  # of the job: a baseline is trained by one rank
    grid = small.grid(setup.folder, methods="supervised", evaluation__labels=[50])
    (run,) = grid.runs()
    records = []
    for _ in range(2):
        checkpoints = Slow(setup.store.training(run.run_id))
        try:
            records.append(
                run_experiment(small.experiment(run, grid, setup.store, setup.cache, checkpoints=checkpoints))
            )
        except KeyboardInterrupt:
            continue
    (record,) = records
    assert record.time is not None
    assert record.time.resumed == 1
    assert record.time.wall_seconds > 1.0
    assert record.environment["ranks"] == 1
    assert "also_trained_under" not in record.environment  # for it went on where it began
    assert record.weights_sha256 == finished["supervised"][0].weights_sha256
    assert record.time.steps_per_second == pytest.approx(record.time.steps / record.time.wall_seconds)
