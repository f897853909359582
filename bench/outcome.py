"""What a run leaves: its record when it is done, and why it failed when it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bench.course import TrainingFailed
from bench.environment import conditions, environment, now
from bench.evaluate import Bench
from bench.plain import FULL, disk_full
from bench.ranks import LOST, RanksLost
from bench.record import DataRecord, Record, SplitRecord, Timing
from bench.spec import SCIENCE_VERSION, RunSpec
from bench.store import Store, write_atomically
from methods import FLOORS
from methods.objectives.objective import Objective


class EvaluationFailed(Exception):
    """An evaluation failed, the others of the run were made; the message is the reason."""


def record_of(
    spec: RunSpec,
    started: str,
    threads: int,
    *,
    status: str = "done",
    reason: str = "",
    bench: Bench | None = None,
    objective: Objective | None = None,
    under: Sequence[dict[str, Any]] = (),
    ranks: int | None = None,
    **parts: Any,
) -> Record:
    """The record of an attempt that ends now; `parts` are what was measured of it, by the record's own names.

    `under` holds all conditions that it was trained under, where it went on from a checkpoint perhaps of another host;
    `ranks` are those that were asked for, where they are not those of this process.
    """
    method = spec.parsed
    here = environment(threads, ranks=1 if method.strategy in FLOORS else ranks)
    others = [one for one in under if one != conditions(here)]
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
        environment={**here, "also_trained_under": others} if others else here,
        started=started,
        finished=now(),
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


def timing(steps: int, seconds: float, resumed: int) -> Timing:
    """Of a training that went on from a checkpoint `resumed` times."""
    return Timing(steps=steps, steps_per_second=steps / max(seconds, 1e-9), wall_seconds=seconds, resumed=resumed)


def failure(spec: RunSpec, threads: int, reason: str, started: str = "", ranks: int | None = None) -> Record:
    """The record of a run that failed."""
    return record_of(spec, started or now(), threads, status="failed", reason=reason, ranks=ranks)


def write_failure(store: Store, failed: Record, log: str) -> None:
    """Put a failure on disk, unless the training is done: that is never lost to an evaluation that fails. Where the
    disk takes no more, the record says so to whoever is at hand to hear it."""
    try:
        write_atomically(store.log(failed.run_id), log.encode())
        if not store.done(failed.run_id):
            store.write_record(failed)
    except OSError as error:
        print(f"{failed.run_id} failed: {failed.reason}; and this can't be written down: {error}", flush=True)


def reason_of(error: Exception, spec: RunSpec) -> str:
    """Why a run failed, in a sentence for its record."""
    if isinstance(error, (TrainingFailed, EvaluationFailed)):
        return str(error)
    if isinstance(error, RanksLost) and isinstance(error.__cause__, Exception):
        error = error.__cause__
        if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
            return f"{LOST}: what that said stands in results/.workers"
    text = f"{error}"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in text:
        return f"out of memory at batch {spec.train.batch}: use a smaller one with --set train.batch=N"
    if isinstance(error, OSError) and error.errno in FULL:
        return disk_full(error)
    return f"{type(error).__name__}: {text}"
