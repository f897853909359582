"""Loading of the phantom, which is generated once, stored on disk as plain .npy files, and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.dataset import Dataset
from datasets.limits import PATIENTS
from datasets.phantom.draws import image_counts
from datasets.phantom.findings import NAMES, PREVALENCE
from datasets.phantom.generate import Images, generate
from datasets.phantom.geometry import Array
from datasets.phantom.radiograph import EPSILON, FIELD_MM

VERSION = 1  # raised whenever images of the same seed and options change
_BLOCK = 256  # number of images whose parameters are drawn at once
_PARALLEL_FROM = 8  # number of blocks from which worker processes pay off
_FILES = ("images.npy", "masks.npy", "table.npz", "whole.json")
_NUMBERS = ("labels", "size_mm", "contrast", "cnr", "side")
_GROUPS = ("sex", "age", "view")


@dataclass(frozen=True)
class _Options:
    image_size: int
    patients: int
    images_per_patient: float
    seed: int

    def __post_init__(self) -> None:
        whole = {"image_size": (self.image_size, 8), "patients": (self.patients, 1), "seed": (self.seed, 0)}
        for name, (value, least) in whole.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"phantom: {name} is {value!r}; give a whole number of at least {least}.")
        if self.patients > PATIENTS:
            raise ValueError(f"phantom: patients is {self.patients:,}; give at most {PATIENTS:,}.")
        mean = self.images_per_patient
        if isinstance(mean, bool) or not isinstance(mean, int | float) or not 1 <= mean <= 4:
            raise ValueError(f"phantom: images_per_patient is {mean!r}; give a mean from 1 to 4.")

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of generator version and options."""
        identity = {
            "generator": "phantom",
            "version": VERSION,
            "image_size": self.image_size,
            "patients": self.patients,
            "images_per_patient": float(self.images_per_patient),
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    @property
    def counts(self) -> Array:
        """(patients,) number of images of each patient."""
        return image_counts(self.seed, self.patients, float(self.images_per_patient))

    @property
    def keys(self) -> list[tuple[int, int]]:
        """(patient, image) of every image, those of a patient next to each other."""
        return [(patient, image) for patient, count in enumerate(self.counts) for image in range(count)]


def disk_bytes(image_size: int, *, patients: int = 4200, images_per_patient: float = 2.0, seed: int = 0) -> int:
    """Return the approximate size in bytes of the cached data set: 3 per pixel and some for the table."""
    images = int(_Options(image_size, patients, images_per_patient, seed).counts.sum())
    return images * (3 * image_size**2 + 128) + 4096


def load(
    image_size: int,
    cache: Path | None = None,
    *,
    patients: int = 4200,
    images_per_patient: float = 2.0,
    seed: int = 0,
) -> Dataset:
    """Load the phantom, with images of `image_size` x `image_size` pixels.

    cache: folder in which the data set is stored, complete or not at all, and memory-mapped. A damaged copy is
        generated again. With None, the data set is generated in memory.
    patients: number of patients. images_per_patient: mean number of their images, each has 1 to 4.
    seed: of anatomy, findings, pose and exposure.

    Raises ValueError for impossible options and for a cache with too little space, FileNotFoundError if the copy on
    disk turns out to be incomplete.
    """
    options = _Options(image_size, patients, images_per_patient, seed)
    if cache is None:
        shape = (int(options.counts.sum()), image_size, image_size)
        images, masks = np.empty(shape, np.uint8), np.empty(shape, np.uint16)
        return _dataset(options, images, masks, _render(options, images, masks))
    folder = Path(cache) / f"phantom-{image_size}px-{options.fingerprint[:16]}"
    stored = _read(folder, options)
    if stored is None:
        _write(folder, options)
        stored = _read(folder, options)
    if stored is None:
        raise FileNotFoundError(f"phantom: {folder} could not be written completely; check whether the disk is full.")
    return _dataset(options, *stored)


def _render(options: _Options, images: Array, masks: Array) -> dict[str, Array]:
    """Fill `images` and `masks`; return the columns of the table."""
    parts: list[Images] = []
    for begin, part in zip(range(0, len(images), _BLOCK), _blocks(options), strict=True):
        images[begin : begin + _BLOCK], masks[begin : begin + _BLOCK] = part.pixels, part.masks
        parts.append(part)
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in _NUMBERS + _GROUPS}


def _blocks(options: _Options) -> Iterator[Images]:
    """Yield the images in order, one block at a time; large sets are rendered on all cores."""
    keys = options.keys
    blocks = [keys[begin : begin + _BLOCK] for begin in range(0, len(keys), _BLOCK)]
    if len(blocks) < _PARALLEL_FROM:
        yield from (generate(options.seed, block, options.image_size) for block in blocks)
        return
    from joblib import Parallel, delayed

    with Parallel(n_jobs=-1, return_as="generator") as pool:
        yield from pool(delayed(generate)(options.seed, block, options.image_size) for block in blocks)


def _write(folder: Path, options: _Options) -> None:
    """Generate the data set in a temporary folder next to `folder`, then rename it in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed = options.patients * options.images_per_patient * 3 * options.image_size**2
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise ValueError(
            f"phantom: {folder.parent} has {free / 1e9:,.1f} GB free, but the images take {needed / 1e9:,.1f} GB; "
            "use fewer patients, smaller images or another --cache."
        )
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        shape = (int(options.counts.sum()), options.image_size, options.image_size)
        images = np.lib.format.open_memmap(work / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        masks = np.lib.format.open_memmap(work / "masks.npy", mode="w+", dtype=np.uint16, shape=shape)
        table = _render(options, images, masks)
        images.flush()
        masks.flush()
        del images, masks
        np.savez(work / "table.npz", **table)  # type: ignore[arg-type]
        sizes = {name: (work / name).stat().st_size for name in _FILES[:3]}
        (work / "whole.json").write_text(json.dumps({"fingerprint": options.fingerprint, "sizes": sizes}))
        for name in _FILES[2:]:
            with open(work / name, "rb") as file:
                os.fsync(file.fileno())
        _swap(work, folder, options)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _swap(work: Path, folder: Path, options: _Options) -> None:
    """Rename `work` to `folder`, unless another process has put a complete copy there in the meantime."""
    for _ in range(3):
        try:
            os.rename(work, folder)
            return
        except OSError:
            if not folder.exists():
                raise
            if _read(folder, options) is not None:
                return
            damaged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-damaged-", dir=folder.parent))
            os.rename(folder, damaged / "old")
            shutil.rmtree(damaged, ignore_errors=True)


def _read(folder: Path, options: _Options) -> tuple[Array, Array, dict[str, Array]] | None:
    """Return the memory-mapped contents of `folder`; None if it is missing, incomplete or of other options."""
    try:
        whole = json.loads((folder / "whole.json").read_text())
        if whole["fingerprint"] != options.fingerprint:
            return None
        if any((folder / name).stat().st_size != size for name, size in whole["sizes"].items()):
            return None
        images = np.load(folder / "images.npy", mmap_mode="r")
        masks = np.load(folder / "masks.npy", mmap_mode="r")
        with np.load(folder / "table.npz") as file:
            table = {name: file[name] for name in _NUMBERS + _GROUPS}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return images, masks, table


def _dataset(options: _Options, images: Array, masks: Array, table: dict[str, Array]) -> Dataset:
    patients = np.array([f"P{patient:05d}" for patient, _ in options.keys])
    prevalence = ", ".join(f"{name} {share:.0%}" for name, share in zip(NAMES, PREVALENCE, strict=True))
    return Dataset(
        name="phantom",
        images=images,
        labels=table["labels"],
        label_names=NAMES,
        patients=patients,
        official_split=None,
        masks=masks,
        has_mask=(table["labels"] == 1) & np.isfinite(table["contrast"]),
        details={name: table[name] for name in ("size_mm", "contrast", "cnr", "side")},
        subgroups={name: table[name] for name in _GROUPS},
        notes=(
            f"The phantom is computed, not photographed: {options.patients} patients, {len(images)} images "
            f"of {FIELD_MM:.0f} x {FIELD_MM:.0f} mm, generator version {VERSION}, seed {options.seed}; "
            f"expected prevalence: {prevalence}.",
            "A phantom mask holds the pixels whose noise-free line integral changes by more than "
            f"{EPSILON:g} when the finding is taken away.",
        ),
        fingerprint=options.fingerprint,
    )
