"""The paired measurement of a grid: all its methods, with its encoder and training settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.specs.grid_spec import GridSpec
from methods.names import Method

if TYPE_CHECKING:
    from bench.measure.table import Measurement


def timed_methods(grid: GridSpec) -> list[Method]:
    """Methods of a grid whose cost is measured: all but the baselines."""
    return [method for method in grid.parsed_methods() if method.objective != "none"]


def grid_table(grid: GridSpec, results: Path, threads: int) -> Path:
    """Path of the cost table of a grid, whether or not it exists."""
    return _measurement(grid, threads).path(results)


def measure_grid(grid: GridSpec, results: Path, threads: int) -> None:
    """Measure the cost of a grid and write the table, unless it exists."""
    from bench.measure.table import measure
    from bench.records.environment import raise_allocator_thresholds
    from bench.records.store import as_json, write_atomically

    raise_allocator_thresholds()
    path = grid_table(grid, results, threads)
    if timed_methods(grid) and not path.exists():
        write_atomically(path, as_json(measure(_measurement(grid, threads))))


def _measurement(grid: GridSpec, threads: int) -> Measurement:
    from bench.measure.table import Measurement

    return Measurement(timed_methods(grid), grid.encoder, grid.train, grid.measure, threads)
