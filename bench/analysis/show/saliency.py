"""Figure of the patches that strategies keep: test images with outlined lesions, and below them the kept patches.

Reads `results/<run id>/selection.npz`: `images` (n, H, W) uint8, `kept` (n, gh, gw) bool, `labels` (n, L), `rule` (str:
how the images were chosen), for data with masks `masks` (n, H, W) uint16, where bit l marks lesions of finding l, and
for padded images `frames` (n, 4): left, top, right, bottom of the image in its square.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from bench.analysis.judge.claims import judged
from bench.analysis.read.groups import Arm, Group, ReportRefused
from bench.analysis.show import styles
from bench.analysis.show.plots import save, theme
from bench.statistics.accuracy import Array
from datasets.archives import read_npz

LESION, SHOWN, COLUMNS = "#00E5FF", 6, 4
PADDING = (0.45, 0.55, 0.75)  # RGB


@dataclass(frozen=True)
class Kept:
    """Saved selection of one run."""

    arm: Arm
    seed: int
    images: Array
    kept: Array
    labels: Array
    masks: Array | None
    rule: str
    frames: Array | None = None


def read(group: Group) -> list[Kept]:
    """Selections of the arms, each of its first seed: arms with judged claims first, and only those that saved the same
    images as the first."""
    found: list[Kept] = []
    for arm in sorted(group.trained, key=lambda one: not judged(one)):
        if any(one.arm.runs[0].folder == arm.runs[0].folder for one in found):
            continue
        path = arm.runs[0].folder / "selection.npz"
        if not path.is_file():
            continue
        one = _selection(arm, path)
        if not found or np.array_equal(found[0].images, one.images):
            found.append(one)
    return found[:COLUMNS]


def _selection(arm: Arm, path: Path) -> Kept:
    try:
        saved = read_npz(path, ("images", "kept", "labels", "rule"), optional=("masks", "frames"))
    except ValueError as error:
        raise ReportRefused(f"{error} It holds the selection for a figure: delete it, or rerun the run.") from error
    images, kept, labels, masks = saved["images"], saved["kept"], saved["labels"], saved.get("masks")
    frames = saved.get("frames")
    alike = {len(images), len(kept), len(labels)} if min(images.ndim, kept.ndim, labels.ndim) > 0 else set()
    if (
        (images.ndim, kept.ndim, labels.ndim, len(alike)) != (3, 3, 2, 1)
        or images.dtype != np.uint8
        or kept.dtype.kind not in "bui"
        or 0 in kept.shape
        or (frames is not None and (frames.shape != (len(images), 4) or frames.dtype.kind not in "iu"))
        or (masks is not None and (masks.shape != images.shape or masks.dtype.kind != "u"))
    ):
        raise ReportRefused(f"{path} does not hold images and their kept patches: delete it, or rerun the run.")
    return Kept(arm, arm.runs[0].seed, images, kept.astype(bool), labels, masks, str(saved["rule"]), frames)


def outline(mask: Array) -> Array:
    """Segments ((x, y), (x, y)), (n, 2, 2), along the pixel edges of a bool mask (H, W), in imshow's coordinates."""
    padded = np.pad(mask.astype(np.int8), 1)
    y, x = np.nonzero(np.diff(padded, axis=0)[:, 1:-1])  # an edge above row y
    flat = np.stack([np.stack([x - 0.5, y - 0.5], -1), np.stack([x + 0.5, y - 0.5], -1)], 1)
    y, x = np.nonzero(np.diff(padded, axis=1)[1:-1])
    tall = np.stack([np.stack([x - 0.5, y - 0.5], -1), np.stack([x - 0.5, y + 0.5], -1)], 1)
    return np.concatenate([flat, tall])


def upscale(kept: Array, shape: tuple[int, int]) -> Array:
    """Mask (H, W) of the patches (gh, gw); sizes need not divide."""
    rows = np.arange(shape[0]) * kept.shape[0] // shape[0]
    columns = np.arange(shape[1]) * kept.shape[1] // shape[1]
    return np.asarray(kept[rows][:, columns])


def draw(group: Group, names: tuple[str, ...], folder: Path, name: str) -> str | None:
    """Draw the figure and return its caption; None if no run saved a selection."""
    found = read(group)
    if not found:
        return None
    first = found[0]
    count = min(SHOWN, len(first.images))
    with theme():
        canvas, grid = plt.subplots(
            1 + len(found), count, figsize=(1.75 * count + 0.5, 1.85 * (1 + len(found)) + 0.3), squeeze=False
        )
        for column in range(count):
            image = first.images[column]
            present = [n for n, value in zip(names, first.labels[column], strict=False) if value == 1]
            title = "\n".join(present[:2]) + (f"\n+ {len(present) - 2} more" if len(present) > 2 else "")
            grid[0][column].set_title(title or "no finding", fontsize=8.5)
            lesion = None if first.masks is None else first.masks[column] > 0
            outside = _outside(first, column)
            whole = np.repeat(image[..., None] / 255, 3, -1)
            whole[outside] = PADDING
            _picture(grid[0][column], whole, lesion)
            for row, one in enumerate(found, start=1):
                keep = upscale(one.kept[column], image.shape)
                shade = whole.copy()
                shade[~keep] = 0.18 * shade[~keep] + 0.82 * 0.93  # fade dropped patches to light grey
                axes = grid[row][column]
                _picture(axes, shade, lesion)
                colour = styles.colour_of(one.arm.strategy, (arm.strategy for arm in group.arms))
                axes.add_collection(LineCollection(list(outline(keep)), colors=colour, linewidths=0.8))
        grid[0][0].set_ylabel("image", fontsize=9)
        for row, one in enumerate(found, start=1):
            grid[row][0].set_ylabel(one.arm.label.replace("/", "/\n"), fontsize=9)
        canvas.tight_layout(pad=0.4)
        save(canvas, folder, name)
    share = ", ".join(f"{one.arm.label} (seed {one.seed}) keeps {one.kept[:count].mean():.0%}" for one in found)
    lesions = "Lesions are outlined in cyan. " if first.masks is not None else "The data set has no lesion masks. "
    padded = any(_outside(first, column).any() for column in range(count))
    lesions += "Padding, black for the network, is shown in blue. " if padded else ""
    return (
        f"Patches kept at inference; dropped patches are faded. On these images {share.replace('%', ' %')} of the"
        f" patches. {lesions}Rule for the choice of images: {first.rule.rstrip('.')}."
    )


def _outside(one: Kept, column: int) -> Array:
    """Which pixels of an image are padding, (H, W) bool."""
    outside = np.zeros(one.images.shape[1:], dtype=bool)
    if one.frames is not None:
        left, top, right, bottom = one.frames[column]
        outside[:] = True
        outside[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = False
    return outside


def _picture(axes: Axes, picture: Array, lesion: Array | None) -> None:
    axes.imshow(picture, interpolation="nearest", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if lesion is not None and lesion.any():
        edges = list(outline(lesion))
        axes.add_collection(LineCollection(edges, colors="black", linewidths=2.2, zorder=4))
        axes.add_collection(LineCollection(edges, colors=LESION, linewidths=1.2, zorder=5))
