"""Image files to square gray images of 8 bits, masks through the same geometry, and the cache of the result.

An image is decoded, made gray, fitted into the square and resized once, with an antialiasing filter (Pillow's
bilinear, whose support grows with the reduction). Images of more than 8 bits are scaled from their own
darkest to their own brightest pixel, since what part of 16 bits a detector uses is its maker's choice; 8-bit
ones keep their levels.
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

DEEP_MODES = ("I", "F")  # with I;16 and its kin: more than 8 bits a pixel
Fit = Literal["pad", "stretch", "crop"]
FITS: tuple[Fit, ...] = ("pad", "stretch", "crop")
Box = tuple[int, int, int, int]


def decode(path: Path) -> tuple[Image.Image, bytes]:
    """A gray image, mode L (8 bits) or F (0 to 255, from an image of more bits), and the sha256 of its file.

    Raises ValueError, naming the file, when it is no image, is damaged, animated or larger than the limits.
    """
    image, digest = _open(path)
    if not _deep(image):
        return image.convert("L"), digest
    levels = np.asarray(image, dtype=np.float32)
    low, high = float(levels.min()), float(levels.max())
    return Image.fromarray((levels - low) * (255 / (high - low) if high > low else 0)), digest


def decode_mask(path: Path) -> tuple[Array, bytes]:
    """(h, w) bool, where the image is not 0, and the sha256 of its file. Raises ValueError as `decode`."""
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
            f"The image {path} can't be read: {error} (at most {IMAGE_PIXELS:,}); replace it or drop its row."
        ) from error
    except Exception as error:  # hostile bytes make a decoder raise nearly anything
        raise ValueError(
            f"The image {path} can't be read: it is damaged, or no PNG or JPEG; replace it or drop its row."
        ) from error
    if frames > 1:
        raise ValueError(f"The image {path} is animated, with {frames} frames; give one frame, or drop its row.")
    return image, hashlib.sha256(content).digest()


def geometry(width: int, height: int, size: int, fit: Fit) -> tuple[Box, Box]:
    """What part of the image goes where in the square: boxes (left, top, right, bottom), source and
    target."""
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


def fit_image(image: Image.Image, size: int, fit: Fit) -> Array:
    """(size, size) uint8; what `pad` adds is black."""
    source, target = geometry(image.width, image.height, size, fit)
    resized = image.resize(_extent(target), Image.Resampling.BILINEAR, box=source)
    square = np.zeros((size, size), dtype=np.uint8)
    square[_slices(target)] = np.clip(np.rint(np.asarray(resized)), 0, 255)
    return square


def fit_mask(mask: Array, size: int, fit: Fit) -> Array:
    """(h, w) bool -> (size, size) bool: pixels covered by half or more, or if there are none the most covered
    ones.

    A lesion thus never vanishes by being small; one that `crop` cuts off does.
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
    """Gives a zeroed array of that name, in memory or in a file."""

    def __call__(self, part: str, shape: tuple[int, ...], dtype: Any) -> Array: ...


def cached(cache: Path | None, name: str, key: str, make: Callable[[Allocate], dict[str, Array]]) -> dict[str, Array]:
    """The arrays that `make` gives, all allocated by the function that it is handed.

    Without a cache folder they are in memory. With one they are made once for this key, in a temporary folder
    that is renamed, so that it is whole or not there (processes may race for it), and are read-only
    memory-maps.
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
            if not folder.is_dir():  # else another process was faster
                raise ValueError(f"The cache {cache} can't be written: {error}; choose another folder.") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    try:
        return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
    except (OSError, ValueError) as error:
        raise ValueError(f"The cache folder {folder} is damaged; delete it.") from error
