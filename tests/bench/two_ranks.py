"""What one of two ranks does for test_ranks.py: it pre-trains together with the other, by its environment alone.

Run as `python -m tests.bench.two_ranks FOLDER CACHE`; writes FOLDER/<rank>.json and, per case, FOLDER/<rank>-<i>.pt.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from bench.training import pretrain as module
from bench.training.build import optimizer_of
from bench.training.checkpoint import Checkpoints, Position
from bench.training.failures import TrainingFailed
from bench.training.pretrain import Trained, pretrain, restored
from bench.training.ranks import PATIENCE, any_rank, connect, fabric_of
from datasets import load
from methods.ranks import world
from tests.bench import small

CASES = [  # (method, changed settings); four steps, in the first of which all is kept
    ("simclr/sparsecontrast[select=budget]", {}),
    ("moco/dynamicvit", {}),
    ("moco/sparsecontrast", {"encoder__name": "convnext_d64_l6_patch8"}),
    ("simclr/oracle", {}),
]


def train(folder: Path, data: Any, fabric: Any, case: tuple[str, dict[str, Any]], reports: list[Any]) -> Trained:
    """Four steps, in float64: AdamW makes much of the rounding of gradients that are zero."""
    method, changes = case
    real_build, real_step = module.build, module.train_step

    def step(objective: Any, optimizer: Any, views: torch.Tensor, *rest: Any) -> Any:
        with patch.object(torch.Tensor, "float", torch.Tensor.double):
            return real_step(objective, optimizer, views.double(), *rest)

    with patch.object(module, "build", lambda *a: real_build(*a).double()), patch.object(module, "train_step", step):
        return pretrain(small.run_spec(folder, method, **changes), data, np.arange(64), fabric, reports.append)


def main(folder: Path, cache: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    own = folder / f"rank{rank}"
    own.mkdir()
    data = load("phantom", 32, cache=cache, patients=60, images_per_patient=2.0)
    fabric = connect(2)
    assert torch.distributed.group.WORLD is not None
    waits = torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout
    found: dict[str, Any] = {
        "world": fabric.world_size,
        "rank": fabric.global_rank,
        "zero": fabric.is_global_zero,
        "device": str(fabric.device),
        "backend": torch.distributed.get_backend(),
        "threads": torch.get_num_threads(),
        "patient": waits == PATIENCE,
        "said by one": any_rank(fabric, rank == 1),
        "said by none": any_rank(fabric, False),
        "histories": [],
        "reports": [],
    }
    for i, case in enumerate(CASES):
        reports: list[Any] = []
        trained = train(own, data, fabric, case, reports)
        torch.save(trained.objective.state_dict(), folder / f"{rank}-{i}.pt")
        found["histories"].append(trained.history)
        found["reports"].append(len(reports))
    half = small.run_spec(own, "moco/dense", encoder__name="resnet10t", train__precision="bf16-mixed")
    found["mixed precision"] = pretrain(half, data, np.arange(64), fabric_of("bf16-mixed"), print).final_loss
    try:
        with patch.object(module.math, "isfinite", lambda loss: rank == 0):  # as if it were, on rank 1 alone
            train(own, data, fabric, CASES[0], [])
    except TrainingFailed as failed:
        found["failed on one"] = str(failed)
    plain = small.run_spec(own, "simclr/dense")
    objective = module.build(plain.parsed, plain.encoder, plain.seed)
    optimizer = optimizer_of(objective, 1e-3, 0.05)
    checkpoints = Checkpoints(own / "training", writes=rank == 0)  # which rank 1 does not see
    checkpoints.save(objective, optimizer, Position(3, {}))
    try:
        with patch("bench.training.checkpoint.PATIENCE", 0.0):
            restored(checkpoints, objective, optimizer, fabric)
    except TrainingFailed as failed:
        found["unread on one"] = str(failed)
    found["world after"] = world()
    if rank == 1:
        (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
        os._exit(0)  # as one that is killed
    began = time.monotonic()
    try:
        train(own, data, fabric, CASES[0], [])
    except RuntimeError as error:
        found["without the other"] = [str(error), time.monotonic() - began]
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
