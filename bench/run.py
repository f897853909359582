"""`python -m bench.run`: plan the grid, run what is missing, write records, then the report."""

from __future__ import annotations

import signal
import time
from types import FrameType

import typer

from bench.grid.options import RunOptions
from bench.messages import console_of, exit_on, plain
from bench.specs.options import examples, takes

app = typer.Typer(add_completion=False)
EXAMPLES = (
    "python -m bench.run --methods all --labels 1,10,100",
    "python -m bench.run --methods dense,'sparsecontrast[keep=0.5]' --seeds 5 --dry-run",
    "python -m bench.run --preset standard --data folder --data-root ~/xrays --encoder resnet18 --methods dense",
    "python -m bench.run --preset paper --launcher slurm --slurm partition=gpu --slurm gpus=1 --detach",
)


@app.command(epilog=examples(*EXAMPLES))
@takes(RunOptions)
def main(options: RunOptions) -> None:
    """Compare attention strategies in contrastive pre-training: run what is missing of the grid, then report."""
    from bench.grid.plan import plan

    signal.signal(signal.SIGTERM, _interrupt)
    console = console_of()
    started = time.monotonic()
    with exit_on(ValueError, OSError, code=2):
        planned = plan(options)
        if options.dry_run:
            from bench.grid.estimate import describe

            describe(planned, options.measure, console)
            return
        for line in planned.data_lines():
            console.print(plain(line), markup=False, highlight=False)
        if options.fresh:
            planned.put_aside()
        left = sum(planned.sweep.unfinished(run) for run in planned.sweep.runs)
    from bench.grid.execute import detach, run_grid
    from bench.launch.slurm_jobs import JobsUnknown

    try:
        with exit_on(JobsUnknown, OSError, code=1):
            if options.detach:
                detach(planned, options.measure, console)
                return
            code = run_grid(planned, left, options.reports, options.measure, console)
    except KeyboardInterrupt:
        kept = "What is done is kept; the same command continues from there."
        if options.launcher == "slurm" and any(planned.sweep.unfinished(run) for run in planned.sweep.runs):
            kept = "The jobs continue; the same command finds them again (squeue lists them, scancel cancels them)."
        typer.echo(f"\nInterrupted. {kept}", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"Took {(time.monotonic() - started) / 60:.1f} minutes.")
    raise typer.Exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End the command at SIGTERM as at Ctrl-C: workers are stopped, what is done is kept."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    app()
