"""Tables of paired times: at the scale of the runs, and at the scale of the literature, ViT-S/16 at 224 px.

The second table comes from the results folder if it has tables of that scale measured on this machine: the one with
most methods or, among several, the newest. Otherwise it comes from the tables committed with the code, and the report
names the machine. Nothing is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bench.analysis.judge.speedups import Elsewhere, cost_of, floor_of, ramp_of, speed_of
from bench.analysis.read.frames import table_frame
from bench.analysis.read.groups import Group
from bench.analysis.read.results import cost_tables
from bench.analysis.show.cells import NONE, keep_cell
from bench.analysis.show.document import Table
from bench.records.environment import machine
from bench.records.record import AA_SUFFIX, RAMPS, CostTable
from bench.statistics.ratios import interval_name
from methods.names import REFERENCE_METHOD

UNMEASURED = "not measured"
LARGE, SIZE = "vit_small_patch16_224", 224
COMMITTED = Path(__file__).parents[3] / "results" / "reference"


def times(group: Group, frame: pd.DataFrame) -> Table | None:
    """Paired times at the scale of the runs; None if nothing was measured."""
    rows, floors, settings, intervals = [], set(), set(), set()
    for arm in group.trained:
        row = cost_of(arm, group, frame)
        if row is None:
            rows.append((arm.label, keep_cell(arm), arm.train_execution, *[UNMEASURED] * 5))
            continue
        speeds = [speed_cell(row, kind) for kind in ("infer", "train", "run")]
        spent = [number(row["infer_ms"], ".3g"), number(row["train_ms"], ".3g")]
        rows.append((arm.label, keep_cell(arm), arm.train_execution, *spent, *speeds))
        if not pd.isna(row["aa_infer_low"]):
            floors.add(floor_text(row))
        intervals.add(interval_name(int(row["rounds"])))
        settings.add(
            f"{row['machine']}, {row['device']}, threads {row['threads']}, {row['precision']}, batch"
            f" {row['batch']}, {channels_text(row['channels'])},"
            f" {rounds_text(row['rounds'], row['repeated_rounds'], row['disturbed_rounds'])}"
        )
    if not settings:
        return None
    note = (
        "Times are in ms per image. Speed-up: time of dense SimCLR divided by the time of the method, both interleaved"
        f" in one process, median over rounds [{' or '.join(sorted(intervals))}]; above 1, the method is faster. Step:"
        " at the target keep ratio. Run: all steps, with the ramp. Times do not include making the views, which takes"
        " the same time for every method and would bring all ratios closer to 1. "
    )
    if floors:
        note += f"{'; '.join(sorted(floors))} "
    else:
        note += "Dense was not measured against itself, so the noise floor is unknown. "
    note += "Measured on: " + "; ".join(sorted(settings)) + "."
    head = ("method", "keep", "training", "inference ms", "step ms", "inference speed-up", "step speed-up")
    title = f"Paired time, {group.encoder} at {group.image_size} px"
    return Table(title, (*head, "run speed-up"), tuple(rows), note)


def ramps(group: Group, frame: pd.DataFrame) -> Table | None:
    """Speed-up of a whole run by ramp, for methods with one; None if no table has it."""
    rows, own = [], set()
    for arm in group.trained:
        row = cost_of(arm, group, frame)
        if row is None or pd.isna(row[f"run_speedup_ramp_{RAMPS[0]:g}"]):
            continue
        own.add(ramp_of(arm))
        cells = (speed_cell(row, "run", ramp) for ramp in RAMPS)
        rows.append((arm.label, keep_cell(arm), *cells, speed_cell(row, "train")))
    if not rows:
        return None
    these = " and ".join(f"{ramp:g}" for ramp in sorted(one for one in own if one is not None))
    note = (
        "Ramp: the share of a run in which the keep ratio falls from 1 to its target. The speed-up of a run approaches"
        " that of a step as the ramp gets shorter. All columns come from the same measured steps; the noise floor is"
        f" that of runs in the table above. These runs were trained with ramp {these}: their accuracy, and the verdicts"
        " on it, are of that ramp alone."
    )
    heads = (f"run speed-up, ramp {ramp:g}" for ramp in RAMPS)
    title = f"Run speed-up by ramp, {group.encoder} at {group.image_size} px"
    return Table(title, ("method", "keep", *heads, "step speed-up"), tuple(rows), note)


def floor_text(row: pd.Series) -> str:
    """Sentences on the noise floor of the row's table."""
    parts = []
    for kind, what in (("infer", "inference"), ("train", "step"), ("run", "run")):
        if not pd.isna(row[f"aa_{kind}_low"]):
            floor = floor_of(row, kind)
            own = f"[{row[f'aa_{kind}_low']:.2f}, {row[f'aa_{kind}_high']:.2f}]"
            parts.append(f"{what} {1 / floor:.2f} to {floor:.2f} {own}")
    return (
        f"Noise floor, with the interval of dense against itself: {'; '.join(parts)}. A speed-up whose interval"
        " overlaps the floor is shown as “no difference seen”."
    )


def speed_cell(row: pd.Series, kind: str, ramp: float | None = None) -> str:
    """`1.42 [1.39, 1.46]`: a speed-up with its interval, or why it has none."""
    speed = speed_of(row, kind, ramp)
    if speed is None:
        return UNMEASURED
    if row["method"] == REFERENCE_METHOD.name:
        return "1 (reference)"
    if speed.no_difference and not row["method"].endswith(AA_SUFFIX):
        return f"no difference seen [{speed.low:.2f}, {speed.high:.2f}]"
    return f"{speed.value:.2f} [{speed.low:.2f}, {speed.high:.2f}]"


def rounds_text(rounds: int, repeated: int, disturbed: int) -> str:
    """Number of rounds, with those repeated and disturbed because other processes were running."""
    text = f"{rounds} rounds ({repeated} repeated)"
    kept = "these speed-ups decide no claim; measure them on an idle machine"
    return f"{text}, {disturbed} of them disturbed by other processes, so that {kept}" if disturbed else text


def number(value: float, form: str) -> str:
    return UNMEASURED if pd.isna(value) else f"{value:{form}}"


@dataclass(frozen=True)
class LargeTable:
    """A cost table of ViT-S/16 at 224 px; `own` if it is from the results folder and measured on this machine."""

    table: CostTable
    own: bool

    @property
    def machine(self) -> str:
        return self.table.rows[0].machine

    def elsewhere(self, group: Group) -> Elsewhere | None:
        """The table as a source for claims on a group that was trained at another scale; None at the same scale."""
        first = self.table.rows[0]
        if (group.encoder, group.image_size) == (first.encoder, first.image_size):
            return None
        whose = "" if self.own else ", measured on another machine"
        where = f"{first.encoder} at {first.image_size} px, {channels_text(first.channels)}{whose}"
        return Elsewhere(table_frame(self.table), where)


def channels_text(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


def large_table(results: Path, committed: Path = COMMITTED) -> LargeTable | None:
    """The table with most methods measured on this machine, else of those committed; None if there is none."""
    here = machine()
    mine = [table for table in _large(results) if table.rows[0].machine == here]
    if mine:
        return LargeTable(mine[-1], own=True)
    others = _large(committed)
    return LargeTable(others[-1], own=False) if others else None


def _large(folder: Path) -> list[CostTable]:
    """Tables of ViT-S/16 at 224 px that include training, sorted by number of methods, then by time."""
    wanted = [
        table
        for table in cost_tables(folder)
        if table.rows
        and table.rows[0].encoder.split(".")[0] == LARGE
        and table.rows[0].image_size == SIZE
        and table.rows[0].train_ms is not None
    ]
    return sorted(wanted, key=lambda one: (len({row.method for row in one.rows}), one.finished))


def at_large_scale(found: LargeTable) -> Table:
    """The cost table as a table of a report."""
    frame, first = table_frame(found.table), found.table.rows[0]
    rows = []
    for _, row in frame.iterrows():
        rows.append(
            (
                str(row["method"]),
                NONE if pd.isna(row["keep"]) else f"{row['keep']:g}",
                str(row["train_execution"]),
                number(row["infer_ms"], ".1f"),
                speed_cell(row, "infer"),
                number(row["infer_time_over_macs"], ".2f"),
                number(row["train_ms"], ".1f"),
                speed_cell(row, "train"),
                number(row["train_time_over_macs"], ".2f"),
                speed_cell(row, "run"),
                number(row["saved_mib"], ".1f"),
                *([number(row["peak_mib"], ".0f")] if frame["peak_mib"].notna().any() else []),
            )
        )
    head = (
        *("method", "keep", "training", "inference ms", "inference speed-up", "inference time / MACs"),
        *("step ms", "step speed-up", "step time / MACs", "run speed-up", "saved MiB"),
        *(["peak MiB"] if frame["peak_mib"].notna().any() else []),
    )
    whose = "this machine" if found.own else "another machine (committed with the code)"
    repeated = rounds_text(first.rounds, first.repeated_rounds, found.table.environment.get("disturbed_rounds", 0))
    note = (
        "ms and saved MiB are per image, those of a step for both views. Peak MiB: of training with the whole batch, in"
        " a separate process. Memory is that at the target keep ratio; a run with a ramp starts with that of dense."
        " Speed-up: time of dense SimCLR divided by the time of the method, median over rounds"
        f" [{interval_name(first.rounds)}]. Time / MACs: the speed-up divided by the ratio of MACs, dense to method."
        " Run: the whole pre-training with its ramp. "
        f"{floor_text(frame.iloc[0])} Measured on {whose}: {first.machine}, {first.device}, threads {first.threads},"
        f" {first.precision}, batch {first.batch}, {channels_text(first.channels)}, {repeated},"
        f" {found.table.finished[:10]}."
    )
    return Table(f"Paired time and memory, {first.encoder} at {first.image_size} px", head, tuple(rows), note)
