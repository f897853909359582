"""Rendering of bodies to pixels: line integrals, photon counts, and the displayed image.

The line integral of a pixel is P = -log(mean over its rays of exp(-sum of attenuation x chord length)). Photon counts
behind the patient are Poisson with mean fluence x pixel area x (exp(-P) + scatter). The displayed image is the
logarithm of the counts, windowed between two of its own quantiles, as in the processing of digital radiographs.

Departures from a real set-up. The beam is parallel (magnification is part of the pose) and has one energy. Scatter is
uniform. There is no detector blur besides the area of a pixel. The exposure is about a twentieth of a clinical one, so
that noise remains visible in pixels several millimetres wide. Heart, aortic arch and mediastinum fill a ray from the
first entry to the last exit. Vessels fade by the share of the lung on the ray that is aerated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datasets.phantom import findings as f
from datasets.phantom import skeleton
from datasets.phantom.anatomy import SIGN, Anatomy, Batch, Bodies, Pose, bodies, rays_of
from datasets.phantom.findings import Findings
from datasets.phantom.geometry import Array, Interval, Rays, ellipsoid, tube_lengths

FIELD_MM = 360.0
MAX_RAY_PITCH = 3.0  # mm; coarser pixels get several rays, so that rays do not miss small nodules
EPSILON = 1e-3  # a pixel belongs to a mask if the finding changes its line integral by more than this
BODY = 0.3  # line integral that separates the body from the air around it
SOFT = skeleton.SOFT


@dataclass(frozen=True)
class Scene(Batch):
    """Contents of B images: patients, poses and findings."""

    anatomy: Anatomy
    pose: Pose
    findings: Findings

    def take(self, rows: Array) -> Scene:
        """Select images by their positions."""
        return Scene(self.anatomy.take(rows), self.pose.take(rows), self.findings.take(rows))

    def without(self, label: int) -> Scene:
        """Return the same scene without the finding `label`."""
        x = self.findings
        present = x.present.copy()
        present[:, label] = False
        changes: dict[int, dict[str, Array]] = {
            f.NODULE: {"nodule_radius": np.zeros_like(x.nodule_radius)},
            f.CONSOLIDATION: {"blob_radii": np.zeros_like(x.blob_radii)},
            f.EFFUSION: {"fluid_height": np.zeros_like(x.fluid_height)},
            f.CARDIOMEGALY: {"heart_ratio": self.anatomy.heart_ratio},
            f.PNEUMOTHORAX: {"rim": np.zeros_like(x.rim)},
        }
        return Scene(self.anatomy, self.pose, replace(x, present=present, **changes[label]))


def rays_per_pixel(image_size: int) -> int:
    """Return the number of rays along each side of a pixel."""
    return max(1, int(np.ceil(FIELD_MM / image_size / MAX_RAY_PITCH)))


class Projector:
    """Computes the line integrals of a batch; bodies that no finding changes are computed only once."""

    def __init__(self, scene: Scene, image_size: int) -> None:
        self.scene, self.image_size = scene, image_size
        a, pose = scene.anatomy, scene.pose
        self._fine = rays_per_pixel(image_size)
        self._rays = rays_of(pose, FIELD_MM, image_size * self._fine)
        batch = len(a.build)
        static = skeleton.bones(a, pose), skeleton.airways(a), skeleton.devices(a, pose)
        tubes = [tube_lengths(self._rays, part, batch) for part in static]
        self._static = tubes[0] + tubes[1] + tubes[2] + self._soft_tissue()
        self._vessels = tube_lengths(self._rays, skeleton.vessels(a, pose), batch)
        body = bodies(a, pose.breath, pose.heart_zoom, a.heart_ratio)
        rays = self._rays
        lung = ellipsoid(rays, body.lung_centre, body.lung_radii)
        self._y = rays.coordinate(1)[:, None]
        self._lung = lung.where(self._y < body.dome_centre[:, :, 1, None, None].astype(np.float32))
        self._lung_length = self._lung.length
        self._dome = ellipsoid(rays, body.dome_centre, body.dome_radii)
        column = ellipsoid(rays, body.mediastinum_centre, body.mediastinum_radii)
        self._column = column.hull(ellipsoid(rays, body.arch_centre, body.arch_radii))

    def _soft_tissue(self) -> Array:
        """Return line integrals (B, S, S) of a torso without lungs, with humeral heads, scapulae and stomach gas."""
        a, rays = self.scene.anatomy, self._rays
        k, zero, g = a.build, np.zeros_like(a.build), a.girth

        def solid(x: Array, y: Array, z: Array, rx: Array, ry: Array, rz: Array) -> Interval:
            centre = np.stack(np.broadcast_arrays(x, y, z), -1)
            return ellipsoid(rays, centre, np.stack(np.broadcast_arrays(rx, ry, rz), -1))

        outer = np.maximum(162 * k * g, a.thorax + 18)
        body = solid(zero, 110 * k, zero, outer * 1.03, 360 * k, np.maximum(114 * k * g, a.lung_depth * 1.2 + 8))
        body = body.hull(solid(zero, -205 * k, -10 + zero, 54 * k, 100 * k, 54 * k))
        for s in SIGN:
            body = body.hull(solid(s * 150 * k, -78 * k, -8 + zero, 104 * k * g, 80 * k, 62 * k))
            if np.any(a.breast > 0):
                size = np.where(a.breast > 0, a.breast, 1e-3) * k
                body = body.hull(solid(s * 78 * k, 52 * k, 96 * k, 58 * size, 56 * size, 44 * size))
        total = SOFT * body.length
        stomach = a.stomach
        gas = solid(
            stomach[:, 0] * k,
            (a.dome[:, 1] - self.scene.pose.breath) + stomach[:, 1] + 6,
            10 + zero,
            stomach[:, 2] * 1.5,
            stomach[:, 2] * 0.8,
            stomach[:, 2],
        )
        total -= SOFT * gas.length
        for s in SIGN:
            head = solid(s * 163 * k, -126 * k, 0 * zero, 22 * k, 23 * k, 22 * k)
            blade = ellipsoid(
                rays,
                np.stack([s * (a.thorax - 2), -58 * k, -84 * k], -1),
                np.stack([27 * k, 60 * k, 4 + zero], -1),
                tilt=s * 0.2,
            )
            total += (0.014 * a.bone)[:, None, None].astype(np.float32) * (head.length + blade.length)
        return np.asarray(total, dtype=np.float32)

    def integrals(self, rows: Array, without: int | None = None) -> Array:
        """Return noise-free line integrals (len(rows), S, S) float32 of images, optionally without a finding."""
        scene = self.scene.take(rows)
        if without is not None:
            scene = scene.without(without)
        a, x, rays = scene.anatomy, scene.findings, self._rays.take(rows)
        body = bodies(a, scene.pose.breath, scene.pose.heart_zoom, x.heart_ratio)
        heart = ellipsoid(rays, body.heart_centre, body.heart_radii, body.heart_tilt)
        middle = Interval(self._column.start[rows], self._column.end[rows]).hull(heart)
        middle = Interval(middle.start[:, None], middle.end[:, None])
        dome = Interval(self._dome.start[rows], self._dome.end[rows])
        both = middle.intersect(dome)

        def outside(part: Interval) -> Array:
            """Return the length of `part` outside heart, mediastinum and diaphragm."""
            covered = part.intersect(middle).length + part.intersect(dome).length - part.intersect(both).length
            return np.asarray(part.length - covered)

        lung = Interval(self._lung.start[rows], self._lung.end[rows])
        if np.any(x.fluid_height > 0):
            centre, radii = f.surface(body, np.maximum(x.fluid_height, 1.0))
            wet = (x.fluid_height > 0)[..., None, None] & (
                self._y[rows] > centre[..., 1, None, None].astype(np.float32)
            )
            above = ellipsoid(rays, centre, radii)
            lung = Interval(
                np.where(wet, np.maximum(lung.start, above.start), lung.start),
                np.where(wet, np.minimum(lung.end, above.end), lung.end),
            )
        air = outside(lung)
        mu = a.lung_mu[:, None, None, None].astype(np.float32)
        added = np.zeros_like(air)  # line integral in excess of normal lung
        solid = np.zeros_like(air)  # length of lung without air, mm
        nodules = [
            ellipsoid(rays, x.nodule_centre[:, i], np.maximum(x.nodule_radius[:, i, None], 1e-3) + np.zeros(3)).where(
                (x.nodule_radius[:, i] > 0)[:, None, None]
            )
            for i in range(f.NODULES)
            if np.any(x.nodule_radius[:, i] > 0)
        ]
        nodules = [Interval(n.start[:, None], n.end[:, None]) for n in nodules]
        patch = self._patch(x, rays)
        if patch is not None:
            inside = lung.intersect(patch)
            length = outside(inside)
            for nodule in nodules:
                length -= outside(inside.intersect(nodule))
            fill = x.blob_fill[:, None, None, None].astype(np.float32)
            solid += fill * length
            added += (np.float32(SOFT) - mu) * fill * length
        for nodule in nodules:
            length = outside(lung.intersect(nodule))
            solid += length
            added += (x.nodule_mu[:, None, None, None].astype(np.float32) - mu) * length
        tissue = mu * air + added
        aerated = np.maximum(air - solid, 0)
        if np.any(x.rim > 0):
            gone = self._retracted(x, body, rays)
            tissue = np.where(gone, 0, tissue)
            aerated = np.where(gone, 0, aerated)
        share = (aerated / np.maximum(self._lung_length[rows], np.float32(1e-3))).sum(1)
        vessel = np.float32(SOFT) - mu[:, 0]
        lungs = (tissue - np.float32(SOFT) * air).sum(1) + vessel * self._vessels[rows] * share
        return self._bin(self._static[rows] + lungs)

    def _patch(self, x: Findings, rays: Rays) -> Interval | None:
        """Return the part of each ray (B, 2, S, S) inside a consolidation; None if there is none."""
        hull: Interval | None = None
        for i in range(f.BLOBS):
            radii = x.blob_radii[:, :, i]
            real: Array = np.all(radii > 0, axis=-1)
            if not real.any():
                continue
            blob = ellipsoid(rays, x.blob_centre[:, :, i], np.where(real[..., None], radii, 1.0))
            blob = blob.where(real[..., None, None])
            hull = blob if hull is None else hull.hull(blob)
        return hull

    def _retracted(self, x: Findings, body: Bodies, rays: Rays) -> Array:
        """Return the rays (B, 2, S, S) that miss the collapsed lung, on sides with a pneumothorax."""
        lung = ellipsoid(rays, *f.retracted(body, x.rim))
        return np.asarray((lung.start > lung.end) & (x.rim > 0)[..., None, None])

    def _bin(self, attenuation: Array) -> Array:
        """Combine the rays of each pixel: average the transmission and return its line integral."""
        if self._fine == 1:
            return attenuation
        n, s, r = len(attenuation), self.image_size, self._fine
        through = np.exp(-attenuation).reshape(n, s, r, s, r).mean((2, 4))
        return np.asarray(-np.log(through))


def project(scene: Scene, image_size: int, without: int | None = None) -> Array:
    """Return noise-free line integrals (B, S, S) float32 of a scene, optionally without the finding `without`."""
    projector = Projector(scene, image_size)
    return projector.integrals(np.arange(len(scene.pose.turn)), without)


@dataclass(frozen=True)
class Exposure:
    """Mean photon counts of a batch: primary (B, S, S) and scattered (B, 1, 1)."""

    primary: Array
    scattered: Array


def expose(integrals: Array, pose: Pose) -> Exposure:
    """Return the mean photon counts per pixel behind line integrals (B, S, S)."""
    area = (FIELD_MM / integrals.shape[-1]) ** 2
    through = np.exp(-integrals)
    inside = integrals > BODY
    mean = (through * inside).sum((1, 2)) / np.maximum(inside.sum((1, 2)), 1)
    fluence = (pose.fluence * area)[:, None, None].astype(np.float32)
    scattered = fluence * (pose.scatter * mean)[:, None, None].astype(np.float32)
    return Exposure(fluence * through, scattered)


def develop(counts: Array, pose: Pose) -> Array:
    """Convert photon counts (B, S, S) to uint8 images, which are bright where few photons passed."""
    area = (FIELD_MM / counts.shape[-1]) ** 2
    fluence = (pose.fluence * area)[:, None, None].astype(np.float32)
    signal = -np.log(np.maximum(counts, 0.5).astype(np.float32) / fluence)
    pictures = np.empty(counts.shape, dtype=np.uint8)
    for i in range(len(signal)):
        image: Array = signal[i]
        inside = image[image > BODY] if (image > BODY).any() else image
        low = float(np.quantile(inside, 0.02)) - 0.25 + pose.window[i, 0]
        high = float(np.quantile(inside, 0.99)) + 0.1 + pose.window[i, 1]
        level = np.clip((image - low) / max(high - low, 0.1), 0, 1) ** pose.window[i, 2]
        pictures[i] = np.rint(255 * level)
    return pictures
