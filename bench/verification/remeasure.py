"""Remeasures recorded speed-ups: the method against dense, paired.

Two measurements agree if their intervals overlap. If they don't, but are no further apart than the noise floors of the
two tables, they can't be compared: no ratio is known better than that of dense to itself.
"""

from __future__ import annotations

from pathlib import Path

from bench.measure.counters import CountersDisagree
from bench.measure.table import Measurement, measure
from bench.records.environment import machine
from bench.records.record import AA_SUFFIX, CostRow, CostTable, Record
from bench.records.seal import read_sealed
from bench.specs.run_spec import MeasureSpec, RunSpec
from bench.statistics.ratios import noise_floor
from bench.verification.check import FAILS, HOLDS, OPEN, Check
from bench.verification.files import Source, verdict_on
from methods.names import REFERENCE_METHOD

WHAT = "speed-ups"
KINDS = {"infer": "inference", "train": "step", "run": "run"}


def cost(source: Source, spec: RunSpec) -> list[Check]:
    """One check for each ratio in the newest table that fits, or one that says why there is none."""
    method = spec.parsed
    if method.objective == "none":
        return [Check(WHAT, OPEN, "baselines are not measured")]
    if method == REFERENCE_METHOD:
        return [Check(WHAT, OPEN, "dense is what all other methods are measured against")]
    tables, checks = _tables(source.folder.resolve().parent / "cost")
    fitting = [(table, row) for table in tables for row in table.rows if _about(row, source.record, spec)]
    if not fitting:
        return [*checks, Check(WHAT, OPEN, "no table in results/cost holds this method as it was trained")]
    threads = source.record.environment.get("threads")
    here = [(table, row) for table, row in fitting if (row.machine, row.threads) == (machine(), threads)]
    if not here:
        row = fitting[-1][1]
        why = f"measured on {row.machine} with {row.threads} thread(s); this is {machine()}, and the run had {threads}"
        return [*checks, Check(WHAT, OPEN, why)]
    table, row = here[-1]
    training = row.train_ms is not None
    try:
        spent = MeasureSpec(rounds=row.rounds, batch=row.batch)
        remeasured = measure(Measurement([method], spec.encoder, spec.train, spent, row.threads, training))
    except (ValueError, CountersDisagree) as error:
        return [*checks, Check(WHAT, OPEN, f"they can't be measured here: {error}")]
    now = next(one for one in remeasured.rows if one.method == method.name)
    kinds = [kind for kind in KINDS if getattr(row, f"{kind}_speedup") is not None]
    return [*checks, *(_compared(kind, (table, row), (remeasured, now)) for kind in kinds)]


def _tables(folder: Path) -> tuple[list[CostTable], list[Check]]:
    """The cost tables by age, and a check for each file that can't be used."""
    tables, checks = [], []
    for path in sorted(folder.glob("*.json")):
        reading = read_sealed(CostTable, path)
        if reading.intact is None:
            checks.append(verdict_on(f"cost/{path.name}", reading))
        else:
            tables.append(reading.intact)
    return sorted(tables, key=lambda table: table.finished), checks


def _about(row: CostRow, record: Record, spec: RunSpec) -> bool:
    """Whether the row is about this method as this run trained it."""
    encoder, train = spec.encoder, spec.train
    mine = (
        spec.method,
        record.keep,
        encoder.name,
        encoder.image_size,
        encoder.channels,
        train.precision,
        train.attention,
    )
    its = (row.method, row.keep, row.encoder, row.image_size, row.channels, row.precision, row.attention)
    return mine == its and row.ramp in (None, train.ramp)


def _compared(kind: str, then: tuple[CostTable, CostRow], now: tuple[CostTable, CostRow]) -> Check:
    """Compare a recorded speed-up with the remeasured one."""
    what = f"{KINDS[kind]} speed-up, remeasured"
    both = f"{_text(kind, then[1])} then, {_text(kind, now[1])} now"
    busy = [when for when, (table, _) in (("then", then), ("now", now)) if table.environment.get("disturbed_rounds")]
    if busy:
        return Check(what, OPEN, f"{both}; the machine was busy {' and '.join(busy)}: measure on a quieter one")
    (low, high), (low_now, high_now) = (_ends(kind, row) for _, row in (then, now))
    gap = max(low / high_now, low_now / high)  # above 1: how far apart they are
    if gap <= 1:
        return Check(what, HOLDS, f"{both}: the intervals overlap")
    if gap <= _floor(kind, then[0]) * _floor(kind, now[0]):
        return Check(
            what, OPEN, f"{both}: the intervals do not overlap, but are no further apart than dense was from itself"
        )
    return Check(what, FAILS, f"{both}: the intervals are further apart than dense was from itself")


def _floor(kind: str, table: CostTable) -> float:
    """The noise floor of a table: the ratio of dense to itself."""
    twins = [
        row for row in table.rows if row.method.endswith(AA_SUFFIX) and getattr(row, f"{kind}_speedup") is not None
    ]
    return noise_floor(*_ends(kind, twins[0])) if twins else 1.0


def _ends(kind: str, row: CostRow) -> tuple[float, float]:
    return float(getattr(row, f"{kind}_speedup_low")), float(getattr(row, f"{kind}_speedup_high"))


def _text(kind: str, row: CostRow) -> str:
    low, high = _ends(kind, row)
    return f"{getattr(row, f'{kind}_speedup'):.2f} [{low:.2f}, {high:.2f}]"
