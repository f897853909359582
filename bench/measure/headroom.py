"""Whether a train step fits into memory, estimated before it is made: a process that takes too much is killed, and
tells nobody.

What a step keeps for its backward pass is weighed on two images; it grows with their number. Above `FAR` pixels smaller
images stand for it: on N patches it is a N + b N^2 (b where attention maps are kept), and two sizes give both. To that
come the models, which all live in the one process: weights, their copy for inference, gradients, AdamW's two moments.
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

NEAR, FAR = 256, 384  # pixels on a side of the images that are weighed in the place of larger ones
MARGIN = 1.25  # of a step over what it keeps: gradients under way, what its largest operator needs besides


def too_large(
    methods: Sequence[Method],
    encoder: EncoderSpec,
    geometry: Geometry,
    train: TrainSpec,
    batch: int,
    free: float | None = None,
) -> dict[str, str]:
    """Rows of a cost table whose train step of `batch` images would not fit into memory, each with the reason.

    `geometry` is the encoder's; `free` bytes are by default what this machine has left. Empty where it does not say.
    """
    fabric = one_device(train.precision)
    free = free_bytes(fabric.device) if free is None else free
    if free is None:
        return {}
    models, steps = 0.0, {}
    for name, method in timed_names(methods)[:-1]:
        arms = [
            TimedMethod(name, method, spec, train, random_views(spec), fabric) for spec in _stand_ins(encoder, geometry)
        ]
        points = [(arm.objective.encoder.geometry.patches, arm.most_saved() / IMAGES) for arm in arms]
        steps[name] = batch * grown(points, geometry.patches)
        models += (2 if method == DENSE else 1) * _model_bytes(arms[0].objective)  # dense is there twice
    return {
        name: f"{name} at {encoder.image_size} px: a step of {batch} images would take some {_gib(models + step)}, "
        f"{_gib(models)} of it for the models that are compared; {_gib(free)} are free"
        for name, step in steps.items()
        if models + step > free
    }


def grown(points: Sequence[tuple[int, float]], patches: int) -> float:
    """Bytes of a step at a number of patches: a N + b N^2 through what one or two sizes keep, (N, bytes) ascending,
    with the margin; b is at least 0."""
    (n, small), (m, large) = points[0], points[-1]
    b = max(0.0, (large / m - small / n) / (m - n)) if m > n else 0.0
    return MARGIN * ((large / m - b * m) * patches + b * patches**2)


def free_bytes(device: torch.device) -> float | None:
    """Memory that this process may still take: a GPU's; else what Linux has left, or what it leaves to the process's
    control group (of a job, of a container), whichever is less. None where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    lines = _read(Path("/proc/meminfo")).splitlines()
    left = [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min([*left, *_left_to_groups()], default=None)


def _left_to_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """Bytes left to the process's control group and to those around it (version 2), where they are limited; the page
    cache, which is given up when need be, counts as left."""
    path = next((line.removeprefix("0::/") for line in _read(own).splitlines() if line.startswith("0::/")), None)
    found = []
    for group in [] if path is None else [root / path, *(root / path).parents]:
        limit = _read(group / "memory.max").strip()
        used = [int(line.split()[1]) for line in _read(group / "memory.stat").splitlines() if line.startswith("anon ")]
        if limit.isdecimal() and used:
            found.append(float(int(limit) - used[0]))
    return found


def _stand_ins(encoder: EncoderSpec, geometry: Geometry) -> list[EncoderSpec]:
    """The encoder at the sizes that are weighed: its own, or two smaller ones that its patches tile."""
    patch = geometry.patch
    sizes = [encoder.image_size] if encoder.image_size <= FAR else [side // patch * patch for side in (NEAR, FAR)]
    return [encoder.model_copy(update={"image_size": size, "weights": ""}) for size in sizes]


def _model_bytes(objective: Objective) -> float:
    """Weights, a copy of the encoder's, and of what is trained the gradients and two moments."""
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
