"""AUROC, AUPRC and their uncertainty, with test patients and training seeds as crossed random effects.

Sources. AUROC as the Mann-Whitney statistic with ties counted one half; its influence by placements: DeLong, DeLong
and Clarke-Pearson (Biometrics 1988); summed over a patient's images: Obuchowski (Biometrics 1997). AUPRC is the step
sum of scikit-learn's `average_precision_score`. Seeds x patients: the two-way random-effects analysis of variance
without replication, with Satterthwaite's degrees of freedom (Biometrics Bulletin 1946).

Departures. The placements are taken on the average over the draws of a label fraction and over the findings of the
macro mean, so one number a patient carries the whole statistic. An interval is conditional on the draws that
were made: another draw of the labelled patients is not among the things it covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[Any]
Basis = Literal["seeds and patients", "patients", "seeds"]

LEVEL = 0.95


def auroc(scores: Array, labels: Array, weights: Array | None = None) -> float:
    """Area under the ROC curve; ties count one half.

    scores (n,), labels (n,) in {0, 1}, weights (n,) >= 0 or None for ones. NaN where a class has no weight.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    weight = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
    positive = labels == 1
    level, which = np.unique(scores, return_inverse=True)
    up = np.bincount(which[positive], weights=weight[positive], minlength=len(level))
    down = np.bincount(which[~positive], weights=weight[~positive], minlength=len(level))
    total = up.sum() * down.sum()
    if not total > 0:
        return float("nan")
    below = np.cumsum(down) - down
    return float((up * (below + down / 2)).sum() / total)


def auprc(scores: Array, labels: Array) -> float:
    """Average precision: sum over thresholds of (recall step) x precision, equal scores being one threshold.

    scores (n,), labels (n,) in {0, 1}. NaN where there is no positive or no negative.
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels) == 1
    if not 0 < positive.sum() < len(positive):
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    last = np.append(np.nonzero(np.diff(ranked))[0], len(ranked) - 1)  # the last of each run of equal scores
    recall, precision = hits[last] / hits[-1], hits[last] / (last + 1)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def defined_labels(scores: Array, labels: Array) -> Array:
    """(L,) bool: both classes are in the labels and every draw has scores.

    scores (D, n, L), NaN where a draw leaves the label undefined; labels (n, L) in {0, 1, NaN}.
    """
    known = ~np.isnan(labels)
    both = (np.nansum(labels, axis=0) > 0) & ((labels == 0).sum(axis=0) > 0)
    return np.asarray(both & ~(np.isnan(scores) & known[None]).any(axis=(0, 1)))


def _draws_of(scores: Array, known: Array, label: int) -> Array:
    """(D', n') scores of the images whose label is known, in the draws that define the label."""
    one = np.asarray(scores[:, known, label], dtype=np.float64)
    return one[~np.isnan(one).any(axis=1)]


def pseudo_values(scores: Array, labels: Array, patients: Array, label_mask: Array) -> tuple[Array, Array]:
    """One number a patient, whose mean is exactly the draw-averaged macro AUROC over the labels of `label_mask`.

    scores (D, n, L), labels (n, L) in {0, 1, NaN}, patients (n,), label_mask (L,) bool -> values (K,), names
    (K,) sorted. A value is theta + K x the patient's influence; the influence is the sum of the placements of
    the patient's images minus their mean, each label over the images where it is known. Raises ValueError where
    a label of the mask has a single class or no draw.
    """
    names, member = np.unique(np.asarray(patients), return_inverse=True)
    chosen = np.flatnonzero(label_mask)
    if not len(chosen):
        raise ValueError("No finding is left to average over; compare fewer methods or larger label fractions.")
    theta, influence = 0.0, np.zeros(len(names))
    for label in map(int, chosen):
        known = ~np.isnan(labels[:, label])
        positive, group = labels[known, label] == 1, member[known]
        draws = _draws_of(scores, known, label)
        if not len(draws) or not 0 < positive.sum() < len(positive):
            raise ValueError(f"Finding number {label} has a single class or no scores; leave it out of the mask.")
        for one in draws:
            up, down = np.sort(one[positive]), np.sort(one[~positive])
            above = (np.searchsorted(down, one[positive], "left") + np.searchsorted(down, one[positive], "right")) / 2
            under = (np.searchsorted(up, one[~positive], "left") + np.searchsorted(up, one[~positive], "right")) / 2
            value = above.mean() / len(down)
            placement = np.empty(len(one))
            placement[positive] = (above / len(down) - value) / len(up)
            placement[~positive] = (1 - under / len(up) - value) / len(down)
            theta += value / len(draws)
            influence += np.bincount(group, weights=placement, minlength=len(names)) / len(draws)
    return (theta + len(names) * influence) / len(chosen), names


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval; `std` is over seeds (NaN with one), `basis` what the interval
    covers."""

    value: float
    low: float
    high: float
    std: float
    df: float
    seeds: int
    patients: int
    basis: Basis


def crossed_interval(values: Array) -> Estimate:
    """Mean of a seeds x patients table, with a t interval for both as crossed random effects.

    values (S, K): pseudo-values, or differences of them, of the same patients in the same order. With mean
    squares for seeds, patients and residual, the variance of the mean is (MS_seed + MS_patient - MS_residual) /
    (S K), never below either main effect's own share; Satterthwaite's df. With one seed the interval is over
    patients alone.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    seeds, patients = values.shape
    by_seed, by_patient, mean = values.mean(axis=1), values.mean(axis=0), float(values.mean())
    if patients < 2:
        raise ValueError("An interval needs two test patients at least.")
    if seeds == 1:
        error, df = float(by_patient.std(ddof=1) / np.sqrt(patients)), float(patients - 1)
        spread, basis = float("nan"), "patients"
    else:
        ms_seed = patients * by_seed.var(ddof=1)
        ms_patient = seeds * by_patient.var(ddof=1)
        residual = values - by_seed[:, None] - by_patient[None] + mean
        ms_rest = (residual**2).sum() / ((seeds - 1) * (patients - 1))
        total = max(ms_seed + ms_patient - ms_rest, ms_seed, ms_patient)
        parts = ms_seed**2 / (seeds - 1) + ms_patient**2 / (patients - 1)
        parts += ms_rest**2 / ((seeds - 1) * (patients - 1))
        df = float(np.clip(total**2 / parts, seeds - 1, patients - 1)) if parts > 0 else float(patients - 1)
        error, spread = float(np.sqrt(total / (seeds * patients))), float(by_seed.std(ddof=1))
        basis = "seeds and patients"
    half = float(stats.t.ppf((1 + LEVEL) / 2, df)) * error
    return Estimate(mean, mean - half, mean + half, spread, df, seeds, patients, basis)  # type: ignore[arg-type]


def seeds_interval(values: Array) -> Estimate:
    """Mean of one value a seed (S,) with a t interval over seeds alone: for records that keep no predictions.
    With one seed the interval is unknown: (-inf, inf)."""
    values = np.asarray(values, dtype=np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Estimate(mean, float("-inf"), float("inf"), float("nan"), 0.0, count, 0, "seeds")
    spread = float(values.std(ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * spread / np.sqrt(count)
    return Estimate(mean, mean - half, mean + half, spread, count - 1.0, count, 0, "seeds")


def crossed_bootstrap(values: Array, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean of `values` (S, K), seeds and patients resampled independently.

    A check on `crossed_interval`: it is too narrow with few seeds (about .89 cover for .95 with three)."""
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    seeds, patients = values.shape
    random = np.random.default_rng(seed)
    by_seed = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    by_patient = random.multinomial(patients, np.full(patients, 1 / patients), size=resamples) / patients
    means = np.einsum("rs,rs->r", by_seed, by_patient @ values.T)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap_interval(
    scores: Array,
    labels: Array,
    patients: Array,
    label_mask: Array | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[tuple[float, float], Array]:
    """Percentile bootstrap over patients of the draw-averaged AUROC: ((low, high) of the macro mean, (L, 2) by
    label).

    scores (D, n, L) with NaN where a draw leaves a label undefined, labels (n, L) in {0, 1, NaN}, patients
    (n,). The macro mean is over `label_mask` (L,), by default the labels defined in every draw. A label with a
    single class or no draw gets NaN. Resamples without both classes of a label don't count. One matrix product
    a label: the comparison matrix of positives and negatives, averaged over draws, between the weights of a
    resample.
    """
    count = labels.shape[1]
    mask = defined_labels(scores, labels) if label_mask is None else np.asarray(label_mask, dtype=bool)
    _, member = np.unique(np.asarray(patients), return_inverse=True)
    total = int(member.max()) + 1
    random = np.random.default_rng(seed)
    weights = random.multinomial(total, np.full(total, 1 / total), size=resamples).astype(np.float32)[:, member]
    by_label = np.full((resamples, count), np.nan)
    for label in range(count):
        known = ~np.isnan(labels[:, label])
        positive, draws = labels[known, label] == 1, _draws_of(scores, known, label)
        if len(draws) and 0 < positive.sum() < len(positive):
            by_label[:, label] = _weighted_aurocs(draws, positive, weights[:, known])
    edges = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    each = np.full((count, 2), np.nan)
    for label in range(count):
        valid = by_label[~np.isnan(by_label[:, label]), label]
        if len(valid):
            each[label] = np.quantile(valid, edges)
    macro = by_label[:, mask & ~np.isnan(each[:, 0])]
    macro = macro[~np.isnan(macro).any(axis=1)].mean(axis=1) if macro.shape[1] else np.empty(0)
    if not len(macro):
        return (float("nan"), float("nan")), each
    low, high = np.quantile(macro, edges)
    return (float(low), float(high)), each


def _weighted_aurocs(draws: Array, positive: Array, weights: Array, block: int = 1 << 24) -> Array:
    """(R,) draw-averaged AUROC under each row of weights (R, n); draws (D, n), positive (n,) bool."""
    up, down = draws[:, positive], draws[:, ~positive]
    high, low = weights[:, positive], weights[:, ~positive]
    wins = np.zeros(len(weights))
    step = max(1, block // max(1, down.shape[1]))
    for start in range(0, up.shape[1], step):
        part = slice(start, start + step)
        compared = np.zeros((up[:, part].shape[1], down.shape[1]), dtype=np.float32)
        for one, other in zip(up[:, part], down, strict=True):
            compared += one[:, None] > other
            compared += np.float32(0.5) * (one[:, None] == other)
        wins += np.einsum("rj,rj->r", high[:, part] @ compared, low, dtype=np.float64)
    pairs = high.sum(axis=1, dtype=np.float64) * low.sum(axis=1, dtype=np.float64) * len(draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(pairs > 0, wins / pairs, np.nan))
