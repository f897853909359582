"""What a run leaves: its record when it is done, and why it failed when it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.records.environment import conditions, environment, now
from bench.records.record import DataRecord, Record, SplitRecord, Timing
from bench.records.store import Store, write_atomically
from bench.specs.run_spec import SCIENCE_VERSION, RunSpec
from methods import BASELINES
from methods.objectives.objective import Objective


def record_of(
    spec: RunSpec,
    started: str,
    threads: int,
    *,
    status: str = "done",
    reason: str = "",
    data: DataRecord | None = None,
    splits: SplitRecord | None = None,
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
    here = environment(threads, ranks=1 if method.strategy in BASELINES else ranks)
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
        data=data,
        splits=splits,
        keep=method.keep,
        keep_effective=None if strategy is None else strategy.target,
        train_execution="none" if method.objective == "none" or strategy is None else strategy.train_execution,
        environment={**here, "also_trained_under": others} if others else here,
        started=started,
        finished=now(),
        **parts,
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
    except (OSError, ValueError) as error:  # ValueError: the record that is there can't be read
        print(f"{failed.run_id} failed: {failed.reason}; and this can't be written down: {error}", flush=True)
