from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the methods compute in float32 whatever the precision (logits of choices and losses) is float64 too."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
