"""How much of each finding's lesions the selections of a group keep, over seeds and patients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.analysis.read.groups import Arm, Group, ReportRefused
from bench.statistics import accuracy
from bench.statistics.accuracy import Array, Estimate
from bench.statistics.lesions import PARTS
from datasets.archives import read_npz


@dataclass(frozen=True)
class KeptLesions:
    """One arm and finding. `kept` is R, `place` R0 - share and `image` R - R0 (`bench.statistics.lesions`), each None
    where it has no value; `share` of the patches kept and R weighted by area, means over seeds; `images` with it."""

    arm: Arm
    finding: str
    images: int
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
        paths = [run.folder / "lesions.npz" for run in arm.runs]
        runs = [_read(path, len(names)) for path in paths if path.is_file()]
        if not runs or len({run["pseudo"].shape for run in runs}) > 1:
            continue
        for number, name in enumerate(names):
            if runs[0]["images"][number]:
                out.append(_kept(arm, name, number, runs))
    return out


def _kept(arm: Arm, name: str, number: int, runs: list[dict[str, Array]]) -> KeptLesions:
    estimates = [_estimate(np.stack([run["pseudo"][number, part] for run in runs])) for part in range(len(PARTS))]
    patients = int(runs[0]["patients"][number])
    kept, place, image = (
        one and accuracy.among_patients(one, patients, f"test patient{'s' * (patients != 1)} with {name}")
        for one in estimates
    )
    share, by_area = (float(np.mean([run[key][number] for run in runs])) for key in ("share", "by_area"))
    return KeptLesions(arm, name, int(runs[0]["images"][number]), share, by_area, kept, place, image)


def _estimate(pseudo: Array) -> Estimate | None:
    """Mean over seeds of pseudo-values (seeds, patients); None where they have no value at all."""
    if not np.isfinite(pseudo).all():
        return None
    return accuracy.crossed_interval(pseudo[:, None])


def _read(path: Path, findings: int) -> dict[str, Array]:
    try:
        saved = read_npz(path, ("pseudo", "share", "by_area", "images", "patients"))
    except ValueError as error:
        raise ReportRefused(
            f"{error} It holds what a selection keeps of lesions: delete it, or rerun the run."
        ) from error
    pseudo = saved["pseudo"]
    others = [saved[name] for name in ("share", "by_area", "images", "patients")]
    if (
        pseudo.ndim != 3
        or pseudo.shape[:2] != (findings, len(PARTS))
        or pseudo.shape[2] < 2
        or any(one.shape != (findings,) or one.dtype.kind not in "fiu" for one in [*others])
        or pseudo.dtype.kind != "f"
    ):
        raise ReportRefused(f"{path} does not hold what is kept of {findings} findings: delete it, or rerun the run.")
    return saved
