"""Runs as SLURM jobs: one array for each number of ranks, with one task for each run.

Submitted jobs are noted in `results/.jobs/<run id>.json`, so that a later command finds those that still run and
submits none twice. submitit's pickled results are never read: the record tells whether a run is done.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.launch.handle import Trouble, private_folder
from bench.launch.leases import Leases
from bench.launch.slurm import Job, Queue, SlurmOptions, ended_as, explain
from bench.launch.worker import Sweep, work
from bench.records.environment import now
from bench.records.store import Store, write_atomically
from bench.specs.run_spec import RunSpec
from methods import BASELINES

GRACE = 20.0  # seconds until a record is visible on this host, and until sacct knows how a job ended
IGNORE_SIGNALS_WHILE_STARTING = """sh -c 'trap "" USR2 TERM; exec "$0" "$@"'"""
"""Starts Python with these signals ignored: one that arrives before submitit handles it would end the job for good."""
NOTE_VERSION = 2
"""Version of the notes and of the pickled calls, which name modules of this code; raised when those move."""
WORDS = {"PENDING": "queued", "CONFIGURING": "starting", "COMPLETING": "ending", "SUSPENDED": "suspended"}


class JobsUnknown(Exception):
    """SLURM does not answer or refuses jobs; the message holds its own words."""


@dataclass(frozen=True)
class Task:
    """What submitit calls in a job. It can be requeued: the training continues from its own checkpoints."""

    sweep: Sweep

    def __call__(self) -> int:
        return work(self.sweep)

    def checkpoint(self) -> Any:
        """Called by submitit before it requeues the job; everything that matters is on disk already."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(sweep: Sweep, options: SlurmOptions) -> list[RunJob]:
    """Submit the runs that are neither done nor in the queue; returns handles of all jobs. Raises JobsUnknown."""
    queue, store = Queue(), Store(sweep.results)
    with _one_at_a_time(store):
        known = {run.run_id: submitted(store, run.run_id) for run in sweep.runs if sweep.unfinished(run)}
        alive = _alive(queue, known.values())
        _refuse_older(store, {name: job_id for name, job_id in known.items() if job_id in alive})
        left = [run for run in sweep.runs if run.run_id in known and known[run.run_id] not in alive]
        for ranks, runs in shapes(sweep, left).items():  # an array each
            known |= _submit(replace(sweep, ranks=ranks), runs, options)
    runs_of = {run.run_id: run for run in sweep.runs}
    return [RunJob(sweep, runs_of[run_id], job_id, queue, found=job_id in alive) for run_id, job_id in known.items()]


def shapes(sweep: Sweep, runs: list[RunSpec]) -> dict[int, list[RunSpec]]:
    """Runs by the number of ranks that they need: `sweep.ranks` for those that pre-train, one for baselines."""
    found: dict[int, list[RunSpec]] = {}
    for run in runs:
        found.setdefault(1 if run.parsed.strategy in BASELINES else sweep.ranks, []).append(run)
    return found


def parameters(options: SlurmOptions, ranks: int) -> dict[str, Any]:
    """Parameters of submitit's executor for jobs of this many ranks. Raises ValueError where the ranks can't be divided
    among the nodes, or there are too few GPUs."""
    values = dict(options.parameters)
    nodes = min(values.get("nodes", 1), ranks)
    if ranks % nodes:
        raise ValueError(f"{ranks} ranks can't be shared equally by {nodes} nodes: change --ranks or --slurm nodes=N.")
    here, gpus = ranks // nodes, values.get("gpus_per_node") or 0
    if 0 < gpus < here:
        raise ValueError(f"{here} ranks on a node need a GPU each, and --slurm gpus={gpus}: use --slurm gpus={here}.")
    return {**values, "nodes": nodes, "ntasks_per_node": ranks // nodes}


def submitted(store: Store, run_id: str) -> str:
    """Id of the run's last SLURM job; "" if there is none."""
    return str(_note(store, run_id).get("job", ""))


def _note(store: Store, name: str) -> dict[str, Any]:
    """The note on the job of a run or of a measurement, as written when it was submitted; empty if there is none."""
    try:
        note = json.loads((store.jobs / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _refuse_older(store: Store, waiting: dict[str, str]) -> None:
    """Raise JobsUnknown if jobs in the queue were submitted by another version of this code: they would fail when they
    start, or write what this version does not expect."""
    older = [job_id for name, job_id in waiting.items() if _note(store, name).get("version") != NOTE_VERSION]
    if older:
        which, was, them = ("job", "was", "it") if len(older) == 1 else ("jobs", "were", "them")
        raise JobsUnknown(
            f"{which} {', '.join(older)} in the queue submitted by another version of this code can't be used: cancel "
            f"with 'scancel {' '.join(older)}', then give the command again."
        )


def submit_cost(call: Callable[[], None], table: Path, results: Path, options: SlurmOptions) -> CostJob:
    """Submit the paired measurement that writes `table`, unless its job is in the queue. Raises JobsUnknown."""
    queue, store = Queue(), Store(results)
    name = f"cost-{table.stem}"
    with _one_at_a_time(store):
        job_id = submitted(store, name)
        waiting = job_id in _alive(queue, [job_id])
        if waiting:
            _refuse_older(store, {name: job_id})
        if not waiting:
            (job_id,) = _submit_calls([name], [call], store, parameters(options, 1), 0)
    return CostJob(table, job_id, queue, results, waiting)


def _alive(queue: Queue, job_ids: Iterable[str]) -> set[str]:
    """The ones that are in the queue. Raises JobsUnknown where SLURM does not answer."""
    try:
        return queue.alive(job_ids)
    except OSError as error:
        raise JobsUnknown(f"SLURM does not answer ({error}): is this a host that submits jobs?") from None


def _submit(sweep: Sweep, runs: list[RunSpec], options: SlurmOptions) -> dict[str, str]:
    """Submit one array; returns the id of each run's job."""
    plugins = tuple(plugin.resolve() for plugin in sweep.plugins)
    cache = None if sweep.cache is None else sweep.cache.resolve()
    # paths that hold wherever the job starts
    sweep = replace(sweep, results=sweep.results.resolve(), cache=cache, plugins=plugins)
    names = [run.run_id for run in runs]
    calls = [Task(replace(sweep, runs=(run,))) for run in runs]
    values = parameters(options, sweep.ranks)
    ids = _submit_calls(names, calls, Store(sweep.results), values, options.requeues)
    return dict(zip(names, ids, strict=True))


def _submit_calls(
    names: list[str], calls: Sequence[Callable[[], Any]], store: Store, values: dict[str, Any], requeues: int
) -> list[str]:
    """Submit calls as jobs, as an array where there are several, and note the job of each name; returns their ids."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        python = f"{IGNORE_SIGNALS_WHILE_STARTING} {shlex.quote(sys.executable)}"
        folder = private_folder(store.root).resolve()
        executor = submitit.SlurmExecutor(folder, max_num_timeout=requeues, python=python)
        executor.update_parameters(**values)
        with executor.batch():
            jobs = [executor.submit(call) for call in calls]
        ids = [str(one.job_id) for one in jobs]
    except (FailedJobError, FailedSubmissionError, OSError, RuntimeError) as error:
        said = str(error).strip().splitlines()
        raise JobsUnknown(f"SLURM refused the jobs: {said[-1] if said else type(error).__name__}") from None
    at = now()
    for name, job_id in zip(names, ids, strict=True):
        note = {"version": NOTE_VERSION, "job": job_id, "submitted": at}
        write_atomically(store.jobs / f"{name}.json", json.dumps(note).encode())
    return ids


@contextmanager
def _one_at_a_time(store: Store) -> Iterator[None]:
    """Wait until no other command is submitting: two that start together must not both submit."""
    leases = Leases(store.root)
    while True:
        with leases.hold("submission") as mine:
            if mine:
                yield
                return
        time.sleep(0.5)


@dataclass
class RunJob:
    """The SLURM job of a run."""

    sweep: Sweep
    run: RunSpec
    job_id: str
    queue: Queue
    sleep: Callable[[float], None] = time.sleep
    found: bool = False

    def state(self) -> tuple[str, str, str]:
        return self.run.run_id, *_shown(self.queue, self.job_id)

    def wait(self) -> list[Trouble]:
        """Wait until the run is done or has failed, or its job has left the queue without either.

        The grace period starts when the job and the owner of the lease are gone, not with this call: jobs that end
        together share one period, however many they are.
        """
        leases, held_at = Leases(self.sweep.results), float("-inf")
        while True:
            gone = self.queue.gone_for(self.job_id)
            if leases.held(self.run.run_id):
                held_at = time.monotonic()
            elif gone > 0 and (not self.sweep.unfinished(self.run) or self._failed()):
                return []
            elif min(gone, time.monotonic() - held_at) > GRACE:
                break
            self.sleep(1.0)
        return [(self.run.run_id, _ended(self.sweep.results, self.job_id))]

    def _failed(self) -> bool:
        """Whether the run failed in this job, perhaps before this command started."""
        store = Store(self.sweep.results)
        log, submitted = store.log(self.run.run_id), store.jobs / f"{self.run.run_id}.json"
        try:
            return self.sweep.already_failed(self.run) or log.stat().st_mtime >= submitted.stat().st_mtime
        except FileNotFoundError:
            return False


@dataclass
class CostJob:
    """The SLURM job of the paired measurement."""

    table: Path
    job_id: str
    queue: Queue
    results: Path
    found: bool = False

    def state(self) -> tuple[str, str, str]:
        return "", *_shown(self.queue, self.job_id)

    def wait(self) -> list[Trouble]:
        """Wait until the table is there, or the job has left the queue without it."""
        while not self.table.exists():
            if self.queue.gone_for(self.job_id) > GRACE:
                return [("", f"the measurement of cost: {_ended(self.results, self.job_id)}")]
            time.sleep(1.0)
        return []


def _shown(queue: Queue, job_id: str) -> tuple[str, str]:
    """State and node of a job as shown to the user; the reason instead of the node for one that waits."""
    found = queue.job(job_id) or Job("gone")
    why = f"({found.reason})" if found.state == "PENDING" and found.reason else ""
    return WORDS.get(found.state, found.state.lower()), found.node or why


def _ended(results: Path, job_id: str) -> str:
    """How a job ended that left no record, and where its first process wrote its errors."""
    return f"{explain(job_id, ended_as(job_id))}; see {results / '.workers' / f'{job_id}_0_log.err'}"
