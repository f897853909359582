"""The paired measurement that goes with a grid: all its methods, with the encoder and the training that it trains."""

from __future__ import annotations

from pathlib import Path

from bench.specs.grid_spec import GridSpec
from methods.names import Method


def timed_methods(grid: GridSpec) -> list[Method]:
    """The grid's methods that have a cost: all but the baselines."""
    return [method for method in grid.parsed_methods() if method.objective != "none"]


def grid_table(grid: GridSpec, results: Path, threads: int) -> Path:
    """Where the table of this measurement is, or will be."""
    from bench.measure.table import table_path

    return table_path(results, timed_methods(grid), grid.encoder, grid.train, grid.measure, threads)


def measure_grid(grid: GridSpec, results: Path, threads: int) -> None:
    """Measure and write the table, unless it is there."""
    from bench.measure.table import measure
    from bench.records.environment import raise_allocator_thresholds
    from bench.records.store import as_json, write_atomically

    raise_allocator_thresholds()
    path = grid_table(grid, results, threads)
    if timed_methods(grid) and not path.exists():
        table = measure(timed_methods(grid), grid.encoder, grid.train, grid.measure, threads)
        write_atomically(path, as_json(table))
