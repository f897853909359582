"""Findings: which patients have which of the five, how severe they are, and their bodies in mm.

- nodule: one to three solid spheres of 5-30 mm in aerated lung.
- consolidation: a cluster of ellipsoids whose air is partly replaced by fluid; along a ray it extends from the first
  entry to the last exit.
- effusion: fluid between the chest wall and an ellipsoidal lung surface; its level rises at the sides (meniscus).
- cardiomegaly: the heart of the same patient, enlarged to a cardiothoracic ratio above 0.5, mostly to the left.
- pneumothorax: rays that miss the retracted lung cross only air, without lung tissue or vessels. Rays that still hit
  the lung keep its mass (the tissue is compressed along the ray), so that the mask is the rim.

Nodules and an enlarged heart appear in all images of a patient. Consolidation, effusion and pneumothorax come and go
between images. Severity varies between images. Nodules and consolidations lie in aerated lung. Effusion is correlated
with cardiomegaly and consolidation (by a Gaussian copula). Age, sex, view and devices are independent of all findings.
Prevalences are of the order of hospital series (ChestX-ray14, CheXpert, MIMIC-CXR), but none is below a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.phantom.anatomy import LEFT, RIGHT, SIGN, Anatomy, Batch, Bodies, bodies, breathe
from datasets.phantom.draws import Draws
from datasets.phantom.geometry import Array

NAMES = ("nodule", "consolidation", "effusion", "cardiomegaly", "pneumothorax")
NODULE, CONSOLIDATION, EFFUSION, CARDIOMEGALY, PNEUMOTHORAX = range(5)
PREVALENCE = (0.13, 0.20, 0.25, 0.18, 0.12)  # share of all images that show the finding
STAYS = (1.0, 0.8, 0.8, 1.0, 0.8)  # share of the images of an affected patient that show it
_CORRELATION = np.array(
    [
        [1.00, 0.10, 0.10, 0.00, 0.00],
        [0.10, 1.00, 0.30, 0.10, 0.00],
        [0.10, 0.30, 1.00, 0.40, 0.10],
        [0.00, 0.10, 0.40, 1.00, 0.00],
        [0.00, 0.00, 0.10, 0.00, 1.00],
    ]
)
NODULES, BLOBS, TRIES = 3, 5, 24


@dataclass(frozen=True)
class Findings(Batch):
    """Findings of B images, with lengths in mm in the frame of the posed patient."""

    present: Array  # (B, 5) bool
    heart_ratio: Array  # (B,) actual cardiothoracic ratio
    nodule_centre: Array  # (B, 3, 3)
    nodule_radius: Array  # (B, 3), 0 for none
    nodule_mu: Array  # (B,) 1/mm
    blob_centre: Array  # (B, 2, 5, 3) by side
    blob_radii: Array  # (B, 2, 5, 3), 0 for none
    blob_fill: Array  # (B,) share of the air that is replaced
    fluid_height: Array  # (B, 2) height of the meniscus above the costophrenic angle in mm, 0 for none
    rim: Array  # (B, 2) width of the air at the apex in mm, 0 for none
    size_mm: Array  # (B, 5), NaN where absent
    side: Array  # (B, 5) +1 right, -1 left, 0 both or central, NaN where absent


def _normal_quantile(p: Array) -> Array:
    """Return quantiles of the normal distribution (Abramowitz & Stegun 26.2.23, error below 4.5e-4)."""
    t = np.sqrt(-2 * np.log(np.minimum(p, 1 - p)))
    value = t - (2.515517 + 0.802853 * t + 0.010328 * t**2) / (1 + 1.432788 * t + 0.189269 * t**2 + 0.001308 * t**3)
    return np.asarray(np.where(p < 0.5, -value, value))


def costophrenic(b: Bodies) -> Array:
    """Return y (B, 2) of the costophrenic angle, where the edge of the lung meets the dome of the diaphragm."""

    def arc(x: Array) -> Array:
        return np.asarray(np.sqrt(np.maximum(1 - x**2, 0)))

    y = b.dome_centre[..., 1] - 0.5 * b.dome_radii[..., 1]
    for _ in range(4):  # converges, because the edge of the lung is steep there
        edge = b.lung_radii[..., 0] * arc((y - b.lung_centre[..., 1]) / b.lung_radii[..., 1])
        across = np.abs(b.lung_centre[..., 0]) + edge - np.abs(b.dome_centre[..., 0])
        y = b.dome_centre[..., 1] - b.dome_radii[..., 1] * arc(across / b.dome_radii[..., 0])
    return np.asarray(y)


def surface(b: Bodies, height: Array) -> tuple[Array, Array]:
    """Return centre and radii (B, 2, 3) of the ellipsoid that bounds the lung above fluid `height` (B, 2) mm high.

    Its widest section covers the lung, so that the fluid begins with zero thickness and at the sides (a meniscus),
    0.725 of the half height of the ellipsoid above its bottom.
    """
    tall = 30 + 0.5 * height
    bottom = costophrenic(b) - height + 0.725 * tall
    centre = np.stack([b.lung_centre[..., 0], bottom - tall, b.lung_centre[..., 2]], -1)
    radii = np.stack([1.04 * b.lung_radii[..., 0], tall, 1.20 * b.lung_radii[..., 2]], -1)
    return centre, radii


def retracted(b: Bodies, rim: Array) -> tuple[Array, Array]:
    """Return centre and radii (B, 2, 3) of a lung that leaves `rim` (B, 2) mm of air at its apex.

    The lung shrinks towards a point at the mediastinum, slightly below its middle.
    """
    shrink = np.clip(1 - rim / (1.35 * b.lung_radii[..., 1]), 0.2, 1)[..., None]
    medial = np.stack([-SIGN, np.full(2, 0.35), np.zeros(2)], -1)
    anchor = b.lung_centre + b.lung_radii * medial
    return anchor + shrink * (b.lung_centre - anchor), b.lung_radii * shrink


def _depth(point: Array, centre: Array, radii: Array, tilt: Array | float = 0.0) -> Array:
    """Return the approximate depth in mm of points (..., 3) inside an ellipsoid; negative outside."""
    d = point - centre
    cos, sin = np.cos(tilt), np.sin(tilt)
    w = np.stack([cos * d[..., 0] + sin * d[..., 1], cos * d[..., 1] - sin * d[..., 0], d[..., 2]], -1) / radii
    norm = np.linalg.norm(w, axis=-1)
    return np.asarray((1 - norm) * norm / np.maximum(np.linalg.norm(w / radii, axis=-1), 1e-6))


def _aerated(point: Array, side: Array, b: Bodies, height: Array, rim: Array) -> Array:
    """Return the margin in mm by which points (B, K, 3) on the sides (B, K) lie inside air-filled lung."""

    def of(value: Array) -> Array:
        return np.take_along_axis(value, side[..., None], 1)

    lung_centre, lung_radii = retracted(b, rim)
    fluid_centre, fluid_radii = surface(b, height)
    fluid = _depth(point, of(fluid_centre), of(fluid_radii))
    wet = (np.take_along_axis(height, side, 1) > 0) & (point[..., 1] > of(fluid_centre)[..., 1])
    one = (slice(None), None)
    margins = [
        _depth(point, of(lung_centre), of(lung_radii)),
        -_depth(point, of(b.dome_centre), of(b.dome_radii)),
        of(b.dome_centre)[..., 1] - point[..., 1],
        -_depth(point, b.heart_centre[one], 1.15 * b.heart_radii[one], b.heart_tilt[one]),
        -_depth(point, b.mediastinum_centre[one], b.mediastinum_radii[one]) - 4,
        -_depth(point, b.arch_centre[one], b.arch_radii[one]),
        np.where(wet, fluid, 1e3),
    ]
    return np.asarray(np.minimum.reduce(margins))


def _place(
    draws: Draws, count: int, side: Array, margin: Array, b: Bodies, a: Anatomy, height: Array, rim: Array
) -> Array:
    """Return random points (B, count, 3) of aerated lung at full inspiration, with `margin` (B, count) around them.

    Each is the first of several tries that has the margin, or the best one if none has.
    """
    batch = len(side)
    best, found = np.full((batch, count), -np.inf), np.zeros((batch, count, 3))
    tries = draws.uniform(-1, 1, count, TRIES // 3, 3)  # each is used in three orientations, mirrored as below
    centre = np.take_along_axis(b.lung_centre, side[..., None], 1)
    radii = np.take_along_axis(b.lung_radii, side[..., None], 1)
    low = np.take_along_axis(a.dome, side, 1) + 25
    for i in range(TRIES):
        unit = tries[:, :, i // 3] * ((1, 1, 1), (-1, 1, -1), (1, -1, 1))[i % 3]
        y = a.apex[:, None] + 12 + (low - a.apex[:, None] - 12) * (unit[..., 1] + 1) / 2
        girdle = np.sqrt(np.maximum(1 - ((y - centre[..., 1]) / radii[..., 1]) ** 2, 0))
        x = centre[..., 0] + unit[..., 0] * radii[..., 0] * girdle
        z = centre[..., 2] + unit[..., 2] * radii[..., 2] * girdle
        point = np.stack([x, y, z], -1)
        score = np.minimum(_aerated(point, side, b, height, rim) - margin, 0)
        better = score > best
        best, found = np.where(better, score, best), np.where(better[..., None], point, found)
    return found


def draw_findings(disease: Draws, episode: Draws, a: Anatomy, breath: Array, prevalence: tuple[float, ...]) -> Findings:
    """Draw the findings of images. The numbers of `disease` belong to patients, those of `episode` to images."""
    batch = len(breath)
    latent = disease.normal(0, 1, 5) @ np.linalg.cholesky(_CORRELATION).T
    share = np.asarray(prevalence) / STAYS
    if np.any(share >= 1):
        raise ValueError(
            "phantom: a prevalence is too high; nodule and cardiomegaly must be below 1, the others below 0.8."
        )
    carrier = latent > -_normal_quantile(np.maximum(share, 1e-12))
    present = carrier & (episode.uniform(0, 1, 5) < STAYS) & (share > 0)
    grade = episode.uniform(0.8, 1.2, 5)

    ratio = disease.lognormal(0.55, 0.07, 0.505, 0.68)
    ratio = np.where(
        present[:, CARDIOMEGALY],
        np.maximum(0.503, ratio + 0.04 * (grade[:, CARDIOMEGALY] - 1)),
        a.heart_ratio,
    )

    height = disease.lognormal(55, 0.5, 20, 140)
    both = disease.chance(0.3)
    first = np.where(disease.chance(0.55), RIGHT, LEFT)
    second = disease.uniform(0.3, 0.9)
    fluid = np.where(np.arange(2) == first[:, None], height[:, None], np.where(both, height * second, 0)[:, None])
    fluid_most = np.where(carrier[:, EFFUSION, None], fluid * 1.2, 0)
    fluid_side = np.where(both, 0.0, -SIGN[first])
    fluid = np.where(present[:, EFFUSION, None], np.clip(fluid * grade[:, EFFUSION, None], 0, 150), 0)

    air = disease.lognormal(24, 0.5, 10, 80)
    rim_side = np.where(disease.chance(0.55), RIGHT, LEFT)
    rim_on = np.arange(2) == rim_side[:, None]
    rim = np.clip(air * grade[:, PNEUMOTHORAX], 9, 90)
    rims = np.where(rim_on & present[:, PNEUMOTHORAX, None], rim[:, None], 0)
    rim_most = np.where(rim_on & carrier[:, PNEUMOTHORAX, None], air[:, None] * 1.2, 0)

    full = bodies(a, np.zeros(batch), np.full(batch, 1.1), ratio)
    radius = disease.lognormal(9.0, 0.42, 2.75, 14.0)[:, None] * disease.uniform(0.45, 1.0, NODULES)
    radius[:, 0] = radius.max(1)
    number = 1 + disease.chance(0.2) + disease.chance(0.1)
    radius = np.where(np.arange(NODULES) < number[:, None], radius, 0)
    nodule_side = (disease.uniform(0, 1, NODULES) < 0.45).astype(int)
    nodule = _place(disease, NODULES, nodule_side, radius + 1, full, a, fluid_most, rim_most)
    nodule = breathe(nodule, a, breath, nodule_side)
    radius = np.where(present[:, NODULE, None], np.clip(radius * (0.5 + 0.5 * grade[:, NODULE, None]), 0, 15), 0)
    radius = np.where((radius > 0) & (radius < 2.5), 2.5, radius)
    used = radius > 0
    nodule_on = [(used & (nodule_side == s)).any(1) for s in (RIGHT, LEFT)]
    mu = disease.uniform(0.9, 1.1) * 0.0205 + np.where(disease.chance(0.15), 0.006, 0)  # some calcified

    patch = disease.lognormal(36, 0.4, 14, 75)
    twin = disease.chance(0.25)
    patch_first = np.where(disease.chance(0.55), RIGHT, LEFT)
    hit = (np.arange(2) == patch_first[:, None]) | twin[:, None]
    sides = np.broadcast_to(np.arange(2), (batch, 2))
    focus = _place(disease, 2, sides, np.full((batch, 2), 9.0), full, a, fluid_most, rim_most)
    spread = disease.normal(0, 0.42, 2, BLOBS, 3) * patch[:, None, None, None]
    spread[:, :, 0] = 0
    extent = disease.uniform(0.4, 0.85, 2, BLOBS, 3) * patch[:, None, None, None]
    blobs = breathe((focus[:, :, None] + spread).reshape(batch, 2 * BLOBS, 3), a, breath, np.repeat(sides, BLOBS, 1))
    blobs = blobs.reshape(batch, 2, BLOBS, 3)
    shown = (hit & present[:, CONSOLIDATION, None])[..., None, None]
    extent = np.where(shown, extent * grade[:, CONSOLIDATION, None, None, None], 0)
    fill = np.clip(disease.uniform(0.35, 1.0) * grade[:, CONSOLIDATION], 0.2, 1)
    long = (blobs + extent).max(2) - (blobs - extent).min(2)  # (B, 2, 3)
    long = np.where(hit[..., None], long, 0).max((1, 2))

    most = 2 * radius.max(1)
    width = 2 * ratio * a.thorax
    size = np.stack([most, long, fluid.max(1), width, rim], -1)
    nodule_at = np.where(nodule_on[0] & nodule_on[1], 0.0, np.where(nodule_on[0], 1.0, -1.0))
    patch_at = np.where(twin, 0.0, -SIGN[patch_first])
    where = np.stack([nodule_at, patch_at, fluid_side, np.zeros(batch), -SIGN[rim_side]], -1)
    nan = np.float32(np.nan)
    return Findings(
        present=present,
        heart_ratio=ratio,
        nodule_centre=nodule,
        nodule_radius=radius,
        nodule_mu=mu,
        blob_centre=blobs,
        blob_radii=extent,
        blob_fill=fill,
        fluid_height=fluid,
        rim=rims,
        size_mm=np.where(present, size, nan).astype(np.float32),
        side=np.where(present, where, nan).astype(np.float32),
    )
