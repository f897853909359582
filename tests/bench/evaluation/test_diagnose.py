"""Diagnostics against values known by construction."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.evaluation import diagnose
from bench.evaluation.diagnose import feature_std, learning, rankme, selection_figure, selection_statistics
from bench.evaluation.features import features_of
from bench.training.data import RunData
from bench.training.pretrain import Trained
from datasets.splits import make_splits
from datasets.views import Views
from methods import build_encoder


@pytest.fixture(scope="module")
def run_data(phantom, fabric) -> RunData:
    return RunData(phantom, make_splits(phantom), Views(32), fabric, seed=0)


def encoder(strategy: str, seed: int = 0, **options: Any):
    return build_encoder("vit_stem_d64_l4_patch8", strategy, options, image_size=32, channels=1, seed=seed).eval()


def with_singular_values(values: list[float], n: int = 40, dim: int = 8) -> np.ndarray:
    """(n, dim), every column of mean 0."""
    generator = np.random.default_rng(0)
    left = np.linalg.qr(np.c_[np.ones(n), generator.normal(size=(n, len(values)))])[0][:, 1:]
    right = np.linalg.qr(generator.normal(size=(dim, len(values))))[0]
    return left @ np.diag(values) @ right.T


@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize(
    ("values", "rank"),
    [([4.0, 2.0, 1.0, 1.0], 2**1.75), ([3.0] * 5, 5.0), ([1.0], 1.0)],  # entropy of 1/2, 1/4, 1/8, 1/8: 1.75 bits
)
def test_effective_rank_of_known_singular_values(values: list[float], rank: float, shift: float) -> None:
    assert rankme(with_singular_values(values) + shift) == pytest.approx(rank, rel=1e-3)
    assert rankme(7 * with_singular_values(values)) == pytest.approx(rank, rel=1e-3)


def test_constant_features_have_rank_one() -> None:
    assert rankme(np.full((10, 8), 0.3, np.float32)) == pytest.approx(1, abs=1e-3)


def test_spread_of_features() -> None:
    generator = np.random.default_rng(0)
    even = generator.normal(size=(4000, 32))
    assert feature_std(even) == pytest.approx(1, abs=0.01)
    assert feature_std(even * generator.uniform(0.1, 10, (4000, 1))) == pytest.approx(1, abs=0.01)
    assert feature_std(np.full((10, 32), 3.0)) == pytest.approx(0, abs=1e-9)
    assert feature_std(np.full((10, 32), 3.0) * np.arange(1, 11)[:, None]) == pytest.approx(0, abs=1e-6)
    assert 0 < feature_std(even + 100) < 0.1
    assert feature_std(np.zeros((4, 3))) == 0


def looked_at(features: np.ndarray, strategy: str = "dense") -> Any:
    return SimpleNamespace(encoder=encoder(strategy), at=lambda index, inference: features[: len(index)])


def trained(loss: float, plateau: float = 4.0, history: list[dict[str, Any]] | None = None) -> Trained:
    lines = history or [{"loss": 9.9, "selection": {}}, {"loss": loss, "selection": {}}]
    return Trained(SimpleNamespace(plateau=lambda batch: plateau + batch), lines, 2, 1.0)


GOOD = np.random.default_rng(0).normal(size=(2000, 64))


@pytest.mark.parametrize(
    ("loss", "features", "verdict"),
    [
        (diagnose.PLATEAU * 10 - 0.1, GOOD, "learned"),
        (diagnose.PLATEAU * 10 + 0.1, GOOD, "plateaued"),
        (1.0, np.ones((2000, 64)) + 1e-5 * GOOD, "collapsed"),  # no spread
        (1.0, np.ones((2000, 64)), "collapsed"),
        (1.0, GOOD[:, :1] * GOOD[:1], "collapsed"),  # a single direction
    ],
)
def test_verdicts(run_data: RunData, loss: float, features: np.ndarray, verdict: str) -> None:
    found = learning(trained(loss), looked_at(features), run_data, batch=6)
    assert found.verdict == verdict
    assert (found.final_loss, found.plateau_loss) == (loss, 10.0)
    n = len(run_data.splits.test)
    assert found.feature_std == pytest.approx(feature_std(features[:n]))
    assert found.rankme == pytest.approx(rankme(features[:n]))


def test_what_was_never_trained_has_no_verdict(run_data: RunData) -> None:
    found = learning(None, looked_at(GOOD), run_data, batch=6)
    assert (found.verdict, found.final_loss, found.selection) == ("not trained", 0.0, {})


def test_selection_in_training_and_at_inference_stand_together(run_data: RunData) -> None:
    history = [
        {"loss": 3.0, "selection": {"overlap": 0.4, "logit_spread": 0.2, "noise_spread": 1.0}},
        {"loss": 2.0, "selection": {"overlap": 0.8, "logit_spread": 0.6, "noise_spread": 0.0}},
    ]
    found = learning(trained(2.0, history=history), looked_at(GOOD, "fixed"), run_data, 6).selection
    assert found["overlap"] == 0.8
    assert found["overlap_run"] == pytest.approx(0.6)
    assert found["spread_over_noise"] == pytest.approx(0.4 / 0.5)
    assert found["static_share"] == 1.0


def test_one_mask_for_all_images_is_static(run_data: RunData) -> None:
    index = run_data.splits.test
    found = selection_statistics(encoder("fixed", keep=0.5, equal_macs=False), run_data, index)
    assert found["static_share"] == 1.0
    assert found["kept_inference"] == 0.5


def test_kept_padding_is_the_share_of_the_bars(run_data: RunData) -> None:
    """Bars of four of 32 pixels above and below: half of the first and last row of patches."""
    index = run_data.splits.test
    frames = np.tile([0, 4, 32, 28], (len(run_data.dataset), 1))
    padded = RunData(
        run_data.dataset.replace(frames=frames), run_data.splits, run_data.views, run_data.fabric, run_data.seed
    )
    one = encoder("centre", keep=0.5, equal_macs=False)
    kept = features_of(one, padded, index[:1], "pruned")["kept"].reshape(4, 4)
    assert selection_statistics(one, padded, index)["kept_padding"] == pytest.approx(kept[[0, 3]].sum() / 8)
    assert "kept_padding" not in selection_statistics(one, run_data, index)
    figure = selection_figure(one, padded)
    assert figure is not None
    assert (figure["frames"] == frames[: len(figure["images"])]).all()


def test_dynamicvit_keeps_its_shares_stage_by_stage(run_data: RunData) -> None:
    found = selection_statistics(encoder("dynamicvit", rho=0.7), run_data, run_data.splits.test)
    shares = [11 / 16, 7 / 16, 5 / 16]  # of 16 patches int(16 x 0.7), int(16 x 0.49), int(16 x 0.343)
    assert [found[f"kept_inference_{stage}"] for stage in (1, 2, 3)] == shares
    assert found["kept_inference"] == shares[-1]


def test_a_fresh_subset_for_every_image_is_not(run_data: RunData) -> None:
    index = np.arange(len(run_data.dataset))
    found = selection_statistics(encoder("random", keep=0.5, equal_macs=False), run_data, index)
    assert found["static_share"] == 0.0
    assert found["kept_inference"] == 0.5


def test_selection_against_loops(run_data: RunData) -> None:
    one, index = encoder("sparsecontrast"), np.arange(len(run_data.dataset))
    found = selection_statistics(one, run_data, index)
    kept = features_of(one, run_data, index, "pruned")["kept"]
    share = [sum(row[patch] for row in kept.tolist()) / len(kept) for patch in range(16)]
    assert found["static_share"] == sum(s >= diagnose.STATIC or s <= 1 - diagnose.STATIC for s in share) / 16
    assert found["kept_inference"] == pytest.approx(sum(share) / 16)


@pytest.mark.parametrize("strategy", ["dense", "patchdropout"])
def test_without_a_selection_at_inference_there_is_nothing_to_tell(run_data: RunData, strategy: str) -> None:
    assert selection_statistics(encoder(strategy), run_data, run_data.splits.test) == {}
    assert selection_figure(encoder(strategy), run_data) is None


def test_the_images_shown_are_chosen_by_the_rule(run_data: RunData) -> None:
    data, test = run_data.dataset, run_data.splits.test
    figure = selection_figure(encoder("fixed", keep=0.5, equal_macs=False), run_data)
    assert figure is not None
    expected: list[int] = []
    for label in range(5):
        areas = sorted(
            (int(((data.masks[i] >> label) & 1).sum()), int(i))
            for i in test
            if data.labels[i, label] == 1 and ((data.masks[i] >> label) & 1).any()
        )
        if areas and areas[len(areas) // 2][1] not in expected:
            expected.append(areas[len(areas) // 2][1])
    assert 2 <= len(expected) <= diagnose.SHOWN
    assert (figure["images"] == data.images[expected]).all()
    assert (figure["masks"] == data.masks[expected]).all()
    assert (figure["labels"] == data.labels[expected]).all()
    assert figure["kept"].shape == (len(expected), 4, 4)
    assert (figure["kept"].sum((1, 2)) == 8).all()
    assert "median area" in str(figure["rule"])


def test_without_masks_the_first_positive_is_shown(run_data: RunData) -> None:
    data = run_data.dataset.replace(masks=None, has_mask=None)
    figure = selection_figure(encoder("fixed"), RunData(data, run_data.splits, run_data.views, run_data.fabric, 0))
    assert figure is not None
    assert "masks" not in figure
    first = next(int(i) for i in run_data.splits.test if data.labels[i, 0] == 1)
    assert (figure["images"][0] == data.images[first]).all()
    assert "first positive" in str(figure["rule"])
