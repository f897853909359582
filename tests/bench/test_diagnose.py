"""Whether a run learnt: what a mean that all features share must not hide, and what of the selection is the noise's."""

from __future__ import annotations

import numpy as np
import pytest

from bench.diagnose import COLLAPSED_RANK, COLLAPSED_STD, _over_the_run, feature_std, rankme


def test_a_shared_mean_is_no_collapse_of_the_rank() -> None:
    features = np.random.default_rng(0).normal(size=(500, 64))
    assert rankme(features) > 60
    assert rankme(features + 100) == pytest.approx(rankme(features), rel=1e-6)
    line = features[:, :1] * np.ones(64) + 100
    assert rankme(line) < COLLAPSED_RANK


def test_constant_features_are_a_collapse_and_a_large_shared_mean_is_none() -> None:
    noise = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    assert feature_std(1 + 1e-6 * noise) < COLLAPSED_STD < feature_std(1 + 0.01 * noise)
    assert feature_std(noise) == pytest.approx(1.0, abs=0.02)


def test_the_spread_is_held_against_the_noise_of_the_whole_run() -> None:
    """In the last epoch the noise is annealed away, and any logits would seem to outweigh it."""
    noise, logits = (1.2, 0.6, 0.06), (0.1, 0.2, 0.3)
    history = [{"selection": {}}] + [
        {"selection": {"overlap": 0.5, "logit_spread": spread, "noise_spread": of}}
        for spread, of in zip(logits, noise, strict=True)
    ]
    assert _over_the_run(history) == pytest.approx({"overlap_run": 0.5, "spread_over_noise": 0.6 / 1.86})
    assert _over_the_run(history[:1]) == {}
    still = [{"selection": {"overlap": 1.0, "logit_spread": 0.2, "noise_spread": 0.0}}]
    assert _over_the_run(still) == {"overlap_run": 1.0}
