"""MACs by formulas derived by hand, independent of the counters that observe the operators.

MACs at inference are the sum over the products of an encoder. A training step adds those of its backward pass, for both
views, and those of the heads, the teacher and the contrast. Padding counts, because it is computed; norms, pooling and
activations do not. A formula uses the numbers of an architecture (depths, widths, image size, kernels) and the number
of tokens that a strategy keeps by its paper.

There is one file per family of encoders, with the products that do not depend on the strategy (`always`) and those of
each strategy (`FORMULAS`). A formula is optional: without one, the other counters have to agree.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from bench.measure.formula import convnext, resnet, vit
from bench.measure.formula.products import Pass, Product
from methods.objectives.moco import MoCo
from methods.objectives.objective import Objective
from methods.objectives.simclr import SimCLR
from methods.strategies.dense import Dense
from methods.strategies.strategy import Call

if TYPE_CHECKING:
    from methods.encoders.encoder import Encoder

FAMILIES = {"vit": vit, "convnext": convnext, "resnet": resnet}


def inference(encoder: Encoder, images: Tensor, call: Call) -> list[Product] | None:
    """Products of a forward pass; None if the strategy or the network has no formula."""
    return _forward(Pass(encoder, images, call, learns=False))


def train_step(objective: Objective, views: Tensor, call: Call, batch: int) -> list[Product] | None:
    """Products of a training step on `batch` images, with MACs of both views and of the backward pass; None if the
    strategy, the network or the objective has no formula.

    `views` (2, n, channels, H, W) and `call` determine the shapes that depend on the content of the images.
    """
    images = views.flatten(0, 1)
    student = _forward(Pass(objective.encoder, images, call, learns=True))
    if student is None or type(objective) not in (SimCLR, MoCo):
        return None
    assert isinstance(objective, SimCLR | MoCo)
    student.append(Product("heads", _linear(objective.projector)))
    out = [layer.out_features for layer in objective.projector if isinstance(layer, nn.Linear)][-1]
    teacher: list[Product] = []
    if isinstance(objective, SimCLR):
        student.append(Product("contrast", 2 * batch * out))  # each view with all 2B; both operands get a gradient
    else:
        student.append(Product("heads", _linear(objective.predictor)))
        student.append(Product("contrast", batch * out, 1))  # keys get no gradient
        own = replace(call, noise=None, inference="dense") if objective.teacher == "dense" else call.of("teacher")
        forward = _forward(Pass(objective.teacher_encoder, images, own, learns=False))
        assert forward is not None
        teacher = [*forward, Product("teacher", _linear(objective.teacher_projector))]
    return [
        *(replace(product, macs=2 * (1 + product.gradients) * product.macs) for product in student),
        *(replace(product, macs=2 * product.macs, part="teacher") for product in teacher),
    ]


def _forward(run: Pass) -> list[Product] | None:
    family, strategy = FAMILIES[run.encoder.family], type(run.strategy)
    if strategy not in family.FORMULAS or (family is resnet and not resnet.is_plain(run.encoder.network)):
        return None
    whole = not run.call.training and run.call.inference == "dense"
    return [*family.always(run), *family.FORMULAS[Dense if whole else strategy](run)]


def _linear(head: nn.Module) -> int:
    return sum(layer.in_features * layer.out_features for layer in head.modules() if isinstance(layer, nn.Linear))
