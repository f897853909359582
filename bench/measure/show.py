"""A cost table for the eye."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from bench.record import CostRow, CostTable


def print_costs(table: CostTable, console: Console) -> None:
    """The paired measurement as a table: each speed-up with its interval and, beside it, what MACs alone allow."""
    first, again = table.rows[0], table.rows[-1]
    shown = Table(
        title=f"{first.encoder}, {first.image_size} px, {first.channels} channel(s), batch {first.batch}, "
        f"{first.threads} thread(s), {first.precision}, {first.rounds} rounds, {first.machine}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("method", overflow="fold", min_width=min(56, max(len(row.method) for row in table.rows)))
    columns = (
        "keep",
        "training",
        "inference ms",
        "speed-up",
        "by MACs",
        "step ms",
        "speed-up",
        "by MACs",
        "whole run",
    )
    for column in (*columns, "saved MiB"):
        shown.add_column(column, justify="right")
    for row in table.rows:
        shown.add_row(
            row.method.replace("[", r"\["),
            "" if row.keep is None else f"{row.keep:g}",
            row.train_execution,
            f"{row.infer_ms:.3f}",
            _speedup(row, again, "infer"),
            f"{first.infer_gmacs / row.infer_gmacs:.2f}",
            f"{row.train_ms:.3f}",
            _speedup(row, again, "train"),
            f"{first.train_gmacs / row.train_gmacs:.2f}",
            _speedup(row, again, "run"),
            f"{row.saved_mib:.2f}",
        )
    console.print(shown)
    disturbed = table.environment.get("disturbed_rounds", 0)
    console.print(
        "ms and MiB per image (a step: both views); speed-up = dense time / method time, above 1 is faster, median "
        f"over rounds with 95 % interval; ~ no difference seen: the interval reaches into that of {again.method}, "
        f"dense against itself. {first.repeated_rounds} round(s) were repeated for a foreign load"
        + (f", and {disturbed} kept in spite of it: measure again on a quieter machine." if disturbed else "."),
        markup=False,
        highlight=False,
    )


def _speedup(row: CostRow, again: CostRow, kind: str) -> str:
    value, low, high = (getattr(row, f"{kind}_speedup{end}") for end in ("", "_low", "_high"))
    if low == high == 1.0:  # the baseline itself
        return "1.00"
    floor_low, floor_high = (getattr(again, f"{kind}_speedup{end}") for end in ("_low", "_high"))
    alike = row.method != again.method and low <= floor_high and high >= floor_low
    return f"{'~ ' if alike else ''}{value:.2f} \\[{low:.2f}, {high:.2f}]"
