"""Probes of frozen features: linear (logistic regression) and nearest neighbours.

Both use only the labelled images of one fraction. The regularisation is cross-validated by patient inside the fraction,
or fixed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

Floats = npt.NDArray[np.floating]
FOLDS = 3
KNN_TEMPERATURE = 0.07  # of the neighbours' weights, as in Wu et al., CVPR 2018


def linear_probe(
    train: Floats, labels: Floats, patients: npt.NDArray[np.str_], test: Floats, c: Sequence[float]
) -> tuple[Floats, dict[str, float]]:
    """Fit one logistic regression per label on standardised features.

    train (n, D), labels (n, L) in {0, 1, NaN}, patients (n,), test (m, D). Of the inverse regularisations `c` the one
    with the least log-loss over all labels on held-out patients is used. Returns probabilities (m, L), NaN for labels
    with a single class in the fraction, and the choice.
    """
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    best = c[0] if len(c) == 1 else _choose(train, labels, patients, c)
    scores = np.full((len(test), labels.shape[1]), np.nan)
    for label in range(labels.shape[1]):
        model = _fit(train, labels[:, label], best)
        if model is not None:
            scores[:, label] = model.predict_proba(test)[:, 1]
    return scores, {"C": float(best)}


def _choose(train: Floats, labels: Floats, patients: npt.NDArray[np.str_], c: Sequence[float]) -> float:
    """Return the regularisation with the least held-out log-loss, summed over labels and folds of patients."""
    count = min(FOLDS, len(np.unique(patients)))
    if count < 2:
        return float(np.median(c))
    losses = np.zeros(len(c))
    for inside, outside in GroupKFold(count).split(train, groups=patients):
        for label in range(labels.shape[1]):
            known = outside[~np.isnan(labels[outside, label])]
            for i, strength in enumerate(c):
                model = _fit(train[inside], labels[inside, label], strength)
                if model is None or len(known) == 0:
                    break  # a single class in this fold
                p = np.clip(model.predict_proba(train[known])[:, 1], 1e-6, 1 - 1e-6)
                y = labels[known, label]
                losses[i] -= float((y * np.log(p) + (1 - y) * np.log(1 - p)).sum())
    return float(c[int(losses.argmin())])


def _fit(features: Floats, label: Floats, c: float) -> LogisticRegression | None:
    """Fit a regression on the images whose label is known; None if they are all of one class."""
    known = ~np.isnan(label)
    if len(np.unique(label[known])) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # separable small fractions: the penalty decides
        solver = "newton-cholesky" if known.sum() > features.shape[1] else "lbfgs"
        return LogisticRegression(C=c, solver=solver, max_iter=300).fit(features[known], label[known])


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
