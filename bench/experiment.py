"""One run, from its spec to its record: the main path.

    data and views -> pre-train -> diagnose -> measure -> record -> evaluate

Measuring here means MACs and memory; time is measured before, for all methods of a grid together (`measure/table.py`).
The record of the pre-training is written first. Evaluations are files of their own, made from the stored checkpoint, so
that new label fractions and probes never train again.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from bench.evaluation.diagnose import learning, selection_figure
from bench.evaluation.features import Features
from bench.evaluation.lesions import lesions_kept
from bench.evaluation.missing import evaluate_missing
from bench.measure.run_cost import macs_of, memory_of
from bench.records.environment import now
from bench.records.outcome import failure, record_of, timing, write_failure
from bench.records.record import Record
from bench.records.seal import sha256
from bench.records.store import Store, write_atomically
from bench.specs.run_spec import EvaluationSpec, FinetuneSpec, RunSpec
from bench.training.build import build
from bench.training.checkpoint import Checkpoints
from bench.training.data import RunData, data_record, load_run_data, split_record
from bench.training.device import one_device
from bench.training.failures import RanksLost, TrainingFailed, reason_of
from bench.training.finetune import finetune, finetune_steps, spent
from bench.training.history import ProgressCallback, with_current_conditions
from bench.training.pretrain import Trained, pretrain
from bench.training.ranks import fabric_of, leading
from methods import ALL_TOKENS, SUPERVISED, UNTRAINED
from methods.objectives.objective import Objective


@dataclass(frozen=True)
class Experiment:
    """One run that is to be made or completed, and what all of its stages are given."""

    spec: RunSpec
    evaluation: EvaluationSpec
    finetune: FinetuneSpec  # of the probe that trains the network
    store: Store
    cache: Path | None  # of data sets
    threads: int
    progress: ProgressCallback
    checkpoints: Checkpoints


@dataclass(frozen=True)
class Made:
    """What a run leaves: its network, files, and measurements by the record's own names."""

    objective: Objective
    weights: bytes  # checkpoint.safetensors
    parts: dict[str, Any]  # of the record: learning, macs, time, memory
    history: list[dict[str, Any]] | None = None  # one entry per epoch
    figure: dict[str, npt.NDArray[Any]] | None = None  # images and what is kept of them
    lesions: dict[str, npt.NDArray[Any]] | None = None  # what is kept of them
    trained_under: list[dict[str, Any]] = field(default_factory=list)  # conditions, see `bench.records.environment`


def run_experiment(run: Experiment) -> Record:
    """Bring one run up to date: pre-train it if it is not done, then make the evaluations that are missing.

    A failure (an exception, a loss that is not finite) becomes a record with its reason. Only interruptions are raised,
    and RanksLost where the ranks can't make another run. Mistakes in the data are found earlier, when the grid is
    planned.
    """
    spec, store, started = run.spec, run.store, now()
    try:
        record = store.record(spec.run_id)
        run_data = load_run_data(spec, one_device(spec.train.precision), run.cache)
        if record is None or record.status != "done":
            torch.manual_seed(spec.seed)
            make = train_on_labels if spec.parsed.strategy == SUPERVISED else pretrain_and_measure
            record = write_run(run, run_data, make(run, run_data), started)
        run.checkpoints.clear()  # the weights are recorded; evaluations start from those
        evaluate_missing(spec, run.evaluation, run.finetune, run_data, store, run.progress)
        store.log(spec.run_id).unlink(missing_ok=True)  # of an earlier failure
        return record
    except Exception as error:
        failed = failure(spec, run.threads, reason_of(error, spec), started)
        write_failure(store, failed, traceback.format_exc())
        if isinstance(error, RanksLost):
            raise
        return failed


def pretrain_and_measure(run: Experiment, run_data: RunData) -> Made:
    """Pre-train the method's encoder, diagnose what it learned, measure what it costs."""
    spec = run.spec
    trained = None if spec.parsed.strategy == UNTRAINED else _pretrain(run, run_data)
    objective = build(spec.parsed, spec.encoder, spec.seed) if trained is None else trained.objective
    encoder = objective.encoder.eval()
    run.progress({"doing": "diagnosing"})
    features = Features(encoder, run_data)
    parts: dict[str, Any] = {"learning": learning(trained, features, run_data, spec.train.batch)}
    lesions = lesions_kept(features)
    figure = selection_figure(encoder, run_data) if spec.data.publish else None
    weights = _packed(encoder)
    parts["macs"] = macs_of(objective, spec, run_data, trained.steps if trained else 0)
    if trained is None:
        return Made(objective, weights, parts, [], figure, lesions)
    parts["time"] = timing(trained.steps, trained.seconds, trained.resumed)
    parts["memory"] = memory_of(objective, spec, run_data)
    return Made(objective, weights, parts, trained.history, figure, lesions, trained.conditions)


def _pretrain(run: Experiment, run_data: RunData) -> Trained:
    """Pre-train with all ranks that this process has met."""
    fabric = fabric_of(run.spec.train.precision)
    weights = initial_weights(run.spec, run.store)
    with leading(fabric, run.spec):
        return pretrain(
            run.spec, run_data.dataset, run_data.splits.train, fabric, run.progress, run.checkpoints, weights
        )


def initial_weights(spec: RunSpec, store: Store) -> dict[str, Tensor] | None:
    """Weights of the encoder of the run that this one continues; None if it starts from scratch. Raises
    TrainingFailed."""
    if spec.start is None:
        return None
    try:
        return load_tensors(store.weights(spec.start.run_id))
    except (OSError, ValueError) as error:
        raise TrainingFailed(f"it continues {spec.start.run_id}, whose weights can't be used: {error}") from error


def train_along(spec: RunSpec, store: Store, cache: Path | None, checkpoints: Checkpoints) -> None:
    """Do the share of a pre-training that falls to a rank other than 0."""
    run_data = load_run_data(spec, one_device(spec.train.precision), cache)
    fabric = fabric_of(spec.train.precision)
    with contextlib.suppress(TrainingFailed):  # rank 0 fails alike, and writes it down
        weights = initial_weights(spec, store)
        pretrain(spec, run_data.dataset, run_data.splits.train, fabric, lambda state: None, checkpoints, weights)


def train_on_labels(run: Experiment, run_data: RunData) -> Made:
    """Train the `supervised` baseline: one network from scratch, on the first draw of its label fraction."""
    spec = run.spec
    assert spec.labels is not None and spec.finetune is not None
    objective = build(spec.parsed, spec.encoder, spec.seed)
    index = run_data.draws(spec.labels, 1)[0]
    clock = time.perf_counter()
    classifier = finetune(
        objective.encoder,
        run_data,
        index,
        spec.finetune,
        inference=ALL_TOKENS,
        progress=run.progress,
        checkpoints=run.checkpoints,
    )
    position = run.checkpoints.restored
    before, resumed = spent(position)
    seconds = before + time.perf_counter() - clock
    parts = {
        "macs": macs_of(objective, spec, run_data, 0),
        "time": timing(finetune_steps(len(index), spec.finetune), seconds, resumed),
    }
    under = [] if position is None else with_current_conditions(position.state)
    return Made(objective, _packed(classifier), parts, trained_under=under)


def write_run(run: Experiment, run_data: RunData, made: Made, started: str) -> Record:
    """Write what a run leaves, its record last.

    Another process may have taken the run over and finished it while this one was frozen (`bench.launch.leases`): then
    everything is left as it is.
    """
    store, run_id = run.store, run.spec.run_id
    done = store.record(run_id)
    if done is not None and done.status == "done":
        print(f"{run_id}: another process took it over and finished it; its record stands", flush=True)
        return done
    write_atomically(store.folder(run_id) / "checkpoint.safetensors", made.weights)
    if made.figure is not None:
        store.write_arrays(store.folder(run_id) / "selection.npz", made.figure)
    if made.lesions is not None:
        store.write_arrays(store.folder(run_id) / "lesions.npz", made.lesions)
    if made.history is not None:
        store.write_history(run_id, made.history)
    record = record_of(
        run.spec,
        started,
        run.threads,
        data=data_record(run_data),
        splits=split_record(run_data),
        objective=made.objective,
        under=made.trained_under,
        weights_sha256=sha256(made.weights),
        **made.parts,
    )
    store.write_record(record)
    return record


def _packed(module: nn.Module) -> bytes:
    """The weights of a network as a .safetensors file: names, shapes and bytes."""
    return save_tensors({name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()})
