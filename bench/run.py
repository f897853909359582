"""`python -m bench.run`: plan the grid, run what is missing, write records, then the report."""

from __future__ import annotations

import functools
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from bench.handle import Handle
    from bench.plan import Plan
    from bench.work import Work

app = typer.Typer(add_completion=False)


@app.command()
def main(
    methods: Annotated[
        str | None, typer.Option(help="Comma list of objective/strategy[option=value,...]; 'all'.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Label fractions in per cent, e.g. 1,10,100.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set; see python -m bench.list.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the data lie.")] = None,
    encoder: Annotated[str | None, typer.Option(help="A plain ViT of timm's, or a small one of ours.")] = None,
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
    detach: Annotated[bool, typer.Option("--detach", help="Submit SLURM's jobs and leave.")] = False,
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
    from rich.console import Console

    from bench.plain import told
    from bench.plan import Options, plan
    from bench.submit import JobsUnknown

    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console = Console(width=160)  # tables shall not fold where there is no terminal to fit
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
        if detach and launcher != "slurm":
            raise ValueError(f"--detach is for --launcher slurm, and this is --launcher {launcher}.")
        planned = plan(options)
        if dry_run:
            from bench.estimate import describe

            describe(planned, console)
            return
        console.print(planned.data_sentence(), markup=False, highlight=False)
        if fresh:
            planned.put_aside()
        left = sum(planned.job.unfinished(run) for run in planned.job.runs)
        if detach:
            _detach(planned, measure, console)
            return
    except JobsUnknown as unknown:
        typer.echo(f"Error: {unknown}", err=True)
        raise typer.Exit(1) from None
    except (ValueError, OSError) as mistake:
        typer.echo(f"Error: {told(mistake)}", err=True)
        raise typer.Exit(2) from None
    try:
        code = _run(planned, left, reports, measure, console)
    except JobsUnknown as unknown:
        typer.echo(f"Error: {unknown}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        kept = "What is done is kept; the same command goes on from there."
        if launcher == "slurm":
            kept = "The jobs go on; the same command finds them again (squeue shows them, scancel ends them)."
        typer.echo(f"\nInterrupted. {kept}", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"Took {(time.monotonic() - started) / 60:.1f} minutes.")
    raise typer.Exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A SIGTERM ends the command as Ctrl-C does: workers are stopped, what is done is kept."""
    raise KeyboardInterrupt


def _run(planned: Plan, left: int, reports: Path, measure: bool, console: Console) -> int:
    """Measure, train and evaluate, report; returns the exit code."""
    from bench.launch import workers
    from bench.plain import plain
    from bench.progress import Watch

    suite, job = planned.suite, planned.job
    measuring = _measure(planned, console) if measure else []
    console.print(f"{len(job.runs)} runs, {len(job.runs) - left} of them done before.", highlight=False)
    trouble: list[tuple[str, str]] = []
    if left:

        def provisional() -> None:
            try:
                summary = _report(planned, reports, trouble=[])
            except Exception as error:  # the runs go on; the report at the end says what is wrong
                console.print(f"The provisional report failed: {error}", markup=False, highlight=False)
                return
            if summary is not None:
                console.print(f"The first seed is done: a provisional report is in {summary.path}", highlight=False)

        fan = replace(planned.fan, workers=min(planned.fan.workers, left))
        with workers(job, fan) as handles:
            _say_found([*measuring, *handles], console)
            with Watch(job, console, provisional, handles):
                for handle in handles:
                    trouble += handle.wait()
    for cost in measuring:
        trouble += cost.wait()
    failures = _failures(job, dict(trouble))
    summary = _report(planned, reports, trouble)
    if summary is not None:
        for group in summary.groups:
            console.print(f"\n{group.table}\n", markup=False, highlight=False)
            for sentence in group.finding:
                console.print(f"- {plain(sentence)}", markup=False, highlight=False)
        console.print(f"\nReport: {summary.path}", markup=False, highlight=False)
    if not suite.evidence:
        console.print("This preset only tests the machinery: its numbers are no evidence of anything.", highlight=False)
    others = [text for run_id, text in trouble if not run_id]
    for problem in [*failures, *others]:
        typer.echo(f"Failed: {plain(problem)}", err=True)
    return 1 if failures or others else 0


def _measure(planned: Plan, console: Console) -> list[Handle]:
    """The paired measurement at the trained scale, unless it has been made, before anything else loads the machine. On
    SLURM it is a job, whose handle is returned."""
    from bench.grid_cost import contenders, grid_table, measure_grid
    from bench.submit import submit_cost

    suite, results, threads = planned.suite, planned.job.results, planned.job.threads
    path = grid_table(suite, results, threads)
    if not contenders(suite) or path.exists():
        return []
    if planned.fan.launcher == "slurm":
        call = functools.partial(measure_grid, suite, results.resolve(), threads)
        return [submit_cost(call, path, results, planned.fan.slurm)]
    console.print(
        f"Measuring the cost of {len(contenders(suite))} methods, paired and interleaved ...", highlight=False
    )
    measure_grid(suite, results, threads)
    return []


def _detach(planned: Plan, measure: bool, console: Console) -> None:
    """Submit what is missing and say how to go on."""
    from bench.launch import workers

    handles = _measure(planned, console) if measure else []
    with workers(planned.job, planned.fan) as jobs:
        handles += jobs
    ids = sorted({handle.job_id.partition("_")[0] for handle in handles}, key=int)
    if not handles:
        console.print("All is done, nothing is submitted: the same command without --detach reports.", highlight=False)
        return
    count = "1 job is" if len(handles) == 1 else f"{len(handles)} jobs are"
    console.print(
        f"{count} in the queue (SLURM {', '.join(ids)}). The same command without --detach waits and reports; scancel "
        "ends jobs.",
        highlight=False,
    )
    _say_found(handles, console)


def _say_found(handles: Sequence[Handle], console: Console) -> None:
    """Jobs that an earlier command submitted keep its options, whatever this one's are."""
    if found := sum(handle.found for handle in handles):
        console.print(
            f"Found, not submitted anew: {found} of them, with the --slurm options of then. Other options need scancel "
            "first.",
            highlight=False,
        )


def _failures(job: Work, known: dict[str, str]) -> list[str]:
    """Runs of the grid that failed or were never finished, each with its reason; `known` holds those that no record
    tells, by run."""
    from bench.claims import Claims
    from bench.store import Store
    from bench.work import died

    store, claims, failures = Store(job.results), Claims(job.results), []
    for run in job.runs:
        if not job.unfinished(run):
            continue
        record, log = store.record(run.run_id), store.log(run.run_id)
        see = f" (see {log})" if log.exists() else ""
        if run.run_id in known:
            reason = known[run.run_id]
        elif record is not None and record.status == "failed":
            reason = f"{record.reason}{see}"
        elif record is not None:
            reason = f"trained, but not evaluated{see}"
        elif claims.held(run.run_id):
            reason = "another command is at work on it"
        else:
            reason = died(job, run) or "not finished"
        failures.append(f"{run.run_id}: {reason}")
    return failures


def _report(planned: Plan, reports: Path, trouble: list[tuple[str, str]]) -> Any:
    """The report on all records, or None where it is refused (which is trouble)."""
    from bench.analysis.groups import ReportRefused
    from bench.report import write_report

    try:
        return write_report(planned.job.results, reports, planned=len(planned.job.runs))
    except (ReportRefused, FileNotFoundError) as refused:
        trouble.append(("", f"the report is refused: {refused}"))
        return None


if __name__ == "__main__":
    app()
