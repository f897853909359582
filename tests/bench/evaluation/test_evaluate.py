"""Evaluations recomputed with scikit-learn from the predictions that were kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from bench.evaluation.evaluate import EvaluationRequest, evaluate
from bench.evaluation.features import Features
from bench.specs.run_spec import EvaluationKey, EvaluationSpec, FinetuneSpec
from bench.training.data import RunData
from datasets.splits import fraction, make_splits
from datasets.views import Views
from methods import build_encoder

SPEC = EvaluationSpec(labels=(30, 100), draws=3, c=(1e-3, 1e-1), neighbours=5, resamples=50)


def encoder(strategy: str = "dense"):
    return build_encoder("vit_stem_d64_l4_patch8", strategy, {}, image_size=32, channels=1, seed=0).eval()


@pytest.fixture(scope="module")
def run_data(phantom, fabric) -> RunData:
    return RunData(phantom, make_splits(phantom), Views(32), fabric, seed=0)


@pytest.fixture(scope="module")
def features(run_data: RunData) -> Features:
    return Features(encoder(), run_data)


def evaluated(features: Features, probe: str = "linear", labels: float = 30, **changes: Any):
    spec = SPEC.model_copy(update=changes)
    tuning = FinetuneSpec(epochs=1, batch=8, min_steps=1, max_steps=2)
    request = EvaluationRequest("run", EvaluationKey(probe, labels, "dense"), spec, tuning)
    return evaluate(request, features, lambda state: None)


def relabelled(features: Features, labels: np.ndarray) -> Features:
    """The same features of the same splits with other labels."""
    run_data = features.run_data
    other = Features(
        features.encoder,
        RunData(run_data.dataset.replace(labels=labels), run_data.splits, run_data.views, run_data.fabric, 0),
    )
    other._known = features._known
    return other


@pytest.mark.parametrize("probe", ["linear", "knn", "finetune"])
def test_scores_are_scikit_learns_of_the_stored_predictions(features: Features, probe: str) -> None:
    result, stored = evaluated(features, probe)
    scores, truth = stored["scores"], stored["labels"]
    data, test = features.run_data.dataset, features.run_data.splits.test
    assert scores.shape == (3, len(test), 5)
    assert (stored["index"] == test).all()
    assert (stored["patients"] == data.patients[test]).all()
    np.testing.assert_array_equal(truth, data.labels[test])
    defined = [i for i, name in enumerate(data.label_names) if name in result.per_label]
    assert defined
    assert set(result.undefined) == set(data.label_names) - set(result.per_label)
    roc = np.array([[roc_auc_score(truth[:, i], one[:, i]) for i in defined] for one in scores])
    prc = np.array([[average_precision_score(truth[:, i], one[:, i]) for i in defined] for one in scores])
    for j, i in enumerate(defined):
        label = result.per_label[data.label_names[i]]
        assert label.auroc == pytest.approx(roc[:, j].mean())
        assert label.auprc == pytest.approx(prc[:, j].mean())
        assert label.auroc_interval[0] <= label.auroc <= label.auroc_interval[1]
        assert (label.positives, label.negatives) == ((truth[:, i] == 1).sum(), (truth[:, i] == 0).sum())
    assert result.macro_auroc == pytest.approx(roc.mean())
    assert result.macro_auprc == pytest.approx(prc.mean())
    assert result.draw_std == pytest.approx(np.std(roc.mean(1), ddof=1))
    assert [draw.macro_auroc for draw in result.draws] == pytest.approx(roc.mean(1))
    assert [draw.macro_auprc for draw in result.draws] == pytest.approx(prc.mean(1))
    assert result.interval[0] < result.macro_auroc < result.interval[1]
    assert (result.n_images, result.n_patients) == (len(test), len(set(data.patients[test])))
    assert roc.std() > 0
    assert (result.probe, result.labels, result.inference, result.split) == (probe, 30, "dense", "test")


@pytest.mark.parametrize("probe", ["linear", "knn", "finetune"])
def test_validation_patients_are_scored_beside_by_the_same_probe(features: Features, probe: str) -> None:
    result, stored = evaluated(features, probe)
    data, val = features.run_data.dataset, features.run_data.splits.val
    assert (stored["validation_index"] == val).all()
    assert (stored["validation_patients"] == data.patients[val]).all()
    np.testing.assert_array_equal(stored["validation_labels"], data.labels[val])
    scores, truth = stored["validation_scores"], stored["validation_labels"]
    assert not set(data.patients[val]) & set(stored["patients"])
    for name, auroc in result.validation.items():
        i = data.label_names.index(name)
        assert auroc == pytest.approx(np.mean([roc_auc_score(truth[:, i], one[:, i]) for one in scores]))
    defined = [len(set(truth[:, i])) == 2 and not np.isnan(scores[:, :, i]).any() for i in range(len(data.label_names))]
    assert [name in result.validation for name in data.label_names] == defined
    alone, its = evaluated(features, probe, split="val")
    np.testing.assert_allclose(its["scores"], scores, atol=1e-5)
    assert alone.validation == {}
    assert not [name for name in its if name.startswith("validation_")]


def test_validation_patients_are_in_no_number_but_their_own(features: Features) -> None:
    labels, val = features.run_data.dataset.labels.copy(), features.run_data.splits.val
    labels[val] = 1 - labels[val]
    (result, stored), (other, same) = evaluated(features), evaluated(relabelled(features, labels))
    assert other.validation == pytest.approx({name: 1 - auroc for name, auroc in result.validation.items()})
    np.testing.assert_array_equal(stored["scores"], same["scores"])
    kept = {"validation", "conditions"}
    assert other.model_dump(exclude=kept) == result.model_dump(exclude=kept)


def test_draws_of_a_fraction_and_what_they_held(features: Features) -> None:
    result, _ = evaluated(features)
    data, splits = features.run_data.dataset, features.run_data.splits
    assert [draw.draw for draw in result.draws] == [0, 1, 2]
    assert len({draw.subset.hash for draw in result.draws}) == 3
    for draw in result.draws:
        index = fraction(data, splits, 30, draw.draw)
        assert (draw.subset.images, draw.subset.patients) == (len(index), len(set(data.patients[index])))
        positives = {name: int((data.labels[index, i] == 1).sum()) for i, name in enumerate(data.label_names)}
        assert draw.subset.positives == positives
        assert min(SPEC.c) / 1000 < 1.01 * draw.chosen["C"] < 1.03 * 1000 * max(SPEC.c)


def test_all_labels_are_one_draw(features: Features) -> None:
    result, stored = evaluated(features, labels=100)
    assert len(result.draws) == len(stored["scores"]) == 1
    assert result.draw_std == 0
    assert result.draws[0].subset.images == len(features.run_data.splits.train)


def test_validation_images_on_request(features: Features) -> None:
    result, stored = evaluated(features, split="val")
    assert result.split == "val"
    assert (stored["index"] == features.run_data.splits.val).all()


def test_the_test_split_has_no_part_in_choices_and_models(features: Features) -> None:
    """Neither its labels nor its images."""
    run_data = features.run_data
    result, stored = evaluated(features)
    labels = run_data.dataset.labels.copy()
    labels[run_data.splits.test] = 1 - labels[run_data.splits.test]
    flipped, same = evaluated(relabelled(features, labels))
    np.testing.assert_array_equal(stored["scores"], same["scores"])
    assert [draw.chosen for draw in flipped.draws] == [draw.chosen for draw in result.draws]
    assert flipped.macro_auroc != pytest.approx(result.macro_auroc)
    half = run_data.splits.test[::2]
    images = run_data.dataset.images.copy()
    images[half] = 255 - images[half]
    spoilt = RunData(run_data.dataset.replace(images=images), run_data.splits, run_data.views, run_data.fabric, 0)
    other, changed = evaluated(Features(features.encoder, spoilt))
    assert [draw.chosen for draw in other.draws] == [draw.chosen for draw in result.draws]
    np.testing.assert_allclose(changed["scores"][:, 1::2], stored["scores"][:, 1::2], atol=1e-4)
    assert np.abs(changed["scores"][:, ::2] - stored["scores"][:, ::2]).max() > 0.01


def test_training_labels_have_a_part(features: Features) -> None:
    labels = features.run_data.dataset.labels.copy()
    train = features.run_data.splits.train
    labels[train] = 1 - labels[train]
    assert np.abs(evaluated(relabelled(features, labels))[1]["scores"] - evaluated(features)[1]["scores"]).max() > 0.1


def test_findings_without_a_score_are_named_with_the_reason(features: Features) -> None:
    run_data = features.run_data
    labels = run_data.dataset.labels.copy()
    labels[run_data.splits.test, 1] = 0
    labels[run_data.splits.train, 2] = 1
    labels[run_data.splits.test[:5], 3] = np.nan
    labels[run_data.splits.train[::3], 3] = np.nan
    result, stored = evaluated(relabelled(features, labels), labels=100)
    names = run_data.dataset.label_names
    assert result.undefined[names[1]] == "a single class among the test images"
    assert result.undefined[names[2]] == "a single class in a draw of the label fraction"
    assert np.isnan(stored["scores"][:, :, 2]).all()
    assert not {names[1], names[2]} & set(result.per_label)
    known = ~np.isnan(stored["labels"][:, 3])
    assert known.sum() == len(known) - 5
    expected = roc_auc_score(stored["labels"][known, 3], stored["scores"][0, known, 3])
    assert result.per_label[names[3]].auroc == pytest.approx(expected)
    assert result.macro_auroc == pytest.approx(np.mean([label.auroc for label in result.per_label.values()]))


@pytest.mark.parametrize("probe", ["linear", "finetune"])
def test_a_fraction_in_which_nothing_can_be_learnt(features: Features, probe: str) -> None:
    labels = features.run_data.dataset.labels.copy()
    labels[features.run_data.splits.train] = 0
    with pytest.raises(ValueError, match="no finding can be scored at 30 % of the labels: .*larger fractions"):
        evaluated(relabelled(features, labels), probe)


def test_images_without_a_label_are_not_scored(features: Features) -> None:
    run_data, labels = features.run_data, features.run_data.dataset.labels.copy()
    labels[run_data.splits.test[:4]] = np.nan
    result, stored = evaluated(relabelled(features, labels), labels=100)
    assert (stored["index"] == run_data.splits.test[4:]).all()
    assert result.n_images == len(run_data.splits.test) - 4


def test_subgroups_are_scikit_learns_of_their_images(features: Features) -> None:
    run_data = features.run_data
    rng = np.random.default_rng(0)
    labels = (rng.random(run_data.dataset.labels.shape) < 0.4).astype(np.float32)
    labels[:, 4] = run_data.dataset.subgroups["sex"] == "male"  # one class in each group: left out of that comparison
    sex = run_data.dataset.subgroups["sex"].copy()
    sex[run_data.splits.test[0]] = ""
    data = run_data.dataset.replace(labels=labels, subgroups={"sex": sex, "view": np.full(len(sex), "PA")})
    other = Features(features.encoder, RunData(data, run_data.splits, run_data.views, run_data.fabric, 0))
    other._known = features._known
    result, stored = evaluated(other, labels=100)
    assert set(result.subgroups) == {"sex"}  # a single group is no comparison
    assert set(result.subgroups["sex"]) == {"female", "male"}
    for group, value in result.subgroups["sex"].items():
        rows = sex[stored["index"]] == group
        aurocs = [roc_auc_score(stored["labels"][rows, i], stored["scores"][0, rows, i]) for i in range(4)]
        assert value == pytest.approx(np.mean(aurocs))
