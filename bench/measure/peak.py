"""Peak memory of training one method, measured in a separate process without other models and earlier peaks.

`python -m bench.measure.peak` reads a request as JSON from its standard input, builds the method, makes a few training
steps and prints the peak. On a CPU, this is the peak of resident memory minus the memory resident before the model was
built (interpreter, torch and its libraries, after a step of another small network). It includes parameters, gradients,
the two moments of AdamW and all memory of a step. The peak is Linux's VmHWM, which starts at 0 with a new program; that
of getrusage would start with the peak of the parent. On a GPU, it is the peak of memory allocated by torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.specs.run_spec import EncoderSpec, TrainSpec

STEPS = 3  # the state of the optimizer exists after the first
SECONDS = 600  # at most, for one method


class NotMeasured(Exception):
    """The process ended before it printed a peak; the message says how."""


def peak_of_training(
    method: str, encoder: EncoderSpec, train: TrainSpec, batch: int, threads: int
) -> tuple[float, str]:
    """Peak in MiB, and whether it is that of the "process" or the "device". Raises NotMeasured, e.g. if memory ran
    out."""
    request = {
        "method": method,
        "encoder": encoder.model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
        "batch": batch,
        "threads": threads,
    }
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.measure.peak"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"{method}: not finished after {SECONDS} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        last = said[-1] if said else "without a message: probably killed because memory ran out"
        raise NotMeasured(f"{method}: exit code {done.returncode}, {last}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return float(found["mib"]), str(found["of"])


def main() -> None:
    print(json.dumps(_measured(json.load(sys.stdin))))


def _measured(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    from bench.measure.inputs import random_views
    from bench.measure.memory import peak_mib, resident_mib
    from bench.measure.timed_method import TimedMethod
    from bench.records.environment import raise_allocator_thresholds
    from bench.training.device import one_device
    from methods.names import parse_methods

    raise_allocator_thresholds()
    torch.set_num_threads(request["threads"])
    encoder, train = EncoderSpec(**request["encoder"]), TrainSpec(**request["train"])
    (method,) = parse_methods(request["method"])
    fabric = one_device(train.precision)
    _warm_libraries()
    before = resident_mib()
    views = random_views(encoder, request["batch"])
    timed = TimedMethod(method.name, method, encoder, train, views, fabric)
    step = timed.train_steps()[timed.points[0]]
    for _ in range(STEPS):
        step()
    peak, of = peak_mib()
    return {"mib": peak if of == "device" else peak - before, "of": of}


def _warm_libraries() -> None:
    """Make a step of a small network, so that libraries are loaded and have allocated what they keep."""
    import torch
    from torch import nn

    network = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.Flatten(), nn.Linear(8 * 64, 8))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(4, 1, 32, 32)).square().mean().backward()
    optimizer.step()


if __name__ == "__main__":
    main()
