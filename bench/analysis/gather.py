"""A results folder -> groups of runs that may be compared.

A group is one data set, one split, one preset, one encoder and one set of training settings; across groups nothing is
averaged. Records that claim the same group but saw different images, labels, subsets or science are refused.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.analysis.groups import FLOORS, Arm, Group, ReportRefused, Run
from bench.record import Evaluation, Record


def read_runs(results: Path) -> list[Run]:
    """All records of `results/*/record.json` with their test evaluations. Raises ReportRefused on a file that
    can't be read as what it should be, FileNotFoundError where there is no record at all."""
    runs = []
    for path in sorted(results.glob("*/record.json")):
        record = parse(Record, path)
        files = sorted(path.parent.glob("evaluations/*.json"))
        evaluations = tuple(one for one in (parse(Evaluation, file) for file in files) if one.split == "test")
        runs.append(Run(record, path.parent, evaluations))
    if not runs:
        raise FileNotFoundError(f"There is no record in {results} (looked for */record.json); run bench.run first.")
    return runs


def parse(model: Any, path: Path) -> Any:
    try:
        return model.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        where = (
            "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)[:3])
            if isinstance(error, ValidationError)
            else str(error)
        )
        raise ReportRefused(
            f"{path} can't be read as a {model.__name__} ({where}); move it away or make it anew."
        ) from error


def encoder_of(record: Record) -> tuple[str, int]:
    encoder = record.spec.get("encoder") or {}
    return str(encoder.get("name", "?")), int(encoder.get("image_size", 0))


def _shared(record: Record) -> dict[str, Any]:
    """The settings that every method of a comparison must have in common, flat; the tuned learning rate is not
    one."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)
        else:
            flat[prefix] = value if not isinstance(value, list) else tuple(value)

    for part in ("train", "views", "encoder"):
        walk(part, record.spec.get(part) or {})
    flat.pop("train.lr", None)
    return flat


def _variant(record: Record) -> str:
    return record.settings or json.dumps(_shared(record), sort_keys=True, default=str)


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Sorts runs into groups; raises ReportRefused where records of one group don't belong together."""
    done: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    failed: list[Record] = []
    for run in runs:
        record = run.record
        if record.status == "failed" or record.data is None or record.splits is None:
            failed.append(record)
        elif run.evaluations:
            key = (
                record.data.name,
                record.splits.hash,
                str(record.spec.get("preset", "")),
                *encoder_of(record),
            )
            done[key].append(run)
    groups = []
    for key, members in sorted(done.items()):
        _refuse_strangers(members)
        variants: dict[str, list[Run]] = defaultdict(list)
        for run in members:
            variants[_variant(run.record)].append(run)
        trained = {k for k, v in variants.items() if any(run.record.strategy not in FLOORS for run in v)} or set(
            variants
        )
        loose = [run for k, v in variants.items() if k not in trained for run in v]
        shared = {k: _shared(variants[k][0].record) for k in trained}
        names = {name for one in shared.values() for name in one}
        varying = {name for name in names if len({repr(one.get(name)) for one in shared.values()}) > 1}
        for k in sorted(trained):
            mine = [r for r in failed if _same_place(r, key) and (len(trained) == 1 or _variant(r) == k)]
            settings = {name: shared[k].get(name) for name in varying}
            groups.append(Group(*key, settings, _arms(variants[k] + loose), tuple(mine)))
    return groups


def _same_place(record: Record, key: tuple[Any, ...]) -> bool:
    name = record.data.name if record.data else str((record.spec.get("data") or {}).get("name", ""))
    split = record.splits.hash if record.splits else key[1]
    return (name, split, str(record.spec.get("preset", "")), *encoder_of(record)) == key


def _refuse_strangers(runs: list[Run]) -> None:
    def check(what: str, values: Iterable[tuple[str, Any]]) -> None:
        by_value: dict[str, list[str]] = defaultdict(list)
        for run_id, value in values:
            by_value[str(value)].append(run_id)
        if len(by_value) > 1:
            parts = [
                f"{value[:60]} in {', '.join(sorted(set(ids))[:3])}{' ...' if len(set(ids)) > 3 else ''}"
                for value, ids in sorted(by_value.items(), key=lambda item: -len(item[1]))
            ]
            raise ReportRefused(
                f"Records of the same data, split and preset differ in {what}: {'; '.join(parts)}. They can't"
                " be compared; move the ones that don't belong to another results folder, or run them again."
            )

    identities: dict[str, Callable[[Any], Any]] = {
        "the data's fingerprint": lambda r: r.data.fingerprint,
        "the findings": lambda r: r.data.label_names,
        "the training split": lambda r: r.splits.train.hash,
        "the validation split": lambda r: r.splits.val.hash,
        "the test split": lambda r: r.splits.test.hash,
        "the science version of the code": lambda r: r.science_version,
    }
    for what, of in identities.items():
        check(what, [(run.record.run_id, of(run.record)) for run in runs])
    subsets: dict[tuple[float, int], list[tuple[str, str]]] = defaultdict(list)
    ways: dict[tuple[str, float], list[tuple[str, str]]] = defaultdict(list)
    for run in runs:
        for one in run.evaluations:
            for draw in one.draws:
                subsets[one.labels, draw.draw].append((run.record.run_id, draw.subset.hash))
            if run.record.strategy not in FLOORS:
                ways[one.probe, one.labels].append((run.record.run_id, one.settings))
    for (probe, labels), values in ways.items():
        check(f"how they were evaluated ({probe}, {labels:g} %)", values)
    for (labels, number), values in subsets.items():
        check(f"the labelled images of draw {number} at {labels:g} %", values)


def _arms(runs: list[Run]) -> tuple[Arm, ...]:
    found: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        record = run.record
        for inference in sorted({one.inference for one in run.evaluations}):
            rate = (record.spec.get("train") or {}).get("lr") if record.strategy not in FLOORS else None
            found[record.method, record.keep, rate, inference].append(run)
    arms = []
    for (method, keep, rate, inference), members in found.items():
        members = sorted(_without_copies(members) if method in FLOORS else members, key=lambda run: run.seed)
        _refuse_twins(method, inference, members)
        label, rivals = method, [key for key in found if key[0] == method]
        if len({key[1] for key in rivals}) > 1:
            label += f" keep {keep:g}" if keep is not None else ""
        if len({key[2] for key in rivals if key[1] == keep}) > 1:
            label += f" lr {rate:g}"
        if len({key[3] for key in rivals}) > 1 and inference == "dense":
            label += " (all tokens at inference)"
        first = members[0].record
        arms.append(
            Arm(
                label,
                method,
                first.objective,
                first.strategy,
                keep,
                first.keep_effective,
                inference,
                first.train_execution,
                tuple(members),
            )
        )
    return tuple(sorted(arms, key=_order))


_STRATEGIES = (
    "untrained",
    "supervised",
    "dense",
    "sparsecontrast",
    "dynamicvit",
    "tokenlearner",
    "topk",
    "evit",
    "tome",
    "fixed",
    "patchdropout",
)


def _order(arm: Arm) -> tuple[Any, ...]:
    rank = _STRATEGIES.index(arm.strategy) if arm.strategy in _STRATEGIES else len(_STRATEGIES)
    objective = {"none": 0, "simclr": 1, "moco": 2}.get(arm.objective, 3)
    return (0 if arm.floor else 1, objective, rank, arm.label)


def _without_copies(runs: list[Run]) -> list[Run]:
    """Of a floor's runs with the same weights (another learning rate means another run, but nothing to a floor) the one
    that was evaluated most."""
    best: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        key = (run.seed, str(run.record.spec.get("labels")), run.record.weights_sha256)
        if key not in best or len(run.evaluations) > len(best[key].evaluations):
            best[key] = run
    return list(best.values())


def _refuse_twins(method: str, inference: str, runs: list[Run]) -> None:
    seen: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        for one in run.evaluations:
            if one.inference != inference or not run.own(one.labels):
                continue
            other = seen.setdefault((run.seed, one.probe, one.labels), run)
            if other is not run:
                raise ReportRefused(
                    f"Two runs claim to be {method}, seed {run.seed}, {one.probe} at {one.labels:g} %:"
                    f" {other.record.run_id} and {run.record.run_id}. Move one of them to another results"
                    " folder."
                )
