"""`python -m bench.tune`: tune every method with the same small budget: a few learning rates, one seed, validation
data.

Writes `bench/presets/<preset>.tuning.json`, from which the preset takes each method's learning rate and the report the
description of the tuning. The test split is never used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.messages import exit_on
from bench.specs.options import (
    Cache,
    Methods,
    Options,
    Preset,
    Results,
    changes_of,
    compared,
    default_cache,
    examples,
    numbers,
    takes,
)

if TYPE_CHECKING:
    from bench.specs.grid_spec import GridSpec

app = typer.Typer(add_completion=False)
LABELS = 10.0  # per cent at which learning rates are compared
SEED = 1000  # results are reported for other seeds


EXAMPLES = (
    "python -m bench.tune --preset quick",
    "python -m bench.tune --preset quick --methods moco/dense --rates 2e-3,4e-3",
)


@dataclass(frozen=True, kw_only=True)
class TuneOptions(Options):
    """The command line of `bench.tune`."""

    methods: Methods = "all"
    rates: Annotated[str, compared(help="Learning rates to try, the same for every method.")] = (
        "1e-3,2e-3,4e-3,8e-3,1.6e-2"
    )
    preset: Preset = "quick"
    results: Results = Path("results/tuning")
    cache: Cache = None


@app.command(epilog=examples(*EXAMPLES))
@takes(TuneOptions)
def main(options: TuneOptions) -> None:
    """Try a few learning rates for every method on validation data and write the best ones to the preset's tuning file.
    Earlier results of other methods are kept."""
    from rich.console import Console

    from bench.grid.watch import Watch
    from bench.launch.launch import LaunchOptions, workers
    from bench.launch.worker import Sweep
    from bench.records.environment import cores
    from bench.records.store import as_json, write_atomically
    from bench.specs.grid_spec import PRESETS, load_grid

    with exit_on(ValueError, OSError, code=2):
        tried = list(numbers("--rates", options.rates, "1e-3,2e-3"))
        if not all(rate > 0 for rate in tried):
            raise ValueError(f"--rates '{options.rates}': learning rates must be above 0.")
        changes = {**changes_of(options), "baselines": [], "seeds": [SEED], "tuned": {}}
        grid = load_grid(options.preset, changes=changes)
        planned = grid.runs()
    runs = tuple(
        run.model_copy(update={"train": run.train.model_copy(update={"lr": rate})}) for run in planned for rate in tried
    )
    evaluation = grid.evaluation.model_copy(update={"labels": (LABELS,), "probes": ("linear",), "split": "val"})
    count = min(cores(), len(runs))
    cache = options.cache or default_cache()
    sweep = Sweep(runs, evaluation, grid.finetune, options.results, cache, max(1, cores() // count))
    try:
        with workers(sweep, LaunchOptions("local", count)) as handles, Watch(sweep, Console(soft_wrap=True)):
            for handle in handles:
                handle.wait()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    path = PRESETS / f"{options.preset}.tuning.json"
    write_atomically(path, as_json(_summary(grid, sweep, tried, path)))
    typer.echo(f"Written to {path}")


def _summary(grid: GridSpec, sweep: Any, tried: list[float], path: Path) -> dict[str, Any]:
    """What was tried, what came out on validation data, what was chosen; earlier results of other methods are kept."""
    from bench.records.store import Store
    from bench.specs.run_spec import EvaluationKey
    from methods import inference_modes

    store, rows = Store(sweep.results), []
    for run in sweep.runs:
        name = EvaluationKey("linear", LABELS, inference_modes(run.parsed.strategy)[0]).name
        found = store.evaluation(run.run_id, name)
        value = None if found is None else found.macro_auroc
        rows.append({"method": run.method, "lr": run.train.lr, "val_macro_auroc": value})
    if path.exists():
        ours = {row["method"] for row in rows}
        rows += [row for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if row["method"] not in ours]
    scored = [row for row in rows if row["val_macro_auroc"] is not None]
    chosen = {
        method: max((row for row in scored if row["method"] == method), key=lambda row: row["val_macro_auroc"])["lr"]
        for method in dict.fromkeys(row["method"] for row in scored)
    }
    shown = ", ".join(f"{rate:g}" for rate in tried)
    edge = [method for method, rate in chosen.items() if rate in (min(tried), max(tried))]
    return {
        "preset": grid.preset,
        "learning_rates": tried,
        "rows": rows,
        "chosen": chosen,
        "sentence": f"Every method had the same tuning budget: learning rates {shown}, one run each with seed {SEED}, "
        f"compared by the linear probe's macro AUROC at {LABELS:g} % of the labels "
        f"on the validation split of '{grid.data.name}'. One seed cannot tell close rates apart. "
        f"Best at an end of that range, so perhaps better outside it: {', '.join(edge) or 'none'}.",
    }


if __name__ == "__main__":
    app()
