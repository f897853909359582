"""Chord lengths, against marching along the rays in small steps."""

from itertools import pairwise

import numpy as np
import pytest

from datasets.phantom.geometry import Interval, Tubes, ellipsoid, join, polyline, pose_rays, tube_lengths

STEP = 0.02  # mm


@pytest.fixture
def rays():
    turn, roll = np.array([0.13, -0.4]), np.array([0.05, -0.2])
    return pose_rays(turn, roll, np.array([[3.0, -2.0], [0.0, 5.0]]), np.array([1.0, 1.1]), 100.0, 20)


def march(rays, image, row, column, inside):
    """Return the length in mm of a pixel's ray inside the body with the membership function `inside`."""
    along = np.arange(-120, 120, STEP) + STEP / 2
    u = (column + 0.5 - rays.count / 2) * rays.pitch[image]
    v = (row + 0.5 - rays.count / 2) * rays.pitch[image]
    start = rays.origin[image] + u * rays.across[image] + v * rays.down[image]
    return inside(start + along[:, None] * rays.beam[image]).sum() * STEP


def in_ellipsoid(points, centre, radii, tilt):
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    return (((points - centre) @ turn / radii) ** 2).sum(-1) < 1


def in_tube(points, course, radius):
    """Whether points are within the radius of the axis and between the planes that bisect the angles at the ends."""
    inside = np.zeros(len(points), dtype=bool)
    ways = [(b - a) / np.linalg.norm(b - a) for a, b in pairwise(course)]
    for i, way in enumerate(ways):
        before = ways[i - 1] + way if i > 0 else way
        after = ways[i + 1] + way if i + 1 < len(ways) else way
        off = points - course[i]
        distance = np.linalg.norm(np.cross(off, way), axis=-1)
        inside |= (distance < radius) & (off @ before >= 0) & ((points - course[i + 1]) @ after <= 0)
    return inside


def test_ray_frame_is_orthonormal(rays):
    frame = np.stack([rays.across, rays.down, rays.beam], 1)
    np.testing.assert_allclose(frame @ frame.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (2, 3, 3)), atol=1e-12)
    assert rays.pitch == pytest.approx([5.0, 5.0 / 1.1])


def test_ellipsoid_chords_match_marching(rays):
    centre = np.array([[[4.0, -6, 10], [0, 0, 0]], [[-8, 3, -20], [10, 10, 5]]])
    radii = np.array([[[30.0, 20, 40], [8, 25, 12]], [[35, 28, 15], [12, 9, 44]]])
    tilt = np.array([[0.6, 0.0], [-0.3, 1.1]])
    lengths = ellipsoid(rays, centre, radii, tilt).length
    assert lengths.shape == (2, 2, 20, 20)
    hit = 0
    for image, body, row, column in np.ndindex(2, 2, 20, 20):
        if (row + column) % 3:
            continue
        expected = march(
            rays, image, row, column,
            lambda p, i=image, b=body: in_ellipsoid(p, centre[i, b], radii[i, b], tilt[i, b]),
        )  # fmt: skip
        hit += expected > 0
        assert lengths[image, body, row, column] == pytest.approx(expected, abs=0.08)
    assert hit > 60


def test_interval_arithmetic():
    a = Interval(np.array([0.0, 0, 5]), np.array([4.0, 4, 1]))
    b = Interval(np.array([3.0, 6, 0]), np.array([9.0, 9, 9]))
    np.testing.assert_array_equal(a.intersect(b).length, [1, 0, 0])
    np.testing.assert_array_equal(a.length, [4, 4, 0])
    np.testing.assert_array_equal(a.hull(b).length, [9, 9, 9])
    np.testing.assert_array_equal(b.where(np.array([True, False, True])).length, [6, 0, 9])


def test_tube_chords_match_marching(rays):
    course = np.array([[-30.0, -20, 8], [-8, -4, 22], [12, 2, 18], [28, 20, -15]])
    other = np.array([[0.0, -40, 0], [3, 40, 4]])
    bent = polyline(np.stack([course, course + 5])[:, None], 7.0, 1.0)
    straight = polyline(np.stack([other, other])[:, None], 3.0, 0.5)
    sums = tube_lengths(rays, join(bent, straight), 2, widen=0.0)
    hit = 0
    for image, row, column in np.ndindex(2, 20, 20):
        if (row + column) % 2:
            continue
        expected = march(rays, image, row, column, lambda p, i=image: in_tube(p, course + 5 * i, 7.0))
        expected += 0.5 * march(rays, image, row, column, lambda p: in_tube(p, other, 3.0))
        hit += expected > 0
        assert sums[image, row, column] == pytest.approx(expected, abs=0.1)
    assert hit > 60


def test_a_tube_along_the_beam_is_as_long_as_it_is():
    rays = pose_rays(np.array([0.01]), np.zeros(1), np.zeros((1, 2)), np.ones(1), 40.0, 41)
    tube = polyline(np.array([[[[0.0, 0, -15], [0, 0, 15]]]]), 6.0, 1.0)
    lengths = tube_lengths(rays, tube, 1, widen=0.0)[0]
    assert lengths[20, 20] == pytest.approx(30, abs=0.05)
    assert (lengths > 25).sum() == pytest.approx(np.pi * 36, rel=0.15)


def test_widening_a_thin_wire_keeps_its_mass():
    wire = polyline(np.array([[[[-15.0, -11, 0], [14, 12, 3]]]]), 0.4, 1.0)
    fine = pose_rays(np.zeros(1), np.zeros(1), np.zeros((1, 2)), np.ones(1), 60.0, 600)
    coarse = pose_rays(np.zeros(1), np.zeros(1), np.zeros((1, 2)), np.ones(1), 60.0, 20)
    volume = np.pi * 0.4**2 * np.linalg.norm([29, 23, 3])
    assert tube_lengths(fine, wire, 1).sum() * 0.1**2 == pytest.approx(volume, rel=0.02)
    assert tube_lengths(coarse, wire, 1).sum() * 3.0**2 == pytest.approx(volume, rel=0.15)
    assert (tube_lengths(coarse, wire, 1) > 0).sum() >= 12  # unbroken


def test_no_tubes_and_tubes_outside_the_picture_add_nothing(rays):
    far = polyline(np.full((2, 1, 2, 3), 500.0) + np.array([[0.0, 0, 0], [9, 9, 9]]), 3.0, 1.0)
    assert tube_lengths(rays, far, 2).sum() == 0
    none = polyline(np.zeros((2, 1, 2, 3)), 3.0, 1.0, present=np.zeros((2, 1), dtype=bool))
    assert isinstance(none, Tubes)
    assert tube_lengths(rays, none, 2).shape == (2, 20, 20)
