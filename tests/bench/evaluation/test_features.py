"""Features in every inference mode: independent of batches and order, and what an image is told to keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.evaluation import features as module
from bench.evaluation.features import Features, donors, features_of, mean_selection
from bench.training.data import RunData
from datasets.splits import Splits, make_splits
from datasets.views import Views
from methods import build_encoder
from methods.strategies.selection import Choice


def encoder(strategy: str = "dense", **options):
    return build_encoder("vit_stem_d64_l4_patch8", strategy, options, image_size=32, channels=1, seed=0).eval()


@pytest.fixture(scope="module")
def run_data(phantom, fabric) -> RunData:
    return RunData(phantom, make_splits(phantom), Views(32), fabric, seed=0)


def everyone(run_data: RunData) -> np.ndarray:
    return np.sort(np.concatenate([run_data.splits.train, run_data.splits.val, run_data.splits.test]))


def test_features_are_computed_once_and_come_in_the_order_asked_for(run_data: RunData, monkeypatch) -> None:
    asked: list[int] = []
    real = module.features_of

    def counted(encoder, run_data, index, inference, kept=None):
        asked.extend((inference, int(i)) for i in index)
        return real(encoder, run_data, index, inference, kept)

    monkeypatch.setattr(module, "features_of", counted)
    features = Features(encoder("random"), run_data)
    for index in ([5, 3, 9], [9, 4, 3, 3], [0, 1]):
        for inference in ("pruned", "dense"):
            direct = real(features.encoder, run_data, np.array(index), inference)["features"]
            np.testing.assert_allclose(features.at(np.array(index), inference), direct, atol=1e-5)
    assert sorted(asked) == [(inference, i) for inference in ("dense", "pruned") for i in (0, 1, 3, 4, 5, 9)]


@pytest.mark.parametrize("strategy", ["dense", "random", "sparsecontrast", "dynamicvit", "oracle"])
def test_features_do_not_depend_on_the_batch(run_data: RunData, monkeypatch, strategy: str) -> None:
    one = encoder(strategy)
    index = np.arange(20)
    together = features_of(one, run_data, index, one.strategy.inference[0])
    monkeypatch.setattr(module, "BATCH", 7)
    apart = features_of(one, run_data, index, one.strategy.inference[0])
    assert together.keys() == apart.keys()
    np.testing.assert_allclose(apart["features"], together["features"], atol=1e-5)
    assert together["features"].std(0).max() > 0.01
    if "kept" in together:
        assert together["kept"].shape == (20, 16)
        assert (apart["kept"] == together["kept"]).all()


def test_features_are_made_in_evaluation_mode(run_data: RunData) -> None:
    """Batch norm of the stem uses what it has learnt, and learns nothing."""
    one = encoder().train()
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    features_of(one, run_data, np.arange(10), "dense")
    assert all((one.state_dict()[name] == tensor).all() for name, tensor in before.items())


@pytest.mark.parametrize("options", [{}, {"select": "budget"}, {"fuse": True}, {"trim": "keys"}])
def test_told_to_keep_its_own_choice_a_strategy_gives_the_same_features(run_data: RunData, options) -> None:
    one, index = encoder("sparsecontrast", **options), np.arange(12)
    one.strategy.calibrate(run_data.views.normalise(torch.from_numpy(run_data.dataset.images[:64])))
    own = features_of(one, run_data, index, "pruned")
    told = features_of(one, run_data, index, "shuffled", np.asarray(own["kept"], dtype=bool))
    np.testing.assert_allclose(told["features"], own["features"], atol=1e-5)
    moved = features_of(one, run_data, index, "shuffled", np.roll(np.asarray(own["kept"], dtype=bool), 1, axis=0))
    assert np.abs(moved["features"] - own["features"]).max() > 1e-3


def test_the_mean_selection_is_the_top_of_the_mean_scores() -> None:
    scores = np.array([[3.0, 1.0, 0.0, 2.0], [0.0, 4.0, 1.0, 2.5], [0.0, 0.0, 4.0, 2.0]])  # means 1, 1.67, 1.67, 2.17
    kept = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]], dtype=bool)
    assert mean_selection(scores, kept).tolist() == [False, True, False, True]
    few = kept.copy()
    few[:2, :] = [True, False, False, False]  # 4 patches in 3 images: one is kept
    assert mean_selection(scores, few).tolist() == [False, False, False, True]


def test_mean_gives_all_images_one_mask_of_training_images(run_data: RunData) -> None:
    features, test = Features(encoder("sparsecontrast"), run_data), run_data.splits.test
    features.at(test, "mean")
    _, found = features._known["mean"]
    own = features_of(features.encoder, run_data, run_data.splits.train, "pruned")
    best = np.argsort(-own["scores"].mean(0))[:8]
    assert np.flatnonzero(found["kept"][0]).tolist() == sorted(best)
    assert (found["kept"] == found["kept"][0]).all()
    assert len(np.unique(own["kept"], axis=0)) > 1  # its own choices differ


def test_an_image_is_lent_the_selection_of_another_patient_of_its_split(run_data: RunData) -> None:
    lent, patients = donors(run_data), run_data.dataset.patients
    for part in ("train", "val", "test"):
        index = getattr(run_data.splits, part)
        assert np.isin(lent[index], index).all()
        assert (patients[lent[index]] != patients[index]).all()
        assert set(patients[lent[index]]) == set(patients[index])  # everyone lends
    again = donors(RunData(run_data.dataset, run_data.splits, run_data.views, run_data.fabric, seed=0))
    other = donors(RunData(run_data.dataset, run_data.splits, run_data.views, run_data.fabric, seed=1))
    index = everyone(run_data)
    assert (again == lent).all()
    assert (other[index] != lent[index]).mean() > 0.5


def test_shuffled_is_the_donors_selection_whatever_is_evaluated_beside(run_data: RunData) -> None:
    one, test = encoder("sparsecontrast"), run_data.splits.test
    whole, part = Features(one, run_data), Features(one, run_data)
    at_once = whole.at(test, "shuffled")
    np.testing.assert_allclose(part.at(test[5:6], "shuffled"), at_once[5:6], atol=1e-5)
    own = features_of(one, run_data, donors(run_data)[test], "pruned")["kept"]
    direct = features_of(one, run_data, test, "shuffled", np.asarray(own, dtype=bool))
    np.testing.assert_allclose(at_once, direct["features"], atol=1e-5)


def test_a_selection_that_is_the_same_for_all_images_gives_the_same_in_all_modes(run_data: RunData) -> None:
    one, test = encoder("sparsecontrast"), run_data.splits.test
    for layer in one.strategy.predictor.layers[:-1:2]:
        torch.nn.init.zeros_(layer.weight)  # logits no longer depend on the image, only on the border by padding
    features = Features(one, run_data)
    for mode in ("mean", "shuffled"):
        np.testing.assert_allclose(features.at(test, mode), features.at(test, "pruned"), atol=1e-5)


def test_one_patient_in_a_split_can_not_borrow(run_data: RunData) -> None:
    splits = run_data.splits
    alone = splits.test[run_data.dataset.patients[splits.test] == run_data.dataset.patients[splits.test[0]]]
    few = RunData(run_data.dataset, Splits(splits.train, splits.val, alone, ""), run_data.views, run_data.fabric, 0)
    with pytest.raises(ValueError, match="the test split has one"):
        donors(few)


def test_a_strategy_that_does_not_keep_what_it_is_told_is_found_out(run_data: RunData, monkeypatch) -> None:
    one = encoder("sparsecontrast")

    def stubborn(images, call):
        return Choice(torch.arange(8).expand(len(images), -1))

    monkeypatch.setattr(one.strategy, "choose", stubborn)
    told = np.zeros((4, 16), dtype=bool)
    told[:, 8:] = True
    with pytest.raises(ValueError, match="does not keep the patches that `Call.kept` names"):
        features_of(one, run_data, np.arange(4), "mean", told)
