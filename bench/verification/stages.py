"""Verifies a record in two stages: first its files, then a rerun."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.records.record import Record
from bench.specs.run_spec import RunSpec
from bench.training.data import RunData
from bench.training.history import ProgressCallback
from bench.verification import files, predictions, recount
from bench.verification.check import FAILS, OPEN, Check
from bench.verification.files import Source
from bench.verification.identity import identity
from bench.verification.reconstruct import run_data_of
from bench.verification.remeasure import cost
from bench.verification.rerun import compare_rerun
from datasets import REGISTRY


@dataclass(frozen=True)
class FileChecks:
    """The checks on the files of a record; without a spec it can't be rerun."""

    folder: Path
    checks: tuple[Check, ...]
    source: Source | None = None
    spec: RunSpec | None = None


def check_files(folder: Path, data_root: Path | None, cache: Path | None) -> FileChecks:
    """Check a record without training. Raises ValueError or FileNotFoundError for what the user has to fix: data that
    are not where they should be, a plug-in that is not given."""
    found, checks = files.read(folder)
    if found is None:
        return FileChecks(folder, tuple(checks))
    record = found.record
    if record.status == "failed":
        checks.append(Check("run", OPEN, f"it failed, so there is nothing to compare: {record.reason}"))
        return FileChecks(folder, tuple(checks))
    checks.append(files.weights(found))
    spec, about = identity(found)
    checks += about
    if spec is None:
        checks.append(Check("data, splits, MACs, accuracy", OPEN, "this spec can't be rerun"))
        return FileChecks(folder, tuple(checks))
    if data_root is not None and REGISTRY[spec.data.name].root != "none":
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"root": str(data_root.resolve())})})
    run_data = run_data_of(spec, cache)
    checks.append(_data(record, spec, run_data))
    if checks[-1].verdict == FAILS:
        checks.append(Check("splits, MACs, accuracy", OPEN, "the data are not those of the record"))
        return FileChecks(folder, tuple(checks))
    checks += [
        recount.splits(found, run_data),
        recount.macs(found, spec, run_data),
        recount.history(found, spec, run_data),
    ]
    checks += predictions.evaluations(found, spec, run_data)
    return FileChecks(folder, tuple(checks), found, spec)


def check_rerun(checked: FileChecks, cache: Path | None, measure: bool, progress: ProgressCallback) -> list[Check]:
    """Rerun a record and compare, and `measure` its speed-ups again; no check where it can't be rerun."""
    if checked.source is None or checked.spec is None:
        return []
    checks = compare_rerun(checked.source, checked.spec, cache, progress)
    return [*checks, *(cost(checked.source, checked.spec) if measure else [])]


def _data(record: Record, spec: RunSpec, run_data: RunData) -> Check:
    if spec.fingerprint != run_data.dataset.fingerprint:
        why = f"fingerprint: {spec.fingerprint[:12]} recorded, {run_data.dataset.fingerprint[:12]} found"
        return Check("data", FAILS, f"{why} (if the data are elsewhere, use --data-root)")
    return recount.data(record, run_data)
