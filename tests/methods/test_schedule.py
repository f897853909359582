import math

import pytest

from methods.schedule import keep_at, kept_tokens


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 1.0), (0.1, 0.875), (0.15, 0.75), (0.2, 0.625), (0.3, 0.5), (1.0, 0.5)]
)
def test_half_a_cosine_from_one_to_the_target(progress: float, expected: float) -> None:
    """The expected values follow from cos(pi/3) = 1/2 and cos(2 pi/3) = -1/2."""
    assert keep_at(progress, target=0.5, ramp=0.3) == pytest.approx(expected)


def test_no_ramp_is_the_target_from_the_start() -> None:
    assert keep_at(0.0, 0.3, ramp=0.0) == 0.3


def test_mean_over_the_ramp_is_half_way() -> None:
    steps = 10_000
    mean = math.fsum(keep_at(i / steps, 0.4, 1.0) for i in range(steps)) / steps
    assert mean == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize(
    ("patches", "keep", "expected"), [(196, 0.5, 98), (196, 0.53, 104), (16, 0.01, 1), (16, 1.0, 16), (16, 0.53125, 9)]
)
def test_kept_tokens_round_half_up_and_never_to_none(patches: int, keep: float, expected: int) -> None:
    assert kept_tokens(patches, keep) == expected
