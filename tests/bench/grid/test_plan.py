"""Mistakes are found before training, each said in one message with exit code 2; a dry run says what would be done."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from bench.grid.options import seeds as read_seeds
from bench.records.store import as_json, write_atomically
from bench.specs.grid_spec import load_grid
from datasets import load
from datasets.splits import fraction, make_splits
from tests.bench import small


def told(world: small.World, *options: str) -> str:
    """The one message of a refused command."""
    result = world.run(*options)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    assert not list(world.results.glob("*/record.json"))
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert "runs," not in result.stdout
    return lines[0]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("3", (0, 1, 2)),
        ("1", (0,)),
        ("0,4,7", (0, 4, 7)),
        ("3,", (3,)),
        ("0,", (0,)),
        (" 5 , 5, 2", (5, 2)),
        ("10,", (10,)),
    ],
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert read_seeds("--seeds", text) == seeds


@pytest.mark.parametrize("text", ["", ",", "a", "1,b", "-1", "1.5", "0-3", "1 2"])
def test_seeds_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="3 means 0,1,2; 0,4,7 means those; '3,' means seed 3 alone"):
        read_seeds("--seeds", text)


def test_no_seed_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="--seeds 0 asks for no seed: .*--seeds 1"):
        read_seeds("--seeds", "0")


MISTAKES = {
    "methods": (["--methods", "sparsecontrats"], r"unknown method 'sparsecontrats': did you mean .*sparsecontrast"),
    "no method": (["--methods", ","], r"--methods is empty"),
    "method option": (["--methods", "fixed[kep=0.5]"], r"simclr/fixed has no option 'kep': did you mean keep\?"),
    "labels": (
        ["--labels", "1,ten"],
        r"--labels '1,ten' is not a comma-separated list of numbers: write e.g. --labels 1,10,100",
    ),
    "labels empty": (["--labels", ","], r"--labels ',' is not a comma-separated list"),
    "labels 0": (["--labels", "0,10"], r"label fractions \(--labels\) are per cent, above 0 .*, and 0 is not"),
    "labels 200": (["--labels", "200"], r"and 200 is not"),
    "keep": (["--keep", "half"], r"--keep 'half' is not a comma-separated list of numbers: write e.g. --keep 0.5,0.7"),
    "keep 2": (["--keep", "2"], r"keep.0: .*less than or equal to 1"),
    "keep 0": (
        ["--methods", "fixed", "--keep", "0"],
        r"option 'keep' of simclr/fixed is 0.0: it must be at least 0.02",
    ),
    "seeds": (["--seeds", "x"], r"--seeds 'x' can't be read"),
    "seeds 0": (["--seeds", "0"], r"--seeds 0 asks for no seed"),
    "no seed": (["--set", "seeds=[]"], r"the grid is empty: name at least one method and one seed"),
    "probes": (["--probes", "linear,svm"], r"evaluation.probes.1: .*'linear', 'knn' or 'finetune'"),
    "preset": (["--preset", "qick"], r"unknown preset 'qick': did you mean quick\?"),
    "set": (["--set", "train.epohs=3"], r"unknown key 'train.epohs': did you mean epochs\?"),
    "set without value": (["--set", "train.epochs"], r"write key=value"),
    "set type": (["--set", "train.epochs=three"], r"train.epochs: .*\(given: 'three'\)"),
    "launcher": (["--launcher", "slrum"], r"unknown launcher 'slrum': "),
    "encoder": (["--encoder", "swin_tiny_patch4_window7_224"], r"encoder '.*' belongs to none of the families"),
    "encoder unknown": (["--encoder", "vit_smal"], r"unknown encoder 'vit_smal': use a plain ViT, ConvNeXt or ResNet"),
    "tokens on a CNN": (
        ["--methods", "dense,dynamicvit", "--encoder", "convnext_d64_l6_patch8"],
        r"^Error: strategy 'dynamicvit' is not defined on encoder 'convnext_d64_l6_patch8', a CNN: use only --meth",
    ),
    "patches on a ResNet": (
        ["--methods", "moco/fixed", "--encoder", "resnet18"],
        r"^Error: strategy 'fixed' is not defined on encoder 'resnet18', a CNN: use --methods dense with it, ",
    ),
    "keys on a CNN": (
        ["--methods", "sparsecontrast[gate=key_bias]", "--encoder", "convnext_d64_l6_patch8"],
        r"^Error: SparseContrast's gate=key_bias is not defined on a CNN, which has neither keys nor tokens",
    ),
    "image size": (["--image-size", "36"], r"image size 36 is not a multiple of the patch size of .*, 8 pixels"),
    "data": (["--data", "nihh"], r"There is no data set 'nihh'; choose one of phantom"),
    "data option": (["--set", "data.options.size=3"], r"Data set 'phantom' has no option 'size'"),
    "data option value": (["--set", "data.options.patients=few"], r"phantom: patients is 'few'; give a whole number"),
    "root of what has none": (["--data-root", "/"], r"'phantom' is generated and reads no folder: name the data"),
    "workers": (["--launcher", "inline", "--workers", "2"], r"--workers is for --launcher local, and this is --launc"),
    "no root": (["--data", "folder"], r"'folder' is read from a folder; give its path with --data-root"),
    "batch": (["--set", "train.batch=999"], r"66 training images do not fill a batch of 999: use --set train.batch=N"),
    "attention": (["--set", "train.attention=xformers"], r"xformers"),
    "splits": (["--set", "data.val=0.6", "--set", "data.test=0.6"], r"Shares of val 0.6 and test 0.6 are not possible"),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(world: small.World, options: list[str], message: str) -> None:
    said = told(world, "--methods", "dense", *options)
    assert re.search(message, said.replace("options: ", "")), said


def test_a_missing_data_root_names_the_file_looked_for(world: small.World, tmp_path: Path) -> None:
    said = told(world, "--methods", "dense", "--data", "folder", "--data-root", str(tmp_path / "no"))
    assert str(tmp_path / "no") in said
    (tmp_path / "empty").mkdir()
    said = told(world, "--methods", "dense", "--data", "folder", "--data-root", str(tmp_path / "empty"))
    assert str(tmp_path / "empty" / "manifest.csv") in said


def test_the_oracle_needs_masks(world: small.World, tmp_path: Path) -> None:
    root = small.make_folder(tmp_path / "data")
    said = told(world, "--methods", "dense,oracle", "--data", "folder", "--data-root", str(root))
    assert "simclr/oracle needs lesion masks, and data set 'folder' has none: leave it out" in said


@pytest.mark.parametrize("option", ["--results", "--reports"])
def test_a_folder_that_is_a_file(world: small.World, tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("precious")
    said = told(world, "--methods", "dense", option, str(tmp_path / "file"))
    assert f"{tmp_path / 'file'} is a file: {option} takes a folder" in said
    said = told(world, "--methods", "dense", option, str(tmp_path / "file" / "below"))
    assert "give another folder" in said or "takes a folder" in said
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("option", ["--results", "--reports"])
def test_a_folder_that_cannot_be_written_to(
    world: small.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Root may write anywhere, so the system's answer is made up."""
    real = os.access
    monkeypatch.setattr(
        "bench.records.store.os.access", lambda path, mode: "locked" not in str(path) and real(path, mode)
    )
    said = told(world, "--methods", "dense", option, str(tmp_path / "locked"))
    assert f"can't be written to: give another folder with {option}" in said


def test_an_unreadable_record_is_found_before_training(world: small.World) -> None:
    data = load("phantom", 32, cache=world.cache, patients=60, images_per_patient=2.0)
    (run,) = load_grid("smoke", world.toml, {"methods": "dense"}).runs(data.fingerprint)
    write_atomically(world.results / run.run_id / "record.json", as_json({"half": "a record"}))
    result = world.run("--methods", "dense")
    assert result.exit_code == 2
    assert f"{run.run_id}/record.json can't be read as a record" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no plug-in at "),
        ("import nothing_like_this", "can't be run: ModuleNotFoundError"),
        ("x = 1", "defines neither STRATEGIES nor OBJECTIVES"),
    ],
)
def test_plugins_that_are_none(world: small.World, tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "mine.py").write_text(content)
    assert message in told(world, "--plugin", str(tmp_path / "mine.py"))


def test_a_number_of_workers_below_none(world: small.World) -> None:
    result = world.run("--workers", "-1")
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    world: small.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("something was run")

    monkeypatch.setattr("bench.launch.launch.work", refuse)
    monkeypatch.setattr("bench.analysis.page.write_report", refuse)
    monkeypatch.setenv("COLUMNS", "200")
    result = world.run(
        "--dry-run", "--methods", "dense,sparsecontrast", "--seeds", "2", "--labels", "50,100", measure=True
    )
    assert result.exit_code == 0, result.output
    assert not list(world.results.rglob("*"))
    text = " ".join(result.output.split())
    assert "4 runs" in text
    assert result.output.count("to do") == 4
    assert re.search(r"Time: about \d+ minutes with 1 worker\(s\) of 1 thread\(s\)", text)
    assert re.search(r"Disk: about \d+ MiB", text)
    data = load("phantom", 32, cache=world.cache, patients=60, images_per_patient=2.0)
    splits = make_splits(data)
    rows = {"pre-training": splits.train, "validation": splits.val, "test": splits.test}
    rows |= {f"{percent} % (draw 0)": fraction(data, splits, percent, 0) for percent in (50, 100)}
    for name, index in rows.items():
        line = next(line for line in result.output.splitlines() if re.match(rf"\W*{re.escape(name)}\W", line))
        numbers = [int(n) for n in re.findall(r"\d+", line.split(name, 1)[1])]
        positives = [int((data.labels[index, i] == 1).sum()) for i in range(5)]
        assert numbers == [len(set(data.patients[index])), len(index), *positives], name
    for name in data.label_names:
        assert name[:6] in text


def test_a_dry_run_tells_what_is_done(world: small.World, light) -> None:
    assert world.run("--methods", "dense").exit_code == 0
    before = sorted(world.results.rglob("*"))
    result = world.run("--dry-run", "--methods", "dense,fixed", "--labels", "50,100")
    assert result.exit_code == 0
    assert (result.output.count("to do"), result.output.count("done")) == (1, 1)
    result = world.run("--dry-run", "--methods", "dense", "--labels", "50,20")
    assert result.output.count("to evaluate") == 1
    assert sorted(world.results.rglob("*")) == before


def test_the_beginning_is_read_off_the_clock_of_the_results(
    world: small.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fails now has failed since, though this machine's clock be an hour ahead or behind."""
    from bench.records.store import clock_of

    now = time.time()
    for wrong in (now + 3600.0, now - 3600.0):
        monkeypatch.setattr("time.time", lambda wrong=wrong: wrong)
        command_started = clock_of(tmp_path)
        failed = tmp_path / "log.txt"
        failed.write_text("why")
        assert 0 <= failed.stat().st_mtime - command_started < 60
        failed.unlink()
    assert not list(tmp_path.glob(".*.tmp"))
    seen = []
    monkeypatch.setattr("bench.grid.plan.clock_of", lambda folder: 12.5)
    monkeypatch.setattr("bench.launch.launch.work", lambda sweep: seen.append(sweep.command_started))
    world.run("--methods", "dense", "--launcher", "inline")
    assert seen == [12.5]
