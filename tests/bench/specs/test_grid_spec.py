"""Suites: how a grid expands, and how presets, files and options are merged, with every mistake told in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.specs import grid_spec as grid_module
from bench.specs.grid_spec import GridSpec, load_grid, read_change
from bench.specs.run_spec import EvaluationSpec
from methods import STRATEGIES


def test_a_grid_goes_seed_by_seed() -> None:
    grid = GridSpec(methods="moco/dense,dense", seeds=(3, 1), evaluation=EvaluationSpec(labels=(10, 100)))
    one_seed = [
        ("moco/dense", None),
        ("simclr/dense", None),
        ("untrained", None),
        ("supervised", 10.0),
        ("supervised", 100.0),
    ]
    expected = [(method, labels, seed) for seed in (3, 1) for method, labels in one_seed]
    assert [(run.method, run.labels, run.seed) for run in grid.runs()] == expected
    assert {run.fingerprint for run in grid.runs("ab")} == {"ab"}
    assert len({run.run_id for run in grid.runs()}) == len(expected)


def test_floors_named_among_the_methods_come_once() -> None:
    named = GridSpec(methods="untrained,dense", seeds=(0,), baselines=("untrained",)).runs()
    assert [run.method for run in named] == ["untrained", "simclr/dense"]


def test_keep_ratios_go_to_those_that_have_one_and_name_none() -> None:
    grid = GridSpec(
        methods="dense,sparsecontrast,fixed[keep=0.3],dynamicvit,moco/random[execution=masked]",
        baselines=(),
        keep=(0.5, 0.7),
    )
    assert [method.name for method in grid.parsed_methods()] == [
        "simclr/dense",
        "simclr/sparsecontrast",
        "simclr/sparsecontrast[keep=0.7]",
        "simclr/fixed[keep=0.3]",
        "simclr/dynamicvit",
        "moco/random[execution=masked]",
        "moco/random[keep=0.7,execution=masked]",
    ]


def test_learning_rates_from_tuning() -> None:
    """A method's own, else that of its strategy, of what trains the same, or of dense, with its own objective first."""
    methods = "dense,sparsecontrast[keep=0.7],sparsecontrast[gate=key_bias],frozen,centre,oracle,moco/random,"
    methods += "moco/sparsecontrast,moco/tome,moco/fixed"
    tuned = {
        "simclr/dense": 0.25,
        "simclr/sparsecontrast": 0.5,
        "simclr/sparsecontrast[gate=key_bias]": 0.75,
        "simclr/fixed": 0.125,
        "moco/fixed": 0.0625,
    }
    grid = GridSpec(methods=methods, baselines=("untrained",), seeds=(0,), tuned=tuned)
    default = STRATEGIES["sparsecontrast"].options["gate"].default
    assert default == "token"  # else the names below are others
    assert {run.method: run.train.lr for run in grid.runs()} == {
        "simclr/dense": 0.25,
        "simclr/sparsecontrast[keep=0.7]": 0.5,
        "simclr/sparsecontrast[gate=key_bias]": 0.75,
        "simclr/frozen": 0.125,  # its predictor is not trained
        "simclr/centre": 0.125,
        "simclr/oracle": 0.125,
        "moco/random": 0.25,
        "moco/sparsecontrast": 0.5,
        "moco/tome": 0.25,
        "moco/fixed": 0.0625,
        "untrained": grid.train.lr,
    }


def test_what_was_tuned_of_a_preset_is_used_and_can_be_overridden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").write_text("seeds = [0]\n", encoding="utf-8")
    (tmp_path / "mine.tuning.json").write_text(json.dumps({"chosen": {"simclr/dense": 0.125}}), encoding="utf-8")
    monkeypatch.setattr(grid_module, "PRESETS", tmp_path)
    assert load_grid("mine").tuned == {"simclr/dense": 0.125}
    assert load_grid("mine", changes={"tuned": {"simclr/dense": 0.5}}).tuned == {"simclr/dense": 0.5}


def test_options_beat_the_file_and_the_file_beats_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("seeds = [7]\n[train]\nepochs = 5\nlr = 0.5\n[data.options]\nseed = 3\n", encoding="utf-8")
    plain, mixed = load_grid("smoke"), load_grid("smoke", path, {"train.epochs": 6, "data.options.patients": 50})
    assert (mixed.seeds, mixed.train.epochs, mixed.train.lr) == ((7,), 6, 0.5)
    assert mixed.data.options == {**plain.data.options, "seed": 3, "patients": 50}
    assert mixed.train.batch == plain.train.batch
    assert mixed.encoder == plain.encoder
    assert mixed.preset == "smoke"
    assert mixed.evidence is plain.evidence is False


def test_options_of_a_data_set_go_with_it(tmp_path: Path) -> None:
    assert load_grid("smoke").data.options
    assert load_grid("smoke", changes={"data.name": "pneumoniamnist"}).data.options == {}
    named = {"data.options.labels": "A", "data.name": "folder"}  # in either order
    assert load_grid("smoke", changes=named).data.options == {"labels": "A"}
    path = tmp_path / "mine.toml"
    path.write_text("[data]\nname = 'chestmnist'\noptions = { size = 28 }\n", encoding="utf-8")
    assert load_grid("smoke", path).data.options == {"size": 28}
    assert load_grid("smoke", path, {"data.options.size": 64}).data.options == {"size": 64}
    again = load_grid("smoke", changes={"data.name": "phantom", "data.options.seed": 3})
    assert again.data.options == {**load_grid("smoke").data.options, "seed": 3}


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.epochs=5", "train.epochs", 5),
        (" train.lr = 1e-3 ", "train.lr", 1e-3),
        ("data.publish=false", "data.publish", False),
        ("evaluation.c=[0.1, 1.0]", "evaluation.c", [0.1, 1.0]),
        ("data.options.labels=A,B", "data.options.labels", "A,B"),
        ("encoder.name=vit_tiny_patch16_224", "encoder.name", "vit_tiny_patch16_224"),
        ('data.options.labels="A=1"', "data.options.labels", "A=1"),
    ],
)
def test_changes_are_read_as_toml_or_as_text(text: str, key: str, value: Any) -> None:
    read = read_change(text)
    assert read == (key, value)
    assert type(read[1]) is type(value)


@pytest.mark.parametrize("text", ["train.epochs", "=5", "", " = 5"])
def test_changes_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="write key=value, e.g. train.epochs=5"):
        read_change(text)


MISTAKES = [
    ("[train]\nepoch = 3", r"unknown key 'train.epoch': did you mean epochs\?"),
    ("sedes = [1]", r"unknown key 'sedes': did you mean seeds"),
    ("[data]\nnam = 'x'", r"unknown key 'data.nam': did you mean name\?"),
    ("qqq = 1", r"unknown key 'qqq': choose from .*methods"),
    ("[train]\nepochs = 0", r"train.epochs: Input should be greater than or equal to 1 \(given: 0\)"),
    ("[train]\nepochs = 'many'", r"train.epochs: Input should be a valid integer.*\(given: 'many'\)"),
    ("[train]\nbatch = 1", r"train.batch: .*greater than or equal to 2"),
    ("train = 5", r"train: .*\(given: 5\)"),
    ("[train]\nprecision = '16'", r"train.precision: .*'32-true' or 'bf16-mixed'"),
    ("[encoder]\nchannels = 2", r"encoder.channels: .*1 or 3"),
    ("[encoder]\nimage_size = 8", r"encoder.image_size: .*16"),
    ("keep = [1.5]", r"keep.0: .*less than or equal to 1"),
    ("baselines = ['untraind']", r"baselines.0: .*'untrained' or 'supervised'"),
    ("[evaluation]\nprobes = ['knnn']", r"evaluation.probes.0: .*'linear', 'knn' or 'finetune'"),
    ("[evaluation]\nlabels = [0]", r"label fractions \(--labels\) are per cent, above 0 .*, and 0 is not"),
    ("[evaluation]\nlabels = [10, 101]", r"label fractions \(--labels\) are per cent, .* up to 100, and 101 is not"),
    ("[evaluation]\nlabels = [nan]", r"evaluation.labels.0: Input should be a finite number \(given: nan\)"),
    ("[evaluation]\nc = [0.0]", r"evaluation.c.0: .*greater than 0"),
    ("[views]\nflip = 2.0", r"views.flip: .*less than or equal to 1"),
    ("[tuned]\n'simclr/dense' = -1.0", r"tuned.simclr/dense: .*greater than 0"),
    ("[train]\nepoch = 3\nbatch = 0", r"train.batch: .*\(given: 0\); unknown key 'train.epoch': "),
    ("seeds = [", r"mine.toml is not TOML: Invalid value \(at end of document\)"),
    ("seeds = [1]\nseeds = [2]", r"mine.toml is not TOML"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_mistakes_are_told_in_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        load_grid("smoke", path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_presets_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'smok': did you mean smoke\?"):
        load_grid("smok")
    with pytest.raises(FileNotFoundError, match="no spec at .*absent.toml"):
        load_grid("smoke", tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="binary.toml is not TOML"):
        load_grid("smoke", tmp_path / "binary.toml")


@pytest.mark.parametrize("preset", sorted(path.stem for path in grid_module.PRESETS.glob("*.toml")))
def test_presets_hold(preset: str) -> None:
    runs = load_grid(preset).runs()
    assert len({run.run_id for run in runs}) == len(runs) > 0
    assert {run.preset for run in runs} == {preset}


def test_a_learning_rate_of_the_users_own_replaces_the_tuned_ones() -> None:
    tuned = {run.method: run.train.lr for run in load_grid("quick", changes={"seeds": [0]}).runs()}
    assert len(set(tuned.values())) > 1
    own = load_grid("quick", changes={"seeds": [0], "train.lr": 5e-3})
    assert {run.train.lr for run in own.runs()} == {5e-3}
    named = load_grid("quick", changes={"seeds": [0], "train.lr": 5e-3, "tuned": {"simclr/fixed": 7e-3}})
    assert {run.method: run.train.lr for run in named.runs()}["simclr/fixed"] == 7e-3
