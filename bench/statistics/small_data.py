"""What little data can carry: the amounts of a grid, and sentences on those that are too small.

The same sentences stand in a plan, before anything is trained, and in the report. Every threshold is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.statistics.accuracy import FEWEST_PATIENTS, SOUND_PATIENTS, Array

FEWEST_STEPS = 100
"""Pre-training steps below which a network has hardly trained. At the scale of the quick preset, in trainings of 228
steps, dense left the plateau of its loss after about 30 steps and SparseContrast after about 50; in a shorter schedule
the learning rate falls earlier. MoCo's teacher, with momentum 0.99, still is the initial network to 37 % after 100."""
FEWEST_POSITIVES = 5
"""Positive training images of a finding below which a probe learns single images: the cross-validation that chooses its
regularisation divides the patients into three folds, and some of these are then left with one positive, or none."""
MOST_OF_ONE = 0.5
"""Share of a finding's positive images that a single patient may hold: above it, the others are outvoted."""


@dataclass(frozen=True)
class Training:
    """The labelled training images of a label fraction, of the draw with the fewest: patients, and positive images of
    each finding."""

    patients: int
    positives: Mapping[str, int]


@dataclass(frozen=True)
class Scored:
    """One finding among the images that are scored: patients without and with a positive image, positive images, and
    those of the patient who has most of them."""

    without: int
    having: int
    positives: int
    largest: int


@dataclass(frozen=True)
class Amounts:
    """How much data a grid has: pre-training steps (0: nothing is pre-trained), training images by label fraction in
    per cent, and scored images by finding, of the `part` "test" or "validation"."""

    steps: int
    training: Mapping[float, Training]
    scored: Mapping[str, Scored]
    part: str = "test"


def scored_of(labels: Array, patients: Array, names: tuple[str, ...]) -> dict[str, Scored]:
    """Count the scored images by finding: labels (n, L) in {0, 1, NaN}, patients (n,), L names."""
    found = {}
    for column, name in zip(np.asarray(labels).T, names, strict=True):
        _, images = np.unique(patients[column == 1], return_counts=True)
        without = len(np.unique(patients[column == 0]))
        found[name] = Scored(without, len(images), int(images.sum()), int(images.max(initial=0)))
    return found


def sentences(amounts: Amounts) -> list[str]:
    """What these amounts can't carry, one sentence for each kind; none where they are enough."""
    return [
        sentence
        for sentence in (
            _few_steps(amounts),
            _few_positives(amounts),
            _unscored(amounts),
            _few_patients(amounts, 1, FEWEST_PATIENTS, "there is no interval for"),
            _few_patients(amounts, FEWEST_PATIENTS, SOUND_PATIENTS, "intervals are rough for"),
            _one_patient(amounts),
        )
        if sentence
    ]


def _few_steps(amounts: Amounts) -> str:
    if not 0 < amounts.steps < FEWEST_STEPS:
        return ""
    return (
        f"Pre-training takes {_counted(amounts.steps, 'step')}: fewer than {FEWEST_STEPS} hardly train a network, which"
        " may still be on the plateau of its loss."
    )


def _few_positives(amounts: Amounts) -> str:
    parts = []
    for fraction, training in amounts.training.items():
        few = {name: n for name, n in training.positives.items() if n < FEWEST_POSITIVES}
        if few:
            fewest = min(few, key=lambda name: few[name])
            parts.append(
                f"{len(few)} of {_counted(len(training.positives), 'finding')} at {fraction:g} % of the labels"
                f" ({_counted(training.patients, 'patient')}; fewest: {fewest}, {few[fewest]})"
            )
    if not parts:
        return ""
    return (
        f"Fewer than {FEWEST_POSITIVES} positive training images in some draw: {', '.join(parts)}. A probe of so few"
        " depends on single images."
    )


def _unscored(amounts: Amounts) -> str:
    names = [name for name, one in amounts.scored.items() if 0 in (one.without, one.having)]
    if not names:
        return ""
    return f"Not scored, because no {amounts.part} patient has the finding, or none lacks it: {', '.join(names)}."


def _few_patients(amounts: Amounts, at_least: int, below: int, result: str) -> str:
    found = {name: min((one.having, "with"), (one.without, "without")) for name, one in amounts.scored.items()}
    few = [f"{name} ({n} {side})" for name, (n, side) in found.items() if at_least <= n < below]
    if not few:
        return ""
    return (
        f"Fewer than {below} {amounts.part} patients with, or without, a finding: {', '.join(few)}. Hence {result}"
        f" {'this finding' if len(few) == 1 else 'these findings'} and for macro means that include"
        f" {'it' if len(few) == 1 else 'them'}."
    )


def _one_patient(amounts: Amounts) -> str:
    held = [
        f"{name} ({one.largest} of {one.positives})"
        for name, one in amounts.scored.items()
        if one.having > 1 and one.largest > MOST_OF_ONE * one.positives
    ]
    if not held:
        return ""
    return (
        f"One patient holds more than half of the positive {amounts.part} images: {', '.join(held)}. These scores are"
        " mostly about that patient."
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
