"""Options of the commands: declared once, shown by `--help`, and handed on to the spec."""

from __future__ import annotations

import importlib
import shlex
import tomllib
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from bench.cost import CostOptions
from bench.grid.options import RunOptions
from bench.report import ReportOptions
from bench.specs.grid_spec import GridSpec
from bench.specs.options import Key, Methods, Options, changes_of, compared, examples, numbers, takes
from bench.tune import TuneOptions
from bench.verify import VerifyOptions

ROOT = Path(__file__).parents[3]
COMMANDS = ("run", "report", "cost", "verify", "tune", "list")
CLASSES = (RunOptions, ReportOptions, CostOptions, VerifyOptions, TuneOptions, Options)


@dataclass(frozen=True, kw_only=True)
class Two(Options):
    """One option that commands share and one of this command's own."""

    methods: Methods = None
    crop_area: Annotated[
        str | None,
        compared(help="Area [of the image]."),
        Key("views.crop_area", partial(numbers, example="0.5,1")),
    ] = None


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ([], {}),
        (["--methods", "dense"], {"methods": "dense"}),
        (["--crop-area", "0.2,0.9"], {"views.crop_area": (0.2, 0.9)}),
    ],
)
def test_an_option_stands_in_one_place(arguments: list[str], changes: dict[str, Any]) -> None:
    app, seen = typer.Typer(), []

    @app.command(epilog=examples("two --methods 'fixed[keep=0.5]'"))
    @takes(Two)
    def main(options: Two) -> None:
        """What two does."""
        seen.append(changes_of(options))

    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert seen == [changes]
    help_text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    for words in ("What two does.", "--methods", "--crop-area", "--version", "two --methods 'fixed[keep=0.5]'"):
        assert words in help_text


def test_a_value_that_cannot_be_read_names_its_option() -> None:
    with pytest.raises(ValueError, match="^--crop-area 'wide' "):
        changes_of(Two(crop_area="wide"))


def test_the_options_of_a_run_become_these_changes() -> None:
    options = RunOptions(
        methods="dense",
        labels="1,10",
        data="nih",
        data_root=Path("/x/../y"),
        encoder="resnet18",
        image_size=96,
        keep="0.3",
        seeds="2",
        probes="linear, knn",
    )
    assert changes_of(options) == {
        "methods": "dense",
        "evaluation.labels": (1.0, 10.0),
        "data.name": "nih",
        "data.root": "/y",
        "encoder.name": "resnet18",
        "encoder.image_size": 96,
        "keep": (0.3,),
        "seeds": (0, 1),
        "evaluation.probes": ("linear", "knn"),
    }
    assert changes_of(RunOptions()) == {}


@pytest.mark.parametrize("options", CLASSES)
def test_every_key_is_one_of_the_spec(options: type[Options]) -> None:
    hints = get_type_hints(options, include_extras=True)
    keys = [one.name for hint in hints.values() for one in getattr(hint, "__metadata__", ()) if isinstance(one, Key)]
    for key in keys:
        model: Any = GridSpec
        for part in key.split("."):
            assert issubclass(model, BaseModel)
            assert part in model.model_fields, key
            model = model.model_fields[part].annotation
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(("command", "options"), list(zip(COMMANDS, CLASSES, strict=True)), ids=COMMANDS)
def test_help_shows_every_option_and_the_examples_can_be_given(command: str, options: type[Options]) -> None:
    module = importlib.import_module(f"bench.{command}")
    help_text = CliRunner().invoke(module.app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    for name in (field.name.replace("_", "-") for field in fields(options) if field.name not in ("records", "changes")):
        assert f"--{name} " in help_text
    for example in getattr(module, "EXAMPLES", ()):
        assert example in help_text
        start, *arguments = example.partition(f"bench.{command}")[::2]
        assert start == "python -m "
        typer.main.get_command(module.app).make_context(command, shlex.split(*arguments))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_its_version(command: str) -> None:
    result = CliRunner().invoke(importlib.import_module(f"bench.{command}").app, ["--version"])
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert (result.exit_code, result.output) == (0, f"sparse-attention-bench {version}\n")
