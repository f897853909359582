"""Patients: sizes and positions of the bodies in the chest in mm, and their pose in an image.

The axes are x to the patient's left (right in the image), y to the feet and z to the front, with the origin in the
middle of the chest. An adult of average size has an inner thoracic width near 276 mm (men) or 254 mm (women), lungs
22-26 cm high, a heart of 38-49 % of the thoracic width (the cardiothoracic ratio; enlarged above 50 %), and a chest
about 22 cm deep. A shallower breath raises the diaphragm by up to 3 cm and broadens the heart. An AP image shows the
heart about a tenth larger, because it is farther from the detector. Both look like cardiomegaly.

`Anatomy` is constant over the images of a patient; `Pose` belongs to one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from datasets.phantom.draws import Draws
from datasets.phantom.geometry import Array, Rays, pose_rays

RIGHT, LEFT = 0, 1
SIGN = np.array([-1.0, 1.0])  # sign of x on the patient's right and left side


class Batch:
    """Base of frozen dataclasses of arrays whose first axis is the image."""

    def take(self, rows: Array) -> Self:
        """Select images by their positions."""
        return type(self)(**{name: value[rows] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Anatomy(Batch):
    """Bodies of B patients. Arrays are (B,) unless noted, lengths in mm, attenuations in 1/mm."""

    female: Array
    age: Array  # years
    build: Array  # size relative to an average man
    girth: Array  # size of the outer torso relative to the skeleton
    thorax: Array  # half the inner thoracic width
    lung_depth: Array  # half the depth of a lung
    apex: Array  # y of the apex of the lungs
    dome: Array  # (B, 2) y of the right and left diaphragm dome at full inspiration
    lung_mu: Array
    bone: Array  # density of bone relative to a young adult
    heart_ratio: Array  # cardiothoracic ratio of the normal heart
    heart_tilt: Array  # radians
    heart_shape: Array  # ratio of the short to the long axis
    heart_shift: Array  # (B, 2) mm, to the left and downwards
    aorta: Array  # relative size of the aortic arch
    breast: Array  # relative size, 0 in men
    scoliosis: Array  # (B, 2) lateral amplitude in mm, and phase
    rib_shift: Array
    rib_radius: Array
    vessel_angle: Array  # (B, 2, 7) jitter of the main branches, radians
    vessel_fork: Array  # (B, 2, 7, 6) jitter of the forks
    vessel_size: Array
    stomach: Array  # (B, 3) x, y and radius of the gas in the stomach


@dataclass(frozen=True)
class Pose(Batch):
    """Pose, exposure and devices of B images. Arrays are (B,) unless noted."""

    portable: Array  # bool, antero-posterior (AP) or else postero-anterior (PA)
    turn: Array  # radians about the long axis of the body
    roll: Array  # radians in the image plane
    shift: Array  # (B, 2) mm
    scale: Array  # magnification
    breath: Array  # height of the diaphragm in mm above full inspiration
    heart_zoom: Array  # magnification of the heart, which is farther from the detector in AP
    fluence: Array  # noise-equivalent photons per mm2 without a patient
    scatter: Array  # ratio of scattered to mean primary photons inside the body
    window: Array  # (B, 3) shift of the black and of the white level (line integral), and gamma
    electrodes: Array  # (B, 3) bool
    electrode_at: Array  # (B, 3, 2) mm
    wire: Array  # (B, 3, 2) mm, bending of the leads
    catheter: Array  # bool, central line
    tube: Array  # bool, endotracheal tube
    pacemaker: Array  # bool


def draw_anatomy(draws: Draws) -> Anatomy:
    """Draw the anatomy of patients."""
    female = draws.chance(0.46)
    age = np.clip(draws.normal(57, 18), 18, 95)
    old = np.clip((age - 50) / 40, -0.5, 1)
    build = np.where(female, draws.normal(0.92, 0.035), draws.normal(1.0, 0.04))
    thorax = 138 * build * draws.normal(1, 0.035)
    dome = np.stack([draws.normal(88, 8), draws.normal(99, 8)], -1) * build[:, None]
    ratio = np.clip(draws.normal(0.448, 0.028), 0.37, 0.492)
    return Anatomy(
        female=female,
        age=age,
        build=build,
        girth=np.clip(draws.normal(1.03, 0.07), 0.9, 1.25),
        thorax=thorax,
        lung_depth=84 * build * draws.normal(1, 0.05),
        apex=-130 * build + draws.normal(0, 5),
        dome=dome,
        lung_mu=np.clip(draws.normal(0.0052, 0.0006), 0.0035, 0.0068),
        bone=1 - 0.25 * old + draws.normal(0, 0.08),
        heart_ratio=ratio,
        heart_tilt=np.radians(draws.normal(36, 5)),
        heart_shape=draws.normal(0.74, 0.04),
        heart_shift=draws.normal(0, 4, 2),
        aorta=1 + 0.25 * old + draws.normal(0, 0.1),
        breast=np.where(female, draws.uniform(0.6, 1.25), 0.0),
        scoliosis=np.stack([draws.normal(0, 4), draws.uniform(0, 6.28)], -1),
        rib_shift=draws.normal(0, 5),
        rib_radius=draws.normal(4.9, 0.4) * build,
        vessel_angle=draws.normal(0, 0.10, 2, 7),
        vessel_fork=draws.normal(0, 1, 2, 7, 6),
        vessel_size=draws.normal(1, 0.12),
        stomach=np.stack([draws.normal(62, 12), draws.normal(30, 7), draws.uniform(6, 26)], -1),
    )


def draw_pose(draws: Draws) -> Pose:
    """Draw the poses of images."""
    portable = draws.chance(0.4)
    more = np.where(portable, 1.0, 0.0)
    return Pose(
        portable=portable,
        turn=np.radians(draws.normal(0, 1) * (2.0 + 2.0 * more)),
        roll=np.radians(draws.normal(0, 1) * (1.3 + 1.2 * more)),
        shift=np.stack([draws.normal(0, 7), draws.normal(0, 9)], -1),
        scale=draws.normal(1.0, 0.03) + 0.03 * more,
        breath=np.clip(np.abs(draws.normal(0, 9)) + 9 * more, 0, 32),
        heart_zoom=1 + 0.10 * more,
        fluence=draws.lognormal(2.0e4, 0.45, 5e3, 8e4) * np.where(portable, 0.5, 1.0),
        scatter=draws.uniform(0.2, 0.6) * (1 + 0.8 * more),
        window=np.stack([draws.normal(0, 0.08), draws.normal(0, 0.15), draws.normal(1.0, 0.1)], -1),
        electrodes=draws.chance(1.0, 3) & draws.chance(0.2 + 0.35 * more)[:, None],
        electrode_at=np.stack([draws.normal(0, 14, 3), draws.normal(0, 14, 3)], -1),
        wire=draws.normal(0, 18, 3, 2),
        catheter=draws.chance(0.08 + 0.3 * more),
        tube=draws.chance(0.2 * more),
        pacemaker=draws.chance(0.05),
    )


@dataclass(frozen=True)
class Bodies(Batch):
    """Convex bodies that shape the lungs, after breathing: centres and radii in mm, (B, 2, 3) by side or (B, 3)."""

    lung_centre: Array
    lung_radii: Array
    dome_centre: Array
    dome_radii: Array
    heart_centre: Array
    heart_radii: Array
    heart_tilt: Array
    mediastinum_centre: Array
    mediastinum_radii: Array
    arch_centre: Array
    arch_radii: Array


def bodies(a: Anatomy, breath: Array, heart_zoom: Array, heart_ratio: Array) -> Bodies:
    """Place lungs, diaphragm, heart and mediastinum, with the diaphragm `breath` mm above full inspiration."""
    k, zero = a.build, np.zeros_like(a.build)

    def pair(right: Array, left: Array) -> Array:
        return np.stack([right, left], 1)

    def point(x: Array, y: Array, z: Array) -> Array:
        return np.stack(np.broadcast_arrays(x, y, z), -1)

    radius = 0.48 * a.thorax
    lung_height = 175 * k
    dome_height = 62 * k
    dome_y = a.dome - breath[:, None] + dome_height[:, None]
    width = a.heart_ratio * 2 * a.thorax  # of the normal heart
    growth = np.maximum(heart_ratio - a.heart_ratio, 0) * 2 * a.thorax
    swell = ((width + growth) / width) ** 0.6
    half = (width + growth) / 2
    sin, cos = np.sin(a.heart_tilt), np.cos(a.heart_tilt)
    long = half / np.sqrt(cos**2 + (a.heart_shape * sin) ** 2)  # makes the shadow 2 x half wide
    short = a.heart_shape * long
    tall = np.sqrt((long * sin) ** 2 + (short * cos) ** 2)
    heart_x = width / 2 - 0.34 * width + 0.25 * growth + a.heart_shift[:, 0]
    floor = a.dome[:, LEFT] - breath + 14 * k + a.heart_shift[:, 1]  # the heart rests on the diaphragm
    zoom = (heart_zoom * (1 + 0.0025 * breath))[:, None]  # a high diaphragm broadens the heart
    return Bodies(
        lung_centre=pair(*(point(s * (a.thorax - radius), a.apex + lung_height, zero) for s in SIGN)),
        lung_radii=pair(*(point(radius, lung_height, a.lung_depth) for _ in SIGN)),
        dome_centre=np.stack([point(s * 0.47 * a.thorax, dome_y[:, i], zero) for i, s in enumerate(SIGN)], 1),
        dome_radii=pair(*(point(0.56 * a.thorax, dome_height, 1.16 * a.lung_depth) for _ in SIGN)),
        heart_centre=point(heart_x, floor - tall, 22 * k),
        heart_radii=point(long, short, 46 * k * swell) * zoom,
        heart_tilt=a.heart_tilt,
        mediastinum_centre=point(2 + zero, -10 + zero, -6 * k),
        mediastinum_radii=point(29 * k, 330 * k, 0.86 * a.lung_depth),
        arch_centre=point(24 * k, -54 * k, -4 + zero),
        arch_radii=point(17 * k * a.aorta, 19 * k * a.aorta, 24 * k),
    )


def breathe(points: Array, a: Anatomy, breath: Array, side: Array) -> Array:
    """Move points (B, K, 3) of the lung from full inspiration to where they are with the dome `breath` mm higher.

    The lung shortens evenly from its apex to the dome. `side` (B, K) is 0 for right and 1 for left.
    """
    apex = a.apex[:, None]
    dome = np.take_along_axis(a.dome, side, 1)
    y = apex + (points[..., 1] - apex) * (dome - breath[:, None] - apex) / (dome - apex)
    return np.stack([points[..., 0], y, points[..., 2]], -1)


def rays_of(pose: Pose, field_mm: float, count: int) -> Rays:
    """Return `count` x `count` rays per image through a field of `field_mm` mm on a side."""
    return pose_rays(pose.turn, pose.roll, pose.shift, pose.scale, field_mm, count)
