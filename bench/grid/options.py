"""The options of `bench.run`, each declared here and nowhere else; `bench.specs.options` explains how."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bench.specs.options import (
    Cache,
    DataRoot,
    Keep,
    Key,
    Methods,
    Options,
    Plugin,
    Preset,
    Reports,
    Results,
    compared,
    names,
    numbers,
    settings,
)

execution = partial(typer.Option, rich_help_panel="How the runs are executed")
output = partial(typer.Option, rich_help_panel="What is done")


def seeds(option: str, text: str) -> tuple[int, ...]:
    """Read seeds: `3` means the first three, `0,4,7` means those, `3,` means seed 3 alone. Raises ValueError."""
    from bench.specs.grid_spec import SEEDS  # brings pydantic, which `--help` does not need

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and len(part) <= 10 for part in parts):
        raise ValueError(f"{option} '{text}' can't be read: 3 means 0,1,2; 0,4,7 means those; '3,' means seed 3 alone.")
    if len(parts) == 1 and "," not in text:
        if int(parts[0]) == 0:
            raise ValueError(
                f"{option} 0 asks for no seed: write {option} 1 for one seed, or {option} 0, for seed 0 alone."
            )
        if int(parts[0]) > SEEDS:
            raise ValueError(f"{option} {parts[0]} asks for more than {SEEDS} seeds; '{parts[0]},' is that seed alone.")
        return tuple(range(int(parts[0])))
    return tuple(dict.fromkeys(int(part) for part in parts))


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """The command line of `bench.run`; None where an option was not given."""

    methods: Methods = None
    labels: Annotated[
        str | None,
        compared(help="Label fractions in per cent, e.g. 1,10,100."),
        Key("evaluation.labels", partial(numbers, example="1,10,100")),
    ] = None
    data: Annotated[str | None, compared(help="Data set; see bench.list."), Key("data.name")] = None
    encoder: Annotated[
        str | None,
        compared(help="A plain ViT, ConvNeXt or ResNet of timm, or a small one of this project; see bench.list."),
        Key("encoder.name"),
    ] = None
    image_size: Annotated[int | None, compared(help="Height and width in pixels."), Key("encoder.image_size")] = None
    keep: Keep = None
    seeds: Annotated[
        str | None,
        compared(help="3 means seeds 0,1,2; '0,4,7' means those; '3,' means seed 3 alone."),
        Key("seeds", seeds),
    ] = None
    probes: Annotated[
        str | None, compared(help="Comma-separated list of linear, knn, finetune."), Key("evaluation.probes", names)
    ] = None

    preset: Preset = "quick"
    spec: Annotated[Path | None, settings(help="TOML file that overrides the preset.")] = None
    changes: Annotated[
        list[str] | None,
        settings("--set", help="key=value, e.g. train.epochs=5; overrides all other options; repeatable."),
    ] = None

    launcher: Annotated[
        str, execution(help="inline: this process; local: worker processes; slurm: one job for each run.")
    ] = "local"
    workers: Annotated[
        int, execution(min=0, help="Worker processes; 0: one for each core, or for each GPU if there are any.")
    ] = 0
    ranks: Annotated[int, execution(min=1, help="Processes that train a run together.")] = 1
    slurm: Annotated[
        list[str] | None,
        execution(help="key=value for SLURM: partition, time, gpus, cpus, mem, account, parallel, ...; repeatable."),
    ] = None
    detach: Annotated[bool, execution("--detach", help="Submit the SLURM jobs and exit.")] = False
    checkpoint_minutes: Annotated[float, execution(min=0.0, help="Minutes between checkpoints of a training.")] = 5.0

    measure: Annotated[bool, output(help="Measure the cost of the methods before training.")] = True
    dry_run: Annotated[bool, output("--dry-run", help="Print the plan, with disk and time, and exit.")] = False
    fresh: Annotated[
        bool, output("--fresh", help="Run finished runs again; the old ones are kept in .old/ of --results.")
    ] = False

    data_root: DataRoot = None
    plugin: Plugin = None
    results: Results = Path("results")
    reports: Reports = Path("reports")
    cache: Cache = None
