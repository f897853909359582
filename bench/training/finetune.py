"""End-to-end training on labels: the `finetune` probe of a pre-trained encoder, and the `supervised` baseline."""

from __future__ import annotations

import copy
import itertools
import math
import time

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.specs.run_spec import FinetuneSpec
from bench.training.batches import Lesions, epoch_order
from bench.training.build import optimizer_of, schedule_of
from bench.training.checkpoint import Checkpoints, Position
from bench.training.data import Indices, RunData
from bench.training.failures import TrainingFailed
from bench.training.history import ProgressCallback, with_current_conditions
from methods import Inference
from methods.encoders.encoder import Encoder
from methods.noise import keyed_generator
from methods.strategies.strategy import Call

WARMUP = 0.1


class Classifier(nn.Module):
    """An encoder with a linear layer on its pooled features: images -> logits (B, labels).

    The strategy runs as at inference (its selection is deterministic) while gradients flow.
    """

    def __init__(self, encoder: Encoder, labels: int, inference: Inference) -> None:
        super().__init__()
        self.encoder = encoder
        self.inference = inference
        self.head = nn.Linear(encoder.geometry.dim, labels)

    def forward(self, images: Tensor, call: Call) -> Tensor:
        return self.head(self.encoder(images, call).features)  # type: ignore[no-any-return]


def finetune_steps(images: int, spec: FinetuneSpec) -> int:
    """Return the number of steps on so many images: the epochs of the spec, within its bounds on steps."""
    return min(max(spec.epochs * max(1, images // spec.batch), spec.min_steps), spec.max_steps)


def finetune(
    encoder: Encoder,
    run_data: RunData,
    images: Indices,
    spec: FinetuneSpec,
    *,
    inference: Inference,
    progress: ProgressCallback,
    checkpoints: Checkpoints | None = None,
) -> Classifier:
    """Train a classifier on `images` with binary cross-entropy over the known labels.

    The given encoder is copied, not changed. Images are augmented by the views of pre-training. Resumes from the newest
    checkpoint if there is one. Raises TrainingFailed for a loss that is not finite.
    """
    data, views, fabric, seed = run_data.dataset, run_data.views, run_data.fabric, run_data.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 2)
        classifier = Classifier(copy.deepcopy(encoder).requires_grad_(True), data.labels.shape[1], inference)
    positions, given = (getattr(e.network, "pos_embed", None) for e in (classifier.encoder, encoder))
    if positions is not None and given is not None:
        positions.requires_grad_(given.requires_grad)  # fixed positions stay fixed
    batch = min(spec.batch, len(images))
    total = finetune_steps(len(images), spec)
    optimizer = optimizer_of(classifier, spec.lr, spec.weight_decay)
    model, optimizer = fabric.setup(classifier.to(fabric.device), optimizer)
    scheduler = schedule_of(optimizer, total, WARMUP)
    lesions = Lesions(data, encoder, seed)
    checkpoints = checkpoints or Checkpoints(None)
    position = checkpoints.restore(classifier, optimizer)
    step, per_epoch = 0 if position is None else position.step, len(images) // batch
    before, resumed = spent(position)
    under = with_current_conditions({} if position is None else position.state)
    began = time.perf_counter()
    model.train()
    with checkpoints.stopping.between_steps():
        while step < total:
            epoch, done = divmod(step, per_epoch)
            for index in itertools.islice(epoch_order(images, seed, epoch, batch), done, done + total - step):
                scheduler.step_update(step)
                parameters = views.draw(keyed_generator("finetune views", seed, step), len(index))
                pair, call = lesions.make_views(views, index, parameters, Call(inference=inference), fabric.device)
                loss = _known_bce(model(pair[0], _first_view(call, len(index))), data.labels[index])
                if not math.isfinite(float(loss.detach())):
                    raise TrainingFailed(
                        f"the loss became {float(loss.detach())} at step {step} of {total} on labels (lr {spec.lr:g})"
                    )
                optimizer.zero_grad(set_to_none=True)
                fabric.backward(loss)
                optimizer.step()
                step += 1
                progress({"step": step, "steps": total, "loss": float(loss.detach())})
                if checkpoints.due():
                    seconds = before + time.perf_counter() - began
                    state = {"seconds": seconds, "resumed": resumed, "conditions": under}
                    checkpoints.save(classifier, optimizer, Position(step, state))
    return classifier.eval()


def spent(position: Position | None) -> tuple[float, int]:
    """Return the training seconds that a checkpoint holds, and the number of resumes including one from it."""
    return (0.0, 0) if position is None else (float(position.state["seconds"]), int(position.state["resumed"]) + 1)


def _first_view(call: Call, batch: int) -> Call:
    from dataclasses import replace

    return call if call.lesions is None else replace(call, lesions=call.lesions[:batch])


def _known_bce(logits: Tensor, labels: npt.NDArray[np.float32]) -> Tensor:
    """Binary cross-entropy averaged over the labels that are not NaN."""
    target = torch.from_numpy(labels).to(logits.device)
    known = ~target.isnan()
    return F.binary_cross_entropy_with_logits(logits.float()[known], target[known])
