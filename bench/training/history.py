"""The course of a training: what it has done and seen so far. It goes into checkpoints, so that it outlives a stop."""

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
    """Steps done, a line of history an epoch, time spent."""

    def __init__(self, step: int = 0, state: dict[str, Any] | None = None) -> None:
        self.step = self._first = step
        before = state or {"history": [], "seen": {}, "seconds": 0.0, "resumed": -1}
        self.lines: list[dict[str, Any]] = before["history"]
        self._seen: dict[str, list[float]] = before["seen"]  # of the epoch at work
        self._seconds = before["seconds"]
        self.resumed: int = before["resumed"] + 1  # how often it went on from a checkpoint
        self.conditions: list[dict[str, Any]] = with_current_conditions(before)
        self._began = self._epoch_began = time.perf_counter()
        self._images = 0  # of the epoch, since it began or went on

    @classmethod
    def at(cls, position: Position | None) -> History:
        """From a checkpoint; from the start where there is none."""
        return cls() if position is None else cls(position.step, position.state)

    @property
    def new_steps(self) -> int:
        """Steps since the start, or since it went on."""
        return self.step - self._first

    def note(self, loss: Loss, value: float, images: int) -> None:
        """A step is done: its contrastive loss, and the strategy's losses and statistics where it had some."""
        self._seen.setdefault("loss", []).append(value)
        for name, part in {**loss.parts, **loss.encoding.stats}.items():
            self._seen.setdefault(name, []).append(float(part.detach()))
        self.step += 1
        self._images += images

    def end_epoch(self, epoch: int, keep: float, lr: float) -> None:
        """A line of history."""
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
        return self._images / max(time.perf_counter() - self._epoch_began, 1e-9)

    def seconds(self) -> float:
        """Of training, without what lies between a stop and going on."""
        return float(self._seconds) + time.perf_counter() - self._began

    def position(self) -> Position:
        state = {
            "history": self.lines,
            "seen": self._seen,
            "seconds": self.seconds(),
            "resumed": self.resumed,
            "conditions": self.conditions,
        }
        return Position(self.step, state)


def with_current_conditions(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The conditions that a training was under until this position, each once, and those of this process."""
    before: list[dict[str, Any]] = state.get("conditions", [])
    current = conditions(environment(torch.get_num_threads(), ranks=world()))
    return before if current in before else [*before, current]


ProgressCallback = Callable[[dict[str, Any]], None]  # progress of the run, for whoever watches
