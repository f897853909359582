"""`python -m bench.cost`: what methods cost. MACs, paired time, memory; nothing is learnt here."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bench.record import Macs
    from bench.spec import EncoderSpec, TrainSpec
    from bench.suite import Suite

app = typer.Typer(add_completion=False)

BATCH_OF_LARGE = 8  # images, where a dense image costs more than a GMAC
WIDTH = 172  # columns of a printed table where there is no terminal to ask
MACS_COLUMNS = (
    *("method", "encoder", "image_size", "channels", "keep", "keep_effective", "train_execution"),
    *("infer_gmacs", "train_gmacs", "infer_ratio", "train_ratio", "run_ratio", "ramp", "batch"),
)


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
    macs_only: Annotated[bool, typer.Option("--macs-only", help="Count only; time and weigh nothing.")] = False,
    preset: Annotated[str, typer.Option(help="Where the encoder and the training settings come from.")] = "quick",
    results: Annotated[Path, typer.Option(help="The folder with the records.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Where cost.csv goes.")] = Path("reports"),
) -> None:
    """Measure what methods cost: MACs, paired time of a train step and of inference, memory."""
    from rich.console import Console

    console = Console() if Console().is_terminal else Console(width=WIDTH)
    try:
        suite = _suite(preset, methods, keep, batch, rounds)
        encoders = [_encoder(suite, encoder, size, channels) for size in _sizes(image_size)]
        cores = threads if threads is not None else _cores()
        if cores < 1:
            raise ValueError(f"--threads is {cores}: it is at least 1.")
        for spec in encoders:
            if macs_only:
                _count(suite, spec, reports, console)
            else:
                _measure(suite, spec, batch, cores, results, console)
        if not macs_only:
            _write_csv(results, reports)
            console.print(f"All that was measured: {reports / 'cost.csv'}", markup=False, highlight=False)
    except (ValueError, FileNotFoundError) as wrong:
        typer.echo(str(wrong), err=True)
        raise typer.Exit(2) from None


def _suite(preset: str, methods: str, keep: str, batch: int | None, rounds: int | None) -> Suite:
    """The preset with what the options change."""
    from bench.suite import load_suite

    measure = {name: value for name, value in (("batch", batch), ("rounds", rounds)) if value is not None}
    changes: dict[str, Any] = {"methods": methods, "floors": []}
    if measure:
        changes["measure"] = measure
    if keep:
        changes["keep"] = [_number("--keep", part, float) for part in keep.split(",")]
    return load_suite(preset, changes=changes)


def _encoder(suite: Suite, name: str, size: int | None, channels: int | None) -> EncoderSpec:
    """The preset's encoder, or another one: then at the size in its name (timm's custom), 224 where there is none."""
    from bench.spec import EncoderSpec
    from bench.suite import validated

    values = suite.encoder.model_dump()
    if name and name != suite.encoder.name:
        last = name.split(".")[0].rsplit("_", 1)[-1]
        named = int(last) if last.isdigit() and int(last) >= 64 else None
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measure(
    suite: Suite, encoder: EncoderSpec, batch: int | None, threads: int, results: Path, console: Console
) -> None:
    from rich.progress import Progress

    from bench.measure.macs import CountersDisagree
    from bench.measure.show import print_costs
    from bench.measure.table import measure, table_path
    from bench.store import as_json, write_atomically

    spec = suite.measure
    if batch is None and _is_large(encoder):
        spec = spec.model_copy(update={"batch": min(spec.batch, BATCH_OF_LARGE)})
    methods = suite.parsed_methods()
    where = table_path(results, methods, encoder, suite.train, spec, threads)
    try:
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(f"{encoder.name} at {encoder.image_size} px, paired rounds", total=spec.rounds)
            table = measure(
                methods,
                encoder,
                suite.train,
                spec,
                threads,
                progress=lambda done, _: bar.update(task, completed=done),
            )
    except CountersDisagree as refused:
        typer.echo(f"The table is refused. {refused}", err=True)
        raise typer.Exit(1) from None
    write_atomically(where, as_json(table))
    print_costs(table, console)
    console.print(f"Written to {where}", markup=False, highlight=False)


def _is_large(encoder: EncoderSpec) -> bool:
    from bench.measure.table import DENSE
    from bench.pretrain import build

    geometry = build(DENSE, encoder, seed=0).encoder.geometry
    return geometry.macs(geometry.patches) > 1e9


def _write_csv(results: Path, reports: Path) -> None:
    """reports/cost.csv: the newest row of all that was measured."""
    from bench.analysis.frames import cost_frame
    from bench.record import CostRow
    from bench.store import write_atomically

    frame = cost_frame(results)[[*CostRow.model_fields, "measured"]]
    write_atomically(reports / "cost.csv", frame.to_csv(index=False).encode())


def _count(suite: Suite, encoder: EncoderSpec, reports: Path, console: Console) -> None:
    """MACs alone: printed, and written to reports/macs-<encoder>-<size>.csv."""
    from rich.table import Table

    from bench.measure.macs import CountersDisagree, count
    from bench.measure.table import GRID, contestants, execution
    from bench.pretrain import build
    from bench.store import write_atomically

    rows: list[dict[str, Any]] = []
    dense: Macs | None = None
    for name, method in contestants(suite.parsed_methods())[:-1]:
        objective = build(method, encoder, seed=0)
        try:
            macs = count(objective, encoder, suite.train, GRID)
        except CountersDisagree as refused:
            typer.echo(f"The table is refused: {name}. {refused}", err=True)
            raise typer.Exit(1) from None
        dense = dense or macs
        strategy = objective.encoder.strategy
        rows.append(_macs_row(name, encoder, suite.train, macs, dense))
        rows[-1] |= {
            "keep": method.keep,
            "keep_effective": strategy.target,
            "train_execution": execution(objective),
            "ramp": suite.train.ramp if strategy.ramps else None,
        }
    shown = Table(
        title=f"MACs, {encoder.name}, {encoder.image_size} px, {encoder.channels} channel(s)",
        title_justify="left",
    )
    shown.add_column("method", overflow="fold", min_width=22)
    for column in (
        "keep",
        "inference G",
        "dense / this",
        "train step G",
        "dense / this",
        "whole run: dense / this",
    ):
        shown.add_column(column, justify="right")
    for row in rows:
        numbers = (f"{row[key]:.4g}" for key in MACS_COLUMNS[7:12])
        infer, train, infer_ratio, train_ratio, run_ratio = numbers
        keep = "" if row["keep"] is None else f"{row['keep']:g}"
        shown.add_row(row["method"].replace("[", r"\["), keep, infer, infer_ratio, train, train_ratio, run_ratio)
    console.print(shown)
    text = io.StringIO()
    writer = csv.DictWriter(text, MACS_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    where = reports / f"macs-{encoder.name}-{encoder.image_size}.csv"
    write_atomically(where, text.getvalue().encode())
    console.print(f"Per image; a step has both views. Written to {where}", markup=False, highlight=False)


def _macs_row(name: str, encoder: EncoderSpec, train: TrainSpec, macs: Macs, dense: Macs) -> dict[str, Any]:
    return {
        "method": name,
        "encoder": encoder.name,
        "image_size": encoder.image_size,
        "channels": encoder.channels,
        "infer_gmacs": macs.inference / 1e9,
        "train_gmacs": macs.train_step / 1e9,
        "infer_ratio": dense.inference / macs.inference,
        "train_ratio": dense.train_step / macs.train_step,
        "run_ratio": dense.whole_run / macs.whole_run,
        "batch": train.batch,
    }


if __name__ == "__main__":
    app()
