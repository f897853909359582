"""What a rerun is compared by: conditions, and intervals where weights can't be equal."""

from __future__ import annotations

import pytest

from bench.records.environment import conditions, environment
from bench.verification.rerun import changes, within
from tests.bench.small import evaluation


@pytest.mark.parametrize(
    ("then", "now", "verdict"),
    [
        ((0.50, (0.40, 0.60)), (0.55, (0.45, 0.65)), "holds"),
        ((0.50, (0.40, 0.60)), (0.60, (0.50, 0.70)), "holds"),  # at the very ends
        ((0.50, (0.40, 0.60)), (0.61, (0.45, 0.75)), "does not hold"),  # outside the recorded one
        ((0.50, (0.10, 0.90)), (0.65, (0.55, 0.75)), "does not hold"),  # a wide recorded one does not help
        ((0.50, (0.40, 0.60)), (0.80, (0.70, 0.90)), "does not hold"),
    ],
)
def test_each_accuracy_lies_in_the_others_interval(then, now, verdict) -> None:
    one, other = (
        evaluation("a", "s", value=value).model_copy(update={"interval": interval}) for value, interval in (then, now)
    )
    check = within("x", one, other)
    assert check.verdict == verdict
    assert f"{then[0]:.4f} [{then[1][0]:.4f}, {then[1][1]:.4f}] then, {now[0]:.4f}" in check.why


def test_conditions_under_which_weights_must_be_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = environment(1)
    assert changes(now, {**now, "commit": "another", "allocator": "another"}) == []
    then = {**now, "threads": 2, "versions": {**now["versions"], "torch": "1.0"}}
    assert changes(then, now) == [
        "threads: 2 recorded, 1 found",
        f"versions.torch: 1.0 recorded, {now['versions']['torch']} found",
    ]
    assert changes({**now, "ranks": 2}, now) == ["ranks: 2 recorded, 1 found"]
    assert changes({**now, "also_trained_under": [conditions({**now, "threads": 2})]}, now) == [
        "threads: 2 recorded, 1 found (for a part of the training)"
    ]
    before_ranks = {key: value for key, value in now.items() if key != "ranks"}
    assert changes(before_ranks, now) == []
    monkeypatch.setattr("bench.verification.rerun.torch.cuda.is_available", lambda: True)
    assert changes(now, now) == ["a GPU sums in no fixed order"]
