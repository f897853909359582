"""Execute a planned grid: measure its cost, run what is missing, write the report."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from bench.grid.plan import Plan
from bench.grid.watch import Watch
from bench.launch.handle import Handle
from bench.launch.launch import workers
from bench.launch.leases import Leases
from bench.launch.slurm_jobs import submit_cost
from bench.launch.worker import Sweep, crash_reason
from bench.measure.grid_cost import grid_table, measure_grid, timed_methods
from bench.messages import plain
from bench.records.store import Store


def run_grid(planned: Plan, left: int, reports: Path, measure: bool, console: Console) -> int:
    """Measure, train and evaluate, report; returns the exit code."""
    grid, sweep = planned.grid, planned.sweep
    measuring = _measure(planned, console) if measure else []
    console.print(f"{len(sweep.runs)} runs, {len(sweep.runs) - left} of them done before.", highlight=False)
    trouble: list[tuple[str, str]] = []
    if left:

        def provisional() -> None:
            try:
                summary = _report(planned, reports, trouble=[])
            except Exception as error:  # the runs continue; the report at the end says what is wrong
                console.print(f"The provisional report failed: {error}", markup=False, highlight=False)
                return
            if summary is not None:
                console.print(f"The first seed is done: a provisional report is in {summary.path}", highlight=False)

        launch = replace(planned.launch, workers=min(planned.launch.workers, left))
        with workers(sweep, launch) as handles:
            _say_found([*measuring, *handles], console)
            with Watch(sweep, console, provisional, handles):
                for handle in handles:
                    trouble += handle.wait()
    for cost in measuring:
        trouble += cost.wait()
    failures = _failures(sweep, dict(trouble))
    summary = _report(planned, reports, trouble)
    if summary is not None:
        for group in summary.groups:
            console.print(f"\n{group.table}\n", markup=False, highlight=False)
            for sentence in group.finding:
                console.print(f"- {plain(sentence)}", markup=False, highlight=False)
        console.print(f"\nReport: {summary.path}", markup=False, highlight=False)
    if not grid.evidence:
        console.print("This preset only tests the machinery: its numbers are no evidence of anything.", highlight=False)
    others = [text for run_id, text in trouble if not run_id]
    for problem in [*failures, *others]:
        typer.echo(f"Failed: {plain(problem)}", err=True)
    return 1 if failures or others else 0


def _measure(planned: Plan, console: Console) -> list[Handle]:
    """Make the paired measurement of the grid's methods, unless it exists, before anything else loads the machine. On
    SLURM it is a job, whose handle is returned."""
    grid, results, threads = planned.grid, planned.sweep.results, planned.sweep.threads
    path = grid_table(grid, results, threads)
    if not timed_methods(grid) or path.exists():
        return []
    if planned.launch.launcher == "slurm":
        call = functools.partial(measure_grid, grid, results.resolve(), threads)
        return [submit_cost(call, path, results, planned.launch.slurm)]
    console.print(
        f"Measuring the cost of {len(timed_methods(grid))} methods, paired and interleaved ...", highlight=False
    )
    measure_grid(grid, results, threads)
    return []


def detach(planned: Plan, measure: bool, console: Console) -> None:
    """Submit what is missing and print how to continue."""
    measuring = _measure(planned, console) if measure else []
    with workers(planned.sweep, planned.launch) as jobs:
        handles = [*measuring, *jobs]
    ids = sorted({handle.job_id.partition("_")[0] for handle in handles}, key=int)
    if not handles:
        console.print(
            "Everything is done and nothing was submitted. The same command without --detach writes the report.",
            highlight=False,
        )
        return
    count = "1 job is" if len(handles) == 1 else f"{len(handles)} jobs are"
    cost = ", one of them to measure cost" if measuring else ""
    console.print(
        f"{count} in the queue (SLURM {', '.join(ids)}){cost}. The same command without --detach waits for them and "
        "writes the report; scancel cancels them.",
        highlight=False,
    )
    _say_found(handles, console)


def _say_found(handles: Sequence[Handle], console: Console) -> None:
    """Print that jobs of an earlier command keep the options that they were submitted with."""
    if found := sum(handle.found for handle in handles):
        console.print(
            f"Found in the queue: {found} {'job' if found == 1 else 'jobs'}, with the original --slurm options. "
            "To change options, cancel the jobs first (scancel).",
            highlight=False,
        )


def _failures(sweep: Sweep, known: dict[str, str]) -> list[str]:
    """Runs of the grid that failed or were never finished, each with its reason; `known` holds reasons that are
    in no record, by run."""
    store, leases, failures = Store(sweep.results), Leases(sweep.results), []
    full = functools.cache(store.full)
    for run in sweep.runs:
        if not sweep.unfinished(run):
            continue
        record, log = store.record(run.run_id), store.log(run.run_id)
        see = f" (see {log})" if log.exists() else ""
        if run.run_id in known:
            reason = known[run.run_id]
        elif record is not None and record.status == "failed":
            reason = f"{record.reason}{see}"
        elif record is not None:
            reason = f"trained, but not evaluated{see}"
        elif leases.held(run.run_id):
            reason = "another command is at work on it"
        else:
            reason = crash_reason(sweep, run) or full() or "not finished"
        failures.append(f"{run.run_id}: {reason}")
    return failures


def _report(planned: Plan, reports: Path, trouble: list[tuple[str, str]]) -> Any:
    """Write the report on all records; None where it is refused, which is added to `trouble`."""
    from bench.analysis.page import write_report
    from bench.analysis.read.groups import ReportRefused  # brings pandas: not before the training

    try:
        return write_report(planned.sweep.results, reports, planned=len(planned.sweep.runs))
    except (ReportRefused, FileNotFoundError) as refused:
        trouble.append(("", f"the report is refused: {refused}"))
        return None
