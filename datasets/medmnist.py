"""PneumoniaMNIST and ChestMNIST (Yang et al., "MedMNIST v2", Scientific Data 2023), in all published sizes.

A file in the root folder in the format of the `medmnist` package is read as it is. Without one, the package downloads
it. Splits are the official ones. The data sets have no patient ids, so that every image counts as a different patient
and label fractions are fractions of the images; a note tells so.
"""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.archives import read_npz
from datasets.dataset import SPLIT_NAMES, Array, Dataset
from datasets.images import Allocate, cached
from datasets.limits import ARCHIVE_IMAGES

SIZES = (28, 64, 128, 224)
CROPPED = "Its publisher cropped the images to their central squares, so that parts of the chest can be missing."
CLASSES = {"pneumoniamnist": "PneumoniaMNIST", "chestmnist": "ChestMNIST"}
LABELS = {
    "pneumoniamnist": ("Pneumonia",),
    "chestmnist": (
        *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
        *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural", "Hernia"),
    ),
}


def load_pneumonia(image_size: int, root: Path | None, cache: Path | None, *, size: Any = None) -> Dataset:
    """Load PneumoniaMNIST: 5,856 images, one finding. Arguments as in `load`."""
    return load("pneumoniamnist", image_size, root, cache, size)


def load_chest(image_size: int, root: Path | None, cache: Path | None, *, size: Any = None) -> Dataset:
    """Load ChestMNIST: 112,120 images, 14 findings. Arguments as in `load`."""
    return load("chestmnist", image_size, root, cache, size)


def load(name: str, image_size: int, root: Path | None, cache: Path | None, size: Any) -> Dataset:
    """Load one of the two data sets and resize its images to `image_size` x `image_size` pixels.

    root: folder with the .npz file; None to look in the cache and in ~/.medmnist.
    cache: folder for downloads and resized images, or None.
    size: stored size, 28, 64, 128 or 224. By default it is the smallest that is not below `image_size`, or else the
        largest, of the files on disk or, if there are none, of all sizes.

    Raises ValueError for another size or a damaged file, FileNotFoundError if the file is missing and can't be
    downloaded.
    """
    path, stored = _find(name, image_size, root, cache, None if size is None else _size(size))
    state = path.stat()
    key = f"medmnist 1|{path.resolve()}|{state.st_size}|{state.st_mtime_ns}|{image_size}"
    arrays = cached(cache, name, key, lambda new: _read(new, path, name, stored, image_size))
    split = np.array(SPLIT_NAMES)[arrays["split"]]
    n = len(split)
    notes = [
        f"{CLASSES[name]} tells no patients: each image counts as a patient of its own, and label fractions "
        "are by image."
    ]
    if name == "pneumoniamnist":  # ChestMNIST's sources are square (MedMNIST's "on the generation of MedMNIST+")
        notes.append(CROPPED)
    if stored < image_size:
        notes.append(f"The images were enlarged from {stored} to {image_size} pixels.")
    return Dataset(
        name=name,
        images=arrays["images"],
        labels=np.asarray(arrays["labels"], dtype=np.float32),
        label_names=LABELS[name],
        patients=np.array([f"image-{i:06d}" for i in range(n)]),
        official_split=split,
        notes=tuple(notes),
        fingerprint=bytes(arrays["sha256"]).hex(),
        patient_ids_known=False,
    )


def _size(size: Any) -> int:
    if str(size) not in map(str, SIZES):
        raise ValueError(f"There are no images of size {size!r}; choose one of 28, 64, 128 and 224.")
    return int(size)


def _file(name: str, size: int) -> str:
    return f"{name}.npz" if size == 28 else f"{name}_{size}.npz"


def _find(name: str, image_size: int, root: Path | None, cache: Path | None, size: int | None) -> tuple[Path, int]:
    """Find the file to read, or download it; return it with the size of its images."""
    if root is not None and not root.is_dir():
        raise FileNotFoundError(
            f"The folder {root} does not exist; give the folder that holds {name} with --data-root."
        )
    places = [place for place in (root, cache and cache / "medmnist", Path.home() / ".medmnist") if place]
    for place in places:
        present = [s for s in SIZES if (place / _file(name, s)).is_file() and size in (None, s)]
        if present:
            best = _nearest(present, image_size)
            return place / _file(name, best), best
    wanted = size or _nearest(SIZES, image_size)
    return _download(name, wanted, places[0]), wanted


def _nearest(sizes: Any, image_size: int) -> int:
    return int(min((s for s in sizes if s >= image_size), default=max(sizes)))


def _download(name: str, size: int, place: Path) -> Path:
    """Download a file to a temporary folder and move it into place, so that an interrupted download is never read."""
    medmnist = importlib.import_module("medmnist")  # the package, not this module
    file = _file(name, size)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            getattr(medmnist, CLASSES[name])(split="train", download=True, root=scratch, size=size)
            return (Path(scratch) / file).rename(place / file)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"The file {place / file} does not exist, and medmnist could not download it; put the file there, or give "
            "its folder with --data-root."
        ) from error


def _read(new: Allocate, path: Path, name: str, stored: int, image_size: int) -> dict[str, Array]:
    """Read a file into the arrays images, labels, split (index into SPLIT_NAMES) and sha256 (of the file)."""
    findings = len(LABELS[name])
    names = [f"{split}_{what}" for what in ("images", "labels") for split in SPLIT_NAMES]
    file = read_npz(path, names, limit=ARCHIVE_IMAGES * (stored**2 + 8 * findings))
    images, labels = [file[part] for part in names[:3]], [file[part] for part in names[3:]]
    for x, y in zip(images, labels, strict=True):
        binary = y.shape == (*x.shape[:1], findings) and bool(np.isin(y, (0, 1)).all())
        if x.dtype != np.uint8 or x.shape[1:] != (stored, stored) or not binary:
            raise ValueError(
                f"The file {path} does not hold 8-bit images of {stored} x {stored} pixels with {findings} "
                "labels of 0 or 1; download it again."
            )
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").digest()
    n = sum(len(x) for x in images)
    arrays = {
        "images": new("images", (n, image_size, image_size), np.uint8),
        "labels": new("labels", (n, len(LABELS[name])), np.uint8),
        "split": new("split", (n,), np.uint8),
        "sha256": new("sha256", (32,), np.uint8),
    }
    arrays["labels"][:] = np.concatenate(labels)
    arrays["split"][:] = np.repeat(np.arange(3), [len(x) for x in images])
    arrays["sha256"][:] = np.frombuffer(digest, dtype=np.uint8)
    start = 0
    for part in images:
        _resize(part, arrays["images"][start : start + len(part)])
        start += len(part)
    return arrays


def _resize(images: Array, result: Array) -> None:
    """Resize images (N, s, s) with antialiasing into `result` (N, size, size) uint8."""
    size = result.shape[1]
    for i, image in enumerate(images):
        result[i] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
