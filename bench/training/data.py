"""A run's data: images, splits and views, and their description in a record."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from lightning_fabric import Fabric

from bench.records.record import DataRecord, SplitRecord, Subset
from bench.specs.run_spec import DataSpec, RunSpec
from bench.training.batches import views_of
from datasets import load
from datasets.dataset import Dataset
from datasets.splits import Splits, index_hash, make_splits, usage_notes
from datasets.splits import draws as draws_of
from datasets.views import Views
from methods import code_of

Indices = npt.NDArray[np.int64]


@dataclass
class RunData:
    """The data set of a run with its splits, views and device, shared by training and all evaluations."""

    dataset: Dataset
    splits: Splits
    views: Views
    fabric: Fabric
    seed: int

    def images_of(self, split: Literal["test", "val"]) -> Indices:
        """Return the images of a split that carry at least one label."""
        index = cast(Indices, getattr(self.splits, split))
        return index[~np.isnan(self.dataset.labels[index]).all(1)]

    def images_scored(self, split: Literal["test", "val"]) -> Indices:
        """Return the images of the split; for the test split, followed by those of the validation split."""
        return np.concatenate([self.images_of(part) for part in dict.fromkeys((split, "val"))])

    def draws(self, percent: float, draws: int) -> list[Indices]:
        """Return the labelled images of each draw of a label fraction; 100 per cent has a single draw."""
        return draws_of(self.dataset, self.splits, percent, draws)

    def subset(self, index: Indices) -> Subset:
        """Describe a set of images for a record: hash, counts, positives per finding."""
        positives = np.nansum(self.dataset.labels[index] == 1, axis=0)
        return Subset(
            hash=index_hash(self.dataset, index),
            patients=len(np.unique(self.dataset.patients[index])),
            images=len(index),
            positives={name: int(n) for name, n in zip(self.dataset.label_names, positives, strict=True)},
        )


def load_run_data(spec: RunSpec, fabric: Fabric, cache: Path | None) -> RunData:
    """Load a run's data, split it, and set up its views.

    Raises ValueError if plug-in, weights or data are not those that the run was planned with. A job may wait for days
    in a queue, and files change in the meantime.
    """
    if code_of(spec.parsed.objective, spec.parsed.strategy) != spec.code:
        raise ValueError(f"the plug-in of {spec.method} changed since the grid was planned: give the command again")
    if spec.weights_sha256 not in ("", spec.encoder.weights_digest()):
        raise ValueError(
            f"the weights in {spec.encoder.weights} are not those that the run was planned with: put them back, or "
            "give the command again"
        )
    data = _load(spec.data.model_dump_json(), spec.encoder.image_size, cache, spec.fingerprint)
    if spec.fingerprint not in ("", data.fingerprint):
        raise ValueError(f"data set '{data.name}' has changed since the grid was planned: give the command again")
    splits = make_splits(data, spec.data.split_seed, spec.data.val, spec.data.test)
    return RunData(data, splits, views_of(spec), fabric, spec.seed)


@functools.lru_cache(maxsize=2)
def _load(spec: str, image_size: int, cache: Path | None, fingerprint: str) -> Any:
    """Load a data set once per process, since a worker makes many runs on it. Another `fingerprint` loads it again."""
    data = DataSpec.model_validate_json(spec)
    return load(data.name, image_size, Path(data.root) if data.root else None, cache, **data.options)


def data_record(run_data: RunData) -> DataRecord:
    """Describe the data set for a record."""
    data = run_data.dataset
    return DataRecord(
        name=data.name,
        fingerprint=data.fingerprint,
        label_names=data.label_names,
        patient_ids_known=data.patient_ids_known,
        notes=(*data.notes, *usage_notes(data, run_data.splits)),
    )


def split_record(run_data: RunData) -> SplitRecord:
    """Describe the splits for a record."""
    splits = run_data.splits
    return SplitRecord(
        hash=splits.hash,
        train=run_data.subset(splits.train),
        val=run_data.subset(splits.val),
        test=run_data.subset(splits.test),
    )
