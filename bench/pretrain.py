"""Contrastive pre-training: one loop for all methods.

The order of the images, the views and the noise of every step are keyed by (seed, step); a method can change none of
them. The keep ratio follows the schedule for strategies that ramp.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor

from bench.checkpoint import Checkpoints, Point
from bench.course import Course, TrainingFailed
from bench.lesions import Lesions
from bench.ranks import any_rank
from bench.spec import EncoderSpec, RunSpec, TrainSpec
from datasets.dataset import Dataset
from datasets.views import Parameters, Views
from methods import build_encoder, build_objective
from methods.encoders.batchnorm import globalise
from methods.names import Method
from methods.noise import Noise, keyed_generator
from methods.objectives.objective import Loss, Objective
from methods.ranks import rows_of_rank, together, world
from methods.schedule import keep_at
from methods.strategies.strategy import Call

Report = Callable[[dict[str, Any]], None]  # progress of the run, for whoever watches


@dataclass
class Trained:
    """What training leaves: the objective with its encoder, a line of history an epoch, and how fast it went."""

    objective: Objective
    history: list[dict[str, Any]]
    steps: int
    seconds: float
    resumed: int = 0  # how often it went on from a checkpoint
    conditions: list[dict[str, Any]] = field(default_factory=list)  # all that it was trained under

    @property
    def final_loss(self) -> float:
        return float(self.history[-1]["loss"])


def build(method: Method, encoder: EncoderSpec, seed: int) -> Objective:
    """The method's objective around its encoder, initialised by the seed."""
    strategy_options = method.strategy_options
    built = build_encoder(
        encoder.name,
        method.strategy if method.objective != "none" else "dense",
        strategy_options,
        image_size=encoder.image_size,
        channels=encoder.channels,
        seed=seed,
        positions=encoder.positions,
        weights=encoder.weights,
    )
    objective = method.objective if method.objective != "none" else "simclr"
    return build_objective(objective, built, method.objective_options, seed=seed)


def optimizer_of(model: torch.nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """timm's AdamW with its rule for weight decay: none on parameters of one dimension (biases, norms)."""
    opt: torch.optim.Optimizer = create_optimizer_v2(
        model, opt="adamw", lr=lr, weight_decay=weight_decay, betas=(0.9, 0.95), foreach=True
    )
    return opt


def schedule_of(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> CosineLRScheduler:
    """timm's linear warm-up over the first `warmup` share of the steps, then its cosine to zero; updated every step."""
    rising = int(steps * warmup)
    return CosineLRScheduler(
        optimizer, t_initial=max(1, steps - rising), warmup_t=rising, warmup_prefix=True, t_in_epochs=False
    )


def train_step(
    objective: Objective, optimizer: torch.optim.Optimizer, views: Tensor, call: Call, fabric: Fabric, done: float
) -> Loss:
    """Forward, backward, optimizer, teacher: all that a step does after its views are made.

    `done`: share of the run that is over after this step.
    """
    optimizer.zero_grad(set_to_none=True)
    loss: Loss = objective(views, call)
    fabric.backward(loss.total)
    optimizer.step()
    objective.after_step(done)
    return loss


def keep_now(objective: Objective, progress: float, ramp: float) -> float:
    """The keep ratio at `progress`: by the schedule for strategies that ramp, else 1 (they have rules of their own)."""
    strategy = objective.encoder.strategy
    return keep_at(progress, strategy.target, ramp) if strategy.ramps and strategy.target is not None else 1.0


def epoch_order(images: np.ndarray, seed: int, epoch: int, batch: int) -> Iterator[np.ndarray]:
    """Batches of indices, a permutation keyed by (seed, epoch); what does not fill a batch is left out this epoch."""
    permutation = torch.randperm(len(images), generator=keyed_generator("order", seed, epoch)).numpy()
    for start in range(0, len(images) - batch + 1, batch):
        yield images[permutation[start : start + batch]]


def views_of(spec: RunSpec, **changes: float) -> Views:
    """The distribution of views that a run draws from."""
    ranges: dict[str, Any] = {**spec.views.model_dump(), **changes}
    return Views(spec.encoder.image_size, channels=spec.encoder.channels, **ranges)


def draw_views(spec: RunSpec, blur: tuple[float, float] | None, step: int, batch: int) -> Parameters:
    """The views' parameters of a step, keyed by (seed, step); `blur`: each view's own probability of being blurred."""

    def drawn(views: Views) -> Parameters:
        return views.draw(keyed_generator("views", spec.seed, step), batch)

    if blur is None:
        return drawn(views_of(spec))
    both = [drawn(views_of(spec, blur_probability=probability)) for probability in blur]
    return replace(both[0], sigma=torch.stack([one.sigma[view] for view, one in enumerate(both)]))


def steps_of(images: int, train: TrainSpec) -> int:
    return train.epochs * (images // train.batch)


@together()
def pretrain(
    spec: RunSpec,
    data: Dataset,
    images: np.ndarray,
    fabric: Fabric,
    report: Report,
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Pre-train on `images` (indices into `data`), from the newest of its `checkpoints` if there is one.

    Of several ranks each trains on its own rows of every batch; all end with the same weights, and rank 0 reports.
    Raises TrainingFailed, e.g. for a loss that is not finite; KeyboardInterrupt or SystemExit, with a checkpoint
    saved, where it was asked to stop.
    """
    train = spec.train
    total = steps_of(len(images), train)
    if total == 0:
        raise TrainingFailed(f"{len(images)} training images do not fill one batch of {train.batch}")
    objective = build(spec.parsed, spec.encoder, spec.seed)
    objective.use_attention(train.attention, fabric.device)
    optimizer = optimizer_of(objective, train.lr, train.weight_decay)
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
    course = Course.at(restored(checkpoints, objective, optimizer, fabric))
    per_epoch = total // train.epochs
    model.train()
    with checkpoints.stopping.between_steps():
        for epoch in range(course.step // per_epoch, train.epochs):
            order = epoch_order(images, spec.seed, epoch, train.batch)
            for index in itertools.islice(order, course.step % per_epoch, None):
                step = course.step
                progress = step / total
                scheduler.step_update(step)
                call = Call(
                    keep=keep_now(objective, progress, train.ramp),
                    progress=progress,
                    noise=Noise(spec.seed, step, train.batch, rows=rows),
                )
                parameters = draw_views(spec, objective.blur_probabilities, step, len(index)).rows(rows)
                pair, call = lesions.make_views(views, index[rows], parameters, call, fabric.device)
                loss = train_step(model, optimizer, pair, call, fabric, (step + 1) / total)
                value, whole = float(loss.contrastive.detach()), float(loss.total.detach())
                if any_rank(fabric, not math.isfinite(whole)):  # else the others would wait for this one
                    became = "not finite on another rank" if math.isfinite(whole) else whole
                    raise TrainingFailed(
                        f"the loss became {became} at step {step} of {total} (learning rate {train.lr:g})"
                    )
                course.note(loss, value, len(index))
                if fabric.is_global_zero and (course.step % 10 == 0 or course.step == total):
                    speed = course.images_per_second()
                    report(
                        {"step": step + 1, "steps": total, "loss": value, "keep": call.keep, "images_per_second": speed}
                    )
                if course.step % per_epoch == 0:
                    course.end_epoch(epoch + 1, call.keep, optimizer.param_groups[0]["lr"])
                if course.step < total and any_rank(fabric, checkpoints.due()):
                    checkpoints.save(objective, optimizer, course.point())
        if course.new_steps:
            checkpoints.save(objective, optimizer, course.point())
    return Trained(objective, course.history, total, course.seconds(), course.resumed, course.conditions)


def restored(
    checkpoints: Checkpoints, objective: Objective, optimizer: torch.optim.Optimizer, fabric: Fabric
) -> Point | None:
    """Put into both where all ranks go on from: rank 0 reads the newest checkpoint, the others the same. Raises
    TrainingFailed on all of them where one can't."""
    point = checkpoints.restore(objective, optimizer) if fabric.is_global_zero else None
    step = fabric.broadcast(0 if point is None else point.step)
    if step and not fabric.is_global_zero:
        point = checkpoints.restore(objective, optimizer, at=step)
    if any_rank(fabric, step != (0 if point is None else point.step)):
        raise TrainingFailed(f"a rank can't read the checkpoint of step {step}: does each see the results folder?")
    return point
