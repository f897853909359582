"""One spec -> one record: load the data, pre-train, measure, evaluate, write it down."""

from __future__ import annotations

import contextlib
import functools
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from bench.checkpoint import Checkpoints
from bench.course import TrainingFailed, with_todays
from bench.device import one_device
from bench.diagnose import learning, selection_figure
from bench.environment import now
from bench.evaluate import Bench, Features, classify, evaluate, summarise
from bench.finetune import Classifier, finetune, finetune_steps, spent
from bench.outcome import EvaluationFailed, failure, reason_of, record_of, timing, write_failure
from bench.pretrain import Report, Trained, build, pretrain, views_of
from bench.ranks import RanksLost, fabric_of, leading
from bench.record import Evaluation, Record
from bench.seal import sha256
from bench.spec import DataSpec, EvaluationSpec, FinetuneSpec, RunSpec
from bench.store import Store, evaluation_name, missing_evaluations, write_atomically
from bench.weigh import macs_of, memory_of
from datasets import load
from datasets.splits import make_splits
from methods import code_of
from methods.objectives.objective import Objective


@dataclass(frozen=True)
class Attempt:
    """A run that is being made: what each of its stages is given."""

    spec: RunSpec
    bench: Bench
    store: Store
    threads: int
    started: str
    report: Report
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
        took it over while this one was frozen (`bench.claims`), that is left as it is."""
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
        parts |= {"bench": self.bench, "objective": objective, "weights_sha256": sha256(weights)}
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
    report: Report,
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
        bench = prepare(spec, fabric, cache)
        if record is None or record.status != "done":
            record = _train(Attempt(spec, bench, store, threads, started, report, checkpoints))
        checkpoints.clear()
        _evaluate(spec, evaluation, tuning, bench, store, report)
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
    bench = prepare(spec, one_device(spec.train.precision), cache)
    fabric = fabric_of(spec.train.precision)
    with contextlib.suppress(TrainingFailed):  # as it did on rank 0, which writes it down
        pretrain(spec, bench.data, bench.splits.train, fabric, lambda state: None, checkpoints)


def prepare(spec: RunSpec, fabric: Fabric, cache: Path | None) -> Bench:
    """The run's data, splits and views. Raises ValueError where what its id stands for is not what is here: a job may
    wait for days in a queue, and files change meanwhile."""
    if code_of(spec.parsed.objective, spec.parsed.strategy) != spec.code:
        raise ValueError(f"the plug-in of {spec.method} changed since the grid was planned: give the command again")
    if spec.weights_sha256 not in ("", spec.encoder.weights_digest()):
        raise ValueError(
            f"the weights in {spec.encoder.weights} are not those that the run was planned with: put them back, or "
            "give the command again"
        )
    data = _load(spec.data.model_dump_json(), spec.encoder.image_size, cache, spec.fingerprint)
    if spec.fingerprint not in ("", data.fingerprint):
        raise ValueError(f"data set '{data.name}' has changed since the grid was planned: give the command again")
    splits = make_splits(data, spec.data.split_seed, spec.data.val, spec.data.test)
    return Bench(data, splits, views_of(spec), fabric, spec.seed)


@functools.lru_cache(maxsize=2)
def _load(spec: str, image_size: int, cache: Path | None, fingerprint: str) -> Any:
    """A data set once a process: a worker makes many runs on it. Another `fingerprint` has it read again."""
    data = DataSpec.model_validate_json(spec)
    return load(data.name, image_size, Path(data.root) if data.root else None, cache, **data.options)


def _train(run: Attempt) -> Record:
    """Pre-train (a floor does not), look at what was learnt, count and weigh it, write the record."""
    spec, bench = run.spec, run.bench
    torch.manual_seed(spec.seed)
    trained: Trained | None = None
    if spec.parsed.strategy == "supervised":
        return _train_supervised(run)
    if spec.parsed.strategy == "untrained":
        objective = build(spec.parsed, spec.encoder, spec.seed)
    else:
        fabric = fabric_of(spec.train.precision)
        with leading(fabric, spec):
            trained = pretrain(spec, bench.data, bench.splits.train, fabric, run.report, run.checkpoints)
        objective = trained.objective
    run.report({"doing": "diagnosing"})
    encoder = objective.encoder.eval()
    features = Features(encoder, bench)
    learnt = learning(trained, features, bench, spec.train.batch)
    figure = selection_figure(encoder, bench) if spec.data.publish else None
    weights = _packed(encoder)
    macs = macs_of(objective, spec, bench, trained.steps if trained else 0)
    memory = memory_of(objective, spec, bench) if trained else None
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
    """The floor that learns from labels alone: one network a fraction (its first draw)."""
    spec, bench = run.spec, run.bench
    assert spec.labels is not None and spec.finetune is not None
    objective = build(spec.parsed, spec.encoder, spec.seed)
    index = bench.draws(spec.labels, 1)[0]
    clock = time.perf_counter()
    classifier = finetune(
        objective.encoder,
        bench.data,
        index,
        spec.finetune,
        bench.views,
        seed=spec.seed,
        inference="dense",
        fabric=bench.fabric,
        report=run.report,
        checkpoints=run.checkpoints,
    )
    point = run.checkpoints.restored
    before, resumed = spent(point)
    seconds = before + time.perf_counter() - clock
    return run.finish(
        objective,
        _packed(classifier),
        macs=macs_of(objective, spec, bench, 0),
        time=timing(finetune_steps(len(index), spec.finetune), seconds, resumed),
        under=() if point is None else with_todays(point.position),
    )


def _evaluate(
    spec: RunSpec, evaluation: EvaluationSpec, tuning: FinetuneSpec, bench: Bench, store: Store, report: Report
) -> None:
    """Make what is missing, from the checkpoint on disk: new fractions and probes never train anew."""
    missing = missing_evaluations(store, spec, evaluation, tuning)
    if not missing:
        return
    objective = build(spec.parsed, spec.encoder, spec.seed)
    tensors = load_tensors(_weights(store, spec.run_id))
    if spec.labels is not None:
        _evaluate_supervised(spec, evaluation, bench, store, objective, tensors)
        return
    objective.encoder.load_state_dict(tensors)
    features = Features(objective.encoder.eval(), bench)
    errors: list[Exception] = []
    for i, (probe, labels, inference) in enumerate(missing):
        report({"doing": f"{probe} at {labels:g} %", "step": i, "steps": len(missing)})
        try:
            result, predictions = evaluate(
                spec.run_id, features, bench, evaluation, tuning, probe, labels, inference, report
            )
            _write(store, result, predictions)
        except Exception as error:  # the others are made all the same
            error.add_note(f"in the evaluation {evaluation_name(probe, labels, inference)}")
            errors.append(error)
    if errors:
        first = f"{reason_of(errors[0], spec)}, {errors[0].__notes__[-1]}"
        more = "" if len(errors) == 1 else f" (the first of {len(errors)} evaluations of {len(missing)} that failed)"
        raise EvaluationFailed(first + more) from errors[0]


def _evaluate_supervised(
    spec: RunSpec, evaluation: EvaluationSpec, bench: Bench, store: Store, objective: Objective, tensors: Any
) -> None:
    assert spec.labels is not None and spec.finetune is not None
    classifier = Classifier(objective.encoder, bench.data.labels.shape[1], "dense").eval()
    classifier.load_state_dict(tensors)
    index = bench.draws(spec.labels, 1)[0]
    scores = classify(classifier.to(bench.fabric.device), bench, bench.images_scored(evaluation.split))
    result, predictions = summarise(
        spec.run_id,
        scores[None].astype("float32"),
        bench,
        evaluation,
        spec.finetune,
        "finetune",
        spec.labels,
        "dense",
        [index],
        [{"lr": spec.finetune.lr}],
    )
    _write(store, result, predictions)


def _write(store: Store, made: Evaluation, predictions: dict[str, npt.NDArray[Any]]) -> None:
    """An evaluation, unless another process has made it meanwhile, as in `Attempt.finish`."""
    name = evaluation_name(made.probe, made.labels, made.inference)
    if not store.has_evaluation(made.run_id, name, made.settings):
        store.write_evaluation(name, made, predictions)


def _packed(module: torch.nn.Module) -> bytes:
    """Its weights as a .safetensors file: names, shapes and bytes."""
    return save_tensors({name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()})


def _weights(store: Store, run_id: str) -> bytes:
    """What `_packed` made. Raises EvaluationFailed where it is not what the record names."""
    path, record = store.folder(run_id) / "checkpoint.safetensors", store.record(run_id)
    content = path.read_bytes()
    if record is None or sha256(content) != record.weights_sha256:
        raise EvaluationFailed(f"{path} is not what the record names: put it back, or move {path.parent} away")
    return content
