"""Class of a loaded data set: images, labels, patients, and what is known about them.

A `Dataset` consists of plain arrays that are checked once, on creation, so that later code can rely on shapes and
values. It contains no policy: uncertain labels are resolved by the loader, splits are made in `datasets.splits`, and
views in `datasets.views`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

SPLIT_NAMES = ("train", "val", "test")
DETAIL_NAMES = ("size_mm", "contrast", "cnr", "side")
MAX_MASK_LABELS = 16  # each mask is one bit of a uint16

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Dataset:
    """A data set of N images and L findings, in memory or memory-mapped.

    images: (N, H, W) uint8, H == W; may be a read-only memory-map.
    labels: (N, L) float32; 1, 0, or NaN if missing. Uncertain labels are already resolved.
    label_names: L unique names.
    patients: (N,) str. Without known patients, every image has a different one and `patient_ids_known` is False.
    official_split: (N,) of "train", "val", "test", or None.
    masks: (N, H, W) uint16 with bit l set inside a lesion of label l, or None. With masks, L <= 16.
    has_mask: (N, L) bool, whether the image has a mask of the finding; None without masks.
    frames: (N, 4) place of each image in its square, as left, top, right, bottom in pixels; the rest is padding. None
        without padding.
    counted: (N,) numbers per image by what they count, a phrase such as "Uncertain labels, taken as missing". A report
        adds them up over the images in use (`datasets.splits.usage_notes`).
    details: (N, L) float32 by name, NaN where absent. Names are "size_mm", "contrast", "cnr", "side".
    subgroups: (N,) str by name, "" where unknown. Names are "sex", "age" (bands), "view".
    notes: sentences that a report must show and that hold for every split; `datasets.splits.usage_notes` has those
        that depend on it. They are recorded with every run and compared when a run is verified, so
        that changing their wording has the same effect as changing the data.
    fingerprint: sha256 (hex) of what identifies the data: version, seed and options of a generator, or the bytes.

    Raises ValueError if the arrays contradict each other.
    """

    name: str
    images: Array
    labels: Array
    label_names: tuple[str, ...]
    patients: Array
    official_split: Array | None = None
    masks: Array | None = None
    has_mask: Array | None = None
    frames: Array | None = None
    counted: dict[str, Array] = field(default_factory=dict)
    details: dict[str, Array] = field(default_factory=dict)
    subgroups: dict[str, Array] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fingerprint: str = ""
    patient_ids_known: bool = True

    def __post_init__(self) -> None:
        n, findings = len(self.images), len(self.label_names)
        self._require(self.images.ndim == 3, "images must be (N, H, W)")
        self._require(self.images.dtype == np.uint8, "images must be uint8")
        self._require(self.images.shape[1] == self.images.shape[2], "images must be square")
        self._require(n > 0, "there are no images")
        self._require(self.labels.shape == (n, findings), f"labels must be ({n}, {findings})")
        self._require(len(set(self.label_names)) == findings, "label names must be unique")
        known = self.labels[~np.isnan(self.labels)]
        self._require(bool(np.isin(known, (0.0, 1.0)).all()), "labels must be 1, 0 or NaN")
        self._require(self.patients.shape == (n,), f"patients must be ({n},)")
        self._require(self.patients.dtype.kind == "U", "patients must be strings")
        self._require(bool((self.patients != "").all()), "every image needs a patient")
        if self.official_split is not None:
            self._require(self.official_split.shape == (n,), f"official_split must be ({n},)")
            self._require(bool(np.isin(self.official_split, SPLIT_NAMES).all()), f"splits are {SPLIT_NAMES}")
        self._require((self.masks is None) == (self.has_mask is None), "masks and has_mask come together")
        if self.masks is not None and self.has_mask is not None:
            self._require(findings <= MAX_MASK_LABELS, f"masks hold at most {MAX_MASK_LABELS} labels")
            self._require(self.masks.dtype == np.uint16, "masks must be uint16")
            self._require(self.masks.shape == self.images.shape, "masks must have the shape of the images")
            self._require(self.has_mask.shape == (n, findings), f"has_mask must be ({n}, {findings})")
        if self.frames is not None:
            self._require(self.frames.shape == (n, 4), f"frames must be ({n}, 4)")
        for what, numbers in self.counted.items():
            self._require(numbers.shape == (n,), f"counted['{what}'] must be ({n},)")
        for name, detail in self.details.items():
            self._require(name in DETAIL_NAMES, f"details are {DETAIL_NAMES}, not '{name}'")
            self._require(detail.shape == (n, findings), f"details['{name}'] must be ({n}, {findings})")
        for name, group in self.subgroups.items():
            self._require(group.shape == (n,), f"subgroups['{name}'] must be ({n},)")
        self._require(len(self.fingerprint) == 64, "the fingerprint must be a sha256 in hex")

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            raise ValueError(f"Data set '{self.name}' is malformed: {message}.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return int(self.images.shape[1])

    @property
    def labelled(self) -> Array:
        """(N,) bool, whether the image has a label. Images without one are used for pre-training, or not at all if
        their patient is in the validation or test split."""
        return np.asarray((~np.isnan(self.labels)).any(axis=1))

    def padding(self, index: Array, grid: int) -> Array:
        """Return the share of each patch of a square grid that is padding, (len(index), grid x grid)."""
        if self.frames is None:
            return np.zeros((len(index), grid * grid))
        edges = np.arange(grid + 1) * self.image_size  # in units of 1 / grid pixels, which are whole for any grid
        left, top, right, bottom = (grid * self.frames[index, side, None].astype(np.int64) for side in range(4))
        across, down = (
            np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) / self.image_size
            for low, high in ((left, right), (top, bottom))
        )  # (n, grid): share of each column and row of patches inside the image
        return np.asarray(1 - down[:, :, None] * across[:, None, :]).reshape(len(index), -1)

    def replace(self, **changes: Any) -> Dataset:
        """Return a copy with some fields changed; arrays are shared, not copied."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Dataset(**{**values, **changes})
