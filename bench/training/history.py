"""The history of a training so far. Checkpoints hold it, so that it survives a stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.records.environment import conditions, environment
from bench.training.checkpoint import Position
from methods.objectives.objective import Loss
from methods.ranks import world


class History:
    """Counts steps and time, and keeps one line of mean losses and statistics per epoch."""

    def __init__(self, step: int = 0, state: dict[str, Any] | None = None) -> None:
        self.step = self._first = step
        before = state or {"history": [], "seen": {}, "seconds": 0.0, "resumed": -1}
        self.lines: list[dict[str, Any]] = before["history"]
        self._seen: dict[str, list[float]] = before["seen"]  # in the current epoch
        self._seconds = before["seconds"]
        self.resumed: int = before["resumed"] + 1  # how often the training resumed from a checkpoint
        self.conditions: list[dict[str, Any]] = with_current_conditions(before)
        self._began = self._epoch_began = time.perf_counter()
        self._images = 0  # in the current epoch, since it began or resumed

    @classmethod
    def at(cls, position: Position | None) -> History:
        """Restore the history from a checkpoint; start a new one for None."""
        return cls() if position is None else cls(position.step, position.state)

    @property
    def new_steps(self) -> int:
        """Steps since the start or since the training resumed."""
        return self.step - self._first

    def note(self, loss: Loss, value: float, images: int) -> None:
        """Record a finished step: the contrastive loss `value`, the other losses, and the strategy's statistics."""
        self._seen.setdefault("loss", []).append(value)
        for name, part in {**loss.parts, **loss.encoding.stats}.items():
            self._seen.setdefault(name, []).append(float(part.detach()))
        self.step += 1
        self._images += images

    def end_epoch(self, epoch: int, keep: float, lr: float) -> None:
        """Close an epoch: add its line to the history."""
        line = {
            "epoch": epoch,
            "step": self.step,
            "loss": float(np.mean(self._seen.pop("loss"))),
            "keep": keep,
            "lr": lr,
            "images_per_second": self.images_per_second(),
            "selection": {name: float(np.mean(values)) for name, values in self._seen.items()},
        }
        self.lines.append(line)
        self._seen, self._images, self._epoch_began = {}, 0, time.perf_counter()

    def images_per_second(self) -> float:
        """Return the training speed in the current epoch."""
        return self._images / max(time.perf_counter() - self._epoch_began, 1e-9)

    def seconds(self) -> float:
        """Return the seconds spent on training, without the time between a stop and a resume."""
        return float(self._seconds) + time.perf_counter() - self._began

    def position(self) -> Position:
        """Return what a checkpoint must hold to resume here."""
        state = {
            "history": self.lines,
            "seen": self._seen,
            "seconds": self.seconds(),
            "resumed": self.resumed,
            "conditions": self.conditions,
        }
        return Position(self.step, state)


def with_current_conditions(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the conditions that a training ran under so far, each once, with those of this process added."""
    before: list[dict[str, Any]] = state.get("conditions", [])
    current = conditions(environment(torch.get_num_threads(), ranks=world()))
    return before if current in before else [*before, current]


ProgressCallback = Callable[[dict[str, Any]], None]
"""Receives the state of a run (step, loss, ...) whenever it changes."""
