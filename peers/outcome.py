"""Results of a comparison: rows of two times and their ratio, printed as a table and saved as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.measure.paired import PairedTimes
from bench.records.environment import environment
from bench.statistics.ratios import RatioEstimate

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """Result of a comparison. `ours` and `theirs` are medians in `unit`; `ratio` is their time / our time; above 1,
    ours is faster. `target` is the required ratio, None if there is none."""

    what: str
    against: str
    ours: float
    theirs: float
    unit: str
    ratio: RatioEstimate
    target: float | None
    rounds: int
    repeated_rounds: int
    disturbed_rounds: int

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        if self.ratio.low >= self.target:
            return "reached"
        return "missed" if self.ratio.high < self.target else "undecided"


def row(times: PairedTimes, ours: str, theirs: str, what: str, target: float | None, unit: str, per_call: float) -> Row:
    """Row of two timed calls. `unit` is "ms" if a call has `per_call` steps, "images/s" if it has `per_call` images."""
    seconds = times.median(ours), times.median(theirs)
    a, b = (1e3 * s / per_call if unit == "ms" else per_call / s for s in seconds)
    rounds = len(times.seconds[ours])
    return Row(what, theirs, a, b, unit, times.speedup(ours, theirs), target, rounds, times.repeated, times.disturbed)


def save(name: str, about: str, rows: Sequence[Row], folder: Path = RESULTS) -> Path:
    """Write the rows with machine, versions and date to `<name>.json`, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    found = environment(torch.get_num_threads())
    found["versions"]["lightly"] = _version("lightly")
    content = {
        "name": name,
        "about": about,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": found,
        "rows": [{**asdict(one), "verdict": one.verdict} for one in rows],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def show(about: str, rows: Sequence[Row], console: Console) -> None:
    table = Table(title=about, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("what", "against"):
        table.add_column(column, overflow="fold")
    for column in ("ours", "theirs", "unit", "their time / ours", "at least", ""):
        table.add_column(column, justify="right")
    for one in rows:
        table.add_row(
            one.what,
            one.against,
            f"{one.ours:.4g}",
            f"{one.theirs:.4g}",
            one.unit,
            f"{one.ratio.median:.3f} \\[{one.ratio.low:.3f}, {one.ratio.high:.3f}]",
            "" if one.target is None else f"{one.target:.2f}",
            one.verdict,
        )
    console.print(table)
    bad = max((one.disturbed_rounds for one in rows), default=0)
    if bad:
        console.print(f"Rounds kept although other processes were running: up to {bad}. Measure on an idle machine.")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
