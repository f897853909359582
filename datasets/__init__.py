"""Registry of data sets, and `load`, which loads them by name.

A loader is given as "module:function" and imported only when its data set is loaded, so that listing imports nothing
heavy. To use your own images without writing code, use the data set `folder`. To add a data set with code, write a
module with a loader and add an entry to `REGISTRY`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from datasets.dataset import Dataset


@dataclass(frozen=True)
class Entry:
    """Registry entry of a data set.

    target: its loader, "module:function". The loader is called as loader(image_size, cache=..., **options), and with
        root=... unless `root` is "none". It returns a `datasets.dataset.Dataset`.
    summary: one line. source: where the data come from, with their licence.
    options: a line of help for each option.
    root: whether the data are read from a folder given with --data-root.
    """

    target: str
    summary: str
    source: str
    options: Mapping[str, str] = field(default_factory=dict)
    root: Literal["none", "optional", "required"] = "none"


REGISTRY: dict[str, Entry] = {
    "phantom": Entry(
        target="datasets.phantom:load",
        summary="computed chest radiographs: five findings, exact masks, several images per patient",
        source="this project; Beer-Lambert projections of ellipsoids and curves, with Poisson noise",
        options={
            "patients": "number of patients",
            "images_per_patient": "mean number of images per patient, 1 to 4",
            "seed": "seed of anatomy, findings, pose and exposure",
        },
    ),
    "pneumoniamnist": Entry(
        target="datasets.medmnist:load_pneumonia",
        summary="5,856 children's chest X-rays, pneumonia or not; official splits, no patient ids",
        source="MedMNIST v2 (Yang et al., Scientific Data 2023), after Kermany et al., Cell 2018; CC BY 4.0",
        options={"size": "side of the stored images in pixels: 28, 64, 128 or 224"},
        root="optional",
    ),
    "chestmnist": Entry(
        target="datasets.medmnist:load_chest",
        summary="112,120 frontal chest X-rays with 14 findings; official splits, no patient ids",
        source="MedMNIST v2 (Yang et al., Scientific Data 2023), after NIH ChestX-ray14; CC BY 4.0",
        options={"size": "side of the stored images in pixels: 28, 64, 128 or 224"},
        root="optional",
    ),
    "folder": Entry(
        target="datasets.folder:load",
        summary="your own images: manifest.csv (path, patient_id, one column per finding) and optional masks.csv",
        source="any folder of PNG or JPEG files",
        options={
            "labels": "the finding columns, comma-separated (default: all columns with only 1, 0, -1 and blanks)",
            "uncertain": "meaning of -1: ignore (missing, the default), positive or negative",
            "fit": "how images become square: pad (the default), stretch or crop",
        },
        root="required",
    ),
}


def load(name: str, image_size: int, root: Path | None = None, cache: Path | None = None, **options: Any) -> Dataset:
    """Load a data set by name, with images of `image_size` x `image_size` pixels.

    root: folder with the data, for data sets that are read from disk.
    cache: folder in which prepared arrays are stored and memory-mapped; without it they stay in memory.
    options: those of the data set (`Entry.options`).

    Raises ValueError for an unknown name or option, an impossible size, a missing or superfluous `root`, and
    contradictory data, FileNotFoundError for missing files.
    """
    if name not in REGISTRY:
        raise ValueError(
            f"There is no data set '{name}'; {_did_you_mean(name, REGISTRY)}choose one of {', '.join(REGISTRY)}."
        )
    entry = REGISTRY[name]
    for option in options:
        if option not in entry.options:
            known = ", ".join(entry.options) or "none"
            guess = _did_you_mean(option, entry.options)
            raise ValueError(f"Data set '{name}' has no option '{option}'; {guess}its options are: {known}.")
    if isinstance(image_size, bool) or not isinstance(image_size, int) or not 8 <= image_size <= 4096:
        raise ValueError(f"An image size of {image_size!r} is not possible; give a whole number from 8 to 4096.")
    if entry.root == "required" and root is None:
        raise ValueError(f"Data set '{name}' is read from a folder; give its path with --data-root.")
    if entry.root == "none" and root is not None:
        others = ", ".join(other for other, one in REGISTRY.items() if one.root != "none")
        raise ValueError(
            f"Data set '{name}' is generated and reads no folder: name the data in {root} with --data "
            f"({others}), or leave out --data-root."
        )
    module, function = entry.target.split(":")
    loader = cast("Callable[..., Dataset]", getattr(importlib.import_module(module), function))
    places: dict[str, Path | None] = {"cache": None if cache is None else Path(cache)}
    if entry.root != "none":
        places["root"] = None if root is None else Path(root)
    return loader(image_size, **places, **options)


def _did_you_mean(word: str, known: Mapping[str, object]) -> str:
    """Return "did you mean ...? Otherwise " if `known` has a close match, else ""."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"did you mean {close[0]}? Otherwise " if close else ""
