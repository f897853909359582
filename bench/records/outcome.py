"""Makes the record of a run that finished, and of a run that failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.records.environment import conditions, environment, now
from bench.records.record import DataRecord, Network, Record, SplitRecord, Timing
from bench.records.store import Store, write_atomically
from bench.specs.run_spec import SCIENCE_VERSION, RunSpec
from methods import BASELINES
from methods.names import Method
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
    """The record of an attempt that ends now; `parts` are the measured fields of the record.

    `under` lists all conditions of the training: several where it was resumed from a checkpoint of another host.
    `ranks` is the number that was asked for, if it is not that of this process.
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
        network=None if objective is None or method.strategy in BASELINES else network_of(method, objective),
        train_execution="none" if method.objective == "none" or strategy is None else strategy.train_execution,
        environment={**here, "also_trained_under": others} if others else here,
        started=started,
        finished=now(),
        **parts,
    )


def network_of(method: Method, objective: Objective) -> Network:
    """What a method's objective consists of."""
    encoder = objective.encoder
    heads = [p for name, p in objective.named_parameters() if not name.startswith("encoder.")]
    sizes = {trained: sum(p.numel() for p in heads if p.requires_grad == trained) for trained in (True, False)}
    strategy = sum(p.numel() for p in encoder.strategy.parameters())
    return Network(
        options={**method.all_options, **objective.computed, **encoder.strategy.computed},
        encoder=sum(p.numel() for p in encoder.parameters()) - strategy,
        strategy=strategy,
        heads=sizes[True],
        teacher=sizes[False],
    )


def timing(steps: int, seconds: float, resumed: int) -> Timing:
    """The timing of a training that was resumed from a checkpoint `resumed` times."""
    return Timing(steps=steps, steps_per_second=steps / max(seconds, 1e-9), wall_seconds=seconds, resumed=resumed)


def failure(spec: RunSpec, threads: int, reason: str, started: str = "", ranks: int | None = None) -> Record:
    """The record of a run that failed."""
    return record_of(spec, started or now(), threads, status="failed", reason=reason, ranks=ranks)


def write_failure(store: Store, failed: Record, log: str) -> None:
    """Write the record and the log of a failed run. A finished training keeps its record when an evaluation fails, and
    a failure that can't be written, as on a full disk, is printed."""
    try:
        write_atomically(store.log(failed.run_id), log.encode())
        if not store.done(failed.run_id):
            store.write_record(failed)
    except (OSError, ValueError) as error:  # ValueError: the record that is there can't be read
        print(f"{failed.run_id} failed: {failed.reason}. Its record can't be written: {error}", flush=True)
