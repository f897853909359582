"""Contrastive pre-training: one loop for all methods.

The order of the images, the views and the noise of every step are keyed by (seed, step), and no method can change
them. For strategies that ramp, the keep ratio follows the schedule.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from bench.specs.run_spec import RunSpec
from bench.training.batches import Lesions, draw_views, epoch_order, views_of
from bench.training.build import build, keep_now, optimizer_of, schedule_of, steps_of, train_step
from bench.training.checkpoint import Checkpoints, Position
from bench.training.failures import TrainingFailed
from bench.training.history import History, ProgressCallback
from bench.training.ranks import any_rank
from datasets.dataset import Dataset
from methods.encoders.batchnorm import globalise
from methods.noise import Noise
from methods.objectives.objective import Objective
from methods.ranks import rows_of_rank, together, world
from methods.strategies.strategy import Call


@dataclass
class Trained:
    """The result of pre-training: the objective with its encoder, a line of history per epoch, and the time it took."""

    objective: Objective
    history: list[dict[str, Any]]
    steps: int
    seconds: float
    resumed: int = 0  # how often it went on from a checkpoint
    conditions: list[dict[str, Any]] = field(default_factory=list)  # every set of conditions that it ran under

    @property
    def final_loss(self) -> float:
        return float(self.history[-1]["loss"])


@together()
def pretrain(
    spec: RunSpec,
    data: Dataset,
    images: np.ndarray,
    fabric: Fabric,
    progress: ProgressCallback,
    checkpoints: Checkpoints | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Trained:
    """Pre-train on `images` (indices into `data`), resuming from the newest checkpoint if there is one.

    `weights` are those of the encoder of the run that this one continues (`spec.start`), by name.

    With several ranks, each trains on its own rows of every batch. All end with the same weights, and rank 0 reports.
    Raises TrainingFailed, e.g. for a loss that is not finite. When asked to stop, saves a checkpoint and raises
    KeyboardInterrupt or SystemExit.
    """
    train = spec.train
    total = steps_of(len(images), train, spec.epochs)
    if total == 0:
        raise TrainingFailed(f"{len(images)} training images do not fill one batch of {train.batch}")
    objective = build(spec.parsed, spec.encoder, spec.seed)
    if weights is not None:
        objective.start_from(weights)
    objective.use_attention(train.attention, fabric.device)
    optimizer = optimizer_of(objective, train.lr, train.weight_decay, objective.lr_factors)
    if world() > 1:
        try:
            globalise(objective)
        except ValueError as error:  # on all ranks alike
            raise TrainingFailed(str(error)) from None
    model, optimizer = fabric.setup(objective, optimizer)
    rows = rows_of_rank(train.batch)
    scheduler = schedule_of(optimizer, total, train.warmup)
    views = views_of(spec)
    lesions = Lesions(data, objective.encoder, spec.seed)
    checkpoints = checkpoints or Checkpoints(None)
    history = History.at(restored(checkpoints, objective, optimizer, fabric))
    per_epoch = total // spec.epochs
    model.train()
    with checkpoints.stopping.between_steps():
        for epoch in range(history.step // per_epoch, spec.epochs):
            order = epoch_order(images, spec.seed, epoch, train.batch)
            for index in itertools.islice(order, history.step % per_epoch, None):
                step = history.step
                done = step / total
                scheduler.step_update(step)
                call = Call(
                    keep=keep_now(objective, done, train.ramp),
                    progress=done,
                    noise=Noise(spec.seed, step, train.batch, rows=rows),
                )
                parameters = draw_views(spec, objective.blur_probabilities, step, len(index)).rows(rows)
                pair, call = lesions.make_views(views, index[rows], parameters, call, fabric.device)
                loss = train_step(model, optimizer, pair, call, fabric, (step + 1) / total)
                value, whole = float(loss.contrastive.detach()), float(loss.total.detach())
                if any_rank(fabric, not math.isfinite(whole)):  # or the other ranks would wait for this one
                    became = "not finite on another rank" if math.isfinite(whole) else whole
                    raise TrainingFailed(
                        f"the loss became {became} at step {step} of {total} (learning rate {train.lr:g})"
                    )
                history.note(loss, value, len(index))
                if fabric.is_global_zero and (history.step % 10 == 0 or history.step == total):
                    speed = history.images_per_second()
                    progress(
                        {"step": step + 1, "steps": total, "loss": value, "keep": call.keep, "images_per_second": speed}
                    )
                if history.step % per_epoch == 0:
                    history.end_epoch(epoch + 1, call.keep, optimizer.param_groups[0]["lr"])
                if history.step < total and any_rank(fabric, checkpoints.due()):
                    checkpoints.save(objective, optimizer, history.position())
        if history.new_steps:
            checkpoints.save(objective, optimizer, history.position())
    return Trained(objective, history.lines, total, history.seconds(), history.resumed, history.conditions)


def restored(
    checkpoints: Checkpoints, objective: Objective, optimizer: torch.optim.Optimizer, fabric: Fabric
) -> Position | None:
    """Restore model and optimizer on all ranks from the newest checkpoint that rank 0 can read.

    Raises TrainingFailed on all ranks if one of them can't read it.
    """
    position = checkpoints.restore(objective, optimizer) if fabric.is_global_zero else None
    step = fabric.broadcast(0 if position is None else position.step)
    if step and not fabric.is_global_zero:
        position = checkpoints.restore(objective, optimizer, at=step)
    if any_rank(fabric, step != (0 if position is None else position.step)):
        raise TrainingFailed(f"a rank can't read the checkpoint of step {step}: does each see the results folder?")
    return position
