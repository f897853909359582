"""`python -m bench.cost`: what methods cost. MACs, paired time, memory; nothing is learnt here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bench.records.record import CostTable
    from bench.specs.grid_spec import GridSpec
    from bench.specs.run_spec import EncoderSpec, MeasureSpec
    from methods.strategies.strategy import Geometry

app = typer.Typer(add_completion=False)

BATCH_OF_LARGE = 8  # images, where a dense image costs more than a GMAC; fewer where an image has more tokens than
TOKENS_OF_LARGE = 196  # this, so that a step holds about as many
ROUNDS_OF_LARGE = 10  # a round of nine methods at ViT-S/16, 224 px, takes half a minute on two cores
TRAIN_UP_TO = 448  # pixels on a side
WIDTH = 190  # columns of a printed table where there is no terminal to ask


@app.command()
def main(
    methods: Annotated[
        str,
        typer.Option(help="Comma list of objective/strategy[option=value,...]; dense comes first always."),
    ] = "all",
    encoder: Annotated[str, typer.Option(help="Encoder by name; the preset's by default.")] = "",
    image_size: Annotated[str, typer.Option(help="Pixels on a side, one or more: 224,448.")] = "",
    channels: Annotated[int | None, typer.Option(help="1 or 3.")] = None,
    keep: Annotated[str, typer.Option(help="Keep ratios for the methods that have one: 0.5,0.7.")] = "",
    batch: Annotated[int | None, typer.Option(help="Images a step, each with two views.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Interleaved rounds of the paired measurement.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores by default.")] = None,
    train_up_to: Annotated[
        int, typer.Option(help="Largest image size at which training is measured too; inference is at every size.")
    ] = TRAIN_UP_TO,
    macs_only: Annotated[bool, typer.Option("--macs-only", help="Count only; time and weigh nothing.")] = False,
    preset: Annotated[str, typer.Option(help="Where the encoder and the training settings come from.")] = "quick",
    results: Annotated[Path, typer.Option(help="The folder with the records.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Where cost.csv goes.")] = Path("reports"),
) -> None:
    """Measure what methods cost: MACs, paired time of a train step and of inference, memory."""
    from rich.console import Console

    from bench.analysis.outputs import check_reports
    from bench.messages import error_line
    from bench.records.environment import cores
    from bench.records.store import check_folder
    from methods import check_defined

    console = Console() if Console().is_terminal else Console(width=WIDTH)
    try:
        grid = _suite(preset, methods, keep, batch, rounds)
        encoders = [_encoder(grid, encoder, size, channels) for size in _sizes(image_size)]
        for method in grid.parsed_methods():
            check_defined(method.strategy, encoders[0].name)
        check_reports(reports)
        count = threads if threads is not None else cores()
        if count < 1:
            raise ValueError(f"--threads is {count}: it is at least 1.")
        if macs_only:
            for spec in encoders:
                _count(grid, spec, reports, console)
            return
        geometries = [_geometry(spec) for spec in encoders]  # what is wrong with one is said before any is measured
        check_folder(results, "--results")
        check_folder(reports, "--reports")
        jobs = []
        for spec, geometry in zip(encoders, geometries, strict=True):
            measure = _affordable(grid.measure, geometry, batch, rounds)
            training = spec.image_size <= train_up_to
            left_out = _too_large(grid, spec, geometry, measure.batch, console) if training else {}
            jobs.append((spec, measure, training, left_out))
        done = [_measure(grid, *job, count, results, reports, console) for job in jobs]
        tokens = {spec.image_size: geometry.patches for spec, geometry in zip(encoders, geometries, strict=True)}
        _write(done, encoders[0].name, tokens, results, reports, console)
    except (ValueError, OSError) as wrong:
        typer.echo(f"Error: {error_line(wrong)}", err=True)
        raise typer.Exit(2) from None


def _suite(preset: str, methods: str, keep: str, batch: int | None, rounds: int | None) -> GridSpec:
    """The preset with what the options change."""
    from bench.specs.grid_spec import load_grid

    measure = {name: value for name, value in (("batch", batch), ("rounds", rounds)) if value is not None}
    changes: dict[str, Any] = {"methods": methods, "baselines": []}
    if measure:
        changes["measure"] = measure
    if keep:
        changes["keep"] = [_number("--keep", part, float) for part in keep.split(",")]
    return load_grid(preset, changes=changes)


def _encoder(grid: GridSpec, name: str, size: int | None, channels: int | None) -> EncoderSpec:
    """The preset's encoder, or another one: then at the size in its name (timm's custom), 224 where there is none."""
    from bench.specs.grid_spec import validated
    from bench.specs.run_spec import EncoderSpec

    values = grid.encoder.model_dump()
    if name and name != grid.encoder.name:
        last = name.split(".")[0].rsplit("_", 1)[-1]
        named = int(last) if last.isdecimal() and int(last) >= 64 else None
        values |= {"name": name, "weights": "", "image_size": named or (64 if "patch8" in name else 224)}
    if size is not None:
        values["image_size"] = size
    if channels is not None:
        values["channels"] = channels
    spec: EncoderSpec = validated(EncoderSpec, values, where="options")
    return spec


def _sizes(text: str) -> list[int | None]:
    return [_number("--image-size", part, int) for part in text.split(",")] if text else [None]


def _number(option: str, text: str, kind: type[Any]) -> Any:
    try:
        return kind(text.strip())
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{option} has '{text.strip()}': it takes {what} with commas between.") from None


def _count(grid: GridSpec, encoder: EncoderSpec, reports: Path, console: Console) -> None:
    """MACs alone: printed, and written to reports/macs-<encoder>-<size>.csv."""
    from bench.measure.macs import CountersDisagree
    from bench.measure.macs_table import count_methods, print_macs, write_macs
    from bench.measure.show import UNKNOWN

    try:
        rows = count_methods(grid.parsed_methods(), encoder, grid.train)
    except CountersDisagree as refused:
        typer.echo(f"The table is refused. {refused}", err=True)
        raise typer.Exit(1) from None
    print_macs(rows, encoder, console)
    counted = {row["method"] for row in rows}
    for method in grid.parsed_methods():
        if method.name not in counted:
            console.print(f"Not counted: {method.name}. {UNKNOWN}", markup=False, highlight=False)
    where = write_macs(rows, encoder, reports)
    console.print(f"Per image; a step has both views. Written to {where}", markup=False, highlight=False)


def _affordable(measure: MeasureSpec, geometry: Geometry, batch: int | None, rounds: int | None) -> MeasureSpec:
    """Fewer images and rounds for a large encoder, unless the user said how many."""
    if geometry.macs(geometry.patches) <= 1e9:
        return measure
    fit = max(2, min(BATCH_OF_LARGE, BATCH_OF_LARGE * TOKENS_OF_LARGE // geometry.patches))
    changes = {"batch": min(measure.batch, fit)} if batch is None else {}
    if rounds is None:
        changes["rounds"] = min(measure.rounds, ROUNDS_OF_LARGE)
    return measure.model_copy(update=changes)


def _geometry(encoder: EncoderSpec) -> Geometry:
    from bench.measure.table import DENSE
    from bench.training.build import build

    return build(DENSE, encoder, seed=0).encoder.geometry


def _too_large(
    grid: GridSpec, encoder: EncoderSpec, geometry: Geometry, batch: int, console: Console
) -> dict[str, str]:
    """Rows whose train step does not fit into memory, with the reasons, which are printed."""
    from bench.measure.headroom import too_large

    found = too_large(grid.parsed_methods(), encoder, geometry, grid.train, batch)
    for reason in found.values():
        console.print(f"Training is left out: {reason}.", markup=False, highlight=False)
    return found


def _measure(
    grid: GridSpec,
    encoder: EncoderSpec,
    spec: MeasureSpec,
    training: bool,
    left_out: dict[str, str],
    threads: int,
    results: Path,
    reports: Path,
    console: Console,
) -> CostTable:
    """One table: measured, stored, printed, and drawn. Where dense is `left_out` of training, all are: there is nothing
    to compare with."""
    from rich.progress import Progress

    from bench.analysis.show import cost_plots
    from bench.measure.macs import CountersDisagree
    from bench.measure.show import print_costs
    from bench.measure.table import DENSE, measure, table_path
    from bench.records.store import as_json, write_atomically

    methods, training = grid.parsed_methods(), training and DENSE.name not in left_out
    where = table_path(results, methods, encoder, grid.train, spec, threads, training)
    try:
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(f"{encoder.name} at {encoder.image_size} px, paired rounds", total=spec.rounds)
            table = measure(
                methods,
                encoder,
                grid.train,
                spec,
                threads,
                training=training,
                left_out=left_out,
                detail=True,
                progress=lambda done, _: bar.update(task, completed=done),
            )
    except CountersDisagree as refused:
        typer.echo(f"The table is refused. {refused}", err=True)
        raise typer.Exit(1) from None
    write_atomically(where, as_json(table))
    print_costs(table, console)
    console.print(f"Written to {where}", markup=False, highlight=False)
    name = f"{cost_plots.PREFIX}parts-{encoder.name}-{encoder.image_size}"
    if cost_plots.parts(table.rows, reports / "figures", name):
        console.print(f"Where a step's time goes: {reports / 'figures' / name}.png", markup=False, highlight=False)
    return table


def _write(
    tables: list[CostTable], encoder: str, tokens: dict[int, int], results: Path, reports: Path, console: Console
) -> None:
    """reports/cost.csv: the newest row of all that was measured; and how cost grows with the `tokens` of an image size,
    where there are several."""
    from bench.analysis.read.frames import cost_csv, cost_frame, newest
    from bench.analysis.show import cost_plots
    from bench.records.store import write_atomically

    write_atomically(reports / "cost.csv", cost_csv(cost_frame(results)).encode())
    console.print(f"All that was measured: {reports / 'cost.csv'}", markup=False, highlight=False)
    name = f"{cost_plots.PREFIX}scaling-{encoder}"
    if cost_plots.scaling(newest(tables), tokens, reports / "figures", name):
        console.print(f"Cost against tokens: {reports / 'figures' / name}.png", markup=False, highlight=False)


if __name__ == "__main__":
    app()
