"""Probes against a direct optimiser and slow loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold, KFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits

from bench.evaluation import probes
from bench.evaluation.probes import knn_probe, linear_probe


def regression(train: np.ndarray, y: np.ndarray, test: np.ndarray, c: float) -> np.ndarray:
    """Probabilities of a logistic regression on features standardised here: minimises log-loss + |w|^2 / 2C, the
    intercept free."""
    mean, std = train.mean(0), train.std(0)
    train, test = (train - mean) / std, (test - mean) / std

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = train @ w[:-1] + w[-1]
        loss = np.logaddexp(0, z) - y * z
        residual = 1 / (1 + np.exp(-z)) - y
        gradient = np.append(residual @ train + w[:-1] / c, residual.sum())
        return loss.sum() + w[:-1] @ w[:-1] / (2 * c), gradient

    w = minimize(objective, np.zeros(train.shape[1] + 1), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return 1 / (1 + np.exp(-(test @ w[:-1] + w[-1])))


def problem(n: int, dim: int, labels: int = 2, m: int = 40, seed: int = 0):
    """Features of unlike scales, and labels that depend on them."""
    generator = np.random.default_rng(seed)
    scale = np.exp(generator.normal(0, 1.5, dim))
    train, test = (generator.normal(3, 1, (size, dim)) * scale for size in (n, m))
    weight = generator.normal(0, 1, (dim, labels)) / scale[:, None] / np.sqrt(dim) * 2
    noise = generator.logistic(0, 1, (n, labels))
    y = ((train - 3 * scale) @ weight + noise > 0.3).astype(np.float32)
    return train.astype(np.float32), y, np.arange(n).astype(str), test.astype(np.float32)


@pytest.mark.parametrize(("n", "dim"), [(200, 6), (30, 50)])
@pytest.mark.parametrize("c", [0.01, 1.0])
def test_linear_probe_against_a_direct_optimiser(n: int, dim: int, c: float) -> None:
    train, y, patients, test = problem(n, dim)
    scores, chosen = linear_probe(train, y, patients, test, [c])
    assert chosen == {"C": c}
    for label in range(2):
        expected = regression(train.astype(float), y[:, label], test.astype(float), c)
        np.testing.assert_allclose(scores[:, label], expected, atol=2e-3)
    assert scores.std(0).min() > 0.01


def test_the_choice_is_the_least_log_loss_on_held_out_patients() -> None:
    strengths = [1e-3, 1e-1, 3.0]
    seen = set()
    for seed, (n, dim) in enumerate([(40, 20), (150, 3), (90, 10)]):
        train, y, _, test = problem(n, dim, seed=seed)
        patients = np.arange(n) // 2 + 100
        standard = (train - train.mean(0)) / train.std(0)
        losses = dict.fromkeys([*strengths, *(1e-3 / 10**k for k in (1, 2, 3)), *(3.0 * 10**k for k in (1, 2, 3))], 0.0)
        for inside, outside in GroupKFold(3).split(train, groups=patients):
            for label in range(2):
                for c in losses:
                    unscaled = _direct(standard[inside], y[inside, label], standard[outside], c)
                    losses[c] += log_loss(y[outside, label], unscaled, labels=[0, 1]) * len(outside)
        _, chosen = linear_probe(train, y, patients.astype(str), test, strengths)
        assert chosen["C"] == pytest.approx(min(losses, key=lambda c: losses[c]))
        seen.add(chosen["C"])
    assert len(seen) > 1


def test_the_grid_grows_beyond_the_end_that_is_best() -> None:
    """The best of a capped grid is its cap; the same problem on a wide grid says where the best really lies."""
    train, y, patients, test = problem(300, 4)
    _, wide = linear_probe(train, y, patients, test, [10.0**k for k in range(-6, 7)])
    assert 1e-2 < wide["C"] < 1e3
    assert wide["at_edge"] == 0
    for grid in ([1e-3, 1e-2], [1e-3, 1.0, 1e3], [1e2, 1e3]):
        _, chosen = linear_probe(train, y, patients, test, grid)
        assert chosen["C"] == pytest.approx(wide["C"]), grid
        assert chosen["at_edge"] == 0


def test_an_end_that_stays_the_best_is_recorded() -> None:
    """Noise without any signal is best ignored, however strong the regularisation."""
    generator = np.random.default_rng(0)
    train, y = generator.normal(size=(60, 20)), generator.integers(0, 2, (60, 1)).astype(np.float32)
    _, chosen = linear_probe(train, y, np.arange(60).astype(str), train[:2], [1e-2, 1.0])
    assert chosen == {"C": pytest.approx(1e-2 / 10**probes.EXTENSIONS), "at_edge": 1.0}


def test_repeated_folds_judge_by_less_luck() -> None:
    """How much better one strength looks than another hangs on which patients are held out together."""
    train, y, patients, _ = problem(40, 10, labels=1, seed=1)

    def spread(repeats: int) -> float:
        better = []
        for seed in range(8):
            order = np.random.default_rng(seed).permutation(len(train))
            folds = list(probes._folds(patients, repeats))
            losses = probes._held_out_losses(train[order], y[order], folds, [1e-2, 1.0])
            better.append((losses[1e-2] - losses[1.0]) / repeats)
        return float(np.std(better))

    assert spread(8) < 0.7 * spread(1)


@pytest.mark.parametrize("repeats", [1, 4])
def test_each_repeat_holds_out_every_patient_once(repeats: int) -> None:
    patients = np.repeat(np.arange(20), 3).astype(str)
    folds = list(probes._folds(patients, repeats))
    assert sum(len(outside) for _, outside in folds) == repeats * len(patients)
    assert all(set(patients[inside]).isdisjoint(patients[outside]) for inside, outside in folds)
    assert len({tuple(outside) for _, outside in folds}) == 3 * repeats


def _direct(train: np.ndarray, y: np.ndarray, test: np.ndarray, c: float) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    return np.clip(LogisticRegression(C=c, max_iter=1000).fit(train, y).predict_proba(test)[:, 1], 1e-6, 1 - 1e-6)


def test_images_of_a_patient_are_never_on_both_sides() -> None:
    """Four copies of noise a patient: weak regularisation looks best if one of them is in training, else worst."""
    generator = np.random.default_rng(0)
    train = np.repeat(generator.normal(0, 1, (40, 30)), 4, axis=0)
    y = np.repeat(generator.integers(0, 2, (40, 1)), 4, axis=0).astype(np.float32)
    patients, strengths = np.repeat(np.arange(40), 4).astype(str), [1e-4, 10.0]
    leaking = dict.fromkeys(strengths, 0.0)
    for inside, outside in KFold(3, shuffle=True, random_state=0).split(train):
        for c in strengths:
            leaking[c] += log_loss(y[outside, 0], _direct(train[inside], y[inside, 0], train[outside], c))
    assert leaking[10.0] < leaking[1e-4]
    shuffled = generator.permutation(len(train))
    assert linear_probe(train[shuffled], y[shuffled], patients[shuffled], train[:2], strengths)[1]["C"] <= 1e-4
    apart = np.arange(len(train)).astype(str)  # the same images as if all were of different patients
    assert linear_probe(train[shuffled], y[shuffled], apart, train[:2], strengths)[1]["C"] >= 10.0


def test_the_choice_and_the_model_never_see_the_test_images() -> None:
    train, y, patients, test = problem(60, 8)
    strengths = [1e-3, 1e-1, 10.0]
    both, chosen = linear_probe(train, y, patients, test, strengths)
    half, also = linear_probe(train, y, patients, test[:20], strengths)
    _, wild = linear_probe(train, y, patients, 1e3 * test, strengths)
    assert chosen == also == wild
    np.testing.assert_allclose(both[:20], half, rtol=1e-5)


def test_a_single_strength_is_not_cross_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> float:
        raise AssertionError("cross-validated")

    monkeypatch.setattr(probes, "_choose", refuse)
    train, y, patients, test = problem(30, 4)
    assert linear_probe(train, y, patients, test, [0.3])[1] == {"C": 0.3}
    with pytest.raises(AssertionError):
        linear_probe(train, y, patients, test, [0.3, 0.4])


def test_one_patient_alone_gets_the_middle_strength() -> None:
    train, y, _, test = problem(30, 4)
    assert linear_probe(train, y, np.full(30, "p"), test, [0.1, 1.0, 10.0])[1] == {"C": 1.0, "at_edge": 0.0}


def test_unknown_labels_take_no_part() -> None:
    train, y, patients, test = problem(80, 5)
    y[:30, 0] = np.nan
    known = np.arange(30, 80)
    # the scale of the features is that of the whole fraction, so standardise before leaving images out
    train = (train - train.mean(0)) / train.std(0)
    scores, _ = linear_probe(train, y, patients, test, [0.5])
    direct = _direct(train[known], y[known, 0], test, 0.5)
    np.testing.assert_allclose(scores[:, 0], direct, atol=2e-3)
    full = y.copy()
    full[:30, 0] = 1
    assert np.abs(linear_probe(train, full, patients, test, [0.5])[0][:, 0] - scores[:, 0]).max() > 0.05
    np.testing.assert_allclose(linear_probe(train, full, patients, test, [0.5])[0][:, 1], scores[:, 1], atol=1e-6)
    assert 1e-6 < linear_probe(train, y, patients, test, [1e-3, 1.0])[1]["C"] < 1e3


@pytest.mark.parametrize("probe", ["linear", "knn"])
def test_labels_of_one_class_have_no_scores(probe: str) -> None:
    train, y, patients, test = problem(40, 5, labels=4)
    y[:, 0] = 1
    y[:, 1] = 0
    y[y[:, 2] == 1, 2] = np.nan
    if probe == "linear":
        scores, _ = linear_probe(train, y, patients, test, [0.1, 1.0])
    else:
        scores, _ = knn_probe(train, y, test, 5)
    assert np.isnan(scores[:, :3]).all()
    assert not np.isnan(scores[:, 3]).any()


def test_nearest_neighbours_against_a_loop() -> None:
    train, y, _, test = problem(50, 6)
    y[::7, 0] = np.nan
    scores, chosen = knn_probe(train, y, test, 9)
    assert chosen == {"k": 9.0}
    for i, one in enumerate(test.astype(float)):
        for label in range(2):
            near = []
            for other, truth in zip(train.astype(float), y[:, label], strict=True):
                if not np.isnan(truth):
                    near.append((one @ other / np.linalg.norm(one) / np.linalg.norm(other), truth))
            near.sort(reverse=True)
            weights = [np.exp(similarity / 0.07) for similarity, _ in near[:9]]
            expected = sum(w * truth for w, (_, truth) in zip(weights, near[:9], strict=True)) / sum(weights)
            assert scores[i, label] == pytest.approx(expected, abs=1e-4)


def test_more_neighbours_than_images_are_all_images() -> None:
    train, y, _, test = problem(7, 3, seed=3)
    y[:, 0] = [1, 0, 1, 0, 1, 0, np.nan]
    many, chosen = knn_probe(train, y, test, 20)
    assert chosen == {"k": 7.0}
    six, _ = knn_probe(train[:6], y[:6], test, 6)
    np.testing.assert_allclose(many[:, 0], six[:, 0], rtol=1e-5)


def test_losses_along_the_strengths_are_those_of_fits_from_scratch() -> None:
    train, y, patients, _ = problem(40, 10, labels=2, seed=3)
    train = StandardScaler().fit_transform(train)
    folds = list(probes._folds(patients, 2))
    strengths = [1e-3, 1e-1, 1e1]
    along = probes._held_out_losses(train, y, folds, strengths)
    for strength in strengths:
        expected = 0.0
        for inside, outside in folds:
            for label in range(2):
                model = LogisticRegression(C=strength, max_iter=1000, tol=1e-8).fit(train[inside], y[inside, label])
                p = np.clip(model.predict_proba(train[outside]), 1e-6, 1 - 1e-6)
                expected += log_loss(y[outside, label], p, labels=[0, 1], normalize=False)
        assert along[strength] == pytest.approx(expected, rel=1e-3)


def test_fits_use_one_thread_and_leave_the_number_of_others_as_it_was(monkeypatch) -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    seen: list[set[int]] = []
    real = LogisticRegression.fit

    def fit(self, *data):
        seen.append(threads())
        return real(self, *data)

    monkeypatch.setattr(LogisticRegression, "fit", fit)
    train, y, patients, test = problem(20, 5, labels=1)
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        probes.linear_probe(train, y, patients, test, [1e-2, 1.0])
        assert threads() == before
    assert seen
    assert all(one <= {1} for one in seen)
