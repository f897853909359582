"""Time of a dense SimCLR step: ours against the documented example of lightly, on the same encoder, batch and views.

The example (docs.lightly.ai, "SimCLR") has a backbone, SimCLRProjectionHead and NTXentLoss. It runs the views through
the network one after the other, and calls zero_grad after the step. Here it uses AdamW instead of SGD, like ours. Our
projector has one layer and two batch norms more; a second row therefore gives the head of lightly our widths, and its
optimizer our options. Both run in one process with the same allocator settings, which are not part of the comparison.
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
        times = paired_times(calls_of(encoder, batch), rounds)
        what = f"{encoder.name}, {encoder.image_size} px, batch {batch}"
        rows += [row(times, "ours", theirs, what, TARGET, "ms", 1) for theirs in (DOCUMENTED, ALIKE)]
    return rows


def calls_of(encoder: EncoderSpec, batch: int) -> dict[str, Callable[[], None]]:
    """Calls of one step each, by name."""
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
    """A transformer of timm with the mean of its patch tokens as output, (B, C)."""

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
    """Network of lightly around a copy of the transformer of an objective."""
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
