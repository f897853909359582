"""What little data can carry: counts by hand, one sentence for each kind, none for enough."""

from __future__ import annotations

import numpy as np
import pytest

from bench.statistics.small_data import Amounts, Scored, Training, scored_of, sentences

ENOUGH = Scored(without=40, having=12, positives=20, largest=3)


def amounts(steps=500, training=None, scored=None, part="test"):
    return Amounts(steps, training or {10.0: Training(30, {"A": 9})}, scored or {"A": ENOUGH}, part)


def test_scored_images_are_counted_by_patient():
    patients = np.array(["p", "p", "p", "q", "q", "r", "s"])
    labels = np.array([[1, 1], [1, 0], [1, np.nan], [1, 0], [0, 0], [0, np.nan], [np.nan, np.nan]])
    assert scored_of(labels, patients, ("A", "B")) == {
        "A": Scored(without=2, having=2, positives=4, largest=3),
        "B": Scored(without=2, having=1, positives=1, largest=1),
    }


def test_enough_data_need_no_sentence():
    assert sentences(amounts()) == []
    assert sentences(amounts(steps=0)) == []  # nothing is pre-trained


def test_few_steps():
    (text,) = sentences(amounts(steps=6))
    assert text.startswith("Pre-training takes 6 steps: fewer than 100 hardly train a network")
    assert sentences(amounts(steps=100)) == []


def test_few_positives_are_one_sentence_for_all_fractions():
    training = {
        1.0: Training(3, {"A": 2, "B": 0, "C": 5}),
        10.0: Training(34, {"A": 9, "B": 4, "C": 5}),
        100.0: Training(345, {"A": 90, "B": 41, "C": 50}),
    }
    (text,) = sentences(amounts(training=training))
    assert text == (
        "Fewer than 5 positive training images in some draw: 2 of 3 findings at 1 % of the labels (3 patients; fewest: "
        "B, 0), 1 of 3 findings at 10 % of the labels (34 patients; fewest: B, 4). A probe of so few depends on single "
        "images."
    )


def test_few_scored_patients_with_or_without_a_finding():
    scored = {
        "A": ENOUGH,
        "rare": Scored(50, 4, 4, 1),
        "common": Scored(4, 50, 60, 2),
        "rough": Scored(50, 9, 9, 1),
        "all": Scored(0, 50, 60, 2),
    }
    assert sentences(amounts(scored=scored, part="validation")) == [
        "Not scored, because no validation patient has the finding, or none lacks it: all.",
        "Fewer than 5 validation patients with, or without, a finding: rare (4 with), common (4 without). Hence there "
        "is no interval for these findings and for macro means that include them.",
        "Fewer than 10 validation patients with, or without, a finding: rough (9 with). Hence intervals are rough for "
        "this finding and for macro means that include it.",
    ]


@pytest.mark.parametrize(("largest", "said"), [(22, True), (18, False)])
def test_one_patient_with_most_of_the_positives(largest, said):
    found = sentences(amounts(scored={"A": Scored(40, 12, 36, largest)}))
    text = "One patient holds more than half of the positive test images: A (22 of 36)."
    assert [one.startswith(text) for one in found] == [True] * said
