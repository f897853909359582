import math

import pytest
import torch

from methods.noise import Noise, keyed_generator


def test_a_rank_takes_its_slice_of_the_whole_batch() -> None:
    whole = Noise(seed=3, step=5, batch=6).uniform("x", 4).unflatten(0, (2, 6))
    for rows in (slice(0, 2), slice(2, 6)):
        part = Noise(seed=3, step=5, batch=6, rows=rows).uniform("x", 4).unflatten(0, (2, -1))
        assert torch.equal(part, whole[:, rows])


def test_the_first_samples_do_not_depend_on_the_order_of_calls() -> None:
    noise = Noise(seed=0, step=0, batch=3)
    first = noise.uniform("a", 5)
    noise.uniform("b", 7)
    torch.rand(10)
    assert torch.equal(noise.uniform("a", 5), first)


@pytest.mark.parametrize(
    "other",
    [Noise(1, 0, 4), Noise(0, 1, 4), Noise(0, 0, 4).of("teacher")],
    ids=["seed", "step", "role"],
)
def test_seed_step_and_role_change_the_stream(other: Noise) -> None:
    mine, theirs = Noise(0, 0, 4).uniform("x", 50), other.uniform("x", 50)
    correlation = torch.corrcoef(torch.stack([mine.flatten(), theirs.flatten()]))[0, 1]
    assert not torch.equal(mine, theirs)
    assert abs(correlation) < 0.2


def test_the_name_and_the_view_change_the_stream() -> None:
    noise = Noise(0, 0, 4)
    assert not torch.equal(noise.uniform("x", 50), noise.uniform("y", 50))
    first, second = noise.uniform("x", 50).chunk(2)
    assert not torch.equal(first, second)


def test_a_key_has_the_same_stream_on_every_machine() -> None:
    """The key is hashed by its bytes, not with Python's salted hash, so that the value never changes."""
    assert keyed_generator("fixed mask", 0).initial_seed() == 3833439977602953096
    assert keyed_generator(0, 1).initial_seed() != keyed_generator(1, 0).initial_seed()


def test_gumbel_has_its_moments_and_is_minus_log_minus_log_of_the_uniform() -> None:
    noise = Noise(0, 0, 500)
    drawn = noise.gumbel("x", 100)
    assert drawn.shape == (1000, 100)
    assert abs(float(drawn.mean()) - 0.5772) < 0.02
    assert abs(float(drawn.std()) - math.pi / math.sqrt(6)) < 0.02
    uniform = noise.uniform("x", 100)
    torch.testing.assert_close((-(-drawn).exp()).exp(), uniform, rtol=1e-4, atol=1e-6)


def test_gumbel_is_finite_where_the_uniform_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([[0.0, 1.0 - 2**-24]])
    monkeypatch.setattr(Noise, "uniform", lambda self, name, *shape, device="cpu": ends)
    assert Noise(0, 0, 1).gumbel("x", 2).isfinite().all()
