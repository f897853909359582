"""Rescores the stored checkpoint: a check of accuracy where the training can't be repeated to the last bit.

Without training, features differ between two machines by rounding alone. So accuracy must be the same except for what
rounding does to a probe: within a twentieth of its 95 % interval. (Between two instruction sets the evaluations of the
quick preset differed by up to 0.0001, one of kNN by 0.001, with intervals about 0.05 wide.)
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.records.record import Evaluation
from bench.records.store import Store
from bench.specs.run_spec import RunSpec
from bench.training.history import ProgressCallback
from bench.verification import files
from bench.verification.check import FAILS, OPEN, TOLERANCE, Check, judged
from bench.verification.files import Source
from bench.verification.reconstruct import rerun

ROUNDING = 0.05  # of the width of an interval


def rescore(recorded: Source, spec: RunSpec, cache: Path | None, progress: ProgressCallback) -> list[Check]:
    """Repeat the evaluations that do not train the encoder from the checkpoint, in a temporary folder, and compare."""
    named = {
        name: one
        for name, one in recorded.evaluations.items()
        if one.spec and (one.probe != "finetune" or spec.labels is not None)
    }
    what, checkpoint = "accuracy from the checkpoint", recorded.checkpoint.path
    if not named or not checkpoint.is_file():
        return [
            Check(
                what, OPEN, "there is no checkpoint" if named else "there is no evaluation that can be repeated from it"
            )
        ]
    with tempfile.TemporaryDirectory(prefix="bench-verify-") as folder:
        store = Store(Path(folder))
        store.write_record(recorded.record)  # with a digest that fits, whatever the recorded one is
        place = store.folder(spec.run_id)
        shutil.copyfile(checkpoint, place / checkpoint.name)
        record = rerun(replace(recorded, evaluations=named), spec, Path(folder), cache, progress)
        if record.status == "failed":
            return [Check(what, FAILS, f"it can't be evaluated: {record.reason}")]
        made, _ = files.read(place)
        assert made is not None
        return [
            close(f"{name} from the checkpoint", one, made.evaluations[name])
            for name, one in named.items()
            if name in made.evaluations  # a missing one is reported by the comparison of the rerun
        ]


def close(what: str, recorded: Evaluation, made: Evaluation, why: str = "") -> Check:
    """Check that macro AUROC is the same except for rounding; `why` is the reason to allow that, if it needs one."""
    apart = abs(recorded.macro_auroc - made.macro_auroc)
    allowed = max(TOLERANCE, ROUNDING * (recorded.interval[1] - recorded.interval[0]))
    both = f"macro AUROC {recorded.macro_auroc:.4f} then, {made.macro_auroc:.4f} now{f' ({why})' if why else ''}"
    problems = [] if apart <= allowed else [f"{both}: they differ by {apart:.4f}, and rounding explains {allowed:.4f}"]
    return judged(what, problems, both)
