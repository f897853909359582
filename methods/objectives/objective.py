"""What an objective is: an encoder with heads and a contrastive loss on two views.

Over several ranks the encoder runs on a rank's own images, and the heads on the features of all (`gather_views`), on
every rank alike: so their batch norm and the negatives are those of the global batch, and the gradients exact, for the
heads' part of a step, some 0.1 % of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from methods.encoders.encoder import Encoder
from methods.ranks import sum_over_ranks, world
from methods.strategies.strategy import Call, Encoding


@dataclass
class Loss:
    """The loss of a step: `total` to descend, `contrastive` its contrastive part, `parts` the strategy's own terms;
    `encoding` of the student, for diagnostics."""

    total: Tensor
    contrastive: Tensor
    encoding: Encoding
    parts: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """Base: holds the encoder that is kept; heads and teachers go with the training.

    `blur_probabilities`: of each view, where the objective wants its own; None for what the run says.
    """

    blur_probabilities: tuple[float, float] | None = None

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, views: Tensor, call: Call) -> Loss:
        """Loss of the global batch, of which `views` (2, B, channels, H, W) are this rank's images."""
        raise TypeError(f"{type(self).__name__} defines no loss")

    def use_attention(self, backend: str, device: torch.device) -> None:
        """Choose the attention backend of all encoders, a teacher's too; raises ValueError where it cannot run."""
        for module in self.modules():
            if isinstance(module, Encoder):
                module.use_attention(backend, device)

    def after_step(self, progress: float) -> None:
        """What follows the optimizer's step; `progress`: share of the run that is over after it, 1 after the last."""

    def plateau(self, batch: int) -> float:
        """The contrastive loss at which nothing is told apart, for a global batch of `batch` samples."""
        raise TypeError(f"{type(self).__name__} knows no plateau")


def total(contrastive: Tensor, encoding: Encoding) -> Loss:
    """The contrastive loss of the global batch plus the strategy's own, already weighted.

    The strategy's losses and statistics become means over the ranks: of what is a mean over images or over the global
    batch that is the global value; of a share of the kept patches (`overlap`), where ranks keep different numbers,
    nearly.
    """
    encoding = replace(encoding, losses=_means(encoding.losses), stats=_means(encoding.stats))
    whole = contrastive
    for part in encoding.losses.values():
        whole = whole + part
    return Loss(whole, contrastive, encoding, encoding.losses)


def _means(scalars: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their means over the ranks, in one exchange."""
    if world() == 1 or not scalars:
        return scalars
    means = sum_over_ranks(torch.stack(list(scalars.values()))) / world()
    return dict(zip(scalars, means.unbind(), strict=True))


def mlp(widths: list[int], last_norm_affine: bool | None, first_norm: bool = False) -> nn.Sequential:
    """Linear layers without bias, each but the last followed by batch norm and ReLU.

    `last_norm_affine`: batch norm after the last layer, with or without affine parameters; None for no norm there.
    `first_norm`: batch norm before the first layer.
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
    """Hidden width of a head: the paper's from ViT-S on, four times the features' below, which it would outweigh."""
    return paper if dim >= 384 else 4 * dim


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Teacher's parameters become `momentum` x their own + (1 - momentum) x the student's."""
    own: list[Tensor] = [p for p in teacher.parameters() if p.is_floating_point()]
    new = [p for p in student.parameters() if p.is_floating_point()]
    torch._foreach_lerp_(own, [p.detach() for p in new], 1.0 - momentum)
