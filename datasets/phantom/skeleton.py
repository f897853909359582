"""Bones, airways, lung vessels and devices as mitred tubes, with their attenuations.

Attenuations are those at about 65 keV, the effective energy behind a patient at 120 kVp (NIST XCOM: water 0.020/mm,
cortical bone 0.054/mm, air 0). Ribs and vertebrae are mixtures of cortex and marrow.
"""

from __future__ import annotations

import numpy as np

from datasets.phantom.anatomy import SIGN, Anatomy, Pose, breathe
from datasets.phantom.geometry import Array, Tubes, join, polyline

SOFT = 0.020  # 1/mm
RIB, VERTEBRA, CLAVICLE = 0.017, 0.013, 0.020  # 1/mm, in excess of soft tissue
METAL, SILICONE = 0.25, 0.06

RIBS = 9
_TURNS = np.linspace(np.radians(-80), np.radians(62), 10)  # angles along a rib, from the spine to the front


def bones(a: Anatomy, pose: Pose) -> Tubes:
    """Build nine pairs of ribs, the clavicles and the vertebrae."""
    return join(_ribs(a, pose), _clavicles(a), _spine(a))


def _ribs(a: Anatomy, pose: Pose) -> Tubes:
    number = np.arange(RIBS)
    k = a.build[:, None]
    first = (a.apex[:, None] + 2) + 25.0 * k * number + a.rib_shift[:, None]  # y at the spine
    drop = (26 + 6.0 * number) * k  # from the spine to the front end
    share = np.clip((_TURNS - _TURNS[0]) / (_TURNS[-1] - _TURNS[0]), 0, 1)
    fall = 0.35 * share + 0.65 * share**2
    y = first[..., None] + (drop - 0.12 * pose.breath[:, None])[..., None] * fall  # (B, ribs, n)
    middle, height = (a.apex + 175 * a.build)[:, None], 175 * a.build[:, None]
    level = np.clip((y[..., 4] - 6 - middle) / height, -0.985, 0.985)
    girdle = np.sqrt(1 - level**2)  # relative size of the lung's section at the rib
    wide = a.thorax[:, None] * (0.52 + 0.48 * girdle) + a.rib_radius[:, None] + 2
    deep = 1.2 * a.lung_depth[:, None] * np.maximum(girdle, 0.45)
    x = wide[..., None] * np.cos(_TURNS)
    z = deep[..., None] * np.sin(_TURNS)
    curves = np.concatenate([np.stack([s * x, y, z], -1) for s in SIGN], 1)
    return polyline(curves, a.rib_radius[:, None, None], (RIB * a.bone)[:, None, None])


def _clavicles(a: Anatomy) -> Tubes:
    k = a.build[:, None]
    x = np.array([14, 45, 85, 120, 152.0]) * k
    y = np.array([-104, -117, -123, -134, -140.0]) * k
    z = np.array([78, 76, 52, 34, 20.0]) * k
    curves = np.stack([np.stack([s * x, y, z], -1) for s in SIGN], 1)
    return polyline(curves, 5.6 * a.build[:, None, None], (CLAVICLE * a.bone)[:, None, None])


def spine_x(a: Anatomy, y: Array) -> Array:
    """Return the lateral position x (B, n) of the spine at heights y (B, n)."""
    return np.asarray(a.scoliosis[:, :1] * np.sin(y / 110 + a.scoliosis[:, 1:]))


def _spine(a: Anatomy) -> Tubes:
    top = -205 + 24.0 * np.arange(18)
    y = np.stack([top, top + 20], -1)[None] * a.build[:, None, None]  # (B, 18, 2)
    x = spine_x(a, y.reshape(len(y), -1)).reshape(y.shape)
    points = np.stack([x, y, np.broadcast_to(-58 * a.build[:, None, None], y.shape)], -1)
    return polyline(points, 15.5 * a.build[:, None, None], (VERTEBRA * a.bone)[:, None, None])


def airways(a: Anatomy) -> Tubes:
    """Build trachea and main bronchi, which are air in soft tissue."""
    k, zero = a.build, np.zeros_like(a.build)

    def course(points: list[tuple[float, float, float]]) -> Array:
        x, y, z = np.array(points).T
        return np.stack([x * k[:, None], y * k[:, None], z + zero[:, None]], -1)[:, None]

    trachea = polyline(course([(0, -210, 5), (1, -120, 0), (3, -46, -6)]), 8.5 * k[:, None, None], -SOFT)
    right = polyline(course([(3, -46, -6), (-26, -22, -6)]), 6.5 * k[:, None, None], -SOFT)
    left = polyline(course([(3, -46, -6), (32, -18, -6)]), 5.5 * k[:, None, None], -SOFT)
    return join(trachea, right, left)


_FAN = np.radians([-82, -58, -30, -2, 26, 50, 74])  # angles of the main branches to the lateral direction, top down


def vessels(a: Anatomy, pose: Pose) -> Tubes:
    """Build the pulmonary vessels with weight 1: per side 7 main branches that fork twice."""
    batch = len(a.build)
    side = np.array([0, 1])
    k = a.build[:, None, None]
    hilum = np.stack(
        [
            SIGN[None] * 30 * a.build[:, None],
            -6 * a.build[:, None] + 6 * (1 - side),
            -4 + 0 * side + 0 * a.build[:, None],
        ],
        -1,
    )
    angle = _FAN + a.vessel_angle  # (B, 2, 7)
    fork = a.vessel_fork

    def reach(turn: Array, share: float, z: Array) -> Array:
        """Return the point at `share` of the way from the hilum to the pleura."""
        tall = np.where(turn < 0, 112 * k, 100 * k)
        wide = 0.93 * a.thorax[:, None, None] - 30 * k
        distance = share / np.sqrt((np.cos(turn) / wide) ** 2 + (np.sin(turn) / tall) ** 2)
        x = SIGN[None, :, None] * distance * np.cos(turn) + hilum[:, :, None, 0]
        return np.stack([x, distance * np.sin(turn) + hilum[:, :, None, 1], z + hilum[:, :, None, 2]], -1)

    caliber = a.vessel_size[:, None, None] * k * (1 + 0.25 * np.sin(angle))
    root = np.broadcast_to(hilum[:, :, None], (batch, 2, 7, 3))
    depth = 14 * fork[..., 0]
    stem = reach(angle, 0.42, depth)
    pieces = [(root, stem, 6.0 * caliber)]
    for i, way in enumerate((-1.0, 1.0)):
        turn = angle + way * 0.14 + 0.04 * fork[..., 1 + i]
        bough = reach(turn, 0.68, depth + 12 * fork[..., 3 + i])
        pieces.append((stem, bough, 3.4 * caliber))
        for j, away in enumerate((-1.0, 1.0)):
            twig = reach(turn + away * 0.1, 0.9, depth + 16 * fork[..., 3 + i] + 8 * away * fork[..., 5])
            pieces.append((bough, twig, (2.1 - 0.3 * j) * caliber))
    tubes = []
    for start, end, radius in pieces:
        points = np.stack([start, end], 3).reshape(batch, 14, 2, 3)
        sides = np.broadcast_to(np.repeat(side, 7), (batch, 14))
        posed = np.stack([breathe(points[:, :, n], a, pose.breath, sides) for n in (0, 1)], 2)
        tubes.append(polyline(posed, radius.reshape(batch, 14)[..., None], 1.0))
    return join(*tubes)


def devices(a: Anatomy, pose: Pose) -> Tubes:
    """Build ECG electrodes with leads, central line, endotracheal tube and pacemaker."""
    batch, k = len(a.build), a.build[:, None]

    def course(points: list[tuple[float, float, float]]) -> Array:
        x, y, z = np.array(points).T
        return np.stack([x * k, y * k, np.broadcast_to(z, (batch, len(z)))], -1)[:, None]

    home = np.array([[-95, -85, 105], [95, -85, 105], [88, 105, 100.0]])
    at = np.broadcast_to(home, (batch, 3, 3)).copy()
    at[..., :2] += pose.electrode_at
    half = np.array([0, 3.5, 0])
    snap = np.stack([at - half, at + half], 2)
    share = np.linspace(0, 1, 6)
    target = np.array([20.0, 190, 105])
    leads = at[:, :, None] + (target - at)[:, :, None] * share[:, None]
    leads[..., :2] += pose.wire[:, :, None] * np.sin(np.pi * share)[:, None]
    line = course([(-70, -150, 60), (-52, -118, 50), (-24, -96, 20), (-22, -40, 10), (-24, 6, 10)])
    throat = course([(0, -210, 5), (1, -120, 0), (2, -72, -3)])
    box = course([(82, -92, 95), (84, -62, 95)])
    lead = course([(80, -92, 95), (48, -112, 70), (-8, -80, 20), (-18, 20, 20), (30, 70, 50)])
    return join(
        polyline(snap, 3.5, 0.12, pose.electrodes),
        polyline(leads, 0.6, METAL, pose.electrodes),
        polyline(line, 1.2, SILICONE, pose.catheter[:, None]),
        polyline(throat, 5.0, 0.25 * SILICONE, pose.tube[:, None]),
        polyline(box, 15.0, 0.06, pose.pacemaker[:, None]),
        polyline(lead, 0.9, METAL, pose.pacemaker[:, None]),
    )
