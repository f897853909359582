"""Time of `bench.training.pretrain.pretrain` against a bare loop over the same step.

Both train the same method on the same cached views with the same learning rates, and end with the same weights. In
`pretrain`, making the views is replaced (`Views.apply` returns the cached ones), and so is building the network. All
its other work counts: order of the images, reading them, drawing the parameters of the views, schedule, checks of the
loss, history, progress. The bare loop consists of zero_grad, forward, backward and step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from lightning_fabric import Fabric

from bench.measure.inputs import random_views
from bench.measure.paired import paired_times
from bench.specs.grid_spec import GridSpec
from bench.specs.run_spec import EncoderSpec, RunSpec, TrainSpec
from bench.training import pretrain as harness
from datasets.dataset import Dataset
from datasets.views import Views
from methods.noise import Noise
from methods.objectives.objective import Objective
from methods.strategies.strategy import Call
from peers.outcome import Row, row

ABOUT = "Harness: pre-training on cached views against a bare loop over the same step"
TARGET = 1 / 1.03  # at most 3 % slower
SMALL = EncoderSpec(name="vit_stem_d64_l4_patch8", image_size=64)
LARGE = EncoderSpec(name="vit_small_patch16_224", image_size=224)
CASES = [  # method, encoder, batch, steps a call
    ("simclr/dense", SMALL, 64, 8),
    ("simclr/sparsecontrast", SMALL, 64, 8),
    ("simclr/dense", LARGE, 8, 2),
]


def measure(rounds: int) -> list[Row]:
    rows = []
    for method, encoder, batch, steps in CASES:
        ours, bare = loops(method, encoder, batch, steps)
        times = paired_times({"pretrain": ours, "bare loop": bare}, rounds)
        what = f"{method}, {encoder.name}, {encoder.image_size} px, batch {batch}"
        rows.append(row(times, "pretrain", "bare loop", what, TARGET, "ms", steps))
    return rows


def loops(
    method: str, encoder: EncoderSpec, batch: int, steps: int
) -> tuple[Callable[[], Objective], Callable[[], Objective]]:
    """Our loop and the bare loop: calls that each train their own network for `steps` steps and return it."""
    train = TrainSpec(epochs=1, batch=batch)
    (spec,) = GridSpec(methods=method, baselines=(), seeds=(0,), encoder=encoder, train=train).runs()
    views = random_views(encoder, batch)
    network = harness.build(spec.parsed, encoder, seed=0)
    return _harness(spec, network, views, steps), _bare(spec, copy.deepcopy(network), views, steps)


def _harness(spec: RunSpec, network: Objective, views: torch.Tensor, steps: int) -> Callable[[], Objective]:
    data = _noise_images(spec.train.batch * steps, spec.encoder.image_size)
    index = np.arange(len(data))

    def train() -> Objective:
        fabric = Fabric(accelerator="cpu", devices=1)
        with (
            patch.object(harness, "build", lambda *given: network),
            patch.object(Views, "apply", lambda *given: (views, None)),
        ):
            return harness.pretrain(spec, data, index, fabric, lambda state: None).objective

    return train


def _bare(spec: RunSpec, network: Objective, views: torch.Tensor, steps: int) -> Callable[[], Objective]:
    rates = _rates(spec, network, steps)
    calls = []
    for step in range(steps):
        keep = harness.keep_now(network, step / steps, spec.train.ramp)
        calls.append(Call(keep, step / steps, Noise(spec.seed, step, spec.train.batch)))

    def train() -> Objective:
        optimizer = harness.optimizer_of(network, spec.train.lr, spec.train.weight_decay)
        network.train()
        for step, (rate, call) in enumerate(zip(rates, calls, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            network(views, call).total.backward()
            optimizer.step()
            network.after_step((step + 1) / steps)
        return network

    return train


def _rates(spec: RunSpec, network: Objective, steps: int) -> list[float]:
    """Learning rates of the steps, from the schedule."""
    optimizer = harness.optimizer_of(network, spec.train.lr, spec.train.weight_decay)
    schedule = harness.schedule_of(optimizer, steps, spec.train.warmup)
    rates = []
    for step in range(steps):
        schedule.step_update(step)
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates


def _noise_images(count: int, side: int) -> Dataset:
    generator = np.random.default_rng(0)
    return Dataset(
        name="noise",
        images=generator.integers(0, 256, (count, side, side), dtype=np.uint8),
        labels=np.ones((count, 1), np.float32),
        label_names=("none",),
        patients=np.arange(count).astype(str),
        fingerprint="0" * 64,
    )
