"""Peak memory of training one method, in a process of its own, so that no other model and no earlier peak is in it.

`python -m bench.measure.peak` reads one job as JSON from its input, builds the method, makes a few train steps and
prints the peak. On a CPU: the most that was resident, less what was resident before the model (interpreter, torch and
its libraries, warmed by a step of another small network). So parameters, gradients, AdamW's two moments and
everything that a step holds are in it. The high-water mark is Linux's own (VmHWM), which begins anew with a program;
getrusage's would begin with the parent's. On a GPU: the most that torch's allocator had given out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.specs.run_spec import EncoderSpec, TrainSpec

STEPS = 3  # the optimizer's state is there from the first step's end on
SECONDS = 600  # at most, for one method


class NotMeasured(Exception):
    """The process ended before it had measured; the message says how."""


def peak_of_training(
    method: str, encoder: EncoderSpec, train: TrainSpec, batch: int, threads: int
) -> tuple[float, str]:
    """Peak in MiB, and what it is of: "process" or "device". Raises NotMeasured, e.g. where memory did not suffice."""
    job = {
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
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"{method}: no end after {SECONDS} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        last = said[-1] if said else "no word: killed, as when memory runs out"
        raise NotMeasured(f"{method}: exit code {done.returncode}, {last}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return float(found["mib"]), str(found["of"])


def main() -> None:
    print(json.dumps(_measured(json.load(sys.stdin))))


def _measured(job: dict[str, Any]) -> dict[str, Any]:
    import torch

    from bench.measure.inputs import random_views
    from bench.measure.memory import peak_mib, resident_mib
    from bench.measure.timed_method import TimedMethod
    from bench.records.environment import raise_allocator_thresholds
    from bench.training.device import one_device
    from methods.names import parse_methods

    raise_allocator_thresholds()
    torch.set_num_threads(job["threads"])
    encoder, train = EncoderSpec(**job["encoder"]), TrainSpec(**job["train"])
    (method,) = parse_methods(job["method"])
    fabric = one_device(train.precision)
    _warm_libraries()
    before = resident_mib()
    views = random_views(encoder, job["batch"])
    arm = TimedMethod(method.name, method, encoder, train, views, fabric)
    step = arm.train_steps()[arm.points[0]]
    for _ in range(STEPS):
        step()
    peak, of = peak_mib()
    return {"mib": peak if of == "device" else peak - before, "of": of}


def _warm_libraries() -> None:
    """What the first step of any network loads and keeps."""
    import torch
    from torch import nn

    network = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.Flatten(), nn.Linear(8 * 64, 8))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(4, 1, 32, 32)).square().mean().backward()
    optimizer.step()


if __name__ == "__main__":
    main()
