"""Progress of a running grid: a live table on a terminal, plain lines elsewhere. It reads files only, so that it works
in the same way for workers in this process, in others and on other machines."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bench.launch.handle import Handle
from bench.launch.progress_file import ProgressFile
from bench.launch.worker import Sweep
from bench.records.record import Record
from bench.records.store import Store
from bench.specs.run_spec import RunSpec

INTERVAL = 0.5  # seconds between updates
SHOWN = 20  # waiting jobs in the table, at most
PLAIN_EVERY = 30.0  # seconds between lines on runs in progress, without a terminal


class Watch:
    """Shows the progress of a grid, in a thread of its own; calls `first_seed` when the runs of the first seed are
    done."""

    def __init__(
        self,
        sweep: Sweep,
        console: Console,
        first_seed: Callable[[], None] | None = None,
        handles: Sequence[Handle] = (),
    ) -> None:
        self.sweep, self.console, self.first_seed, self.handles = sweep, console, first_seed, handles
        self.store = Store(sweep.results)
        self.left = {run.run_id: run for run in sweep.runs if sweep.unfinished(run)}
        self.before = len(sweep.runs) - len(self.left)
        self.failed: dict[str, str] = {}
        self.ended = 0
        self.started = time.monotonic()
        self._past = {run_id: self._stamp(run_id) for run_id in self.left}
        self._plain_at = self.started
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        if not self.console.is_terminal:
            while not self._stop.wait(INTERVAL):
                self._look()
                self._plain_progress()
            self._look()
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            while not self._stop.wait(INTERVAL):
                self._look()
                live.update(self._table(), refresh=True)
            self._look()

    def _stamp(self, run_id: str) -> float:
        """Modification time of the run's record; 0 if there is none."""
        try:
            return (self.store.folder(run_id) / "record.json").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _look(self) -> None:
        """Find the runs that have ended since the last update and print them."""
        at_work = ProgressFile.read_all(self.sweep.results)
        for run_id, run in list(self.left.items()):
            if run_id in at_work or self._stamp(run_id) == self._past[run_id] and self.sweep.unfinished(run):
                continue
            record = self.store.record(run_id)
            if record is None or (record.status == "done" and self.sweep.unfinished(run)):
                continue
            del self.left[run_id]
            self.ended += 1
            if record.status == "failed":
                self.failed[run_id] = record.reason
            self._say(run, record)
        if self.first_seed is not None and self.ended and self._first_seed_is_over():
            call, self.first_seed = self.first_seed, None
            call()

    def _first_seed_is_over(self) -> bool:
        """Whether all pre-trainings of the first seed are done; its supervised baselines may still be missing."""
        first = self.sweep.runs[0].seed
        return bool(self.left) and not any(run.seed == first and run.labels is None for run in self.left.values())

    def _say(self, run: RunSpec, record: Record) -> None:
        done = self.before + self.ended
        head = f"[{done}/{len(self.sweep.runs)}] {_title(run)}"
        if record.status == "failed":
            self.console.print(f"{head}: FAILED: {record.reason}", markup=False, highlight=False)
            return
        took = "" if record.time is None else f" in {record.time.wall_seconds:.0f} s"
        learnt = (
            ""
            if record.learning is None or record.learning.verdict in ("learned", "not trained")
            else (f", {record.learning.verdict.upper()}")
        )
        self.console.print(f"{head}: done{took}{learnt} ({self._eta()})", markup=False, highlight=False)

    def _eta(self) -> str:
        if not self.left or not self.ended:
            return "nothing left" if not self.left else f"{len(self.left)} left"
        seconds = (time.monotonic() - self.started) / self.ended * len(self.left)
        return f"{len(self.left)} left, about {_duration(seconds)}"

    def _plain_progress(self) -> None:
        now = time.monotonic()
        if now - self._plain_at < PLAIN_EVERY:
            return
        self._plain_at = now
        at_work = ProgressFile.read_all(self.sweep.results)
        for run_id, state in at_work.items():
            if run_id in self.left:
                text = f"    {_title(self.left[run_id])}: {_state(state)}"
                self.console.print(text, markup=False, highlight=False)
        jobs = self._jobs(at_work).values()
        waiting = Counter(f"{state} {''.join(job.partition('(')[1:])}".strip() for state, job in jobs)
        if waiting:
            text = ", ".join(f"{count} {state}" for state, count in waiting.items())
            self.console.print(f"    jobs: {text}", markup=False, highlight=False)

    def _table(self) -> Table:
        at_work = {k: v for k, v in ProgressFile.read_all(self.sweep.results).items() if k in self.left}
        done = self.before + self.ended
        table = Table(
            title=f"{done} done ({len(self.failed)} failed), {len(at_work)} running, {self._eta()}",
            title_justify="left",
        )
        jobs = self._jobs(at_work)
        for column in ("run", "step", "loss", "keep", "images/s", *(["job"] if jobs or self._on_slurm() else [])):
            table.add_column(column, justify="left" if column in ("run", "job") else "right")
        for run_id, state in at_work.items():
            step = f"{state['step']}/{state['steps']}" if "steps" in state else ""
            table.add_row(
                _title(self.left[run_id]) + (f": {state['doing']}" if "doing" in state else ""),
                step,
                _number(state, "loss", ".3f"),
                _number(state, "keep", ".2f"),
                _number(state, "images_per_second", ".0f"),
                *([_where(state)] if self._on_slurm() else []),
            )
        for run_id, (state_of_job, job) in list(jobs.items())[:SHOWN]:
            table.add_row(_title(self.left[run_id]), state_of_job, "", "", "", job)
        if len(jobs) > SHOWN:
            table.add_row(f"and {len(jobs) - SHOWN} more")
        return table

    def _on_slurm(self) -> bool:
        return any(handle.job_id for handle in self.handles)

    def _jobs(self, at_work: dict[str, Any]) -> dict[str, tuple[str, str]]:
        """State and description of the job, by run id, of runs that wait: queued, requeued, starting."""
        states = {}
        for handle in self.handles:
            run_id, state, node = handle.state()
            if run_id in self.left and run_id not in at_work:
                requeued = state == "queued" and self.sweep.begun_before(self.left[run_id])
                states[run_id] = ("requeued" if requeued else state, f"{handle.job_id} {node}".strip())
        return states


def _where(state: dict[str, Any]) -> str:
    return f"{state.get('job', '')} {state.get('node', '')}".strip()


def _title(run: RunSpec) -> str:
    labels = "" if run.labels is None else f" at {run.labels:g} %"
    return f"{run.method}{labels}, seed {run.seed}"


def _number(state: dict[str, Any], key: str, form: str) -> str:
    return format(state[key], form) if key in state else ""


def _state(state: dict[str, Any]) -> str:
    if "doing" in state:
        return str(state["doing"])
    parts = [f"step {state['step']}/{state['steps']}", f"loss {state['loss']:.3f}"]
    if "keep" in state:
        parts += [f"keep {state['keep']:.2f}", f"{state['images_per_second']:.0f} images/s"]
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
