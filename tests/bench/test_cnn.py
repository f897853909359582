"""A ConvNeXt through the whole harness: pre-training, diagnostics, evaluation, fine-tuning, cost, report."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from bench.measure.table import Measurement, measure
from bench.records.record import Record
from bench.specs.run_spec import EncoderSpec, MeasureSpec, TrainSpec
from methods.names import parse_methods
from tests.bench import small

CONVNEXT = "convnext_d64_l6_patch8"


def test_a_grid_on_a_convnext(world: small.World) -> None:
    methods = "dense,sparsecontrast,oracle,random,moco/patchdropout,untrained,supervised"
    done = world.run("--methods", methods, "--encoder", CONVNEXT, "--probes", "linear,finetune", "--labels", "100")
    assert done.exit_code == 0, done.output
    runs = world.runs()
    assert len(runs) == 7
    records = {name: Record.model_validate_json((path / "record.json").read_bytes()) for name, path in runs.items()}
    for name in ("sparsecontrast-s0", "oracle-s0", "random-s0"):
        found = records[name].learning.selection
        expected = round(16 * (records[name].keep_effective or 0)) / 16
        assert found["kept_inference"] == pytest.approx(expected)
        with np.load(runs[name] / "selection.npz", allow_pickle=False) as saved:
            assert saved["kept"].shape[1:] == (4, 4)
    kept = {}
    for name in ("oracle-s0", "random-s0"):
        with np.load(runs[name] / "lesions.npz", allow_pickle=False) as saved:
            kept[name] = saved["by_area"][saved["images"] > 0].mean()
    assert kept["oracle-s0"] > kept["random-s0"]
    dense, sparse = (records[f"{name}-s0"].macs for name in ("dense", "sparsecontrast"))
    assert sparse.inference_parts["pointwise MLPs"] == dense.inference_parts["pointwise MLPs"] / 2
    assert sparse.inference_parts["depthwise convolutions"] == dense.inference_parts["depthwise convolutions"]
    assert records["sparsecontrast-s0"].memory.saved_bytes_per_image < records["dense-s0"].memory.saved_bytes_per_image
    rows = pd.read_csv(world.reports / "results.csv")
    assert set(rows["probe"]) == {"linear", "finetune"}
    assert set(rows["encoder"]) == {CONVNEXT}
    figures = {path.stem.split("-")[-1] for path in (world.reports / "figures").iterdir()}
    assert "selection" in figures
    states = json.loads((runs["dense-s0"] / "record.json").read_bytes())
    assert states["train_execution"] == "gathered"


@pytest.mark.parametrize("encoder", [CONVNEXT, "resnet18"])
def test_what_a_cnn_costs_is_measured(encoder: str) -> None:
    methods = parse_methods("dense,sparsecontrast" if encoder == CONVNEXT else "moco/dense")
    spec = EncoderSpec(name=encoder, image_size=32)
    table = measure(Measurement(methods, spec, TrainSpec(), MeasureSpec(rounds=1, batch=4), threads=1))
    assert [row.method for row in table.rows][-1] == "simclr/dense#2"
    assert all(row.infer_ms > 0 and row.train_ms > 0 for row in table.rows)
    dense, other = table.rows[0], table.rows[1]
    assert (other.infer_gmacs < dense.infer_gmacs) == (encoder == CONVNEXT)
