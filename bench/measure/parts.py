"""Time of a training step by part, measured with a clock that hooks switch from part to part.

In the forward pass, hooks on the modules of a part switch the clock to it and back. In the backward pass, autograd runs
in reverse order in one thread: the backward pass of a module starts when the gradient of its output is ready, and ends
when that of its input is. Hooks on these tensors switch the same clock, so that no time is lost or counted twice. Work
outside modules (gathering tokens, positions, pooling, losses of the strategy) is a part of its own, and all work of a
teacher belongs to the teacher. A hook takes some microseconds, and hooks are set on whole blocks: well below 1 % of a
step.

If a strategy replaces the attention of a block, the block is not called as a module. It is then identified by its parts
(norm to drop path), and its two residual additions count as rest. The same holds for a ConvNeXt block with dropped
patches (depthwise convolution to MLP, including the gathering of kept positions). On a GPU, every switch synchronises
the device.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from datasets.views import Views
from methods.noise import keyed_generator
from methods.objectives.objective import Objective

MODULES = (  # pattern for the name of a module in the objective -> part; the first match counts
    (r"teacher_\w+", "teacher"),
    (r"encoder", "selection"),
    (r"encoder\.\w+\.(patch_embed|stem|conv1|bn1)|encoder\.\w+\.stem_\d", "embedding"),
    (r"encoder\.strategy\.\w+(\.\d+)?", "predictor"),
    (r"encoder\.\w+\.(blocks\.\d+|norm|stages\.\d+(\.downsample|\.blocks\.\d+)?|layer\d|head\.norm)", "blocks"),
    (r"projector|predictor", "heads"),
)
HALVES = (  # first and last module: halves of timm's transformer block, branch of a ConvNeXt block
    ("norm1", "drop_path1"),
    ("norm2", "drop_path2"),
    ("conv_dw", "mlp"),
)

Clock = Callable[[], float]


class Stepwatch:
    """Measures the seconds of training steps inside `watch`, by part."""

    def __init__(self, objective: Objective, optimizer: torch.optim.Optimizer, clock: Clock | None = None) -> None:
        self.objective, self.optimizer = objective, optimizer
        device = next(objective.parameters()).device
        self.clock = clock or (time.perf_counter if device.type != "cuda" else _synchronised)
        self.seconds: dict[str, float] = defaultdict(float)
        self.at: list[tuple[str, object]] = []  # nested parts of the forward pass, the innermost last
        self.now: tuple[str, object] = ("", None)
        self.since = 0.0
        self.hooks: list[Any] = []

    @contextmanager
    def watch(self) -> Iterator[dict[str, float]]:
        """Measure whole training steps, and nothing else, inside the context. Seconds by part are complete after it."""
        self._hook()
        self.now, self.since = ("optimizer", None), self.clock()  # a step starts with zero_grad
        try:
            yield self.seconds
            self._switch("", None)
        finally:
            for hook in self.hooks:
                hook.remove()
            self.hooks.clear()

    def _switch(self, part: str, owner: object) -> None:
        now = self.clock()
        self.seconds[self.now[0]] += now - self.since
        self.now, self.since = (part, owner), now

    def _hook(self) -> None:
        named = dict(self.objective.named_modules())
        teacher = any(name.startswith("teacher_") for name in named)
        after = "teacher" if teacher else "optimizer"  # a teacher is updated after the step of the optimizer
        self._region(self.objective, self.objective, "heads")
        self.hooks += [
            self.optimizer.register_step_pre_hook(lambda *_: self._switch("optimizer", None)),
            self.optimizer.register_step_post_hook(lambda *_: self._switch(after, None)),
        ]
        for name, module in named.items():
            part = next((part for pattern, part in MODULES if re.fullmatch(pattern, name)), None)
            if part is None:
                continue
            self._region(module, module, part)
            for first, last in HALVES:
                if part == "blocks" and hasattr(module, first) and hasattr(module, last):
                    self._region(getattr(module, first), getattr(module, last), part)

    def _region(self, first: nn.Module, last: nn.Module, part: str) -> None:
        """Assign the time from the call of `first` to the end of `last` to a part."""

        def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            inside = "teacher" if self.at and self.at[-1][0] == "teacher" else part
            owner = object()
            self.at.append((inside, owner))
            self._switch(inside, owner)
            for tensor in inputs:
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda _: self._end(owner))  # type: ignore[no-untyped-call]

        def leave(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            inside, owner = self.at.pop()
            self._switch(*(self.at[-1] if self.at else ("heads", None)))  # the backward pass starts with the loss
            if first is last and any(output is one for one in inputs):
                return  # an identity: its output is the output of another module
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda _: self._switch(inside, owner))  # type: ignore[no-untyped-call]

        self.hooks += [first.register_forward_pre_hook(enter), last.register_forward_hook(leave)]

    def _end(self, owner: object) -> None:
        """End a region of the backward pass, unless another region has started since and has the clock."""
        if self.now[1] is owner:
            self._switch("selection", None)


def shares(watched: Sequence[dict[str, float]]) -> dict[str, float]:
    """Share of each part in a step: medians over several steps of seconds by part, scaled to a sum of 1."""
    parts = [part for part in dict.fromkeys(key for one in watched for key in one) if part]
    middle = {part: float(np.median([one.get(part, 0.0) / sum(one.values()) for one in watched])) for part in parts}
    total = sum(middle.values())
    return {part: share / total for part, share in middle.items()}


class AttentionTime(TorchFunctionMode):
    """Measures the seconds spent in fused attention inside the context."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.seconds = 0.0
        self.clock: Clock = time.perf_counter if device.type != "cuda" else _synchronised

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        started = self.clock()
        out = func(*args, **(kwargs or {}))
        self.seconds += self.clock() - started
        return out


def attention_share(infer: Callable[[], None], device: torch.device, calls: int = 3) -> float:
    """Share of fused attention in the time of `infer`, median over calls."""
    found = []
    for _ in range(calls):
        with AttentionTime(device) as attention:
            started = attention.clock()
            infer()
            found.append(attention.seconds / (attention.clock() - started))
    return float(np.median(found))


def views_seconds(image_size: int, channels: int, batch: int, device: torch.device, calls: int = 3) -> float:
    """Seconds for drawing and making both views of a batch, which is the same for all methods; median over calls."""
    views = Views(image_size, channels=channels)
    random = keyed_generator("images to make views of")
    images = torch.randint(256, (batch, image_size, image_size), generator=random, dtype=torch.uint8).to(device)
    clock: Clock = time.perf_counter if device.type != "cuda" else _synchronised
    found = []
    for call in range(calls + 1):
        started = clock()
        views.apply(images, views.draw(keyed_generator("views", 0, call), batch))
        found.append(clock() - started)
    return float(np.median(found[1:]))  # the first call fills the bank of noise


def _synchronised() -> float:
    with suppress(RuntimeError):
        torch.cuda.synchronize()
    return time.perf_counter()
