"""Measured costs of the arms of a group, and their speed-ups.

Rows of cost tables are matched to arms by method, encoder, size, channels, keep ratio, precision and ramp. All rows
shown for a group come from one setting (machine, device, threads, batch, precision, attention backend), so that times
from different settings never appear in one table or in one ratio.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pandas as pd

from bench.analysis.read.frames import SETTING
from bench.analysis.read.groups import Arm, Group
from bench.statistics.ratios import ENOUGH, no_difference, noise_floor
from methods import DEFAULT_OBJECTIVE, REFERENCE


@dataclass(frozen=True)
class Speed:
    """A speed-up with its interval.

    `floor` is the upper end of the noise floor of its table, 1 if unknown; `enough` says whether the rounds suffice for
    a 95 % interval; `disturbed`, whether other processes disturbed rounds that were kept; `conditions`, on what it was
    measured.
    """

    value: float
    low: float
    high: float
    floor: float = 1.0
    enough: bool = True
    disturbed: bool = False
    conditions: str = ""

    @property
    def no_difference(self) -> bool:
        """Whether the interval overlaps the noise floor."""
        return no_difference(self.low, self.high, self.floor)


def cost_of(arm: Arm, group: Group, cost: pd.DataFrame) -> pd.Series | None:
    """Newest measurement of an arm as it was trained, in the setting that is shown for its group; None if missing."""
    rows, setting = _fitting(arm, group, cost), _setting(group, cost)
    rows = [row for row in rows if tuple(row[SETTING]) == setting]
    return rows[-1] if rows else None


def _setting(group: Group, cost: pd.DataFrame) -> tuple[object, ...] | None:
    """Setting in which most arms of a group were measured; among several, the one measured last."""
    arms: dict[tuple[object, ...], set[str]] = defaultdict(set)
    last: dict[tuple[object, ...], str] = {}
    for arm in group.trained:
        for row in _fitting(arm, group, cost):
            setting = tuple(row[SETTING])
            arms[setting].add(arm.label)
            last[setting] = max(last.get(setting, ""), str(row["measured"]))
    return max(arms, key=lambda one: (len(arms[one]), last[one]), default=None)


def _fitting(arm: Arm, group: Group, cost: pd.DataFrame) -> list[pd.Series]:
    """Rows that measure an arm as it was trained, in any setting, the newest last."""
    if cost.empty or arm.baseline:
        return []
    rows = cost[(cost["method"] == arm.method) & (cost["encoder"] == group.encoder)]
    rows = rows[rows["image_size"] == group.image_size]
    rows = rows[rows["keep"].isna()] if arm.keep is None else rows[(rows["keep"] - arm.keep).abs() < 1e-6]
    spec = arm.runs[0].record.spec
    train, channels = spec.get("train") or {}, (spec.get("encoder") or {}).get("channels")
    for column, wanted in (("channels", channels), ("precision", train.get("precision")), ("ramp", train.get("ramp"))):
        if wanted is not None:  # rows of strategies without a ramp have no ramp
            rows = rows[(rows[column] == wanted) | rows[column].isna()]
    return [row for _, row in rows.iterrows()]


def floor_of(row: pd.Series, kind: str) -> float:
    """Upper end of the noise floor of the row's table; 1 if dense was not measured against itself."""
    low, high = row[f"aa_{kind}_low"], row[f"aa_{kind}_high"]
    return 1.0 if pd.isna(low) or pd.isna(high) else noise_floor(float(low), float(high))


def conditions_of(row: pd.Series) -> str:
    """Device, machine, threads, precision and batch size of a measurement, in words."""
    threads = "" if row["device"] != "cpu" else f", {row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    return f"{row['device']} ({row['machine']}{threads}), {row['precision']}, batch {row['batch']}"


def speed_of(row: pd.Series, kind: str, ramp: float | None = None) -> Speed | None:
    """Speed-up of a row over dense SimCLR (`kind`: "infer", "train", "run"); None if it was not measured. `ramp` is one
    of RAMPS, for a run with another ramp than the row's."""
    name = f"{kind}_speedup" if ramp is None else f"{kind}_speedup_ramp_{ramp:g}"
    if pd.isna(row[name]):
        return None
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    enough, disturbed = row["rounds"] >= ENOUGH, row["disturbed_rounds"] > 0
    return Speed(value, low, high, floor_of(row, kind), enough, disturbed, conditions_of(row))


def speed_up(arm: Arm, group: Group, cost: pd.DataFrame, kind: str, ramp: float | None = None) -> Speed | None:
    """Time of dense with the same objective divided by the time of an arm, with its interval; None if not measured.

    Measurements are relative to dense SimCLR. For another objective the speed-ups of two rows of one table are divided,
    with a conservative interval: the lower end of one over the upper end of the other, and vice versa.
    """
    row = cost_of(arm, group, cost)
    own = None if row is None else speed_of(row, kind, ramp)
    if row is None or own is None or arm.objective == DEFAULT_OBJECTIVE:
        return own
    dense = next((one for one in group.arms if (one.objective, one.strategy) == (arm.objective, REFERENCE)), None)
    other = cost_of(dense, group, cost) if dense else None
    base = None if other is None or other["measured"] != row["measured"] else speed_of(other, kind)
    if base is None:
        return None
    ratio = own.value / base.value, own.low / base.high, own.high / base.low
    return Speed(*ratio, own.floor, own.enough and base.enough, own.disturbed, own.conditions)


@dataclass(frozen=True)
class Elsewhere:
    """A cost table measured at another scale than that of a group; `where` names its encoder and size."""

    frame: pd.DataFrame
    where: str

    def speed_up(self, arm: Arm, kind: str, ramp: float | None = None) -> Speed | None:
        """Speed-up of the arm's method with the arm's ramp, or `ramp`; None if it was not measured, or not against
        dense of the same objective."""
        for _, row in self.frame.iterrows():
            keep = None if pd.isna(row["keep"]) else float(row["keep"])
            ramps = pd.isna(row["ramp"]) or row["ramp"] == ramp_of(arm)
            if (row["method"], keep) == (arm.method, arm.keep) and ramps and arm.objective == DEFAULT_OBJECTIVE:
                return speed_of(row, kind, ramp)
        return None


def ramp_of(arm: Arm) -> float | None:
    """Ramp of the runs of an arm; None if their records don't say."""
    ramp: float | None = (arm.runs[0].record.spec.get("train") or {}).get("ramp")
    return ramp
