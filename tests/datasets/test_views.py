"""Views against torchvision, one image at a time, and the statistics of the random parameters."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy import stats

from datasets.views import Parameters, Views

STILL = dict(
    crop_area=(1.0, 1.0),
    crop_aspect=(1.0, 1.0),
    flip=0.0,
    rotation=0.0,
    brightness=0.0,
    contrast=0.0,
    gamma=(1.0, 1.0),
    blur_probability=0.0,
    noise=0.0,
)
RAW = dict(mean=0.0, std=1.0)  # unnormalised grey values, 0 to 1


def pictures(batch: int, size: int, seed: int = 0) -> torch.Tensor:
    """Make smooth random pictures, on which two ways of interpolating agree."""
    coarse = torch.rand((batch, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return (smooth[:, 0].clamp(0, 1) * 255).round().to(torch.uint8)


def draw(views: Views, batch: int, seed: int = 0) -> Parameters:
    return views.draw(torch.Generator().manual_seed(seed), batch)


def test_identity_gives_the_images_back():
    views = Views(32, **STILL, **RAW)
    images = pictures(5, 32)
    both, masks = views.apply(images, draw(views, 5))
    assert both.shape == (2, 5, 1, 32, 32) and both.dtype == torch.float32 and masks is None
    for view in both:
        torch.testing.assert_close(view[:, 0], images.float() / 255, atol=2e-6, rtol=0)


def test_normalisation_is_one_and_the_same():
    views = Views(16, channels=3, mean=0.4, std=0.2, **STILL)
    images = pictures(3, 16)
    expected = tv.normalize(
        tv.to_dtype(images[:, None].repeat(1, 3, 1, 1), torch.float32, scale=True), [0.4] * 3, [0.2] * 3
    )
    torch.testing.assert_close(views.normalise(images), expected)
    torch.testing.assert_close(views.normalise(images, channels=1), expected[:, :1])
    torch.testing.assert_close(views.apply(images, draw(views, 3))[0][1], expected, atol=2e-5, rtol=0)


def test_each_crop_and_flip_is_torchvisions():
    size = 64
    views = Views(size, **{**STILL, "crop_area": (0.3, 0.8), "crop_aspect": (0.7, 1.4), "flip": 0.5}, **RAW)
    images = pictures(8, size)
    given = draw(views, 8)
    # crops on whole pixels, because torchvision can cut no others
    left = torch.randint(0, 12, (2, 8), generator=torch.Generator().manual_seed(1))
    top, width, height = left.flip(1), 36 + left.flip(0), 48 - left
    parameters = replace(
        given,
        width=width / size,
        height=height / size,
        x=(2 * left + width) / size - 1,
        y=(2 * top + height) / size - 1,
    )
    both, _ = views.apply(images, parameters)
    for v in range(2):
        for b in range(8):
            box = [int(q[v, b]) for q in (top, left, height, width)]
            expected = tv.resized_crop(images[b : b + 1].float() / 255, *box, [size, size], antialias=False)
            if given.flip[v, b]:
                expected = tv.horizontal_flip(expected)
            inner = (slice(2, -2), slice(2, -2))  # at the edge of its crop torchvision has no neighbours to interpolate
            torch.testing.assert_close(both[v, b, 0][inner], expected[0][inner], atol=1e-4, rtol=0)
    assert 0 < given.flip.sum() < 16


def test_each_rotation_is_torchvisions():
    views = Views(48, **{**STILL, "rotation": 30.0}, **RAW)
    images = pictures(6, 48)
    parameters = draw(views, 6)
    both, _ = views.apply(images, parameters)
    for v in range(2):
        for b in range(6):
            angle = float(parameters.angle[v, b])
            expected = tv.rotate(images[b : b + 1].float() / 255, angle, tv.InterpolationMode.BILINEAR)
            torch.testing.assert_close(both[v, b, 0][8:-8, 8:-8], expected[0][8:-8, 8:-8], atol=1e-3, rtol=0)


def test_a_quarter_turn_is_exact():
    views = Views(32, **STILL, **RAW)
    images = pictures(2, 32)
    parameters = replace(draw(views, 2), angle=torch.tensor([[90.0, -90.0], [180.0, 90.0]]))
    both = views.apply(images, parameters)[0][:, :, 0]
    for got, image, turns in (
        (both[0, 0], 0, 1),
        (both[0, 1], 1, -1),
        (both[1, 0], 0, 2),
        (both[1, 1], 1, 1),
    ):
        torch.testing.assert_close(got, torch.rot90(images[image], turns).float() / 255, atol=1e-4, rtol=0)


def test_rotation_follows_crop_and_flip():
    """The reference applies torchvision's three steps one after the other; pixels at the edge are ignored."""
    size = 64
    views = Views(size, **STILL, **RAW)
    images = pictures(1, size)
    parameters = replace(
        draw(views, 1),
        width=torch.full((2, 1), 0.5),
        height=torch.full((2, 1), 0.75),
        x=torch.full((2, 1), 0.25),
        y=torch.full((2, 1), -0.125),
        angle=torch.full((2, 1), 20.0),
        flip=torch.tensor([[True], [False]]),
    )
    both, _ = views.apply(images, parameters)
    # x from (1 + 0.25 - 0.5) / 2 of the width = 24, y from (1 - 0.125 - 0.75) / 2 of the height = 4
    crop = tv.resized_crop(images.float() / 255, 4, 24, 48, 32, [size, size], antialias=False)
    for v, cut in enumerate((tv.horizontal_flip(crop), crop)):
        # the square view is rotated: flip first, then rotate
        expected = tv.rotate(cut, 20.0, tv.InterpolationMode.BILINEAR)
        inner = (slice(16, -16), slice(16, -16))
        torch.testing.assert_close(both[v, 0, 0][inner], expected[0][inner], atol=0.015, rtol=0)
        wrong = tv.rotate(cut, -20.0, tv.InterpolationMode.BILINEAR)
        assert (both[v, 0, 0][inner] - wrong[0][inner]).abs().max() > 0.1  # the tolerance is tight enough


def test_each_intensity_is_torchvisions():
    views = Views(24, **{**STILL, "contrast": 0.4, "brightness": 0.4, "gamma": (0.6, 1.6)}, **RAW)
    images = pictures(6, 24)
    parameters = draw(views, 6)
    both, _ = views.apply(images, parameters)
    for v in range(2):
        for b in range(6):
            expected = tv.adjust_contrast(images[b : b + 1].float() / 255, float(parameters.contrast[v, b]))
            expected = tv.adjust_brightness(expected, float(parameters.brightness[v, b]))
            expected = tv.adjust_gamma(expected, float(parameters.gamma[v, b]))
            torch.testing.assert_close(both[v, b], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("blur", [(0.1, 1.0), (0.5, 3.0)])
def test_each_blur_is_torchvisions(blur):
    views = Views(40, **{**STILL, "blur": blur, "blur_probability": 0.7}, **RAW)
    images = pictures(8, 40)
    images[:, ::5] = 255  # sharp edges up to the border
    parameters = draw(views, 8)
    both, _ = views.apply(images, parameters)
    taps = 2 * math.ceil(3 * blur[1]) + 1
    for v in range(2):
        for b in range(8):
            expected, sigma = images[b : b + 1].float() / 255, float(parameters.sigma[v, b])
            if sigma > 0:
                expected = tv.gaussian_blur(expected, [taps, taps], [sigma, sigma])
            torch.testing.assert_close(both[v, b], expected, atol=1e-5, rtol=0)
    assert 0 < (parameters.sigma > 0).sum() < 16


def test_noise_is_normal_and_of_its_own():
    views = Views(64, **{**STILL, "noise": 0.2}, **RAW)
    images = pictures(16, 64)
    parameters = draw(views, 16)
    both, _ = views.apply(images, parameters)
    noise = (both[:, :, 0] - images.float() / 255) / parameters.noise[..., None, None]
    flat = noise.flatten(0, 1).flatten(1).double()
    assert stats.kstest(flat[:, ::7].flatten().numpy(), "norm").pvalue > 1e-3
    np.testing.assert_allclose(flat.std(1), 1, atol=6 / math.sqrt(2 * 4096))
    between = torch.corrcoef(flat) - torch.eye(32)
    assert between.abs().max() < 6 / 64
    neighbours = (noise[..., 1:] * noise[..., :-1]).mean()
    assert abs(float(neighbours)) < 6 / math.sqrt(noise.numel())


def test_parameters_have_the_distributions_asked_for():
    views = Views(64)
    p = draw(views, 4000)
    uniform = {
        "angle": (p.angle, -10, 10),
        "contrast": (p.contrast, 0.8, 1.2),
        "brightness": (p.brightness, 0.8, 1.2),
        "log gamma": (p.gamma.log(), math.log(0.8), math.log(1.25)),
        "sigma": (p.sigma[p.sigma > 0], 0.1, 1.0),
        "noise": (p.noise, 0, 0.03),
        "noise_at": (p.noise_at, 0, 1),
    }
    for name, (values, low, high) in uniform.items():
        test = stats.kstest(values.flatten().numpy(), "uniform", (low, high - low))
        assert test.pvalue > 1e-3, name
    for share in (p.flip.float().mean(), (p.sigma > 0).float().mean()):
        assert abs(float(share) - 0.5) < 5 * 0.5 / math.sqrt(8000)
    free = (p.width < 1) & (p.height < 1)  # crops near the whole image that are not square do not fit and are cut
    area, aspect = (p.width * p.height)[free], (p.width / p.height)[free]
    assert area.min() >= 0.45 - 1e-6 and p.width.max() <= 1 and p.height.max() <= 1
    assert aspect.min() >= 0.9 - 1e-5 and aspect.max() <= 1.1 + 1e-5
    small = area[area < 0.8]
    assert stats.kstest(small.numpy(), "uniform", (0.45, 0.35)).pvalue > 1e-3
    assert bool((p.x.abs() <= 1 - p.width + 1e-6).all() and (p.y.abs() <= 1 - p.height + 1e-6).all())
    where = (p.x / (1 - p.width))[p.width < 0.99]
    assert stats.kstest(where.numpy(), "uniform", (-1, 2)).pvalue > 1e-3


def test_no_two_images_or_views_share_parameters():
    p = draw(Views(64, crop_area=(0.45, 0.8), blur_probability=1.0), 256)
    for name in (f.name for f in fields(p) if f.name != "flip"):
        values = getattr(p, name).flatten()
        assert len(values.unique()) > 0.99 * len(values), name  # some are equal by chance at float precision
    columns = torch.stack([getattr(p, f.name).flatten().float() for f in fields(p)], dim=1)
    assert len(columns.unique(dim=0)) == 512
    independent = torch.stack([p.angle[0], p.angle[1], p.contrast[0], p.brightness[0], p.noise[0]])
    assert (torch.corrcoef(independent) - torch.eye(5)).abs().max() < 5 / math.sqrt(256)


def test_rows_of_the_parameters_give_the_pixels_of_the_whole():
    views = Views(32)
    images, masks = pictures(41, 32), pictures(41, 32, seed=3).to(torch.uint16)
    parameters = draw(views, 41)
    whole, whole_masks = views.apply(images, parameters, masks)
    shuffled = torch.tensor([40, 3, 17])
    for rows in (slice(0, 20), slice(20, 41), slice(7, 8), shuffled):
        part, part_masks = Views(32).apply(images[rows], parameters.rows(rows), masks[rows])
        assert torch.equal(part, whole[:, rows])
        assert torch.equal(part_masks.int(), whole_masks.int()[:, rows])


def test_working_in_chunks_changes_nothing(monkeypatch):
    views, images = Views(32), pictures(20, 32)
    parameters = draw(views, 20)
    whole, _ = views.apply(images, parameters)
    monkeypatch.setattr("datasets.views.CHUNK_PIXELS", 3 * 32 * 32)
    assert torch.equal(views.apply(images, parameters)[0], whole)


def test_draws_are_the_generators():
    views, images = Views(32), pictures(4, 32)
    one, again, other = (views.apply(images, draw(views, 4, seed))[0] for seed in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=0.1)


def test_masks_follow_the_geometry():
    """The image is a bright square on black: wherever the view is bright the mask must be set, for any geometry."""
    views = Views(
        96,
        **{**STILL, "crop_area": (0.3, 1.0), "crop_aspect": (0.7, 1.4), "rotation": 40.0, "flip": 0.5},
        **RAW,
    )
    images = torch.zeros((12, 96, 96), dtype=torch.uint8)
    masks = torch.zeros((12, 96, 96), dtype=torch.int32)
    for b in range(12):
        images[b, 20 + 3 * b : 50 + 3 * b, 30:70] = 255
        masks[b, 20 + 3 * b : 50 + 3 * b, 30:70] = 0x8005  # the highest bit must survive
    both, carried = views.apply(images, draw(views, 12), masks.to(torch.uint16))
    assert carried.dtype == torch.uint16 and carried.shape == (2, 12, 96, 96)
    bits, bright = carried.int(), both[:, :, 0]
    assert set(bits.unique().tolist()) == {0, 0x8005}
    assert bool((bits[bright > 0.75] == 0x8005).all()) and bool((bits[bright < 0.25] == 0).all())
    assert (bits > 0).float().mean() > 0.05


def test_an_image_of_another_size_becomes_the_views_size():
    views = Views(32, **STILL, **RAW)
    images = pictures(2, 64)
    both, _ = views.apply(images, draw(views, 2))
    expected = torch.nn.functional.avg_pool2d(images[:, None].float() / 255, 2)
    torch.testing.assert_close(both[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("ranges", "word"),
    [
        ({"crop_area": (0.0, 1.0)}, "crop_area"),
        ({"crop_area": (0.5, 1.1)}, "crop_area"),
        ({"crop_aspect": (1.2, 0.8)}, "crop_aspect"),
        ({"gamma": (0.0, 1.0)}, "gamma"),
        ({"blur": (0.0, 1.0)}, "blur"),
        ({"blur": (0.1, 40.0)}, "blur"),
        ({"flip": 1.5}, "flip"),
        ({"rotation": -3.0}, "rotation"),
        ({"noise": float("nan")}, "noise"),
        ({"std": 0.0}, "standard deviation"),
        ({"channels": 2}, "channels"),
    ],
)
def test_impossible_ranges_are_named(ranges, word):
    with pytest.raises(ValueError, match=word):
        Views(64, **ranges)


def test_wrong_batches_are_refused():
    views = Views(16)
    with pytest.raises(ValueError, match="parameters for 3"):
        views.apply(pictures(2, 16), draw(views, 3))
    with pytest.raises(ValueError, match="uint8"):
        views.apply(pictures(2, 16).float(), draw(views, 2))
    with pytest.raises(ValueError, match="Masks"):
        views.apply(pictures(2, 16), draw(views, 2), torch.zeros((2, 8, 8), dtype=torch.uint16))
