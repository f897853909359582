"""Builds networks, optimizer and schedule from a spec; runs one training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from timm.optim._optim_factory import create_optimizer_v2
from timm.optim._param_groups import param_groups_weight_decay
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor

from bench.specs.run_spec import BETAS, OPTIMIZER, EncoderSpec, TrainSpec
from methods import DEFAULT_OBJECTIVE, REFERENCE, build_encoder, build_objective
from methods.names import Method
from methods.objectives.objective import Loss, Objective
from methods.schedule import keep_at
from methods.strategies.strategy import Call


def build(method: Method, encoder: EncoderSpec, seed: int) -> Objective:
    """Build the method's objective around its encoder, initialised by the seed. Baselines get SimCLR around dense."""
    strategy_options = method.strategy_options
    built = build_encoder(
        encoder.name,
        method.strategy if method.objective != "none" else REFERENCE,
        strategy_options,
        image_size=encoder.image_size,
        channels=encoder.channels,
        seed=seed,
        positions=encoder.positions,
        weights=encoder.weights,
    )
    objective = method.objective if method.objective != "none" else DEFAULT_OBJECTIVE
    return build_objective(objective, built, method.objective_options, seed=seed)


def optimizer_of(
    model: torch.nn.Module, lr: float, weight_decay: float, lr_factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Return timm's AdamW. Parameters of one dimension (biases, norms) have no weight decay.

    `lr_factors` are factors on the learning rate by the beginning of parameter names; `schedule_of` applies them.
    """
    what = _scaled_groups(model, weight_decay, lr_factors) if lr_factors else model
    opt: torch.optim.Optimizer = create_optimizer_v2(
        what, opt=OPTIMIZER.lower(), lr=lr, weight_decay=weight_decay, betas=BETAS, foreach=True
    )
    return opt


def _scaled_groups(model: torch.nn.Module, weight_decay: float, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return timm's parameter groups, each divided by factor; a group with one has it as `lr_scale`. Those without a
    factor come first."""
    factor_of = {
        parameter: next((factor for start, factor in factors.items() if name.startswith(start)), 1.0)
        for name, parameter in model.named_parameters()
    }
    groups = []
    for factor in sorted({1.0, *factor_of.values()}, key=lambda one: (one != 1, one)):
        for group in param_groups_weight_decay(model, weight_decay):
            params = [parameter for parameter in group["params"] if factor_of[parameter] == factor]
            groups += [{**group, "params": params, **({} if factor == 1 else {"lr_scale": factor})}] if params else []
    return groups


def schedule_of(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> CosineLRScheduler:
    """Return timm's schedule: linear warm-up over the first `warmup` share of the steps, then a cosine to zero.

    It applies the factors of parameter groups.
    """
    rising = int(steps * warmup)
    return CosineLRScheduler(
        optimizer, t_initial=max(1, steps - rising), warmup_t=rising, warmup_prefix=True, t_in_epochs=False
    )


def train_step(
    objective: Objective, optimizer: torch.optim.Optimizer, views: Tensor, call: Call, fabric: Fabric, done: float
) -> Loss:
    """Run forward, backward, optimizer and teacher update on views (2, B, channels, H, W) that are already made.

    `done` is the share of the run that is over after this step.
    """
    optimizer.zero_grad(set_to_none=True)
    loss: Loss = objective(views, call)
    fabric.backward(loss.total)
    optimizer.step()
    objective.after_step(done)
    return loss


def keep_now(objective: Objective, progress: float, ramp: float) -> float:
    """Return the keep ratio at `progress` (share of the steps done); 1 for strategies that do not ramp."""
    strategy = objective.encoder.strategy
    return keep_at(progress, strategy.target, ramp) if strategy.ramps and strategy.target is not None else 1.0


def steps_of(images: int, train: TrainSpec, epochs: int | None = None) -> int:
    """Return the number of steps of a pre-training, of `epochs` or those of `train`; incomplete batches are dropped."""
    return (train.epochs if epochs is None else epochs) * (images // train.batch)
