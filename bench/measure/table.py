"""A cost table: every method's train step and inference in one paired, interleaved measurement, dense against itself
included.

Timed first, all methods together; then, where a table is asked for in detail, each method by itself: where the time of
its step goes, what of its inference is attention, and its peak memory in a process of its own. `run_speedup` is dense's
time for the whole schedule over the method's, per round, so its interval is made like the others.
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
from bench.records.record import AA_SUFFIX, CostRow, CostTable
from bench.records.seal import seal
from bench.specs.run_spec import EncoderSpec, MeasureSpec, TrainSpec
from bench.statistics.ratios import RatioEstimate
from bench.training.device import one_device, threads_of
from methods import BASELINES
from methods.names import REFERENCE_METHOD, Method

DENSE = REFERENCE_METHOD
AGAIN = f"{DENSE.name}{AA_SUFFIX}"
LOOKS = 3  # steps watched, and calls of inference, for where the time goes

Progress = Callable[[int, int], Any]


@dataclass(frozen=True)
class Measurement:
    """What a cost table is asked to hold: `methods` on one encoder, and how they are trained and timed.

    torch runs with `threads` threads meanwhile. `training` False times inference alone, `left_out` (row: reason) does
    so for some rows.
    """

    methods: Sequence[Method]
    encoder: EncoderSpec
    train: TrainSpec
    timing: MeasureSpec
    threads: int
    training: bool = True
    left_out: Mapping[str, str] = field(default_factory=dict)

    def path(self, results: Path) -> Path:
        """Where its table goes: `results/cost/<hash>.json`, one name for what is measured on this machine."""
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
    """The paired measurement of all methods (baselines are left out, and strategies of which only training can say how
    many tokens they keep), dense SimCLR first and once more as `simclr/dense#2`.

    `detail` adds where the time goes and peak memory. Raises ValueError where the attention backend or the precision
    can't be had, CountersDisagree.
    """
    started = now()
    raise_allocator_thresholds()
    encoder, train, threads, batch = what.encoder, what.train, what.threads, what.timing.batch
    fabric = one_device(train.precision)
    details: dict[str, Any] = {}
    peaks: dict[str, tuple[float, str]] = {}
    with threads_of(threads):
        views = random_views(encoder, batch)
        arms = [
            TimedMethod(name, method, encoder, train, views, fabric, what.training and name not in what.left_out)
            for name, method in timed_names(what.methods)
        ]
        unknown = [arm.name for arm in arms if not arm.known]
        arms = [arm for arm in arms if arm.known]
        for arm in arms:
            arm.weigh()
        timed_methods = {key: call for arm in arms for key, call in arm.timed_methods().items()}
        times = paired_times(timed_methods, what.timing.rounds, device=fabric.device, progress=progress)
        if detail:
            for arm in arms:
                arm.look_inside(LOOKS)
            seconds = views_seconds(encoder.image_size, encoder.channels, batch, fabric.device)
            details["views_ms"] = 1e3 * seconds / batch
    rows = [_row(arm, times, threads) for arm in arms]
    del arms, timed_methods  # the memory is the next processes'
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
    """Names and methods of the rows, in order: dense, then what was asked for, then dense again."""
    others = [method for method in dict.fromkeys(methods) if method != DENSE and method.strategy not in BASELINES]
    return [(DENSE.name, DENSE), *((method.name, method) for method in others), (AGAIN, DENSE)]


def _row(arm: TimedMethod, times: PairedTimes, threads: int) -> CostRow:
    strategy, batch, train = arm.objective.encoder.strategy, arm.views.shape[1], arm.train
    dense_step = next((name for name in times.seconds if name.startswith(f"{DENSE.name} train ")), None)
    steps = runs = step_ms = None
    if arm.training and dense_step is not None:
        steps = times.speedup(arm.train_key(), dense_step)
        runs = arm.run_speedup(times, dense_step)
        step_ms = 1e3 * times.median(arm.train_key()) / batch
    return CostRow(
        method=arm.name,
        encoder=arm.encoder.name,
        image_size=arm.encoder.image_size,
        channels=arm.encoder.channels,
        keep=arm.method.keep,
        keep_effective=strategy.target,
        train_execution=execution(arm.objective),
        infer_gmacs=arm.macs.inference / 1e9,
        train_gmacs=arm.macs.train_step / 1e9,
        infer_ms=1e3 * times.median(arm.infer_key) / batch,
        train_ms=step_ms,
        **_columns("infer", times.speedup(arm.infer_key, f"{DENSE.name} infer")),
        **_columns("train", steps),
        **_columns("run", runs),
        ramp=train.ramp if arm.ramps else None,
        saved_mib=None if arm.saved is None else arm.saved / 2**20,
        batch=batch,
        rounds=len(times.seconds[arm.infer_key]),
        repeated_rounds=times.repeated,
        threads=threads,
        machine=machine(),
        device=arm.fabric.device.type,
        precision=train.precision,
        attention=train.attention,
        infer_attention_gmacs=arm.macs.inference_parts.get("attention", 0.0) / 1e9,
        infer_attention_share=arm.attention,
        **_parts(arm, step_ms),
    )


def _parts(arm: TimedMethod, step_ms: float | None) -> dict[str, Any]:
    """The measured step, shared out as the watched ones were spent."""
    return {} if step_ms is None else {f"{part}_ms": step_ms * share for part, share in arm.parts.items()}


def _detailed(row: CostRow, details: dict[str, Any], peak: tuple[float, str] | None) -> CostRow:
    """The row with what is measured after the timing."""
    found = {"peak_mib": peak[0], "peak_of": peak[1]} if peak else {}
    return row.model_copy(update={**details, **found})


def _columns(kind: str, speedup: RatioEstimate | None) -> dict[str, Any]:
    values = (None,) * 3 if speedup is None else (speedup.median, speedup.low, speedup.high)
    return dict(zip((f"{kind}_speedup{end}" for end in ("", "_low", "_high")), values, strict=True))
