"""Generation of images from (seed, patient, image) and the options, which determine them completely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.phantom import draws as d
from datasets.phantom import findings as f
from datasets.phantom.anatomy import draw_anatomy, draw_pose
from datasets.phantom.geometry import Array
from datasets.phantom.radiograph import EPSILON, FIELD_MM, Projector, Scene, develop, expose, rays_per_pixel


@dataclass(frozen=True)
class Images:
    """B images of S x S pixels with labels and details, as in `datasets.dataset.Dataset`."""

    pixels: Array  # (B, S, S) uint8
    masks: Array  # (B, S, S) uint16
    labels: Array  # (B, 5) float32
    size_mm: Array  # (B, 5) float32
    contrast: Array
    cnr: Array
    side: Array
    sex: Array  # (B,) str
    age: Array
    view: Array


def scene(seed: int, keys: Sequence[tuple[int, int]], prevalence: tuple[float, ...] = f.PREVALENCE) -> Scene:
    """Draw the contents of the images `keys`, which are pairs (patient, number of the image within the patient)."""

    def of_patient(stream: int) -> d.Draws:
        return d.Draws([(seed, stream, patient) for patient, _ in keys])

    def of_image(stream: int) -> d.Draws:
        return d.Draws([(seed, stream, patient, image) for patient, image in keys])

    anatomy, pose = draw_anatomy(of_patient(d.ANATOMY)), draw_pose(of_image(d.POSE))
    found = f.draw_findings(of_patient(d.DISEASE), of_image(d.EPISODE), anatomy, pose.breath, prevalence)
    return Scene(anatomy, pose, found)


def chunk_length(image_size: int) -> int:
    """Return how many images are rendered at once, so that the arrays fit into the processor's cache."""
    return max(1, 65536 // (image_size * rays_per_pixel(image_size)) ** 2)


def generate(
    seed: int, keys: Sequence[tuple[int, int]], image_size: int, prevalence: tuple[float, ...] = f.PREVALENCE
) -> Images:
    """Render the images `keys`, pairs (patient, image), with `image_size` x `image_size` pixels."""
    whole = scene(seed, keys, prevalence)
    count, labels = len(keys), len(f.NAMES)
    pixels = np.empty((count, image_size, image_size), dtype=np.uint8)
    masks = np.zeros((count, image_size, image_size), dtype=np.uint16)
    contrast = np.full((count, labels), np.nan, dtype=np.float32)
    cnr = contrast.copy()
    step = chunk_length(image_size)
    for begin in range(0, count, step):
        rows = np.arange(begin, min(begin + step, count))
        part = whole.take(rows)
        projector = Projector(part, image_size)
        integrals = projector.integrals(np.arange(len(rows)))
        light = expose(integrals, part.pose)
        mean = light.primary + light.scattered
        counts = np.stack(
            [np.random.default_rng((seed, d.NOISE, *keys[row])).poisson(mean[i]) for i, row in enumerate(rows.tolist())]
        )
        pixels[rows] = develop(counts, part.pose)
        for label in range(labels):
            shown = np.flatnonzero(part.findings.present[:, label])
            if not len(shown):
                continue
            change = np.abs(integrals[shown] - projector.integrals(shown, without=label))
            mask = change > EPSILON
            masks[rows[shown]] |= mask.astype(np.uint16) << label
            area = np.maximum(mask.sum((1, 2)), 1)
            contrast[rows[shown], label] = (change * mask).sum((1, 2)) / area
            ratio = change * light.primary[shown] / np.sqrt(mean[shown])
            cnr[rows[shown], label] = (ratio * mask).sum((1, 2)) / area
    age = whole.anatomy.age
    return Images(
        pixels=pixels,
        masks=masks,
        labels=whole.findings.present.astype(np.float32),
        size_mm=whole.findings.size_mm,
        contrast=contrast,
        cnr=cnr,
        side=whole.findings.side,
        sex=np.where(whole.anatomy.female, "female", "male"),
        age=np.where(age < 40, "under 40", np.where(age < 65, "40-64", "65+")),
        view=np.where(whole.pose.portable, "AP", "PA"),
    )


__all__ = ["FIELD_MM", "Images", "chunk_length", "generate", "scene"]
