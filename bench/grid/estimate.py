"""Estimates of what a plan takes, printed by `--dry-run`: runs, data by label fraction, disk, time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from bench.grid.plan import Plan
from bench.messages import plain
from bench.records.store import Store
from bench.specs.grid_spec import GridSpec
from bench.specs.run_spec import RunSpec
from datasets.splits import fraction, usage_notes

if TYPE_CHECKING:
    from rich.console import Console


def describe(planned: Plan, measure: bool, console: Console) -> None:
    """Print the plan: runs, data, disk, time; `measure` says whether cost would be measured too."""
    from rich.table import Table

    sweep, data = planned.sweep, planned.data
    store = Store(sweep.results)
    seconds = estimate(planned)
    table = Table(title=f"{len(sweep.runs)} runs", title_justify="left")
    for column in ("run", "state", "about"):
        table.add_column(column, overflow="fold")
    left = 0.0
    for run in sweep.runs:
        done = store.done(run.run_id)
        state = "done" if done and not sweep.unfinished(run) else "to evaluate" if done else "to do"
        left += 0.0 if done else seconds[run.run_id]
        table.add_row(run.run_id, state, "" if done else f"{seconds[run.run_id]:.0f} s")
    console.print(table)
    console.print(fractions_table(planned))
    for line in planned.data_lines():
        console.print(plain(line), markup=False, highlight=False)
    for note in (*data.notes, *usage_notes(data, planned.splits)):
        console.print(f"Note: {plain(note)}", markup=False, highlight=False)
    size = sum(_weights_mib(run) for run in sweep.runs)
    console.print(
        f"Disk: about {size + 0.2 * len(sweep.runs):.0f} MiB in {sweep.results}", markup=False, highlight=False
    )
    for line in _time(planned, left, seconds, measure):
        console.print(line, markup=False, highlight=False)


def _time(planned: Plan, left: float, seconds: dict[str, float], measure: bool) -> list[str]:
    """Lines on how long the plan takes; on SLURM, on its jobs and the parameters they are submitted with."""
    sweep, launch = planned.sweep, planned.launch
    if launch.launcher != "slurm":
        minutes = left / 60 / launch.workers + 1.5
        shared = "" if sweep.ranks == 1 else f", {sweep.ranks} ranks a run,"
        return [
            f"Time: about {minutes:.0f} minutes with {launch.workers} worker(s){shared} of {sweep.threads} thread(s)"
        ]
    from bench.launch.slurm_jobs import parameters, shapes
    from bench.measure.grid_cost import grid_table, timed_methods

    lines = []
    for ranks, runs in shapes(sweep, [run for run in sweep.runs if sweep.unfinished(run)]).items():
        values = parameters(launch.slurm, ranks)
        hours = sum(seconds[run.run_id] for run in runs) * values["nodes"] / 3600 / ranks
        many = "1 job" if len(runs) == 1 else f"an array of {len(runs)} jobs"
        sbatch = ", ".join(f"{key}={value}" for key, value in values.items())
        lines.append(f"SLURM: {many}, about {hours:.1f} node-hours at this host's speed: {sbatch}")
    if measure and timed_methods(planned.grid) and not grid_table(planned.grid, sweep.results, sweep.threads).exists():
        lines.append("SLURM: 1 more job, which measures cost")
    return (
        [*lines, f"A job is requeued at most {launch.slurm.requeues} times."] if lines else ["SLURM: no job is needed."]
    )


def fractions_table(planned: Plan) -> Any:
    """A table of patients, images and positives of each finding in every split and label fraction."""
    import numpy as np
    from rich.table import Table
    from rich.text import Text

    grid, data, splits = planned.grid, planned.data, planned.splits
    parts = {f"{p:g} % (draw 0)": fraction(data, splits, p, 0) for p in grid.evaluation.labels}
    parts = {"pre-training": splits.train, **parts, "validation": splits.val, "test": splits.test}
    table = Table(title=f"{data.name}: patients, images, positives by finding", title_justify="left")
    for column in ("part", "patients", "images", *data.label_names):
        table.add_column(Text(plain(column)), overflow="fold")
    for name, index in parts.items():
        positives = np.nansum(data.labels[index] == 1, axis=0)
        table.add_row(
            name, str(len(np.unique(data.patients[index]))), str(len(index)), *(str(int(n)) for n in positives)
        )
    return table


def estimate(planned: Plan) -> dict[str, float]:
    """Estimated seconds by run id, from one timed dense step, scaled by each method's MACs and number of steps."""
    import torch

    from bench.measure.macs import count
    from bench.training.build import build, steps_of

    grid, sweep = planned.grid, planned.sweep
    torch.set_num_threads(sweep.threads)
    splits = planned.splits
    steps = steps_of(len(splits.train), grid.train)
    macs = {
        run.parsed: count(
            build(run.parsed, grid.encoder, 0), grid.encoder, grid.train, steps * run.epochs // grid.train.epochs
        )
        for run in {run.method: run for run in sweep.runs}.values()
    }
    rate = _macs_per_second(grid)
    labelled = len(splits.test) + len(splits.train)
    seconds = {}
    for run in sweep.runs:
        of = macs[run.parsed]
        train = of.whole_run if run.parsed.objective != "none" else 0.0
        if run.finetune is not None:
            train = run.finetune.max_steps * run.finetune.batch * 3 * of.inference
        seconds[run.run_id] = train / rate + labelled * of.inference / (3 * rate) + 5.0
    return seconds


def _macs_per_second(grid: GridSpec) -> float:
    """MACs per second of a dense train step on this machine."""
    from bench.measure.inputs import random_views
    from bench.measure.macs import count
    from bench.training.build import build
    from methods.names import REFERENCE_METHOD
    from methods.noise import Noise
    from methods.strategies.strategy import Call

    batch = min(16, grid.train.batch)
    objective = build(REFERENCE_METHOD, grid.encoder, 0)
    views = random_views(grid.encoder, batch)
    took = []
    for step in range(3):
        began = time.perf_counter()
        objective(views, Call(noise=Noise(0, step, batch))).total.backward()
        took.append(time.perf_counter() - began)
    step_macs = count(objective, grid.encoder, grid.train, 1).train_step
    return batch * step_macs / min(took)


def _weights_mib(run: RunSpec) -> float:
    from bench.training.build import build

    return sum(p.numel() for p in build(run.parsed, run.encoder, 0).encoder.parameters()) * 4 / 2**20
