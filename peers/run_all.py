"""`python -m peers.run_all`: run the comparisons, print their tables, and write their JSON under peers/results/."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)
WIDTH = 172  # columns of a printed table without a terminal
ROUNDS = {"step": 12, "harness": 12, "views": 12}


@app.command()
def main(
    only: Annotated[
        str, typer.Option(help=f"Comparisons, separated by commas: {', '.join(ROUNDS)}; all by default.")
    ] = "",
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of each comparison; 12 by default.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch; by default the number of cores.")] = 0,
    results: Annotated[Path | None, typer.Option(help="Folder for the JSON; peers/results by default.")] = None,
) -> None:
    """Compare our speed with that of other libraries, paired and interleaved."""
    names = [name.strip() for name in only.split(",")] if only else list(ROUNDS)
    for name in names:
        if name not in ROUNDS:
            raise typer.BadParameter(f"unknown comparison '{name}': choose from {', '.join(ROUNDS)}.")
    import importlib

    import torch
    from rich.console import Console

    from bench.records.environment import raise_allocator_thresholds
    from peers import outcome

    raise_allocator_thresholds()
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    for name in names:
        comparison = importlib.import_module(f"peers.{name}")
        rows = comparison.measure(rounds or ROUNDS[name])
        outcome.show(comparison.ABOUT, rows, console)
        console.print(f"Written to {outcome.save(name, comparison.ABOUT, rows, results or outcome.RESULTS)}\n")


if __name__ == "__main__":
    app()
