"""Checkpoints of a training, saved at intervals, when it is asked to stop, and at its end.

A checkpoint is a pair of files in `results/<run id>/training/`. `<step>.safetensors` holds the networks (with heads and
teacher) and the moments of the optimizer. `<step>.json`, written last, holds the position and the SHA-256 of both. A
damaged or incomplete pair is skipped for the previous one, so the two newest are kept. A resumed training ends with the
same bits as an uninterrupted one, because order, views and noise of every step are keyed by the step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from bench.records.seal import digest_of, parse, sha256
from bench.records.store import write_atomically
from bench.training.signals import Stopping

KEPT = 2  # the newest, and one more in case it is damaged
PATIENCE = 30.0
"""Seconds that a network file system may take to show what another host wrote. The other ranks ignore SLURM's signal
while they wait, so this is shorter than the time that SLURM leaves before it kills a job."""


@dataclass(frozen=True)
class Position:
    """A point in a training: `step` steps are done; `state` is what else its loop must know, as plain JSON."""

    step: int
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training, saved every `minutes`; None saves only on a stop and at the end.

    Without a `folder` nothing is saved, but a stop is still answered. With `writes=False` checkpoints are only read,
    because another process writes them.
    """

    def __init__(
        self, folder: Path | None, minutes: float | None = None, stopping: Stopping | None = None, writes: bool = True
    ) -> None:
        self.folder, self.minutes, self.writes = folder, minutes, writes
        self.stopping = stopping or Stopping()
        self.restored: Position | None = None  # where the training resumed
        self._saved_at = time.monotonic()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, at: int | None = None) -> Position | None:
        """Load the newest complete checkpoint into model and optimizer. Changes nothing and returns None without one.

        With `at`, load the checkpoint of that step, which another process has read, and wait until it is visible.
        """
        self._saved_at, self.restored = time.monotonic(), None
        for step in reversed(self._steps()) if at is None else self._awaited(at):
            found = self._read(step)
            if found is not None and _fits(found[0], model):
                _put(found[0], model, optimizer)
                self.restored = found[1]
                break
        return self.restored

    def due(self) -> bool:
        """Is it time to save, by the clock or because a stop was asked for?"""
        by_time = self.minutes is not None and time.monotonic() - self._saved_at >= 60 * self.minutes
        return by_time or self.stopping.wanted()

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, position: Position) -> None:
        """Save the state at `position`, then stop if that was asked (see `Stopping.answer`)."""
        if self.folder is not None and self.writes:
            content = save_tensors(_taken(model, optimizer))
            inside = {"step": position.step, "tensors": sha256(content), "position": position.state}
            write_atomically(self.folder / f"{position.step}.safetensors", content)
            sealed = {**inside, "digest": digest_of(inside)}
            write_atomically(self.folder / f"{position.step}.json", json.dumps(sealed, allow_nan=False).encode())
            steps = self._steps()
            later = [
                step for step in steps if step > position.step
            ]  # damaged, or the training would have resumed there
            for other in [*later, *[step for step in steps if step <= position.step][:-KEPT]]:
                self._remove(other)
        self._saved_at = time.monotonic()
        self.stopping.answer()

    def reached(self) -> int:
        """Return the step of the newest checkpoint, complete or not; 0 without any."""
        return max(self._steps(), default=0)

    def clear(self) -> None:
        """Remove all checkpoints, after the result of the training is recorded."""
        if self.folder is None or not self.folder.is_dir():
            return
        for step in self._steps():
            self._remove(step)
        for path in self.folder.iterdir():  # left behind by a killed process
            path.unlink()
        self.folder.rmdir()

    def _awaited(self, step: int) -> Iterator[int]:
        """Yield `step` once a second until PATIENCE is over."""
        until = time.monotonic() + PATIENCE
        yield step
        while time.monotonic() < until:
            time.sleep(1.0)
            yield step

    def _steps(self) -> list[int]:
        """Return the steps of the checkpoints on disk, ascending."""
        paths = [] if self.folder is None else self.folder.glob("*.json")
        return sorted(int(path.stem) for path in paths if path.stem.isdecimal())

    def _remove(self, step: int) -> None:
        assert self.folder is not None
        for suffix in ("json", "safetensors"):  # without its JSON a checkpoint does not count
            (self.folder / f"{step}.{suffix}").unlink(missing_ok=True)

    def _read(self, step: int) -> tuple[dict[str, Tensor], Position] | None:
        """Read the tensors and the position of a checkpoint; None if it is damaged or incomplete."""
        assert self.folder is not None
        try:
            sealed, digest = parse((self.folder / f"{step}.json").read_bytes())
            content = (self.folder / f"{step}.safetensors").read_bytes()
            if digest != "whole" or sealed["tensors"] != sha256(content) or sealed["step"] != step:
                return None
            return load_tensors(content), Position(step, sealed["position"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None


def _taken(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return all tensors of model and optimizer by name: `model.<name>`, `optimizer.<key>.<name of the parameter>`."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state = _inner(optimizer).state
    for name, parameter in model.named_parameters():
        for key, value in state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _fits(tensors: dict[str, Tensor], model: nn.Module) -> bool:
    """Do the tensors have the names and shapes of the model's?"""
    mine = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    return mine == {name: t.shape for name, t in tensors.items() if name.startswith("model.")}


def _put(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load what `_taken` returned. Moments get the memory layout of their parameter, as the optimizer makes them."""
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    parameters = dict(model.named_parameters())
    state = _inner(optimizer).state
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            key, _, of = rest.partition(".")
            own = parameters[of]
            like = torch.empty_like(own, dtype=tensor.dtype).copy_(tensor) if tensor.shape == own.shape else tensor
            state[own][key] = like.detach()


def _inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return torch's optimizer inside fabric's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
