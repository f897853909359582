"""The command `bench.cost`: what it prints and writes, and how it says what is wrong."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bench.cost import _affordable, _geometry, app
from bench.measure import counters, headroom, table
from bench.records.record import CostRow, CostTable
from bench.specs.run_spec import EncoderSpec, MeasureSpec


def cost(folder: Path, *options: str) -> Result:
    where = ["--preset", "smoke", "--results", str(folder / "results"), "--reports", str(folder / "reports")]
    return CliRunner().invoke(app, [*where, *options])


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for every method takes seconds, and has tests of its own."""
    monkeypatch.setattr("bench.measure.table.peak_of_training", lambda *args: (321.0, "process"))


def test_measures_prints_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--methods", "sparsecontrast[gate=key_bias]", "--rounds", "2", "--batch", "4", "--threads", "1")
    done = cost(tmp_path, *options)
    assert done.exit_code == 0, done.output
    assert "simclr/sparsecontrast[gate=key_bias]" in done.output
    assert "simclr/dense#2" in done.output
    assert "dense against itself" in done.output
    assert "Peak MiB: resident" in " ".join(done.output.split())
    assert "Where a step's time goes" in done.output
    assert (tmp_path / "reports" / "figures" / "cost-parts-vit_stem_d64_l4_patch8-32.png").stat().st_size > 5000
    assert not list((tmp_path / "reports" / "figures").glob("cost-scaling*"))
    (path,) = (tmp_path / "results" / "cost").glob("*.json")
    measured = CostTable.model_validate_json(path.read_bytes())
    assert [row.method for row in measured.rows] == [
        "simclr/dense",
        "simclr/sparsecontrast[gate=key_bias]",
        "simclr/dense#2",
    ]
    assert {(row.rounds, row.batch, row.threads, row.image_size) for row in measured.rows} == {(2, 4, 1, 32)}
    with open(tmp_path / "reports" / "cost.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [row.method for row in measured.rows]
    assert set(CostRow.model_fields) - {"ramps"} <= set(rows[0])  # ramps have columns of their own
    assert float(rows[1]["train_ms"]) == measured.rows[1].train_ms
    assert float(rows[1]["peak_mib"]) == 321
    ratio = measured.rows[0].train_gmacs / measured.rows[1].train_gmacs
    assert float(rows[1]["train_time_over_macs"]) == pytest.approx(measured.rows[1].train_speedup / ratio)
    monkeypatch.setattr(table, "measure", lambda *_, **__: measured)
    assert cost(tmp_path, *options).exit_code == 0  # measured again, it goes to the same place
    assert len(list((tmp_path / "results" / "cost").iterdir())) == 1


def test_sizes_up_to_which_training_is_measured(tmp_path: Path) -> None:
    where = ("--methods", "sparsecontrast", "--image-size", "32,64", "--train-up-to", "32")
    done = cost(tmp_path, *where, "--rounds", "2", "--batch", "2", "--threads", "1")
    assert done.exit_code == 0, done.output
    assert "Training was left out at this size" in done.output
    tables = [CostTable.model_validate_json(p.read_bytes()) for p in (tmp_path / "results" / "cost").glob("*.json")]
    trained = {table.rows[0].image_size: table.rows[0].train_ms for table in tables}
    assert trained[32] > 0
    assert trained[64] is None
    assert (tmp_path / "reports" / "figures" / "cost-scaling-vit_stem_d64_l4_patch8.png").stat().st_size > 5000
    with open(tmp_path / "reports" / "cost.csv", newline="") as file:
        blank = {row["image_size"]: row["train_ms"] == "" for row in csv.DictReader(file)}
    assert blank == {"32": False, "64": True}


def test_a_step_that_memory_does_not_hold_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--methods", "random,fixed", "--rounds", "2", "--batch", "2", "--threads", "1")
    monkeypatch.setattr(headroom, "too_large", lambda *_: {"simclr/fixed": "simclr/fixed at 32 px: takes too much"})
    done = cost(tmp_path, *options)
    assert done.exit_code == 0, done.output
    assert "Training is left out: simclr/fixed at 32 px: takes too much." in done.output
    assert "Training left out: simclr/fixed at 32 px: takes too much." in done.output
    (path,) = (tmp_path / "results" / "cost").glob("*.json")
    rows = {row.method: row for row in CostTable.model_validate_json(path.read_bytes()).rows}
    steps = {name: (row.train_ms, row.run_speedup, row.saved_mib, row.peak_mib) for name, row in rows.items()}
    assert steps.pop("simclr/fixed") == (None,) * 4
    assert all(value is not None for row in steps.values() for value in row)
    assert rows["simclr/fixed"].infer_ms > 0
    monkeypatch.undo()
    monkeypatch.setattr(headroom, "free_bytes", lambda device: 1e6)
    done = cost(tmp_path / "none", *options)
    assert done.exit_code == 0, done.output
    assert done.output.count("Training is left out: simclr/") == 3
    assert "Training was left out at this size." in done.output


@pytest.mark.parametrize(
    ("name", "size", "batch", "rounds", "expected"),
    [
        ("vit_small_patch16_224", 224, None, None, (8, 10)),
        ("vit_small_patch16_224", 448, None, None, (2, 10)),
        ("vit_small_patch16_224", 1024, None, 5, (2, 5)),
        ("vit_small_patch16_224", 224, 32, None, (32, 10)),
        ("vit_stem_d64_l4_patch8", 64, None, None, (32, 15)),
    ],
)
def test_large_encoders_get_fewer_images_and_rounds_unless_asked(
    name: str, size: int, batch: int | None, rounds: int | None, expected: tuple[int, int]
) -> None:
    given = MeasureSpec(batch=batch or 32, rounds=rounds or 15)
    spec = _affordable(given, _geometry(EncoderSpec(name=name, image_size=size)), batch, rounds)
    assert (spec.batch, spec.rounds) == expected


def test_macs_only(tmp_path: Path) -> None:
    done = cost(tmp_path, "--methods", "dense,fixed", "--keep", "0.3,0.6", "--image-size", "32,64", "--macs-only")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "results").exists()
    sizes = {}
    for size in (32, 64):
        with open(tmp_path / "reports" / f"macs-vit_stem_d64_l4_patch8-{size}.csv", newline="") as file:
            sizes[size] = list(csv.DictReader(file))
    names = ["simclr/dense", "simclr/fixed[keep=0.3]", "simclr/fixed[keep=0.6]"]
    assert [row["method"] for row in sizes[32]] == names
    dense, low, high = ({k: float(v) for k, v in row.items() if k.endswith("ratio")} for row in sizes[64])
    assert dense == {"infer_ratio": 1.0, "train_ratio": 1.0, "run_ratio": 1.0}
    assert low["train_ratio"] > high["train_ratio"] > 1
    assert 1 < low["run_ratio"] < low["train_ratio"]  # the ramp costs
    assert float(sizes[64][0]["infer_gmacs"]) > 4 * float(sizes[32][0]["infer_gmacs"])


def test_another_encoder_comes_at_its_own_size(tmp_path: Path) -> None:
    done = cost(tmp_path, "--methods", "dense", "--encoder", "vit_tiny_patch16_224", "--channels", "3", "--macs-only")
    assert done.exit_code == 0, done.output
    with open(tmp_path / "reports" / "macs-vit_tiny_patch16_224-224.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["infer_gmacs"]) == pytest.approx(1.254, rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "sparsecontras"), "did you mean simclr/sparsecontrast"),
        (("--preset", "smok"), "did you mean smoke"),
        (("--keep", "0.5,half"), "--keep '0.5,half' is not a comma-separated list of numbers"),
        (("--keep", "1.5"), "keep"),
        (("--image-size", "big"), "--image-size 'big' is not a comma-separated list of whole numbers"),
        (("--image-size", "50"), "is not a multiple of the patch size of 'vit_stem_d64_l4_patch8', 8 pixels"),
        (
            ("--image-size", "32,50"),
            "is not a multiple of the patch size of 'vit_stem_d64_l4_patch8', 8 pixels",
        ),  # before the first is measured
        (("--encoder", "resnetv2_50", "--methods", "dense"), "is not a plain ResNet from timm"),
        (("--encoder", "convnext_tiny"), "'dynamicvit' is not defined on encoder 'convnext_tiny', a CNN"),
        (("--encoder", "resnet50", "--methods", "fixed"), "'fixed' is not defined on encoder 'resnet50', a CNN"),
        (("--channels", "2"), "channels"),
        (("--threads", "0"), "--threads is 0"),
        (("--rounds", "0"), "measure.rounds"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    done = cost(tmp_path, *options)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("option", ["--results", "--reports"])
def test_a_folder_that_cannot_be_made_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(table, "measure", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    done = cost(tmp_path, "--methods", "dense", option, str(tmp_path / "file" / "out"))
    assert done.exit_code == 2
    assert " ".join(done.output.split()).endswith(
        f"can't be made (Not a directory): give another folder with {option}."
    )


@pytest.mark.parametrize("only", [(), ("--macs-only",)])
def test_counters_that_disagree_refuse_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: tuple[str, ...]
) -> None:
    monkeypatch.setattr(counters, "_attention_macs", counters._nothing)
    done = cost(tmp_path, "--methods", "dense", *only)
    assert done.exit_code == 1
    assert "refused" in done.output
    assert "By part: patch embedding" in done.output
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.csv"))
