"""Base class of objectives: an encoder with heads and a contrastive loss on two views.

On several ranks, the encoder runs on the images of its own rank. Every rank runs the heads on the features of all ranks
(`gather_views`), so that batch norm and negatives cover the global batch and gradients are exact. Repeating the heads
on every rank costs about 0.1 % of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from methods import Value
from methods.encoders.encoder import Encoder
from methods.ranks import sum_over_ranks, world
from methods.strategies.strategy import Call, Encoding


@dataclass
class Loss:
    """Loss of one training step.

    total: the loss to minimise. contrastive: its contrastive part. encoding: of the student, for diagnostics.
    parts: weighted loss terms of the strategy, by name.
    """

    total: Tensor
    contrastive: Tensor
    encoding: Encoding
    parts: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """Base class that holds the encoder. Heads and teachers serve training only and are not evaluated.

    blur_probabilities: probability of blurring each view, if the objective defines its own; None for the run's.
    """

    blur_probabilities: tuple[float, float] | None = None

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def lr_factors(self) -> dict[str, float]:
        """Factors on the learning rate, by the beginning of the names of parameters."""
        return {f"encoder.{name}": factor for name, factor in self.encoder.strategy.lr_factors.items()}

    @property
    def computed(self) -> dict[str, Value]:
        """Values in use of options whose default stands for a computed value."""
        return {}

    def forward(self, views: Tensor, call: Call) -> Loss:
        """Return the loss of the global batch, given the views (2, B, channels, H, W) of this rank."""
        raise TypeError(f"{type(self).__name__} defines no loss")

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from the network of another run with the same encoder, given the weights of its encoder by name.

        Strategy and heads keep their initial weights. Raises RuntimeError for weights of another network.
        """
        for encoder in (module for module in self.modules() if isinstance(module, Encoder)):
            start = f"{encoder.family}."
            own = {name.removeprefix(start): weight for name, weight in weights.items() if name.startswith(start)}
            encoder.network.load_state_dict(own)
        self.encoder.strategy.start_from(self.encoder.network)

    def use_attention(self, backend: str, device: torch.device) -> None:
        """Choose the attention backend of all encoders, teachers included. Raises ValueError if it cannot run."""
        for module in self.modules():
            if isinstance(module, Encoder):
                module.use_attention(backend, device)

    def after_step(self, progress: float) -> None:
        """Update state after an optimizer step; `progress` is the completed share of the run, 1 after the last step."""

    def plateau(self, batch: int) -> float:
        """Return the contrastive loss of an encoder that does not distinguish any of `batch` samples (all ranks)."""
        raise TypeError(f"{type(self).__name__} knows no plateau")


def total(contrastive: Tensor, encoding: Encoding) -> Loss:
    """Add the weighted losses of the strategy to the contrastive loss of the global batch.

    The losses and statistics of the strategy are averaged over ranks. For means over images, the average is the value
    of the global batch; for shares of the kept patches (`overlap`) it is approximate if ranks keep different numbers.
    """
    encoding = replace(encoding, losses=_means(encoding.losses), stats=_means(encoding.stats))
    whole = contrastive
    for part in encoding.losses.values():
        whole = whole + part
    return Loss(whole, contrastive, encoding, encoding.losses)


def _means(scalars: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average scalars over ranks in one collective call."""
    if world() == 1 or not scalars:
        return scalars
    means = sum_over_ranks(torch.stack(list(scalars.values()))) / world()
    return dict(zip(scalars, means.unbind(), strict=True))


def mlp(widths: list[int], last_norm_affine: bool | None, first_norm: bool = False) -> nn.Sequential:
    """Build an MLP of linear layers without bias; batch norm and ReLU follow each layer but the last.

    widths: input width, then the output width of every layer.
    last_norm_affine: whether the batch norm after the last layer has affine parameters; None for no norm there.
    first_norm: whether batch norm precedes the first layer.
    """
    layers: list[nn.Module] = [nn.BatchNorm1d(widths[0])] if first_norm else []
    for i, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layers.append(nn.Linear(before, after, bias=False))
        if i < len(widths) - 2:
            layers += [nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    if last_norm_affine is not None:
        layers.append(nn.BatchNorm1d(widths[-1], affine=last_norm_affine))
    return nn.Sequential(*layers)


def head_width(dim: int, paper: int) -> int:
    """Return the hidden width of a head: `paper` from ViT-S on, and four times the feature width `dim` below it.

    With the width of the paper, the heads would outweigh a small encoder.
    """
    return paper if dim >= 384 else 4 * dim


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Update the teacher in place: its parameters become momentum x teacher + (1 - momentum) x student."""
    own: list[Tensor] = [p for p in teacher.parameters() if p.is_floating_point()]
    new = [p for p in student.parameters() if p.is_floating_point()]
    torch._foreach_lerp_(own, [p.detach() for p in new], 1.0 - momentum)
