"""Estimate of the memory of a training step before it runs, because a process that takes too much is killed without a
message.

The memory that a step keeps for its backward pass is measured on two images and scales with their number. For images
above `FAR` pixels it is extrapolated from two smaller sizes as a N + b N^2 in the number N of patches, where b > 0 if
attention maps are kept. Added to it are the models, all in the same process: weights, their copy for inference,
gradients and the two moments of AdamW.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bench.measure.inputs import IMAGES, random_views
from bench.measure.table import DENSE, timed_names
from bench.measure.timed_method import TimedMethod
from bench.specs.run_spec import EncoderSpec, TrainSpec
from bench.training.device import one_device
from methods.names import Method
from methods.objectives.objective import Objective
from methods.strategies.strategy import Geometry

NEAR, FAR = 256, 384  # side, in pixels, of the smaller images from which larger ones are extrapolated
MARGIN = 1.25  # memory of a step / memory that it keeps: gradients in transit, workspace of the largest operator


def too_large(
    methods: Sequence[Method],
    encoder: EncoderSpec,
    geometry: Geometry,
    train: TrainSpec,
    batch: int,
    free: float | None = None,
) -> dict[str, str]:
    """Rows of a cost table whose training step on `batch` images would not fit into memory, with the reason.

    `geometry` is that of the encoder; `free` bytes of memory default to those available on this machine. Empty if that
    is unknown.
    """
    fabric = one_device(train.precision)
    free = free_bytes(fabric.device) if free is None else free
    if free is None:
        return {}
    models, steps = 0.0, {}
    for name, method in timed_names(methods)[:-1]:
        timed = [
            TimedMethod(name, method, spec, train, random_views(spec), fabric) for spec in _stand_ins(encoder, geometry)
        ]
        points = [(one.objective.encoder.geometry.patches, one.most_saved() / IMAGES) for one in timed]
        steps[name] = batch * grown(points, geometry.patches)
        models += (2 if method == DENSE else 1) * _model_bytes(timed[0].objective)  # dense has two models
    return {
        name: f"{name} at {encoder.image_size} px: a step on {batch} images would take about {_gib(models + step)}, "
        f"of which {_gib(models)} for the compared models; {_gib(free)} are free"
        for name, step in steps.items()
        if models + step > free
    }


def grown(points: Sequence[tuple[int, float]], patches: int) -> float:
    """Bytes of a step on `patches` patches, with the margin: a N + b N^2 through one or two measured points (N, bytes)
    in ascending order, where b is at least 0."""
    (n, small), (m, large) = points[0], points[-1]
    b = max(0.0, (large / m - small / n) / (m - n)) if m > n else 0.0
    return MARGIN * ((large / m - b * m) * patches + b * patches**2)


def free_bytes(device: torch.device) -> float | None:
    """Free memory for this process: on a GPU, the free memory of the device; else the available memory of Linux or the
    rest of the limit of the process's control group (of a job or a container), whichever is less. None if unknown."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    lines = _read(Path("/proc/meminfo")).splitlines()
    left = [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min([*left, *_left_to_groups()], default=None)


def _left_to_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """Bytes left in the control groups (version 2) of this process, for each group with a limit. The page cache counts
    as left, because the kernel drops it when needed."""
    path = next((line.removeprefix("0::/") for line in _read(own).splitlines() if line.startswith("0::/")), None)
    found = []
    for group in [] if path is None else [root / path, *(root / path).parents]:
        limit = _read(group / "memory.max").strip()
        used = [int(line.split()[1]) for line in _read(group / "memory.stat").splitlines() if line.startswith("anon ")]
        if limit.isdecimal() and used:
            found.append(float(int(limit) - used[0]))
    return found


def _stand_ins(encoder: EncoderSpec, geometry: Geometry) -> list[EncoderSpec]:
    """The encoder at its own size or, for large images, at two smaller sizes that are multiples of the patch."""
    patch = geometry.patch
    sizes = [encoder.image_size] if encoder.image_size <= FAR else [side // patch * patch for side in (NEAR, FAR)]
    return [encoder.model_copy(update={"image_size": size, "weights": ""}) for size in sizes]


def _model_bytes(objective: Objective) -> float:
    """Bytes of all weights, of a copy of the encoder, and of gradients and two moments for the trained weights."""
    parameters = [*objective.parameters(), *objective.encoder.parameters()]
    parameters += 3 * [p for p in objective.parameters() if p.requires_grad]
    return float(sum(p.nbytes for p in parameters))


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
