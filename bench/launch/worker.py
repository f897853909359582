"""The worker: it works through a grid's runs, in the command's own process, in a local one or in a SLURM job.

Workers share the grid by leases on runs in the results folder, so that none waits for another and none trains what
another has started. A run whose process dies without an error message is recorded as failed, and tried again by the
next command.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.launch.leases import DEAD, RENEWED, Leases, process_lives
from bench.launch.progress_file import ProgressFile
from bench.launch.requeues import Requeues
from bench.records.environment import on_slurm, slurm_job
from bench.records.store import Store, clock_of, missing_evaluations
from bench.specs.plugins import load_plugins
from bench.specs.run_spec import EvaluationSpec, FinetuneSpec, RunSpec
from bench.training.failures import lost_ranks
from bench.training.signals import Stopping

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from bench.records.record import Record


@dataclass(frozen=True)
class Sweep:
    """What every worker is given: the runs in their order, and how to execute them."""

    runs: tuple[RunSpec, ...]
    evaluation: EvaluationSpec
    finetune: FinetuneSpec
    results: Path
    cache: Path | None
    threads: int
    plugins: tuple[Path, ...] = ()
    checkpoint_minutes: float = 5.0
    ranks: int = 1  # processes that train a run together
    requeues: int = 20  # at most, of a SLURM job
    command_id: str = ""  # identifies the command that asked for the sweep
    # when that command started, by the clock of the file system of `results`; what failed since is not tried again
    command_started: float = float("inf")
    restarted_at: float = float("-inf")  # when the SLURM job started after its last requeue, by the same clock
    parent: int | None = None  # the command's process, where it waits for local workers: they stop when it is gone

    def orphaned(self) -> bool:
        """Whether the command that asked for the sweep is gone: then its workers stop."""
        return self.parent is not None and not process_lives(self.parent)

    def unfinished(self, run: RunSpec) -> bool:
        """Whether the run is still to be trained, or one of its evaluations is missing."""
        store = Store(self.results)
        return not store.done(run.run_id) or bool(missing_evaluations(store, run, self.evaluation, self.finetune))

    def startable(self, run: RunSpec) -> bool:
        """Whether the run that this one continues, if any, is trained, or failed for this command: then this one fails
        too, and says so."""
        return run.start is None or Store(self.results).done(run.start.run_id) or self.already_failed(run.start)

    def begun_before(self, run: RunSpec) -> bool:
        """Whether an earlier training of the run has left checkpoints."""
        return Store(self.results).training(run.run_id).is_dir()

    def already_failed(self, run: RunSpec) -> bool:
        """Whether the run has failed since the command started. Ranks that were lost before a SLURM job was requeued do
        not count: they went with their node, and the job was requeued in order to continue."""
        store = Store(self.results)
        try:
            failed_at = store.log(run.run_id).stat().st_mtime
        except FileNotFoundError:
            return False
        return failed_at >= self.command_started and not (
            failed_at < self.restarted_at and lost_ranks(store.record(run.run_id))
        )


def work(sweep: Sweep) -> int:
    """Execute the runs that nobody else has finished or started; returns how many failed here.

    With several ranks, each process of the job calls this: rank 0 works through the runs, the others train along.
    """
    from bench.records.environment import raise_allocator_thresholds

    raise_allocator_thresholds()
    load_plugins(sweep.plugins)
    import torch

    torch.set_num_threads(sweep.threads)
    if slurm_job()[1]:
        sweep = replace(sweep, restarted_at=clock_of(sweep.results))
    stopping = Stopping(sweep.orphaned)
    with stopping.listening():
        if sweep.ranks == 1:
            return _work_through(sweep, stopping)
        from bench.training.failures import RanksLost
        from bench.training.ranks import connect, name_rank, release_followers

        rank = name_rank()
        try:
            fabric = connect(sweep.ranks)
        except RanksLost as lost:
            if rank == 0 and on_slurm():  # where a job is one run
                reason = str(lost)
                fail(sweep, lambda run: reason)
            raise
        if rank > 0:
            return _train_along(sweep, fabric, stopping)
        failed = _work_through(sweep, stopping)
        release_followers(fabric)
        return failed


def _work_through(sweep: Sweep, stopping: Stopping) -> int:
    """Execute the runs in their order, then look again at those that other workers held.

    A run that continues another comes after it: if nobody trains that one, this worker does.

    A SLURM job, which has a single run, waits until a lease on it that is not renewed counts as dead: its owner may be
    a job that died on another node just before this one was submitted. It also waits for the run that its own
    continues.
    """
    leases, failed = Leases(sweep.results), 0
    patient_until = time.monotonic() + DEAD + RENEWED if on_slurm() else float("-inf")
    tried: set[str] = set()
    left = _in_order(sweep.runs)
    while left:
        others: list[RunSpec] = []
        for run in left:
            if sweep.orphaned():
                return failed
            with leases.hold(run.run_id, sweep.command_id) as mine:
                if not mine or not sweep.startable(run):
                    others.append(run)
                elif sweep.unfinished(run) and not sweep.already_failed(run) and run.run_id not in tried:
                    tried.add(run.run_id)
                    failed += _do(sweep, run, stopping).status == "failed"
            stopping.answer()
        # runs that other workers held and did not finish: they died, or trained a run that still lacks our evaluations
        while True:
            open_still = [run for run in others if sweep.unfinished(run) and not sweep.already_failed(run)]
            left = [run for run in open_still if not leases.held(run.run_id) and sweep.startable(run)]
            waited_for = on_slurm() and any(run.start and leases.held(run.start.run_id) for run in open_still)
            if left or not open_still or (time.monotonic() > patient_until and not waited_for):
                break
            time.sleep(1.0)
    return failed


def _in_order(runs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs, each after the one that it continues."""
    needed = [one for run in runs for one in (run.start, run) if one is not None]
    return list({run.run_id: run for run in needed}.values())


def _train_along(sweep: Sweep, fabric: Fabric, stopping: Stopping) -> int:
    """Do this rank's share of what rank 0 trains. Failures are counted by rank 0 alone, so this returns 0."""
    from bench.experiment import train_along
    from bench.training.checkpoint import Checkpoints
    from bench.training.ranks import runs_from_leader

    store = Store(sweep.results)
    for run in runs_from_leader(fabric):
        train_along(run, store, sweep.cache, Checkpoints(store.training(run.run_id), None, stopping, writes=False))
        stopping.answer()
    return 0


def _do(sweep: Sweep, run: RunSpec, stopping: Stopping) -> Record:
    """Execute one run whose lease this worker holds, up to its record."""
    from bench.experiment import Experiment, run_experiment
    from bench.records.outcome import failure, write_failure
    from bench.training.checkpoint import Checkpoints

    store = Store(sweep.results)
    store.tidy(run.run_id)
    checkpoints = Checkpoints(store.training(run.run_id), sweep.checkpoint_minutes, stopping)
    reason_to_stop = crash_reason(sweep, run) or Requeues(store, run.run_id).reason_to_stop(
        checkpoints.reached(), sweep.requeues
    )
    if reason_to_stop:
        failed = failure(run, sweep.threads, reason_to_stop)
        write_failure(store, failed, reason_to_stop)
        return failed
    progress = ProgressFile(sweep.results, run.run_id, sweep.orphaned)
    try:
        return run_experiment(
            Experiment(
                spec=run,
                evaluation=sweep.evaluation,
                finetune=sweep.finetune,
                store=store,
                cache=sweep.cache,
                threads=sweep.threads,
                progress=progress,
                checkpoints=checkpoints,
            )
        )
    finally:
        progress.remove()


def fail(sweep: Sweep, why: Callable[[RunSpec], str]) -> None:
    """Record runs as failed for which `why` gives a reason and that nobody works on.

    No lease is taken on any other run, since that would turn away workers that are about to start it.
    """
    from bench.records.outcome import failure, write_failure

    for run in sweep.runs:
        if not why(run):
            continue
        with Leases(sweep.results).hold(run.run_id, sweep.command_id) as mine:
            if mine and sweep.unfinished(run) and not sweep.already_failed(run) and (reason := why(run)):
                write_failure(Store(sweep.results), failure(run, sweep.threads, reason, ranks=sweep.ranks), reason)
                ProgressFile(sweep.results, run.run_id).remove()


def crash_reason(sweep: Sweep, run: RunSpec) -> str:
    """Why the run is not tried again for this command: one of its workers died while it held the run; else ""."""
    for owner in Leases(sweep.results).dead(run.run_id):
        if sweep.command_id and owner.command_id == sweep.command_id and not owner.job:
            return (
                f"its worker (process {owner.pid} on {owner.host}) ended without an error message: it was killed, "
                f"perhaps because memory ran out at batch {run.train.batch}"
            )
    return ""
