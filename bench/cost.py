"""`python -m bench.cost`: the cost of methods: MACs, paired time and memory, without training on data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.messages import exit_on
from bench.specs.options import (
    Keep,
    Key,
    Methods,
    Options,
    Preset,
    Reports,
    Results,
    changes_of,
    compared,
    examples,
    takes,
)

if TYPE_CHECKING:
    from rich.console import Console

    from bench.measure.table import Measurement
    from bench.records.record import CostTable
    from bench.specs.grid_spec import GridSpec
    from bench.specs.run_spec import EncoderSpec, MeasureSpec
    from methods.strategies.strategy import Geometry

app = typer.Typer(add_completion=False)

# for an encoder that takes more than a GMAC for a dense image; fewer images where one has more tokens than these
BATCH_OF_LARGE = 8
TOKENS_OF_LARGE = 196
ROUNDS_OF_LARGE = 10  # a round of nine methods at ViT-S/16, 224 px, takes half a minute on two cores
TRAIN_UP_TO = 448  # pixels on a side
WIDTH = 190  # columns of a printed table where the output is not a terminal
EXAMPLES = (
    "python -m bench.cost --methods sparsecontrast,tome --keep 0.3,0.5",
    "python -m bench.cost --encoder vit_small_patch16_224 --image-size 224,448 --macs-only",
)
measured = partial(typer.Option, rich_help_panel="What is measured")


@dataclass(frozen=True, kw_only=True)
class CostOptions(Options):
    """The command line of `bench.cost`. `encoder` and `image_size` have no key, for another encoder comes at its own
    size, and there may be several sizes."""

    methods: Methods = "all"
    encoder: Annotated[str | None, compared(help="Name of the encoder; by default that of the preset.")] = None
    image_size: Annotated[str | None, compared(help="Height and width in pixels, one or more: 224,448.")] = None
    channels: Annotated[int | None, compared(help="Channels of an image: 1 or 3."), Key("encoder.channels")] = None
    keep: Keep = None

    batch: Annotated[int | None, measured(help="Images in a step, each with two views."), Key("measure.batch")] = None
    rounds: Annotated[
        int | None, measured(help="Interleaved rounds of the paired measurement."), Key("measure.rounds")
    ] = None
    threads: Annotated[int | None, measured(help="CPU threads; by default one for each core.")] = None
    train_up_to: Annotated[
        int, measured(help="Largest image size at which training is measured; inference is measured at every size.")
    ] = TRAIN_UP_TO
    macs_only: Annotated[bool, measured("--macs-only", help="Count MACs only; no time and no memory.")] = False

    preset: Preset = "quick"
    results: Results = Path("results")
    reports: Reports = Path("reports")


@app.command(epilog=examples(*EXAMPLES))
@takes(CostOptions)
def main(options: CostOptions) -> None:
    """Measure the cost of methods against dense: MACs, paired time of a train step and of inference, memory."""
    from rich.console import Console

    from bench.analysis.outputs import check_reports
    from bench.records.environment import cores
    from bench.records.store import check_folder
    from bench.specs.grid_spec import load_grid
    from methods import check_defined

    console = Console() if Console().is_terminal else Console(width=WIDTH)
    with exit_on(ValueError, OSError, code=2):
        grid = load_grid(options.preset, changes={**changes_of(options), "baselines": []})
        encoders = [_encoder(grid, options.encoder, size) for size in _sizes(options.image_size)]
        for method in grid.parsed_methods():
            check_defined(method.strategy, encoders[0].name)
        check_reports(options.reports)
        threads = cores() if options.threads is None else options.threads
        if threads < 1:
            raise ValueError(f"--threads is {threads}: it must be at least 1.")
        if options.macs_only:
            for encoder in encoders:
                _count(grid, encoder, options.reports, console)
            return
        geometries = [_geometry(encoder) for encoder in encoders]  # raises before anything is measured
        check_folder(options.results, "--results")
        check_folder(options.reports, "--reports")
        planned = [
            _planned(grid, encoder, geometry, threads, options, console)
            for encoder, geometry in zip(encoders, geometries, strict=True)
        ]
        tables = [_measure(one, options, console) for one in planned]
        tokens = {encoder.image_size: one.patches for encoder, one in zip(encoders, geometries, strict=True)}
        _write(tables, encoders[0].name, tokens, options, console)


def _encoder(grid: GridSpec, name: str | None, size: int | None) -> EncoderSpec:
    """The preset's encoder, or another one: then at the size in its name, as timm gives it, or 224 if there is none."""
    from bench.specs.grid_spec import validated
    from bench.specs.run_spec import EncoderSpec

    values = grid.encoder.model_dump()
    if name and name != grid.encoder.name:
        last = name.split(".")[0].rsplit("_", 1)[-1]
        named = int(last) if last.isdecimal() and int(last) >= 64 else None
        values |= {"name": name, "weights": "", "image_size": named or (64 if "patch8" in name else 224)}
    if size is not None:
        values["image_size"] = size
    spec: EncoderSpec = validated(EncoderSpec, values, where="options")
    return spec


def _sizes(text: str | None) -> list[int | None]:
    if not text:
        return [None]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--image-size '{text}' is not a comma-separated list of whole numbers: write e.g. --image-size 224,448."
        ) from None


@contextmanager
def _refusing() -> Iterator[None]:
    """End the command if the counters of MACs disagree."""
    from bench.measure.macs import CountersDisagree

    with exit_on(CountersDisagree, code=1, label="The table is refused."):
        yield


def _count(grid: GridSpec, encoder: EncoderSpec, reports: Path, console: Console) -> None:
    """Count MACs, print them and write reports/macs-<encoder>-<size>.csv."""
    from bench.measure.macs_table import count_methods, print_macs, write_macs
    from bench.measure.show import UNKNOWN

    with _refusing():
        rows = count_methods(grid.parsed_methods(), encoder, grid.train)
    print_macs(rows, encoder, console)
    counted = {row["method"] for row in rows}
    for method in grid.parsed_methods():
        if method.name not in counted:
            console.print(f"Not counted: {method.name}. {UNKNOWN}", markup=False, highlight=False)
    where = write_macs(rows, encoder, reports)
    console.print(f"All per image; a train step has two views. Written to {where}", markup=False, highlight=False)


def _affordable(measure: MeasureSpec, geometry: Geometry, batch: int | None, rounds: int | None) -> MeasureSpec:
    """Fewer images and rounds for a large encoder, unless they were given as options."""
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


def _planned(
    grid: GridSpec, encoder: EncoderSpec, geometry: Geometry, threads: int, options: CostOptions, console: Console
) -> Measurement:
    """What to measure on one encoder. Training is left out for methods whose step does not fit into memory, with a
    message; if dense is one of them, for all, since there is nothing to compare with."""
    from bench.measure.headroom import too_large
    from bench.measure.table import DENSE, Measurement

    methods, timing = grid.parsed_methods(), _affordable(grid.measure, geometry, options.batch, options.rounds)
    training, left_out = encoder.image_size <= options.train_up_to, {}
    if training:
        left_out = too_large(methods, encoder, geometry, grid.train, timing.batch)
    for reason in left_out.values():
        console.print(f"Training is left out: {reason}.", markup=False, highlight=False)
    training = training and DENSE.name not in left_out
    return Measurement(methods, encoder, grid.train, timing, threads, training, left_out)


def _measure(planned: Measurement, options: CostOptions, console: Console) -> CostTable:
    """Measure one table, write it, print it and plot it."""
    from rich.progress import Progress

    from bench.analysis.show import cost_plots
    from bench.measure.show import print_costs
    from bench.measure.table import measure
    from bench.records.store import as_json, write_atomically

    encoder, rounds, figures = planned.encoder, planned.timing.rounds, options.reports / "figures"
    with _refusing(), Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{encoder.name} at {encoder.image_size} px, paired rounds", total=rounds)
        table = measure(planned, detail=True, progress=lambda done, _: bar.update(task, completed=done))
    where = planned.path(options.results)
    write_atomically(where, as_json(table))
    print_costs(table, console)
    console.print(f"Written to {where}", markup=False, highlight=False)
    name = f"{cost_plots.PREFIX}parts-{encoder.name}-{encoder.image_size}"
    if cost_plots.parts(table.rows, figures, name):
        console.print(f"Where a step's time goes: {figures / name}.png", markup=False, highlight=False)
    return table


def _write(
    tables: list[CostTable], encoder: str, tokens: dict[int, int], options: CostOptions, console: Console
) -> None:
    """Write reports/cost.csv with the newest row of everything that was measured; and, for several image sizes, plot
    cost against their `tokens`."""
    from bench.analysis.read.frames import cost_csv, cost_frame, newest
    from bench.analysis.show import cost_plots
    from bench.records.store import write_atomically

    csv, figures = options.reports / "cost.csv", options.reports / "figures"
    write_atomically(csv, cost_csv(cost_frame(options.results)).encode())
    console.print(f"All measurements: {csv}", markup=False, highlight=False)
    name = f"{cost_plots.PREFIX}scaling-{encoder}"
    if cost_plots.scaling(newest(tables), tokens, figures, name):
        console.print(f"Cost against tokens: {figures / name}.png", markup=False, highlight=False)


if __name__ == "__main__":
    app()
