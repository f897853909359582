"""How much of each finding's lesions a strategy keeps on the test images, for data with masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.evaluation.features import Features
from bench.statistics.lesions import PARTS, LesionParts, lesion_parts
from bench.training.data import RunData
from methods import ALL_TOKENS


def lesions_kept(features: Features) -> dict[str, npt.NDArray[Any]] | None:
    """Return the arrays of `lesions.npz`, over all test images with labels; None without masks or without a selection.

    pseudo: (findings, parts, patients) pseudo-values, see `bench.statistics.lesions`; their means are the estimates.
    share, by_area, images, patients: (findings,). Where no image has a lesion, NaN and 0.
    """
    run_data, strategy = features.run_data, features.encoder.strategy
    if run_data.dataset.masks is None or strategy.inference[0] == ALL_TOKENS:
        return None
    index = run_data.images_of("test")
    own = features.own(index)
    if "kept" not in own:
        return None
    patients = run_data.dataset.patients[index]
    kept = np.asarray(own["kept"], dtype=bool)
    names = run_data.dataset.label_names
    found = [
        lesion_parts(lesion_areas(run_data, index, bit, strategy.geometry.grid), kept, patients, own.get("scores"))
        for bit in range(len(names))
    ]
    count = len(np.unique(patients))
    return {
        "pseudo": np.stack([np.full((len(PARTS), count), np.nan) if one is None else one.pseudo for one in found]),
        "share": np.array([_of(one, "share") for one in found]),
        "by_area": np.array([_of(one, "by_area") for one in found]),
        "images": np.array([0 if one is None else one.images for one in found]),
        "patients": np.array([0 if one is None else one.patients for one in found]),
    }


def _of(found: LesionParts | None, name: str) -> float:
    return float("nan") if found is None else float(getattr(found, name))


def lesion_areas(run_data: RunData, index: npt.NDArray[np.int64], bit: int, grid: int) -> npt.NDArray[np.floating]:
    """Return the share of each patch inside a lesion of finding number `bit`, (n, grid x grid)."""
    masks = run_data.dataset.masks
    assert masks is not None
    inside = torch.from_numpy((np.asarray(masks[index]) >> np.uint16(bit) & np.uint16(1)).astype(np.float32))
    area = torch.nn.functional.adaptive_avg_pool2d(inside[:, None], grid).flatten(1)
    return np.asarray(area.double().numpy())
