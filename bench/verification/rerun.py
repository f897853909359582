"""The run made anew, beside the record: equal weights where they must be equal, else accuracy within intervals.

On the same machine, with the same versions and as many threads, a run on a CPU is the same to the last bit, so its
weights must be. Elsewhere sums are rounded differently, and training lets such differences grow: there the rule is
about accuracy. Each of the two macro AUROCs has to lie in the other's 95 % interval; both ways, so that neither passes
for its own interval being wide. That interval is over test patients, whom both runs share: it is no test of a
difference, but the measure of what the record claims to know. And the stored checkpoint must have the recorded accuracy
(`rescored.py`).
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
from bench.specs.run_spec import RunSpec
from bench.training.history import ProgressCallback
from bench.verification import files, predictions, recount
from bench.verification.check import FAILS, HOLDS, OPEN, TOLERANCE, Check, differences, judged
from bench.verification.files import Source
from bench.verification.reconstruct import rerun
from bench.verification.rescore import close, rescore

UNLIKE = "the weights are others, so only accuracy is compared"


def compare_rerun(recorded: Source, spec: RunSpec, cache: Path | None, progress: ProgressCallback) -> list[Check]:
    """Make the run and its evaluations anew in a temporary folder, and compare."""
    with tempfile.TemporaryDirectory(prefix="bench-verify-") as folder:
        record = rerun(recorded, spec, Path(folder), cache, progress)
        if record.status == "failed":
            failed = Check("run made anew", FAILS, f"it failed this time: {record.reason}")
            return [failed, *rescore(recorded, spec, cache, progress)]
        made, _ = files.read(Path(folder) / spec.run_id)
        assert made is not None
        changed = changes(recorded.record.environment, record.environment)
        checks = [_weights(recorded.record, made.record, changed)]
        alike = checks[0].verdict == HOLDS and not changed
        checks.append(_course(recorded, made, alike))
        for name, one in recorded.evaluations.items():
            other = made.evaluations.get(name)
            what = f"{name} made anew"
            if not one.spec:
                checks.append(Check(what, OPEN, "it does not say how it was made: by an earlier version of the code"))
            elif other is None:
                checks.append(Check(what, FAILS, "a run of this spec has no such evaluation"))
            else:
                checks.append(_evaluation(what, name, recorded, made) if alike else within(what, one, other))
    return checks if alike else [*checks, *rescore(recorded, spec, cache, progress)]


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was, from the first step to the last, of all that weights depend on to the last bit."""
    found = list(differences(conditions(then), conditions(now)))
    for also in then.get("also_trained_under", []):
        found += [f"{what} (of a part of the training)" for what in differences(also, conditions(now))]
    return [*found, "a GPU adds up in no fixed order"] if torch.cuda.is_available() else found


def _weights(recorded: Record, made: Record, changed: list[str]) -> Check:
    what, said, found = "weights, trained anew", recorded.weights_sha256, made.weights_sha256
    if said == found:
        return Check(what, HOLDS, f"equal, {said[:12]}" + (f", though {changed[0]}" if changed else ""))
    if changed:
        return Check(what, OPEN, f"not to the last bit: {'; '.join(changed)}. {UNLIKE}")
    commits = [str(one.environment.get("commit", ""))[:12] or "?" for one in (recorded, made)]
    by = "" if commits[0] == commits[1] else f" (commit {commits[0]} then, {commits[1]} now)"
    return Check(what, FAILS, f"{said[:12]} recorded, {found[:12]} now, on the same machine, versions and threads{by}")


def _course(recorded: Source, made: Source, alike: bool) -> Check:
    """What the record says of the training itself."""
    what = "loss, learning, MACs, memory made anew"
    if not alike:
        return Check(what, OPEN, UNLIKE)
    one, other = recorded.record, made.record
    amiss = list(differences({"learning": one.learning}, {"learning": other.learning}))
    amiss += recount.macs_differences(one.macs, other.macs)
    amiss += differences(_saved(one), _saved(other), "saved_bytes_per_image")
    amiss += differences(_losses(recorded), _losses(made), "history")
    return judged(what, amiss, "equal, history and diagnostics included")


def _saved(record: Record) -> float | None:
    return record.memory.saved_bytes_per_image if record.memory else None


def _losses(one: Source) -> list[dict[str, Any]] | None:
    """The history without its speed; None where there is none, which is looked at elsewhere."""
    try:
        return [
            {key: value for key, value in line.items() if key != "images_per_second"} for line in recount.lines_of(one)
        ]
    except (OSError, ValueError):
        return None


def _evaluation(what: str, name: str, recorded: Source, made: Source) -> Check:
    """With equal weights: the same evaluation where it was made under these conditions, as the training was. Made
    elsewhere, on a later day perhaps, it is the same but for rounding; where it trained the network, within the
    intervals."""
    one, other = recorded.evaluations[name], made.evaluations[name]
    changed = changes(one.conditions, other.conditions) if one.conditions else []
    if not changed:
        return _equal(what, name, recorded, made)
    if one.probe == "finetune" and recorded.record.strategy != "supervised":
        return within(what, one, other)
    return close(what, one, other, f"evaluated elsewhere: {changed[0]}")


def _equal(what: str, name: str, recorded: Source, made: Source) -> Check:
    """With equal weights on the same machine: the same evaluation from the same predictions."""
    one, other = recorded.evaluations[name], made.evaluations[name]
    if not one.validation:  # by an earlier version of the code
        other = other.model_copy(update={"validation": {}})
    amiss = list(differences(predictions.plain(one), predictions.plain(other)))
    if not amiss and recorded.predictions(name).is_file():
        try:
            said, found = (predictions.read(side.predictions(name))["scores"] for side in (recorded, made))
        except ValueError as error:
            return Check(what, FAILS, f"predictions can't be read: {error}")
        if said.shape != found.shape or not np.allclose(said, found, atol=TOLERANCE, equal_nan=True):
            amiss = ["scores of the predictions are others"]
    return judged(what, amiss, f"macro AUROC {other.macro_auroc:.4f} and all else equal")


def within(what: str, recorded: Evaluation, made: Evaluation) -> Check:
    """Each macro AUROC in the other's interval."""
    pairs = ((recorded, made), (made, recorded))
    inside = all(other.interval[0] <= one.macro_auroc <= other.interval[1] for one, other in pairs)
    then, now = (f"{one.macro_auroc:.4f} [{one.interval[0]:.4f}, {one.interval[1]:.4f}]" for one in (recorded, made))
    where = "each in the other's interval" if inside else "one is outside the other's interval"
    return Check(what, HOLDS if inside else FAILS, f"macro AUROC {then} then, {now} now: {where}")
