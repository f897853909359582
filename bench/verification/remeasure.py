"""A recorded speed-up, measured anew: this method against dense, paired.

Two measurements agree where their intervals overlap. Where they don't, but are no further apart than the noise baselines
of the two tables, nothing can be told: no ratio is known better than that of dense to itself.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from bench.measure.counters import CountersDisagree
from bench.measure.table import Measurement, measure
from bench.records.environment import machine
from bench.records.record import AA_SUFFIX, CostRow, CostTable, Record
from bench.records.seal import state_of
from bench.specs.run_spec import MeasureSpec, RunSpec
from bench.statistics.ratios import noise_floor
from bench.verification.check import FAILS, HOLDS, OPEN, Check
from bench.verification.files import Source
from datasets.limits import RECORD_BYTES, read_within

WHAT = "speed-ups"
KINDS = {"infer": "inference", "train": "step", "run": "run"}


def cost(source: Source, spec: RunSpec) -> list[Check]:
    """One check a ratio that the newest fitting table holds, or one that says why there is none."""
    method = spec.parsed
    if method.objective == "none":
        return [Check(WHAT, OPEN, "baselines are not measured")]
    if method.name == "simclr/dense":
        return [Check(WHAT, OPEN, "it is what all others are measured against")]
    tables, checks = _tables(source.folder.resolve().parent / "cost")
    fitting = [(table, row) for table in tables for row in table.rows if _about(row, source.record, spec)]
    if not fitting:
        return [*checks, Check(WHAT, OPEN, "no table in results/cost holds this method as it was trained")]
    threads = source.record.environment.get("threads")
    here = [(table, row) for table, row in fitting if (row.machine, row.threads) == (machine(), threads)]
    if not here:
        row = fitting[-1][1]
        return [
            *checks,
            Check(
                WHAT,
                OPEN,
                f"measured on {row.machine}, {row.threads} thread(s); this is {machine()}, run with {threads}",
            ),
        ]
    table, row = here[-1]
    training = row.train_ms is not None
    try:
        spent = MeasureSpec(rounds=row.rounds, batch=row.batch)
        rerun_stage = measure(Measurement([method], spec.encoder, spec.train, spent, row.threads, training))
    except (ValueError, CountersDisagree) as error:
        return [*checks, Check(WHAT, OPEN, f"they can't be measured here: {error}")]
    now = next(one for one in rerun_stage.rows if one.method == method.name)
    kinds = [kind for kind in KINDS if getattr(row, f"{kind}_speedup") is not None]
    return [*checks, *(_compared(kind, (table, row), (rerun_stage, now)) for kind in kinds)]


def _tables(folder: Path) -> tuple[list[CostTable], list[Check]]:
    """The cost tables by age, and a check for each that is not what was written."""
    tables, checks = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            content = read_within(path, RECORD_BYTES)
            table = CostTable.model_validate_json(content)
            if state_of(json.loads(content)) == "broken":
                raise ValueError("changed after it was written: its digest does not fit")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            why = f"no CostTable: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            checks.append(Check(f"cost/{path.name}", FAILS, why))
            continue
        except (OSError, ValueError, RecursionError) as error:
            checks.append(Check(f"cost/{path.name}", FAILS, str(error).splitlines()[0]))
            continue
        tables.append(table)
    return sorted(tables, key=lambda table: table.finished), checks


def _about(row: CostRow, record: Record, spec: RunSpec) -> bool:
    """Is the row about this method as this run trained it?"""
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
    what = f"{KINDS[kind]} speed-up, measured anew"
    said = f"{_text(kind, then[1])} then, {_text(kind, now[1])} now"
    busy = [when for when, (table, _) in (("then", then), ("now", now)) if table.environment.get("disturbed_rounds")]
    if busy:
        return Check(what, OPEN, f"{said}; the machine was busy {' and '.join(busy)}: measure on a quieter one")
    (low, high), (low_now, high_now) = (_ends(kind, row) for _, row in (then, now))
    gap = max(low / high_now, low_now / high)  # above 1: how far apart they are
    if gap <= 1:
        return Check(what, HOLDS, f"{said}: the intervals overlap")
    if gap <= _floor(kind, then[0]) * _floor(kind, now[0]):
        return Check(what, OPEN, f"{said}: apart, but no further than dense was from itself")
    return Check(what, FAILS, f"{said}: apart, and further than dense was from itself")


def _floor(kind: str, table: CostTable) -> float:
    """The noise baseline of a table: what dense against itself shows."""
    twins = [
        row for row in table.rows if row.method.endswith(AA_SUFFIX) and getattr(row, f"{kind}_speedup") is not None
    ]
    return noise_floor(*_ends(kind, twins[0])) if twins else 1.0


def _ends(kind: str, row: CostRow) -> tuple[float, float]:
    return float(getattr(row, f"{kind}_speedup_low")), float(getattr(row, f"{kind}_speedup_high"))


def _text(kind: str, row: CostRow) -> str:
    low, high = _ends(kind, row)
    return f"{getattr(row, f'{kind}_speedup'):.2f} [{low:.2f}, {high:.2f}]"
