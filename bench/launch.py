"""Fan a grid out: one function that works through runs, three ways to execute it.

`inline` calls it in this process; `local` and (on a cluster) SLURM go through submitit's executors. Workers share the
grid by claiming runs in the results folder, so that none waits for another and none trains what another has begun.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.spec import EvaluationSpec, FinetuneSpec, RunSpec
from bench.store import Store, missing_evaluations, process_lives
from methods import load_plugin

Launcher = Literal["inline", "local"]


@dataclass(frozen=True)
class Work:
    """What every worker is given: the runs in their order, and how to do them."""

    runs: tuple[RunSpec, ...]
    evaluation: EvaluationSpec
    finetune: FinetuneSpec
    results: Path
    cache: Path | None
    threads: int
    plugins: tuple[Path, ...] = ()
    parent: int | None = None  # process that asked for local workers; they do not outlive it

    def orphaned(self) -> bool:
        """Is whoever asked for the grid gone? Then nothing more is done on its behalf."""
        return self.parent is not None and not process_lives(self.parent)

    def unfinished(self, run: RunSpec) -> bool:
        store = Store(self.results)
        return not store.done(run.run_id) or bool(missing_evaluations(store, run, self.evaluation, self.finetune))


def work(job: Work) -> int:
    """Do what of the grid nobody else has done or begun; returns how many runs failed here."""
    from bench.environment import raise_allocator_thresholds

    raise_allocator_thresholds()
    for plugin in job.plugins:
        load_plugin(plugin)
    import torch

    torch.set_num_threads(job.threads)
    from bench.experiment import run_experiment

    store, failed = Store(job.results), 0
    left = list(job.runs)
    while left:
        others: list[RunSpec] = []
        for run in left:
            if job.orphaned():
                return failed
            with store.claim(run.run_id) as mine:
                if not mine:
                    others.append(run)
                elif job.unfinished(run):
                    progress = ProgressFile(job.results, run.run_id, job.orphaned)
                    try:
                        record = run_experiment(
                            run, job.evaluation, job.finetune, store, job.cache, job.threads, progress
                        )
                    finally:
                        progress.remove()
                    failed += record.status == "failed"
        # what others had begun and left: they may have died, or have trained a run that lacks evaluations of ours
        free = [run for run in others if not store.claimed(run.run_id) and not store.failed(run.run_id)]
        left = [run for run in free if job.unfinished(run)]
    return failed


class ProgressFile:
    """Where a run stands, in a small file that whoever watches reads; written at most twice a second."""

    def __init__(self, results: Path, run_id: str, orphaned: Callable[[], bool] = lambda: False) -> None:
        self.path = results / ".progress" / f"{run_id}.json"
        self.orphaned = orphaned
        self._written = 0.0

    def __call__(self, state: dict[str, Any]) -> None:
        """Write the state. Raises KeyboardInterrupt, which ends the run unrecorded, where nobody waits for it."""
        if self.orphaned():
            raise KeyboardInterrupt
        now = time.monotonic()
        if now - self._written < 0.5 and "doing" not in state:
            return
        self._written = now
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(state), encoding="utf-8")
        os.replace(temporary, self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    @staticmethod
    def read_all(results: Path) -> dict[str, dict[str, Any]]:
        """State by run id of all runs that are at work now."""
        states = {}
        for path in sorted((results / ".progress").glob("*.json")):
            try:
                states[path.stem] = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue  # just removed or replaced
        return states


@contextmanager
def workers(job: Work, launcher: Launcher, count: int) -> Iterator[Sequence[Any]]:
    """`count` workers on the job; yields handles with `done()` and `result()`. Leaving early ends them."""
    if launcher == "inline":
        yield [_Inline(job)]
        return
    import submitit

    # a worker's runs stand under results/, its pickled call and its log under .workers/, private to the user
    folder = job.results / ".workers"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    executor = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(timeout_min=60 * 24 * 7, gpus_per_node=0)
    owned = replace(job, parent=os.getpid())
    with _errors_to(folder / "controllers.log"):
        jobs = [executor.submit(work, owned) for _ in range(count)]
    try:
        yield jobs
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


class _Inline:
    """The same handle for a call in this process: it runs when its result is asked for."""

    def __init__(self, job: Work) -> None:
        self.job = job
        self._failed: int | None = None

    def done(self) -> bool:
        return self._failed is not None

    def result(self) -> int:
        if self._failed is None:
            self._failed = work(self.job)
        return self._failed
