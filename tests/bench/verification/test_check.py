"""What counts as a difference, and how it is said."""

from __future__ import annotations

import math

import pytest

from bench.verification.check import FAILS, HOLDS, compare, differences
from tests.bench.small import evaluation


@pytest.mark.parametrize(
    ("recorded", "found", "said"),
    [
        ({"a": 1.0}, {"a": 1.0 + 1e-7}, []),
        ({"a": 1e12}, {"a": 1e12 + 1}, []),
        ({"a": math.nan}, {"a": math.nan}, []),
        ({"a": (1, 2)}, {"a": [1, 2]}, []),
        ({"a": 1.0}, {"a": 1.00001}, ["a: 1 recorded, 1.00001 found"]),
        ({"a": {"b": [1, {"c": "x"}]}}, {"a": {"b": [1, {"c": "y"}]}}, ["a.b[1].c: x recorded, y found"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a: 1 recorded, 2 found"]),
        ({"a": 1}, {"b": 1}, ["a is recorded, but not found", "b is not recorded"]),
        ({"a": None}, {"a": 0.0}, ["a: None recorded, 0 found"]),
        ({"a": True}, {"a": 2}, ["a: True recorded, 2 found"]),
        ({"a": "f" * 64}, {"a": "e" * 64}, [f"a: {'f' * 16}... recorded, {'e' * 16}... found"]),
        ({"a": 2_000_000}, {"a": 2_000_001}, ["a: 2000000 recorded, 2000001 found"]),
        ({"a": 10**400}, {"a": 1}, [f"a: {'1' + '0' * 15}... recorded, 1 found"]),
        ({"a": 10**400}, {"a": 1.5}, [f"a: {'1' + '0' * 15}... recorded, 1.5 found"]),
        ({"a": math.nan}, {"a": 0.5}, ["a: nan recorded, 0.5 found"]),
    ],
)
def test_differences(recorded, found, said) -> None:
    assert list(differences(recorded, found)) == said


def test_models_are_compared_field_by_field() -> None:
    one, other = evaluation("a", "s"), evaluation("a", "s", value=0.75)
    assert list(differences(one, other)) == ["macro_auroc: 0.5 recorded, 0.75 found"]


def test_a_check_holds_or_names_the_first_differences() -> None:
    many = {str(i): i for i in range(6)}
    assert compare("x", many, many, "all is well") == compare("x", many, dict(many), "all is well")
    assert compare("x", many, many, "all is well").verdict == HOLDS
    broken = compare("x", many, {key: value + 1 for key, value in many.items()}, "all is well")
    assert broken.verdict == FAILS
    assert broken.why == "0: 0 recorded, 1 found; 1: 1 recorded, 2 found; 2: 2 recorded, 3 found; and 3 more"
