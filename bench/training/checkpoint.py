"""Checkpoints of a training: by time, when it is asked to stop, and at its end.

One is a pair of files in `results/<run id>/training/`: `<step>.safetensors` holds the networks (heads and teacher with
them) and the optimizer's moments, `<step>.json`, written last, the position and the SHA-256 of both. A pair that is not
whole is passed over for the one before it, so the two newest are kept. A training that goes on from one ends with the
same bits as one that was never stopped: order, views and noise of every step are keyed by the step.
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

KEPT = 2  # the newest, and the one before in case that is damaged
PATIENCE = 30.0
"""Seconds that a network file system may take to show here what another host has written. The other ranks wait as long,
deaf to SLURM's signal, so these are fewer than it leaves before it ends a job."""


@dataclass(frozen=True)
class Position:
    """Where a training stands: `step` steps are done; `state` is what else its loop must know, as plain JSON."""

    step: int
    state: dict[str, Any]


class Checkpoints:
    """Those of one training. `minutes` between two; None writes by time never (yet when asked to stop, and at the end).

    Without a `folder` nothing is kept, and a stop is answered all the same. With `writes` False what there is is read,
    and another process writes.
    """

    def __init__(
        self, folder: Path | None, minutes: float | None = None, stopping: Stopping | None = None, writes: bool = True
    ) -> None:
        self.folder, self.minutes, self.writes = folder, minutes, writes
        self.stopping = stopping or Stopping()
        self.restored: Position | None = None  # where the training went on from
        self._saved_at = time.monotonic()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, at: int | None = None) -> Position | None:
        """Put the newest whole checkpoint's state into both; None, with both untouched, where there is none.

        With `at` that of this step alone, which another process has read: it is waited for.
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
        """Is it time to save, by the clock or because somebody asks?"""
        by_time = self.minutes is not None and time.monotonic() - self._saved_at >= 60 * self.minutes
        return by_time or self.stopping.wanted()

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, position: Position) -> None:
        """Write the state after `point.step` steps; then stop, if that was asked (see `Stopping.answer`)."""
        if self.folder is not None and self.writes:
            content = save_tensors(_taken(model, optimizer))
            inside = {"step": position.step, "tensors": sha256(content), "position": position.state}
            write_atomically(self.folder / f"{position.step}.safetensors", content)
            sealed = {**inside, "digest": digest_of(inside)}
            write_atomically(self.folder / f"{position.step}.json", json.dumps(sealed, allow_nan=False).encode())
            steps = self._steps()
            later = [step for step in steps if step > position.step]  # not whole, or this would have gone on from there
            for other in [*later, *[step for step in steps if step <= position.step][:-KEPT]]:
                self._remove(other)
        self._saved_at = time.monotonic()
        self.stopping.answer()

    def reached(self) -> int:
        """Steps of the newest checkpoint, whole or not; 0 without any."""
        return max(self._steps(), default=0)

    def clear(self) -> None:
        """Remove all: the training's result is recorded."""
        if self.folder is None or not self.folder.is_dir():
            return
        for step in self._steps():
            self._remove(step)
        for path in self.folder.iterdir():  # left by a process that was killed
            path.unlink()
        self.folder.rmdir()

    def _awaited(self, step: int) -> Iterator[int]:
        """`step`, again and again until it is asked for no more or patience ends."""
        until = time.monotonic() + PATIENCE
        yield step
        while time.monotonic() < until:
            time.sleep(1.0)
            yield step

    def _steps(self) -> list[int]:
        """Of the checkpoints on disk, ascending."""
        paths = [] if self.folder is None else self.folder.glob("*.json")
        return sorted(int(path.stem) for path in paths if path.stem.isdecimal())

    def _remove(self, step: int) -> None:
        assert self.folder is not None
        for suffix in ("json", "safetensors"):  # without its JSON a checkpoint does not count
            (self.folder / f"{step}.{suffix}").unlink(missing_ok=True)

    def _read(self, step: int) -> tuple[dict[str, Tensor], Position] | None:
        """A checkpoint's tensors and point, None where it is not whole."""
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
    """All tensors of both by name: `model.<name>`, `optimizer.<key>.<name of its parameter>`."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state = _inner(optimizer).state
    for name, parameter in model.named_parameters():
        for key, value in state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _fits(tensors: dict[str, Tensor], model: nn.Module) -> bool:
    """Are these the tensors of such a model?"""
    mine = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    return mine == {name: t.shape for name, t in tensors.items() if name.startswith("model.")}


def _put(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The reverse of `_taken`. Moments get their parameter's layout in memory, as the optimizer makes them."""
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
    """torch's own, inside fabric's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
