"""Printing a cost table."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from bench.records.record import PARTS, CostRow, CostTable
from bench.statistics.ratios import interval_name, no_difference, noise_floor

UNKNOWN = "The number of tokens that it keeps is learned; the record of a trained run has its MACs."
KINDS = {"infer": "inference", "train": "step", "run": "whole run"}


def print_costs(table: CostTable, console: Console) -> None:
    """Print a cost table: speed-ups with their intervals, beside those expected from MACs alone; the noise floor; and,
    if measured, the time of a step by part."""
    first, again = table.rows[0], table.rows[-1]
    shown = _titled(
        f"{first.encoder}, {first.image_size} px, {first.channels} channel(s), batch {first.batch}, "
        f"{first.threads} thread(s), {first.precision}, {first.rounds} rounds, {first.machine}",
        table,
    )
    trained = first.train_ms is not None
    peaks = any(row.peak_mib is not None for row in table.rows)
    columns = ["keep", "training", "inference ms", "speed-up", "by MACs", "time / MACs"]
    if trained:
        columns += ["step ms", "speed-up", "by MACs", "time / MACs", "whole run", "saved MiB"]
    for column in [*columns, *(["peak MiB"] if peaks else [])]:
        shown.add_column(column, justify="right")
    for row in table.rows:
        cells = [
            row.method.replace("[", r"\["),
            "" if row.keep is None else f"{row.keep:g}",
            row.train_execution,
            *_times(row, first, again, "infer"),
        ]
        if trained:
            saved = "" if row.saved_mib is None else f"{row.saved_mib:.2f}"
            if row.train_ms is None:
                cells += ["left out", *[""] * 4, saved]
            else:
                cells += [*_times(row, first, again, "train"), _speedup(row, again, "run"), saved]
        shown.add_row(*cells, *(["" if row.peak_mib is None else f"{row.peak_mib:.0f}"] if peaks else []))
    console.print(shown)
    console.print(_note(table), markup=False, highlight=False)
    _print_parts(table, console)


def _titled(title: str, table: CostTable) -> Table:
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("method", overflow="fold", min_width=min(40, max(len(row.method) for row in table.rows)))
    return shown


def _times(row: CostRow, first: CostRow, again: CostRow, kind: str) -> list[str]:
    """Cells of a kind: ms, speed-up, the speed-up expected from MACs alone, and the ratio of the two."""
    by_macs = getattr(first, f"{kind}_gmacs") / getattr(row, f"{kind}_gmacs")
    reached = getattr(row, f"{kind}_speedup") / by_macs
    ms = getattr(row, f"{kind}_ms")
    return [f"{ms:.3f}", _speedup(row, again, kind), f"{by_macs:.2f}", f"{reached:.2f}"]


def _speedup(row: CostRow, again: CostRow, kind: str) -> str:
    value, low, high = _interval(row, kind)
    if low == high == 1.0:  # the reference itself
        return "1"
    _, *ends = _interval(again, kind)
    if row.method == again.method or not no_difference(low, high, noise_floor(*ends)):
        return f"{value:.2f} \\[{low:.2f}, {high:.2f}]"
    return f"no difference seen \\[{low:.2f}, {high:.2f}]"


def _interval(row: CostRow, kind: str) -> tuple[float, float, float]:
    value, low, high = (float(getattr(row, f"{kind}_speedup{end}")) for end in ("", "_low", "_high"))
    return value, low, high


def _note(table: CostTable) -> str:
    first, again = table.rows[0], table.rows[-1]
    kinds = [kind for kind in KINDS if getattr(first, f"{kind}_speedup") is not None]
    floors = []
    for kind in kinds:
        value, low, high = _interval(again, kind)
        floor = noise_floor(low, high)
        floors.append(f"{KINDS[kind]} {value:.3f} [{low:.3f}, {high:.3f}], so {1 / floor:.3f} to {floor:.3f}")
    disturbed = table.environment.get("disturbed_rounds", 0)
    text = (
        f"Noise floor, from dense against itself ({again.method}): {'; '.join(floors)}. A speed-up whose interval "
        "overlaps it is shown as “no difference seen”.\n"
        "ms and saved MiB are per image, those of a step for both views. Speed-up: time of dense / time of the method, "
        f"median over rounds [{interval_name(first.rounds)}]; above 1, the method is faster. By MACs: MACs of dense / "
        "MACs of the method. Time / MACs: the speed-up divided by that ratio. Rounds repeated because other processes "
        f"were running: {first.repeated_rounds}"
    )
    text += f"; kept although they were running: {disturbed}. Measure on an idle machine." if disturbed else "."
    if any(row.peak_mib is not None for row in table.rows):
        of = "memory of the GPU" if first.peak_of == "device" else "resident memory beyond that before the model"
        text += f"\nPeak MiB: {of}, of a few training steps on the whole batch in a separate process."
    if first.train_ms is None:
        text += "\nTraining was left out at this size."
    for reason in table.environment.get("training_left_out", ()):
        text += f"\nTraining left out: {reason}."
    for unknown in table.environment.get("cost_unknown", ()):
        text += f"\nNot measured: {unknown}. {UNKNOWN}"
    for lost in table.environment.get("peaks_not_measured", ()):
        text += f"\nPeak memory not measured: {lost}."
    return text


def _print_parts(table: CostTable, console: Console) -> None:
    parts = [part for part in PARTS if any(row.part(part) for row in table.rows)]
    if not [part for part in parts if part != "views"]:
        return
    shown = _titled("Time of a step by part, ms per image, forward and backward", table)
    for part in parts:
        shown.add_column(PARTS[part], justify="right")
    for row in table.rows:
        shown.add_row(
            row.method.replace("[", r"\["), *("" if (v := row.part(p)) is None else f"{v:.3f}" for p in parts)
        )
    console.print(shown)
    note = "Steps and speed-ups do not include making the views, which takes the same time for all methods."
    console.print(note, markup=False, highlight=False)
