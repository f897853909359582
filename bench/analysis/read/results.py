"""Reading a results folder and sorting its runs into groups that can be compared.

Runs of a group share data set, split, preset, encoder and training settings; results are never averaged across groups.
Records of one group that differ in their images, labels, subsets or science version are refused.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.analysis.read.compatible import refuse_changed_data, refuse_strangers, refuse_twins
from bench.analysis.read.groups import Arm, Group, ReportRefused, Run
from bench.records.record import SCHEMA_VERSION, Evaluation, Record
from bench.records.seal import state_of
from bench.records.store import evaluation_name
from bench.specs.frozen import file_sha256
from bench.specs.run_spec import RunSpec
from datasets.limits import RECORD_BYTES, read_within
from methods import ALL_TOKENS, BASELINES, OBJECTIVES, STRATEGIES, place_in

SHOWN = 6  # runs that a refusal lists
MEND = "put the original back, or move it away and give the command that made it again"


def read_runs(results: Path) -> list[Run]:
    """All records of `results/*/record.json` with their test evaluations. Raises ReportRefused on a file that can't be
    read as what it should be, that was changed since it was written, or that is another run's; FileNotFoundError where
    there is no record at all."""
    runs, refused = [], []
    for path in sorted(results.glob("*/record.json")):
        try:
            runs.append(_run(path))
        except ReportRefused as error:
            refused.append(str(error))
    if refused:
        raise ReportRefused(_all_of(refused))
    if not runs:
        raise FileNotFoundError(f"There is no record in {results} (looked for */record.json); run bench.run first.")
    return runs


def _run(path: Path) -> Run:
    """A record with its test evaluations. Raises ReportRefused."""
    record, found = parse(Record, path), []
    _check_spec(record, path)
    for file in sorted(path.parent.glob("evaluations/*.json")):
        one = parse(Evaluation, file)
        if one.run_id != record.run_id:
            raise ReportRefused(f"{file} is an evaluation of {one.run_id}, and lies in another run's folder: {MEND}.")
        name = evaluation_name(one.probe, one.labels, one.inference)
        if file.stem != name:
            raise ReportRefused(f"{file} is {name} by its content, and would be counted as another one: move it away.")
        if not one.draws:
            raise ReportRefused(f"{file} has no draw: run it again, or move its folder away.")
        if one.split == "test":
            found.append(one)
    run = Run(record, path.parent, tuple(found))
    _refuse_changed_files(run)
    return run


def _all_of(refused: list[str]) -> str:
    """What is wrong with each run, the first of them at least."""
    if len(refused) == 1:
        return refused[0]
    lines = "".join(f"\n- {line}" for line in refused[:SHOWN])
    more = f"\n- and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
    return f"{len(refused)} runs can't be reported:{lines}{more}"


def _check_spec(record: Record, path: Path) -> None:
    """What analysis takes from `spec` is a RunSpec's, so that none of it is of another kind."""
    try:
        RunSpec.model_validate(record.spec)
    except ValidationError as error:
        raise ReportRefused(f"{path} can't be read as a Record (spec.{_places(error)}); move it away.") from error


def _places(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)[:3])


def parse(model: Any, path: Path) -> Any:
    """A record, an evaluation or a cost table. Raises ReportRefused for one of another schema, one whose digest does
    not fit (where it has one), and what is none at all."""
    try:
        content = read_within(path, RECORD_BYTES)
        plain = json.loads(content)
        if isinstance(plain, dict):
            schema = plain.get("schema_version", SCHEMA_VERSION)
            if schema != SCHEMA_VERSION:
                raise ReportRefused(
                    f"{path} has schema {schema}, and this code reads {SCHEMA_VERSION}: move it to another results "
                    "folder, or run it again."
                )
            if state_of(plain) == "broken":
                raise ReportRefused(f"{path} was changed after it was written (its digest does not fit): {MEND}.")
        return model.model_validate_json(content)
    except ReportRefused:
        raise
    except (ValueError, OSError, RecursionError) as error:
        where = _places(error) if isinstance(error, ValidationError) else str(error)
        raise ReportRefused(
            f"{path} can't be read as a {model.__name__} ({where}); move it away or make it anew."
        ) from error


def _refuse_changed_files(run: Run) -> None:
    """Raises ReportRefused for a file beside a record that is not the one that the record or an evaluation names, or is
    not there: without predictions there would be no interval, and nobody would be told."""
    named = {run.folder / name: said for name, said in run.record.files.items()}
    named |= {run.predictions(one): one.predictions_sha256 for one in run.evaluations if one.predictions_sha256}
    for path, said in named.items():
        if not path.is_file():
            raise ReportRefused(f"{path} is not there, and its record names it: {MEND}.")
        if file_sha256(path) != said:
            raise ReportRefused(f"{path} is not the file that its record names (its SHA-256 does not fit): {MEND}.")


def encoder_of(record: Record) -> tuple[str, int]:
    encoder = record.spec.get("encoder") or {}
    return str(encoder.get("name", "?")), int(encoder.get("image_size", 0))


def _shared(record: Record) -> dict[str, Any]:
    """Settings that all runs of a group have in common, with dotted keys. The learning rate, which is tuned by method,
    is not one of them."""
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
    if digest := record.spec.get("weights_sha256"):
        flat["encoder.weights_sha256"] = str(digest)[:12]
    return flat


def _variant(record: Record) -> str:
    return record.settings or json.dumps(_shared(record), sort_keys=True, default=str)


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Sort runs into groups. Raises ReportRefused if records of one group can't be compared."""
    done: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    failed: list[Record] = []
    runs = list(runs)
    refuse_changed_data([run for run in runs if run.record.data is not None and run.record.splits is not None])
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
        refuse_strangers(members)
        variants: dict[str, list[Run]] = defaultdict(list)
        for run in members:
            variants[_variant(run.record)].append(run)
        trained = {k for k, v in variants.items() if any(run.record.strategy not in BASELINES for run in v)} or set(
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


def _arms(runs: list[Run]) -> tuple[Arm, ...]:
    found: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        record = run.record
        for inference in sorted({one.inference for one in run.evaluations}):
            rate = (record.spec.get("train") or {}).get("lr") if record.strategy not in BASELINES else None
            found[record.method, record.keep, rate, inference].append(run)
    arms = []
    for (method, keep, rate, inference), members in found.items():
        members = sorted(_without_copies(members) if method in BASELINES else members, key=lambda run: run.seed)
        refuse_twins(method, inference, members)
        label, rivals = method, [key for key in found if key[0] == method]
        if len({key[1] for key in rivals}) > 1:
            label += f" keep {keep:g}" if keep is not None else ""
        if len({key[2] for key in rivals if key[1] == keep}) > 1:
            label += f" lr {rate:g}"
        if len({key[3] for key in rivals}) > 1 and inference == ALL_TOKENS:
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


def _order(arm: Arm) -> tuple[Any, ...]:
    """Sort key of an arm: baselines first, then methods by objective and strategy, in the order of the registry."""
    if arm.baseline:
        return (0, list(BASELINES).index(arm.strategy))
    return (1, place_in(OBJECTIVES, arm.objective), place_in(STRATEGIES, arm.strategy), arm.label)


def _without_copies(runs: list[Run]) -> list[Run]:
    """Runs of a baseline, without duplicates: grids with other learning rates repeat a baseline with the same weights.
    Of each set of duplicates the run with most evaluations is kept."""
    best: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        key = (run.seed, str(run.record.spec.get("labels")), run.record.weights_sha256)
        if key not in best or len(run.evaluations) > len(best[key].evaluations):
            best[key] = run
    return list(best.values())
