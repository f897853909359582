"""Launch a grid: one function that works through runs (`bench.launch.worker`), and three ways to execute it.

`inline` calls it in this process; `local` starts worker processes that share the whole grid; `slurm` submits one job
for each run. The last two use submitit's executors.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.launch.handle import Handle, Trouble, private_folder
from bench.launch.leases import Leases
from bench.launch.slurm import SlurmOptions
from bench.launch.slurm_jobs import submit
from bench.launch.worker import Sweep, crash_reason, fail, work
from bench.messages import FULL, disk_full

Launcher = Literal["inline", "local", "slurm"]
LOOK_EVERY = 0.2  # seconds between questions to local workers


@dataclass(frozen=True)
class LaunchOptions:
    """How a grid is executed. `gpus` is the number of GPUs on this machine, for local workers."""

    launcher: Launcher = "inline"
    workers: int = 1
    gpus: int = 0
    slurm: SlurmOptions = SlurmOptions()


@contextmanager
def workers(sweep: Sweep, options: LaunchOptions) -> Iterator[Sequence[Handle]]:
    """Execute the grid; yields its handles. Leaving early ends local workers and lets SLURM jobs run."""
    if options.launcher == "inline":
        yield [_Inline(sweep)]
    elif options.launcher == "slurm":
        yield submit(sweep, options.slurm)
    else:
        with _local(sweep, options) as handles:
            yield handles


@contextmanager
def _local(sweep: Sweep, options: LaunchOptions) -> Iterator[Sequence[Handle]]:
    pool = _Local(replace(sweep, parent=os.getpid()), options)
    try:
        for place in range(options.workers):
            pool.start(place)
        yield [pool]
    finally:
        pool.end()


@contextmanager
def _errors_to(path: Path) -> Iterator[None]:
    """Send the errors of processes started inside to a file: submitit's controllers share the terminal, and each would
    answer Ctrl-C with a traceback."""
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
    """The worker processes of this machine, each with GPUs of its own. When one exits unexpectedly, the run that it
    worked on fails, and a new worker takes its place for the rest."""

    job_id = ""
    found = False

    def __init__(self, sweep: Sweep, options: LaunchOptions) -> None:
        self._sweep, self._options, self._folder = sweep, options, private_folder(sweep.results)
        self._workers: dict[int, Any] = {}
        self._open, self._in_vain = len(sweep.runs), 0

    def start(self, place: int) -> None:
        import submitit

        ranks, gpus = self._sweep.ranks, self._options.gpus
        mine = [(place * ranks + rank) % gpus for rank in range(ranks)] if gpus else []
        executor = submitit.LocalExecutor(folder=self._folder)
        executor.update_parameters(
            timeout_min=60 * 24 * 365, tasks_per_node=ranks, gpus_per_node=len(mine), visible_gpus=mine
        )
        with _errors_to(self._folder / "controllers.log"):
            self._workers[place] = executor.submit(work, self._sweep)

    def end(self) -> None:
        for worker in self._workers.values():
            if not worker.done():
                worker.cancel(check=False)

    def wait(self) -> list[Trouble]:
        trouble: list[Trouble] = []
        while self._workers:
            for place, worker in list(self._workers.items()):
                if worker.done():
                    del self._workers[place]
                    trouble += self._replace(place, _trouble(worker.results))
            time.sleep(LOOK_EVERY)
        return list(dict.fromkeys(trouble))

    def state(self) -> tuple[str, str, str]:
        return "", "", ""

    def _replace(self, place: int, trouble: list[Trouble]) -> list[Trouble]:
        """Start a new worker after one has ended in `trouble`, which is returned where that is of no use. Workers that
        finish no run are replaced once: one that can't start must not be restarted forever."""
        if not trouble:
            return []
        trouble += _trouble(lambda: fail(self._sweep, lambda run: crash_reason(self._sweep, run)))
        left = [run for run in self._sweep.runs if self._sweep.unfinished(run) and not self._sweep.already_failed(run)]
        self._in_vain = 0 if len(left) < self._open else self._in_vain + 1
        self._open, leases = len(left), Leases(self._sweep.results)
        if all(leases.held(run.run_id) for run in left):
            return []
        if self._in_vain > 1:
            return trouble
        self.start(place)
        return []


class _Inline:
    """The grid in this process: executed when it is waited for."""

    job_id = ""
    found = False

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def wait(self) -> list[Trouble]:
        return _trouble(lambda: work(self._sweep))

    def state(self) -> tuple[str, str, str]:
        return "", "", ""


def _trouble(call: Callable[[], object]) -> list[Trouble]:
    """Get the result of a worker that has ended; returns why it failed, or nothing."""
    try:
        call()
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[-1]
        if any(os.strerror(number) in str(error) for number in FULL):
            return [("", disk_full(said))]
        return [("", f"a worker exited unexpectedly: {said}")]
    return []
