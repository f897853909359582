"""A dense SimCLR step: ours against lightly's documented example, on the same encoder, batch and views.

lightly's example (docs.lightly.ai, "SimCLR"): backbone, SimCLRProjectionHead, NTXentLoss, each view through the
network by itself, zero_grad after the step; with AdamW in the place of SGD, as ours. Our projector has a layer and two
batch norms more, so a second row gives lightly's head our widths and its optimizer our options. Both run in one
process, under the same allocator settings (lightly has no such): what they give is no part of the ratio.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from bench.measure.inputs import random_views
from bench.measure.paired import paired_times
from bench.specs.run_spec import EncoderSpec
from bench.training.build import build, optimizer_of, train_step
from methods.names import parse_methods
from methods.noise import Noise
from methods.objectives.objective import Objective, head_width
from methods.strategies.strategy import Call
from peers.outcome import Row, row

ABOUT = "A dense SimCLR step: ours against lightly's documented example on the same encoder"
TARGET = 1.0
LR, WEIGHT_DECAY, BETAS = 1e-3, 0.05, (0.9, 0.95)
CASES = [  # encoder, batch
    (EncoderSpec(name="vit_small_patch16_224", image_size=224), 8),
    (EncoderSpec(name="vit_stem_d64_l4_patch8", image_size=64), 64),
]
DOCUMENTED = "lightly's example"
ALIKE = "lightly's, with our widths and foreach"


def measure(rounds: int) -> list[Row]:
    rows = []
    for encoder, batch in CASES:
        times = paired_times(timed_methods(encoder, batch), rounds)
        what = f"{encoder.name}, {encoder.image_size} px, batch {batch}"
        rows += [row(times, "ours", theirs, what, TARGET, "ms", 1) for theirs in (DOCUMENTED, ALIKE)]
    return rows


def timed_methods(encoder: EncoderSpec, batch: int) -> dict[str, Callable[[], None]]:
    """A call of each is one step."""
    views = random_views(encoder, batch)
    objective = build(parse_methods("simclr/dense")[0], encoder, seed=0)
    return {
        DOCUMENTED: lightly_step(objective, views, alike=False),
        ALIKE: lightly_step(objective, views, alike=True),
        "ours": our_step(objective, views),
    }


def our_step(objective: Objective, views: Tensor) -> Callable[[], None]:
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(objective, optimizer_of(objective, LR, WEIGHT_DECAY))
    model.train()

    def step() -> None:
        train_step(model, optimizer, views, Call(noise=Noise(0, 0, views.shape[1])), fabric, done=1.0)

    return step


class Pooled(nn.Module):
    """timm's transformer with the mean of its patch tokens as output, (B, C)."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        return self.vit.forward_features(images)[:, self.vit.num_prefix_tokens :].mean(1)


class LightlySimCLR(nn.Module):
    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projection_head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.projection_head(self.backbone(images).flatten(start_dim=1))


def lightly_model(objective: Objective, alike: bool) -> LightlySimCLR:
    """lightly's network around a copy of the objective's transformer."""
    from lightly.models.modules import SimCLRProjectionHead

    vit = copy.deepcopy(objective.encoder.vit)
    dim = vit.embed_dim
    widths = (dim, head_width(dim, 2048), 128, 3) if alike else (dim, dim, 128)
    return LightlySimCLR(Pooled(vit), SimCLRProjectionHead(*widths))


def lightly_step(objective: Objective, views: Tensor, alike: bool) -> Callable[[], None]:
    from lightly.loss import NTXentLoss

    model = lightly_model(objective, alike).train()
    criterion = NTXentLoss(temperature=objective.temperature)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, betas=BETAS, foreach=True if alike else None
    )

    def step() -> None:
        first, second = views
        loss = criterion(model(first), model(second))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
