"""Time of a training step, or of inference, by kind of operator, which shows what a method saves of the work of dense.

    python -m peers.operators --encoder convnext_tiny --image-size 224 --channels 3 --batch 8

torch's profiler observes some steps of each method in turn. The times of operators, without those of the operators that
they call, are summed by kind, forward and backward together. For each kind, the minimum over the steps counts, because
other processes can only add to it. Profiling slows a step down (the time without it is printed too), so only shares,
and ratios between methods, are meaningful. Run it by hand. It writes peers/results/operators-<encoder>-<size>.json
(with `--inference` operators-inference-..., with a batch other than 8 ...-batch2).
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.profiler import ProfilerActivity, profile

from bench.measure.inputs import random_views
from bench.measure.timed_method import TimedMethod
from bench.records.environment import cores, environment, raise_allocator_thresholds
from bench.specs.run_spec import EncoderSpec, TrainSpec
from methods.names import parse_methods
from peers.outcome import RESULTS

BATCH = 8
KINDS = {  # patterns of operators; the first match counts. Convolutions differ in the shapes of their weights
    "linear layers": r"addmm|mm|bmm|baddbmm|matmul|linear",
    "attention": r".*scaled_dot_product.*",
    "norms": r".*(layer|batch|group)_norm.*",
    "activations": r"gelu.*|relu.*|threshold_backward|clamp_min.*",
    "gathering and scattering": r"index.*|gather.*|scatter.*|take.*|embedding.*|sort|argsort|topk",
    "optimizer": r"_foreach.*|_fused.*|Optimizer.*|zero_",
}
DEPTHWISE, DENSE_CONVOLUTIONS, REST = "depthwise convolutions", "other convolutions", "copies, sums and the rest"


def kind_of(operator: str, shapes: list[Any]) -> str:
    """Kind of an operator, by its name and, for a convolution, by the shapes of its inputs."""
    name = operator.removeprefix("aten::").split("#")[0]
    if "conv" in name.lower():
        x, *weights = [shape for shape in shapes if len(shape) == 4][("backward" in name) :] or [[]]
        return DEPTHWISE if weights and weights[0][1] == 1 < x[1] else DENSE_CONVOLUTIONS
    return next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name)), REST)


def watched(step: Callable[[], None]) -> dict[str, float]:
    """Milliseconds of a profiled step, by kind of operator."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        step()
    found: dict[str, float] = {}
    for event in seen.key_averages(group_by_input_shape=True):
        kind = kind_of(event.key, list(event.input_shapes))
        found[kind] = found.get(kind, 0.0) + event.self_cpu_time_total / 1e3
    return found


def main() -> None:
    options = _options()
    raise_allocator_thresholds()
    torch.set_num_threads(options.threads)
    encoder = EncoderSpec(name=options.encoder, image_size=options.image_size, channels=options.channels)
    fabric, views = Fabric(accelerator="cpu", devices=1), random_views(encoder, options.batch)
    steps = {}
    for method in parse_methods(options.methods):
        timed = TimedMethod(method.name, method, encoder, TrainSpec(), views, fabric)
        steps[method.name] = timed.inference() if options.inference else timed.train_steps()[timed.points[0]]
        steps[method.name]()
    plain: dict[str, list[float]] = {name: [] for name in steps}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            plain[name].append(1e3 * (time.perf_counter() - started))
            found[name].append(watched(step))
    rows = []
    for name, rounds in found.items():
        kinds = sorted({kind for one in rounds for kind in one})
        ms = {kind: min(one.get(kind, 0.0) for one in rounds) / options.batch for kind in kinds}
        rows.append({"method": name, "step_ms": min(plain[name]) / options.batch, "ms": ms})
        print(f"\n{name}: {rows[-1]['step_ms']:.1f} ms per image, {sum(ms.values()):.1f} under the profiler")
        for kind, value in sorted(ms.items(), key=lambda item: -item[1]):
            print(f"  {kind:28} {value:8.2f} ms")
    content = {
        "name": "-".join(
            [
                *("operators", *(["inference"] if options.inference else []), encoder.name, str(encoder.image_size)),
                *([] if options.batch == BATCH else [f"batch{options.batch}"]),
            ]
        ),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(options.threads),
        "batch": options.batch,
        "rounds": options.rounds,
        "rows": rows,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{content['name']}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default="simclr/dense,simclr/sparsecontrast")
    parser.add_argument("--encoder", default="convnext_tiny")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--inference", action="store_true", help="profile inference instead of a training step")
    return parser.parse_args()


if __name__ == "__main__":
    main()
