"""How much of each finding's lesions the selections of a group keep, over seeds and patients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.analysis.read.groups import Arm, Group, ReportRefused
from bench.records.run_folder import read_lesions
from bench.statistics import accuracy
from bench.statistics.accuracy import Array, Estimate
from bench.statistics.lesions import PARTS, part_interval


@dataclass(frozen=True)
class KeptLesions:
    """One arm and finding, over `images` with a lesion, of `patients`. `kept` is R, `place` R0 - share and `image`
    R - R0 (`bench.statistics.lesions`), each None where it has no value. `share` of the patches kept and R weighted by
    area, `by_area`, are means over the `seeds` whose records hold them."""

    arm: Arm
    finding: str
    seeds: int
    images: int
    patients: int
    share: float
    by_area: float
    kept: Estimate | None
    place: Estimate | None
    image: Estimate | None


def kept_lesions(group: Group) -> list[KeptLesions]:
    """Every arm and finding with lesions among the test images; nothing for records that don't hold them."""
    data = group.runs[0].record.data
    names = data.label_names if data else ()
    out = []
    for arm in group.trained:
        runs = [found for run in arm.runs if (found := _read(run.folder, len(names))) is not None]
        if len({run["pseudo"].shape for run in runs}) > 1:
            raise ReportRefused(f"{arm.label}: lesions.npz has other test patients for some seeds: rerun these runs.")
        for number, name in enumerate(names):
            if runs and runs[0]["images"][number]:
                out.append(_kept(arm, name, number, runs))
    return out


def _kept(arm: Arm, name: str, number: int, runs: list[dict[str, Array]]) -> KeptLesions:
    images, patients = (int(runs[0][key][number]) for key in ("images", "patients"))
    share, by_area = (float(np.mean([run[key][number] for run in runs])) for key in ("share", "by_area"))
    whom = f"test patient{'s' * (patients != 1)} with a lesion of {name}"
    estimates = [part_interval(np.stack([run["pseudo"][number, i] for run in runs]), p) for i, p in enumerate(PARTS)]
    kept, place, image = (one and accuracy.among_patients(one, patients, whom) for one in estimates)
    return KeptLesions(arm, name, len(runs), images, patients, share, by_area, kept, place, image)


def _read(folder: Path, findings: int) -> dict[str, Array] | None:
    try:
        return read_lesions(folder, findings)
    except ValueError as error:
        raise ReportRefused(
            f"{error} The table of lesion area kept is made from it: delete it, or rerun the run."
        ) from error
