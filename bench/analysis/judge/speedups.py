"""Which measured cost belongs to an arm of the report, and what its ratios say.

Rows are matched by method, encoder, size, channels, keep ratio, precision and ramp; and all rows that a group shows
come from one setting (machine, device, threads, batch, precision, attention backend), so that rows that don't belong
together never stand in one table or share a ratio.
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
    """A speed-up with its interval, the noise floor of the table that it is from (1 where that is not known), whether
    there were rounds enough for a 95 % interval, and whether other work disturbed some that were kept."""

    value: float
    low: float
    high: float
    floor: float = 1.0
    enough: bool = True
    disturbed: bool = False

    @property
    def no_difference(self) -> bool:
        """Whether the interval reaches into the noise floor."""
        return no_difference(self.low, self.high, self.floor)


def cost_of(arm: Arm, group: Group, cost: pd.DataFrame) -> pd.Series | None:
    """The newest paired measurement of this arm as it was trained, in the setting that the group's rows share."""
    rows, setting = _fitting(arm, group, cost), _setting(group, cost)
    rows = [row for row in rows if tuple(row[SETTING]) == setting]
    return rows[-1] if rows else None


def _setting(group: Group, cost: pd.DataFrame) -> tuple[object, ...] | None:
    """The setting in which most arms of the group were measured; of several the one measured last."""
    arms: dict[tuple[object, ...], set[str]] = defaultdict(set)
    last: dict[tuple[object, ...], str] = {}
    for arm in group.arms:
        for row in _fitting(arm, group, cost):
            setting = tuple(row[SETTING])
            arms[setting].add(arm.label)
            last[setting] = max(last.get(setting, ""), str(row["measured"]))
    return max(arms, key=lambda one: (len(arms[one]), last[one]), default=None)


def _fitting(arm: Arm, group: Group, cost: pd.DataFrame) -> list[pd.Series]:
    """Rows about this arm as it was trained, in any setting, the newest last."""
    if cost.empty or arm.baseline:
        return []
    rows = cost[(cost["method"] == arm.method) & (cost["encoder"] == group.encoder)]
    rows = rows[rows["image_size"] == group.image_size]
    rows = rows[rows["keep"].isna()] if arm.keep is None else rows[(rows["keep"] - arm.keep).abs() < 1e-6]
    spec = arm.runs[0].record.spec
    train, channels = spec.get("train") or {}, (spec.get("encoder") or {}).get("channels")
    for column, wanted in (("channels", channels), ("precision", train.get("precision")), ("ramp", train.get("ramp"))):
        if wanted is not None:  # a strategy that does not ramp has none
            rows = rows[(rows[column] == wanted) | rows[column].isna()]
    return [row for _, row in rows.iterrows()]


def floor_of(row: pd.Series, kind: str) -> float:
    """The noise floor of the table that the row is from; 1 where dense was not measured against itself."""
    low, high = row[f"aa_{kind}_low"], row[f"aa_{kind}_high"]
    return 1.0 if pd.isna(low) or pd.isna(high) else noise_floor(float(low), float(high))


def speed_of(row: pd.Series, kind: str) -> Speed | None:
    """The row's own speed-up ("infer", "train", "run") over dense SimCLR; None where it was not measured."""
    if pd.isna(row[f"{kind}_speedup"]):
        return None
    value, low, high = (float(row[f"{kind}_speedup{end}"]) for end in ("", "_low", "_high"))
    return Speed(value, low, high, floor_of(row, kind), row["rounds"] >= ENOUGH, row["disturbed_rounds"] > 0)


def speed_up(arm: Arm, group: Group, cost: pd.DataFrame, kind: str) -> Speed | None:
    """Dense time of the same objective / this arm's time, with its interval; None where it was not measured.

    Measurements are relative to dense SimCLR. For another objective the ratio of two rows of one table is
    taken, with an interval that is sure to be wide enough: the worst of the one over the best of the other.
    """
    row = cost_of(arm, group, cost)
    own = None if row is None else speed_of(row, kind)
    if row is None or own is None or arm.objective == DEFAULT_OBJECTIVE:
        return own
    dense = next((one for one in group.arms if (one.objective, one.strategy) == (arm.objective, REFERENCE)), None)
    other = cost_of(dense, group, cost) if dense else None
    base = None if other is None or other["measured"] != row["measured"] else speed_of(other, kind)
    if base is None:
        return None
    ratio = own.value / base.value, own.low / base.high, own.high / base.low
    return Speed(*ratio, own.floor, own.enough and base.enough, own.disturbed)


@dataclass(frozen=True)
class Elsewhere:
    """A cost table of another scale than a group was trained at; `where`: encoder, size, machine."""

    frame: pd.DataFrame
    where: str

    def speed_up(self, arm: Arm, kind: str) -> Speed | None:
        """That of the arm's method there, with the arm's ramp; None where it was not measured, or dense of its
        objective is not what it was measured against."""
        ramp = (arm.runs[0].record.spec.get("train") or {}).get("ramp")
        for _, row in self.frame.iterrows():
            keep = None if pd.isna(row["keep"]) else float(row["keep"])
            same = (row["method"], keep) == (arm.method, arm.keep) and (pd.isna(row["ramp"]) or row["ramp"] == ramp)
            if same and arm.objective == DEFAULT_OBJECTIVE:
                return speed_of(row, kind)
        return None
