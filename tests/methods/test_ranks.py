"""Two ranks equal one process on the same global batch: every objective with every strategy, on every family.

Both ranks are started only once (`two_ranks.py`), because starting them takes longest.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.methods.two_ranks import CASES, WORLD
from tests.processes import run_together

TOLERANCE = 1e-9  # relative, in float64


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of the two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.methods.two_ranks"]
    run_together([([*command, str(rank), str(folder)], None) for rank in range(WORLD)])
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("case", [f"{encoder} {method}" for encoder, method in CASES])
def test_loss_gradients_and_state_are_those_of_one_process(ranks: list[dict[str, Any]], case: str) -> None:
    for found in ranks:
        difference, where = found["cases"][case]
        assert difference < TOLERANCE, where


def test_views_are_gathered_in_the_order_of_the_global_batch(ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(ranks):
        mine = found["exchanged"]
        own = [[10.0 * rank + n] for n in (0, 1, 100, 101)]  # view 0 of both samples, then view 1
        assert mine["gathered"] == [[n] for n in (0.0, 1.0, 10.0, 11.0, 100.0, 101.0, 110.0, 111.0)]
        assert mine["own"] == mine["gathered outside"] == own
        assert (mine["world"], mine["world outside"]) == (2, 1)


def test_gradients_are_summed_over_the_ranks(ranks: list[dict[str, Any]]) -> None:
    """Rank r weights row i of the gathered tensor by (1 + r) (i + 1), and the square of the mean by 1 + r."""
    for rank, found in enumerate(ranks):
        rows = [2 * rank, 2 * rank + 1, 4 + 2 * rank, 5 + 2 * rank]
        assert found["exchanged"]["gradient"] == [[3.0 * (row + 1)] for row in rows]
        assert found["exchanged"]["mean"] == pytest.approx(9 / 5)
        assert found["exchanged"]["mean gradient"] == pytest.approx([3 * 2 * 9 / 5 / 5] * (2 + rank))
        assert found["exchanged"]["sum"] == [3.0]


def test_a_batch_that_ranks_do_not_divide_is_refused(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["exchanged"]["error"] == "a batch of 7 samples can't be shared equally by 2 ranks."


@pytest.mark.parametrize("kind", ["plain", "no affine", "cumulative"])
def test_batch_norm_is_over_the_images_of_all_ranks(ranks: list[dict[str, Any]], kind: str) -> None:
    for found in ranks:
        assert found["normed"][kind] < 1e-12
