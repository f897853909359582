"""Decoding of image files to square 8-bit gray images, masks with the same geometry, and a cache of the results.

An image is decoded, converted to gray, fitted into a square and resized once with an antialiasing filter (Pillow's
bilinear filter, whose support grows with the reduction). 8-bit images keep their grey levels. Deeper images are scaled
from their darkest to their brightest pixel, because manufacturers use different parts of the 16 bits.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from PIL import Image

from datasets.dataset import Array
from datasets.limits import IMAGE_BYTES, IMAGE_PIXELS, read_within

DEEP_MODES = ("I", "F")  # Pillow's modes with more than 8 bits per pixel, besides I;16 and its variants
Fit = Literal["pad", "stretch", "crop"]
FITS: tuple[Fit, ...] = ("pad", "stretch", "crop")
Box = tuple[int, int, int, int]


def decode(path: Path) -> tuple[Image.Image, bytes]:
    """Decode a gray image; return it with the sha256 of its file.

    The image has mode L (8 bits), or mode F with values from 0 to 255 if the file has more bits. Raises ValueError for
    a file that is damaged, animated, larger than the limits or not a PNG or JPEG, FileNotFoundError for a missing one.
    """
    image, digest = _open(path)
    if not _deep(image):
        return image.convert("L"), digest
    levels = np.asarray(image, dtype=np.float32)
    low, high = float(levels.min()), float(levels.max())
    return Image.fromarray((levels - low) * (255 / (high - low) if high > low else 0)), digest


def decode_mask(path: Path) -> tuple[Array, bytes]:
    """Decode a mask (h, w), True where the image is not 0, and return it with the sha256 of its file.

    Raises like `decode`.
    """
    image, digest = _open(path)
    return np.asarray(image if _deep(image) else image.convert("L")) > 0, digest


def _deep(image: Image.Image) -> bool:
    return image.mode in DEEP_MODES or image.mode.startswith("I;16")


def _open(path: Path) -> tuple[Image.Image, bytes]:
    content = read_within(path, IMAGE_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
            if image.width * image.height > IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels are too many")
            frames = getattr(image, "n_frames", 1)
            image.load()
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"The image {path} can't be read: {error} (at most {IMAGE_PIXELS:,}); replace it or remove its row."
        ) from error
    except Exception as error:  # hostile bytes make a decoder raise nearly anything
        raise ValueError(
            f"The image {path} can't be read: it is damaged, or not a PNG or JPEG; replace it or remove its row."
        ) from error
    if frames > 1:
        raise ValueError(
            f"The image {path} is animated, with {frames} frames; give an image of one frame or remove its row."
        )
    return image, hashlib.sha256(content).digest()


def geometry(width: int, height: int, size: int, fit: Fit) -> tuple[Box, Box]:
    """Return the part of the image that is used, and its place in the square, as boxes (left, top, right, bottom)."""
    if fit == "stretch":
        return (0, 0, width, height), (0, 0, size, size)
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return (left, top, left + side, top + side), (0, 0, size, size)
    longest = max(width, height)
    across, down = max(1, round(size * width / longest)), max(1, round(size * height / longest))
    left, top = (size - across) // 2, (size - down) // 2
    return (0, 0, width, height), (left, top, left + across, top + down)


def fit_counts(extents: Array, fit: Fit) -> dict[str, Array]:
    """Return which images are not square and what was done to them, as in `Dataset.counted`, given widths and heights
    (N, 2); nothing if all are square."""
    how = {
        "pad": "padded with black to a square",
        "stretch": "stretched to a square, which changes their proportions",
        "crop": "cropped to the central square, and without the lesions outside it",
    }
    oblong = extents[:, 0] != extents[:, 1]
    return {f"Images that are not square, {how[fit]} (fit={fit})": oblong.astype(int)} if oblong.any() else {}


def fit_image(image: Image.Image, size: int, fit: Fit) -> Array:
    """Fit and resize an image to (size, size) uint8; padding is black."""
    source, target = geometry(image.width, image.height, size, fit)
    resized = image.resize(_extent(target), Image.Resampling.BILINEAR, box=source)
    square = np.zeros((size, size), dtype=np.uint8)
    square[_slices(target)] = np.clip(np.rint(np.asarray(resized)), 0, 255)
    return square


def fit_mask(mask: Array, size: int, fit: Fit) -> Array:
    """Fit and resize a mask (h, w) to (size, size): True where a pixel is covered by half or more.

    If no pixel is, those that are covered most are True, so that small lesions do not vanish. Lesions outside the part
    that `crop` uses do.
    """
    image = Image.fromarray(mask.astype(np.uint8) * 255).convert("F")
    source, target = geometry(image.width, image.height, size, fit)
    cover = np.zeros((size, size), dtype=np.float32)
    cover[_slices(target)] = np.asarray(image.resize(_extent(target), Image.Resampling.BOX, box=source)) / 255
    most = cover.max()
    return np.asarray(cover >= min(0.5, most) if most > 0 else np.zeros_like(cover, dtype=bool))


def _extent(box: Box) -> tuple[int, int]:
    return box[2] - box[0], box[3] - box[1]


def _slices(box: Box) -> tuple[slice, slice]:
    return slice(box[1], box[3]), slice(box[0], box[2])


class Allocate(Protocol):
    """Function that returns a zeroed array, in memory or in a file named after `part`."""

    def __call__(self, part: str, shape: tuple[int, ...], dtype: Any) -> Array: ...


def cached(cache: Path | None, name: str, key: str, make: Callable[[Allocate], dict[str, Array]]) -> dict[str, Array]:
    """Return the arrays that `make` creates with the allocation function it receives, from the cache if possible.

    Without a cache folder the arrays are in memory. With one they are created once per `key` and returned as read-only
    memory-maps. They are written to a temporary folder that is then renamed, so that they are complete or absent even
    if several processes create them at once.

    Raises ValueError if the cache can't be written or is damaged.
    """
    if cache is None:
        return make(lambda part, shape, dtype: np.zeros(shape, dtype=dtype))
    folder = cache / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:20]}"
    if not folder.is_dir():
        scratch = cache / f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        try:
            scratch.mkdir(parents=True)
        except OSError as error:
            raise ValueError(f"The cache {cache} can't be written: {error}; choose another folder.") from error
        try:
            arrays = make(
                lambda part, shape, dtype: np.lib.format.open_memmap(
                    scratch / f"{part}.npy", mode="w+", dtype=dtype, shape=shape
                )
            )
            for array in arrays.values():
                cast(np.memmap[Any, Any], array).flush()
            scratch.rename(folder)
        except OSError as error:
            if not folder.is_dir():  # otherwise another process was faster
                raise ValueError(f"The cache {cache} can't be written: {error}; choose another folder.") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    try:
        return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
    except (OSError, ValueError) as error:
        raise ValueError(f"The cache folder {folder} is damaged; delete it.") from error
