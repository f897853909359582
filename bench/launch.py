"""Fan a grid out: one function that works through runs (`bench.work`), three ways to execute it.

`inline` calls it in this process; `local` starts workers that share the whole grid; `slurm` submits a job a run. The
last two go through submitit's executors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.handle import Handle, Trouble, private_folder
from bench.slurm import SlurmOptions
from bench.submit import submit
from bench.work import Work, work

Launcher = Literal["inline", "local", "slurm"]


@dataclass(frozen=True)
class Fan:
    """How a grid is executed. `gpus` are those of this machine, for local workers."""

    launcher: Launcher = "inline"
    workers: int = 1
    gpus: int = 0
    slurm: SlurmOptions = SlurmOptions()


@contextmanager
def workers(job: Work, fan: Fan) -> Iterator[Sequence[Handle]]:
    """The grid being done, by handles. Leaving early ends local workers and leaves SLURM's jobs."""
    if fan.launcher == "inline":
        yield [_Inline(job)]
    elif fan.launcher == "slurm":
        yield submit(job, fan.slurm)
    else:
        with _local(job, fan) as handles:
            yield handles


@contextmanager
def _local(job: Work, fan: Fan) -> Iterator[Sequence[Handle]]:
    import submitit

    folder = private_folder(job.results)
    owned = replace(job, parent=os.getpid())
    jobs = []
    with _errors_to(folder / "controllers.log"):
        for i in range(fan.workers):
            mine = [(i * job.ranks + rank) % fan.gpus for rank in range(job.ranks)] if fan.gpus else []
            executor = submitit.LocalExecutor(folder=folder)
            executor.update_parameters(
                timeout_min=60 * 24 * 365, tasks_per_node=job.ranks, gpus_per_node=len(mine), visible_gpus=mine
            )
            jobs.append(executor.submit(work, owned))
    try:
        yield [_Local(one) for one in jobs]
    finally:
        for one in jobs:
            if not one.done():
                one.cancel(check=False)


@contextmanager
def _errors_to(path: Path) -> Iterator[None]:
    """What is started inside writes its errors there: submitit's controllers share the terminal, and each would answer
    Ctrl-C with a traceback."""
    kept = os.dup(2)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(file)
        os.close(kept)


class _Local:
    """A worker process of this machine."""

    job_id = ""
    found = False

    def __init__(self, job: Any) -> None:
        self._job = job

    def wait(self) -> list[Trouble]:
        return _trouble(self._job.results)

    def state(self) -> tuple[str, str, str]:
        return "", "", ""


class _Inline:
    """The grid in this process: done when it is waited for."""

    job_id = ""
    found = False

    def __init__(self, job: Work) -> None:
        self._job = job

    def wait(self) -> list[Trouble]:
        return _trouble(lambda: work(self._job))

    def state(self) -> tuple[str, str, str]:
        return "", "", ""


def _trouble(call: Callable[[], object]) -> list[Trouble]:
    """What a worker has to say of itself once it ended, well or not."""
    try:
        call()
    except Exception as error:
        lines = str(error).strip().splitlines()
        return [("", f"a worker ended before its time: {lines[-1] if lines else type(error).__name__}")]
    return []
