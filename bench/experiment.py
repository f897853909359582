"""One spec -> one record: load the data, pre-train, measure, evaluate, write it down."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from bench.checkpoint import Checkpoints
from bench.course import TrainingFailed
from bench.device import one_device
from bench.diagnose import learning, selection_figure
from bench.environment import environment
from bench.evaluate import Bench, Features, classify, evaluate, summarise
from bench.finetune import Classifier, finetune, finetune_steps, spent
from bench.measure.macs import count
from bench.measure.memory import peak_mib, saved_bytes
from bench.pretrain import Report, Trained, build, keep_now, pretrain, views_of
from bench.ranks import RanksLost, fabric_of, leading
from bench.record import DataRecord, Memory, Record, SplitRecord, Timing
from bench.spec import SCIENCE_VERSION, DataSpec, EvaluationSpec, FinetuneSpec, RunSpec
from bench.store import Store, evaluation_name, missing_evaluations, write_atomically
from datasets import load
from datasets.splits import make_splits
from methods.noise import Noise
from methods.objectives.objective import Objective
from methods.strategies.strategy import Call


class EvaluationFailed(Exception):
    """An evaluation failed, the others of the run were made; the message is the reason."""


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
    started = _now()
    checkpoints = checkpoints or Checkpoints(store.training(spec.run_id))
    try:
        record = store.record(spec.run_id)
        fabric = one_device(spec.train.precision)
        bench = prepare(spec, fabric, cache)
        if record is None or record.status != "done":
            record = _train(spec, bench, store, threads, started, report, checkpoints)
        checkpoints.clear()
        _evaluate(spec, evaluation, tuning, bench, store, report)
        store.log(spec.run_id).unlink(missing_ok=True)  # of an earlier failure
        return record
    except Exception as error:
        failed = failure(spec, threads, _reason(error, spec), started)
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


def failure(spec: RunSpec, threads: int, reason: str, started: str = "") -> Record:
    """The record of a run that failed."""
    return _record(spec, started or _now(), threads, status="failed", reason=reason)


def write_failure(store: Store, failed: Record, log: str) -> None:
    """Put a failure on disk, unless the training is done: that is never lost to an evaluation that fails. Where the
    disk takes no more, the record says so to whoever is at hand to hear it."""
    try:
        write_atomically(store.log(failed.run_id), log.encode())
        if not store.done(failed.run_id):
            store.write_record(failed)
    except OSError as error:
        print(f"{failed.run_id} failed: {failed.reason}; and this can't be written down: {error}", flush=True)


def prepare(spec: RunSpec, fabric: Fabric, cache: Path | None) -> Bench:
    """The run's data, splits and views."""
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


def _train(
    spec: RunSpec,
    bench: Bench,
    store: Store,
    threads: int,
    started: str,
    report: Report,
    checkpoints: Checkpoints,
) -> Record:
    """Pre-train (a floor does not), look at what was learnt, count and weigh it, write the record."""
    torch.manual_seed(spec.seed)
    trained: Trained | None = None
    if spec.parsed.strategy == "supervised":
        return _train_supervised(spec, bench, store, threads, started, report, checkpoints)
    if spec.parsed.strategy == "untrained":
        objective = build(spec.parsed, spec.encoder, spec.seed)
    else:
        fabric = fabric_of(spec.train.precision)
        with leading(fabric, spec):
            trained = pretrain(spec, bench.data, bench.splits.train, fabric, report, checkpoints)
        objective = trained.objective
    report({"doing": "diagnosing"})
    encoder = objective.encoder.eval()
    features = Features(encoder, bench)
    learnt = learning(trained, features, bench, spec.train.batch)
    figure = selection_figure(encoder, bench)
    if figure is not None and spec.data.publish:
        store.write_arrays(store.folder(spec.run_id) / "selection.npz", figure)
    digest = _save(store, spec, encoder)
    steps = trained.steps if trained else 0
    record = _record(
        spec,
        started,
        threads,
        bench=bench,
        objective=objective,
        macs=count(objective, spec.encoder, spec.train, steps),
        time=None if trained is None else _timing(trained.steps, trained.seconds, trained.resumed),
        memory=_memory(objective, spec, bench) if trained else None,
        learning=learnt,
        weights_sha256=digest,
    )
    store.write_history(spec.run_id, trained.history if trained else [])
    store.write_record(record)
    return record


def _train_supervised(
    spec: RunSpec,
    bench: Bench,
    store: Store,
    threads: int,
    started: str,
    report: Report,
    checkpoints: Checkpoints,
) -> Record:
    """The floor that learns from labels alone: one network a fraction (its first draw)."""
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
        report=report,
        checkpoints=checkpoints,
    )
    before, resumed = spent(checkpoints.restored)
    seconds, digest = before + time.perf_counter() - clock, _save(store, spec, classifier)
    record = _record(
        spec,
        started,
        threads,
        bench=bench,
        objective=objective,
        macs=count(objective, spec.encoder, spec.train, 0),
        time=_timing(finetune_steps(len(index), spec.finetune), seconds, resumed),
        weights_sha256=digest,
    )
    store.write_record(record)
    return record


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
            store.write_evaluation(evaluation_name(probe, labels, inference), result, predictions)
        except Exception as error:  # the others are made all the same
            error.add_note(f"in the evaluation {evaluation_name(probe, labels, inference)}")
            errors.append(error)
    if errors:
        first = f"{_reason(errors[0], spec)}, {errors[0].__notes__[-1]}"
        more = "" if len(errors) == 1 else f" (the first of {len(errors)} evaluations of {len(missing)} that failed)"
        raise EvaluationFailed(first + more) from errors[0]


def _evaluate_supervised(
    spec: RunSpec, evaluation: EvaluationSpec, bench: Bench, store: Store, objective: Objective, tensors: Any
) -> None:
    assert spec.labels is not None and spec.finetune is not None
    classifier = Classifier(objective.encoder, bench.data.labels.shape[1], "dense").eval()
    classifier.load_state_dict(tensors)
    index = bench.draws(spec.labels, 1)[0]
    scores = classify(classifier.to(bench.fabric.device), bench, bench.images_of(evaluation.split))
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
    store.write_evaluation(evaluation_name("finetune", spec.labels, "dense"), result, predictions)


def _save(store: Store, spec: RunSpec, module: torch.nn.Module) -> str:
    """Write the weights; returns their SHA-256 (of names, shapes and bytes)."""
    content = save_tensors({name: t.detach().cpu().contiguous() for name, t in module.state_dict().items()})
    write_atomically(store.folder(spec.run_id) / "checkpoint.safetensors", content)
    return hashlib.sha256(content).hexdigest()


def _weights(store: Store, run_id: str) -> bytes:
    """What `_save` wrote. Raises EvaluationFailed where it is not what the record names."""
    path, record = store.folder(run_id) / "checkpoint.safetensors", store.record(run_id)
    content = path.read_bytes()
    if record is None or hashlib.sha256(content).hexdigest() != record.weights_sha256:
        raise EvaluationFailed(f"{path} is not what the record names: put it back, or move {path.parent} away")
    return content


def _timing(steps: int, seconds: float, resumed: int = 0) -> Timing:
    return Timing(steps=steps, steps_per_second=steps / max(seconds, 1e-9), wall_seconds=seconds, resumed=resumed)


def _memory(objective: Objective, spec: RunSpec, bench: Bench) -> Memory:
    """What a step at the target keep ratio keeps for backward, and the peak so far."""
    index = bench.splits.train[: min(16, len(bench.splits.train))]
    parameters = bench.views.draw(torch.Generator().manual_seed(0), len(index))
    images = torch.from_numpy(bench.data.images[index]).to(bench.fabric.device)
    views, _ = bench.views.apply(images, parameters)
    lesions = None
    if objective.encoder.strategy.needs_lesions:
        lesions = torch.zeros(2 * len(index), objective.encoder.geometry.patches, device=bench.fabric.device)
    call = Call(keep=keep_now(objective, 1.0, 0.0), noise=Noise(0, 0, len(index)), lesions=lesions)
    peak, of = peak_mib()
    return Memory(saved_bytes_per_image=saved_bytes(objective, views, call), peak_mib=peak, peak_of=of)


def _record(
    spec: RunSpec,
    started: str,
    threads: int,
    *,
    status: str = "done",
    reason: str = "",
    bench: Bench | None = None,
    objective: Objective | None = None,
    **parts: Any,
) -> Record:
    method = spec.parsed
    strategy = None if objective is None else objective.encoder.strategy
    return Record(
        science_version=SCIENCE_VERSION,
        run_id=spec.run_id,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        method=method.name,
        objective=method.objective,
        strategy=method.strategy,
        spec=spec.model_dump(mode="json"),
        settings=spec.settings,
        evidence=spec.evidence,
        data=None if bench is None else data_record(bench),
        splits=None if bench is None else split_record(bench),
        keep=method.keep,
        keep_effective=None if strategy is None else strategy.target,
        train_execution="none" if method.objective == "none" or strategy is None else strategy.train_execution,
        environment=environment(threads),
        started=started,
        finished=_now(),
        **parts,
    )


def data_record(bench: Bench) -> DataRecord:
    """What a record says of the data."""
    data = bench.data
    return DataRecord(
        name=data.name,
        fingerprint=data.fingerprint,
        label_names=data.label_names,
        patient_ids_known=data.patient_ids_known,
        notes=data.notes,
    )


def split_record(bench: Bench) -> SplitRecord:
    """What a record says of the splits."""
    splits = bench.splits
    return SplitRecord(
        hash=splits.hash,
        train=bench.subset(splits.train),
        val=bench.subset(splits.val),
        test=bench.subset(splits.test),
    )


def _reason(error: Exception, spec: RunSpec) -> str:
    if isinstance(error, (TrainingFailed, EvaluationFailed)):
        return str(error)
    if isinstance(error, RanksLost) and isinstance(error.__cause__, Exception):
        error = error.__cause__
        if "peer" in str(error) or isinstance(error, torch.distributed.DistBackendError):
            return "another of its ranks ended before its time: what that said stands in results/.workers"
    text = f"{error}"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in text:
        return f"out of memory at batch {spec.train.batch}: use a smaller one with --set train.batch=N"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {error}; make room, then give the command again"
    return f"{type(error).__name__}: {text}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
