"""Recomputes evaluations from their stored predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.evaluation.evaluate import VALIDATION, EvaluationRequest, ScoredDraw, summarise
from bench.records.record import Evaluation
from bench.specs.run_spec import EvaluationSpec, FinetuneSpec, RunSpec
from bench.training.data import RunData
from bench.verification.check import FAILS, OPEN, Check, differences, judged
from bench.verification.files import Source
from bench.verification.reconstruct import NO_SETTINGS, how
from datasets.archives import read_npz

Arrays = dict[str, npt.NDArray[Any]]
NAMES = ("scores", "labels", "patients", "index")
APART = {"digest", "predictions_sha256", "conditions"}  # fields about files and machines, not about the run


def evaluations(source: Source, spec: RunSpec, run_data: RunData) -> list[Check]:
    """Check everything in each evaluation against its predictions, and the images, labels and subsets against the
    data."""
    return [_evaluation(source, name, one, spec, run_data) for name, one in source.evaluations.items()]


def read(path: Path) -> Arrays:
    """The arrays of a predictions file, with those on validation images if it has them. Raises FileNotFoundError, and
    ValueError for a file that is not one."""
    beside = [f"{VALIDATION}{name}" for name in NAMES]
    arrays = read_npz(path, NAMES, optional=beside)
    return arrays if len(arrays) == len(NAMES) else read_npz(path, [*NAMES, *beside])


def _evaluation(source: Source, name: str, one: Evaluation, spec: RunSpec, run_data: RunData) -> Check:
    what, path = f"{name} from its predictions", source.predictions(name)
    if not one.spec:
        return Check(what, OPEN, NO_SETTINGS)
    if not path.is_file():
        return Check(what, OPEN, f"predictions/{path.name} is not there")
    try:
        evaluation, tuning = how(one)
        arrays = read(path)
        problems = _about(arrays, run_data, evaluation)
        if not problems:
            problems = list(differences(plain(one), plain(_computed(one, arrays, evaluation, tuning, spec, run_data))))
    except ValueError as error:
        return Check(what, FAILS, str(error).splitlines()[0])
    low, high = one.interval
    return judged(what, problems, f"macro AUROC {one.macro_auroc:.4f} [{low:.4f}, {high:.4f}] follows from them")


def _about(arrays: Arrays, run_data: RunData, evaluation: EvaluationSpec) -> list[str]:
    """What is wrong with the shapes of predictions, or with their images, labels and patients."""
    index = run_data.images_of(evaluation.split)
    parts = {"": index}
    if len(arrays) > len(NAMES):
        parts[VALIDATION] = run_data.images_scored(evaluation.split)[len(index) :]
    found = []
    for part, rows in parts.items():
        labels, patients = run_data.dataset.labels[rows], run_data.dataset.patients[rows].astype(str)
        expected = {"images": ("index", rows), "labels": ("labels", labels), "patients": ("patients", patients)}
        kind = "validation " if part else ""
        found += [
            f"the predictions are for other {kind}{what} than the data"
            for what, (key, value) in expected.items()
            if not _equal(arrays[f"{part}{key}"], value)
        ]
        scores, shape = arrays[f"{part}scores"], labels.shape
        if scores.ndim != 3 or scores.shape[1:] != shape or scores.dtype.kind != "f":
            found.append(f"{part}scores are {scores.dtype} {scores.shape}, not floats (draws, {shape[0]}, {shape[1]})")
    return found


def _equal(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == other.dtype.kind == "f")


def _computed(
    one: Evaluation, arrays: Arrays, evaluation: EvaluationSpec, tuning: FinetuneSpec, spec: RunSpec, run_data: RunData
) -> Evaluation:
    """The evaluation that follows from predictions; hyperparameters that cross-validation chose are taken from the
    record. Raises ValueError where the number of draws is not the one asked for, or nothing can be scored."""
    subsets = run_data.draws(one.labels, 1 if spec.labels is not None else evaluation.draws)
    parts = [arrays[key] for key in ("scores", f"{VALIDATION}scores") if key in arrays]
    counts = [len(part) for part in parts]
    if {len(subsets), len(one.draws), *counts} != {len(subsets)}:
        raise ValueError(f"{len(subsets)} draws were asked for, {len(one.draws)} are recorded, {max(counts)} predicted")
    request = EvaluationRequest(one.run_id, one.key, evaluation, tuning)
    draws = [
        ScoredDraw(index, scores, draw.chosen)
        for index, scores, draw in zip(subsets, np.concatenate(parts, axis=1), one.draws, strict=True)
    ]
    return summarise(request, draws, run_data)[0]


def plain(one: Evaluation) -> dict[str, Any]:
    """The fields of an evaluation that a rerun must reproduce."""
    return one.model_dump(mode="json", exclude=APART)
