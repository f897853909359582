"""One spec -> one record: load the data, pre-train, measure, evaluate, write it down."""

from __future__ import annotations

import contextlib
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from safetensors.torch import save as save_tensors

from bench.evaluation.diagnose import learning, selection_figure
from bench.evaluation.evaluate import Features
from bench.evaluation.missing import _evaluate
from bench.measure.run_cost import macs_of, memory_of
from bench.records.environment import now
from bench.records.outcome import failure, record_of, timing, write_failure
from bench.records.record import Record
from bench.records.seal import sha256
from bench.records.store import Store, write_atomically
from bench.specs.run_spec import EvaluationSpec, FinetuneSpec, RunSpec
from bench.training.build import build
from bench.training.checkpoint import Checkpoints
from bench.training.data import RunData, data_record, prepare, split_record
from bench.training.device import one_device
from bench.training.failures import RanksLost, TrainingFailed, reason_of
from bench.training.finetune import finetune, finetune_steps, spent
from bench.training.history import ProgressCallback, with_current_conditions
from bench.training.pretrain import Trained, pretrain
from bench.training.ranks import fabric_of, leading
from methods import ALL_TOKENS, SUPERVISED, UNTRAINED
from methods.objectives.objective import Objective


@dataclass(frozen=True)
class Attempt:
    """A run that is being made: what each of its stages is given."""

    spec: RunSpec
    run_data: RunData
    store: Store
    threads: int
    started: str
    progress: ProgressCallback
    checkpoints: Checkpoints

    def finish(
        self,
        objective: Objective,
        weights: bytes,
        history: list[dict[str, Any]] | None = None,
        figure: dict[str, npt.NDArray[Any]] | None = None,
        **parts: Any,
    ) -> Record:
        """The finished run, written down, its record last. Where another process has finished it meanwhile, which
        took it over while this one was frozen (`bench.launch.leases`), that is left as it is."""
        store, run_id = self.store, self.spec.run_id
        done = store.record(run_id)
        if done is not None and done.status == "done":
            print(f"{run_id}: another process took it over and finished it; its record stands", flush=True)
            return done
        write_atomically(store.folder(run_id) / "checkpoint.safetensors", weights)
        if figure is not None:
            store.write_arrays(store.folder(run_id) / "selection.npz", figure)
        if history is not None:
            store.write_history(run_id, history)
        parts |= {"data": data_record(self.run_data), "splits": split_record(self.run_data)}
        parts |= {"objective": objective, "weights_sha256": sha256(weights)}
        made = record_of(self.spec, self.started, self.threads, **parts)
        store.write_record(made)
        return made


def run_experiment(
    spec: RunSpec,
    evaluation: EvaluationSpec,
    tuning: FinetuneSpec,
    store: Store,
    cache: Path | None,
    threads: int,
    progress: ProgressCallback,
    checkpoints: Checkpoints | None = None,
) -> Record:
    """Bring one run up to date: pre-train it if it is not done, then make the evaluations that are missing.

    A failure (an exception, a loss that is not finite) becomes a record with its reason; nothing is raised but an
    interruption, and RanksLost where its ranks can't make another run. Users' mistakes in the data are raised before,
    when the grid is planned.
    """
    started = now()
    checkpoints = checkpoints or Checkpoints(store.training(spec.run_id))
    try:
        record = store.record(spec.run_id)
        fabric = one_device(spec.train.precision)
        run_data = prepare(spec, fabric, cache)
        if record is None or record.status != "done":
            record = _train(Attempt(spec, run_data, store, threads, started, progress, checkpoints))
        checkpoints.clear()
        _evaluate(spec, evaluation, tuning, run_data, store, progress)
        store.log(spec.run_id).unlink(missing_ok=True)  # of an earlier failure
        return record
    except Exception as error:
        failed = failure(spec, threads, reason_of(error, spec), started)
        write_failure(store, failed, traceback.format_exc())
        if isinstance(error, RanksLost):
            raise
        return failed


def train_along(spec: RunSpec, cache: Path | None, checkpoints: Checkpoints) -> None:
    """What a rank other than 0 does of a run: its share of the pre-training."""
    run_data = prepare(spec, one_device(spec.train.precision), cache)
    fabric = fabric_of(spec.train.precision)
    with contextlib.suppress(TrainingFailed):  # as it did on rank 0, which writes it down
        pretrain(spec, run_data.dataset, run_data.splits.train, fabric, lambda state: None, checkpoints)


def _train(run: Attempt) -> Record:
    """Pre-train (a baseline does not), look at what was learnt, count and weigh it, write the record."""
    spec, run_data = run.spec, run.run_data
    torch.manual_seed(spec.seed)
    trained: Trained | None = None
    if spec.parsed.strategy == SUPERVISED:
        return _train_supervised(run)
    if spec.parsed.strategy == UNTRAINED:
        objective = build(spec.parsed, spec.encoder, spec.seed)
    else:
        fabric = fabric_of(spec.train.precision)
        with leading(fabric, spec):
            trained = pretrain(spec, run_data.dataset, run_data.splits.train, fabric, run.progress, run.checkpoints)
        objective = trained.objective
    run.progress({"doing": "diagnosing"})
    encoder = objective.encoder.eval()
    features = Features(encoder, run_data)
    learnt = learning(trained, features, run_data, spec.train.batch)
    figure = selection_figure(encoder, run_data) if spec.data.publish else None
    weights = _packed(encoder)
    macs = macs_of(objective, spec, run_data, trained.steps if trained else 0)
    memory = memory_of(objective, spec, run_data) if trained else None
    return run.finish(
        objective,
        weights,
        trained.history if trained else [],
        figure,
        macs=macs,
        time=None if trained is None else timing(trained.steps, trained.seconds, trained.resumed),
        under=() if trained is None else trained.conditions,
        memory=memory,
        learning=learnt,
    )


def _train_supervised(run: Attempt) -> Record:
    """The baseline that learns from labels alone: one network a fraction (its first draw)."""
    spec, run_data = run.spec, run.run_data
    assert spec.labels is not None and spec.finetune is not None
    objective = build(spec.parsed, spec.encoder, spec.seed)
    index = run_data.draws(spec.labels, 1)[0]
    clock = time.perf_counter()
    classifier = finetune(
        objective.encoder,
        run_data.dataset,
        index,
        spec.finetune,
        run_data.views,
        seed=spec.seed,
        inference=ALL_TOKENS,
        fabric=run_data.fabric,
        progress=run.progress,
        checkpoints=run.checkpoints,
    )
    position = run.checkpoints.restored
    before, resumed = spent(position)
    seconds = before + time.perf_counter() - clock
    return run.finish(
        objective,
        _packed(classifier),
        macs=macs_of(objective, spec, run_data, 0),
        time=timing(finetune_steps(len(index), spec.finetune), seconds, resumed),
        under=() if position is None else with_current_conditions(position.state),
    )


def _packed(module: torch.nn.Module) -> bytes:
    """Its weights as a .safetensors file: names, shapes and bytes."""
    return save_tensors({name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()})
