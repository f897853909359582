"""Probes of frozen features: linear (logistic regression) and nearest neighbours.

Both use only the labelled images of one fraction. The regularisation is cross-validated by patient inside the fraction,
or fixed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from bench.specs.run_spec import FOLDS

Floats = npt.NDArray[np.floating]
EXTENSIONS = 3  # powers of ten that the search may go beyond either end of its grid
NARROW = 128  # features up to which Newton's method is faster than L-BFGS, however few images there are
KNN_TEMPERATURE = 0.07  # of the neighbours' weights, as in Wu et al., CVPR 2018


def linear_probe(
    train: Floats,
    labels: Floats,
    patients: npt.NDArray[np.str_],
    test: Floats,
    c: Sequence[float],
    repeats: int = 1,
) -> tuple[Floats, dict[str, float]]:
    """Fit one logistic regression per label on standardised features.

    train (n, D), labels (n, L) in {0, 1, NaN}, patients (n,), test (m, D). Of the inverse regularisations `c` the one
    with the least log-loss over all labels on held-out patients is used, averaged over `repeats` divisions of the
    patients into folds. While the best lies at an end of the grid, the grid is extended there by powers of ten, up to
    EXTENSIONS of them. A single `c` is used as it is.

    Returns probabilities (m, L), NaN for labels with a single class in the fraction, and the choice: `C`, and
    `at_edge`, 1 if it still lies at an end of all that was tried.
    """
    with threadpool_limits(1, user_api="blas"):  # thousands of small fits: threads made them up to 25 times slower
        scaler = StandardScaler().fit(train)
        train, test = scaler.transform(train), scaler.transform(test)
        chosen = {"C": float(c[0])} if len(c) == 1 else _choose(train, labels, patients, sorted(c), repeats)
        scores = np.full((len(test), labels.shape[1]), np.nan)
        for label in range(labels.shape[1]):
            model = _fit(train, labels[:, label], chosen["C"])
            if model is not None:
                scores[:, label] = model.predict_proba(test)[:, 1]
        return scores, chosen


def _choose(
    train: Floats, labels: Floats, patients: npt.NDArray[np.str_], c: Sequence[float], repeats: int
) -> dict[str, float]:
    """Return the strength with the least held-out log-loss, from `c` (ascending) and extensions beyond its ends."""
    if len(np.unique(patients)) < 2:
        return {"C": float(np.median(c)), "at_edge": 0.0}
    folds = list(_folds(patients, repeats))
    losses = _held_out_losses(train, labels, folds, [float(strength) for strength in c])
    lowest, highest = min(losses), max(losses)
    while True:
        best = min(losses, key=lambda strength: losses[strength])
        below, above = best == min(losses), best == max(losses)
        beyond = best / 10 if below else best * 10
        if not (below or above) or not lowest / 10**EXTENSIONS * 0.99 < beyond < highest * 10**EXTENSIONS * 1.01:
            return {"C": best, "at_edge": float(below or above)}
        losses |= _held_out_losses(train, labels, folds, [beyond])


def _folds(patients: npt.NDArray[np.str_], repeats: int) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Yield (inside, outside) indices; no patient is on both sides. Each repeat divides the patients differently."""
    count = min(FOLDS, len(np.unique(patients)))
    for repeat in range(repeats):
        shuffled = {"shuffle": True, "random_state": repeat} if repeats > 1 else {}
        yield from GroupKFold(count, **shuffled).split(patients, groups=patients)


def _held_out_losses(
    train: Floats,
    labels: Floats,
    folds: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]],
    strengths: Sequence[float],
) -> dict[float, float]:
    """Log-loss of each strength on held-out patients, summed over labels and folds with both classes to learn from.

    Each regression starts from the solution for the strength before.
    """
    total = dict.fromkeys(strengths, 0.0)
    for inside, outside in folds:
        for label in range(labels.shape[1]):
            known = outside[~np.isnan(labels[outside, label])]
            model, y = None, labels[known, label]
            for strength in strengths if len(known) else ():
                model = _fit(train[inside], labels[inside, label], strength, model)
                if model is None:
                    break
                p = np.clip(special.expit(model.decision_function(train[known])), 1e-6, 1 - 1e-6)
                total[strength] -= float((y * np.log(p) + (1 - y) * np.log(1 - p)).sum())
    return total


def _fit(
    features: Floats, label: Floats, c: float, start: LogisticRegression | None = None
) -> LogisticRegression | None:
    """Fit a regression on the images whose label is known, from the solution of `start`, which is changed; None if they
    are all of one class."""
    known = ~np.isnan(label)
    if len(np.unique(label[known])) < 2:
        return None
    model = start
    if model is None:
        newton = features.shape[1] <= max(NARROW, int(known.sum()))  # its cost grows with the cube of the width
        solver = "newton-cholesky" if newton else "lbfgs"
        model = LogisticRegression(solver=solver, max_iter=300, warm_start=True)
    model.C = c
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # separable small fractions: the penalty decides
        return model.fit(features[known], label[known])


def knn_probe(train: Floats, labels: Floats, test: Floats, neighbours: int) -> tuple[Floats, dict[str, float]]:
    """Score by a weighted vote of the nearest neighbours, per label among the images whose label is known.

    Similarity is the cosine, the weights are exp(similarity / 0.07). Shapes as in `linear_probe`; NaN for labels with a
    single class.
    """
    train = train / np.maximum(np.linalg.norm(train, axis=1, keepdims=True), 1e-12)
    test = test / np.maximum(np.linalg.norm(test, axis=1, keepdims=True), 1e-12)
    similarity = test @ train.T  # (m, n)
    scores = np.full((len(test), labels.shape[1]), np.nan)
    for label in range(labels.shape[1]):
        known = np.flatnonzero(~np.isnan(labels[:, label]))
        y = labels[known, label]
        if len(np.unique(y)) < 2:
            continue
        near = similarity[:, known]
        k = min(neighbours, len(known))
        top = np.argpartition(-near, k - 1, axis=1)[:, :k]
        weight = np.exp((np.take_along_axis(near, top, 1) - 1) / KNN_TEMPERATURE)
        scores[:, label] = (weight * y[top]).sum(1) / weight.sum(1)
    return scores, {"k": float(min(neighbours, len(train)))}
