"""Physics, findings and masks of the phantom, against computations that share no code with the projector."""

from dataclasses import replace

import numpy as np
import pytest

from datasets.phantom import EPSILON, FIELD_MM, NAMES, PREVALENCE, VERSION, generate, project, scene
from datasets.phantom import findings as f
from datasets.phantom.anatomy import bodies, rays_of
from datasets.phantom.draws import image_counts
from datasets.phantom.radiograph import develop, expose
from datasets.phantom.skeleton import SOFT

KEYS = [(patient, image) for patient in range(150) for image in range(2)]
MANY = [(patient, 0) for patient in range(4000)]


@pytest.fixture(scope="module")
def images():
    return generate(5, KEYS, 64)


@pytest.fixture(scope="module")
def many():
    return scene(1, MANY)


def auroc(positive, negative):
    return (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()


def inside(points, centre, radii, tilt=0.0):
    cos, sin = np.cos(tilt), np.sin(tilt)
    x, y, z = np.moveaxis(points - centre, -1, 0)
    return ((cos * x + sin * y) / radii[0]) ** 2 + ((cos * y - sin * x) / radii[1]) ** 2 + (z / radii[2]) ** 2 < 1


def lung_field(points, part):
    """Compute the attenuation in excess of soft tissue, in 1/mm, at points (..., 3) of a scene with one image.

    Lungs, heart, fluid and nodules are included.
    """
    a, x = part.anatomy, part.findings
    b = bodies(a, part.pose.breath, part.pose.heart_zoom, x.heart_ratio)
    field = np.zeros(points.shape[:-1])
    solid = (
        inside(points, b.heart_centre[0], b.heart_radii[0], b.heart_tilt[0])
        | inside(points, b.mediastinum_centre[0], b.mediastinum_radii[0])
        | inside(points, b.arch_centre[0], b.arch_radii[0])
    )
    behind = np.maximum.accumulate(solid, -1)  # the mediastinum has no gaps along a ray
    solid = behind & np.maximum.accumulate(solid[..., ::-1], -1)[..., ::-1]
    for s in (0, 1):
        solid |= inside(points, b.dome_centre[0, s], b.dome_radii[0, s])
    surface, extent = f.surface(b, np.maximum(x.fluid_height, 1.0))
    for s in (0, 1):
        lung = inside(points, b.lung_centre[0, s], b.lung_radii[0, s])
        lung &= (points[..., 1] < b.dome_centre[0, s, 1]) & ~solid
        if x.fluid_height[0, s] > 0:
            lung &= ~(points[..., 1] > surface[0, s, 1]) | inside(points, surface[0, s], extent[0, s])
        field[lung] = a.lung_mu[0] - SOFT
        for centre, radius in zip(x.nodule_centre[0], x.nodule_radius[0], strict=True):
            if radius > 0:
                field[lung & inside(points, centre, np.full(3, radius))] = x.nodule_mu[0] - SOFT
    return field


@pytest.mark.parametrize("label", [f.NODULE, f.EFFUSION, f.CARDIOMEGALY])
def test_what_a_finding_changes_matches_marching_through_the_body(label, many):
    chosen = np.flatnonzero(many.findings.present[:, label] & ~many.findings.present[:, f.CONSOLIDATION])
    chosen = chosen[~many.findings.present[chosen, f.PNEUMOTHORAX]][:3]
    size, step = 128, 0.25
    along = np.arange(-140, 140, step) + step / 2
    for row in chosen:
        one = many.take(np.array([row]))
        one = replace(one, anatomy=replace(one.anatomy, vessel_size=np.array([1e-6])))  # vessels are tested separately
        change = (project(one, size) - project(one, size, without=label))[0]
        rays = rays_of(one.pose, FIELD_MM, size)
        rng = np.random.default_rng(int(row))
        touched = np.argwhere(np.abs(change) > EPSILON)
        pixels = np.concatenate([rng.permutation(touched)[:60], rng.integers(0, size, (20, 2))])
        expected = []
        for v, u in (pixels + 0.5 - size / 2) * rays.pitch[0]:
            ray = rays.origin[0] + u * rays.across[0] + v * rays.down[0] + along[:, None] * rays.beam[0]
            difference = lung_field(ray, one) - lung_field(ray, one.without(label))
            expected.append(difference.sum() * step)
        found = change[pixels[:, 0], pixels[:, 1]]
        np.testing.assert_allclose(found, expected, atol=0.012)
        assert np.abs(found).max() > 0.05


def test_masks_are_where_the_line_integral_differs(images):
    whole = scene(5, KEYS)
    for label in range(5):
        rows = np.flatnonzero(images.labels[:, label] == 1)[:12]
        part = whole.take(rows)
        change = np.abs(project(part, 64) - project(part, 64, without=label))
        mask = (images.masks[rows] >> label) & 1
        sure = np.abs(change - EPSILON) > 1e-5  # float32 may fall on either side of the threshold
        np.testing.assert_array_equal(mask[sure], (change > EPSILON)[sure])
        mean = np.array([c[m == 1].mean() for c, m in zip(change, mask, strict=True)])
        np.testing.assert_allclose(images.contrast[rows, label], mean, rtol=1e-3)


def test_every_positive_has_a_mask_and_no_negative(images):
    for label in range(5):
        area = ((images.masks >> label) & 1).sum((1, 2))
        np.testing.assert_array_equal(area > 0, images.labels[:, label] == 1)
    for values in (images.size_mm, images.contrast, images.cnr, images.side):
        np.testing.assert_array_equal(np.isfinite(values), images.labels == 1)


def test_taking_a_finding_away_leaves_the_others(many):
    rows = np.flatnonzero(many.findings.present.sum(1) >= 2)[:4]
    part = many.take(rows)
    for label in range(5):
        left = part.without(label)
        assert not left.findings.present[:, label].any()
        others = [i for i in range(5) if i != label]
        np.testing.assert_array_equal(left.findings.present[:, others], part.findings.present[:, others])


def test_fluid_absorbs_and_air_does_not(many):
    wet = many.take(np.flatnonzero(many.findings.present[:, f.EFFUSION])[:8])
    assert (project(wet, 64) - project(wet, 64, without=f.EFFUSION)).min() > -1e-5
    rim = many.take(np.flatnonzero(many.findings.present[:, f.PNEUMOTHORAX])[:8])
    assert (project(rim, 64) - project(rim, 64, without=f.PNEUMOTHORAX)).max() < 1e-5


def test_beer_lambert(many):
    pose = many.take(np.array([0])).pose
    thickness = np.linspace(0, 300, 64 * 64).reshape(1, 64, 64)
    light = expose(SOFT * thickness, pose)
    fluence = pose.fluence[0] * (FIELD_MM / 64) ** 2
    np.testing.assert_allclose(light.primary[0], fluence * np.exp(-0.02 * thickness[0]), rtol=1e-5)
    assert (np.diff(light.primary.ravel()) < 0).all()
    grey = develop(light.primary + light.scattered, pose).ravel().astype(int)
    assert (np.diff(grey) >= 0).all() and grey[0] == 0 and grey[-1] > 200
    half = replace(pose, fluence=pose.fluence / 2)
    np.testing.assert_array_equal(develop((light.primary + light.scattered) / 2, half).ravel(), grey)


def test_cnr_is_contrast_over_noise():
    """With twice the exposure, contrast stays the same and noise falls by a factor of sqrt(2)."""
    part = scene(3, MANY[:60])
    row = np.flatnonzero(part.findings.present[:, f.NODULE])[:1]
    one = part.take(row)
    change = project(one, 64) - project(one, 64, without=f.NODULE)
    made = generate(3, [MANY[int(row[0])]], 64)
    mask = ((made.masks[0] >> f.NODULE) & 1) == 1
    light = expose(project(one, 64), one.pose)
    rng = np.random.default_rng(0)
    mean = (light.primary + light.scattered)[0][mask]
    noise = np.log(rng.poisson(mean, (20000, mask.sum()))).std(0)
    share = light.primary[0][mask] / mean  # scatter lowers the contrast
    assert made.cnr[0, f.NODULE] == pytest.approx((change[0][mask] * share / noise).mean(), rel=0.02)


def test_prevalence_lies_within_binomial_bounds(many):
    for label, share in enumerate(PREVALENCE):
        found = many.findings.present[:, label].mean()
        assert abs(found - share) < 4 * np.sqrt(share * (1 - share) / len(MANY)), NAMES[label]
    present = many.findings.present
    together = np.corrcoef(present[:, f.EFFUSION], present[:, f.CARDIOMEGALY])[0, 1]
    assert 0.1 < together < 0.4


def test_findings_do_not_depend_on_view_sex_or_age(many):
    for group in (many.pose.portable, many.anatomy.female, many.anatomy.age > 57):
        for label, share in enumerate(PREVALENCE):
            a, b = many.findings.present[group, label], many.findings.present[~group, label]
            spread = np.sqrt(share * (1 - share) * (1 / len(a) + 1 / len(b)))
            assert abs(a.mean() - b.mean()) < 4 * spread


def test_an_enlarged_heart_is_wider_than_half_the_chest(many):
    zero = np.zeros(len(MANY))
    b = bodies(many.anatomy, zero, zero + 1, many.findings.heart_ratio)
    angle = np.linspace(0, 2 * np.pi, 721)
    edge = (
        b.heart_radii[:, :1] * np.cos(angle) * np.cos(b.heart_tilt)[:, None]
        - b.heart_radii[:, 1:2] * np.sin(angle) * np.sin(b.heart_tilt)[:, None]
    )
    heart = np.ptp(edge, axis=1)
    chest = (b.lung_centre[:, 1, 0] + b.lung_radii[:, 1, 0]) - (b.lung_centre[:, 0, 0] - b.lung_radii[:, 0, 0])
    np.testing.assert_array_equal(heart / chest > 0.5, many.findings.present[:, f.CARDIOMEGALY])
    sized = np.where(many.findings.present[:, f.CARDIOMEGALY], heart, np.nan)
    np.testing.assert_allclose(many.findings.size_mm[:, f.CARDIOMEGALY], sized, rtol=1e-4)


def test_sizes_are_those_of_the_findings(many):
    size = many.findings.size_mm
    nodule = size[many.findings.present[:, f.NODULE], f.NODULE]
    assert nodule.min() >= 5 and nodule.max() <= 30 and 12 < np.median(nodule) < 22
    single = (many.findings.nodule_radius > 0).sum(1) == 1
    row = np.flatnonzero(single & many.findings.present[:, f.NODULE] & (many.findings.nodule_radius[:, 0] > 8))[:6]
    part = many.take(row)
    mask = np.abs(project(part, 256) - project(part, 256, without=f.NODULE)) > EPSILON
    pitch = FIELD_MM / 256 / part.pose.scale
    width = np.sqrt(mask.sum((1, 2)) * 4 / np.pi) * pitch
    np.testing.assert_allclose(width, part.findings.size_mm[:, f.NODULE], rtol=0.12)


def test_the_side_is_where_the_mask_lies(images):
    whole = scene(5, KEYS)
    x = rays_of(whole.pose, FIELD_MM, 64).coordinate(0)
    checked = 0
    for label in (f.NODULE, f.CONSOLIDATION, f.EFFUSION, f.PNEUMOTHORAX):
        for row in np.flatnonzero(np.abs(images.side[:, label]) == 1):
            mask = ((images.masks[row] >> label) & 1) == 1
            checked += 1
            assert np.sign(x[row][mask].mean()) == -images.side[row, label]
    assert checked > 80
    heart = images.side[:, f.CARDIOMEGALY]
    assert (heart[np.isfinite(heart)] == 0).all()


def against_the_ring(image, mask):
    """Return the mean grey level in the mask minus that in the ring around it."""
    near = mask.copy()
    for _ in range(3):
        for axis in (0, 1):
            near |= np.roll(near, 1, axis) | np.roll(near, -1, axis)
    return image[mask].mean() - image[near & ~mask].mean()


def against_the_other_side(image, mask):
    return image[mask].mean() - image[:, ::-1][mask].mean()


@pytest.mark.parametrize(
    ("label", "measure", "sign"),
    [
        (f.NODULE, against_the_ring, 1),
        (f.CONSOLIDATION, against_the_ring, 1),
        (f.EFFUSION, against_the_other_side, 1),
        (f.PNEUMOTHORAX, against_the_other_side, -1),
    ],
)
def test_detectability_rises_with_cnr(label, measure, sign):
    """The local contrast of positives is compared with the same place in images without the finding."""
    shares = tuple(0.75 if i == label else 0.0 for i in range(5))
    found = generate(11, [(i, 0) for i in range(480)], 64, shares)
    normal = np.flatnonzero(found.labels[:, label] == 0)
    rows = np.flatnonzero(found.labels[:, label] == 1)
    assert len(rows) > 300 and len(normal) > 80
    rng = np.random.default_rng(0)
    masks = ((found.masks >> label) & 1).astype(bool)
    grey = found.pixels.astype(float)
    signal = sign * np.array([measure(grey[r], masks[r]) for r in rows])
    other = sign * np.array([measure(grey[rng.choice(normal)], masks[r]) for r in rows])
    group = np.searchsorted(np.quantile(found.cnr[rows, label], (1 / 3, 2 / 3)), found.cnr[rows, label])
    low, middle, high = (auroc(signal[group == g], other[group == g]) for g in range(3))
    assert low < middle < high
    assert high > low + 0.1 and high > 0.7


def test_a_patient_keeps_the_anatomy_and_not_the_pose():
    part = scene(2, [(7, 0), (7, 1), (7, 2), (8, 0)])
    for name, value in vars(part.anatomy).items():
        np.testing.assert_array_equal(value[0], value[1], err_msg=name)
        np.testing.assert_array_equal(value[0], value[2], err_msg=name)
        if name not in ("female", "breast"):
            assert not np.array_equal(value[0], value[3]), name
    for name in ("turn", "shift", "scale", "fluence", "window"):
        assert not np.array_equal(getattr(part.pose, name)[0], getattr(part.pose, name)[1]), name


def test_lasting_findings_stay_and_passing_ones_come_and_go():
    part = scene(2, [(patient, image) for patient in range(300) for image in (0, 1)])
    first, second = part.findings.present[0::2], part.findings.present[1::2]
    for label in (f.NODULE, f.CARDIOMEGALY):
        np.testing.assert_array_equal(first[:, label], second[:, label])
    for label in (f.CONSOLIDATION, f.EFFUSION, f.PNEUMOTHORAX):
        changed = (first[:, label] != second[:, label]).sum()
        assert 0 < changed < first[:, label].sum()


def test_all_sizes_show_the_same_anatomy():
    keys = KEYS[:24]
    small, large = generate(4, keys, 64), generate(4, keys, 128)
    halved = large.pixels.reshape(-1, 64, 2, 64, 2).mean((2, 4))
    for a, b in zip(small.pixels, halved, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.985
    np.testing.assert_array_equal(small.labels, large.labels)
    np.testing.assert_array_equal(small.size_mm, large.size_mm)
    shadow = large.masks.reshape(-1, 64, 2, 64, 2).max((2, 4)) > 0
    both = (shadow & (small.masks > 0)).sum()
    assert both > 0.8 * (shadow | (small.masks > 0)).sum()


def test_an_image_does_not_depend_on_its_batch():
    together = generate(9, KEYS[:11], 48)
    alone = generate(9, KEYS[6:7], 48)
    np.testing.assert_array_equal(together.pixels[6], alone.pixels[0])
    np.testing.assert_array_equal(together.masks[6], alone.masks[0])


@pytest.mark.parametrize("mean", [1.0, 2.0, 3.3, 4.0])
def test_image_counts_have_the_mean_that_was_asked_for(mean):
    counts = image_counts(0, 5000, mean)
    assert counts.min() >= 1 and counts.max() <= 4
    assert abs(counts.mean() - mean) < 0.06
    np.testing.assert_array_equal(image_counts(0, 10, mean), counts[:10])


def test_pictures_change_only_with_the_version():
    """If images of the same seed change, raise VERSION and update these grey levels."""
    made = generate(0, [(patient, 0) for patient in range(40)], 32)
    grey = made.pixels.reshape(40, 4, 8, 4, 8).mean((0, 2, 4))
    area = [((made.masks >> label) & 1).sum() for label in range(5)]
    golden = {
        1: (
            [
                [81.68, 171.36, 172.67, 85.84],
                [116.86, 156.36, 166.67, 117.2],
                [90.55, 177.71, 203.24, 95.8],
                [131.99, 233.26, 230.66, 140.58],
            ],
            [35, 533, 345, 712, 290],
        )
    }
    np.testing.assert_allclose(grey, golden[VERSION][0], atol=0.3)
    np.testing.assert_allclose(area, golden[VERSION][1], atol=2)
