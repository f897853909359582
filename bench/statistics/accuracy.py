"""AUROC, AUPRC and their uncertainty: training seeds, draws of labelled patients and test patients as crossed random
effects.

Sources. AUROC as the Mann-Whitney statistic with ties counted one half; its influence by placements: DeLong, DeLong
and Clarke-Pearson (Biometrics 1988); summed over a patient's images: Obuchowski (Biometrics 1997). AUPRC is the step
sum of scikit-learn's `average_precision_score`. Seeds x draws x patients: the random-effects analysis of variance of a
crossed design without replication (Searle, Casella, McCulloch, "Variance Components", 1992, chapter 4), with
Satterthwaite's degrees of freedom (Biometrics Bulletin 1946). An AUROC has its interval on the logit scale (Pepe, "The
Statistical Evaluation of Medical Tests", 2003, section 5.2). What the intervals cover, by simulation:
docs/intervals.md.

Departures. The placements are averaged over the findings of the macro mean, so one number a draw and patient carries
the whole statistic. The degrees of freedom of the patients' mean square come from its fourth moment, because a rare
finding leaves most of the sum of squares to a few patients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[Any]

LEVEL = 0.95
LEVELS = 3
"""Seeds, or draws, that an interval needs to cover them: with two, t has one degree of freedom."""
SOUND_PATIENTS = 10
"""Test patients with, and without, a finding from which on an interval holds its level; with fewer it is rough."""
FEWEST_PATIENTS = 5
"""The same count below which there is no interval."""


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
    """One number a draw and patient; a draw's mean is exactly its macro AUROC over the labels of `label_mask`.

    scores (D, n, L), labels (n, L) in {0, 1, NaN}, patients (n,), label_mask (L,) bool -> values (D, K), names
    (K,) sorted. A value is theta + K x the patient's influence; the influence is the sum of the placements of
    the patient's images minus their mean, each label over the images where it is known. The placements of a class are
    scaled by sqrt(m / (m - 1)), m the patients with an image of that class, as in DeLong's unbiased variance. Raises
    ValueError where a label of the mask has a single class, or a draw without scores for it.
    """
    names, member = np.unique(np.asarray(patients), return_inverse=True)
    chosen = np.flatnonzero(label_mask)
    if not len(chosen):
        raise ValueError("No finding is left to average over; compare fewer methods or larger label fractions.")
    values = np.zeros((len(scores), len(names)))
    for label in map(int, chosen):
        known = ~np.isnan(labels[:, label])
        positive, group = labels[known, label] == 1, member[known]
        up_scale, down_scale = (_unbiased(len(np.unique(group[one]))) for one in (positive, ~positive))
        draws = np.asarray(scores[:, known, label], dtype=np.float64)
        if np.isnan(draws).any() or not 0 < positive.sum() < len(positive):
            raise ValueError(f"Finding number {label} has a single class or no scores; leave it out of the mask.")
        for draw, one in enumerate(draws):
            up, down = np.sort(one[positive]), np.sort(one[~positive])
            above = (np.searchsorted(down, one[positive], "left") + np.searchsorted(down, one[positive], "right")) / 2
            under = (np.searchsorted(up, one[~positive], "left") + np.searchsorted(up, one[~positive], "right")) / 2
            value = above.mean() / len(down)
            placement = np.empty(len(one))
            placement[positive] = (above / len(down) - value) / len(up) * up_scale
            placement[~positive] = (1 - under / len(up) - value) / len(down) * down_scale
            values[draw] += value + len(names) * np.bincount(group, weights=placement, minlength=len(names))
    return values / len(chosen), names


def _unbiased(patients: int) -> float:
    """sqrt(m / (m - 1)); 1 for a single patient, from whom no spread can be told."""
    return float(np.sqrt(patients / (patients - 1))) if patients > 1 else 1.0


def patients_by_class(labels: Array, patients: Array) -> Array:
    """(L, 2) numbers of patients with a negative and with a positive image of each label.

    labels (n, L) in {0, 1, NaN}, patients (n,).
    """
    patients = np.asarray(patients)
    return np.array([[len(np.unique(patients[one == side])) for side in (0, 1)] for one in np.asarray(labels).T])


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval.

    `std` is over seeds (NaN with one). `basis` names what the interval covers, of "seeds", "draws" and "patients".
    Without an interval low and high are NaN and `reason` says why. A `rough` interval covers less than its level.
    """

    value: float
    low: float
    high: float
    std: float
    df: float
    seeds: int
    patients: int
    basis: tuple[str, ...]
    reason: str = ""
    rough: bool = False

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    def unbounded(self, reason: str) -> Estimate:
        """The same mean without an interval."""
        return replace(self, low=float("nan"), high=float("nan"), basis=(), reason=reason)


EFFECTS = ("seeds", "draws", "patients")


def crossed_interval(values: Array) -> Estimate:
    """Mean of a seeds x draws x patients table, with a t interval for those that vary as crossed random effects.

    values (S, D, K): pseudo-values, or differences of them, of the same draws and patients in the same order. With MS
    the mean square of a main effect or interaction, the variance of the mean is the sum of MS over the main effects,
    minus that over the two-way interactions, plus the three-way one, over S D K: the unbiased estimate, but never
    below any main effect's own share; Satterthwaite's df, within those of the main effects.

    Seeds, or draws, that are fewer than LEVELS are averaged first: the interval takes them as they are. With fewer
    seeds than that it is over patients alone. Raises ValueError for fewer than two patients.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape[2] < 2:
        raise ValueError("An interval needs two test patients at least.")
    mean, by_seed, patients = float(values.mean()), values.mean(axis=(1, 2)), values.shape[2]
    spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan")
    if values.shape[1] < LEVELS or len(values) < LEVELS:
        values = values.mean(axis=1, keepdims=True)
    if len(values) < LEVELS:
        values = values.mean(axis=0, keepdims=True)
    axes = [axis for axis, size in enumerate(values.shape) if size > 1]
    total, parts, largest, own = 0.0, 0.0, 0.0, []
    for order in range(1, len(axes) + 1):
        for effect in combinations(axes, order):
            df = float(np.prod([values.shape[axis] - 1 for axis in effect]))
            square = _sum_of_squares(values, effect) / df
            if order == 1:
                df = _patients_df(values.mean(axis=(0, 1))) if effect == (2,) else df
                own.append(df)
                largest = max(largest, square)
            total -= (-1) ** order * square
            parts += square**2 / df
    total = max(total, largest)
    df = float(np.clip(total**2 / parts, min(own), max(own))) if parts > 0 else max(own)
    half = float(stats.t.ppf((1 + LEVEL) / 2, df)) * float(np.sqrt(total / values.size))
    basis = tuple(EFFECTS[axis] for axis in axes)
    return Estimate(mean, mean - half, mean + half, spread, df, len(by_seed), patients, basis)


def _patients_df(values: Array) -> float:
    """Degrees of freedom of the mean square of (K,) values that need not be normal: 2 (mean square)^2 over its
    variance, which the fourth moment gives, and K - 1 at most."""
    squares = (values - values.mean()) ** 2
    excess = float((squares**2).sum() - squares.sum() ** 2 / len(squares))
    most = len(squares) - 1.0
    return min(most, 2 * float(squares.sum()) ** 2 / excess) if excess > 0 else most


def of_auroc(found: Estimate) -> Estimate:
    """The estimate of an AUROC with the interval of a share."""
    return of_share(found, "a ranking without a single error leaves its spread unknown")


def of_share(found: Estimate, at_the_ends: str) -> Estimate:
    """The estimate of a share with its interval made on the logit scale, where it can't leave (0, 1); `found` has it on
    the raw scale. At 0 or 1 there is none, for the reason `at_the_ends`."""
    if not found.bounded:
        return found
    if not 0 < found.value < 1:
        return found.unbounded(at_the_ends)
    middle = float(special.logit(found.value))
    half = (found.high - found.low) / 2 / (found.value * (1 - found.value))
    return replace(found, low=float(special.expit(middle - half)), high=float(special.expit(middle + half)))


def of_difference(found: Estimate) -> Estimate:
    """The estimate of a difference of two AUROCs: its interval ends where such a difference does, at -1 and 1."""
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high)) if found.bounded else found


def among_patients(found: Estimate, fewest: int, whom: str) -> Estimate:
    """The estimate with what `fewest` patients of the rarest class allow: an interval, a rough one, or none. `whom`
    names them, such as "test patients with effusion"."""
    if fewest < FEWEST_PATIENTS:
        return found.unbounded(f"{fewest} {whom}, and an interval needs {FEWEST_PATIENTS}")
    return replace(found, rough=True) if fewest < SOUND_PATIENTS and found.bounded else found


def _sum_of_squares(values: Array, effect: tuple[int, ...]) -> float:
    """Of a main effect (one axis) or an interaction (several) in a crossed design, over all cells."""
    deviation = np.zeros(())
    for order in range(len(effect) + 1):
        for axes in combinations(effect, order):
            others = tuple(axis for axis in range(values.ndim) if axis not in axes)
            deviation = deviation + (-1) ** (len(effect) - order) * values.mean(axis=others, keepdims=True)
    return float((deviation**2).sum() * values.size / deviation.size)


def seeds_interval(values: Array) -> Estimate:
    """Mean of one value a seed (S,) with a t interval over seeds alone: for records that keep no predictions. Fewer
    than LEVELS seeds have no interval."""
    values = np.asarray(values, dtype=np.float64)
    mean, count = float(values.mean()), len(values)
    spread = float(values.std(ddof=1)) if count > 1 else float("nan")
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * spread / np.sqrt(count) if count > 1 else float("nan")
    found = Estimate(mean, mean - half, mean + half, spread, count - 1.0, count, 0, ("seeds",))
    if count < LEVELS:
        return found.unbounded(f"without predictions it is over seeds, and needs {LEVELS} of them")
    return found


def crossed_bootstrap(values: Array, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean of `values` (S, D, K), seeds, draws and patients resampled independently.

    A check on `crossed_interval`: it is too narrow with few seeds (about .89 cover for .95 with three)."""
    random = np.random.default_rng(seed)
    weights = [random.multinomial(size, np.full(size, 1 / size), size=resamples) / size for size in values.shape]
    means = np.einsum("rs,rd,rk,sdk->r", *weights, values, optimize=True)
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
