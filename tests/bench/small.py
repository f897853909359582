"""A world small enough to run in a test: a phantom of 60 patients at 32 px, four steps of the smallest encoder."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from bench.analysis.outputs import TITLE
from bench.records.record import Draw, Evaluation, Macs, Record, Subset
from bench.records.store import Store
from bench.specs.grid_spec import GridSpec, load_grid
from bench.specs.run_spec import RunSpec

if TYPE_CHECKING:
    from bench.experiment import Experiment

TOML = """
seeds = [0]
baselines = []
data.options = { patients = 60, images_per_patient = 2.0 }
encoder = { name = "vit_stem_d64_l4_patch8", image_size = 32 }
train = { epochs = 1, batch = 16 }
evaluation = { labels = [50, 100], probes = ["linear"], draws = 2, resamples = 50, c = [0.01] }
finetune = { epochs = 1, min_steps = 2, max_steps = 3, batch = 16 }
"""


class World:
    """A folder with results and reports, and `bench.run` in this process on them."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        folder.mkdir(exist_ok=True)
        self.results, self.reports = folder / "results", folder / "reports"
        self.toml = folder / "small.toml"
        self.toml.write_text(TOML, encoding="utf-8")

    def run(self, *options: str, measure: bool = False) -> Result:
        from bench.run import app

        where = ["--results", str(self.results), "--reports", str(self.reports), "--cache", str(self.cache)]
        fixed = ["--preset", "smoke", "--spec", str(self.toml), *([] if measure else ["--no-measure"])]
        launcher = [] if "--launcher" in options else ["--launcher", "inline"]
        return CliRunner().invoke(app, [*fixed, *where, *launcher, *options])

    def runs(self) -> dict[str, Path]:
        """Folders of runs by `<method without its objective>-s<seed>`, the objective left in for others than SimCLR."""
        found = {}
        for path in sorted(self.results.glob("*/record.json")):
            head, _, tail = path.parent.name.partition("-phantom-")
            found[f"{head.removeprefix('simclr-')}-{tail.split('-')[-2]}"] = path.parent
        return found


def grid(folder: Path, **changes: Any) -> GridSpec:
    path = folder / "small.toml"
    path.write_text(TOML, encoding="utf-8")
    return load_grid("smoke", path, {key.replace("__", "."): value for key, value in changes.items()})


def run_spec(folder: Path, method: str, **changes: Any) -> RunSpec:
    """The spec of one run of the small world."""
    (run,) = grid(folder, methods=method, **changes).runs()
    return run


def experiment(run: RunSpec, grid: GridSpec, store: Store, cache: Path, **changes: Any) -> Experiment:
    """A run of a grid, to be made on one thread."""
    from bench.experiment import Experiment
    from bench.training.checkpoint import Checkpoints

    values = {"threads": 1, "progress": lambda state: None, "checkpoints": Checkpoints(store.training(run.run_id))}
    return Experiment(run, grid.evaluation, grid.finetune, store, cache, **{**values, **changes})


def light_report(results: Path, reports: Path, planned: int = 0) -> Any:
    """Stands for `write_report` in tests that are not about it: it writes which runs there are."""
    names = sorted(path.parent.name for path in results.glob("*/record.json"))
    reports.mkdir(parents=True, exist_ok=True)
    (reports / "report.md").write_text("\n".join([f"# {TITLE}", *names]), encoding="utf-8")
    return SimpleNamespace(path=reports / "report.md", groups=())


def make_light(patch: pytest.MonkeyPatch) -> None:
    """No MACs counted and no report drawn."""
    macs = Macs(inference=1.0, train_step=3.0, whole_run=6.0, inference_parts={}, counters={})
    patch.setattr("bench.experiment.macs_of", lambda *args, **kwargs: macs)
    patch.setattr("bench.analysis.page.write_report", light_report)


_counted: dict[Any, Macs] = {}


def count_once(patch: pytest.MonkeyPatch) -> None:
    """Count the MACs of a method at a scale once in this process, for the runs and the verifications of many tests."""
    from bench.measure.run_cost import macs_of

    def known(objective: Any, spec: RunSpec, run_data: Any, steps: int) -> Macs:
        if objective.encoder.strategy.adaptive:  # then they depend on images and weights
            return macs_of(objective, spec, run_data, steps)
        key = (spec.method, spec.code, spec.encoder, spec.train, steps)
        if key not in _counted:
            _counted[key] = macs_of(objective, spec, run_data, steps)
        return _counted[key]

    patch.setattr("bench.experiment.macs_of", known)
    patch.setattr("bench.verification.recount.macs_of", known)


def record(run_id: str = "a-run", **changes: Any) -> Record:
    values: dict[str, Any] = {
        "science_version": 1,
        "run_id": run_id,
        "status": "done",
        "method": "simclr/dense",
        "objective": "simclr",
        "strategy": "dense",
        "spec": {},
        "environment": {},
        "started": "2024-01-01T00:00:00+00:00",
        "finished": "2024-01-01T00:00:01+00:00",
    }
    return Record(**{**values, **changes})


def unsealed(stored: Record) -> Record:
    """A record as it was before the store sealed it."""
    return stored.model_copy(update={"digest": "", "files": {}})


def evaluation(
    run_id: str, settings: str, probe: str = "linear", labels: float = 10.0, value: float = 0.5
) -> Evaluation:
    subset = Subset(hash="h", patients=1, images=1, positives={})
    return Evaluation(
        run_id=run_id,
        probe=probe,
        labels=labels,
        inference="dense",
        split="test",
        macro_auroc=value,
        macro_auprc=0.5,
        interval=(0.4, 0.6),
        per_label={},
        undefined={},
        draws=(Draw(draw=0, subset=subset, macro_auroc=0.5, macro_auprc=0.5, chosen={}),),
        draw_std=0.0,
        subgroups={},
        n_patients=1,
        n_images=1,
        settings=settings,
    )


def make_folder(root: Path, patients: int = 40, image: int = 0) -> Path:
    """A data set on disk: a bright square where the finding is."""
    (root / "images").mkdir(parents=True)
    generator = np.random.default_rng(image)
    with open(root / "manifest.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "patient_id", "opacity"])
        for i in range(patients):
            pixels = generator.integers(40, 120, (32, 32), dtype=np.uint8)
            pixels[10:20, 10:20] += 100 * (i % 2)
            Image.fromarray(pixels).save(root / "images" / f"{i}.png")
            table.writerow([f"images/{i}.png", f"p{i}", i % 2])
    return root
