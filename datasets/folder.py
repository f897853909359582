"""Loader of a folder of images: manifest.csv, the images it lists, and optionally masks.csv.

    manifest.csv   path, patient_id, one column per finding (1, 0, -1 uncertain, blank unknown);
                   optional: split (train, val, test), view, sex, age (years)
    masks.csv      path, finding, mask (a PNG of the size of the image, not 0 inside the lesion)
                   or path, finding, x, y, w, h (a box in pixels of the original image; several rows add up)

Paths are relative to the folder and must not lead out of it. Images are PNG or JPEG, gray or RGB, 8 or 16 bits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.dataset import MAX_MASK_LABELS, Array, Dataset
from datasets.images import FITS, Allocate, Fit, cached, decode, decode_mask, fit_counts, fit_image, fit_mask, geometry
from datasets.manifest import POLICIES, Manifest, inside, read_manifest, read_table

VERSION = 2  # of the cached arrays


@dataclass(frozen=True)
class Lesion:
    """Row of masks.csv: a mask file, or a box x, y, w, h in pixels of the original image.

    finding: index of the label. where: file and row, for error messages.
    """

    finding: int
    where: str
    file: Path | None = None
    box: tuple[float, float, float, float] | None = None


def load(
    image_size: int,
    root: Path,
    cache: Path | None,
    *,
    labels: str | Sequence[str] | None = None,
    uncertain: str = "ignore",
    fit: Fit = "pad",
) -> Dataset:
    """Load the folder `root`, with images of `image_size` x `image_size` pixels.

    cache: folder for the decoded arrays, or None to keep them in memory.
    labels: names of the finding columns, as a sequence or separated by commas; None to detect them.
    uncertain: what -1 becomes: "ignore" (missing), "positive" or "negative".
    fit: "pad" keeps the aspect ratio and adds black, "stretch" changes it, "crop" cuts out the central square.

    Raises FileNotFoundError for a missing file, ValueError for invalid contents; the message names file and row.
    """
    if uncertain not in POLICIES:
        raise ValueError(f"uncertain={uncertain} is not a policy; choose ignore, positive or negative.")
    if fit not in FITS:
        raise ValueError(f"fit={fit} is not possible; choose {', '.join(FITS)}.")
    if not root.is_dir():
        raise FileNotFoundError(f"The folder {root} does not exist; give the folder that holds manifest.csv.")
    if not isinstance(labels, str | Sequence | None) or (labels is not None and not labels):
        raise ValueError(f"labels={labels!r} names no finding column; write labels=A,B or leave it out.")
    named = [part.strip() for part in labels.split(",") if part.strip()] if isinstance(labels, str) else labels
    manifest = read_manifest(root, named, uncertain)
    lesions, notes = _read_masks(root, manifest)
    tables = _digest(root / name for name in ("manifest.csv", "masks.csv"))
    key = json.dumps([VERSION, tables, _states(manifest, lesions), image_size, fit, manifest.label_names])
    arrays = cached(cache, "folder", key, lambda new: _build(new, manifest, lesions, image_size, fit))
    identity = json.dumps([tables, bytes(arrays["sha256"]).hex(), manifest.label_names, uncertain])
    return Dataset(
        name="folder",
        images=arrays["images"],
        labels=manifest.labels,
        label_names=manifest.label_names,
        patients=manifest.patients,
        official_split=manifest.split,
        masks=arrays.get("masks"),
        has_mask=arrays.get("has_mask"),
        subgroups=manifest.subgroups,
        frames=arrays["frames"] if fit == "pad" else None,
        counted=manifest.counted | fit_counts(arrays["extents"], fit),
        notes=(*manifest.notes, *notes),
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
    )


def _digest(paths: Any) -> str:
    """Return the sha256 (hex) of the names and contents of files; missing files count as empty."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def _states(manifest: Manifest, lesions: list[list[Lesion]]) -> list[tuple[str, int, int]]:
    """Return name, size and modification time of every file, for the key of the cache."""
    masks = {lesion.file for rows in lesions for lesion in rows if lesion.file is not None}
    states = [(str(file), file.stat()) for file in (*manifest.files, *sorted(masks))]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def _build(new: Allocate, manifest: Manifest, lesions: list[list[Lesion]], size: int, fit: Fit) -> dict[str, Array]:
    """Decode all files into the arrays images, extents (width and height of each file), frames (place of the image in
    its square) and sha256 (of all files), and with lesions masks and has_mask."""
    n, findings = len(manifest.files), len(manifest.label_names)
    arrays = {"images": new("images", (n, size, size), np.uint8), "sha256": new("sha256", (32,), np.uint8)}
    arrays |= {"extents": new("extents", (n, 2), np.int32), "frames": new("frames", (n, 4), np.int32)}
    if any(lesions):
        arrays["masks"] = new("masks", (n, size, size), np.uint16)
        arrays["has_mask"] = new("has_mask", (n, findings), np.bool_)

    def one(i: int) -> bytes:
        image, identity = decode(manifest.files[i])
        arrays["images"][i] = fit_image(image, size, fit)
        arrays["extents"][i] = image.width, image.height
        arrays["frames"][i] = geometry(image.width, image.height, size, fit)[1]
        for lesion in lesions[i]:
            whole, mask_identity = _outline(lesion, (image.width, image.height))
            identity += mask_identity
            small = fit_mask(whole, size, fit)
            arrays["masks"][i][small] |= np.uint16(1 << lesion.finding)
            arrays["has_mask"][i, lesion.finding] |= bool(small.any())
        return identity

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = b"".join(pool.map(one, range(n)))
    arrays["sha256"][:] = np.frombuffer(hashlib.sha256(digests).digest(), dtype=np.uint8)
    return arrays


def _read_masks(root: Path, manifest: Manifest) -> tuple[list[list[Lesion]], list[str]]:
    """Read masks.csv, if it exists: the lesions of each image, and notes that name rows which are left out."""
    lesions: list[list[Lesion]] = [[] for _ in manifest.files]
    path = root / "masks.csv"
    if not path.exists():
        return lesions, []
    if len(manifest.label_names) > MAX_MASK_LABELS:
        raise ValueError(
            f"{path} can be used with at most {MAX_MASK_LABELS} findings, but there are "
            f"{len(manifest.label_names)}; choose some with labels=A,B."
        )
    table = read_table(path, "it lists the lesions")
    drawn = "mask" in table
    needed = ("path", "finding", *(("mask",) if drawn else ("x", "y", "w", "h")))
    for column in needed:
        if column not in table:
            raise ValueError(f"{path} has no column '{column}'; it needs path, finding and either mask or x, y, w, h.")
    place = {file: i for i, file in enumerate(manifest.files)}
    finding = {name: i for i, name in enumerate(manifest.label_names)}
    unknown: dict[str, None] = {}
    unlisted = 0
    for row, cells in zip(table.index, table[list(needed)].itertuples(index=False, name=None), strict=True):
        where = f"{path}, row {row}"
        image = place.get(inside(root, cells[0], where))
        if image is None:
            unlisted += 1
        elif cells[1] not in finding:
            unknown[cells[1]] = None
        elif drawn:
            lesions[image].append(Lesion(finding[cells[1]], where, file=_mask_file(root, cells[2], where)))
        else:
            lesions[image].append(Lesion(finding[cells[1]], where, box=_box(cells[2:], where)))
    notes = []
    if unknown:
        notes.append(f"Masks left out, as manifest.csv has no such finding: {', '.join(unknown)}.")
    if unlisted:
        notes.append(f"Masks left out, as manifest.csv does not list their image: {unlisted:,} rows of masks.csv.")
    return lesions, notes


def _mask_file(root: Path, name: str, where: str) -> Path:
    if not name:
        raise ValueError(f"{where}: 'mask' is blank; name a PNG file.")
    file = inside(root, name, where)
    if not os.path.isfile(file):
        raise FileNotFoundError(f"The mask {file} does not exist; it is listed in {where}.")
    return file


def _box(cells: Sequence[str], where: str) -> tuple[float, float, float, float]:
    try:
        x, y, w, h = (float(cell) for cell in cells)
    except ValueError:
        raise ValueError(f"{where}: the box is '{', '.join(cells)}'; x, y, w and h must be numbers.") from None
    if not (np.isfinite([x, y, w, h, x + w, y + h]).all() and w > 0 and h > 0):
        raise ValueError(
            f"{where}: the box is '{', '.join(cells)}'; its numbers must be finite, its width and height above 0."
        )
    return x, y, w, h


def _outline(lesion: Lesion, extent: tuple[int, int]) -> tuple[Array, bytes]:
    """Return a lesion as a mask (h, w) in pixels of the original image, and the sha256 of its file (b"" for a box)."""
    width, height = extent
    if lesion.file is not None:
        mask, identity = decode_mask(lesion.file)
        if mask.shape != (height, width):
            raise ValueError(
                f"{lesion.where}: the mask {lesion.file} has {mask.shape[1]} x {mask.shape[0]} pixels, but its "
                f"image has {width} x {height}; they must be equal."
            )
        return mask, identity
    assert lesion.box is not None
    x, y, w, h = lesion.box
    left, top, right, bottom = round(x), round(y), round(x + w), round(y + h)
    if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
        raise ValueError(
            f"{lesion.where}: the box {x:g}, {y:g}, {w:g}, {h:g} lies outside its image of "
            f"{width} x {height} pixels; boxes are x, y, w, h in pixels of the original image."
        )
    mask = np.zeros((height, width), dtype=bool)
    rows = slice(min(max(top, 0), height - 1), max(bottom, top + 1))
    mask[rows, min(max(left, 0), width - 1) : max(right, left + 1)] = True
    return mask, b""
