"""Program of one of two gloo ranks for test_ranks.py.

Runs every case alone and together with the other rank, and measures how far apart the results are. Run as
`python -m tests.methods.two_ranks RANK FOLDER`; writes FOLDER/<rank>.json.

The cases are computed in float64 throughout, so that rounding hides no mistake.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from methods import OBJECTIVES, STRATEGIES, build_encoder, build_objective, family_of
from methods.encoders.batchnorm import GlobalBatchNorm2d, globalise
from methods.names import parse_methods
from methods.noise import Noise
from methods.objectives.objective import Objective
from methods.ranks import gather_views, mean_over_ranks, own_rows, rows_of_rank, sum_over_ranks, together, world
from methods.strategies.strategy import Call
from tests.float64 import float64_throughout
from tests.methods.slow import shake

WORLD, BATCH, SIZE = 2, 8, 32
VIT = "vit_stem_d64_l4_patch8"
CONVNEXT = "convnext_d64_l6_patch8"
RESNET = "resnet10t"
VARIANTS = [
    "simclr/sparsecontrast[select=budget]",
    "moco/sparsecontrast[select=budget]",
    "simclr/sparsecontrast[select=budget,gate=key_bias]",
    "simclr/sparsecontrast[select=threshold]",
    "simclr/sparsecontrast[gate=key_bias]",
    "simclr/sparsecontrast[fuse=true]",
    "simclr/sparsecontrast[trim=keys]",
    "simclr/sparsecontrast[execution=masked]",
    "simclr/frozen[select=budget]",
    "simclr/tokenlearner[version=v1,fuser=true]",
    "moco/dynamicvit[teacher=dense]",
]
CASES = [(VIT, f"{objective}/{strategy}") for objective in OBJECTIVES for strategy in STRATEGIES]
CASES += [(VIT, method) for method in VARIANTS]
CASES += [("vit_tiny_patch16_224", method) for method in ("moco/topk", "simclr/evit")]
CASES += [(CONVNEXT, f"simclr/{name}") for name, entry in STRATEGIES.items() if "convnext" in entry.encoders]
CASES += [(CONVNEXT, f"{objective}/sparsecontrast[select=budget]") for objective in OBJECTIVES]
CASES += [(CONVNEXT, "moco/dense"), (RESNET, "simclr/dense"), (RESNET, "moco/dense")]

Results = dict[str, Tensor | None]


def build(encoder: str, method: str) -> Objective:
    (named,) = parse_methods(method)
    options: dict[str, Any] = {"image_size": SIZE, "channels": 1, "seed": 0}
    built = build_encoder(encoder, named.strategy, named.strategy_options, **options)
    objective = build_objective(named.objective, built, named.objective_options, seed=0)
    if family_of(encoder) != "resnet":  # in a ResNet a random shift switches whole maps off
        torch.manual_seed(0)
        shake(objective, 0.05)
    return objective.train()


def train(objective: Objective) -> Results:
    """Return loss, gradients and state of two steps: one that keeps all patches, one that keeps half of them."""
    model: nn.Module = objective
    if world() > 1:
        globalise(objective)
        model = DistributedDataParallel(objective, find_unused_parameters=True, forward_sync_buffers=False)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    found: Results = {}
    for step, keep in enumerate((1.0, 0.5)):
        generator = torch.Generator().manual_seed(step)
        views = torch.randn(2, BATCH, 1, SIZE, SIZE, generator=generator)
        lesions = torch.rand(2 * BATCH, objective.encoder.geometry.patches, generator=generator)
        rows = rows_of_rank(BATCH)
        call = Call(keep, 0.5 * step, Noise(0, step, BATCH, rows=rows), lesions=own_rows(lesions))
        optimizer.zero_grad(set_to_none=True)
        loss = model(views[:, rows], call)
        loss.total.backward()
        now = {"total": loss.total, "contrastive": loss.contrastive, **loss.parts, **loss.encoding.stats}
        found |= {f"{step} loss {name}": value.detach() for name, value in now.items() if name != "overlap"}
        for name, parameter in objective.named_parameters():
            gradient = parameter.grad
            found[f"{step} gradient {name}"] = None if gradient is None else gradient.clone()
        optimizer.step()
        objective.after_step(0.5 * step + 0.25)
        found |= {f"{step} state {name}": tensor.clone() for name, tensor in objective.state_dict().items()}
    return found


def apart(mine: Results, theirs: Results) -> tuple[float, str]:
    """Return the largest relative difference and the name of its tensor.

    Differences are relative to the largest value of the tensor, but at least to 0.001, and for gradients to 0.001 of
    the largest gradient: some tensors are zero except for rounding, such as means after a batch norm.
    """
    if mine.keys() != theirs.keys():
        return float("inf"), f"only one has {sorted(mine.keys() ^ theirs.keys())}"
    gradients = [float(t.abs().max()) for name, t in mine.items() if " gradient " in name and t is not None]
    worst = (0.0, "nothing")
    for name, tensor in mine.items():
        other = theirs[name]
        if tensor is None or other is None:
            if tensor is not other:
                return float("inf"), f"{name} is None in one"
            continue
        floor = 0.001 * (max(gradients) if " gradient " in name else 1.0)
        difference = (tensor.double() - other.double()).abs().max() / tensor.double().abs().max().clamp_min(floor)
        worst = max(worst, (float(difference.nan_to_num(float("inf"))), name))
    return worst


def exchanged(rank: int) -> dict[str, Any]:
    """Return results of the collective functions alone, as nested lists."""
    x = torch.tensor([[10.0 * rank], [10.0 * rank + 1], [10.0 * rank + 100], [10.0 * rank + 101]], requires_grad=True)
    values = torch.arange(1.0, 3.0 + rank, requires_grad=True)  # 1, 2 and 1, 2, 3
    with together():
        every = gather_views(x)
        (every * torch.arange(1.0, 9.0)[:, None] * (1 + rank)).sum().backward()
        mean = mean_over_ranks(values)
        (mean**2 * (1 + rank)).backward()
        total = sum_over_ranks(torch.tensor([1.0 + rank], dtype=torch.bfloat16))
        found = {
            "gathered": every.tolist(),
            "own": own_rows(every).tolist(),
            "gradient": x.grad.tolist(),
            "mean": mean.item(),
            "mean gradient": values.grad.tolist(),
            "sum": total.tolist(),
            "world": world(),
        }
        try:
            rows_of_rank(7)
        except ValueError as error:
            found["error"] = str(error)
    return {**found, "world outside": world(), "gathered outside": gather_views(x).tolist()}


def normed(rank: int) -> dict[str, float]:
    """Compare batch norm over the images of both ranks with nn.BatchNorm2d on all images: largest differences."""
    found = {}
    for kind, options in {"plain": {}, "no affine": {"affine": False}, "cumulative": {"momentum": None}}.items():
        torch.manual_seed(0)
        slow, mine = (nn.Sequential(nn.BatchNorm2d(3, eps=1e-3, **options)).double() for _ in range(2))
        shake(slow)
        mine.load_state_dict(slow.state_dict())
        globalise(mine)
        assert type(mine[0]) is GlobalBatchNorm2d and mine[0].eps == 1e-3
        for _ in range(2):
            x = (5 + torch.randn(BATCH, 3, 4, 5)).double().to(memory_format=torch.channels_last)
            probe = torch.randn(BATCH, 3, 4, 5).double()
            whole, part = x.clone().requires_grad_(), x[rows(rank)].clone().requires_grad_()
            out = slow(whole)
            (out * probe).sum().backward()
            with together():
                own = mine(part)
                (own * probe[rows(rank)]).sum().backward()
                shares = [sum_over_ranks(p.grad) for p in mine.parameters()]
        pairs = [(own, out[rows(rank)]), (part.grad, whole.grad[rows(rank)])]
        pairs += list(zip(shares, [p.grad for p in slow.parameters()], strict=True))
        pairs += [(mine.state_dict()[name], tensor) for name, tensor in slow.state_dict().items()]
        pairs += [(mine.eval()(x), slow.eval()(x)), (mine.train()(x), slow.train()(x))]  # outside `together()`
        found[kind] = max(float((a - b).detach().abs().max()) for a, b in pairs)
    return found


def rows(rank: int) -> slice:
    return slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    found: dict[str, Any] = {"exchanged": exchanged(rank), "normed": normed(rank), "cases": {}}
    with float64_throughout():
        for encoder, method in CASES:
            objective = build(encoder, method)
            alone = train(copy.deepcopy(objective))
            with together():
                shared = train(objective)
            found["cases"][f"{encoder} {method}"] = apart(alone, shared)
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
