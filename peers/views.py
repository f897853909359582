"""Data and two views: our batched pipeline against lightly's SimCLRTransform in a DataLoader with two workers.

The same images of the same size, the same batch, the same operations with the same ranges: random resized crop, flip,
rotation, brightness and contrast, blur, normalisation. Switched off: what lightly's transform lacks (gamma, noise) and
what ours lacks (saturation, hue, random grayscale). lightly gets them in two ways: from files, as its documentation
does it (LightlyDataset, which decodes an image whenever it is asked for and makes it RGB), against our memory-mapped
images as three channels; and, stricter, from the memory and as one channel on both sides. Ours computes in the
process that asks, with as many threads as lightly has workers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

import datasets
from bench.measure.paired import Timed, paired_times
from bench.specs.options import default_cache
from datasets.views import Views
from peers.outcome import Row, row

ABOUT = "Data and two views: ours against lightly's SimCLRTransform in its DataLoader, 2 workers"
TARGET = 5.0
WORKERS = 2
CROP, ROTATION, JITTER, BLUR, BLURRED = 0.45, 10.0, 0.2, (0.1, 1.0), 0.5
ASPECT = (3 / 4, 4 / 3)  # torchvision's, which lightly doesn't change
FROM_FILES = f"lightly, from files, RGB, {WORKERS} workers"
FROM_MEMORY = f"lightly, from memory, one channel, {WORKERS} workers"


def measure(rounds: int) -> list[Row]:
    rows = []
    radiographs, name = _radiographs(224, 256)
    for title, images, batch in (
        ("phantom, 64 px", _phantom(64, 1024), 64),
        (f"{name}, 224 px", radiographs, 32),
    ):
        side, count = images.shape[1], len(images) // batch * batch
        with _files(images) as folder:
            timed_methods = {
                "three": _ours(images, batch, channels=3),
                "one": _ours(images, batch, channels=1),
                FROM_FILES: _theirs(_lightly_dataset(folder, transform(side, channels=3)), batch),
                FROM_MEMORY: _theirs(InMemory(images, transform(side, channels=1)), batch),
            }
            times = paired_times(timed_methods, rounds, busy=False, stopwatch=Elapsed())
        rows.append(row(times, "three", FROM_FILES, title, TARGET, "images/s", count))
        rows.append(row(times, "one", FROM_MEMORY, title, None, "images/s", count))
    return rows


class Elapsed:
    """Wall time alone: the CPU time of workers is not this process's, and says nothing."""

    def time(self, call: Callable[[], None], times: int) -> Timed:
        started = time.perf_counter()
        for _ in range(times):
            call()
        return Timed(time.perf_counter() - started)


def our_views(side: int, channels: int) -> Views:
    return Views(
        side,
        channels=channels,
        crop_area=(CROP, 1.0),
        crop_aspect=ASPECT,
        rotation=ROTATION,
        brightness=JITTER,
        contrast=JITTER,
        gamma=(1.0, 1.0),
        blur=BLUR,
        blur_probability=BLURRED,
        noise=0.0,
    )


def transform(side: int, channels: int) -> Callable[[Any], Any]:
    """lightly's transform with the ranges of `our_views`."""
    from lightly.transforms import SimCLRTransform

    return SimCLRTransform(
        input_size=side,
        min_scale=CROP,
        cj_prob=1.0,
        cj_strength=1.0,
        cj_bright=JITTER,
        cj_contrast=JITTER,
        cj_sat=0.0,
        cj_hue=0.0,
        random_gray_scale=0.0,
        gaussian_blur=BLURRED,
        sigmas=BLUR,
        rr_prob=1.0,
        rr_degrees=ROTATION,
        normalize={"mean": [0.5] * channels, "std": [0.25] * channels},
    )


class InMemory(torch.utils.data.Dataset):
    """Decoded images, each given to a transform as lightly wants it."""

    def __init__(self, images: np.ndarray, transform: Callable[[Any], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return self.transform(Image.fromarray(self.images[i]))


def _lightly_dataset(folder: Path, transform: Callable[[Any], Any]) -> Any:
    from lightly.data import LightlyDataset

    return LightlyDataset(input_dir=str(folder), transform=transform)


def _theirs(dataset: Any, batch: int) -> Callable[[], None]:
    """A call is a pass over the data; the workers stay from one to the next."""
    loader = DataLoader(
        dataset, batch_size=batch, shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=True
    )

    def run() -> None:
        for _ in loader:
            pass

    return run


def _ours(images: np.ndarray, batch: int, channels: int) -> Callable[[], None]:
    views = our_views(images.shape[1], channels)
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        order = torch.randperm(len(images), generator=generator).numpy()
        for start in range(0, len(images) - batch + 1, batch):
            chosen = torch.from_numpy(images[order[start : start + batch]])
            views.apply(chosen, views.draw(generator, batch))

    return run


def _phantom(side: int, count: int) -> np.ndarray:
    data = datasets.load("phantom", side, cache=default_cache(), patients=count, images_per_patient=1.0, seed=0)
    return data.images[:count]


def _radiographs(side: int, count: int) -> tuple[np.ndarray, str]:
    """Real ones where BENCH_DATA says where they are."""
    root = Path(os.environ.get("BENCH_DATA", "")) / "nih"
    if not (root / "manifest.csv").is_file():
        return _phantom(side, count), "phantom"
    data = datasets.load("folder", side, root=root, cache=default_cache())
    return data.images[:count], "NIH ChestX-ray14"


@contextmanager
def _files(images: np.ndarray) -> Iterator[Path]:
    """The images as PNG files in a folder."""
    with TemporaryDirectory() as folder:
        for i, image in enumerate(images):
            Image.fromarray(np.asarray(image)).save(Path(folder) / f"{i:05d}.png")
        yield Path(folder)
