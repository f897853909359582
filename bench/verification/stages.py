"""A record, verified: first all that its files tell, then the run made anew."""

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
class Looked:
    """What the files of a record told; without a spec there is nothing to make anew."""

    folder: Path
    checks: tuple[Check, ...]
    source: Source | None = None
    spec: RunSpec | None = None


def look(folder: Path, data_root: Path | None, cache: Path | None) -> Looked:
    """All that can be told without training. Raises ValueError or FileNotFoundError for what the user has to mend:
    data that are not where they should be, a plug-in that is not given."""
    found, checks = files.read(folder)
    if found is None:
        return Looked(folder, tuple(checks))
    record = found.record
    if record.status == "failed":
        checks.append(Check("run", OPEN, f"it failed, and left nothing to compare: {record.reason}"))
        return Looked(folder, tuple(checks))
    checks.append(files.weights(found))
    spec, told = identity(found)
    checks += told
    if spec is None:
        checks.append(Check("data, splits, MACs, accuracy", OPEN, "nothing can be made again from this spec"))
        return Looked(folder, tuple(checks))
    if data_root is not None and REGISTRY[spec.data.name].root != "none":
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"root": str(data_root.resolve())})})
    run_data = run_data_of(spec, cache)
    checks.append(_data(record, spec, run_data))
    if checks[-1].verdict == FAILS:
        checks.append(Check("splits, MACs, accuracy", OPEN, "the data are not those of the record"))
        return Looked(folder, tuple(checks))
    checks += [
        recount.splits(found, run_data),
        recount.macs(found, spec, run_data),
        recount.history(found, spec, run_data),
    ]
    checks += predictions.evaluations(found, spec, run_data)
    return Looked(folder, tuple(checks), found, spec)


def rerun_stage(looked: Looked, cache: Path | None, measure: bool, progress: ProgressCallback) -> list[Check]:
    """The run made anew, and its speed-ups measured anew if it is to be; nothing where it can't be."""
    if looked.source is None or looked.spec is None:
        return []
    checks = compare_rerun(looked.source, looked.spec, cache, progress)
    return [*checks, *(cost(looked.source, looked.spec) if measure else [])]


def _data(record: Record, spec: RunSpec, run_data: RunData) -> Check:
    if spec.fingerprint != run_data.dataset.fingerprint:
        said = f"fingerprint: {spec.fingerprint[:12]} recorded, {run_data.dataset.fingerprint[:12]} found"
        return Check("data", FAILS, f"{said} (if they lie elsewhere, say where with --data-root)")
    return recount.data(record, run_data)
