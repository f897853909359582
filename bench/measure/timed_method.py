"""A method in a cost measurement: its network, its MACs and memory, and the calls that are timed.

A step is everything that training does after the views are made: forward, backward, optimizer, teacher. The time of a
step of a strategy with a ramp depends on the keep ratio. It is measured at the target and at two other ratios; the
quadratic through these times (projections and MLPs are linear in the number of kept patches, attention is quadratic)
gives the times along the schedule. It also serves for steps that keep all patches, although they skip the gathering,
and so rather overestimates their time.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from bench.measure.inputs import random_lesions
from bench.measure.macs import count, interpolate, kept_over_run, nodes
from bench.measure.memory import saved_bytes
from bench.measure.paired import PairedTimes
from bench.measure.parts import Stepwatch, attention_share, shares
from bench.records.record import Macs
from bench.specs.run_spec import CONTINUED, EncoderSpec, TrainSpec
from bench.statistics.ratios import Array, RatioEstimate, estimate
from bench.training.build import build, optimizer_of, train_step
from methods.names import Method
from methods.noise import Noise
from methods.objectives.objective import Objective
from methods.strategies.strategy import Call

GRID = 2000  # steps for the integration of the schedule

Call0 = Callable[[], None]


@dataclass
class TimedMethod:
    """A method on `views` (2, B, channels, H, W), without training steps if `training` is False."""

    name: str
    method: Method
    encoder: EncoderSpec
    train: TrainSpec
    views: Tensor
    fabric: Fabric
    training: bool = True
    objective: Objective = field(init=False)
    known: bool = field(init=False)  # whether an untrained network costs the same as a trained one
    macs: Macs = field(init=False)  # set by weigh()
    saved: float | None = field(init=False, default=None)  # set by weigh(): bytes kept for backward, per image
    attention: float | None = field(init=False, default=None)  # set by look_inside(): share of attention in inference
    parts: dict[str, float] = field(init=False, default_factory=dict)  # set by look_inside(): shares in a step

    def __post_init__(self) -> None:
        self.objective = build(self.method, self.encoder, seed=0).to(self.fabric.device)
        self.objective.use_attention(self.train.attention, self.fabric.device)
        self.views = self.views.to(self.fabric.device)
        self.known = self.objective.encoder.strategy.calibrate(self.views[0])
        self._steps = itertools.count()

    def weigh(self) -> None:
        """Count MACs and measure the memory kept for backward. Raises CountersDisagree."""
        some = slice(None) if self.objective.encoder.strategy.adaptive else slice(2)
        self.macs = count(self.objective, self.encoder, self.train, 0, self.views[:, some])
        if self.training:
            with self.fabric.autocast():
                self.saved = saved_bytes(self.objective, self.views, self._call(self.points[0]))

    def most_saved(self) -> float:
        """Bytes that the largest timed step keeps for its backward pass, for all of `views`."""
        with self.fabric.autocast():
            return self.views.shape[1] * saved_bytes(self.objective, self.views, self._call(max(self.points)))

    @property
    def ramps(self) -> bool:
        return self.objective.encoder.strategy.ramps and self.objective.encoder.strategy.target is not None

    @property
    def points(self) -> list[int]:
        """Numbers of kept patches at which steps are timed, the target first."""
        patches = self.objective.encoder.geometry.patches
        if not self.ramps:
            return [patches]
        return nodes(min(kept_over_run(self.objective.encoder.strategy, 1, 0.0)), patches)

    @property
    def infer_key(self) -> str:
        return f"{self.name} infer"

    def train_key(self, kept: int | None = None) -> str:
        """Name of the step that keeps `kept` patches, by default the target."""
        return f"{self.name} train {self.points[0] if kept is None else kept}"

    def calls(self) -> dict[str, Call0]:
        """Calls that are timed, by name: inference, and a training step at every point."""
        steps = self.train_steps() if self.training else {}
        return {self.infer_key: self.inference(), **{self.train_key(k): step for k, step in steps.items()}}

    def inference(self) -> Call0:
        """Call of the encoder in its default inference mode on one view, on a copy that training steps do not
        change."""
        encoder = copy.deepcopy(self.objective.encoder).eval()
        own, lesions = encoder.strategy.inference[0], self._lesions(self.views.shape[1])

        def infer() -> None:
            with torch.no_grad(), self.fabric.autocast():
                encoder(self.views[0], Call(inference=own, lesions=lesions))

        return infer

    def train_steps(self) -> dict[int, Call0]:
        """Calls of a training step at every point, all on one model and one optimizer."""
        model, optimizer = self._set_up

        def step_at(kept: int) -> Call0:
            def step() -> None:
                call = self._call(kept)
                train_step(model, optimizer, self.views, call, self.fabric, call.progress)

            return step

        return {k: step_at(k) for k in self.points}

    def look_inside(self, calls: int) -> None:
        """Measure the shares of parts in a step at the target, and that of attention in inference."""
        if self.train.attention == "sdpa":
            self.attention = attention_share(self.inference(), self.fabric.device, calls)
        if self.training:
            step, watched = self.train_steps()[self.points[0]], []
            for _ in range(calls):
                with Stepwatch(self.objective, self._set_up[1]).watch() as seconds:
                    step()
                watched.append(seconds)
            self.parts = shares(watched)

    @cached_property
    def _set_up(self) -> tuple[Objective, torch.optim.Optimizer]:
        optimizer = optimizer_of(self.objective, self.train.lr, self.train.weight_decay, self.objective.lr_factors)
        model, optimizer = self.fabric.setup(self.objective, optimizer)
        model.train()
        return model, optimizer

    def _call(self, kept: int) -> Call:
        """Call of a step in the middle of a run, with new noise."""
        batch = self.views.shape[1]
        keep = kept / self.objective.encoder.geometry.patches
        noise = Noise(0, next(self._steps), batch)
        return Call(keep, progress=0.5, noise=noise, lesions=self._lesions(2 * batch))

    def _lesions(self, batch: int) -> Tensor:
        return random_lesions(batch, self.objective.encoder.geometry.patches).to(self.views.device)

    def run_speedup(self, times: PairedTimes, dense_step: str, ramp: float) -> RatioEstimate:
        """Time of a whole run of dense / time of a whole run of this method along a ramp, round by round."""
        own = np.stack([times.seconds[self.train_key(k)] for k in self.points], axis=-1)  # (rounds, points)
        mean = self._mean_step(own, ramp)
        if self.method.continues is not None:  # the run that it continues, and its own part of the steps
            patches = self.objective.encoder.geometry.patches
            mean = times.seconds[f"{self.method.continues.name} train {patches}"] + mean / CONTINUED
        return estimate(times.seconds[dense_step] / mean)

    def _mean_step(self, own: Array, ramp: float) -> Array:
        """Mean time of a step over a run, (rounds, points) -> (rounds,)."""
        if not self.ramps:
            return own[:, 0]
        kept = kept_over_run(self.objective.encoder.strategy, GRID, ramp)
        along = interpolate(self.points, own, np.array(list(kept), dtype=float))  # (rounds, numbers of patches)
        return np.asarray(along @ np.array(list(kept.values()), dtype=float) / GRID)


def execution(objective: Objective) -> str:
    """Whether training does not compute dropped tokens (`gathered`), or computes and hides them (`masked`)."""
    strategy = objective.encoder.strategy
    return str(getattr(strategy, "execution", strategy.train_execution))
