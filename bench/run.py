"""`python -m bench.run`: plan the grid, run what is missing, write records, then the report."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def main(
    methods: Annotated[
        str | None, typer.Option(help="Comma list of objective/strategy[option=value,...]; 'all'.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Label fractions in per cent, e.g. 1,10,100.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set; see python -m bench.list.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the data lie.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="A plain ViT, ConvNeXt or ResNet of timm's, or a small one of ours.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels on a side.")] = None,
    keep: Annotated[
        str | None, typer.Option(help="Keep ratios, e.g. 0.5,0.7, of strategies with an option 'keep'.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="3 means 0,1,2; '0,4,7' those; '3,' seed 3 alone.")] = None,
    probes: Annotated[str | None, typer.Option(help="Of linear,knn,finetune.")] = None,
    preset: Annotated[str, typer.Option(help="Scale: a file in bench/presets/.")] = "quick",
    spec: Annotated[Path | None, typer.Option(help="TOML file that overrides the preset.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, e.g. train.epochs=5; repeatable.")
    ] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="Python file with a method of your own; repeatable.")
    ] = None,
    launcher: Annotated[
        str, typer.Option(help="inline: in this process; local: worker processes; slurm: a job a run.")
    ] = "local",
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0: one a core (one where a GPU is used).")] = 0,
    slurm: Annotated[
        list[str] | None,
        typer.Option(help="key=value for SLURM: partition, time, gpus, cpus, mem, account, parallel, ...; repeatable."),
    ] = None,
    leave: Annotated[bool, typer.Option("--detach", help="Submit SLURM's jobs and leave.")] = False,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that train a run together.")] = 1,
    checkpoint_minutes: Annotated[float, typer.Option(min=0.0, help="Between two checkpoints of a training.")] = 5.0,
    results: Annotated[Path, typer.Option(help="Where records go.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("reports"),
    cache: Annotated[Path | None, typer.Option(help="Where data made once are kept; else BENCH_CACHE.")] = None,
    measure: Annotated[bool, typer.Option(help="Measure cost, paired, before training.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with an estimate of time, and stop.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run again what is done; the old is kept in results/.old/.")
    ] = False,
) -> None:
    """Compare attention strategies in contrastive pre-training: run what of the grid is missing, then report."""
    from bench.grid.plan import Options, plan
    from bench.messages import console_of, error_line

    signal.signal(signal.SIGTERM, _interrupt)
    console = console_of()
    started = time.monotonic()
    try:
        options = Options(
            preset=preset,
            spec=spec,
            changes=tuple(change or ()),
            methods=methods,
            labels=labels,
            data=data,
            data_root=data_root,
            encoder=encoder,
            image_size=image_size,
            keep=keep,
            seeds=seeds,
            probes=probes,
            plugins=tuple(plugin or ()),
            launcher=launcher,
            workers=workers,
            results=results,
            reports=reports,
            cache=cache,
            slurm=tuple(slurm or ()),
            ranks=ranks,
            checkpoint_minutes=checkpoint_minutes,
        )
        if leave and launcher != "slurm":
            raise ValueError(f"--detach is for --launcher slurm, and this is --launcher {launcher}.")
        planned = plan(options)
        if dry_run:
            from bench.grid.estimate import describe

            describe(planned, measure, console)
            return
        console.print(planned.data_sentence(), markup=False, highlight=False)
        if fresh:
            planned.put_aside()
        left = sum(planned.sweep.unfinished(run) for run in planned.sweep.runs)
    except (ValueError, OSError) as mistake:
        typer.echo(f"Error: {error_line(mistake)}", err=True)
        raise typer.Exit(2) from None
    from bench.grid.execute import detach, run_grid
    from bench.launch.slurm_jobs import JobsUnknown

    try:
        if leave:
            detach(planned, measure, console)
            return
        code = run_grid(planned, left, reports, measure, console)
    except (JobsUnknown, OSError) as refused:
        typer.echo(f"Error: {error_line(refused)}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        kept = "What is done is kept; the same command goes on from there."
        if launcher == "slurm" and any(planned.sweep.unfinished(run) for run in planned.sweep.runs):
            kept = "The jobs go on; the same command finds them again (squeue shows them, scancel ends them)."
        typer.echo(f"\nInterrupted. {kept}", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"Took {(time.monotonic() - started) / 60:.1f} minutes.")
    raise typer.Exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A SIGTERM ends the command as Ctrl-C does: workers are stopped, what is done is kept."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    app()
