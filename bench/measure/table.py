"""A cost table: every method's train step and inference in one paired, interleaved measurement, dense against itself
included.

A step is all that training does once its views are made: forward, backward, optimizer, teacher. A strategy that ramps
has no one step time: it is measured at the target keep ratio and at two more, and the quadratic through them (in the
number of kept patches, as projections, MLPs and attention grow) gives the time along the schedule. `run_speedup` is
dense's time for the whole schedule over the method's, per round, so its interval is made like the others. Steps that
keep every patch are priced by the same curve, though they skip the gathering: rather too dear than too cheap.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from bench.environment import environment, machine, raise_allocator_thresholds
from bench.measure.macs import count, interpolate, kept_over_run, nodes, random_views
from bench.measure.memory import saved_bytes
from bench.measure.paired import Array, Estimate, PairedTimes, estimate, paired_times
from bench.pretrain import build, optimizer_of, train_step
from bench.record import CostRow, CostTable, Macs
from bench.spec import EncoderSpec, MeasureSpec, TrainSpec
from methods import FLOORS
from methods.names import Method
from methods.noise import Noise
from methods.objectives.objective import Objective
from methods.strategies.strategy import Call

DENSE = Method("simclr", "dense")
AGAIN = "simclr/dense#2"
GRID = 2000  # steps by which the schedule is integrated

Call0 = Callable[[], None]
Progress = Callable[[int, int], Any]


def measure(
    methods: Sequence[Method],
    encoder: EncoderSpec,
    train: TrainSpec,
    measure: MeasureSpec,
    threads: int,
    images: Tensor | None = None,
    *,
    progress: Progress = lambda done, rounds: None,
) -> CostTable:
    """The paired measurement of `methods` (floors are left out), dense SimCLR first and once more as `simclr/dense#2`.

    `images` (2, batch, channels, H, W): the views that all methods get; random ones by default. torch runs with
    `threads` threads meanwhile. Raises ValueError where the attention backend or the precision can't be had.
    """
    started = _now()
    raise_allocator_thresholds()
    fabric = Fabric(accelerator="auto", devices=1, precision=train.precision)
    with _threads(threads):
        views = random_views(encoder, measure.batch) if images is None else images[:, : measure.batch]
        arms = [Arm(name, method, encoder, train, views, fabric) for name, method in contestants(methods)]
        contenders = {key: call for arm in arms for key, call in arm.contenders().items()}
        times = paired_times(contenders, measure.rounds, device=fabric.device, progress=progress)
    return CostTable(
        rows=tuple(arm.row(times, threads) for arm in arms),
        environment={**environment(threads), "disturbed_rounds": times.disturbed},
        started=started,
        finished=_now(),
    )


def contestants(methods: Sequence[Method]) -> list[tuple[str, Method]]:
    """Names and methods of the rows, in order: the baseline, then what was asked for, then the baseline again."""
    others = [method for method in dict.fromkeys(methods) if method != DENSE and method.strategy not in FLOORS]
    return [(DENSE.name, DENSE), *((method.name, method) for method in others), (AGAIN, DENSE)]


def table_path(
    results: Path,
    methods: Sequence[Method],
    encoder: EncoderSpec,
    train: TrainSpec,
    measure: MeasureSpec,
    threads: int,
) -> Path:
    """Where the measurement of this goes: `results/cost/<hash>.json`, one name for what is measured on this machine."""
    what = {
        "methods": [name for name, _ in contestants(methods)],
        "encoder": encoder.model_dump(mode="json"),
        "train": train.model_dump(mode="json", include={"ramp", "precision", "attention", "batch"}),
        "measure": measure.model_dump(mode="json"),
        "threads": threads,
        "machine": machine(),
    }
    return results / "cost" / f"{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:10]}.json"


@dataclass
class Arm:
    """One row in the making: a method built, counted, weighed, and ready to be timed."""

    name: str
    method: Method
    encoder: EncoderSpec
    train: TrainSpec
    views: Tensor
    fabric: Fabric
    objective: Objective = field(init=False)
    macs: Macs = field(init=False)
    saved: float = field(init=False)

    def __post_init__(self) -> None:
        self.objective = build(self.method, self.encoder, seed=0)
        self.macs = count(self.objective, self.encoder, self.train, 0, self.views[:, :2])
        self.objective.to(self.fabric.device)
        self.objective.encoder.use_attention(self.train.attention, self.fabric.device)
        self.views = self.views.to(self.fabric.device)
        with self.fabric.autocast():
            self.saved = saved_bytes(self.objective, self.views, self._call(self.points[0], itertools.count()))

    @property
    def ramps(self) -> bool:
        return self.objective.encoder.strategy.ramps and self.objective.encoder.strategy.target is not None

    @property
    def points(self) -> list[int]:
        """Numbers of kept patches at which a step is timed, the target first."""
        patches = self.objective.encoder.geometry.patches
        if not self.ramps:
            return [patches]
        return nodes(min(kept_over_run(self.objective.encoder.strategy, 1, 0.0)), patches)

    def contenders(self) -> dict[str, Call0]:
        """What is timed: inference, and a train step at every point."""
        objective = self.objective
        inference = copy.deepcopy(objective.encoder).eval()
        own, lesions = inference.strategy.inference[0], self._lesions(self.views.shape[1])
        optimizer = optimizer_of(objective, self.train.lr, self.train.weight_decay)
        model, optimizer = self.fabric.setup(objective, optimizer)
        model.train()
        steps = itertools.count()

        def infer() -> None:
            with torch.no_grad(), self.fabric.autocast():
                inference(self.views[0], Call(inference=own, lesions=lesions))

        def step_at(kept: int) -> Call0:
            def step() -> None:
                train_step(model, optimizer, self.views, self._call(kept, steps), self.fabric)

            return step

        return {f"{self.name} infer": infer, **{f"{self.name} train {k}": step_at(k) for k in self.points}}

    def _call(self, kept: int, steps: Iterator[int]) -> Call:
        """What a step is told in mid-run, with noise of its own."""
        batch = self.views.shape[1]
        keep = kept / self.objective.encoder.geometry.patches
        return Call(keep, progress=0.5, noise=Noise(0, next(steps), batch), lesions=self._lesions(2 * batch))

    def _lesions(self, batch: int) -> Tensor:
        """For strategies that look at lesions: random ones."""
        patches = self.objective.encoder.geometry.patches
        return torch.rand(batch, patches, generator=torch.Generator().manual_seed(0)).to(self.views.device)

    def row(self, times: PairedTimes, threads: int) -> CostRow:
        strategy, batch = self.objective.encoder.strategy, self.views.shape[1]
        infer, step = f"{self.name} infer", f"{self.name} train {self.points[0]}"
        infers, steps, runs = (
            times.speedup(infer, f"{DENSE.name} infer"),
            times.speedup(step, self._dense_step(times)),
            self._run_speedup(times),
        )
        return CostRow(
            method=self.name,
            encoder=self.encoder.name,
            image_size=self.encoder.image_size,
            channels=self.encoder.channels,
            keep=self.method.keep,
            keep_effective=strategy.target,
            train_execution=execution(self.objective),
            infer_gmacs=self.macs.inference / 1e9,
            train_gmacs=self.macs.train_step / 1e9,
            infer_ms=1e3 * times.median(infer) / batch,
            train_ms=1e3 * times.median(step) / batch,
            **_columns("infer", infers),
            **_columns("train", steps),
            **_columns("run", runs),
            ramp=self.train.ramp if self.ramps else None,
            saved_mib=self.saved / 2**20,
            batch=batch,
            rounds=len(times.seconds[infer]),
            repeated_rounds=times.repeated,
            threads=threads,
            machine=machine(),
            device=self.fabric.device.type,
            precision=self.train.precision,
        )

    def _dense_step(self, times: PairedTimes) -> str:
        return next(name for name in times.seconds if name.startswith(f"{DENSE.name} train "))

    def _run_speedup(self, times: PairedTimes) -> Estimate:
        """Dense's whole run over this method's, the ramp integrated, round by round."""
        dense = times.seconds[self._dense_step(times)]
        own = np.stack([times.seconds[f"{self.name} train {k}"] for k in self.points], axis=-1)  # (rounds, points)
        return estimate(dense / self._mean_step(own), times.seed)

    def _mean_step(self, own: Array) -> Array:
        """Mean step over the run, (rounds, points) -> (rounds,)."""
        if not self.ramps:
            return own[:, 0]
        kept = kept_over_run(self.objective.encoder.strategy, GRID, self.train.ramp)
        along = interpolate(self.points, own, np.array(list(kept), dtype=float))  # (rounds, numbers of patches)
        return np.asarray(along @ np.array(list(kept.values()), dtype=float) / GRID)


def execution(objective: Objective) -> str:
    """Whether dropped tokens are really not computed in training (`gathered`) or computed and hidden (`masked`)."""
    strategy = objective.encoder.strategy
    return str(getattr(strategy, "execution", strategy.train_execution))


def _columns(kind: str, speedup: Estimate) -> dict[str, Any]:
    return {
        f"{kind}_speedup": speedup.median,
        f"{kind}_speedup_low": speedup.low,
        f"{kind}_speedup_high": speedup.high,
    }


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
