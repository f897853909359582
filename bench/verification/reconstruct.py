"""Rebuilds the data and the network of a record, and reruns it: the only module here that calls the experiment."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from safetensors.torch import load_file

from bench.experiment import Experiment, run_experiment
from bench.records.environment import cores, raise_allocator_thresholds
from bench.records.record import Evaluation, Record
from bench.records.store import Store
from bench.specs.run_spec import EvaluationSpec, FinetuneSpec, RunSpec
from bench.training.build import build
from bench.training.checkpoint import Checkpoints
from bench.training.data import RunData, load_run_data
from bench.training.device import one_device, threads_of
from bench.training.history import ProgressCallback
from bench.verification.files import Source
from methods.objectives.objective import Objective

NO_SETTINGS = "it does not state how it was made: an earlier version of the code wrote it"
_NOTHING = (EvaluationSpec(labels=(), probes=()), FinetuneSpec())


def run_data_of(spec: RunSpec, cache: Path | None) -> RunData:
    """The data that the spec names, whatever their fingerprint, with their splits. Raises what loading raises."""
    fabric = one_device(spec.train.precision)
    return load_run_data(spec.model_copy(update={"fingerprint": ""}), fabric, cache)


def objective_of(spec: RunSpec, checkpoint: Path | None) -> Objective:
    """The objective of the method, its encoder with the weights of a `checkpoint` where one is given."""
    objective = build(spec.parsed, spec.encoder, spec.seed)
    if checkpoint is not None and spec.labels is None:
        objective.encoder.load_state_dict(load_file(checkpoint))
    return objective


def how(one: Evaluation) -> tuple[EvaluationSpec, FinetuneSpec]:
    """The settings of an evaluation; the second only matters for a probe that trains the network. Raises ValueError
    where it does not state them."""
    if not one.spec:
        raise ValueError(NO_SETTINGS)
    return EvaluationSpec.model_validate(one.spec), FinetuneSpec.model_validate(one.finetune)


def rerun(source: Source, spec: RunSpec, results: Path, cache: Path | None, progress: ProgressCallback) -> Record:
    """Rerun a record with its evaluations into a results folder of its own, with the recorded number of threads. The
    run that it continues is rerun before."""
    store, threads = Store(results), _threads_of(source.record)
    raise_allocator_thresholds()
    runs = [(spec, *way) for way in _ways(source)]
    if spec.start is not None and not store.done(spec.run_id):
        runs.insert(0, (spec.start, *_NOTHING))
    with threads_of(threads):
        for run, evaluation, tuning in runs:
            checkpoints = Checkpoints(store.training(run.run_id))
            record = run_experiment(Experiment(run, evaluation, tuning, store, cache, threads, progress, checkpoints))
            if record.status == "failed":
                break
    return record


def _ways(source: Source) -> list[tuple[EvaluationSpec, FinetuneSpec]]:
    """The settings of all recorded evaluations, those that differ in the fraction alone together. The first asks for
    nothing, so that the run is made even where none is recorded."""
    fractions: dict[tuple[EvaluationSpec, FinetuneSpec], set[float]] = {_NOTHING: set()}
    for one in source.evaluations.values():
        with suppress(ValueError):  # without settings it can't be repeated
            evaluation, tuning = how(one)
            fractions.setdefault((evaluation.model_copy(update={"labels": ()}), tuning), set()).add(one.labels)
    return [
        (evaluation.model_copy(update={"labels": tuple(sorted(labels))}), tuning)
        for (evaluation, tuning), labels in fractions.items()
    ]


def _threads_of(record: Record) -> int:
    """The recorded number, up to the cores of this machine: with fewer cores it is another machine in any case."""
    return min(int(record.environment.get("threads", 1)), cores())
