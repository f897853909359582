"""Reads a results folder into groups of runs that may be compared.

A group is one data set, split, preset, encoder and set of training settings; nothing is averaged across groups. Records
that belong to one group and differ in images, labels, subsets or science version are refused.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.analysis.read.compatible import refuse_changed_data, refuse_strangers, refuse_twins
from bench.analysis.read.groups import UNLEARNED, Arm, Group, ReportRefused, Run
from bench.records.record import CostTable, Evaluation, Record
from bench.records.run_folder import evaluation_paths, misplaced, side_files
from bench.records.seal import Sealed, read_sealed
from bench.specs.frozen import mistakes
from bench.specs.run_spec import RunSpec
from methods import ALL_TOKENS, BASELINES, MEAN, OBJECTIVES, PRUNED, SHUFFLED, STRATEGIES, place_in

NOT_OWN = (MEAN, SHUFFLED)
MODES = {
    PRUNED: "",
    ALL_TOKENS: " (all tokens at inference)",
    MEAN: " (mean selection)",
    SHUFFLED: " (selection of another image)",
}
SHOWN = 6  # runs that a refusal lists
MEND = "put the original back, or move it away and rerun the command that made it"


def read_runs(results: Path) -> list[Run]:
    """All records of `results/*/record.json` with their test evaluations.

    Raises ReportRefused for files that can't be read, were changed after they were written, or belong to another run;
    FileNotFoundError where there is no record at all.
    """
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
    for file in evaluation_paths(path.parent):
        one = parse(Evaluation, file)
        if why := misplaced(file, one, record.run_id):
            raise ReportRefused(f"{file} {why}: move it to where it belongs, or away.")
        if not one.draws:
            raise ReportRefused(f"{file} has no draw: run it again, or move its folder away.")
        if one.split == "test":
            found.append(one)
    run = Run(record, path.parent, tuple(found))
    _refuse_changed_files(run)
    return run


def _all_of(refused: list[str]) -> str:
    """One message on the runs that are refused, with at most SHOWN of them."""
    if len(refused) == 1:
        return refused[0]
    lines = "".join(f"\n- {line}" for line in refused[:SHOWN])
    more = f"\n- and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
    return f"{len(refused)} runs can't be reported:{lines}{more}"


def _check_spec(record: Record, path: Path) -> None:
    """Check that the record holds a valid RunSpec, so that what the analysis takes from it has the right types."""
    try:
        RunSpec.model_validate(record.spec)
    except ValidationError as error:
        raise ReportRefused(f"{path} can't be read as a record ({mistakes(error, 'spec')}): {MEND}.") from error


def parse(kind: type[Sealed], path: Path) -> Sealed:
    """Read a record, an evaluation or a cost table. Raises ReportRefused for one that can't be read, that has another
    schema, or that was changed after it was written."""
    reading = read_sealed(kind, path)
    if reading.intact is None:
        elsewhere = "move it to another results folder, or run it again"
        raise ReportRefused(f"{path} {reading.why}: {elsewhere if reading.state == 'other schema' else MEND}.")
    return reading.intact


def cost_tables(folder: Path) -> list[CostTable]:
    """All cost tables of a results folder, in the order of their names. Raises ReportRefused."""
    return [parse(CostTable, path) for path in sorted(folder.glob("cost/*.json"))]


def _refuse_changed_files(run: Run) -> None:
    """Raises ReportRefused where a file that the record or an evaluation names is missing or was changed: without
    predictions, intervals would be left out silently."""
    for file in side_files(run.folder, run.record, run.evaluations):
        if file.recorded and (why := file.problem()):
            raise ReportRefused(f"{file.path} {why}: {MEND}.")


def encoder_of(record: Record) -> tuple[str, int]:
    """Name and image size of the encoder."""
    encoder = record.spec.get("encoder") or {}
    return str(encoder.get("name", "?")), int(encoder.get("image_size", 0))


def _shared(record: Record) -> dict[str, Any]:
    """The settings that all methods of a comparison must share, by dotted name; the tuned learning rate is not one."""
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
    """A text that is the same for runs with the same shared settings."""
    return record.settings or json.dumps(_shared(record), sort_keys=True, default=str)


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Sort runs into groups. Raises ReportRefused where records of one group must not be compared."""
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
            arms = _arms(variants[k] + loose)
            own, others = ([a for a in arms if (a.inference in NOT_OWN) == told] for told in (False, True))
            groups.append(Group(*key, settings, tuple(own), tuple(mine), tuple(others)))
    return groups


def _same_place(record: Record, key: tuple[Any, ...]) -> bool:
    """Whether a failed run would belong to the group of this data, split, preset and encoder."""
    name = record.data.name if record.data else str((record.spec.get("data") or {}).get("name", ""))
    split = record.splits.hash if record.splits else key[1]
    return (name, split, str(record.spec.get("preset", "")), *encoder_of(record)) == key


def _arms(runs: list[Run]) -> tuple[Arm, ...]:
    """The arms of a group, each with a label that tells it from the others."""
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
        modes = {key[3] for key in rivals}
        main = inference == (PRUNED if PRUNED in modes else ALL_TOKENS)
        label += "" if main else MODES[inference]
        label += f" {UNLEARNED}" if any(run.unlearned for run in members) else ""
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
                main,
            )
        )
    return tuple(sorted(arms, key=_order))


def _order(arm: Arm) -> tuple[Any, ...]:
    """Sort key of an arm: baselines first, then methods by objective and strategy, in the order of the registry."""
    if arm.baseline:
        return (0, list(BASELINES).index(arm.strategy))
    return (1, place_in(OBJECTIVES, arm.objective), place_in(STRATEGIES, arm.strategy), arm.label)


def _without_copies(runs: list[Run]) -> list[Run]:
    """The runs of a baseline without copies: of runs with the same weights, the one with most evaluations. A baseline
    has a run for each learning rate of the other methods, and the same weights in all of them."""
    best: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        key = (run.seed, str(run.record.spec.get("labels")), run.record.weights_sha256)
        if key not in best or len(run.evaluations) > len(best[key].evaluations):
            best[key] = run
    return list(best.values())
