"""What the tests on a real SLURM share: the cluster, and a folder that its jobs can reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import submitit

from tests.slurm import cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """The cluster is up, and this process uses it. Nodes that a test has killed are up again after it."""
    if not cluster.join():
        pytest.skip(
            "no test cluster: as root, `tests/slurm/cluster.sh install` once, and `tests/slurm/cluster.sh start`"
        )
    yield
    cluster.script("start")


@pytest.fixture
def executor(slurm: None, tmp_path: Path) -> Iterator[submitit.SlurmExecutor]:
    """An executor whose jobs take one of a node's two CPUs; what is left of them after the test is cancelled."""
    before = set(cluster.call("squeue", "-h", "-o", "%A").split())
    made = submitit.SlurmExecutor(tmp_path / "jobs", max_num_timeout=3)
    made.update_parameters(partition="local", time=60, cpus_per_task=1, mem="100M", signal_delay_s=10)
    yield made
    for job in set(cluster.call("squeue", "-h", "-o", "%A").split()) - before:
        cluster.call("scancel", job)
