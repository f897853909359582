"""lightly gets the same work as ours. Needs the peers' environment (`make peers` sets it up)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.specs.run_spec import EncoderSpec
from bench.training.build import build
from methods.names import parse_methods
from methods.objectives.simclr import nt_xent
from peers import step, views

lightly = pytest.importorskip("lightly", reason="lightly is a peer, installed in peers/.venv alone")


def test_the_operations_have_the_same_ranges() -> None:
    crop, flip, _, rotation, jitter, grey, blur, _, normalise = (
        views.transform(32, 1).transforms[0].transform.transforms
    )
    ours = views.our_views(32, 1)
    assert (tuple(crop.scale), tuple(crop.ratio)) == (ours.crop_area, pytest.approx(ours.crop_aspect))
    assert (flip.p, grey.p) == (ours.flip, 0)
    assert rotation.transform.transforms[0].degrees == [-ours.rotation, ours.rotation]
    colours = jitter.transforms[0]
    assert (colours.brightness, colours.contrast) == ((0.8, 1.2), (0.8, 1.2))
    assert (ours.brightness, ours.contrast, ours.noise, ours.gamma) == (0.2, 0.2, 0, (1, 1))
    assert (colours.saturation, colours.hue) == (None, None)
    assert (blur.sigmas, blur.prob) == (ours.blur, ours.blur_probability)
    assert (normalise.mean, normalise.std) == ([ours.mean], [ours.std])


@pytest.mark.parametrize("channels", [1, 3])
def test_both_give_views_of_the_same_shape_and_range(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32), dtype=np.uint8)
    images = images // 4 + 60  # so that neither clips
    data = views.InMemory(
        images if channels == 1 else np.repeat(images[..., None], 3, 3), views.transform(32, channels)
    )
    theirs = torch.stack([torch.stack(data[i]) for i in range(len(data))], 1)
    pipeline = views.our_views(32, channels)
    generator = torch.Generator().manual_seed(0)
    ours, _ = pipeline.apply(torch.from_numpy(images), pipeline.draw(generator, len(images)))
    assert ours.shape == theirs.shape == (2, 64, channels, 32, 32)
    inside = (..., slice(8, 24), slice(8, 24))  # rotation leaves lightly's corners black
    assert ours[inside].mean() == pytest.approx(float(theirs[inside].mean()), abs=0.05)


@pytest.mark.parametrize("alike", [False, True])
def test_the_network_and_the_loss_are_ours_but_for_the_head(alike: bool) -> None:
    from lightly.loss import NTXentLoss

    objective = build(parse_methods("simclr/dense")[0], EncoderSpec(name="vit_tiny_patch16_224", image_size=32), 0)
    model = step.lightly_model(objective, alike).eval()
    images = torch.rand(4, 1, 32, 32)
    features = objective.eval().encoder(images).features
    assert torch.allclose(model.backbone(images), features, atol=1e-5)
    z = model(images).detach()
    loss = NTXentLoss(temperature=objective.temperature)(z[:2], z[2:])
    assert float(nt_xent(z, objective.temperature)) == pytest.approx(float(loss), rel=1e-5)
    linears = [m.out_features for m in model.projection_head.modules() if isinstance(m, torch.nn.Linear)]
    ours = [m.out_features for m in objective.projector.modules() if isinstance(m, torch.nn.Linear)]
    assert (linears == ours) == alike


def test_a_step_of_each_trains() -> None:
    encoder = EncoderSpec(name="vit_stem_d64_l4_patch8", image_size=32)
    for name, call in step.calls_of(encoder, 4).items():
        assert call() is None, name
