"""Chord lengths, in mm, of parallel rays through ellipsoids and tubes.

A ray is ``origin + u * across + v * down + s * beam``, with u and v on the detector and s along the beam, all in mm in
the frame of the patient (x to the patient's left, y to the feet, z to the front). Posing the patient means turning the
rays. A convex body cuts a ray in one interval of s, so that unions, intersections and overlaps of bodies are interval
arithmetic and need no sampling along the ray. Tubes are chains of straight cylinders that are mitred at the joints, so
that the lengths of the pieces add up without gaps or overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FAR = np.float32(1e6)


class Interval(NamedTuple):
    """Part of each ray inside a convex body: s from `start` to `end`, empty where start > end."""

    start: Array
    end: Array

    @property
    def length(self) -> Array:
        """Length of the interval, 0 if it is empty."""
        return np.asarray(np.maximum(self.end - self.start, np.float32(0)))

    def intersect(self, other: Interval) -> Interval:
        """Return the part inside both bodies."""
        return Interval(np.maximum(self.start, other.start), np.minimum(self.end, other.end))

    def hull(self, other: Interval) -> Interval:
        """Return the interval from the first entry to the last exit, the union of bodies that overlap."""
        return Interval(np.minimum(self.start, other.start), np.maximum(self.end, other.end))

    def where(self, keep: Array) -> Interval:
        """Return the interval where `keep` is True, and an empty one elsewhere."""
        return Interval(np.where(keep, self.start, FAR), np.where(keep, self.end, -FAR))


@dataclass(frozen=True)
class Rays:
    """Parallel rays of B images on an S x S grid."""

    origin: Array  # (B, 3) mm, centre of the detector in the frame of the patient
    across: Array  # (B, 3) unit vector along a row of the image
    down: Array  # (B, 3) unit vector along a column
    beam: Array  # (B, 3) unit vector
    pitch: Array  # (B,) mm between rays, in the patient
    count: int  # S

    def take(self, rows: Array) -> Rays:
        """Select images by their positions."""
        return Rays(
            self.origin[rows],
            self.across[rows],
            self.down[rows],
            self.beam[rows],
            self.pitch[rows],
            self.count,
        )

    @property
    def offsets(self) -> Array:
        """Distance (B, S) of each row or column of rays from the centre, in mm."""
        steps = np.arange(self.count) + 0.5 - self.count / 2
        return np.asarray(self.pitch[:, None] * steps, dtype=np.float32)

    def coordinate(self, axis: int) -> Array:
        """Return the patient's x (axis 0) or y (axis 1) of each ray (B, S, S), for beams without that component."""
        o = self.offsets
        u, v = self.across[:, axis], self.down[:, axis]
        columns = (self.origin[:, axis, None] + o * u[:, None]).astype(np.float32)
        rows = (o * v[:, None]).astype(np.float32)
        return np.asarray(columns[:, None, :] + rows[:, :, None])


def pose_rays(turn: Array, roll: Array, shift: Array, scale: Array, field_mm: float, count: int) -> Rays:
    """Return rays for patients that are turned about their long axis and rolled in the image plane.

    turn, roll: (B,) radians. shift: (B, 2) mm on the detector. scale: (B,) magnification. field_mm: side of the
    detector. count: rays per side.
    """
    zero = np.zeros_like(turn)
    beam = np.stack([np.sin(turn), zero, np.cos(turn)], -1)
    side = np.stack([np.cos(turn), zero, -np.sin(turn)], -1)
    up = np.stack([zero, zero + 1.0, zero], -1)
    across = side * np.cos(roll)[:, None] + up * np.sin(roll)[:, None]
    down = up * np.cos(roll)[:, None] - side * np.sin(roll)[:, None]
    origin = -(across * shift[:, :1] + down * shift[:, 1:])
    return Rays(origin, across, down, beam, field_mm / count / scale, count)


def ellipsoid(rays: Rays, centre: Array, radii: Array, tilt: Array | float = 0.0) -> Interval:
    """Return the intervals (B, ..., S, S) of rays through ellipsoids.

    centre, radii: (B, ..., 3) mm. tilt: (B, ...) radians, turns the x axis towards y.
    """
    lead = centre.shape[:-1]
    extra = (1,) * (len(lead) - 1)
    turn = np.broadcast_to(np.asarray(tilt, dtype=np.float64), lead)
    cos, sin = np.cos(turn), np.sin(turn)

    def whiten(vector: Array) -> Array:
        x, y, z = vector[..., 0], vector[..., 1], vector[..., 2]
        return np.stack([cos * x + sin * y, cos * y - sin * x, z + 0 * x], -1) / radii

    def per_image(vector: Array) -> Array:
        return vector.reshape(len(vector), *extra, 3)

    beam = whiten(np.broadcast_to(per_image(rays.beam), (*lead, 3)))
    norm2 = (beam**2).sum(-1)
    parts, along = [], []
    for vector in (per_image(rays.origin) - centre, per_image(rays.across), per_image(rays.down)):
        white = whiten(np.broadcast_to(vector, (*lead, 3)))
        share = (white * beam).sum(-1) / norm2
        along.append(-share)
        parts.append(white - share[..., None] * beam)
    e, a, b = parts
    o = rays.offsets.reshape(lead[0], *extra, rays.count).astype(np.float64)

    def dot(x: Array, y: Array) -> Array:
        return np.asarray(((x * y).sum(-1) / norm2)[..., None])

    columns = 1.0 / norm2[..., None] - dot(e, e) - 2 * dot(e, a) * o - dot(a, a) * o**2
    rows = -2 * dot(e, b) * o - dot(b, b) * o**2
    cross = (-2 * dot(a, b) * o).astype(np.float32)
    square = columns.astype(np.float32)[..., None, :] + rows.astype(np.float32)[..., None]
    if np.any(np.abs(cross) > 1e-7):
        square += cross[..., None] * o.astype(np.float32)[..., None, :]
    middle = (along[0][..., None] + along[1][..., None] * o).astype(np.float32)[..., None, :] + (
        along[2][..., None] * o
    ).astype(np.float32)[..., None]
    missed = square <= 0
    half = np.sqrt(np.maximum(square, 0, out=square), out=square)
    np.copyto(half, -FAR, where=missed)
    return Interval(middle - half, middle + half)


@dataclass(frozen=True)
class Tubes:
    """M straight pieces of tubes: cylinders about the line from start to end, cut by a plane at each end."""

    image: Array  # (M,) image of the batch
    start: Array  # (M, 3) mm
    end: Array  # (M, 3)
    start_normal: Array  # (M, 3) normal of the cut at the start; points into the piece
    end_normal: Array  # (M, 3) normal of the cut at the end; points out of the piece
    radius: Array  # (M,) mm
    weight: Array  # (M,) 1/mm, added to the line integral per mm of chord


def polyline(points: Array, radius: Array | float, weight: Array | float, present: Array | None = None) -> Tubes:
    """Build mitred tubes along `points` (B, K, n, 3): K curves per image, each of n - 1 pieces.

    `radius` (mm) and `weight` (1/mm) broadcast to (B, K, n - 1). Curves where `present` (B, K) is False are left out.
    """
    batch, curves, n, _ = points.shape
    along = np.diff(points, axis=2)
    along /= np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-9)
    normals = np.concatenate([along[:, :, :1], along[:, :, 1:] + along[:, :, :-1], along[:, :, -1:]], axis=2)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    shape = (batch, curves, n - 1)
    image = np.broadcast_to(np.arange(batch)[:, None, None], shape)
    keep = np.broadcast_to(True if present is None else present[..., None], shape)
    values = (points[:, :, :-1], points[:, :, 1:], normals[:, :, :-1], normals[:, :, 1:])
    start, end, first, last = (value[keep] for value in values)
    numbers = (np.broadcast_to(value, shape)[keep].astype(float) for value in (radius, weight))
    return Tubes(image[keep], start, end, first, last, *numbers)


def join(*tubes: Tubes) -> Tubes:
    """Concatenate tubes."""
    return Tubes(*(np.concatenate([getattr(t, name) for t in tubes]) for name in Tubes.__dataclass_fields__))


def tube_lengths(rays: Rays, tubes: Tubes, batch: int, widen: float = 0.6) -> Array:
    """Return the sum over tubes of weight x chord length, (B, S, S) float32.

    A tube with a radius below `widen` ray pitches is widened to it, because rays would miss it; its weight is lowered
    so that the mass of its cross-section stays the same. With 0, no tube is widened.
    """
    size = rays.count
    if len(tubes.image) == 0:
        return np.zeros((batch, size, size), np.float32)
    i = tubes.image
    pitch = rays.pitch[i]
    radius = np.maximum(tubes.radius, widen * pitch)
    weight = tubes.weight * (tubes.radius / radius) ** 2
    axis = tubes.end - tubes.start
    length = np.linalg.norm(axis, axis=-1)
    axis = axis / np.maximum(length, 1e-9)[:, None]
    beam = rays.beam[i]
    normal = np.cross(axis, beam)  # common normal of the tube's axis and the ray
    sine = np.maximum(np.linalg.norm(normal, axis=-1), 1e-4)
    normal /= sine[:, None]
    perpendicular = beam - (beam * axis).sum(-1)[:, None] * axis

    # the box of pixels that the shadow of a piece can cover
    ends = np.stack([tubes.start, tubes.end]) - rays.origin[i]
    column = (ends * rays.across[i]).sum(-1) / pitch + size / 2 - 0.5
    row = (ends * rays.down[i]).sum(-1) / pitch + size / 2 - 0.5
    skew = np.maximum(
        1.0 / np.maximum(np.abs((axis * tubes.start_normal).sum(-1)), 0.2),
        1.0 / np.maximum(np.abs((axis * tubes.end_normal).sum(-1)), 0.2),
    )
    margin = radius * skew / pitch
    left = np.clip(np.ceil(column.min(0) - margin), 0, size).astype(np.int64)
    top = np.clip(np.ceil(row.min(0) - margin), 0, size).astype(np.int64)
    width = np.clip(np.floor(column.max(0) + margin) + 1, 0, size).astype(np.int64) - left
    height = np.clip(np.floor(row.max(0) + margin) + 1, 0, size).astype(np.int64) - top
    count = np.maximum(width, 0) * np.maximum(height, 0)

    def affine(vector: Array, scale: Array) -> list[Array]:
        """Return constant, column and row coefficient of (ray point at s = 0 - start of the tube) . vector * scale.

        Column and row are counted from the corner of the box.
        """
        per_column = (rays.across[i] * vector).sum(-1) * pitch * scale
        per_row = (rays.down[i] * vector).sum(-1) * pitch * scale
        centre = ((rays.origin[i] - tubes.start) * vector).sum(-1) * scale
        return [
            centre + (left + 0.5 - size / 2) * per_column + (top + 0.5 - size / 2) * per_row,
            per_column,
            per_row,
        ]

    def slope(plane: Array) -> Array:
        value = (beam * plane).sum(-1)
        return np.where(np.abs(value) < 1e-4, np.where(value < 0, -1e-4, 1e-4), value)

    first, last = slope(tubes.start_normal), slope(tubes.end_normal)
    near = affine(tubes.start_normal, -1.0 / first)
    far = affine(tubes.end_normal, -1.0 / last)
    far[0] = far[0] + length * (axis * tubes.end_normal).sum(-1) / last
    coefficients = np.stack(
        [
            *affine(normal, np.ones(len(i))),
            *affine(perpendicular, -1.0 / sine**2),
            *near,
            *far,
            radius**2,
            1.0 / sine,
            weight,
        ],
        -1,
    ).astype(np.float32)

    piece = np.repeat(np.arange(len(i)), count)
    local = np.arange(len(piece)) - np.repeat(np.cumsum(count) - count, count)
    wide = width[piece]
    down = local // wide
    right = local - down * wide
    c = np.ascontiguousarray(coefficients[piece].T)
    x, y = right.astype(np.float32), down.astype(np.float32)
    distance = c[0] + c[1] * x + c[2] * y
    half = np.sqrt(np.maximum(c[12] - distance * distance, 0)) * c[13]
    middle = c[3] + c[4] * x + c[5] * y
    low, high = middle - half, middle + half
    near_cut = c[6] + c[7] * x + c[8] * y
    far_cut = c[9] + c[10] * x + c[11] * y
    forward, onward = (first > 0)[piece], (last > 0)[piece]
    low = np.maximum(low, np.where(forward, near_cut, -FAR))
    high = np.minimum(high, np.where(forward, FAR, near_cut))
    high = np.minimum(high, np.where(onward, far_cut, FAR))
    low = np.maximum(low, np.where(onward, -FAR, far_cut))
    chord = np.maximum(high - low, 0) * c[14]
    corner = (i * size + top) * size + left
    summed = np.bincount(corner[piece] + down * size + right, weights=chord, minlength=batch * size * size)
    return np.asarray(summed).astype(np.float32).reshape(batch, size, size)
