"""Cost of a trained method: multiply-accumulates, and memory of a step, on images of its data where they matter."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.measure.macs import count
from bench.measure.memory import peak_mib, saved_bytes
from bench.records.record import Macs, Memory
from bench.specs.run_spec import RunSpec
from bench.training.build import build, keep_now, steps_of
from bench.training.data import RunData
from methods.noise import Noise
from methods.objectives.objective import Objective
from methods.strategies.strategy import Call

STEP, PLAIN = 16, 256  # images, at most: of a measured step; over which MACs at inference are averaged


def macs_of(objective: Objective, spec: RunSpec, run_data: RunData, steps: int) -> Macs:
    """MACs of a pre-training of `steps` steps; a whole run includes that which it continues. Raises
    CountersDisagree."""
    own = _macs_of(objective, spec, run_data, steps)
    if spec.start is None:
        return own
    before = build(spec.start.parsed, spec.encoder, spec.start.seed)
    first = macs_of(before, spec.start, run_data, steps_of(len(run_data.splits.train), spec.train, spec.start.epochs))
    return own.model_copy(update={"whole_run": own.whole_run + first.whole_run})


def _macs_of(objective: Objective, spec: RunSpec, run_data: RunData, steps: int) -> Macs:
    if not objective.encoder.strategy.adaptive:
        return count(objective, spec.encoder, spec.train, steps)
    index = run_data.splits.test[:PLAIN]
    plain = run_data.views.normalise(torch.from_numpy(run_data.dataset.images[index]).to(run_data.fabric.device))
    return count(objective, spec.encoder, spec.train, steps, _views(run_data), plain)


def memory_of(objective: Objective, spec: RunSpec, run_data: RunData) -> Memory:
    """Memory that a step at the target keep ratio keeps for its backward pass, and the peak so far."""
    views = _views(run_data)
    lesions = None
    if objective.encoder.strategy.needs_lesions:
        lesions = torch.zeros(2 * views.shape[1], objective.encoder.geometry.patches, device=run_data.fabric.device)
    call = Call(keep=keep_now(objective, 1.0, 0.0), noise=Noise(0, 0, views.shape[1]), lesions=lesions)
    peak, of = peak_mib()
    return Memory(saved_bytes_per_image=saved_bytes(objective, views, call), peak_mib=peak, peak_of=of)


def _views(run_data: RunData) -> Tensor:
    """Two views of the first training images, (2, B, channels, H, W)."""
    index = run_data.splits.train[: min(STEP, len(run_data.splits.train))]
    parameters = run_data.views.draw(torch.Generator().manual_seed(0), len(index))
    views, _ = run_data.views.apply(
        torch.from_numpy(run_data.dataset.images[index]).to(run_data.fabric.device), parameters
    )
    return views
