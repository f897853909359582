"""`python -m bench.run`: plan the grid, run what is missing, write records, then the report."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bench.launch import Launcher, Work
    from bench.suite import Suite

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
    launcher: Annotated[str, typer.Option(help="inline: in this process; local: worker processes.")] = "local",
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0: one a core (one where a GPU is used).")] = 0,
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

    from bench.environment import cores
    from bench.plan import Options, plan

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
            workers=workers or cores(),
            results=results,
            reports=reports,
            cache=cache,
        )
        planned = plan(options)
        if dry_run:
            from bench.estimate import describe

            describe(planned, console)
            return
        console.print(planned.data_sentence(), markup=False, highlight=False)
        if fresh:
            planned.put_aside()
        left = sum(planned.job.unfinished(run) for run in planned.job.runs)
    except (ValueError, FileNotFoundError, NotADirectoryError, PermissionError) as mistake:
        typer.echo(f"Error: {mistake}", err=True)
        raise typer.Exit(2) from None
    try:
        code = _run(planned.suite, planned.job, left, planned.launcher, planned.workers, reports, measure, console)
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. What is done is kept; the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"Took {(time.monotonic() - started) / 60:.1f} minutes.")
    raise typer.Exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A SIGTERM ends the command as Ctrl-C does: workers are stopped, what is done is kept."""
    raise KeyboardInterrupt


def _run(
    suite: Suite, job: Work, left: int, launcher: Launcher, count: int, reports: Path, measure: bool, console: Console
) -> int:
    """Measure, train and evaluate, report; returns the exit code."""
    from bench.launch import workers
    from bench.progress import Watch

    if measure:
        _measure(suite, job, console)
    console.print(f"{len(job.runs)} runs, {len(job.runs) - left} of them done before.", highlight=False)
    trouble: list[str] = []
    if left:

        def provisional() -> None:
            try:
                summary = _report(suite, job, reports, trouble=[])
            except Exception as error:  # the runs go on; the report at the end says what is wrong
                console.print(f"The provisional report failed: {error}", markup=False, highlight=False)
                return
            if summary is not None:
                console.print(f"The first seed is done: a provisional report is in {summary.path}", highlight=False)

        count = min(count, left)
        with workers(job, launcher, count) as handles, Watch(job, console, provisional):
            for handle in handles:
                trouble += _outcome(handle)
    failures = _failures(job)
    summary = _report(suite, job, reports, trouble)
    if summary is not None:
        for group in summary.groups:
            console.print(f"\n{group.table}\n", markup=False, highlight=False)
            for sentence in group.finding:
                console.print(f"- {sentence}", markup=False, highlight=False)
        console.print(f"\nReport: {summary.path}", markup=False, highlight=False)
    if not suite.evidence:
        console.print("This preset only tests the machinery: its numbers are no evidence of anything.", highlight=False)
    for problem in [*failures, *trouble]:
        typer.echo(f"Failed: {problem}", err=True)
    return 1 if failures or trouble else 0


def _measure(suite: Suite, job: Work, console: Console) -> None:
    """The paired measurement at the trained scale, unless it has been made, before anything else loads the machine."""
    from bench.environment import raise_allocator_thresholds
    from bench.measure.table import measure, table_path
    from bench.store import as_json, write_atomically

    raise_allocator_thresholds()
    methods = [m for m in suite.parsed_methods() if m.objective != "none"]
    path = table_path(job.results, methods, suite.encoder, suite.train, suite.measure, job.threads)
    if not methods or path.exists():
        return
    console.print(f"Measuring the cost of {len(methods)} methods, paired and interleaved ...", highlight=False)
    write_atomically(path, as_json(measure(methods, suite.encoder, suite.train, suite.measure, job.threads)))


def _outcome(handle: Any) -> list[str]:
    """Wait for a worker; a worker that died is named, and the others go on."""
    try:
        handle.result()
    except KeyboardInterrupt:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        return [f"a worker ended before its time: {lines[-1] if lines else type(error).__name__}"]
    return []


def _failures(job: Work) -> list[str]:
    """Runs of the grid that failed or were never finished, each with its reason."""
    from bench.store import Store

    store, failures = Store(job.results), []
    for run in job.runs:
        record = store.record(run.run_id)
        log = store.folder(run.run_id) / "log.txt"
        if record is None:
            failures.append(f"{run.run_id}: not finished")
        elif record.status == "failed":
            failures.append(f"{run.run_id}: {record.reason} (see {log})")
        elif job.unfinished(run):
            failures.append(f"{run.run_id}: trained, but not evaluated (see {log})")
    return failures


def _report(suite: Suite, job: Work, reports: Path, trouble: list[str]) -> Any:
    """The report on all records, or None where it is refused (which is trouble)."""
    from bench.analysis.groups import ReportRefused
    from bench.report import write_report

    try:
        return write_report(job.results, reports, planned=len(job.runs))
    except (ReportRefused, FileNotFoundError) as refused:
        trouble.append(f"the report is refused: {refused}")
        return None


if __name__ == "__main__":
    app()
