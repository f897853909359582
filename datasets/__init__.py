"""The data sets, in one table that can be read from top to bottom.

Listing needs no heavy import: a loader is named as "module:function" and imported when its data set is
loaded. A data set of one's own without code is a `folder`; one with code is an entry more in `REGISTRY`.
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
    """How a data set is loaded ("module:function"), what it is, its source, and a line for each option."""

    target: str
    summary: str
    source: str
    options: Mapping[str, str] = field(default_factory=dict)
    root: Literal["none", "optional", "required"] = "none"  # whether it is read from a folder on disk


REGISTRY: dict[str, Entry] = {
    "phantom": Entry(
        target="datasets.phantom:load",
        summary="an analytic chest radiograph: five findings, exact masks, several images a patient",
        source="this project; Beer-Lambert projections of ellipsoids and curves, with Poisson noise",
        options={
            "patients": "how many patients",
            "images_per_patient": "how many images each patient has",
            "seed": "seed of the anatomy, the findings, the pose and the exposure",
        },
    ),
    "pneumoniamnist": Entry(
        target="datasets.medmnist:load_pneumonia",
        summary="5,856 children's chest X-rays, pneumonia or not; official splits, no patient ids",
        source="MedMNIST v2 (Yang et al., Scientific Data 2023), after Kermany et al., Cell 2018; CC BY 4.0",
        options={"size": "side of the stored images to read: 28, 64, 128 or 224"},
        root="optional",
    ),
    "chestmnist": Entry(
        target="datasets.medmnist:load_chest",
        summary="112,120 frontal chest X-rays with 14 findings; official splits, no patient ids",
        source="MedMNIST v2 (Yang et al., Scientific Data 2023), after NIH ChestX-ray14; CC BY 4.0",
        options={"size": "side of the stored images to read: 28, 64, 128 or 224"},
        root="optional",
    ),
    "folder": Entry(
        target="datasets.folder:load",
        summary="your own images: manifest.csv (path, patient_id, a column a finding) and optional masks.csv",
        source="any folder of PNG or JPEG files",
        options={
            "labels": "the finding columns, comma-separated (default: all that hold only 1, 0, -1, blanks)",
            "uncertain": "what -1 means: ignore (missing, the default), positive or negative",
            "fit": "how an image becomes square: pad (the default), stretch or crop",
        },
        root="required",
    ),
}


def load(name: str, image_size: int, root: Path | None = None, cache: Path | None = None, **options: Any) -> Dataset:
    """Load a data set by its name, its images `image_size` pixels square.

    root: the folder with the data, for those that have one on disk (an error for the phantom, which has none).
    cache: a folder for what is made once and memory-mapped from then on; without it all stays in memory.

    Raises ValueError for an unknown name, size or option and for contradictory data, FileNotFoundError for
    missing files.
    """
    if name not in REGISTRY:
        raise ValueError(f"There is no data set '{name}'; {_close(name, REGISTRY)}choose one of {', '.join(REGISTRY)}.")
    entry = REGISTRY[name]
    for option in options:
        if option not in entry.options:
            known = ", ".join(entry.options) or "none"
            meant = _close(option, entry.options)
            raise ValueError(f"Data set '{name}' has no option '{option}'; {meant}its options are: {known}.")
    if isinstance(image_size, bool) or not isinstance(image_size, int) or not 8 <= image_size <= 4096:
        raise ValueError(f"An image size of {image_size!r} is not possible; give a whole number from 8 to 4096.")
    if entry.root == "required" and root is None:
        raise ValueError(f"Data set '{name}' is read from a folder; say which with --data-root.")
    if entry.root == "none" and root is not None:
        others = ", ".join(other for other, one in REGISTRY.items() if one.root != "none")
        raise ValueError(
            f"Data set '{name}' is made on the spot and reads no folder: say with --data what lies in {root} "
            f"({others}), or leave --data-root out."
        )
    module, function = entry.target.split(":")
    loader = cast("Callable[..., Dataset]", getattr(importlib.import_module(module), function))
    places: dict[str, Path | None] = {"cache": None if cache is None else Path(cache)}
    if entry.root != "none":
        places["root"] = None if root is None else Path(root)
    return loader(image_size, **places, **options)


def _close(word: str, known: Mapping[str, object]) -> str:
    """'did you mean ...? ' where something is close, else nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"did you mean {close[0]}? Else " if close else ""
