"""Checks that records may stand in one report: records that must not be compared are refused, never averaged.

A refusal lists all differences at once, with the records that differ, and says what to do.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.analysis.read.groups import ReportRefused, Run
from methods import BASELINES

Values = Iterable[tuple[str, Any]]  # (run, value)
SHOWN = 6  # differences that are listed

IDENTITIES: dict[str, Callable[[Any], Any]] = {
    "the data's fingerprint": lambda record: record.data.fingerprint,
    "the findings": lambda record: ", ".join(record.data.label_names),
    "the training split": lambda record: record.splits.train.hash,
    "the validation split": lambda record: record.splits.val.hash,
    "the test split": lambda record: record.splits.test.hash,
    "the science version of the code": lambda record: record.science_version,
}


def refuse_changed_data(runs: Sequence[Run]) -> None:
    """Raises ReportRefused where runs describe their data in the same way and had different data or splits: the files
    changed between two runs, or the code that makes or splits the data did."""
    by_source: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_source[_source(run)].append(run)
    found = []
    for members in by_source.values():
        for what, of in (("the data's fingerprint", _fingerprint), ("the split", _split)):
            found += _difference(what, [(run.folder.name, of(run)) for run in members])
    _refuse("Records with the same data set and the same way to split it differ in", found)


def refuse_strangers(runs: Sequence[Run]) -> None:
    """Raises ReportRefused where runs of one group differ in images, labels, code, or how they were evaluated."""
    found = []
    for what, of in IDENTITIES.items():
        found += _difference(what, [(run.folder.name, of(run.record)) for run in runs])
    code: dict[str, list[tuple[str, str]]] = defaultdict(list)
    subsets: dict[tuple[float, int], list[tuple[str, str]]] = defaultdict(list)
    ways: dict[tuple[str, float], list[tuple[str, str]]] = defaultdict(list)
    for run in runs:
        code[run.record.method].append((run.folder.name, str(run.record.spec.get("code", ""))))
        for one in run.evaluations:
            for draw in one.draws:
                subsets[one.labels, draw.draw].append((run.folder.name, draw.subset.hash))
            if run.record.strategy not in BASELINES:
                ways[one.probe, one.labels].append((run.folder.name, one.settings))
    for method, values in code.items():
        found += _difference(f"the code of the plug-in that defines {method}", values)
    for (probe, labels), values in ways.items():
        found += _difference(f"how they were evaluated ({probe}, {labels:g} %)", values)
    for (labels, number), values in subsets.items():
        found += _difference(f"the labelled images of draw {number} at {labels:g} %", values)
    _refuse("Records of the same data, split and preset differ in", found)


def refuse_twins(method: str, inference: str, runs: Sequence[Run]) -> None:
    """Raises ReportRefused where two runs of an arm have the same seed."""
    seen: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        for one in run.evaluations:
            if one.inference != inference or not run.own(one.labels):
                continue
            other = seen.setdefault((run.seed, one.probe, one.labels), run)
            if other is not run:
                raise ReportRefused(
                    f"Two runs have the same method, seed and evaluation ({method}, seed {run.seed}, {one.probe} at"
                    f" {one.labels:g} %): {other.folder.name} and {run.folder.name}. Move one of them to another"
                    " results folder."
                )


def _source(run: Run) -> str:
    """How the record describes its data and how they are split."""
    spec = run.record.spec
    data = {key: value for key, value in (spec.get("data") or {}).items() if key != "publish"}
    return json.dumps([data, (spec.get("encoder") or {}).get("image_size")], sort_keys=True, default=str)


def _fingerprint(run: Run) -> str:
    return run.record.data.fingerprint if run.record.data else ""


def _split(run: Run) -> str:
    return run.record.splits.hash if run.record.splits else ""


def _difference(what: str, values: Values) -> list[str]:
    """A line with each value and the runs that have it, the most common one first; none where all have the same."""
    by_value: dict[str, list[str]] = defaultdict(list)
    for where, value in values:
        by_value[str(value)].append(where)
    if len(by_value) < 2:
        return []
    parts = [
        f"{value[:60] or 'none'} in {_listed(sorted(set(names)))}"
        for value, names in sorted(by_value.items(), key=lambda item: -len(set(item[1])))
    ]
    return [f"{what}: {'; '.join(parts)}"]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _refuse(head: str, found: list[str]) -> None:
    if not found:
        return
    lines = "".join(f"\n- {line}" for line in found[:SHOWN])
    more = f"\n- and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise ReportRefused(
        f"{head}{lines}{more}\nThey can't be compared: move the ones that don't belong to another results folder "
        "(--results), or rerun them."
    )
