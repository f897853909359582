"""Features of a frozen encoder in every inference mode, and what a selection keeps.

In the modes `mean` and `shuffled`, an image is evaluated with a selection that is not its own. `mean`: one mask for all
images, the patches with the highest mean score over training images (at most MEAN_IMAGES of them, spread evenly), as
many as these images keep on average. `shuffled`: the selection of an image of another patient of the same split, drawn
by the seed of the run and the same whatever else is evaluated.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from bench.training.batches import Lesions
from bench.training.data import Indices, RunData
from methods import MEAN, PRUNED, SHUFFLED, Inference
from methods.encoders.encoder import Encoder
from methods.noise import keyed_generator
from methods.strategies.strategy import Call, Encoding

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
BATCH = 256
MEAN_IMAGES = 4096
PARTS = ("features", "kept", "scores")  # of an encoding, as arrays with a row per image


@torch.no_grad()
def features_of(
    encoder: Encoder, run_data: RunData, index: Indices, inference: Inference, kept: Mask | None = None
) -> dict[str, Floats]:
    """Return `features` (n, C) and, where the strategy has them, `kept` (n, patches) bool and `scores` (n, patches).

    `kept` (n, patches) is what the strategy is told to keep. Raises ValueError if it keeps something else. An image's
    row does not depend on the other images.
    """
    encoder = encoder.to(run_data.fabric.device).eval()
    lesions = Lesions(run_data.dataset, encoder, run_data.seed)
    collected: dict[str, list[Floats]] = {}
    for start in range(0, len(index), BATCH):
        rows = index[start : start + BATCH]
        told = None if kept is None else torch.from_numpy(kept[start : start + BATCH]).to(run_data.fabric.device)
        call = lesions.call_for(rows, Call(inference=inference, kept=told), run_data.fabric.device)
        images = run_data.views.normalise(torch.from_numpy(run_data.dataset.images[rows]).to(run_data.fabric.device))
        with run_data.fabric.autocast():
            encoding: Encoding = encoder(images, call)
        if told is not None and (encoding.kept is None or not torch.equal(encoding.kept, told)):
            raise ValueError(
                f"{type(encoder.strategy).__name__} does not keep the patches that `Call.kept` names, so it can't be "
                f"evaluated in the inference mode '{inference}': leave this mode out of its registry entry"
            )
        for name in PARTS:
            if (part := getattr(encoding, name)) is not None:
                part = part.float() if part.is_floating_point() else part
                collected.setdefault(name, []).append(part.cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in collected.items()}


class Features:
    """Features and selections of a frozen encoder, computed once for each image and inference mode."""

    def __init__(self, encoder: Encoder, run_data: RunData) -> None:
        self.encoder, self.run_data = encoder, run_data
        self._known: dict[Inference, tuple[Indices, dict[str, Floats]]] = {}

    def at(self, index: Indices, inference: Inference) -> Floats:
        """Return features (n, C) of the images `index`."""
        return self._of(index, inference)["features"]

    def own(self, index: Indices) -> dict[str, Floats]:
        """Return what the strategy's own selection gives: `kept` and `scores`, each (n, patches), if it has them."""
        found = self._of(index, PRUNED)
        return {name: found[name] for name in ("kept", "scores") if name in found}

    def _of(self, index: Indices, inference: Inference) -> dict[str, Floats]:
        have, found = self._known.get(inference, (np.empty(0, np.int64), {}))
        new = np.setdiff1d(index, have)
        if len(new):
            more = features_of(self.encoder, self.run_data, new, inference, self._told(new, inference))
            order = np.concatenate([have, new]).argsort()
            have = np.concatenate([have, new])[order]
            found = {n: (np.concatenate([found[n], more[n]]) if n in found else more[n])[order] for n in more}
            self._known[inference] = (have, found)
        rows = np.searchsorted(have, index)
        return {name: part[rows] for name, part in found.items()}

    def _told(self, index: Indices, inference: Inference) -> Mask | None:
        """Return what the images `index` are told to keep in a mode, (n, patches); None for their own choice."""
        if inference == MEAN:
            return np.broadcast_to(self._mean, (len(index), len(self._mean))).copy()
        if inference == SHUFFLED:
            return np.asarray(self.own(self._donors[index])["kept"], dtype=bool)
        return None

    @cached_property
    def _mean(self) -> Mask:
        train = self.run_data.splits.train
        spread = np.linspace(0, len(train) - 1, min(len(train), MEAN_IMAGES)).astype(np.int64)
        own = self.own(train[spread])
        return mean_selection(own["scores"], own["kept"])

    @cached_property
    def _donors(self) -> Indices:
        return donors(self.run_data)


def mean_selection(scores: Floats, kept: Floats) -> Mask:
    """Return the patches (patches,) with the highest mean of `scores` (n, patches), as many as the images of `kept`
    (n, patches) keep on average; ties go to the first."""
    count = max(1, round(float(kept.sum(1).mean())))
    order = np.argsort(-scores.mean(0, dtype=np.float64), kind="stable")
    mask = np.zeros(scores.shape[1], dtype=bool)
    mask[order[:count]] = True
    return mask


def donors(run_data: RunData) -> Indices:
    """Return for each image of the data set (N,) an image of another patient of its split; -1 outside all splits.

    The seed puts the patients of a split in a circle, and each patient's images borrow those of the next one in turn.
    Raises ValueError for a split with a single patient.
    """
    found = np.full(len(run_data.dataset), -1, dtype=np.int64)
    for part in ("train", "val", "test"):
        index = np.sort(getattr(run_data.splits, part))
        patients, member = np.unique(run_data.dataset.patients[index], return_inverse=True)
        if len(patients) == 1:
            raise ValueError(
                f"the inference mode '{SHUFFLED}' needs two patients in each split, and the {part} split has one: use "
                "more data"
            )
        circle = torch.randperm(len(patients), generator=keyed_generator("donors", run_data.seed, part)).numpy()
        following = np.empty_like(circle)
        following[circle] = np.roll(circle, -1)
        by_patient = [index[member == patient] for patient in range(len(patients))]
        for patient, images in enumerate(by_patient):
            lent = by_patient[following[patient]]
            found[images] = lent[np.arange(len(images)) % len(lent)]
    return found
