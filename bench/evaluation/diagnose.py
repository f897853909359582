"""Diagnostics for every record: did the run learn, and what does its strategy keep?"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bench.evaluation.features import Features, features_of
from bench.records.record import Learning
from bench.training.data import RunData
from bench.training.pretrain import Trained
from methods import ALL_TOKENS, PRUNED
from methods.encoders.encoder import Encoder

Floats = npt.NDArray[np.floating]
IMAGES = 1024  # of the test split, at most
PLATEAU = 0.95  # a final loss above this share of the plateau loss has not left the plateau
COLLAPSED_STD = 1e-3  # of normalised features; untrained encoders have 0.01, as most of a feature is the common mean
COLLAPSED_RANK = 2.0  # of centred features; a single direction is left
STATIC = 0.95  # a position kept, or dropped, in this share of the images is static
SHOWN = 6  # images in the selection figure


def feature_std(features: Floats) -> float:
    """Mean standard deviation of L2-normalised features (n, C) times sqrt(C): 1 for an even spread, 0 collapsed."""
    normal = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return float(normal.std(0).mean() * np.sqrt(features.shape[1]))


def rankme(features: Floats) -> float:
    """Effective rank, exp of the entropy of the normalised singular values (RankMe, ICML 2023, eq. 2), here centred.

    The features are centred because heads and probes remove the mean too. Without centring the rank mostly measured the
    mean: 1.9 for a run whose probe beat that of a run with 5.4.
    """
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    singular = np.linalg.svd(centred, compute_uv=False)
    p = singular / max(singular.sum(), 1e-12) + 1e-7  # constant features have rank 1, not NaN
    return float(np.exp(-(p * np.log(p)).sum()))


def learning(trained: Trained | None, features: Features, run_data: RunData, batch: int) -> Learning:
    """Compare the loss with its plateau, and measure the spread and rank of test features and the selection."""
    index = run_data.images_of("test")[:IMAGES]
    encoder = features.encoder
    at_test = features.at(index, encoder.strategy.inference[0])
    std, rank = feature_std(at_test), rankme(at_test)
    selection = selection_statistics(encoder, run_data, index)
    if trained is None:
        return Learning(
            final_loss=0.0, plateau_loss=0.0, feature_std=std, rankme=rank, verdict="not trained", selection=selection
        )
    plateau = trained.objective.plateau(batch)
    verdict: Literal["learned", "plateaued", "collapsed"] = "learned"
    if trained.final_loss > PLATEAU * plateau:
        verdict = "plateaued"
    elif std < COLLAPSED_STD or rank < COLLAPSED_RANK:
        verdict = "collapsed"
    return Learning(
        final_loss=trained.final_loss,
        plateau_loss=plateau,
        feature_std=std,
        rankme=rank,
        verdict=verdict,
        selection={**trained.history[-1]["selection"], **_over_the_run(trained.history), **selection},
    )


def _over_the_run(history: list[dict[str, Any]]) -> dict[str, float]:
    """Average over all epochs, since the noise is annealed away in the last one.

    `overlap_run`: mean overlap between the selections of training and inference (near 1 at the end by construction).
    `spread_over_noise`: mean spread of the logits over that of the noise.
    """
    chosen = [line["selection"] for line in history if "overlap" in line["selection"]]
    if not chosen:
        return {}
    found = {"overlap_run": float(np.mean([one["overlap"] for one in chosen]))}
    noise = float(np.mean([one.get("noise_spread", 0.0) for one in chosen]))
    if noise > 0:
        found["spread_over_noise"] = float(np.mean([one["logit_spread"] for one in chosen])) / noise
    return found


def selection_statistics(encoder: Encoder, run_data: RunData, index: npt.NDArray[np.int64]) -> dict[str, float]:
    """Describe what inference keeps of the images `index`. Empty for strategies without a selection.

    `kept_inference`: share of the patches that are kept, and `kept_inference_1`, ... by stage for a strategy that keeps
    another share in training. `static_share`: share of the positions that are kept, or dropped, in 95 % of the images;
    1 means that a crop was learnt, not saliency. `kept_padding`, where images are padded to a square: share of the
    padding inside kept patches.
    """
    if encoder.strategy.inference[0] == ALL_TOKENS:
        return {}
    kept = features_of(encoder, run_data, index, PRUNED).get("kept")
    if kept is None:
        return {}
    share = kept.mean(0)
    padding = run_data.dataset.padding(index, encoder.geometry.grid)
    return {
        "kept_inference": float(kept.mean()),
        "static_share": float(((share >= STATIC) | (share <= 1 - STATIC)).mean()),
        **{f"kept_inference_{stage}": part for stage, part in enumerate(encoder.strategy.stage_shares, 1)},
        **({"kept_padding": float((padding * kept).sum() / padding.sum())} if padding.any() else {}),
    }


def selection_figure(encoder: Encoder, run_data: RunData) -> dict[str, npt.NDArray[Any]] | None:
    """Return a few test images with the patches that are kept; None without a selection.

    They are chosen by rule: for each finding, in order, the positive test image with the lesion of median area, or the
    first positive image where there are no masks.
    """
    if encoder.strategy.inference[0] == ALL_TOKENS:
        return None
    data, index = run_data.dataset, run_data.images_of("test")
    chosen: list[int] = []
    for label in range(len(data.label_names)):
        positive = index[data.labels[index, label] == 1]
        if data.masks is not None:
            area = ((data.masks[positive] >> np.uint16(label)) & 1).sum((1, 2))
            positive = positive[area > 0][area[area > 0].argsort(kind="stable")]
            positive = positive[len(positive) // 2 :]
        chosen += [int(i) for i in positive[:1] if int(i) not in chosen]
    if not chosen:
        return None
    rows = np.asarray(chosen[:SHOWN])
    kept = features_of(encoder, run_data, rows, PRUNED).get("kept")
    if kept is None:
        return None
    grid = encoder.geometry.grid
    rule = "the positive test image with the lesion of median area"
    which = rule if data.masks is not None else "the first positive test image"
    arrays: dict[str, npt.NDArray[Any]] = {
        "images": np.asarray(data.images[rows]),
        "kept": kept.reshape(-1, grid, grid),
        "labels": data.labels[rows],
        "rule": np.asarray(f"of each finding, {which}"),
    }
    if data.frames is not None:
        arrays["frames"] = np.asarray(data.frames[rows])
    return arrays if data.masks is None else {**arrays, "masks": np.asarray(data.masks[rows])}
