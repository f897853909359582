"""Training over several ranks: the processes of a job, of which rank 0 leads and the others train along.

Rank 0 works as the only process of a worker does: it claims runs, evaluates, writes. What it trains it tells the
others, which do nothing else. How many they are says who asked for the job; they find each other by torch's variables
in their environment (WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), which mean nothing to a process that was
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

MEETING = timedelta(minutes=10)  # how long a rank waits for the others to come: each imports torch, perhaps slowly
PATIENCE = timedelta(days=1)  # how long it waits for them once they met: rank 0 may be evaluating


def check_ranks(ranks: int, batch: int) -> None:
    """Raises ValueError, which says what would do, unless `ranks` share a batch of `batch` images equally."""
    if ranks < 1:
        raise ValueError(f"--ranks {ranks}: there is at least one rank.")
    if batch % ranks:
        fitting = [str(n) for n in range(1, batch + 1) if batch % n == 0 and n <= 2 * ranks]
        more = ranks * (batch // ranks + 1)
        raise ValueError(
            f"a batch of {batch} images can't be shared equally by {ranks} ranks: use --ranks "
            f"{' or '.join(fitting[-2:])}, or a batch of {more} with --set train.batch={more}."
        )


def name_rank() -> int:
    """Say in torch's variables which task of its submitit job this process is; returns its rank."""
    from submitit.helpers import TorchDistributedEnvironment

    tasks = TorchDistributedEnvironment()
    if tasks.local_world_size == tasks.world_size:  # on one node, whose name need not resolve
        tasks.master_addr = "127.0.0.1"
    tasks.export(set_cuda_visible_devices=False, overwrite=True)  # the GPUs are those that the launcher gave
    return int(tasks.rank)


def connect(ranks: int) -> Fabric:
    """Connect with the others, by torch's variables: NCCL on GPUs, gloo on CPUs. Raises RanksLost where one does not
    come."""
    import torch.distributed as dist

    try:
        fabric = _fabric("32-true", ranks)
        any_rank(fabric, False)  # NCCL connects with the first word
    except RuntimeError as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RanksLost(f"{UNMET}: {said}; what each said stands in results/.workers") from error
    dist.set_timeout(PATIENCE)
    return fabric


def fabric_of(precision: Literal["32-true", "bf16-mixed"]) -> Fabric:
    """The device, the precision, and the ranks that this process has met."""
    from bench.training.device import one_device

    ranks = ranks_here()
    return one_device(precision) if ranks == 1 else _fabric(precision, ranks)


def _fabric(precision: Literal["32-true", "bf16-mixed"], ranks: int) -> Fabric:
    """Of several ranks, which meet here unless they have."""
    import torch
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    class OneDeviceEach(TorchElasticEnvironment):
        """torch's variables, whatever scheduler started this process; to fabric each rank is a node of one device."""

        def local_rank(self) -> int:
            return 0

    gpus = torch.cuda.device_count()  # one where the launcher shows each rank its own
    device = [int(os.environ.get("LOCAL_RANK", "0")) % gpus] if gpus else 1
    # a predictor is unused while all is kept; buffers are equal, for they come from the global batch
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
    torch.set_num_threads(threads)  # fabric chooses its own
    return fabric


def any_rank(fabric: Fabric, flag: bool) -> bool:
    """Does any rank say so? All of them have to ask."""
    if fabric.world_size == 1:
        return flag
    import torch

    said = torch.tensor(float(flag), device=fabric.device)
    torch.distributed.all_reduce(said, op=torch.distributed.ReduceOp.MAX)
    return bool(said)


@contextmanager
def leading(fabric: Fabric, spec: RunSpec) -> Iterator[None]:
    """For rank 0: inside, the others train `spec` along. Raises RanksLost for what need not have stopped them too."""
    from bench.training.failures import TrainingFailed

    try:
        fabric.broadcast(spec.model_dump_json())
        yield
    except TrainingFailed:
        raise  # as on all of them
    except Exception as error:
        if fabric.world_size == 1:
            raise
        raise RanksLost(f"the ranks that trained {spec.run_id} can't go on together after its failure") from error


def release_followers(fabric: Fabric) -> None:
    """For rank 0: the others have no more to do."""
    fabric.broadcast("")


def runs_from_leader(fabric: Fabric) -> Iterator[RunSpec]:
    """For the other ranks: what rank 0 has them train along."""
    from bench.specs.run_spec import RunSpec

    while spec := fabric.broadcast(""):
        yield RunSpec.model_validate_json(spec)
