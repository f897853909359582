"""SparseContrast against a slow reference that uses lists of patches, one image at a time, with gradients."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from methods.noise import Noise
from methods.strategies.selection import highest
from methods.strategies.sparsecontrast import Frozen, SparseContrast
from methods.strategies.strategy import Call
from tests.methods import slow

NOISE = Noise(0, 0, 2)
TRAIN = Call(0.5, 0.3, NOISE)


def make(prefix: str = "cls", frozen: bool = False, **options: object) -> tuple[VisionTransformer, SparseContrast]:
    vit, geometry = slow.tiny(prefix, depth=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        strategy = (Frozen if frozen else SparseContrast)(geometry, width=6, **options)  # type: ignore[arg-type]
        slow.shake(strategy.predictor)
    return vit, strategy


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(3))


def noisy(strategy: SparseContrast, logits: Tensor) -> list[list[float]]:
    """Add Gumbel noise, which falls along half a cosine, to the logits; here 30 % of the run are completed."""
    noise = NOISE.gumbel("selection", 16)
    if strategy.select == "threshold":  # two outcomes per token
        noise = noise - NOISE.gumbel("selection, against", 16)
    scale = strategy.noise * (1 + math.cos(0.3 * math.pi)) / 2
    return (logits.detach() + scale * noise).tolist()


def slow_choice(strategy: SparseContrast, scores: list[list[float]]) -> list[list[int]]:
    if strategy.select == "topk":
        return [sorted(sorted(range(16), key=lambda j: -row[j])[:8]) for row in scores]
    if strategy.select == "budget":
        everything = sorted((-v, b, j) for b, row in enumerate(scores) for j, v in enumerate(row))
        best = {(b, j) for _, b, j in everything[: 8 * len(scores)]}
    else:
        best = {(b, j) for b, row in enumerate(scores) for j, v in enumerate(row) if v > 0}
    best |= {(b, max(range(16), key=row.__getitem__)) for b, row in enumerate(scores)}
    return [[j for j in range(16) if (b, j) in best] for b in range(len(scores))]


def slow_features(
    vit: VisionTransformer, strategy: SparseContrast, batch: Tensor, logits: Tensor, kept: list[list[int]]
) -> Tensor:
    prefix, rows = strategy.geometry.prefix, []
    for image, s, left in zip(batch, logits.sigmoid(), kept, strict=True):
        tokens = slow.embed(vit, image)
        front, patches, bias = list(tokens[:prefix]), [tokens[prefix + j] for j in left], torch.zeros(0)
        if strategy.gate == "token":
            patches = [p * (1 + s[j] - s[j].detach()) for p, j in zip(patches, left, strict=True)]
        else:
            bias = torch.stack([(1 + s[j] - s[j].detach()).log() for j in left])
        if strategy.fuse and len(left) < 16:
            dropped = [j for j in range(16) if j not in left]
            front.append(sum(s[j] * tokens[prefix + j] for j in dropped) / sum(s[j] for j in dropped))
        bias = torch.cat([torch.zeros(len(front)), bias if len(bias) else torch.zeros(len(left))])
        share = bias[len(front) :].exp()
        out = slow.blocks(vit, torch.stack([*front, *patches]), bias=bias)[len(front) :]
        rows.append((share[:, None] * out).sum(0) / share.sum())
    return torch.stack(rows)


@pytest.mark.parametrize("gate", ["token", "key_bias"])
@pytest.mark.parametrize("select", ["topk", "budget", "threshold"])
@pytest.mark.parametrize(("prefix", "fuse"), [("", False), ("cls+reg", True)])
def test_training_equals_the_slow_version(select: str, gate: str, prefix: str, fuse: bool) -> None:
    vit, strategy = make(prefix, select=select, gate=gate, fuse=fuse, lambda_sparsity=0.7)
    batch = images()
    logits = strategy.predictor(batch)
    kept = slow_choice(strategy, noisy(strategy, logits))
    encoding = strategy(vit, batch, TRAIN)
    assert [row.nonzero().flatten().tolist() for row in encoding.kept] == kept
    assert select == "topk" or len({len(left) for left in kept}) > 1
    slow.assert_same(encoding.features, slow_features(vit, strategy, batch, logits, kept), [vit, strategy])
    s = logits.sigmoid()
    if select == "threshold":  # the mean of the decisions, with the gradient of s
        share = sum(len(left) for left in kept) / 64
        loss = 0.7 * ((share + s.mean() - s.mean().detach()) - 0.5) ** 2
    else:
        loss = 0.7 * (s.mean() - 0.5) ** 2
    slow.assert_same(10 * encoding.losses["sparsity"], 10 * loss, [strategy])


@pytest.mark.parametrize("gate", ["token", "key_bias"])
@pytest.mark.parametrize("select", ["topk", "budget", "threshold"])
def test_masked_execution_agrees(select: str, gate: str) -> None:
    vit, strategy = make("cls", select=select, gate=gate)
    gathered = strategy(vit, images(), TRAIN)
    strategy.threshold.zero_()
    strategy.execution = "masked"
    masked = strategy(vit, images(), TRAIN)
    assert torch.equal(masked.kept, gathered.kept)
    torch.testing.assert_close(masked.features, gathered.features, rtol=1e-5, atol=1e-5)
    slow.assert_same(masked.features, gathered.features, [vit, strategy])


@pytest.mark.parametrize("trim", ["tokens", "keys"])
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("select", ["topk", "budget", "threshold"])
def test_an_image_alone_equals_the_image_in_a_batch(select: str, fuse: bool, trim: str) -> None:
    vit, strategy = make("cls", select=select, fuse=fuse, trim=trim)
    batch = images(8)
    ranked = strategy.predictor(batch).detach().flatten().sort().values
    strategy.threshold.fill_((ranked[63] + ranked[64]) / 2)  # between two logits, so that rounding decides nothing
    together = strategy(vit, batch, Call())
    for i in range(8):
        alone = strategy(vit, batch[i : i + 1], Call())
        assert torch.equal(alone.kept[0], together.kept[i])
        torch.testing.assert_close(alone.features[0], together.features[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("select", ["topk", "budget"])
def test_the_mean_is_kept_while_budget_lets_images_differ(select: str) -> None:
    _, strategy = make(select=select)
    kept = strategy(make()[0], images(8), Call(0.5, 0.0, Noise(0, 0, 4))).kept
    assert int(kept.sum()) == 8 * 8
    assert (len(set(kept.sum(1).tolist())) == 1) == (
        select == "topk"
    )  # with "budget" the number differs between images


def test_budget_remembers_the_quantile_that_inference_needs() -> None:
    vit, strategy = make(select="budget", noise=0.0)
    batch = images(64)
    call = Call(0.25, 0.5, Noise(0, 0, 32))
    for _ in range(80):
        strategy(vit, batch, call)
    values = sorted(strategy.predictor(batch).detach().flatten().tolist(), reverse=True)
    assert float(strategy.threshold) == pytest.approx(values[64 * 4 - 1], abs=1e-3)
    share = strategy(vit, batch, Call()).kept.float().mean()
    assert abs(float(share) - 0.25) < 0.02


@pytest.mark.parametrize("gate", ["token", "key_bias"])
def test_gates_change_no_value(gate: str) -> None:
    vit, strategy = make(gate=gate, noise=0.0)
    trained, inferred = strategy(vit, images(), TRAIN), strategy(vit, images(), Call())
    assert torch.equal(trained.kept, inferred.kept)
    torch.testing.assert_close(trained.features, inferred.features, rtol=1e-5, atol=1e-5)


def test_noise_is_gumbel_with_top_k_a_sample_without_replacement() -> None:
    """With logits a, the first draw of Gumbel top-k is patch j with probability softmax(a)_j."""
    _, strategy = make(keep=1 / 16)
    logits = torch.linspace(-1, 2, 16).expand(4000, -1)
    noise = strategy._noise(logits, Call(1 / 16, 0.0, Noise(0, 0, 2000)))
    share = torch.bincount(highest(logits + noise, 1).flatten(), minlength=16) / 4000
    torch.testing.assert_close(share, logits[0].softmax(0), rtol=0, atol=0.02)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 1.0), (1 / 3, 0.75), (0.5, 0.5), (1.0, 0.0)])
def test_noise_is_annealed_to_nothing(progress: float, share: float) -> None:
    _, strategy = make(noise=2.0)
    drawn = strategy._noise(torch.zeros(4, 16), Call(0.5, progress, NOISE))
    torch.testing.assert_close(drawn, share * 2.0 * NOISE.gumbel("selection", 16), rtol=1e-5, atol=1e-6)


def test_diagnostics_say_what_they_say() -> None:
    vit, strategy = make()
    encoding = strategy(vit, images(), TRAIN)
    logits = strategy.predictor(images()).detach()
    clean = [sorted(sorted(range(16), key=lambda j: -row[j])[:8]) for row in logits.tolist()]
    same = sum(bool(encoding.kept[b, j]) for b in range(4) for j in clean[b])
    assert float(encoding.stats["overlap"]) == pytest.approx(same / 32)
    assert float(encoding.stats["kept_share"]) == 0.5
    spread = sum(torch.std(row) for row in logits) / 4
    assert float(encoding.stats["logit_spread"]) == pytest.approx(float(spread), rel=1e-5)
    assert float(encoding.stats["noise_spread"]) > 0


def test_overlap_of_a_budget_is_with_the_threshold_that_inference_uses() -> None:
    vit, strategy = make(select="budget", noise=0.0)
    strategy.threshold.fill_(1e6)  # inference would keep only the best patch of an image
    encoding = strategy(vit, images(), TRAIN)
    strategy.threshold.fill_(1e6)
    assert float(encoding.stats["overlap"]) == pytest.approx(
        float((strategy(vit, images(), Call()).kept & encoding.kept).sum() / encoding.kept.sum())
    )


def test_no_trimming_before_the_ramp_and_frozen_learns_nothing() -> None:
    vit, strategy = make()
    encoding = strategy(vit, images(), Call(1.0, 0.0, NOISE))
    assert torch.equal(encoding.features, vit.forward_features(images())[:, 1:].mean(1))
    vit, frozen = make(frozen=True)
    encoding = frozen(vit, images(), TRAIN)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not encoding.losses
    assert torch.equal(encoding.kept, strategy(vit, images(), TRAIN).kept)


@pytest.mark.parametrize("logits", ["raw", "standardised", "bounded"])
def test_the_slope_that_is_recorded_is_that_of_the_logits_in_use(logits: str) -> None:
    vit, strategy = make(logits=logits)
    with torch.no_grad():
        strategy.predictor.layers[-1].weight.mul_(200)  # far beyond where the sigmoid saturates
    raw = strategy.predictor(images())
    z = {"raw": raw, "standardised": (raw - raw.mean(1, keepdim=True)) / raw.std(1, correction=0, keepdim=True)}
    used = z.get(logits, 4 * (raw / 4).tanh())
    found = strategy(vit, images(), TRAIN).stats["slope"]
    torch.testing.assert_close(found, (used.sigmoid() * (1 - used.sigmoid())).mean(), rtol=1e-3, atol=1e-6)
    assert (found < 0.01) == (logits == "raw")


def test_standardised_logits_leave_a_threshold_nothing_to_control() -> None:
    with pytest.raises(ValueError, match="logits=standardised can't be combined with select=threshold"):
        make(logits="standardised", select="threshold")
