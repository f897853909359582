"""A plan says how much data there is and what that can't carry, before anything is trained."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.grid.amounts import amounts_of, draws_of
from bench.records.record import DataRecord
from bench.specs.grid_spec import load_grid
from bench.statistics.small_data import Training
from bench.training.data import RunData, data_record
from datasets import load
from datasets.dataset import Dataset
from datasets.splits import fraction, make_splits
from tests.bench import small

IMAGES = 60  # of patients with one image each; a patient more has 12 positive ones


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 61 labelled patients: A in half of them, B in four. One test patient has 12 of the images with A."""
    root = tmp_path_factory.mktemp("tiny")
    rows = [(f"{i}.png", f"p{i}", "train" if i < 40 else "val" if i < 50 else "test") for i in range(IMAGES)]
    labels = [(i % 2, int(i in (0, 10, 45, 55))) for i in range(IMAGES)]
    rows += [(f"many{i}.png", "many", "test") for i in range(12)]
    labels += [(1, 0)] * 12
    rows += [("bare.png", "bare", "train"), ("bare-test.png", "many", "test")]
    with open(root / "manifest.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "patient_id", "split", "A", "B"])
        table.writerows([*row, *label] for row, label in zip(rows, [*labels, ("", ""), ("", "")], strict=True))
    for name, *_ in rows:
        Image.fromarray(np.zeros((32, 32), dtype=np.uint8)).save(root / name)
    return root


@pytest.fixture(scope="module")
def data(root: Path) -> Dataset:
    return load("folder", 32, root)


def test_amounts_are_of_the_draw_with_the_fewest(data: Dataset, tmp_path: Path) -> None:
    """Of each finding: A in every second image, B in images 0 and 10."""
    grid, splits = small.grid(tmp_path), make_splits(data)
    found = amounts_of(grid, data, splits, {20: [np.array([0, 1, 3, 5]), np.array([1, 2, 4]), np.array([0, 10, 7, 9])]})
    assert found.training[20] == Training(3, {"A": 1, "B": 0})


def test_amounts_of_a_grid(data: Dataset, tmp_path: Path) -> None:
    grid = small.grid(tmp_path, evaluation__labels=[20, 100], evaluation__draws=3)
    splits = make_splits(data)
    drawn = draws_of(grid, data, splits)
    assert [one.tolist() for one in drawn[20]] == [fraction(data, splits, 20, draw).tolist() for draw in range(3)]
    found = amounts_of(grid, data, splits, drawn)
    assert found.steps == 41 // 16  # one epoch
    assert found.training[20].patients == 8
    assert (found.training[100].patients, found.training[100].positives) == (40, {"A": 20, "B": 2})
    a, b = found.scored["A"], found.scored["B"]
    assert (a.without, a.having, a.positives, a.largest) == (5, 6, 17, 12)
    assert (b.without, b.having, b.positives, b.largest) == (10, 1, 1, 1)
    assert found.part == "test"
    grid = small.grid(tmp_path, evaluation__split="val", methods="untrained")
    found = amounts_of(grid, data, splits, draws_of(grid, data, splits))
    assert (found.part, found.steps, found.scored["A"].having) == ("validation", 0, 5)


SAID = (
    "Data: folder, 41 images of 41 patients for pre-training, 10 images of 10 patients for validation, 22 images of 11 "
    "patients for test; 2 pre-training steps.",
    "Pre-training takes 2 steps: fewer than 100 hardly train a network, which may still be on the plateau of its loss.",
    "Fewer than 5 positive training images in some draw: 1 of 2 findings at 100 % of the labels (40 patients; fewest: "
    "B, 2).",
    "Fewer than 5 test patients with, or without, a finding: B (1 with).",
    "Fewer than 10 test patients with, or without, a finding: A (5 without).",
    "One patient holds more than half of the positive test images: A (12 of 17).",
)


@pytest.mark.parametrize("dry", [True, False])
def test_the_plan_says_what_little_data_can_carry(
    world: small.World, root: Path, monkeypatch: pytest.MonkeyPatch, light: None, dry: bool
) -> None:
    monkeypatch.setattr("bench.launch.launch.work", lambda sweep: None)
    options = ["--data", "folder", "--data-root", str(root), "--set", "data.options={}", "--methods", "dense"]
    result = world.run(*options, "--labels", "100", *(["--dry-run"] if dry else []))
    text = " ".join(result.output.split())
    for sentence in SAID:
        assert sentence in text
    assert ("1 image without any label is used in pre-training only." in text) == dry
    assert ("1 image without any label, of validation or test patients, is not used at all." in text) == dry


def test_a_record_has_the_notes_on_what_is_used(data: Dataset) -> None:
    run_data = RunData(data, make_splits(data), views=None, fabric=None, seed=0)  # type: ignore[arg-type]
    found = data_record(run_data)
    assert isinstance(found, DataRecord)
    assert found.notes[-2:] == (
        "1 image without any label is used in pre-training only.",
        "1 image without any label, of validation or test patients, is not used at all.",
    )


@pytest.mark.skipif(not os.environ.get("BENCH_DATA"), reason="BENCH_DATA names no folder of real images")
def test_real_images_are_counted_as_they_are_used(world: small.World, cache: Path) -> None:
    root = Path(os.environ["BENCH_DATA"]) / "nih"
    with open(root / "manifest.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    result = world.run(
        *("--dry-run", "--data", "folder", "--data-root", str(root), "--set", "data.options={}", "--methods", "dense")
    )
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    used = sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) images of [\d,]+ patients for", text))
    found = re.search(r"(\d+) images without any label, of validation or test patients, are not used at all", text)
    assert found is not None
    assert used + int(found[1]) == len(rows)
    data = load("folder", 32, root, cache)
    grid = load_grid("smoke", world.toml, {"methods": "dense"})
    splits = make_splits(data, grid.data.split_seed, grid.data.val, grid.data.test)
    bare = np.isnan(data.labels[splits.train]).all(axis=1).sum()
    assert f"{bare} images without any label are used in pre-training only." in text
