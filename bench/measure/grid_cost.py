"""The paired measurement that goes with a grid: all its methods, with the encoder and the training that it trains."""

from __future__ import annotations

from pathlib import Path

from bench.specs.grid_spec import Suite
from methods.names import Method


def contenders(suite: Suite) -> list[Method]:
    """The grid's methods that have a cost: all but the floors."""
    return [method for method in suite.parsed_methods() if method.objective != "none"]


def grid_table(suite: Suite, results: Path, threads: int) -> Path:
    """Where the table of this measurement is, or will be."""
    from bench.measure.table import table_path

    return table_path(results, contenders(suite), suite.encoder, suite.train, suite.measure, threads)


def measure_grid(suite: Suite, results: Path, threads: int) -> None:
    """Measure and write the table, unless it is there."""
    from bench.measure.table import measure
    from bench.records.environment import raise_allocator_thresholds
    from bench.records.store import as_json, write_atomically

    raise_allocator_thresholds()
    path = grid_table(suite, results, threads)
    if contenders(suite) and not path.exists():
        table = measure(contenders(suite), suite.encoder, suite.train, suite.measure, threads)
        write_atomically(path, as_json(table))
