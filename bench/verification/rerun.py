"""Reruns a record and compares: equal weights where they must be equal, else accuracy within intervals.

On the same machine, with the same versions and number of threads, a run on a CPU is the same to the last bit, so the
weights must be equal. Elsewhere sums are rounded differently, and training amplifies such differences, so accuracy is
compared: each of the two macro AUROCs must lie in the other's 95 % interval. It takes both directions, so that a wide
interval of one's own does not help. That interval is over test patients, whom both runs share: it does not test for a
difference, but measures how precise the record claims to be. The stored checkpoint must also have the recorded accuracy
(`rescore.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.records.environment import conditions
from bench.records.record import Evaluation, Record
from bench.records.run_folder import read_lesions
from bench.specs.run_spec import RunSpec
from bench.training.history import ProgressCallback
from bench.verification import files, predictions, recount
from bench.verification.check import FAILS, HOLDS, OPEN, TOLERANCE, Check, differences, judged
from bench.verification.files import Source
from bench.verification.reconstruct import NO_SETTINGS, rerun
from bench.verification.rescore import close, rescore
from methods import SUPERVISED

UNLIKE = "the weights differ, so only accuracy is compared"


def compare_rerun(recorded: Source, spec: RunSpec, cache: Path | None, progress: ProgressCallback) -> list[Check]:
    """Rerun a record with its evaluations in a temporary folder, and compare."""
    with tempfile.TemporaryDirectory(prefix="bench-verify-") as folder:
        record = rerun(recorded, spec, Path(folder), cache, progress)
        if record.status == "failed":
            failed = Check("rerun", FAILS, f"it failed this time: {record.reason}")
            return [failed, *rescore(recorded, spec, cache, progress)]
        made, _ = files.read(Path(folder) / spec.run_id)
        assert made is not None
        changed = changes(recorded.record.environment, record.environment)
        checks = [_weights(recorded.record, made.record, changed)]
        alike = checks[0].verdict == HOLDS and not changed
        checks.append(_training(recorded, made, alike))
        for name, one in recorded.evaluations.items():
            other = made.evaluations.get(name)
            what = f"{name} of the rerun"
            if not one.spec:
                checks.append(Check(what, OPEN, NO_SETTINGS))
            elif other is None:
                checks.append(Check(what, FAILS, "a run of this spec has no such evaluation"))
            else:
                checks.append(_evaluation(what, name, recorded, made) if alike else within(what, one, other))
    return checks if alike else [*checks, *rescore(recorded, spec, cache, progress)]


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The conditions that changed since any part of the training, of all that weights depend on to the last bit."""
    found = list(differences(conditions(then), conditions(now)))
    for also in then.get("also_trained_under", []):
        found += [f"{what} (for a part of the training)" for what in differences(also, conditions(now))]
    return [*found, "a GPU sums in no fixed order"] if torch.cuda.is_available() else found


def _weights(recorded: Record, made: Record, changed: list[str]) -> Check:
    """Compare the weights; where conditions changed, they need not be equal."""
    what, then, now = "weights of the rerun", recorded.weights_sha256, made.weights_sha256
    if then == now:
        return Check(what, HOLDS, f"equal, {then[:12]}" + (f", although {changed[0]}" if changed else ""))
    if changed:
        return Check(what, OPEN, f"they can't be equal to the last bit ({'; '.join(changed)}): {UNLIKE}")
    commits = [str(one.environment.get("commit", ""))[:12] or "?" for one in (recorded, made)]
    by = "" if commits[0] == commits[1] else f" (commit {commits[0]} then, {commits[1]} now)"
    return Check(what, FAILS, f"{then[:12]} recorded, {now[:12]} now, with the same machine, versions and threads{by}")


def _training(recorded: Source, made: Source, alike: bool) -> Check:
    """Compare what the records state about the training itself."""
    what = "loss, learning, MACs and memory of the rerun"
    if not alike:
        return Check(what, OPEN, UNLIKE)
    one, other = recorded.record, made.record
    problems = list(differences({"learning": one.learning}, {"learning": other.learning}))
    problems += recount.macs_differences(one.macs, other.macs)
    problems += differences(_saved(one), _saved(other), "saved_bytes_per_image")
    problems += differences(_losses(recorded), _losses(made), "history")
    lesions = _lesions(recorded)  # earlier versions of the code recorded none
    problems += differences(lesions, _lesions(made), "lesions") if lesions else []
    return judged(what, problems, "equal, with history and diagnostics")


def _saved(record: Record) -> float | None:
    return record.memory.saved_bytes_per_image if record.memory else None


def _losses(one: Source) -> list[dict[str, Any]] | None:
    """The history without its speed; None where it can't be read, which another check reports."""
    try:
        return [{key: value for key, value in line.items() if key != "images_per_second"} for line in one.history()]
    except (OSError, ValueError):
        return None


def _lesions(one: Source) -> dict[str, Any] | None:
    """What is kept of lesions; None where there is no such file, or where it can't be read, which a report says."""
    findings = len(one.record.data.label_names) if one.record.data else 0
    try:
        found = read_lesions(one.folder, findings)
    except ValueError:
        return None
    return None if found is None else {name: part.tolist() for name, part in found.items()}


def _evaluation(what: str, name: str, recorded: Source, made: Source) -> Check:
    """Compare an evaluation of equal weights. It must be the same if it was made under the present conditions. One made
    elsewhere, perhaps later than the training, may differ by rounding, and within the intervals if it trained the
    network."""
    one, other = recorded.evaluations[name], made.evaluations[name]
    changed = changes(one.conditions, other.conditions) if one.conditions else []
    if not changed:
        return _equal(what, name, recorded, made)
    if one.probe == "finetune" and recorded.record.strategy != SUPERVISED:
        return within(what, one, other)
    return close(what, one, other, f"evaluated elsewhere: {changed[0]}")


def _equal(what: str, name: str, recorded: Source, made: Source) -> Check:
    """Check that an evaluation of equal weights on the same machine is the same, from the same predictions."""
    one, other = recorded.evaluations[name], made.evaluations[name]
    if not one.validation:  # recorded by an earlier version of the code
        other = other.model_copy(update={"validation": {}})
    problems = list(differences(predictions.plain(one), predictions.plain(other)))
    if not problems and recorded.predictions(name).is_file():
        try:
            then, now = (predictions.read(side.predictions(name))["scores"] for side in (recorded, made))
        except ValueError as error:
            return Check(what, FAILS, f"predictions can't be read: {error}")
        if then.shape != now.shape or not np.allclose(then, now, atol=TOLERANCE, equal_nan=True):
            problems = ["the scores of the predictions differ"]
    return judged(what, problems, f"macro AUROC {other.macro_auroc:.4f} and all else equal")


def within(what: str, recorded: Evaluation, made: Evaluation) -> Check:
    """Check that each macro AUROC lies in the other's interval."""
    pairs = ((recorded, made), (made, recorded))
    inside = all(other.interval[0] <= one.macro_auroc <= other.interval[1] for one, other in pairs)
    then, now = (f"{one.macro_auroc:.4f} [{one.interval[0]:.4f}, {one.interval[1]:.4f}]" for one in (recorded, made))
    where = "each in the other's interval" if inside else "one is outside the other's interval"
    return Check(what, HOLDS if inside else FAILS, f"macro AUROC {then} then, {now} now: {where}")
