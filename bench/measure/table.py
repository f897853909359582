"""Measurement of a cost table: training step and inference of several methods, paired, with dense against itself.

All methods are timed together first. A detailed table then looks at each method alone: the time of its step by part,
the share of attention in its inference, and its peak memory in a separate process. `run_speedup` is the time of dense
for the whole schedule divided by that of the method, in each round, so that its interval is made like the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measure.inputs import random_views
from bench.measure.paired import PairedTimes, paired_times
from bench.measure.parts import views_seconds
from bench.measure.peak import NotMeasured, peak_of_training
from bench.measure.timed_method import TimedMethod, execution
from bench.records.environment import environment, machine, now, raise_allocator_thresholds
from bench.records.record import AA_SUFFIX, RAMPS, CostRow, CostTable, RampSpeedup
from bench.records.seal import seal
from bench.specs.run_spec import EncoderSpec, MeasureSpec, TrainSpec
from bench.statistics.ratios import RatioEstimate
from bench.training.device import one_device, threads_of
from methods import BASELINES
from methods.names import REFERENCE_METHOD, Method

DENSE = REFERENCE_METHOD
AGAIN = f"{DENSE.name}{AA_SUFFIX}"
LOOKS = 3  # steps, and calls of inference, that are measured by part

Progress = Callable[[int, int], Any]


@dataclass(frozen=True)
class Measurement:
    """Request for a cost table: `methods` on one encoder, and how they are trained and timed.

    torch uses `threads` threads. If `training` is False, only inference is timed; `left_out` names rows for which only
    inference is timed, with the reason.
    """

    methods: Sequence[Method]
    encoder: EncoderSpec
    train: TrainSpec
    timing: MeasureSpec
    threads: int
    training: bool = True
    left_out: Mapping[str, str] = field(default_factory=dict)

    def path(self, results: Path) -> Path:
        """Path of the table, `results/cost/<hash>.json`. The hash covers the request and the machine."""
        what = {
            "methods": [name for name, _ in timed_names(self.methods)],
            "encoder": self.encoder.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json", include={"ramp", "precision", "attention", "batch"}),
            "measure": self.timing.model_dump(mode="json"),
            "threads": self.threads,
            "machine": machine(),
            **({} if self.training else {"training": False}),
        }
        return results / "cost" / f"{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:10]}.json"


def measure(what: Measurement, *, detail: bool = False, progress: Progress = lambda done, rounds: None) -> CostTable:
    """Measure a cost table. Dense SimCLR comes first, and again at the end as `simclr/dense#2`. Baselines have no row,
    nor have strategies whose number of tokens is only known after training.

    `detail` adds times by part and peak memory. Raises ValueError if the attention backend or the precision is not
    available, and CountersDisagree.
    """
    started = now()
    raise_allocator_thresholds()
    encoder, train, threads, batch = what.encoder, what.train, what.threads, what.timing.batch
    fabric = one_device(train.precision)
    details: dict[str, Any] = {}
    peaks: dict[str, tuple[float, str]] = {}
    with threads_of(threads):
        views = random_views(encoder, batch)
        timed = [
            TimedMethod(name, method, encoder, train, views, fabric, what.training and name not in what.left_out)
            for name, method in timed_names(what.methods)
        ]
        unknown = [one.name for one in timed if not one.known]
        timed = [one for one in timed if one.known]
        for one in timed:
            one.weigh()
        calls = {key: call for one in timed for key, call in one.calls().items()}
        times = paired_times(calls, what.timing.rounds, device=fabric.device, progress=progress)
        if detail:
            for one in timed:
                one.look_inside(LOOKS)
            seconds = views_seconds(encoder.image_size, encoder.channels, batch, fabric.device)
            details["views_ms"] = 1e3 * seconds / batch
    rows = [_row(one, times, threads) for one in timed]
    del timed, calls  # frees memory for the processes below
    lost = []
    for row in [row for row in rows if detail and row.train_ms is not None]:
        try:
            method = row.method.removesuffix(AA_SUFFIX)
            peaks[row.method] = peak_of_training(method, encoder, train, batch, threads)
        except NotMeasured as why:
            lost.append(str(why))
    rows = [_detailed(row, details, peaks.get(row.method)) for row in rows]
    return seal(
        CostTable(
            rows=tuple(rows),
            environment={
                **environment(threads),
                "disturbed_rounds": times.disturbed,
                **({"peaks_not_measured": lost} if lost else {}),
                **({"training_left_out": list(what.left_out.values())} if what.left_out else {}),
                **({"cost_unknown": unknown} if unknown else {}),
            },
            started=started,
            finished=now(),
        )
    )


def timed_names(methods: Sequence[Method]) -> list[tuple[str, Method]]:
    """Names and methods of the rows in order: dense SimCLR, the requested methods, each after the one that it
    continues, dense SimCLR again."""
    needed = [one for method in methods for one in (method.continues, method) if one is not None]
    others = [method for method in dict.fromkeys(needed) if method != DENSE and method.strategy not in BASELINES]
    return [(DENSE.name, DENSE), *((method.name, method) for method in others), (AGAIN, DENSE)]


def _row(timed: TimedMethod, times: PairedTimes, threads: int) -> CostRow:
    strategy, batch, train = timed.objective.encoder.strategy, timed.views.shape[1], timed.train
    dense_step = next((name for name in times.seconds if name.startswith(f"{DENSE.name} train ")), None)
    steps = runs = step_ms = None
    ramps: list[RampSpeedup] = []
    if timed.training and dense_step is not None:
        steps = times.speedup(timed.train_key(), dense_step)
        runs = timed.run_speedup(times, dense_step, train.ramp)
        if timed.ramps:
            at = {ramp: timed.run_speedup(times, dense_step, ramp) for ramp in RAMPS}
            ramps = [RampSpeedup(ramp=r, speedup=one.median, low=one.low, high=one.high) for r, one in at.items()]
        step_ms = 1e3 * times.median(timed.train_key()) / batch
    return CostRow(
        method=timed.name,
        encoder=timed.encoder.name,
        image_size=timed.encoder.image_size,
        channels=timed.encoder.channels,
        keep=timed.method.keep,
        keep_effective=strategy.target,
        train_execution=execution(timed.objective),
        infer_gmacs=timed.macs.inference / 1e9,
        train_gmacs=timed.macs.train_step / 1e9,
        infer_ms=1e3 * times.median(timed.infer_key) / batch,
        train_ms=step_ms,
        **_columns("infer", times.speedup(timed.infer_key, f"{DENSE.name} infer")),
        **_columns("train", steps),
        **_columns("run", runs),
        ramp=train.ramp if timed.ramps else None,
        ramps=tuple(ramps),
        saved_mib=None if timed.saved is None else timed.saved / 2**20,
        batch=batch,
        rounds=len(times.seconds[timed.infer_key]),
        repeated_rounds=times.repeated,
        threads=threads,
        machine=machine(),
        device=timed.fabric.device.type,
        precision=train.precision,
        attention=train.attention,
        infer_attention_gmacs=timed.macs.inference_parts.get("attention", 0.0) / 1e9,
        infer_attention_share=timed.attention,
        **_parts(timed, step_ms),
    )


def _parts(timed: TimedMethod, step_ms: float | None) -> dict[str, Any]:
    """Time of the measured step by part, from the shares of the steps that were measured by part."""
    return {} if step_ms is None else {f"{part}_ms": step_ms * share for part, share in timed.parts.items()}


def _detailed(row: CostRow, details: dict[str, Any], peak: tuple[float, str] | None) -> CostRow:
    """The row with the results that are measured after the timing."""
    found = {"peak_mib": peak[0], "peak_of": peak[1]} if peak else {}
    return row.model_copy(update={**details, **found})


def _columns(kind: str, speedup: RatioEstimate | None) -> dict[str, Any]:
    values = (None,) * 3 if speedup is None else (speedup.median, speedup.low, speedup.high)
    return dict(zip((f"{kind}_speedup{end}" for end in ("", "_low", "_high")), values, strict=True))
