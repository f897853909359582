"""Training over several ranks, i.e. processes of one job that train a run together.

Rank 0 works like a worker of one process: it takes leases on runs, evaluates and writes. It tells the other ranks what
to train, and they do nothing else. The command that asked for the job sets the number of ranks. They connect by torch's
environment variables (WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), which are ignored by a process that was
asked to train alone. What makes several ranks equal one process is in `methods/ranks.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from bench.records.environment import ranks_here
from bench.training.failures import UNMET, RanksLost

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from bench.specs.run_spec import RunSpec

MEETING = timedelta(minutes=10)  # to connect: every rank imports torch first, which may be slow
PATIENCE = timedelta(days=1)  # once connected: rank 0 may be evaluating


def check_ranks(ranks: int, batch: int) -> None:
    """Raise ValueError, naming numbers that fit, unless `ranks` can share a batch of `batch` images equally."""
    if ranks < 1:
        raise ValueError(f"--ranks {ranks} is too few: use at least 1.")
    if batch % ranks:
        fitting = [str(n) for n in range(1, batch + 1) if batch % n == 0 and n <= 2 * ranks]
        more = ranks * (batch // ranks + 1)
        raise ValueError(
            f"a batch of {batch} images can't be shared equally by {ranks} ranks: use --ranks "
            f"{' or '.join(fitting[-2:])}, or a batch of {more} with --set train.batch={more}."
        )


def name_rank() -> int:
    """Set torch's variables from this process's task in its submitit job, and return its rank."""
    from submitit.helpers import TorchDistributedEnvironment

    tasks = TorchDistributedEnvironment()
    if tasks.local_world_size == tasks.world_size:  # on a single node, whose name may not resolve
        tasks.master_addr = "127.0.0.1"
    tasks.export(set_cuda_visible_devices=False, overwrite=True)  # the GPUs are those that the launcher gave
    return int(tasks.rank)


def connect(ranks: int) -> Fabric:
    """Connect with the other ranks: NCCL on GPUs, gloo on CPUs. Raises RanksLost if one does not connect."""
    import torch.distributed as dist

    try:
        fabric = _fabric("32-true", ranks)
        any_rank(fabric, False)  # NCCL connects with the first message
    except RuntimeError as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RanksLost(f"{UNMET}: {said}; see the logs of the ranks in results/.workers") from error
    dist.set_timeout(PATIENCE)
    return fabric


def fabric_of(precision: Literal["32-true", "bf16-mixed"]) -> Fabric:
    """Return a Fabric over all ranks that this process is connected with."""
    from bench.training.device import one_device

    ranks = ranks_here()
    return one_device(precision) if ranks == 1 else _fabric(precision, ranks)


def _fabric(precision: Literal["32-true", "bf16-mixed"], ranks: int) -> Fabric:
    """Return a Fabric over several ranks; connects them if they are not."""
    import torch
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    class OneDeviceEach(TorchElasticEnvironment):
        """Reads torch's variables, whatever scheduler started this process. Each rank is a node to Fabric."""

        def local_rank(self) -> int:
            return 0

    gpus = torch.cuda.device_count()  # 1 if the launcher shows each rank a GPU of its own
    device = [int(os.environ.get("LOCAL_RANK", "0")) % gpus] if gpus else 1
    # a predictor is unused while everything is kept; buffers are equal because they come from the global batch
    strategy = DDPStrategy(find_unused_parameters=True, forward_sync_buffers=False, timeout=MEETING)
    fabric = Fabric(
        accelerator="auto",
        strategy=strategy,
        devices=device,
        num_nodes=ranks,
        precision=precision,
        plugins=[OneDeviceEach()],
    )
    threads = torch.get_num_threads()
    fabric.launch()
    torch.set_num_threads(threads)  # fabric changes the number of threads
    return fabric


def any_rank(fabric: Fabric, flag: bool) -> bool:
    """Is the flag set on any rank? All ranks must call this."""
    if fabric.world_size == 1:
        return flag
    import torch

    said = torch.tensor(float(flag), device=fabric.device)
    torch.distributed.all_reduce(said, op=torch.distributed.ReduceOp.MAX)
    return bool(said)


@contextmanager
def leading(fabric: Fabric, spec: RunSpec) -> Iterator[None]:
    """On rank 0, make the other ranks train `spec` too inside the block.

    Raises RanksLost for an error that may not have stopped them as well.
    """
    from bench.training.failures import TrainingFailed

    try:
        fabric.broadcast(spec.model_dump_json())
        yield
    except TrainingFailed:
        raise  # every rank fails alike
    except Exception as error:
        if fabric.world_size == 1:
            raise
        raise RanksLost(f"the ranks that trained {spec.run_id} can't continue together after its failure") from error


def release_followers(fabric: Fabric) -> None:
    """On rank 0, tell the other ranks that there is nothing left to do."""
    fabric.broadcast("")


def runs_from_leader(fabric: Fabric) -> Iterator[RunSpec]:
    """On the other ranks, yield the runs that rank 0 trains."""
    from bench.specs.run_spec import RunSpec

    while spec := fabric.broadcast(""):
        yield RunSpec.model_validate_json(spec)
