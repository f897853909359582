"""Peak memory of training in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch

from bench.measure.peak import NotMeasured, peak_of_training
from bench.specs.run_spec import EncoderSpec, TrainSpec

TRAIN = TrainSpec()
pytestmark = pytest.mark.skipif(torch.cuda.is_available() or sys.platform != "linux", reason="Linux's resident memory")


def test_peak_holds_the_parameters_four_times_and_none_of_the_parents_memory() -> None:
    """vit_tiny has 5.4 M parameters of 4 bytes; with gradients and AdamW's two moments that is 83 MiB. The parent's
    peak, which getrusage would hand down, is far higher."""
    held = torch.ones(400 << 18)  # 400 MiB
    encoder = EncoderSpec(name="vit_tiny_patch16_224", image_size=32, channels=3)
    mib, of = peak_of_training("simclr/dense", encoder, TRAIN, 2, 1)
    assert of == "process"
    assert 83 < mib < 250
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 > 400 + held.numel() / 2**40


def test_a_process_that_fails_says_how() -> None:
    encoder = EncoderSpec(name="vit_tiny_patch16_224", image_size=33)
    with pytest.raises(NotMeasured, match=r"simclr/dense: exit code 1, ValueError: image size 33"):
        peak_of_training("simclr/dense", encoder, TRAIN, 2, 1)


def test_a_process_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr(subprocess, "run", slow)
    with pytest.raises(NotMeasured, match="not finished after"):
        peak_of_training("simclr/dense", EncoderSpec(), TRAIN, 2, 1)
