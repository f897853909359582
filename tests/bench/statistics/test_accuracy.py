"""Statistics against scikit-learn, brute force and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from bench.statistics import accuracy as s


def draws_of(seed=0, draws=3, patients=120, labels=3, missing=0.0):
    """Scores (D, n, L) with ties, labels with patient-level truth and blanks, patients with one to four images."""
    random = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), random.integers(1, 5, patients))
    truth = (random.random((patients, labels)) < 0.3).astype(np.float32)[who]
    scores = truth + random.normal(0, 1, (patients, labels))[who] + random.normal(0, 1, (draws, len(who), labels))
    truth[random.random(truth.shape) < missing] = np.nan
    return np.round(scores, 1).astype(np.float32), truth, np.array([f"p{i}" for i in who])


def macro(scores, labels, weights=None):
    """Draw-averaged macro AUROC by scikit-learn."""
    values = []
    for one in scores:
        for label in range(labels.shape[1]):
            known = ~np.isnan(labels[:, label])
            weight = None if weights is None else weights[known]
            values.append(roc_auc_score(labels[known, label], one[known, label], sample_weight=weight))
    return np.mean(values)


@pytest.mark.parametrize("step", [0.001, 0.5, 2.0])
def test_auroc_and_auprc_agree_with_sklearn_whatever_the_ties(step):
    random = np.random.default_rng(1)
    labels = (random.random(300) < 0.2).astype(int)
    scores = np.round((labels + random.normal(0, 1, 300)) / step) * step
    weights = random.integers(0, 4, 300)
    assert s.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert s.auroc(scores, labels, weights) == pytest.approx(
        roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12
    )
    assert s.auprc(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


def test_auroc_of_a_single_class_is_undefined():
    assert np.isnan(s.auroc(np.arange(3.0), np.ones(3)))
    assert np.isnan(s.auprc(np.arange(3.0), np.zeros(3)))
    assert s.auroc(np.zeros(4), np.array([0, 1, 0, 1])) == 0.5


def test_defined_labels_need_both_classes_and_every_draw():
    scores, labels, _ = draws_of(labels=4)
    labels[:, 1] = 0
    scores[1, :, 2] = np.nan
    assert s.defined_labels(scores, labels).tolist() == [True, False, False, True]


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_mean_of_the_pseudo_values_is_the_macro_auroc(missing):
    scores, labels, who = draws_of(missing=missing)
    values, names = s.pseudo_values(scores, labels, who, np.ones(3, bool))
    assert names.tolist() == sorted(set(who))
    assert values.mean(axis=1) == pytest.approx([macro(one[None], labels) for one in scores], abs=1e-9)
    only, _ = s.pseudo_values(scores, labels, who, np.array([False, True, False]))
    assert only.mean() == pytest.approx(macro(scores[:, :, 1:2], labels[:, 1:2]), abs=1e-9)


def test_the_clustered_variance_agrees_with_a_jackknife_over_patients():
    scores, labels, who = draws_of(patients=150, missing=0.1)
    values, names = s.pseudo_values(scores, labels, who, np.ones(3, bool))
    values = values.mean(axis=0)
    left_out = np.array([macro(scores[:, who != name], labels[who != name]) for name in names])
    count = len(names)
    jackknife = np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum())
    ours = values.std(ddof=1) / np.sqrt(count)
    assert ours == pytest.approx(jackknife, rel=0.03)
    by_image, _ = s.pseudo_values(scores, labels, np.arange(len(who)), np.ones(3, bool))
    naive = by_image.mean(axis=0).std(ddof=1) / np.sqrt(len(who))
    assert ours > 1.1 * naive  # a patient's images are alike: to count them as independent is too bold


def test_with_one_image_a_patient_the_variance_is_delongs_unbiased_one():
    """Against the placements by their definition: each positive compared with each negative."""
    scores, labels, _ = draws_of(draws=1, patients=60, labels=1)
    one, positive = scores[0, :, 0], labels[:, 0] == 1
    wins = (one[positive][:, None] > one[~positive]) + 0.5 * (one[positive][:, None] == one[~positive])
    ups, downs = wins.mean(axis=1), wins.mean(axis=0)
    delong = ups.var(ddof=1) / len(ups) + downs.var(ddof=1) / len(downs)
    values, _ = s.pseudo_values(scores, labels, np.arange(len(one)), np.ones(1, bool))
    assert ((values - values.mean()) ** 2).sum() / len(one) ** 2 == pytest.approx(delong)


def test_placements_are_scaled_by_the_patients_of_their_class():
    """Three patients with a positive image, one of them with a negative one too, and two with negative ones alone."""
    who = np.array(["a", "a", "b", "c", "c", "d", "d", "e"])
    labels = np.array([1, 0, 1, 1, 1, 0, 0, 0], dtype=float)[:, None]
    scores = np.array([0.9, 0.2, 0.4, 0.8, 0.3, 0.5, 0.1, 0.35])
    value, expected = roc_auc_score(labels[:, 0], scores), dict.fromkeys("abcde", 0.0)
    for patient, label, score in zip(who, labels[:, 0], scores, strict=True):
        others = scores[labels[:, 0] != label]
        won = np.mean(score > others) if label else np.mean(score < others)
        expected[patient] += (won - value) / (labels[:, 0] == label).sum() * np.sqrt(3 / 2)
    values, names = s.pseudo_values(scores[None, :, None], labels, who, np.ones(1, bool))
    assert values[0] == pytest.approx([value + 5 * expected[name] for name in names])
    assert s.patients_by_class(labels, who).tolist() == [[3, 3]]


def test_patients_are_counted_in_each_class_that_they_have_a_known_image_of():
    labels = np.array([[1, np.nan], [0, 1], [1, np.nan], [np.nan, 0]])
    assert s.patients_by_class(labels, np.array(["a", "a", "b", "c"])).tolist() == [[1, 2], [1, 1]]


def test_a_single_positive_patient_leaves_the_mean_exact():
    scores, labels, who = draws_of(labels=1)
    labels[who != "p3"] = 0
    labels[who == "p3"] = 1
    values, _ = s.pseudo_values(scores, labels, who, np.ones(1, bool))
    assert values.mean() == pytest.approx(macro(scores, labels))


@pytest.mark.parametrize("what", ["one class", "a draw without scores"])
def test_a_label_that_is_not_defined_throughout_is_refused(what):
    scores, labels, who = draws_of()
    if what == "one class":
        labels[:, 0] = 1
    else:
        scores[1, :, 0] = np.nan
    with pytest.raises(ValueError, match="single class or no scores"):
        s.pseudo_values(scores, labels, who, np.ones(3, bool))
    s.pseudo_values(scores, labels, who, np.array([False, True, True]))


def crossed_table(random, sizes, **deviations):
    """A table (S, D, K) of normal effects: `s`, `d`, `k` and their interactions by name, e.g. `sk`."""
    table = np.zeros(sizes)
    for name, deviation in deviations.items():
        table += random.normal(
            0, deviation, [size if axis in name else 1 for axis, size in zip("sdk", sizes, strict=True)]
        )
    return table


@pytest.mark.parametrize(
    ("sizes", "deviations"),
    [
        ((3, 1, 200), {"s": 0.02, "k": 1.0, "sk": 1.0}),
        ((5, 1, 200), {"k": 1.0, "sk": 1.0}),
        ((3, 5, 200), {"s": 0.02, "d": 0.03, "k": 0.3, "sd": 0.01, "sk": 0.3, "dk": 0.3, "sdk": 0.3}),
        ((3, 5, 200), {"k": 0.5, "sd": 0.02, "sk": 0.3, "dk": 0.3, "sdk": 0.3}),
        ((5, 3, 200), {"d": 0.05, "k": 0.5, "sk": 0.5, "dk": 0.5, "sdk": 0.5}),
        ((2, 5, 200), {"k": 0.5, "sk": 0.5, "dk": 0.5}),
    ],
)
def test_the_crossed_interval_covers_the_truth(sizes, deviations):
    random, runs, hits = np.random.default_rng(sizes), 1000, 0
    for _ in range(runs):
        found = s.crossed_interval(crossed_table(random, sizes, **deviations))
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / runs <= 0.985


def test_the_crossed_variance_is_that_of_the_components():
    """Against the components by hand: the expected estimate is the sum of component / number of its levels."""
    random, found, sizes = np.random.default_rng(4), [], (6, 5, 50)
    deviations = {"s": 0.5, "d": 0.4, "k": 2.0, "sd": 0.3, "sk": 1.0, "dk": 1.0, "sdk": 1.0}
    for _ in range(400):
        one = s.crossed_interval(crossed_table(random, sizes, **deviations))
        found.append(((one.high - one.low) / 2 / stats.t.ppf(0.975, one.df)) ** 2)
    by_hand = 0.25 / 6 + 0.16 / 5 + 4 / 50 + 0.09 / 30 + 1 / 300 + 1 / 250 + 1 / 1500
    assert np.mean(found) == pytest.approx(by_hand, rel=0.08)


def test_the_mean_squares_are_those_of_a_textbook_two_way_table():
    """Against scipy's one-way F on rows and columns of an additive table, whose interaction is the rest."""
    random = np.random.default_rng(1)
    table = crossed_table(random, (4, 1, 30), s=1.0, k=1.0, sk=1.0)[:, 0]
    rows, columns = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    between = 30 * rows.var(ddof=1), 4 * columns.var(ddof=1)
    rest = ((table - rows - columns + table.mean()) ** 2).sum() / (3 * 29)
    found = s.crossed_interval(table[:, None])
    error = (found.high - found.low) / 2 / stats.t.ppf(0.975, found.df)
    assert error**2 * table.size == pytest.approx(sum(between) - rest)


def test_another_draw_of_the_labelled_patients_is_covered_where_there_are_several():
    table = crossed_table(np.random.default_rng(3), (3, 5, 300), d=0.05, k=0.3, sdk=0.3)
    with_draws, without = s.crossed_interval(table), s.crossed_interval(table.mean(axis=1, keepdims=True))
    assert with_draws.value == pytest.approx(without.value)
    assert with_draws.high - with_draws.low > 1.3 * (without.high - without.low)
    assert (with_draws.basis, without.basis) == (("seeds", "draws", "patients"), ("seeds", "patients"))


def test_one_seed_gives_an_interval_over_patients_and_says_so():
    values = np.tile([0.3, 1.3], 50)  # no tails: all degrees of freedom are there
    found = s.crossed_interval(values[None, None])
    low, high = stats.t.interval(0.95, 99, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.basis == ("patients",)
    assert np.isnan(found.std)


def test_the_degrees_of_freedom_of_patients_come_from_their_fourth_moment():
    """The variance of a mean square is about (fourth moment - second^2) / K, and df = 2 square^2 / variance."""
    values = np.r_[np.zeros(90), np.arange(10.0)]
    moment = stats.moment(values, [2, 4])
    expected = 2 * moment[0] ** 2 / ((moment[1] - moment[0] ** 2) / len(values))
    assert 5 < expected < 15
    found = s.crossed_interval(values[None, None])
    assert found.df == pytest.approx(expected)
    assert s.crossed_interval(np.stack([values, values + 1e-9, values - 1e-9])[:, None]).df == pytest.approx(expected)


def test_df_lie_within_those_of_the_effects_and_not_within_their_sizes():
    """Two seed effects that cancel to the eye, and patients of whom a few carry everything: df are those few's."""
    values = np.r_[np.zeros(190), np.arange(10.0)] * np.array([[0.9], [1.0], [1.1]])
    found = s.crossed_interval(values[:, None])
    assert 2 <= found.df <= s.crossed_interval(values.mean(axis=0)[None, None]).df < 20


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_give_an_interval_over_patients_alone(seeds):
    """With two, t has one degree of freedom: 12.7 standard errors either way."""
    table = crossed_table(np.random.default_rng(1), (seeds, 5, 300), s=0.2, d=0.1, k=0.3, sdk=0.3)
    found, alone = s.crossed_interval(table), s.crossed_interval(table.mean(axis=(0, 1))[None, None])
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert (found.basis, found.seeds, found.df) == (("patients",), seeds, pytest.approx(alone.df))
    assert np.isnan(found.std) == (seeds == 1)


def test_two_draws_are_taken_as_they_are():
    table = crossed_table(np.random.default_rng(1), (4, 2, 300), s=0.01, d=0.2, k=0.3, sdk=0.3)
    found, averaged = s.crossed_interval(table), s.crossed_interval(table.mean(axis=1, keepdims=True))
    assert (found.low, found.high) == pytest.approx((averaged.low, averaged.high))
    assert found.basis == ("seeds", "patients")


def test_an_interval_needs_two_patients():
    with pytest.raises(ValueError, match="two test patients"):
        s.crossed_interval(np.zeros((5, 1, 1)))


def estimate(value, half, **changes):
    plain = {"std": 0.01, "df": 9.0, "seeds": 5, "patients": 100, "basis": ("seeds", "patients")}
    return s.Estimate(value, value - half, value + half, **(plain | changes))


@pytest.mark.parametrize(("value", "half"), [(0.5, 0.05), (0.9, 0.05), (0.95, 0.2), (0.02, 0.3)])
def test_an_auroc_has_its_interval_on_the_logit_scale(value, half):
    found, odds = s.of_auroc(estimate(value, half)), np.log(value / (1 - value))
    by_hand = [1 / (1 + np.exp(-(odds + side * half / (value * (1 - value))))) for side in (-1, 1)]
    assert (found.low, found.high) == pytest.approx(by_hand)
    assert 0 < found.low < value < found.high < 1
    assert (value - found.low > found.high - value) == (value > 0.5)  # the wider side is that of chance


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_ranking_without_an_error_has_no_interval(value):
    found = s.of_auroc(estimate(value, 0.0))
    assert not found.bounded
    assert np.isnan([found.low, found.high]).all()
    assert "without a single error" in found.reason


def test_a_difference_ends_at_one():
    found = s.of_difference(estimate(-0.4, 0.8))
    assert (found.low, found.high) == (-1.0, pytest.approx(0.4))
    assert s.of_difference(estimate(0.4, 0.8)).high == 1.0


@pytest.mark.parametrize(("fewest", "bounded", "rough"), [(4, 0, 0), (5, 1, 1), (9, 1, 1), (10, 1, 0)])
def test_few_patients_make_an_interval_rough_and_very_few_none(fewest, bounded, rough):
    found = s.among_patients(estimate(0.8, 0.1), fewest, "test patients with effusion")
    assert (found.bounded, found.rough, found.value) == (bool(bounded), bool(rough), 0.8)
    assert found.reason == ("" if bounded else "4 test patients with effusion, and an interval needs 5")
    assert found.basis == (("seeds", "patients") if bounded else ())


def test_seeds_alone_give_the_textbook_t_interval():
    values = np.array([0.71, 0.74, 0.70, 0.73])
    found = s.seeds_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high, found.basis) == (pytest.approx(low), pytest.approx(high), ("seeds",))
    for count in (1, 2):
        few = s.seeds_interval(values[:count])
        assert (few.bounded, few.value) == (False, pytest.approx(values[:count].mean()))
        assert "needs 3 of them" in few.reason


def test_the_crossed_bootstrap_agrees_where_seeds_are_many():
    random = np.random.default_rng(2)
    table = crossed_table(random, (30, 20, 200), s=0.2, d=0.1, k=1.0, sdk=1.0)
    low, high = s.crossed_bootstrap(table)
    found = s.crossed_interval(table)
    assert high - low == pytest.approx(found.high - found.low, rel=0.12)
    assert low < found.value < high


def test_the_bootstrap_equals_one_made_with_sklearn_on_the_same_resamples():
    scores, labels, who = draws_of(patients=60, missing=0.1)
    (low, high), each = s.bootstrap_interval(scores, labels, who, resamples=40, seed=5)
    names, member = np.unique(who, return_inverse=True)
    count = len(names)
    weights = np.random.default_rng(5).multinomial(count, np.full(count, 1 / count), size=40)[:, member]
    values = [macro(scores, labels, weight) for weight in weights]
    assert (low, high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=1e-5)
    assert each.shape == (3, 2)
    assert (each[:, 0] < each[:, 1]).all()


def test_the_bootstrap_agrees_with_the_influence_interval():
    scores, labels, who = draws_of(patients=500)
    (low, high), _ = s.bootstrap_interval(scores, labels, who)
    of_mean = s.pseudo_values(scores, labels, who, np.ones(3, bool))[0].mean(axis=0)
    found = s.crossed_interval(of_mean[None, None])  # the bootstrap too takes the draws as they are
    assert high - low == pytest.approx(found.high - found.low, rel=0.1)
    assert (low + high) / 2 == pytest.approx(found.value, abs=0.005)


def test_the_bootstrap_leaves_undefined_labels_out():
    scores, labels, who = draws_of()
    scores[0, :, 1] = np.nan  # a draw that leaves label 1 undefined
    labels[:, 2] = 0
    (low, high), each = s.bootstrap_interval(scores, labels, who, resamples=100)
    assert np.isnan(each[2]).all()
    assert np.isfinite(each[1]).all()  # from the draws that define it
    alone = s.bootstrap_interval(scores[:, :, :1], labels[:, :1], who, resamples=100)[0]
    assert (low, high) == pytest.approx(alone)
    assert np.isnan(s.bootstrap_interval(scores[:, :, 2:], labels[:, 2:], who, resamples=10)[0]).all()


def test_blocks_of_the_comparison_matrix_change_nothing():
    scores, labels, _ = draws_of(labels=1)
    weights = np.random.default_rng(0).integers(0, 3, (5, len(labels))).astype(np.float32)
    positive = labels[:, 0] == 1
    whole = s._weighted_aurocs(scores[:, :, 0], positive, weights)
    assert s._weighted_aurocs(scores[:, :, 0], positive, weights, block=300) == pytest.approx(whole, abs=1e-9)
